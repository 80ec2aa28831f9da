"""A frozen draft for any base: the way behind ``export draft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.onnx import export_onnx
from draftwire.export.training.base import Base, read_base
from draftwire.export.training.data import TrainingText, check_work, prepare_text
from draftwire.export.training.draft import DraftTrainer, make_draft
from draftwire.export.training.evaluate import (
    acceptance,
    accepted_per_block,
    continuations,
)
from draftwire.export.training.loop import Plan, half_precision, train
from draftwire.export.training.model import Transformer
from draftwire.export.training.plan import measure, tokens_before
from draftwire.export.training.report import write_report
from draftwire.export.training.store import save_checkpoint

__all__ = ["DraftSettings", "build_draft", "choose_device", "work_folder"]

Say = Callable[[str], None]
_MICRO = 2048  # tokens


@dataclass(frozen=True)
class DraftSettings:
    """How a draft is made of a base.

    Attributes:
        anchor_layers: First layers that draft and targets share; None takes those of
            the target package, or 2.
        trained_layers: Layers that are trained.
        tokens: Tokens of text that the training reads.
        batch: Tokens of a step.
        length: Of most rows; the last tenth of the steps reads longer ones.
        lr: Peak learning rate of matrices; norms and biases get a third.
        seed: Of the order of the text.
        workers: Training processes on a CPU.
        device: "cpu" or "cuda"; None takes CUDA when there is one.
        precision: Of the arithmetic: "auto", "float32" or "bfloat16".
        prompts: Held-out prompts of each file that acceptance is measured on.
        looks: Times during the training that acceptance is measured.
        save_every: Seconds between checkpoints.
        budget: Seconds that all of it may take, which decides ``tokens``; 0 measures
            and says what ``tokens`` will take; None does neither.
    """

    anchor_layers: int | None = None
    trained_layers: int = 2
    tokens: int = 2_000_000
    batch: int = 8192
    length: int = 256
    lr: float = 3e-3
    seed: int = 1
    workers: int = 1
    device: str | None = None
    precision: str = "auto"
    prompts: int = 16
    looks: int = 8
    save_every: float = 60.0
    budget: float | None = None


def build_draft(
    base_dir: str | Path,
    out: str | Path,
    data: Sequence[str | Path],
    *,
    settings: DraftSettings | None = None,
    work: str | Path | None = None,
    export_precision: str | Sequence[str] | None = None,
    name: str | None = None,
    family_name: str | None = None,
    context: int | None = None,
    min_agreement: float | None = None,
    replace: bool = False,
    say: Say = print,
) -> Path:
    """Train a shared-backbone draft of a base once, and freeze it as a package.

    A second call with the same arguments goes on where the first was interrupted.

    Args:
        base_dir: A Hugging Face directory, or a target package.
        out: ``NAME.draft``.
        data: Text files like those that the targets will read and write.
        settings: How; None takes the defaults.
        work: Folder for streams, checkpoints and the report; by default ``NAME.work``
            beside ``out``.
        export_precision: Of the package: "int8" (default), "int4", "fp32".
        name: The package's name; by default the folder's.
        family_name: For people; by default the target package's, or the base's name.
        context: Positions to serve.
        min_agreement: As for :func:`draftwire.export.onnx.export_onnx`.
        replace: Put it in the place of an older package.
        say: Gets lines of progress.

    Returns:
        The package's folder.

    Raises:
        ConfigError: An argument is wrong, a text is too small, or ``out`` exists.
        ModelError: The base is damaged or of an unknown shape.
    """
    base_dir, out = Path(base_dir), Path(out)
    settings = settings or DraftSettings()
    _check(out, settings, replace=replace)
    device = choose_device(settings.device)
    base = read_base(base_dir)
    anchor = _anchor_layers(base, settings.anchor_layers)
    draft = make_draft(
        base.model, anchor_layers=anchor, trained_layers=settings.trained_layers
    )
    work = work_folder(out, work)
    draft.to(device)
    base.model.to(device)
    if settings.budget is not None:
        settings = replace_fields(
            settings, tokens=_affordable(base, draft, anchor, settings, work, say)
        )
    asked = {
        **{k: v for k, v in asdict(settings).items() if k not in _NOT_DECIDING},
        "anchor_layers": anchor,
        "base": base.name,
        "shape": [base.model.architecture.layers, base.model.architecture.hidden],
    }
    check_work(work, asked, data)
    text = prepare_text(base, data, work, seed=settings.seed, say=say)
    plan = _plan(settings, base.model.architecture.context)
    # The draft has its copies in float32 by now: rounding must not change the anchor.
    half = device == "cuda" and half_precision(plan, device)
    base.model.to(device, torch.bfloat16 if half else torch.float32)
    draft.to(device)
    trainer = DraftTrainer(base.model, draft, anchor_layers=anchor)
    watch = _Watch(base.model, draft, text, settings)
    log = train(trainer, text.stream(), plan, _loss, work, say=say, watch=watch)
    held_out = {
        file: acceptance(
            base.model, draft, stream, prompts=settings.prompts, **_lengths(stream, 64)
        )
        for file, stream in text.held().items()
    }
    for file, row in held_out.items():
        say(
            f"{file}: accepted of 4 {row['greedy_per_block']:.2f} greedy, overlap "
            f"{row['overlap']:.2f} at T = 1 (held-out text)"
        )
    path = write_report(
        work, kind="draft", settings=asked, log=log, held_out=held_out, say=say
    )
    say(f"report: {path}")
    save_checkpoint(draft.cpu(), base, base_dir, work / f"{out.stem}.hf")
    package = base.package
    made = export_onnx(
        work / f"{out.stem}.hf",
        out,
        precision=export_precision,
        name=name,
        family_name=family_name or (package.family.name if package else base.name),
        context=context or (package.context if package else None),
        anchor_layers=anchor,
        min_agreement=min_agreement,
        made={
            "by": "draftwire export draft",
            "from": base.name,
            "trained_layers": settings.trained_layers,
            "tokens": plan.steps * plan.batch,
            "data": list(text.names),
        },
        replace=replace,
    )
    say(f"{work} holds the report and the checkpoint; delete it when you are content")
    return made


# They change how long it takes and what is looked at, not what comes out.
_NOT_DECIDING = (
    "workers", "device", "prompts", "looks", "precision", "save_every", "budget"
)  # fmt: skip


def _affordable(
    base: Base,
    draft: Transformer,
    anchor: int,
    settings: DraftSettings,
    work: Path,
    say: Say,
) -> int:
    """Return the tokens that the budget allows, and say the plan."""
    assert settings.budget is not None
    begun = tokens_before(work)
    if begun is not None:
        if not settings.budget:
            return settings.tokens
        say(f"going on with a training of {begun:,} tokens")
        return begun
    trainer = DraftTrainer(base.model, draft, anchor_layers=anchor)
    plan = _plan(settings, base.model.architecture.context)
    length = plan.lengths[0][1]
    rows = max(1, plan.micro // length)
    pace = measure(trainer, rows=rows, length=length, workers=settings.workers)
    tokens = pace.tokens_in(settings.budget) if settings.budget else settings.tokens
    say(pace.say(tokens))
    return tokens


def work_folder(out: Path, work: str | Path | None) -> Path:
    """Return the folder of a training, by default beside its package."""
    return Path(work) if work is not None else out.with_name(f"{out.stem}.work")


def choose_device(wanted: str | None) -> str:
    """Return the torch device to train on.

    Raises:
        ConfigError: It is not there.
    """
    there = torch.cuda.is_available()
    if wanted is None:
        return "cuda" if there else "cpu"
    if wanted not in ("cpu", "cuda") or (wanted == "cuda" and not there):
        raise ConfigError(
            f"there is no device {wanted!r} here",
            hint="--device cpu" if wanted == "cuda" else "cpu or cuda",
        )
    return wanted


def _check(out: Path, settings: DraftSettings, *, replace: bool) -> None:
    if out.suffix != ".draft":
        raise ConfigError(
            f"a draft package is called NAME.draft, not {out.name}",
            hint=f"--out {out.stem}.draft",
        )
    if out.exists() and not replace:
        raise ConfigError(
            f"there is something at {out} already",
            hint="choose another place, or remove it first",
        )
    for name in ("tokens", "batch", "length", "workers", "prompts"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)}, it must be 1 or more")
    if not settings.lr > 0:
        raise ConfigError(f"the learning rate is {settings.lr}, it must be above 0")
    if settings.precision not in ("auto", "float32", "bfloat16"):
        raise ConfigError(
            f"there is no arithmetic {settings.precision!r}",
            hint="auto, float32 or bfloat16",
        )


def _anchor_layers(base: Base, wanted: int | None) -> int:
    """Return the anchor's layers; those of a target package are settled."""
    if base.package is None:
        return 2 if wanted is None else wanted
    whole = base.package.base or base.package
    made = whole.raw.get("made")
    found = made.get("anchor_layers", 0) if isinstance(made, dict) else 0
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"{base.name} was exported with an anchor of {found} layers, not {wanted}",
            hint="leave --anchor-layers out, or export the target again with "
            f"--anchor-layers {wanted}",
        )
    return int(found)


