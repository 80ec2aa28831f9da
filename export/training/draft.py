"""A frozen draft for any base: the way behind ``export draft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftwire.errors import ConfigError, ModelError
from draftwire.export.onnx import export_onnx
from draftwire.export.pieces import check_place
from draftwire.export.settings import DraftSettings
from draftwire.export.sources.head import KEY, UNSAID, check_head, head_ids, packed
from draftwire.export.training import begin, measure, parallel
from draftwire.export.training.base import Base, read_base, save_model, start_from
from draftwire.export.training.distil import DraftTrainer, make_draft
from draftwire.export.training.loop import Plan, Source, Stream, half_precision, train
from draftwire.export.training.parallel import ParallelTrainer
from draftwire.export.training.states import States, UpperTrainer, write_states
from draftwire.export.training.text import asked_before, digests, let_base_write
from draftwire.tokenizer import load_tokenizer

Say = Callable[[str], None]
Trainer = DraftTrainer | ParallelTrainer
_AGAIN = 4  # times that a row which the base wrote is read where no states are kept

_LOSS = (
    "the loss is the divergence from the base (nats a token), a tenth of the "
    "cross-entropy with the text, and a tenth of the distance from the base's last states"
)
_PARALLEL_LOSS = (
    "the loss is the divergence from the base (nats a token): of the text's tokens twice, "
    "and of masks, each 0.85 times the one before, with a tenth of cross-entropy"
)


def build_draft(
    base_dir: str | Path,
    out: str | Path,
    data: Sequence[str | Path],
    *,
    settings: DraftSettings | None = None,
    start: str | Path | None = None,
    work: str | Path | None = None,
    precision: str | Sequence[str] | None = None,
    name: str | None = None,
    family_name: str | None = None,
    context: int | None = None,
    min_agreement: float | None = None,
    replace: bool = False,
    say: Say = print,
) -> Path:
    """Train a shared-backbone draft of a base once, and freeze it as a package; return its
    folder.

    A second call with the same arguments goes on where the first was interrupted.
    ``precision``, ``name`` and ``context`` are as for
    :func:`draftwire.export.onnx.export_onnx`.

    Args:
        base_dir: A Hugging Face directory, or a target package.
        out: ``NAME.draft``.
        data: Text files like those that the targets will read and write.
        settings: How; None takes the defaults.
        start: A draft of the base, package or Hugging Face directory, whose trained layers
            go on; None starts from the base's last ones.
        work: Folder for streams, checkpoints and the report; by default ``NAME.work``
            beside ``out``.
        family_name: For people; by default the target package's, or the base's name.
        min_agreement: As there; 0 packages even a draft that foretells no more than doing
            nothing.
        replace: Put it in the place of an older package.
        say: Gets lines of progress.

    Raises:
        ConfigError: An argument is wrong, a text is too small, or ``out`` exists.
        ModelError: The base is damaged or of an unknown shape, or the draft is no better
            than doing nothing.
    """
    out = Path(out)
    settings = settings or DraftSettings()
    check_place(out, "draft", replace=replace)
    digests(data)  # what is missing is said before the plan is measured
    device = begin.choose_device(settings.device)
    base = read_base(base_dir)
    if settings.head is not None:
        check_head(settings.head, base.architecture.vocab_size)
    anchor = begin.anchor_of(base, settings.anchor_layers, otherwise=2)
    draft = make_draft(base.model, anchor_layers=anchor, trained_layers=settings.layers)
    masks = None if start is None else start_from(draft, Path(start), base)
    trainer = _trainer(base, draft, settings, masks).to(device)
    work = begin.work_folder(out, work)
    passes = settings.passes or (4 if settings.budget and not settings.parallel else 1)
    upper = _upper(base, draft, anchor, say) if passes > 1 else None
    passes = passes if upper else 1
    settings = replace_fields(settings, passes=passes)
    half = half_precision(_plan(settings, base), device)
    # The draft has its copies in float32 by now: rounding must not change the anchor.
    base.model.to(torch.bfloat16 if half else torch.float32)
    if device == "cuda":
        torch._dynamo.config.suppress_errors = True  # then it runs as it is
        for part in (base.model, draft, *filter(None, (upper,))):
            part.compile()
    if settings.budget is not None:
        tokens, begun = settings.tokens, asked_before(work).get("tokens")
        if not isinstance(begun, int):
            plan = _plan(settings, base)
            pace = begin.measure(trainer, upper, plan, passes=passes, half=half)
            tokens = pace.tokens_in(settings.budget) if settings.budget else tokens
            say(pace.say(tokens))
        elif settings.budget:
            say(f"going on with a training of {begun:,} tokens")
            tokens = begun
        settings = replace_fields(settings, tokens=tokens)
    asked, text = begin.begin(base, anchor, settings, work, data, say, start)
    say(_PARALLEL_LOSS if settings.parallel else _LOSS)
    plan = _plan(settings, base)
    begun_from = {**text.held, **text.asked}
    watch = _Watch(trainer, begun_from, settings, say)
    nothing = watch.nothing()
    model: nn.Module = trainer
    stream = text.stream
    if settings.written:
        share, again = settings.written, max(passes, _AGAIN)
        folder = work / "text"
        stream = let_base_write(base.model, text, share, plan, folder, again=again, say=say)
    source: Source = stream
    if settings.parallel:
        source = parallel.Masked(stream, settings.parallel - 1)
    if upper is not None:
        micros = range(plan.batch // plan.micro)
        write_states(
            work / "states",
            -(-plan.steps // passes),
            base.model,
            anchor,
            lambda part: [stream.micro(plan, part, i)[0] for i in micros],
            say,
        )
        model, source = upper, States(work / "states", base.architecture.vocab_size)
    log = train(model, source, plan, _loss, work, say=say, watch=watch)
    said = None
    if settings.head is not None:
        said = _say_only(draft, base, settings.head, stream)
    held_out: dict[str, dict[str, Any]] = {}
    for file, ids in begun_from.items():
        prompt = {"prompts": settings.prompts, "prompt_tokens": _prompt_tokens(ids)}
        held_out[file] = row = measure.acceptance(base.model, draft, ids, **prompt)
        say(
            f"{file}: accepted of 4 {row['greedy_per_block']:.2f} greedy, overlap "
            f"{row['overlap']:.2f} at T = 1 (held-out text)"
        )
        if isinstance(trainer, ParallelTrainer):
            row["parallel"] = parallel.foretells(trainer, ids, **prompt)
            say(f"{file}: accepted of {trainer.block} {_told(row['parallel'])}")
    asked["doing_nothing"] = nothing
    begin.write_report(
        work, kind="draft", settings=asked, log=log, held_out=held_out, say=say
    )
    accepted = watch()["accepted"]
    if isinstance(trainer, ParallelTrainer):
        found = [row["parallel"] for row in held_out.values()]
        draft = trainer.finished(parallel.chances(found))
    if said is not None:
        size = draft.get_input_embeddings().num_embeddings
        setattr(draft.config, KEY, packed(said, size))
    made_in = work / f"{out.stem}.hf"
    save_model(draft, base, made_in)
    kind, most = max(nothing.items(), key=lambda item: item[1])
    if min_agreement != 0 and accepted <= most:
        raise ModelError(
            f"the draft is not packaged: of {settings.parallel or 4} drafts {accepted:.2f} "
            f"are accepted on held-out text, and {most:.2f} of {kind}",
            hint="give it more --tokens or a longer --budget, text that is nearer to its "
            f"use, or more --layers; {work} keeps what was learnt, and --min-agreement 0 "
            "packages it as it is",
        )
    package = base.package
    made = export_onnx(
        made_in,
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
            "trained_layers": 0 if settings.masks_only else settings.layers,
            **({} if start is None else {"start": Path(start).name}),
            "tokens": plan.steps * plan.batch,
            "data": list(text.held),
            "accepted": accepted,
            "doing_nothing": nothing,
        },
        replace=replace,
    )
    say(f"{work} holds the report and the checkpoint; delete it when you are content")
    return made


def _trainer(
    base: Base, draft: Any, settings: DraftSettings, masks: Tensor | None
) -> Trainer:
    if settings.parallel is None:
        for name in ("masks_only", "shared_mask"):
            if getattr(settings, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is of parallel drafts",
                    hint="add --parallel 8, or leave it out",
                )
        return DraftTrainer(base.model, draft)
    if settings.masks_only and masks is None:
        raise ConfigError(
            "masks alone make no draft of layers that were never trained",
            hint="--start DRAFT, the draft that gets them",
        )
    if (settings.passes or 1) > 1:
        raise ConfigError(
            "states of the base are kept for one token a forward alone",
            hint="leave --passes out with --parallel",
        )
    parallel.check_parallel(base, settings.parallel, _plan(settings, base).length_at(0))
    return ParallelTrainer(
        base.model,
        draft,
        settings.parallel,
        shared=settings.shared_mask,
        masks_only=settings.masks_only,
        masks=masks,
    )


def _upper(base: Base, draft: Any, anchor: int, say: Say) -> UpperTrainer | None:
    try:
        return UpperTrainer(base.model, draft, anchor)
    except ModelError as exc:
        say(f"each text is read once, and no states are kept: {exc}")
        return None


def _plan(settings: DraftSettings, base: Base) -> Plan:
    lr, looks, context = settings.lr, settings.looks, base.architecture.context
    long = 1 if (settings.passes or 1) > 1 else 4  # states are of one length
    rates: dict[str, Any] = {"longer": long, "lr": lr / 3}
    if settings.parallel:  # masks are learnt from nothing, several to each token
        rates = {"longer": 1, "lr": lr, "micro": 1024}
    plan = begin.plan_of(settings, context, warmup=(25, 8), matrix_lr=lr, **rates)
    return replace_fields(plan, watch_every=max(1, plan.steps // looks) if looks else 0)


def _say_only(draft: Any, base: Base, count: int, text: Stream) -> NDArray[np.int64]:
    """Let a draft's head say so many tokens alone, the most frequent of a text; return
    their ids.
    """
    size = base.architecture.vocab_size
    seen = np.zeros(size, np.int64)
    for path, share in zip(text.paths, text.shares, strict=True):
        if share > 0:
            seen += np.bincount(np.load(path).reshape(-1), minlength=size)
    engine = load_tokenizer(base.tokenizer).engine
    ids = head_ids(count, size, tokenizer=engine, keep=base.eos_ids, seen=seen)
    hidden = np.ones(size, bool)
    hidden[ids] = False
    where = torch.from_numpy(np.flatnonzero(hidden)).to(draft.device)

    def hush(module: Any, given: Any, found: Any) -> None:
        found.logits.index_fill_(-1, where, float(UNSAID))

    draft.register_forward_hook(hush)
    draft._compiled_call_impl = None  # one that was compiled before knows of no hook
    return ids


def _loss(model: Any, *batch: Tensor) -> Tensor:
    found: Tensor = model.loss(*batch)
    return found


def _told(found: Mapping[str, Any]) -> str:
    """Return what was accepted of blocks that were drafted in each way."""
    kinds = (("greedy", "greedy"), ("sampled", "at T = 1"))
    return "; ".join(
        ", ".join(f"{n:.2f} {way}" for way, n in found[kind]["accepted"].items())
        + f" {words}"
        for kind, words in kinds
    )


def _prompt_tokens(held: np.ndarray) -> int:
    """Return the length of prompts that held-out text allows."""
    return held.shape[1] if held.ndim == 2 else max(1, min(48, len(held) // 2))


class _Watch:
    """Looks at greedy acceptance on what the base says to held-out prompts."""

    def __init__(
        self, trainer: Trainer, held: dict[str, Any], settings: DraftSettings, say: Say
    ) -> None:
        self._trainer, self._say, self._block = trainer, say, settings.parallel or 4
        self._spoken: list[tuple[Tensor, int]] = []
        base, prompts = trainer.base, settings.prompts
        for ids in held.values():
            at = _prompt_tokens(ids)
            given = measure.beginnings(ids, prompts, at, seed=settings.seed).to(base.device)
            self._spoken.append((measure.continuations(base, given, count=32), at))

    def __call__(self) -> Mapping[str, float]:
        """Return ``accepted``: mean of a block of 4 (or all at once), over all files."""
        found = self._mean(self._trainer.agrees)
        self._say(f"held-out text: {found:.2f} accepted of {self._block}")
        return {"accepted": found}

    def nothing(self) -> Mapping[str, float]:
        """Return what is accepted of the draft as it stands and of no model at all."""
        return {
            "the same layers untrained": self._mean(self._trainer.agrees),
            "repeating the text": self._mean(measure.repeated),
        }

    def _mean(self, agrees: Callable[[Tensor, int], np.ndarray]) -> float:
        found = [
            measure.accepted_per_block(agrees(*spoken), self._block)
            for spoken in self._spoken
        ]
        return round(sum(found) / len(found), 4)
