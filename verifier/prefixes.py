"""Texts that have ended, kept so that the next stream need not send or read them again.

A conversation's next turn begins with all that was said before. What a stream leaves
behind is its ids and, while nobody else needs it, its KV slot. The next stream of the same
account on the same target takes the longest common prefix: its open may name it by a hash
instead of sending it, and what the slot holds of it is not read again. Which of this is
still there never changes a text: it changes what has to be sent and read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Sequence

from draftwire.transport.text_hash import TextHash
from draftwire.verifier.registry import Served
from draftwire.verifier.serving.accounts import Usage

_WORTH = 16  # tokens: fewer are read again as quickly as they are looked for


@dataclass
class Kept:
    """What a stream has left behind."""

    served: Served  # its target
    usage: Usage  # of its account
    tokens: list[int]  # ids of prompt and text
    cached: int  # so many of them are in ``slot``
    slot: int | None  # None once somebody else needed it


class Prefixes:
    """What streams have left behind: ``most`` texts of an account, ``tokens`` ids"""

    def __init__(self, most: int, tokens: int = 1 << 20) -> None:
        self._most, self._tokens = most, tokens
        self._kept: list[Kept] = []  # that of no use for longest first
        self._size = 0
        self.found = self.evicted = (
            0  # streams that took a prefix; slots others needed more
        )

    def __len__(self) -> int:
        return len(self._kept)

    def slots(self, served: Served) -> int:
        """Return how many slots of a target are kept."""
        return sum(k.served is served and k.slot is not None for k in self._kept)

    def leave(self, kept: Kept) -> bool:
        """Keep what a stream leaves behind; False when it is too little or too much."""
        if not self._most or not _WORTH <= len(kept.tokens) <= self._tokens:
            return False
        for old in self._of(kept.usage, kept.served):
            if old.tokens == kept.tokens[: len(old.tokens)]:
                self._drop(old)  # it is part of this one
        self._kept.append(kept)
        self._size += len(kept.tokens)
        theirs = [old for old in self._kept if old.usage is kept.usage]
        for old in theirs[: max(0, len(theirs) - self._most)]:
            self._drop(old)
        while self._size > self._tokens:
            self._drop(self._kept[0])
        return True

    def named(
        self,
        usage: Usage,
        served: Served,
        length: int,
        right: Callable[[bytes], bool],
        running: Iterable[Sequence[int]] = (),
    ) -> list[int]:
        """Return the ``length`` ids that a device names, or none when they are not here.

        ``right`` tells whether the first sixteen bytes of a hash are theirs; ``running``
        are the texts of the account's streams.
        """
        ended = [kept.tokens for kept in reversed(self._of(usage, served))]
        for tokens in (*ended, *running):
            if len(tokens) >= length > 0:
                ids = list(tokens[:length])
                if right(TextHash(ids).digest(16)):
                    return ids
        return []

    def take(
        self, usage: Usage, served: Served, prompt: Sequence[int]
    ) -> tuple[int | None, int]:
        """Return the slot that holds most of ``prompt``, and how much; None where none is
        worth it.

        The slot is the caller's; the last id of the prompt is never counted, since its
        logits are wanted.
        """
        tally = served.tally
        tally.prompt_tokens += len(prompt)
        tally.prefix_queries += len(prompt) if self._most else 0
        best, slot, most = None, None, _WORTH - 1
        for kept in self._of(usage, served):
            n = 0 if kept.slot is None else _common(kept.tokens, prompt, kept.cached)
            if n > most and 2 * n >= kept.cached:  # else it is worth more to its own
                best, slot, most = kept, kept.slot, n
        if best is None or slot is None:
            return None, 0
        best.slot = None
        self.found += 1
        tally.prefix_hits += most
        return slot, most

    def longest(
        self,
        usage: Usage,
        served: Served,
        prompt: Sequence[int],
        # slots in use, with their ids and how many of them are in the cache
        running: Iterable[tuple[int, Sequence[int], int]],
    ) -> tuple[int, int]:
        """Return the slot, in use or kept, that holds most of ``prompt``, and how much.

        A slot and 0 where nothing is worth it.
        """
        kept = {k.slot: k for k in self._of(usage, served) if k.slot is not None}
        held = [(-1, (), 0), *running, *((s, k.tokens, k.cached) for s, k in kept.items())]
        most, slot = max((_common(t, prompt, n), slot) for slot, t, n in held)
        if most < _WORTH:
            return slot, 0
        if slot in kept:  # what many begin with goes last
            self._kept.remove(kept[slot])
            self._kept.append(kept[slot])
        return slot, most

    def give_up_slot(self, served: Served) -> bool:
        """Free the kept slot that was of no use for longest; False when there is none."""
        for kept in self._kept:
            if kept.served is served and kept.slot is not None:
                slot, kept.slot = kept.slot, None
                served.release(slot)
                self.evicted += 1
                return True
        return False

    def sweep(self) -> None:
        """Let go of what belongs to targets that have left, or to revoked tokens."""
        for kept in list(self._kept):
            if kept.served.retired or kept.usage.revoked:
                self._drop(kept)

    def _of(self, usage: Usage, served: Served) -> list[Kept]:
        return [k for k in self._kept if k.usage is usage and k.served is served]

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self._size -= len(kept.tokens)
        if kept.slot is not None:
            kept.served.release(kept.slot)
            kept.slot = None


def _common(held: Sequence[int], prompt: Sequence[int], cached: int) -> int:
    """Return how many ids both begin with; the last of the prompt is always read."""
    limit = min(cached, len(prompt) - 1)
    return next((i for i in range(limit) if held[i] != prompt[i]), max(0, limit))
