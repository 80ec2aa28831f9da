"""The drafting thread: keeps the draft model's cache on the session's sequence.

Orders (:class:`~draftwire.runtime.edge_session.Draft`) come in from any thread; proposals
go out through a callback. A new order replaces the one at work within one token.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Callable, Protocol, Sequence

import numpy as np

from draftwire.runtime.actions import (
    Draft,
)
from draftwire.runtime.suffix_cache import SuffixCache
from draftwire.sampling import Proposal, Proposer

__all__ = ["Drafter", "Model"]

_CHUNK = 256  # prompt tokens between two looks at the inbox


class Model(Protocol):
    """What the drafter needs of :class:`~draftwire.runtime.draft_model.DraftModel`."""

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed ``tokens``; return logits ``(vocab,)`` after the last one."""

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""


class Drafter:
    """Runs a draft model in a thread of its own.

    Args:
        model: The draft; used by this thread alone while it runs.
        vocab_size: Ids on the connection are below this; larger ones (padding rows of
            the draft's matrix) are never proposed.
        on_proposal: Called with ``(branch, proposal)`` in the drafting thread.
        on_error: Called with the exception when the model fails; the thread goes on to
            wait for orders.

    Attributes:
        draft_s: Seconds spent on drafting since :meth:`begin`.
        prefill_s: Seconds spent on reading text since :meth:`begin`.
        steps: Forwards since :meth:`begin`.
        recalled: Tokens since :meth:`begin` that a cache gave instead of the model.
        last_step_s: What the last proposal of the model took.
    """

    def __init__(
        self,
        model: Model,
        *,
        vocab_size: int,
        on_proposal: Callable[[int, Proposal], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._on_proposal = on_proposal
        self._on_error = on_error
        self._proposer: Proposer | None = None
        self._orders: deque[Draft] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._sequence: list[int] = []
        self._cache: SuffixCache | None = None
        self.draft_s = self.prefill_s = self.last_step_s = 0.0
        self.steps = self.recalled = 0
        self._thread = threading.Thread(
            target=self._run, name="draftwire-drafter", daemon=True
        )
        self._thread.start()

    def begin(self, proposer: Proposer, cache: SuffixCache | None = None) -> None:
        """Start a new stream: set how tokens are proposed, and zero the counts.

        Args:
            proposer: Chooses from the model's logits.
            cache: Asked first; only for schemes whose drafts may come from anywhere.
        """
        with self._wake:
            self._proposer, self._cache = proposer, cache
            self.draft_s = self.prefill_s = 0.0
            self.steps = self.recalled = 0

    def submit(self, order: Draft) -> None:
        """Take an order; returns at once."""
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread after the token at work."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._orders and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                order = self._take_orders()
                proposer = self._proposer
            if not order.count or proposer is None:
                continue
            try:
                self._draft(order, proposer)
            except Exception as exc:  # noqa: BLE001 - a dead thread would hang the stream
                self._on_error(exc)

    def _take_orders(self) -> Draft:
        # Every order edits the sequence, even one that a later order overtakes.
        while True:
            order = self._orders.popleft()
            self._sequence[order.valid :] = order.tokens
            if self._model.length > order.valid:
                self._model.rewind(order.valid)
            if not self._orders:
                break
        # The last token is fed again when nothing else is new: its logits are wanted.
        if order.count and self._model.length >= len(self._sequence):
            self._model.rewind(len(self._sequence) - 1)
        return order

    def _overtaken(self) -> bool:
        return bool(self._orders) or self._stopping

    def _draft(self, order: Draft, proposer: Proposer) -> None:
        model, sequence = self._model, self._sequence
        began = time.perf_counter()
        while len(sequence) - model.length > _CHUNK:
            if self._overtaken():
                return
            at = model.length
            model.forward(sequence[at : at + _CHUNK])
        reading = len(sequence) - model.length > 1
        for _ in range(order.count):
            if self._overtaken():
                return
            recall = self._cache.propose(sequence) if self._cache is not None else None
            if recall is not None:
                # The model reads it when it is asked the next time.
                sequence.append(recall.token)
                self.recalled += 1
                self._on_proposal(order.branch, Proposal(recall.token, recall.confidence))
                continue
            logits = model.forward(sequence[model.length :])
            self.steps += 1
            if reading:
                now = time.perf_counter()
                self.prefill_s += now - began
                began, reading = now, False
            proposal = proposer.propose(logits[: self._vocab_size], len(sequence))
            sequence.append(proposal.token)
            now = time.perf_counter()
            self.last_step_s = now - began
            self.draft_s += self.last_step_s
            began = now
            self._on_proposal(order.branch, proposal)