def _plan(settings: DraftSettings, context: int) -> Plan:
    length = min(settings.length, context)
    longer = min(4 * length, context, max(length, settings.batch))
    micro = max(min(_MICRO, settings.batch) // longer, 1) * longer
    batch = max(1, round(settings.batch / micro)) * micro
    steps = max(1, round(settings.tokens / batch))
    return Plan(
        steps=steps,
        batch=batch,
        micro=micro,
        lengths=((0.9, length), (1.0, longer)),
        lr=settings.lr / 3,
        matrix_lr=settings.lr,
        warmup=max(1, min(25, steps // 8)),
        seed=settings.seed,
        workers=settings.workers,
        save_every=settings.save_every,
        precision=settings.precision,
        watch_every=max(1, steps // settings.looks) if settings.looks else 0,
    )


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    assert isinstance(model, DraftTrainer)
    return model.loss(ids)


def _lengths(stream: np.ndarray, count: int) -> dict[str, int]:
    """Return prompt and continuation lengths that a held-out stream allows."""
    return {"prompt_tokens": max(1, min(48, len(stream) // 2)), "count": count}


class _Watch:
    """Looks at greedy acceptance on what the base says to held-out prompts."""

    def __init__(
        self,
        base: Transformer,
        draft: Transformer,
        text: TrainingText,
        settings: DraftSettings,
    ) -> None:
        self._base, self._draft, self._text = base, draft, text
        self._prompts, self._seed = settings.prompts, settings.seed
        self._spoken: list[tuple[Tensor, int]] = []

    @torch.no_grad()
    def __call__(self) -> Mapping[str, float]:
        """Return ``accepted``: mean of a block of 4, over all files."""
        self._spoken = self._spoken or [self._speak(s) for s in self._text.held().values()]
        found = []
        for text, at in self._spoken:
            choice = self._draft(text)[:, at - 1 : -1].argmax(-1)
            found.append(accepted_per_block((choice == text[:, at:]).cpu().numpy(), 4))
        return {"accepted": round(sum(found) / len(found), 4)}

    def _speak(self, stream: np.ndarray) -> tuple[Tensor, int]:
        lengths: dict[str, Any] = _lengths(stream, 32)
        at = lengths["prompt_tokens"]
        rng = np.random.default_rng(self._seed)
        starts = rng.integers(0, len(stream) - at + 1, self._prompts)
        rows = np.stack([stream[s : s + at] for s in starts]).astype(np.int64)
        given = torch.from_numpy(rows).to(self._base.embedding.weight.device)
        count = lengths["count"]
        said = continuations(self._base, given, count=count, temperature=0, seed=0)
        return said, at
