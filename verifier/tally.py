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
    """Totals of one target."""

    slots: int = 0  # KV slots in use now
    preemptions: int = 0  # slots taken from streams whose device was away
    rebuilds: int = 0  # texts read again, for want of their slot
    prompt_tokens: int = 0  # ids of prompts
    prefix_queries: int = 0  # those that were looked for in kept slots
    prefix_hits: int = 0  # those among them that were there
    prefix_copied: int = 0  # those of these that another slot goes on holding
    drafts: int = 0  # verifications that judged drafted tokens
    drafted: int = 0  # drafted tokens judged
    accepted: int = 0  # those that were kept
    # how often the first, second... token of a draft was kept.
    by_position: list[int] = field(default_factory=list)
    emitted: int = 0  # tokens committed
    near_ties: int = 0  # positions where two candidates were too near to tell apart
    found: int = 0  # guesses of the verifier's own that were judged
    found_right: int = 0  # those that were kept
    leaves: int = 0  # second choices of devices that were judged
    leaves_right: int = 0  # those that were kept
    wanted: int = 0  # drafts that forwards were worth, had they been made beside the target
    spared: int = 0  # those of them that devices had sent
    # streams that ended, by how: stop, length, abort (by the device, or it did not come
    # back), error
    finished: Counter[str] = field(default_factory=Counter)
    # that blocks waited for their forward
    queue_s: Histogram = field(default_factory=lambda: Histogram(_FORWARD_S))
    # of the forwards that carried a block
    verify_s: Histogram = field(default_factory=lambda: Histogram(_FORWARD_S))
    # from a stream's open to its first token
    first_s: Histogram = field(default_factory=lambda: Histogram(_STREAM_S))
    # of a stream after its first token, its mean
    per_token_s: Histogram = field(default_factory=lambda: Histogram(_FORWARD_S))
    # from a stream's open to its end
    whole_s: Histogram = field(default_factory=lambda: Histogram(_STREAM_S))

    def judged(self, drafted: int, accepted: int) -> None:
        """Count one verification."""
        if drafted:
            self.drafts += 1
            missing = drafted - len(self.by_position)
            self.by_position += [0] * max(0, missing)
            for place in range(accepted):
                self.by_position[place] += 1
