"""A frozen draft for any base: the way behind ``export draft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from draftwire.export.onnx import export_onnx
from draftwire.export.pieces import check_place
from draftwire.export.settings import DraftSettings
from draftwire.export.training.base import Base, read_base, save_model
from draftwire.export.training.begin import (
    anchor_of,
    begin,
    choose_device,
    plan_of,
    work_folder,
)
from draftwire.export.training.distil import DraftTrainer, make_draft
from draftwire.export.training.loop import Plan, half_precision, train
from draftwire.export.training.measure import (
    acceptance,
    accepted_per_block,
    continuations,
    logits_of,
    rows_at,
)
from draftwire.export.training.plan import measure, tokens_before
from draftwire.export.training.report import write_report

__all__ = ["DraftSettings", "build_draft"]

Say = Callable[[str], None]


def build_draft(
    base_dir: str | Path,
    out: str | Path,
    data: Sequence[str | Path],
    *,
    settings: DraftSettings | None = None,
    work: str | Path | None = None,
    precision: str | Sequence[str] | None = None,
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
        precision: Of the package: "int8" (default), "int4", "fp32".
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
    check_place(out, "draft", replace=replace)
    device = choose_device(settings.device)
    base = read_base(base_dir)
    anchor = anchor_of(base, settings.anchor_layers, otherwise=2)
    draft = make_draft(base.model, anchor_layers=anchor, trained_layers=settings.layers)
    work = work_folder(out, work)
    trainer = DraftTrainer(base.model, draft).to(device)
    if settings.budget is not None:
        tokens = _affordable(base, trainer, settings, work, say)
        settings = replace_fields(settings, tokens=tokens)
    asked, text = begin(base, anchor, settings, work, data, say)
    plan = _plan(settings, base)
    # The draft has its copies in float32 by now: rounding must not change the anchor.
    half = device == "cuda" and half_precision(plan, device)
    base.model.to(torch.bfloat16 if half else torch.float32)
    watch = _Watch(base.model, draft, text.held, settings)
    log = train(trainer, text.stream, plan, _loss, work, say=say, watch=watch)
    held_out = {
        file: acceptance(
            base.model,
            draft,
            stream,
            prompts=settings.prompts,
            prompt_tokens=_prompt_tokens(stream),
        )
        for file, stream in text.held.items()
    }
    for file, row in held_out.items():
        say(
            f"{file}: accepted of 4 {row['greedy_per_block']:.2f} greedy, overlap "
            f"{row['overlap']:.2f} at T = 1 (held-out text)"
        )
    write_report(work, kind="draft", settings=asked, log=log, held_out=held_out, say=say)
    save_model(draft, base, base_dir, work / f"{out.stem}.hf")
    package = base.package
    made = export_onnx(
        work / f"{out.stem}.hf",
        out,
        precision=precision,
        name=name,
        family_name=family_name or (package.family.name if package else base.name),
        context=context or (package.context if package else None),
        anchor_layers=anchor,
        min_agreement=min_agreement,
        made={
            "by": "draftwire export draft",
            "from": base.name,
            "trained_layers": settings.layers,
            "tokens": plan.steps * plan.batch,
            "data": list(text.held),
        },
        replace=replace,
    )
    say(f"{work} holds the report and the checkpoint; delete it when you are content")
    return made


def _affordable(
    base: Base, trainer: DraftTrainer, settings: DraftSettings, work: Path, say: Say
) -> int:
    """Return the tokens that the budget allows, and say the plan."""
    begun = tokens_before(work)
    if begun is not None:
        if not settings.budget:
            return settings.tokens
        say(f"going on with a training of {begun:,} tokens")
        return begun
    plan = _plan(settings, base)
    length = plan.length_at(0)
    rows = max(1, plan.micro // length)
    pace = measure(trainer, rows=rows, length=length, workers=settings.workers)
    tokens = pace.tokens_in(settings.budget) if settings.budget else settings.tokens
    say(pace.say(tokens))
    return tokens


def _plan(settings: DraftSettings, base: Base) -> Plan:
    lr, looks, context = settings.lr, settings.looks, base.architecture.context
    plan = plan_of(settings, context, longer=4, warmup=(25, 8), lr=lr / 3, matrix_lr=lr)
    return replace_fields(plan, watch_every=max(1, plan.steps // looks) if looks else 0)


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    assert isinstance(model, DraftTrainer)
    return model.loss(ids)


def _prompt_tokens(stream: np.ndarray) -> int:
    """Return the length of prompts that a held-out stream allows."""
    return max(1, min(48, len(stream) // 2))


class _Watch:
    """Looks at greedy acceptance on what the base says to held-out prompts."""

    def __init__(
        self, base: Any, draft: Any, held: dict[str, Any], settings: DraftSettings
    ) -> None:
        self._base, self._draft, self._held = base, draft, held
        self._prompts, self._seed = settings.prompts, settings.seed
        self._spoken: list[tuple[Tensor, int]] = []

    @torch.no_grad()
    def __call__(self) -> Mapping[str, float]:
        """Return ``accepted``: mean of a block of 4, over all files."""
        self._spoken = self._spoken or [self._speak(s) for s in self._held.values()]
        found = []
        for text, at in self._spoken:
            agrees = logits_of(self._draft, text)[:, at - 1 : -1].argmax(-1) == text[:, at:]
            found.append(accepted_per_block(agrees.cpu().numpy(), 4))
        return {"accepted": round(sum(found) / len(found), 4)}

    def _speak(self, stream: np.ndarray) -> tuple[Tensor, int]:
        at = _prompt_tokens(stream)
        rng = np.random.default_rng(self._seed)
        starts = rng.integers(0, len(stream) - at + 1, self._prompts)
        given = rows_at(stream, starts, at).to(self._base.device)
        said = continuations(self._base, given, count=32, temperature=0, seed=0)
        return said, at
