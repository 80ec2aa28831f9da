"""The frozen draft model: tokens in, logits of the last one out, rewind for free."""

from __future__ import annotations

import importlib
import math
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Mapping, Sequence, Union

import numpy as np

from draftwire.errors import ConfigError, ModelError
from draftwire.runtime.engines.choice import ENGINES, board_hint, choose_engine
from draftwire.runtime.engines.engine import Engine, ModelSpec

if TYPE_CHECKING:
    from draftwire.packages import DraftPackage, PackageFile, Parallel


Threads = Union[int, str, None]

# threads="auto" times this many steps at each setting, and leaves one thread only for a
# gain that is more than noise: threads cost energy and the other cores.
_AUTO_STEPS = 24
_AUTO_GAIN = 0.85


class Lane:
    """A sequence that a draft model goes on with: one KV cache of ``context`` tokens.

    The state is one integer, :attr:`length`: tokens beyond it are forgotten.
    """

    def __init__(self, engine: Engine, context: int, number: int = 0) -> None:
        self.context = context
        self._engine = engine
        self._lane = number
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Append ``tokens``; return the logits ``(vocab_size,)`` of the last one, a view
        that the next call overwrites."""
        for token in tokens:
            rows = self._engine.wide(self._lane, (token,), (self._length,))  # type: ignore[attr-defined]
            self._length += 1
        logits: np.ndarray = rows[0]
        return logits

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens; a ValueError where so many are not
        held."""
        if not 0 <= length <= self._length:
            raise ValueError(f"rewind to {length} of {self._length} tokens")
        self._length = length

    def copy(self, other: Lane, end: int) -> None:
        """Take over what ``other`` has read behind this one's tokens, up to ``end`` tokens
        in all."""
        self._engine.copy(other._lane, self._lane, self._length, end)  # type: ignore[attr-defined]
        self._length = end


