"""Runs the draft model: keeps its cache on a stream's sequence, one step at a time.

Orders (:class:`~draftwire.runtime.edge.actions.Draft`) come in at any time; each step
does one forward, or reads one chunk of text, and looks at the orders first. So a new order
overtakes the one at work within one forward. Who calls :meth:`Drafter.step`, and when, is
the port's business: a thread (:mod:`draftwire.runtime.live`), or a virtual clock.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import NamedTuple, Protocol, Sequence

import numpy as np

from draftwire.errors import ModelError
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.edge.in_flight import common
from draftwire.runtime.pacing.controller import AUTOREGRESSIVE, HYBRID
from draftwire.runtime.pacing.suffix_cache import SuffixCache
from draftwire.sampling import Proposal, Proposer, Shape
from draftwire.sampling.grammar import Guide

_CHUNK = 256  # prompt tokens of one step


class Model(Protocol):
    """What the drafter needs of a draft model (:mod:`~draftwire.runtime.engines`).

    One that says several tokens in a forward has ``parallel`` and ``ahead`` too, one with
    masks ``mask_ids``: see :class:`~draftwire.runtime.engines.draft_model.DraftModel`.
    """

    @property
    def length(self) -> int: ...  # tokens in the KV cache
    # Feed tokens; logits ``(vocab,)`` after the last one.
    def forward(self, tokens: Sequence[int]) -> np.ndarray: ...
    def rewind(self, length: int) -> None: ...  # forget all but the first ones


class Step(NamedTuple):
    """What one step did."""

    stream: int  # whose it was
    branch: int  # of the order
    proposal: Proposal | None  # the token, or None when the step only read text
    # tokens that the model ran; 0 for a token that a cache or an earlier forward gave
    fed: int
    masks: int = 0  # that stood behind them


class _Begin(NamedTuple):
    stream: int
    proposer: Proposer
    cache: SuffixCache | None
    model: Model | None
    shape: Shape | None
    guide: Guide | None
    most: int


class _Order(NamedTuple):
    stream: int
    draft: Draft


class Drafter:
    """The draft model at work for one stream after another.

    Ids on the connection are below ``vocab_size``: larger ones (padding rows of the draft's
    matrix) are never proposed. ``stream`` is the one that it works for.
    """

    def __init__(self, model: Model | None, vocab_size: int) -> None:
        self._model = model
        self.vocab_size = vocab_size
        self._inbox: deque[_Begin | _Order] = deque()
        self.stream = -1
        self._work: _Begin | None = None
        self._drawn: list[int] = []  # places of this order's drafts in the sequence
        self._sequence: list[int] = []
        self._branch = 0
        self._left = 0
        self._way = AUTOREGRESSIVE
        self._fresh = True  # nothing of this order is drafted yet
        # Logits of the last forward ``(n, vocab)``, and the place that the first speaks of.
        self._rows: np.ndarray | None = None
        self._base = 0

    def begin(
        self,
        stream: int,
        proposer: Proposer,
        cache: SuffixCache | None = None,
        model: Model | None = None,
        shape: Shape | None = None,
        guide: Guide | None = None,
        most: int = sys.maxsize,
    ) -> None:
        """Work for ``stream`` from now on; callable from any thread, as the next.

        ``cache`` is asked first, ``shape`` and its ``guide`` are what is done to the
        logits. No draft makes sense behind ``most`` ids: what a grammar forces may come
        there before all are drafted that were ordered.
        """
        self._inbox.append(_Begin(stream, proposer, cache, model, shape, guide, most))

    def submit(self, stream: int, order: Draft) -> None:
        self._inbox.append(_Order(stream, order))

    def forget(self) -> None:
        """Let go of the model and of everything else; no step follows."""
        self._inbox.clear()
        self._model = self._work = self._rows = None
        self._left = 0

    def step(self) -> Step | None:
        """Do one forward; return what came of it, or None when nothing is wanted.

        Raises:
            ModelError: The model gave something that is not a number.
            Exception: Whatever an engine raises; the order at work is over then.
        """
        if not (self._inbox or self._left):
            return None
        self._take_orders()
        model, work, sequence = self._model, self._work, self._sequence
        if not self._left or model is None or work is None:
            return None
        shape, guide = work.shape, work.guide
        left, self._left = self._left, 0  # an engine that raises ends the order
        waiting, masks, depth = len(sequence) - model.length, 0, 0
        if waiting > _CHUNK:
            at, self._rows = model.length, None
            model.forward(sequence[at : at + _CHUNK])
            self._left = left
            return Step(self.stream, self._branch, None, _CHUNK)
        recall = work.cache.propose(sequence) if work.cache is not None else None
        if shape is not None:
            shape.follow(sequence)
        if recall is not None and guide is not None:
            recall = recall if guide.allows(recall.token) else None
        if recall is not None:  # the model reads it when it is asked the next time
            proposal, waiting = Proposal(recall.token, recall.confidence), 0
        else:
            depth = len(sequence) - self._base
            if self._rows is not None and 0 < depth < len(self._rows):
                waiting = 0  # a mask of an earlier forward speaks of this place
            else:
                depth, masks = 0, self._forward(model, left)
            assert self._rows is not None
            logits = self._rows[depth, : self.vocab_size]
            if not math.isfinite(np.maximum.reduce(logits)):  # also with a NaN anywhere
                raise ModelError(
                    f"the draft model gave logits that are not numbers behind "
                    f"{len(sequence)} tokens"
                )
            if shape is not None:
                logits = shape.rows(logits[None])[0]
            proposal = work.proposer.propose(logits, len(sequence))
            if depth:
                proposal = proposal._replace(depth=depth)
        if guide is not None:
            path = guide.path((), (proposal.token,))
            proposal = proposal._replace(then=path.ids[1:], last=path.ended)
        self._drawn.append(len(sequence))
        sequence += (proposal.token, *proposal.then)
        over = proposal.last or len(sequence) >= work.most
        self._left = 0 if over else left - 1
        return Step(self.stream, self._branch, proposal, waiting, masks)

    def _forward(self, model: Model, left: int) -> int:
        """Run what the model has not read, with masks behind for ``left`` drafts or fewer;
        return how many."""
        parallel = getattr(model, "parallel", None)
        alone = self._way == AUTOREGRESSIVE or (self._way == HYBRID and self._fresh)
        fresh, self._fresh = self._sequence[model.length :], False
        if alone or parallel is None:
            self._rows = model.forward(fresh)[None]
        else:
            self._rows = model.ahead(fresh, min(parallel.block, left))  # type: ignore[attr-defined]
        self._base = len(self._sequence)
        for i in getattr(model, "mask_ids", ()):
            self._rows[:, i] = -np.inf  # a mask is no word
        return len(self._rows) - 1

    def _take_orders(self) -> None:
        # Every order edits the sequence, even one that a later order overtakes.
        inbox = self._inbox
        while inbox:
            word = inbox.popleft()
            if isinstance(word, _Begin):
                self.stream, self._work = word.stream, word
                if word.model is not None:
                    self._model, self._sequence = word.model, []
                self._branch = self._left = 0
                self._rows = None
            elif word.stream == self.stream:
                order, model = word.draft, self._model
                self._way = order.way
                self._fresh |= not self._left
                if order.branch == self._branch:  # what was drafted since is part of it
                    since = sum([place >= order.valid for place in self._drawn])
                    self._left = max(0, order.count - since)
                    continue
                self._rows, self._fresh = None, True
                # A new text may begin as the last one did: what is read stays read.
                valid, tokens = order.valid, order.tokens
                same = common(self._sequence[valid:], tokens) if tokens else 0
                self._sequence[valid:] = tokens
                self._drawn.clear()
                if self._work is not None and self._work.shape is not None:
                    self._work.shape.cut(valid)
                if model is not None and model.length > valid + same:
                    model.rewind(valid + same)
                self._branch, self._left = order.branch, order.count
        # The last token is fed again when nothing else is new: its logits are wanted.
        model, length = self._model, len(self._sequence)
        if self._left and model is not None and model.length >= length:
            model.rewind(length - 1)
