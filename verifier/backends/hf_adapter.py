"""Checkpoint folders: how their targets are called, and LoRA adapters in PEFT's format.

An adapter is merged into a model or put beside it, without peft. Beside it, versions of a
target share the tensors of one base: each costs its adapter's memory, and two narrow
products more in every layer that it changes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Mapping

from draftwire.errors import ConfigError, ModelError
from draftwire.io import parse_json
from draftwire.packages import Family, load_tokenizer, tokenizer_fingerprint
from draftwire.tensors import read_header
from draftwire.tokenizer import Tokenizer, first_token

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Features that change the sum W + scale * B A; anything of these switched on is refused
# rather than merged wrongly.
_UNKNOWN = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
    "target_parameters",
)


class OfCheckpoint:
    """What is known of a target by its name and the folder of its tokenizer."""

    def _describe(self, engine: str, name: str, kind: str, folder: Path) -> Tokenizer:
        """Note what a target of a ``kind`` of model is called; return its tokenizer."""
        self.id = f"{engine}:{name}"
        self.name = self.version = Path(name).name
        self.tokenizer_path = folder / "tokenizer.json"
        self.family = Family(kind, None, tokenizer_fingerprint(self.tokenizer_path))
        self.bos_id = first_token(folder)
        return load_tokenizer(self.tokenizer_path)


def read_adapter(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration; a ModelError where it is damaged or of no LoRA."""
    try:
        config = parse_json((folder / _CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / _CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder} holds no LoRA adapter",
            hint="only LoRA adapters in PEFT's format can be merged",
        )
    return config


def adapter_base(folder: Path) -> Path | None:
    """Return the base checkpoint that an adapter folder names, None for no adapter.

    Raises:
        ConfigError: The base is not a folder on this machine.
        ModelError: The adapter's configuration is damaged.
    """
    if not (folder / _CONFIG).is_file():
        return None
    named = str(read_adapter(folder).get("base_model_name_or_path", ""))
    for base in (folder / named, Path(named)):
        if named and (base / "config.json").is_file():
            return base
    raise ConfigError(
        f"the base {named!r} of adapter {folder} is not a folder on this machine",
        hint=f"set base_model_name_or_path in {_CONFIG} to the base's folder",
    )


def base_of(path: Path) -> Path:
    """Return the folder of a checkpoint, that of its base where it is an adapter.

    Raises:
        ModelError: There is no checkpoint, or as :func:`adapter_base`.
        PackageError: The header of a file cannot be a model's.
    """
    base = adapter_base(path) or path
    if not (base / "config.json").is_file():
        raise ModelError(
            f"{base} is no checkpoint folder: it has no config.json",
            hint="give the folder that Hugging Face's save_pretrained wrote",
        )
    for file in {*path.glob("*.safetensors"), *base.glob("*.safetensors")}:
        read_header(file)  # the libraries take half a minute over a hostile one
    return base


def token_ids(*said: Any) -> tuple[int, ...]:
    """Return the ids that some ``eos_token_id`` name: each is a number, a list or None."""
    lists = [ids if isinstance(ids, (list, tuple)) else [ids] for ids in said]
    return tuple(sorted({int(i) for ids in lists for i in ids if i is not None}))


def merge_adapter(model: Any, folder: Path) -> None:
    """Add an adapter's product to weights that it names; raises as :func:`put_beside`."""
    import torch

    weights = dict(model.named_parameters())
    for name, (down, up) in _read_products(folder, weights).items():
        with torch.no_grad():
            weight = weights[name]
            change = up @ down
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def put_beside(model: Any, folder: Path) -> None:
    """Let the linear layers that an adapter names add its product to what they give.

    Their weights stay as they are, and may be those of other models (:func:`share`).

    Raises:
        ModelError: The adapter is damaged, does not belong to the model, names a weight
            that is no linear layer's, or uses a feature beyond plain LoRA.
    """
    import torch

    class Beside(torch.nn.Module):
        """A linear layer and a product of two narrow ones."""

        def __init__(self, base: Any, down: Any, up: Any) -> None:
            super().__init__()
            self.weight, self.bias = base.weight, base.bias
            how = {"dtype": base.weight.dtype, "device": base.weight.device}
            self.down, self.up = down.to(**how).contiguous(), up.to(**how).T.contiguous()

        def forward(self, x: Any) -> Any:
            out = torch.nn.functional.linear(x, self.weight, self.bias)
            low = torch.nn.functional.linear(x, self.down)
            flat = out.view(-1, out.shape[-1])
            flat.addmm_(low.view(-1, low.shape[-1]), self.up)
            return out

    weights = dict(model.named_parameters())
    for name, (down, up) in _read_products(folder, weights).items():
        path = name.rpartition(".")[0]
        base = model.get_submodule(path)
        if not isinstance(base, torch.nn.Linear):
            raise ModelError(
                f"{folder} adapts {path}, which is no linear layer",
                hint="merge it: --adapters merged",
            )
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, Beside(base, down, up))


def share(model: Any) -> Any:
    """Return another model of the same tensors: layers of its own, and no memory."""
    kept = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in kept})


def _read_products(folder: Path, weights: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both halves of what is added to each weight; the second has the scale."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_adapter(folder)
    odd = [key for key in _UNKNOWN if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise ModelError(
            f"the adapter {folder} uses {', '.join(odd)}, which is not plain LoRA",
            hint="merge it with peft's merge_and_unload and serve the result",
        )
    try:
        tensors = load_file(str(folder / _WEIGHTS))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter {folder} cannot be read: {error}") from error
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(k for k in tensors if ".lora_A." in k):
        down, up = tensors[key], tensors.get(key.replace(".lora_A.", ".lora_B."))
        name = key[len(_PREFIX) :].replace(".lora_A.", ".")
        weight = weights.get(name) if key.startswith(_PREFIX) else None
        if (
            weight is None
            or up is None
            or (up.shape[0], down.shape[1]) != tuple(weight.shape)
        ):
            raise ModelError(f"tensor {key} of {folder} does not fit the base model")
        found[name] = down.float(), scale * up.float()
    others = [k for k in tensors if ".lora_A." not in k and ".lora_B." not in k]
    if others:
        raise ModelError(f"the adapter {folder} has tensors beyond LoRA: {others[0]}")
    return found
