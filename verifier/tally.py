"""What streams and schedulers have done so far: counted, never read by them."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Iterable, Iterator

_FORWARD_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_STREAM_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts values in buckets up to ``bounds``, ascending; one more takes the rest."""

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


def _of_forwards() -> Histogram:
    return Histogram(_FORWARD_S)


def _of_streams() -> Histogram:
    return Histogram(_STREAM_S)


@dataclass
class Counters:
    """What the forwards of one target were."""

    forwards: int = 0  # forwards run, of both kinds
    prefill_forwards: int = 0  # those among them that carried prompt chunks
    tokens: int = 0  # tokens computed
    failed: int = 0  # requests that ended in an error
    cancelled: int = 0  # requests withdrawn before their answer
    compute_s: float = 0.0  # seconds of the executor in forwards
    # how many block forwards had this many streams
    batch_sizes: Counter[int] = field(default_factory=Counter)


@dataclass
class StreamCounts:
    """Running totals of one stream."""

    drafted: int = 0  # drafted tokens that were judged
    accepted: int = 0  # those that were kept
    # forwards of the target that ran for it, prompts apart; also those whose verdict nobody
    # heard
    forwards: int = 0
    emitted: int = 0  # tokens committed after the prompt
    # positions judged where the best two candidates, noise included, were nearer than the
    # target's numerics can tell; schemes that draw have none
    near_ties: int = 0
    found: int = 0  # guesses of the verifier's own that were judged (`rows.Lookup`)
    found_right: int = 0  # those that were kept
    forced: int = 0  # those of them that a grammar left no choice about
    leaves: int = 0  # second choices of the device's that were judged, and drafts behind
    leaves_right: int = 0  # those that were kept
    wanted: int = 0  # drafts that forwards were worth, had they been made beside the target
    spared: int = 0  # those of them that the device had sent


@dataclass
class Tally(StreamCounts):
    """Totals of one target: those of its streams, and more."""

    slots: int = 0  # KV slots in use now
    preemptions: int = 0  # slots taken from streams whose device was away
    rebuilds: int = 0  # texts read again, for want of their slot
    prompt_tokens: int = 0  # ids of prompts
    prefix_queries: int = 0  # those that were looked for in kept slots
    prefix_hits: int = 0  # those among them that were there
    prefix_copied: int = 0  # those of these that another slot goes on holding
    drafts: int = 0  # verifications that judged drafted tokens
    # how often the first, second... token of a draft was kept.
    by_position: list[int] = field(default_factory=list)
    # streams that ended, by how: stop, length, abort (by the device, or it did not come
    # back), error
    finished: Counter[str] = field(default_factory=Counter)
    queue_s: Histogram = field(default_factory=_of_forwards)  # of blocks, for a forward
    verify_s: Histogram = field(default_factory=_of_forwards)  # of forwards with a block
    first_s: Histogram = field(default_factory=_of_streams)  # from an open to a token
    # of a stream after its first token, its mean
    per_token_s: Histogram = field(default_factory=_of_forwards)
    whole_s: Histogram = field(
        default_factory=_of_streams
    )  # from a stream's open to its end

    def book(self, counts: StreamCounts, before: StreamCounts) -> None:
        """Add what a stream did since ``before``."""
        for one in fields(StreamCounts):
            grown = getattr(counts, one.name) - getattr(before, one.name)
            setattr(self, one.name, getattr(self, one.name) + grown)

    def judged(self, drafted: int, accepted: int) -> None:
        """Count one verification."""
        if drafted:
            self.drafts += 1
            missing = drafted - len(self.by_position)
            self.by_position += [0] * max(0, missing)
            for place in range(accepted):
                self.by_position[place] += 1
