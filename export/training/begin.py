"""What both trainings do first: device, anchor, work folder, text, plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from draftwire.errors import ConfigError
from draftwire.export.settings import TrainingSettings
from draftwire.export.training.base import Base
from draftwire.export.training.loop import Plan
from draftwire.export.training.text import TrainingText, check_work, prepare_text

_MICRO = 2048  # tokens
# They change how long it takes and what is looked at, not what comes out.
_NOT_DECIDING = frozenset(
    ("workers", "device", "prompts", "looks", "arithmetic", "save_every", "budget")
)


def work_folder(out: Path, work: str | Path | None) -> Path:
    """Return the folder of a training, by default beside its package."""
    return Path(work) if work is not None else out.with_name(f"{out.stem}.work")


def choose_device(wanted: str | None) -> str:
    """Return the torch device to train on; a ConfigError where it is not there."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("there is no device 'cuda' here", hint="--device cpu")
    return wanted or ("cuda" if there else "cpu")


def anchor_of(base: Base, wanted: int | None, *, otherwise: int) -> int:
    """Return the anchor's layers; those of a target package are settled.

    Raises:
        ConfigError: ``wanted`` is another number than the package's.
    """
    if base.package is None:
        return otherwise if wanted is None else wanted
    made = (base.package.base or base.package).raw.get("made")
    found = int(made.get("anchor_layers", 0)) if isinstance(made, dict) else 0
    if wanted not in (None, found):
        raise ConfigError(
            f"{base.name} was exported with an anchor of {found} layers, not {wanted}",
            hint="leave --anchor-layers out, or export the target again with "
            f"--anchor-layers {wanted}",
        )
    return found


def begin(
    base: Base,
    anchor: int,
    settings: TrainingSettings,
    work: Path,
    data: Sequence[str | Path],
    say: Callable[[str], None],
    start: str | Path | None = None,
) -> tuple[dict[str, Any], TrainingText]:
    """Open a work folder; return what was asked for, for the report, and the text.

    Raises:
        ConfigError: The folder is another training's, or a text is too small.
    """
    asked = {
        **{k: v for k, v in asdict(settings).items() if k not in _NOT_DECIDING},
        "anchor_layers": anchor,
        "base": base.name,
        "shape": [base.architecture.layers, base.architecture.hidden],
        **({} if start is None else {"start": Path(start).name}),
    }
    check_work(work, asked, data)
    return asked, prepare_text(base, data, work, seed=settings.seed, say=say)


def plan_of(
    settings: TrainingSettings,
    context: int,
    *,
    longer: int,
    warmup: tuple[int, int],
    micro: int = _MICRO,
    **more: Any,
) -> Plan:
    """Return the plan of a training.

    Rows of the last tenth are ``longer`` times as long; ``warmup``: steps at most, and one
    of how many.
    """
    length = min(settings.length, context)
    long = min(longer * length, context, max(length, settings.batch))
    micro = max(min(micro, settings.batch) // long, 1) * long
    batch = max(1, round(settings.batch / micro)) * micro
    steps = max(1, round(settings.tokens / batch))
    return Plan(
        steps=steps,
        batch=batch,
        micro=micro,
        lengths=((0.9, length), (1.0, long)) if longer > 1 else ((1.0, length),),
        warmup=max(1, min(warmup[0], steps // warmup[1])),
        seed=settings.seed,
        workers=settings.workers,
        save_every=settings.save_every,
        precision=settings.arithmetic,
        **more,
    )
