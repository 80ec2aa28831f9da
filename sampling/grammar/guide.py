"""Follows one sequence through a grammar: what may come next, and what must."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from draftwire.errors import ConfigError

_FAIR_S = 5e-3  # an id; the rule is some 20 to 100 us


class Path(NamedTuple):
    """A way on through a grammar."""

    ids: tuple[int, ...]  # chosen ids, each with those that the grammar forces behind it
    free: tuple[int, ...]  # places in ``ids`` of those that were chosen, rising
    ended: bool  # nothing can follow
    # so many of the chosen ids the grammar allows; none behind the first that it does not
    # has forced ids behind it
    valid: int


class Place(NamedTuple):
    """Where a text stands."""

    forced: tuple[int, ...]  # ids that are forced there
    content: bool  # the text may end behind those
    mask: np.ndarray  # ``(vocab,)`` bool, what may come behind them; nothing at the end


class Guide:
    """Where a sequence stands in a grammar. All methods may be called from any thread.

    Args:
        matcher: Of llguidance, at the beginning; it becomes the guide's own.
        known: Ids that the tokenizer knows are below this.
        vocab_size: Ids of the sequence are below this.
        start: The text stands behind so many ids of the sequence.
        stop_ids: Ids that end a text.
        forcing: Say what is forced; otherwise nothing is.
        patience_s: Seconds that it may take more than 5 ms for each id.
    """

    def __init__(
        self,
        matcher: Any,
        known: int,
        vocab_size: int,
        *,
        start: int = 0,
        stop_ids: Sequence[int] = (),
        forcing: bool = True,
        patience_s: float = math.inf,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._known = min(known, vocab_size)  # the others are padding rows of a model
        self._start = start
        self._stop_list = sorted({i for i in stop_ids if i < vocab_size})
        self._stops = frozenset(self._stop_list)
        self._forcing = forcing
        self._text: list[int] = []  # that the matcher has taken in
        self._left_s = patience_s
        self._lock = threading.Lock()  # a late exit may look while the text grows

    @property
    def length(self) -> int:
        """Ids of the text that it has followed."""
        return len(self._text)

    @contextmanager
    def _spending(self, ids: int) -> Iterator[None]:
        """Take the lock, and see that work on ``ids`` ids stays within patience."""
        with self._lock:
            began = time.thread_time()  # not the load of the machine
            yield
            spent_s = time.thread_time() - began - _FAIR_S * (1 + max(0, ids))
            self._left_s -= max(0.0, spent_s)
            if self._left_s < 0:
                self._fail(f"the grammar takes more than {_FAIR_S * 1e3:g} ms a token")

    def follow(self, sequence: Sequence[int]) -> None:
        """Stand behind ``sequence``, whatever was there before; see :attr:`length`."""
        text = list(sequence[self._start :])
        with self._spending(len(text) - len(self._text)):
            known = self._text
            same = len(known)
            if text[:same] != known:
                same = next(
                    (i for i, (a, b) in enumerate(zip(known, text)) if a != b),
                    min(len(known), len(text)),
                )
                self._back(len(known) - same)
                del known[same:]
            known += self._take(text[same:])

    def masks(self, drafts: Sequence[int]) -> np.ndarray:
        """Return ``(k + 1, vocab)`` bool; row ``j``: what may follow ``drafts[:j]``.

        Where an id is forced it is the only one. Behind what the grammar does not allow,
        and behind the end, everything is allowed: nobody comes there.
        """
        rows = np.ones((len(drafts) + 1, self._vocab_size), bool)
        with self._spending(len(drafts)):
            taken, forced = 0, self._forced()
            for j, row in enumerate(rows):
                if forced:
                    row[:] = False
                    row[forced.pop(0)] = True
                elif not self._mask(row):
                    row[:] = True
                    break
                if j == len(drafts):
                    break
                token = drafts[j]
                if token in self._stops or not row[token] or not self._take([token]):
                    break
                taken += 1
                forced = forced or self._forced()
            self._back(taken)
        return rows

    def path(self, before: Sequence[int] = (), chosen: Sequence[int] = ()) -> Path:
        """Return ``chosen`` with all that the grammar forces.

        Args:
            before: Ids between what was followed and the path; nothing is forced in it.
            chosen: Ids of free choice. Without any: what is forced right there.
        """
        ids: list[int] = []
        free: list[int] = []
        ended, valid = False, 0
        with self._spending(len(before) + len(chosen)):
            fits = [] if len(taken := self._take(before)) < len(before) else [*chosen]
            held = len(taken)
            if not chosen and held == len(before):
                tail = self._closed()
                ids, held, ended = [*tail], held + len(tail), self._over()
            for token in fits:
                if ended or not self._allows(token):
                    break
                free.append(len(ids))
                ids.append(token)
                valid += 1
                if token in self._stops:
                    ended = True
                    break
                self._take([token])
                tail = self._closed()
                ids += tail
                held += 1 + len(tail)
                ended = self._over()
            self._back(held)
        for token in chosen[valid:]:
            free.append(len(ids))
            ids.append(token)
        return Path(tuple(ids), tuple(free), ended, valid)

    def allows(self, token: int) -> bool:
        """Return whether ``token`` may come next."""
        with self._lock:
            forced = self._forced()
            return token == forced[0] if forced else self._allows(token)

    @property
    def content(self) -> bool:
        """True where the text may end."""
        with self._lock:
            return bool(self._matcher.is_accepting())

    def look(self, ids: Sequence[int]) -> Place:
        """Return where the text would stand behind ``ids``, and what is forced there."""
        with self._spending(len(ids)):
            taken = self._take(ids)
            forced = self._closed()
            mask = np.zeros(self._vocab_size, bool)
            over = not self._mask(mask)
            content = over or bool(self._matcher.is_accepting())
            self._back(len(taken) + len(forced))
        return Place(tuple(forced), content, mask)

    # ---- under the lock

    def _take(self, ids: Sequence[int]) -> list[int]:
        """Take in as many of ``ids`` as the grammar allows, and return those."""
        count = 0
        if ids and not self._matcher.is_stopped():
            count = int(self._matcher.try_consume_tokens(list(ids)))
        return list(ids[:count])

    def _back(self, count: int) -> None:
        if count and not self._matcher.rollback(count):
            self._fail()

    def _forced(self) -> list[int]:
        """Return what is forced right here, without taking it in."""
        tail = self._closed()
        self._back(len(tail))
        return tail

    def _closed(self) -> list[int]:
        """Take in all that is forced here, and return it."""
        found: list[int] = []
        while self._forcing:
            more = [int(i) for i in self._matcher.compute_ff_tokens()]
            if any(i in self._stops or i >= self._known for i in more):
                break  # no text goes on behind what ends it
            taken = self._take(more)
            found += taken
            if not more or len(taken) < len(more):
                break
        if self._matcher.is_error():
            self._fail()
        return found

    def _allows(self, token: int) -> bool:
        if token in self._stops:
            return bool(self._matcher.is_accepting())
        inside = 0 <= token < self._known
        return inside and int(self._matcher.validate_tokens([token])) == 1

    def _bits(self) -> np.ndarray:
        """Return the mask as the engine has it, stops and its own end left out."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self._fail()
        bits = np.unpackbits(packed, bitorder="little")
        found = np.zeros(self._vocab_size, bool)
        found[: self._known] = bits[: self._known]
        found[self._stop_list] = False
        return found

    def _mask(self, row: np.ndarray) -> bool:
        """Fill ``row``; return False where the text is over."""
        if self._matcher.is_stopped():
            return False
        row[:] = self._bits()
        content = bool(self._matcher.is_accepting())
        if not row.any() and not content:
            self._fail("the grammar allows no token of this vocabulary here")
        if not row.any():
            return False
        row[self._stop_list] = content
        return True

    def _over(self) -> bool:
        """Return whether nothing can follow."""
        if self._matcher.is_stopped() or not self._matcher.is_accepting():
            return bool(self._matcher.is_stopped())
        return not self._mask(np.empty(self._vocab_size, bool))

    def _fail(self, why: str = "") -> None:
        trouble = str(self._matcher.get_error()) if self._matcher.is_error() else ""
        lines = trouble.strip().splitlines() or ["it failed"]
        raise ConfigError(
            why or f"the grammar costs more than it may: {lines[0][:200]}",
            hint="make it simpler: less ambiguous, with fewer alternatives",
        )
