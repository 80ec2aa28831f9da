"""What is done to logits before any scheme sees them: bias, penalties, bans, masks.

The one place for whatever depends on the text so far. Both halves of a stream hold a
:class:`Shape`: the device's follows the text and its drafts, the verifier's the text, to
which it adds the drafts of the block under judgement. Schemes get logits that are shaped
already, so every law of theirs holds for the shaped target, and a penalty needs no line
in any of them. ``transport/PROTOCOL.md`` 6.1 fixes the arithmetic.

Source:
    Order and formulas are those of Hugging Face's logits processors (bias, repetition
    penalty, bad words), https://huggingface.co/docs/transformers/internal/generation_utils,
    and of vLLM's ``apply_penalties`` for presence and frequency: those count the text and
    not the prompt.
"""

from __future__ import annotations

from typing import Protocol, Sequence

import numpy as np

from draftwire.errors import ConfigError
from draftwire.sampling.laws import SamplingParams


class Constraint(Protocol):
    """What allows some tokens at each place, such as a grammar; one for each half."""

    def follow(self, sequence: Sequence[int]) -> None:
        """Stand behind ``sequence``, prompt included, whatever was there before."""

    def masks(self, drafts: Sequence[int]) -> np.ndarray:
        """Return ``(k + 1, vocab)`` bool; row ``j``: what may follow ``drafts[:j]``.

        It changes nothing, may be called from any thread, and leaves a token everywhere.
        """


class Shape:
    """Shapes the logits of one stream.

    Args:
        params: Of the stream.
        vocab_size: Of the connection.
        prompt: So many ids of the sequence are no text: presence and frequency do not
            count them.
        constraint: Further masks, or None.

    Attributes:
        length: Of the sequence that it has followed.

    Raises:
        ConfigError: An id is outside the vocabulary, or no token would be left.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        prompt: int,
        constraint: Constraint | None = None,
    ) -> None:
        ids = [("logit_bias", i) for i, _ in params.logit_bias]
        ids += [("bad_words", i) for word in params.bad_words for i in word]
        for name, i in ids:
            if not 0 <= i < vocab_size:
                what = f"token id {i} of {name} is outside the vocabulary of {vocab_size}"
                raise ConfigError(what, about=name)
        if len({word[-1] for word in params.bad_words}) >= vocab_size:
            raise ConfigError("bad_words would leave no token", about="bad_words")
        self.length = 0
        self._params, self._vocab_size, self._prompt = params, vocab_size, prompt
        self._constraint = constraint
        bias = sorted(params.logit_bias)
        self._bias_ids = np.array([i for i, _ in bias], np.int64)
        self._bias = np.array([value for _, value in bias], np.float64)
        self._counts_needed = params.penalised
        self._longest = max((len(word) for word in params.bad_words), default=1) - 1
        # Distinct ids so far, rising, and how often each came: anywhere, in the text.
        self._ids = np.empty(0, np.int64)
        self._counts = np.empty((0, 2), np.int64)
        self._sequence: list[int] = []  # kept to count back what is cut

    def cut(self, length: int) -> None:
        """Forget what stands behind the first ``length`` ids."""
        if length < self.length:
            self._count(self._sequence[length:], length, -1)
            del self._sequence[length:]
            self.length = length

    def follow(self, sequence: Sequence[int]) -> None:
        """Take in what is new of ``sequence``; what was followed before is not compared."""
        fresh = [int(i) for i in sequence[self.length :]]
        if self._constraint is not None:
            self._constraint.follow(sequence)
        if not fresh:
            return
        self._count(fresh, self.length, 1)
        self._sequence += fresh
        self.length += len(fresh)

    def _count(self, ids: Sequence[int], at: int, step: int) -> None:
        """Add ``step`` to the counts of ``ids``, the first of them at place ``at``."""
        if not self._counts_needed or not ids:
            return
        # New arrays each time: a late exit may still look at the old ones.
        self._ids, self._counts = _counted(
            self._ids, self._counts, np.asarray(ids), max(0, self._prompt - at), step
        )

    def rows(self, logits: np.ndarray, drafts: Sequence[int] = ()) -> np.ndarray:
        """Return ``logits`` ``(k + 1, vocab)`` shaped; row ``j`` follows ``drafts[:j]``.

        Changes nothing, so in any thread.
        """
        shaped = np.array(logits[:, : self._vocab_size])
        ids, counts = self._ids, self._counts
        if self._counts_needed and drafts:
            prompt = max(0, self._prompt - self.length)
            ids, counts = _counted(ids, counts, np.asarray(drafts), prompt, 0)
        touched = np.union1d(ids, self._bias_ids) if len(self._bias_ids) else ids
        if len(touched):
            shaped[:, touched] = self._moved(
                shaped[:, touched], touched, ids, counts, drafts
            )
        if self._params.bad_words:
            tail = self._sequence[max(0, self.length - self._longest) :]
            for j, row in enumerate(shaped):
                self._ban(row, [*tail, *drafts[:j]])
        if self._constraint is not None:
            shaped[~self._constraint.masks(drafts)] = -np.inf
        return shaped

    def _moved(
        self,
        logits: np.ndarray,
        touched: np.ndarray,
        ids: np.ndarray,
        counts: np.ndarray,
        drafts: Sequence[int],
    ) -> np.ndarray:
        """Return the logits of ``touched``, biased and penalised, as binary32."""
        params = self._params
        moved = logits.astype(np.float64)
        moved[:, np.searchsorted(touched, self._bias_ids)] += self._bias
        if self._counts_needed:
            at = np.searchsorted(touched, ids)
            seen = np.repeat(counts[None], len(logits), axis=0)
            for j, token in enumerate(drafts):
                text = self.length + j >= self._prompt
                seen[j + 1 :, np.searchsorted(ids, token)] += (1, text)
            part, r = moved[:, at], params.repetition_penalty
            if r != 1:
                worse = np.where(part < 0, part * r, part / r)
                part = np.where(seen[..., 0] > 0, worse, part)
            often = seen[..., 1]
            part -= params.frequency_penalty * often + params.presence_penalty * (often > 0)
            moved[:, at] = part
        return moved.astype(np.float32)

    def _ban(self, row: np.ndarray, before: list[int]) -> None:
        for word in self._params.bad_words:
            n = len(word) - 1
            if not n or tuple(before[-n:]) == word[:-1]:
                row[word[-1]] = -np.inf


def _counted(
    ids: np.ndarray, counts: np.ndarray, more: np.ndarray, prompt: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and counts with those of ``more``, whose first ``prompt`` are no text."""
    fresh = np.unique(more)
    both = np.union1d(ids, fresh)
    if len(both) > len(ids):
        grown = np.zeros((len(both), 2), np.int64)
        grown[np.searchsorted(both, ids)] = counts
        counts = grown
    elif step:
        counts = counts.copy()
    if step:
        np.add.at(counts[:, 0], np.searchsorted(both, more), step)
        np.add.at(counts[:, 1], np.searchsorted(both, more[prompt:]), step)
    return both, counts


def shape_for(
    params: SamplingParams,
    vocab_size: int,
    prompt: int,
    constraint: Constraint | None = None,
) -> Shape | None:
    """Return the :class:`Shape` of a stream, or None where logits stay as they are."""
    if constraint is None and not params.shaped:
        return None
    return Shape(params, vocab_size, prompt, constraint)