class DraftModel(Lane):
    """One frozen draft on one engine, with one KV cache of ``context`` tokens.

    Not thread-safe: one thread at a time. ``warnings`` are sentences for the run report,
    e.g. of a provider that fell back; ``parallel`` says how several tokens come of one
    forward, or is None where they do not, or the engine cannot; ``mask_ids`` are no words.
    What one forward can go on with beside its own sequence is ``beside``: other lanes of
    the engine.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        vocab_size: int,
        context: int,
        precision: str,
        threads: int = 1,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(engine, context)
        self.vocab_size = vocab_size
        self.engine = engine.name
        self.precision = precision
        self.threads = threads
        self.warnings: tuple[str, ...] = tuple(getattr(engine, "warnings", ()))
        self._step = engine.step
        self._tail: Callable[..., np.ndarray] | None = getattr(engine, "tail", None)
        self.parallel = parallel
        self.mask_ids = () if parallel is None else parallel.mask_ids
        if parallel is not None and not (self._tail and engine.multi_token):
            self.parallel = None
            self.warnings += (
                f"{engine.name} drafts a token a forward: this draft says "
                f"{parallel.block} at once on onnxruntime 1.20 or newer",
            )
        # Masks take a forward of their own.
        lanes = getattr(engine, "lanes", 1) if parallel is None else 1
        self.beside = tuple([Lane(engine, context, n) for n in range(1, lanes)])

    @classmethod
    def load(
        cls,
        package: DraftPackage | str | os.PathLike[str],
        *,
        precision: str | None = None,
        engine: str | None = None,
        threads: Threads = None,
        max_context: int | None = None,
        provider: str | None = None,
    ) -> DraftModel:
        """Open a draft package on this device.

        Where neither precision nor engine nor threads are given, the package's hint for
        this board decides, if it has one (``draftwire bench device --tune --write``).

        Args:
            package: A loaded package, or the path of one.
            precision: Which of the package's models; by default the package's choice.
            engine: "onnxruntime" or "litert"; by default onnxruntime where it is installed.
            threads: Threads inside one operator (default 1), or "auto" to measure.
            max_context: Tokens to reserve a KV cache for, at most the model's context.
            provider: Where onnxruntime computes: "cpu", "cuda", "tensorrt", or "auto".

        Raises:
            ConfigError: A setting is out of range, or the engine is not installed.
            PackageError: The package is damaged.
            ModelError: The engine cannot run the model, or its logits are not numbers.
        """
        if isinstance(package, (str, os.PathLike)):
            from draftwire.packages import load_draft

            package = load_draft(os.fspath(package))
        context = package.context if max_context is None else max_context
        if not 1 <= context <= package.context:
            raise ConfigError(
                f"a context of {context} tokens was asked, the draft has {package.context}",
                hint=f"choose a context of 1 to {package.context} tokens",
            )
        ignored = ""
        if precision is None and engine is None and threads is None:
            hint, ignored = board_hint(package)
            if hint is not None:
                engine, precision, threads = hint
        name, entry = choose_engine(package, precision, engine)
        path = entry.path
        spec = spec_of(package, entry, capacity=context)
        open_engine = importlib.import_module(ENGINES[name]).open_engine
        extra: dict[str, str | None] = {}
        if name == "onnxruntime":
            extra = {"provider": provider, "draft_id": package.id}
        elif provider not in (None, "auto", "cpu"):
            raise ConfigError(
                f"{name} has no provider {provider!r}", hint="it computes on the CPU"
            )

        def make(count: int) -> Engine:
            opened: Engine = open_engine(path, spec, threads=count, **extra)
            _check_logits(opened, path)
            return opened

        if threads == "auto":
            count, opened = _measure_threads(make, context)
        else:
            count = 1 if threads is None else threads  # type: ignore[assignment]
            if type(count) is not int or count < 1:
                what = f"threads is {threads!r}"
                raise ConfigError(what, hint="give a number from 1, or 'auto'")
            opened = make(count)
        model = cls(
            opened,
            vocab_size=package.vocab_size,
            context=context,
            precision=entry.precision,
            threads=count,
            parallel=package.parallel,
        )
        if ignored:
            model.warnings = (ignored, *model.warnings)
        return model

    @property
    def multi_token(self) -> bool:
        """Whether several tokens with a past take one forward here."""
        return self._engine.multi_token

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Append ``tokens`` and return the logits of the last one.

        Args:
            tokens: One or more ids, ``0 .. vocab_size - 1``.

        Returns:
            ``(vocab_size,)`` float32, a view that the next call overwrites.

        Raises:
            ConfigError: The tokens do not fit in the context; nothing was appended.
            ValueError: No tokens, or an id outside the vocabulary.
        """
        count = len(tokens)
        past = self._length
        if past + count > self.context:
            raise ConfigError(
                f"the draft's context is full: {past} tokens held and {count} more "
                f"asked, room for {self.context}",
                hint="shorten the prompt or ask for fewer new tokens",
            )
        if count == 1:  # the hot loop's
            token = tokens[0]
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token}, the vocabulary has {self.vocab_size}")
            logits = self._step(token, past)
        else:
            self._check(tokens)
            done, engine = 0, self._engine
            while done < count:
                at = past + done
                size = engine.most(count - done, at)
                if size == 1:
                    logits = engine.step(tokens[done], at)
                else:
                    logits = engine.block(tokens[done : done + size], at)
                done += size
        self._length = past + count
        return logits

    def _check(self, tokens: Sequence[int]) -> None:
        if not len(tokens):  # an array has no truth of its own
            raise ValueError("forward() needs at least one token")
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"a token outside the vocabulary of {self.vocab_size}")

    def ahead(self, tokens: Sequence[int], count: int) -> np.ndarray:
        """Append ``tokens``; return the logits that follow them, and those of masks behind.

        Returns:
            ``(n, vocab_size)`` float32, a view that the next call overwrites: row ``j``
            says the token ``j`` places behind ``tokens``; fewer rows than ``count`` where
            the context has no room for more masks, which are forgotten.
        """
        past, new, parallel = self._length, len(tokens), self.parallel
        masks: tuple[int, ...] = ()
        if parallel is not None:
            room = self.context - past - new
            masks = parallel.masks(max(0, min(count - 1, room)))
        if not masks or not new or self._tail is None:
            return self.forward(tokens)[None]
        self._check(tokens)
        row = (*tokens, *masks)
        first = len(row) - self._engine.most(len(row), past)
        if first:
            self.forward(tokens[:first])
        rows = self._tail(row[first:], past + first, 1 + len(masks))
        self._length = past + new
        return rows

    def wide(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Append a token to each of some lanes (0 is this model's own) in one forward.

        Returns:
            For each lane the logits ``(vocab_size,)`` behind its token, views that the next
            call overwrites.

        Raises:
            ConfigError: A lane is full.
            ValueError: No tokens, or an id outside the vocabulary.
        """
        self._check([*tokens.values()])
        first, end = min(tokens), max(tokens) + 1
        lanes: Sequence[Lane] = (self, *self.beside)[first:end]
        for number, lane in enumerate(lanes, first):
            if lane.length >= self.context:  # one in between has no part, and needs a place
                if number in tokens:
                    raise ConfigError(f"the draft's context of {self.context} is full")
                lane.rewind(self.context - 1)
        fed = [tokens.get(number, 0) for number in range(first, end)]
        rows = self._engine.wide(first, fed, [lane.length for lane in lanes])  # type: ignore[attr-defined]
        for number in tokens:
            lanes[number - first]._length += 1
        return {number: rows[number - first] for number in tokens}

    def reset(self) -> None:
        self._length = 0


def spec_of(package: DraftPackage, file: PackageFile, *, capacity: int) -> ModelSpec:
    """Return what an engine must know to open ``file`` of ``package``."""
    return ModelSpec(
        layers=package.shape.layers,
        kv_heads=package.shape.kv_heads,
        head_dim=package.shape.head_dim,
        vocab_size=package.vocab_size,
        capacity=capacity,
        graph=file.graph,
        min_engine=file.min_engine,
    )


def _check_logits(engine: Engine, path: Path) -> None:
    """Refuse a model that loads and computes nonsense (it happens, silently)."""
    logits = engine.step(0, 0)
    if not np.isfinite(logits).all() or logits.max() == logits.min():
        raise ModelError(
            f"{engine.name} runs {path.name}, but its logits are not usable numbers",
            hint="choose another precision, or update the engine",
        )


def _measure_threads(make: Callable[[int], Engine], context: int) -> tuple[int, Engine]:
    """Return the quickest thread count on this machine now, and its engine."""
    mine = getattr(os, "sched_getaffinity", None)  # of Linux
    cores = len(mine(0)) if mine is not None else os.cpu_count() or 1
    best, best_s = (1, make(1)), math.inf
    for count in sorted({1, *(n for n in (2, 4, cores) if n <= cores)}):
        engine = best[1] if count == 1 else make(count)
        step_s = _median_step_s(engine, min(8, context))
        if step_s < best_s * _AUTO_GAIN:
            best, best_s = (count, engine), step_s
    return best


def _median_step_s(engine: Engine, limit: int) -> float:
    times = []
    for past in range(_AUTO_STEPS):
        start = time.perf_counter()
        engine.step(0, past % limit)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
