"""What the streams of one target have done so far: counted, never read by the streams."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from typing import Iterable, Iterator

__all__ = ["Histogram", "Tally"]

_FORWARD_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_STREAM_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts values in fixed buckets.

    Args:
        bounds: Upper bounds, ascending; one more bucket takes the rest.
    """

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` times."""
        self._counts[bisect.bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield each bound, and how many values are at most that."""
        total = 0
        for bound, count in zip((*self._bounds, None), self._counts):
            total += count
            yield "+Inf" if bound is None else f"{bound:g}", total


@dataclass
class Tally:
    """Totals of one target.

    Attributes:
        slots: KV slots in use now.
        preemptions: Slots taken from streams whose device was away.
        rebuilds: Texts read again, for want of their slot.
        prompt_tokens: Ids of prompts.
        prefix_queries: Those that were looked for in kept slots.
        prefix_hits: Those among them that were there.
        drafts: Verifications that judged drafted tokens.
        drafted: Drafted tokens judged.
        accepted: Those that were kept.
        by_position: How often the first, second... token of a draft was kept.
        emitted: Tokens committed.
        near_ties: Positions where two candidates were too near to tell apart.
        found: Guesses of the verifier's own that were judged.
        found_right: Those that were kept.
        leaves: Second choices of devices that were judged.
        leaves_right: Those that were kept.
        wanted: Drafts that forwards were worth, had they been made beside the target.
        spared: Those of them that devices had sent.
        finished: Streams that ended, by how: stop, length, abort (by the device, or it
            did not come back), error.
        queue_s: That blocks waited for their forward.
        verify_s: Of the forwards that carried a block.
        first_s: From a stream's open to its first token.
        per_token_s: Of a stream after its first token, its mean.
        whole_s: From a stream's open to its end.
    """

    slots: int = 0
    preemptions: int = 0
    rebuilds: int = 0
    prompt_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    by_position: list[int] = field(default_factory=list)
    emitted: int = 0
    near_ties: int = 0
    found: int = 0
    found_right: int = 0
    leaves: int = 0
    leaves_right: int = 0
    wanted: int = 0
    spared: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    queue_s: Histogram = field(default_factory=lambda: Histogram(_FORWARD_S))
    verify_s: Histogram = field(default_factory=lambda: Histogram(_FORWARD_S))
    first_s: Histogram = field(default_factory=lambda: Histogram(_STREAM_S))
    per_token_s: Histogram = field(default_factory=lambda: Histogram(_FORWARD_S))
    whole_s: Histogram = field(default_factory=lambda: Histogram(_STREAM_S))

    def judged(self, drafted: int, accepted: int) -> None:
        """Count one verification."""
        if drafted:
            self.drafts += 1
            missing = drafted - len(self.by_position)
            self.by_position += [0] * max(0, missing)
            for place in range(accepted):
                self.by_position[place] += 1
