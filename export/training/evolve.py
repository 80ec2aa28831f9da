"""An evolved target by LoRA: the way behind ``export evolve``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.adapter import PEFT_CONFIG, PEFT_WEIGHTS, write_evolved_target
from draftwire.export.training.base import Base, is_package, read_base
from draftwire.export.training.build import choose_device, work_folder
from draftwire.export.training.data import check_work, prepare_text
from draftwire.export.training.evaluate import validation_loss
from draftwire.export.training.loop import Plan, train
from draftwire.export.training.lora import add_lora, lora_tensors
from draftwire.export.training.report import write_report

__all__ = ["EvolveSettings", "evolve_target"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvolveSettings:
    """How a target evolves.

    Attributes:
        rank: Of the LoRA adapters; their scale is 1.
        freeze_anchor: Leave the anchor alone, so that drafts of the family stay of
            the family.
        anchor_layers: Layers of the anchor; None takes those of the package, and 0 for
            a Hugging Face directory.
        tokens: Tokens of text that the training reads.
        batch: Tokens of a step.
        length: Of a row.
        lr: Peak learning rate.
        seed: Of the adapters and the order of the text.
        workers: Training processes on a CPU.
        device: "cpu" or "cuda"; None takes CUDA when there is one.
        precision: Of the arithmetic: "auto", "float32" or "bfloat16".
        save_every: Seconds between checkpoints.
    """

    rank: int = 16
    freeze_anchor: bool = True
    anchor_layers: int | None = None
    tokens: int = 500_000
    batch: int = 8192
    length: int = 256
    lr: float = 2e-3
    seed: int = 1
    workers: int = 1
    device: str | None = None
    precision: str = "auto"
    save_every: float = 60.0


_NOT_DECIDING = ("workers", "device", "precision", "save_every")


def evolve_target(
    target: str | Path,
    out: str | Path,
    data: Sequence[str | Path],
    *,
    version: str,
    settings: EvolveSettings | None = None,
    work: str | Path | None = None,
    name: str | None = None,
    replace: bool = False,
    say: Say = print,
) -> Path:
    """Train low-rank adapters on text, and package them as an evolved target.

    Of a target package comes an evolved package beside it. Of a Hugging Face directory
    comes an adapter directory in PEFT's format, which the verifier serves as it is and
    ``export adapter`` packages.

    Args:
        target: A whole target package, or a Hugging Face directory.
        out: ``NAME.target`` beside the package, or a new directory.
        data: Text files.
        version: What the verifier calls the evolved target.
        settings: How; None takes the defaults.
        work: Folder for the checkpoint and the report; by default ``NAME.work`` beside
            ``out``.
        name: The package's name; by default the folder's.
        replace: Put it in the place of an older package.
        say: Gets lines of progress.

    Returns:
        The package's or the adapter's folder.

    Raises:
        ConfigError: An argument is wrong, a text is too small, or ``out`` exists.
        ModelError: The target is damaged or of an unknown shape.
    """
    target, out = Path(target), Path(out)
    settings = settings or EvolveSettings()
    _check(target, out, settings, replace=replace)
    device = choose_device(settings.device)
    base = read_base(target)
    anchor = _anchor(base, settings)
    model = base.model
    work = work_folder(out, work)
    asked = {
        **{k: v for k, v in asdict(settings).items() if k not in _NOT_DECIDING},
        "anchor_layers": anchor,
        "base": base.name,
        "shape": [model.architecture.layers, model.architecture.hidden],
    }
    check_work(work, asked, data)
    text = prepare_text(base, data, work, seed=settings.seed, say=say)
    held = text.held()
    before = {f: _loss_on(model, s, settings) for f, s in held.items()}
    frozen = anchor if settings.freeze_anchor else 0
    add_lora(model, rank=settings.rank, anchor_layers=frozen, seed=settings.seed * 1000)
    length = min(settings.length, model.architecture.context)
    micro = max(1, min(2048, settings.batch) // length) * length
    batch = max(1, round(settings.batch / micro)) * micro
    steps = max(1, round(settings.tokens / batch))
    plan = Plan(
        steps=steps,
        batch=batch,
        micro=micro,
        lengths=((1.0, length),),
        lr=settings.lr,
        warmup=max(1, min(10, steps // 4)),
        seed=settings.seed,
        workers=settings.workers,
        save_every=settings.save_every,
        precision=settings.precision,
    )
    log = train(model.to(device), text.stream(), plan, _text_loss, work, say=say)
    model.cpu()
    held_out = {
        f: {"loss": _loss_on(model, s, settings), "base_loss": before[f]}
        for f, s in held.items()
    }
    for file, row in held_out.items():
        say(
            f"{file}: {row['base_loss']:.3f} -> {row['loss']:.3f} nats per token "
            "(held-out text)"
        )
    path = write_report(
        work, kind="evolve", settings=asked, log=log, held_out=held_out, say=say
    )
    say(f"report: {path}")
    tensors = {n: t.cpu().numpy() for n, t in lora_tensors(model).items()}
    if base.package is None:
        return _write_peft(tensors, settings.rank, target, out)
    made = {
        "by": "draftwire export evolve",
        "data": list(text.names),
        "steps": len(log),
        "anchor": "frozen" if settings.freeze_anchor else "trained",
    }
    found = write_evolved_target(
        tensors, 1.0, target, out, version=version, name=name, made=made, replace=replace
    )
    if frozen < anchor:
        say(
            "the anchor was trained too: drafts of this family go on with this target, "
            "as drafts of its tokenizer alone, and may be accepted less"
        )
    return found


def _check(target: Path, out: Path, settings: EvolveSettings, *, replace: bool) -> None:
    package = is_package(target)
    if package and out.suffix != ".target":
        raise ConfigError(
            f"an evolved target of a package is called NAME.target, not {out.name}",
            hint=f"--out {out.stem}.target",
        )
    if not package and out.suffix in (".target", ".draft"):
        raise ConfigError(
            f"a Hugging Face directory evolves into an adapter directory, not {out.name}",
            hint=f"--out {out.stem}, then `draftwire export adapter`; or export the "
            "directory with --role target first",
        )
    if package and out.absolute().parent != target.absolute().parent:
        raise ConfigError(
            f"an evolved target lies beside its base, {out} and {target} do not",
            hint=f"--out {target.parent / out.name}",
        )
    if out.exists() and not (replace and package):
        raise ConfigError(
            f"there is something at {out} already",
            hint="choose another place, or remove it first",
        )
    for field in ("rank", "tokens", "batch", "length", "workers"):
        if getattr(settings, field) < 1:
            raise ConfigError(
                f"{field} is {getattr(settings, field)}, it must be 1 or more"
            )
    if not settings.lr > 0:
        raise ConfigError(f"the learning rate is {settings.lr}, it must be above 0")


def _anchor(base: Base, settings: EvolveSettings) -> int:
    layers = base.model.architecture.layers
    wanted = settings.anchor_layers
    if base.package is not None:
        if base.package.base is not None:
            raise ConfigError(
                f"{base.package.path.name} is an evolved target itself",
                hint=f"evolve its base {base.package.base.path.name}",
            )
        made = base.package.raw.get("made")
        found = made.get("anchor_layers", 0) if isinstance(made, dict) else 0
        if wanted not in (None, found):
            raise ConfigError(
                f"{base.name} was exported with an anchor of {found} layers, not {wanted}",
                hint="leave --anchor-layers out",
            )
        wanted = int(found)
    anchor = wanted or 0
    if not 0 <= anchor < layers:
        raise ConfigError(
            f"an anchor of {anchor} layers leaves nothing to train of {layers}",
            hint=f"--anchor-layers 0 to {layers - 1}",
        )
    return anchor


def _loss_on(model: nn.Module, stream: np.ndarray, settings: EvolveSettings) -> float:
    length = min(settings.length, len(stream) - 1)
    loss: float = validation_loss(model, stream, length=length)
    return round(loss, 4)


def _text_loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].reshape(-1))


def _write_peft(
    tensors: Mapping[str, np.ndarray], rank: int, base: Path, out: Path
) -> Path:
    """Write an adapter directory as PEFT would."""
    halves: dict[str, Tensor] = {}
    modules = set()
    for name, values in tensors.items():
        stem, _, half = name.rpartition(".weight.lora_")
        modules.add(stem.rpartition(".")[2])
        key = f"base_model.model.{stem}.lora_{half.upper()}.weight"
        halves[key] = torch.from_numpy(np.ascontiguousarray(values))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.absolute()),
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules),
    }
    part = out.with_name(f".{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    save_file(halves, part / PEFT_WEIGHTS, metadata={"format": "pt"})
    (part / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    os.replace(part, out)
    return out
