"""The shortest way to a whole text: for who must answer now.

A search by rising length: from where the text stands, one character at a time, with all
that the grammar forces behind it. Two ways that were forced alike of late and stand before
the same choice are taken for one place, the shorter one. It is bounded in steps; where they
do not suffice, a way that closes what it can is taken.
"""

from __future__ import annotations

import heapq
from typing import Callable, Mapping, Sequence, Tuple

import numpy as np

from draftwire.sampling.grammar.guide import Guide, Place

_STEPS = 250
_LONGEST = 512  # steps of a way without a search
_FEW = 24  # one-byte ids: more of them is the inside of a string
_ALIKE = 4  # free characters in a row beyond which one more changes nothing
_CLOSING = b'"}],:'
_PLAIN = b"a0A- "
_ALIKE_BYTES = 5  # forced of late
_Bytes = Callable[[int], bytes]
# Its length, a number that tells ways of one length apart, its ids, the last bytes that
# were forced, free ones in a row at its end, and where it stands, once that is known.
_Way = Tuple[int, int, Tuple[int, ...], bytes, int, "Place | None"]


def shortest(
    guide: Guide, bytes_of: _Bytes, single: Mapping[int, int], before: Sequence[int] = ()
) -> tuple[int, ...] | None:
    """Return ids that complete the text behind which ``guide`` stands, or None where none
    do.

    ``single`` are the ids of one byte, ``before`` those between the text and the
    completion.
    """
    heap: list[_Way] = [(0, 0, (), b"", 0, None)]
    seen: set[tuple[bytes, int, bytes]] = set()
    number = 0
    for _ in range(_STEPS):
        if not heap:
            break
        cost, name, ids, forced, free, place = heapq.heappop(heap)
        if place is None:
            place = guide.look((*before, *ids))
            said = b"".join([bytes_of(i) for i in place.forced])
            ids, more = (*ids, *place.forced), len(said)
            forced = (forced + said)[-_ALIKE_BYTES:]
            free = 0 if place.forced else free
            if more and heap and cost + more > heap[0][0]:  # others may be shorter
                heapq.heappush(heap, (cost + more, name, ids, forced, free, place))
                continue
            cost += more
        if place.content:
            return ids
        key = forced, min(free, _ALIKE), np.packbits(place.mask).tobytes()
        if key in seen:
            continue
        seen.add(key)
        for token in _choices(place.mask, single):
            number += 1
            longer = cost + len(bytes_of(token))
            heapq.heappush(heap, (longer, number, (*ids, token), forced, free + 1, None))
    return _closing(guide, single, before)


def _closing(
    guide: Guide, single: Mapping[int, int], before: Sequence[int]
) -> tuple[int, ...] | None:
    """Return a way that takes what closes something wherever it may."""
    ids: tuple[int, ...] = ()
    for _ in range(_LONGEST):
        place = guide.look((*before, *ids))
        ids = (*ids, *place.forced)
        if place.content:
            return ids
        choices = _choices(place.mask, single)
        if not choices:
            break
        ids = (*ids, choices[0])
    return None


def _choices(mask: np.ndarray, single: Mapping[int, int]) -> list[int]:
    """Return the ids that are tried: what closes something, or else all of one byte."""
    found = {byte: i for byte, i in single.items() if mask[i]}
    closing = [found[byte] for byte in _CLOSING if byte in found]
    if closing or not found:
        return closing or [int(i) for i in np.flatnonzero(mask)[:_FEW]]
    if len(found) <= _FEW:
        return sorted(found.values(), key=lambda i: i != found.get(ord("0")))
    return [found[byte] for byte in _PLAIN if byte in found] or list(found.values())[:_FEW]
