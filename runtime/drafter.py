"""Runs the draft model: keeps its caches on a stream's sequences, one step at a time.

Orders (:class:`~draftwire.runtime.edge.actions.Draft`) come in at any time; each step
does one forward, or reads one chunk of text, and looks at the orders first. So a new order
overtakes the one at work within one forward. Who calls :meth:`Drafter.step`, and when, is
the port's business: a thread (:mod:`draftwire.runtime.live`), or a virtual clock.

A model may have several lanes, each with a cache of its own: one forward then appends a
token to each, for little more than it takes for one. On one lane the main line is drafted,
on the others what an unlikely verdict would leave; what one has read the others copy.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import Any, NamedTuple, Protocol, Sequence

import numpy as np

from draftwire.errors import ModelError
from draftwire.runtime.edge.actions import Draft, Role
from draftwire.runtime.edge.in_flight import common
from draftwire.runtime.pacing.controller import AUTOREGRESSIVE, HYBRID
from draftwire.runtime.pacing.suffix_cache import Recall, SuffixCache
from draftwire.sampling import Proposal, Proposer, Shape
from draftwire.sampling.grammar import Guide

_CHUNK = 256  # prompt tokens of one step


class Model(Protocol):
    """What the drafter needs of a draft model (:mod:`~draftwire.runtime.engines`).

    One that says several tokens in a forward has ``parallel`` and ``ahead`` too, one with
    masks ``mask_ids``, one with more lanes ``beside`` and ``wide``: see
    :class:`~draftwire.runtime.engines.draft_model.DraftModel`.
    """

    @property
    def length(self) -> int: ...  # tokens in the KV cache
    # Feed tokens; logits ``(vocab,)`` after the last one.
    def forward(self, tokens: Sequence[int]) -> np.ndarray: ...
    def rewind(self, length: int) -> None: ...  # forget all but the first ones


class Drafted(NamedTuple):
    """A token that was proposed."""

    lane: int
    branch: int  # of the order
    proposal: Proposal


class Step(NamedTuple):
    """What one step did."""

    stream: int  # whose it was
    drafts: Sequence[Drafted]  # nothing where it only read text
    # tokens that the model ran on a lane; 0 for a token that a cache or an earlier forward
    # gave
    fed: int
    masks: int = 0  # that stood behind them
    lanes: int = 1  # that the forward ran, those between its first and last too

    @property
    def proposal(self) -> Proposal | None:
        """The first of ``drafts``, or None."""
        return self.drafts[0].proposal if self.drafts else None


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


class _Lane:
    """A sequence that ``model`` has a cache of, and what was ordered behind it."""

    def __init__(self, number: int, model: Model) -> None:
        self.number, self.model = number, model
        self.sequence: list[int] = []
        self.drawn: list[int] = []  # places of this order's drafts in the sequence
        self.branch = self.left = 0
        self.role: Role = "main"
        self.fresh = True  # nothing of this order is drafted yet

    @property
    def waiting(self) -> int:
        """Tokens that the model has not read."""
        return len(self.sequence) - self.model.length

    def take_order(self, order: Draft) -> bool:
        """Edit the sequence; return False where the order goes on as it was."""
        self.role = order.role
        self.fresh |= not self.left
        if order.branch == self.branch:  # what was drafted since is part of it
            since = sum([place >= order.valid for place in self.drawn])
            self.left = max(0, order.count - since)
            return False
        self.fresh = True
        # A new text may begin as the last one did: what is read stays read.
        valid, tokens = order.valid, order.tokens
        same = common(self.sequence[valid:], tokens) if tokens else 0
        self.sequence[valid:] = tokens
        self.drawn.clear()
        if self.model.length > valid + same:
            self.model.rewind(valid + same)
        self.branch, self.left = order.branch, order.count
        return True

    def copy(self, other: _Lane) -> None:
        """Take over what ``other`` has read of this sequence and this lane has not."""
        at, end = self.model.length, min(other.model.length, len(self.sequence) - 1)
        if end > at and other.sequence[:at] == self.sequence[:at]:
            end = at + common(other.sequence[at:end], self.sequence[at:end])
            if end > at:
                self.model.copy(other.model, end)  # type: ignore[attr-defined]


class Drafter:
    """The draft model at work for one stream after another.

    Ids on the connection are below ``vocab_size``: larger ones (padding rows of the draft's
    matrix) are never proposed. ``stream`` is the one that it works for.
    """

    def __init__(self, model: Model | None, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._inbox: deque[_Begin | _Order] = deque()
        self.stream = -1
        self._work: _Begin | None = None
        self._lanes: list[_Lane] = []
        self.use(model)
        self._way = AUTOREGRESSIVE
        # Logits of the last forward ``(n, vocab)``, and the place that the first speaks of.
        self._rows: np.ndarray | None = None
        self._base = 0

    def use(self, model: Model | None) -> None:
        """Draft with ``model``, which has read nothing, from now on."""
        models = [] if model is None else [model, *getattr(model, "beside", ())]
        self._lanes = [_Lane(number, one) for number, one in enumerate(models)]

    @property
    def model(self) -> Model:
        """The one at work."""
        return self._lanes[0].model

    def lanes(self, model: Model | None) -> int:
        """Return how many lanes ``model`` has, or where it is None the one at work."""
        return 1 + len(getattr(model, "beside", self._lanes[1:]))

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
        self._lanes, self._work, self._rows = [], None, None

    def step(self) -> Step | None:
        """Do one forward; return what came of it, or None when nothing is wanted.

        Raises:
            ModelError: The model gave something that is not a number.
            Exception: Whatever an engine raises; the orders at work are over then.
        """
        if self._inbox:
            self._take_orders()
        wanted, work = [lane for lane in self._lanes if lane.left], self._work
        main = [lane for lane in wanted if lane.role == "main"]
        if not main:  # where its next order is on its way, others wait for it
            wanted = [lane for lane in wanted if lane.role == "alone"]
        if not wanted or work is None:
            return None
        lead = (main or wanted)[0]
        try:
            recall = None
            if work.cache is not None and main:
                recall = work.cache.propose(lead.sequence)
            if recall is None and lead.waiting == 1 and len(wanted) > 1:
                return self._wide(wanted, work)
            return self._step(lead, work, recall)
        except BaseException:
            for lane in wanted:
                lane.left = 0
            raise

    def _step(self, lane: _Lane, work: _Begin, recall: Recall | None) -> Step:
        """Do one forward of a lane, or take what the cache says."""
        model, sequence = lane.model, lane.sequence
        shape, guide = work.shape, work.guide
        waiting, masks, depth = lane.waiting, 0, 0
        if waiting > _CHUNK:
            at, self._rows = model.length, None
            model.forward(sequence[at : at + _CHUNK])
            return Step(self.stream, (), _CHUNK)
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
                depth, masks = 0, self._forward(lane)
            assert self._rows is not None
            proposal = self._propose(self._rows[depth], lane, work)
            if depth:
                proposal = proposal._replace(depth=depth)
        if guide is not None:
            path = guide.path((), (proposal.token,))
            proposal = proposal._replace(then=path.ids[1:], last=path.ended)
        self._took(lane, work, proposal)
        draft = Drafted(lane.number, lane.branch, proposal)
        return Step(self.stream, (draft,), waiting, masks)

    def _wide(self, wanted: Sequence[_Lane], work: _Begin) -> Step:
        """Do one forward of several lanes, a token each."""
        for lane in wanted:
            for other in self._lanes if lane.waiting > 1 else ():
                lane.copy(other)
        fed = {lane.number: lane.sequence[lane.model.length] for lane in wanted}
        rows = self._lanes[0].model.wide(fed)  # type: ignore[attr-defined]
        drafts = []
        for lane in wanted:
            if not lane.waiting:  # else it reads on
                proposal = self._propose(rows[lane.number], lane, work)
                self._took(lane, work, proposal)
                drafts.append(Drafted(lane.number, lane.branch, proposal))
        return Step(self.stream, drafts, 1, 0, 1 + max(fed) - min(fed))

    def _propose(self, logits: np.ndarray, lane: _Lane, work: _Begin) -> Proposal:
        place, logits = len(lane.sequence), logits[: self.vocab_size]
        if not math.isfinite(np.maximum.reduce(logits)):  # also with a NaN anywhere
            raise ModelError(
                f"the draft model gave logits that are not numbers behind {place} tokens"
            )
        if work.shape is not None:
            logits = work.shape.rows(logits[None])[0]
        return work.proposer.propose(logits, place)

    @staticmethod
    def _took(lane: _Lane, work: _Begin, proposal: Proposal) -> None:
        lane.drawn.append(len(lane.sequence))
        lane.sequence += (proposal.token, *proposal.then)
        over = proposal.last or len(lane.sequence) >= work.most
        lane.left = 0 if over else lane.left - 1

    def _forward(self, lane: _Lane) -> int:
        """Run what the model has not read, with masks behind for what is left to draft or
        fewer; return how many."""
        model: Any = lane.model
        parallel = getattr(model, "parallel", None)
        alone = self._way == AUTOREGRESSIVE or (self._way == HYBRID and lane.fresh)
        fresh, lane.fresh = lane.sequence[model.length :], False
        if alone or parallel is None:
            self._rows = model.forward(fresh)[None]
        else:
            self._rows = model.ahead(fresh, min(parallel.block, lane.left))
        assert self._rows is not None
        self._base = len(lane.sequence)
        for i in getattr(model, "mask_ids", ()):
            self._rows[:, i] = -np.inf  # a mask is no word
        return len(self._rows) - 1

    def _take_orders(self) -> None:
        # Every order edits a sequence, even one that a later order overtakes.
        inbox = self._inbox
        while inbox:
            word = inbox.popleft()
            if isinstance(word, _Begin):
                self.stream, self._work = word.stream, word
                if word.model is not None:
                    self.use(word.model)
                for lane in self._lanes:
                    lane.branch = lane.left = 0
                self._rows = None
            elif word.stream == self.stream and self._lanes:
                order = word.draft
                lane, self._way = self._lanes[order.lane], order.way
                if not lane.take_order(order):
                    continue
                self._rows = None
                if self._work is not None and self._work.shape is not None:
                    self._work.shape.cut(order.valid)
                for other in self._lanes if order.count else ():
                    lane.copy(other)
        # The last token is fed again when nothing else is new: its logits are wanted.
        for lane in self._lanes:
            if lane.left and lane.waiting <= 0:
                lane.model.rewind(len(lane.sequence) - 1)
