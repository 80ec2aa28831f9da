"""Evolved targets: a LoRA adapter on top of a target package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError, PackageError
from draftwire.export import pieces
from draftwire.export.sources.checkpoint import made_of, read_json
from draftwire.io import writing
from draftwire.packages import NewFile, TargetPackage, load_target, write_package
from draftwire.tensors import (
    LORA_A,
    LORA_B,
    TensorFile,
    merge_lora,
    read_tensors,
    write_tensors,
)

ADAPTER_FILE = "adapter.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_PEFT_HALVES = {".lora_A.weight": LORA_A, ".lora_B.weight": LORA_B}
# What makes a PEFT adapter more than weight + scale * B @ A, and the value that does
# not.
_PEFT_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
}


def package_adapter(
    adapter: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    version: str,
    name: str | None = None,
    made: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Package an adapter directory, PEFT's or ours, as an evolved target ``out`` beside the
    whole target package ``base`` that it was trained on; return its folder.

    A ConfigError where an argument is wrong, a ModelError where it is more than plain LoRA
    or does not fit.
    """
    tensors, scale = read_adapter(Path(adapter))
    base, out = Path(base).absolute(), Path(out).absolute()
    pieces.check_place(out, "target", replace=replace)
    pieces.check_beside(out, base)
    package = load_target(base)
    if package.base is not None:
        raise ConfigError(
            f"{base.name} is an evolved target itself",
            hint=f"name its base {package.base.path.name} and merge the adapters",
        )
    with np.errstate(over="ignore"):
        halves = {n: np.asarray(t).astype(np.float16) for n, t in tensors.items()}
    for key, half in halves.items():
        if not np.isfinite(half).all():
            raise ModelError(f"the adapter's {key} does not fit into float16")
    if not halves:
        raise ModelError("the adapter changes nothing")
    family = _merged_family(package, halves, scale)
    rounded = read_scale(repr(float(scale)))
    scratch = out.with_name(f".{out.name}.adapter")
    try:
        with writing(out):
            write_tensors(scratch, halves, metadata={"scale": repr(rounded)})
            content = scratch.read_bytes()
    finally:
        scratch.unlink(missing_ok=True)
    rank = max(len(t) for n, t in halves.items() if n.endswith(LORA_A))
    kept = ("vocab_size", "context", "bos_id", "eos_ids", "shape")
    fields = {
        **{key: package.raw[key] for key in kept},
        "name": name or out.stem,
        "version": version,
        "family": family,
        "base": {"path": f"../{base.name}", "id": package.id},
        "adapter": ADAPTER_FILE,
        "made": {**(made or {"from": Path(adapter).name}), "rank": rank, "scale": rounded},
    }
    write_package(out, "target", fields, {ADAPTER_FILE: NewFile(content)}, replace=replace)
    return out


def _merged_family(
    package: TargetPackage, halves: Mapping[str, NDArray[Any]], scale: float
) -> dict[str, Any]:
    """Return the family of the evolved target: does its anchor still stand?"""
    weights = read_tensors(package.path / "weights.safetensors")
    merge_lora(weights, halves, scale)
    for key, weight in weights.items():
        if not np.isfinite(weight).all():
            raise ModelError(f"{key} is not finite with the adapter merged")
    family = dict(package.raw["family"])
    layers = made_of(package).get("anchor_layers", 0)
    if family["backbone"] is not None:
        changed = {key.rpartition(".lora_")[0] for key in halves}
        if changed & set(pieces.anchor_parameters(weights, layers)):
            weight_of = weights.__getitem__
            family["backbone"] = pieces.backbone_fingerprint(
                weights, weight_of, layers=layers
            )
    return family


def read_adapter(folder: Path) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Return ``<parameter>.lora_a`` and ``.lora_b`` of a directory, PEFT's or ours, and the
    scale.

    A ConfigError where there is none, a ModelError where it is damaged or more than plain
    LoRA.
    """
    if (folder / ADAPTER_FILE).is_file():
        file = TensorFile(folder / ADAPTER_FILE)
        found = {name: file.read(name) for name in file.names()}
        return found, read_scale(file.metadata.get("scale", ""))
    if not (folder / PEFT_CONFIG).is_file():
        raise ConfigError(
            f"there is no adapter at {folder}",
            hint=f"give a folder with {PEFT_CONFIG} and {PEFT_WEIGHTS}",
        )
    config = read_json(folder / PEFT_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder.name} is a {config.get('peft_type')} adapter")
    for key, plain in _PEFT_PLAIN.items():
        if config.get(key) not in plain:
            raise ModelError(
                f"{folder.name} uses {key} = {config[key]!r}, which is not plain LoRA",
                hint="merge it into a checkpoint and export that as a target",
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ModelError(f"{folder.name} has r = {rank!r}, lora_alpha = {alpha!r}")
    if not (folder / PEFT_WEIGHTS).is_file():
        raise ModelError(
            f"{folder.name} has no {PEFT_WEIGHTS}",
            hint="save it again with save_pretrained(DIR, safe_serialization=True)",
        )
    file = TensorFile(folder / PEFT_WEIGHTS)
    tensors = {_from_peft(folder, name): file.read(name) for name in file.names()}
    return tensors, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _from_peft(folder: Path, name: str) -> str:
    for ending, half in _PEFT_HALVES.items():
        if name.startswith(_PEFT_PREFIX) and name.endswith(ending):
            return name[len(_PEFT_PREFIX) : -len(ending)] + ".weight" + half
    raise ModelError(f"{folder.name} holds {name}, which is not half of a LoRA pair")


def read_scale(text: str) -> float:
    """Return the scale that an adapter's header names; a PackageError where it is no finite
    number.
    """
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise PackageError(f"the adapter names {text!r} as its scale")
    return scale
