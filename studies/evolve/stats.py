"""Means and intervals of a study of evolving targets, from its document alone.

The same prompts are asked of every target, and the same drafts are measured on all, so
all comparisons share one set of resampled prompts, and are paired over prompts and seeds.
Seeds are few: their part of an interval is Student's t over the mean of each, not a
resampling. Both parts are joined as the widths of independent errors (Zou and Donner
2008, doi:10.1002/sim.3095).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np

SCHEMA = "draftwire.evolve/1"  # of the documents
_DRAWS = 2000
# 97.5 % points of Student's t, by seeds less one; from there on the last is wide enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
KINDS = {  # of evolution, in the order of the tables
    "text": "LoRA on text",
    "free": "LoRA on text, anchor too",
    "package": "evolved elsewhere",
    "varied": "preference (DPO)",
    "taught": "distilled from another teacher",
    "mean": "merged: mean of weights",
    "sum": "merged: sum of changes",
    "new": "another model",
}

Place = tuple[str, str, float]  # a target, a kind of text, its weight
# The mean over all seeds or over one, as it is or for every resampling of the prompts.
Means = Callable[[str, bool], np.ndarray]


@dataclass(frozen=True)
class Cell:
    """A mean with its 95 % interval."""

    mean: float  # over seeds and prompts
    low: float  # end of the interval
    high: float  # its other end

    def text(self, digits: int = 2) -> str:
        """Return ``mean [low, high]``."""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is on one side of 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Table:
    """Acceptance of every arm against every target."""

    document: Mapping[str, Any]  # the study's document
    # "greedy" or "coupled" (accepted of a block), with "_first" (first drafts accepted)
    metric: str = "greedy"

    @property
    def evolved(self) -> list[str]:
        """The evolved targets, nearest to the base first."""
        names = [name for name in self.document["targets"] if name != "base"]
        return sorted(names, key=self.divergence)

    def divergence(self, target: str) -> float:
        """Return a target's mean divergence from the base, nats per token."""
        rows = self.document["targets"][target]["domains"].values()
        return float(np.mean([row["kl_to_base"] for row in rows]))

    def cell(self, targets: Sequence[str], arm: str) -> Cell | None:
        """Return the mean of an arm over targets, each target with equal weight."""
        return self._interval(self._means(self._places(targets), arm))

    def difference(self, targets: Sequence[str], one: str, other: str) -> Cell | None:
        """Return the mean of one arm less another."""
        places = self._places(targets)
        return self._pair(self._means(places, one), np.subtract, self._means(places, other))

    def retention(self, target: str, arm: str) -> Cell | None:
        """Return acceptance against a target over that against the base, same text."""
        places = self._places([target])
        later = self._means(places, arm)
        before = self._means([("base", text, w) for _, text, w in places], arm)
        return self._pair(later, lambda a, b: a / np.maximum(1e-9, b), before)

    def between(self, one: str, other: str, arm: str) -> Cell | None:
        """Return an arm's acceptance against one target less that against another."""
        first, second = (self._means(self._places([t]), arm) for t in (one, other))
        return self._pair(first, np.subtract, second)

    def _pair(
        self, one: Means | None, how: Callable[..., Any], other: Means | None
    ) -> Cell | None:
        if one is None or other is None:
            return None
        return self._interval(lambda s, drawn: how(one(s, drawn), other(s, drawn)))

    def _places(self, targets: Sequence[str]) -> list[Place]:
        found = []
        for name in targets:
            texts = self.document["targets"][name]["domains"]
            found += [(name, text, 1 / len(texts) / len(targets)) for text in texts]
        return found

    def _means(self, places: Sequence[Place], arm: str) -> Means | None:
        rows = []
        for target, text, weight in places:
            texts = self.document["targets"][target]["domains"]
            seeds = texts.get(text, {"arms": {}})["arms"].get(arm)
            if not seeds or any(self.metric not in row for row in seeds.values()):
                return None
            values = {seed: np.array(row[self.metric]) for seed, row in seeds.items()}
            rows.append((text, weight, values))

        def means(seed: str, drawn: bool) -> np.ndarray:
            total = np.zeros(1)
            for text, weight, values in rows:
                # A draft that was made once is the same beside every seed of another.
                all_seeds: Any = np.mean(list(values.values()), 0)
                value = values.get(seed, all_seeds)
                total = total + weight * (_shares(text, len(value), drawn) @ value)
            return total

        return means

    def _interval(self, means: Means | None) -> Cell | None:
        if means is None:
            return None
        mean = float(means("", False)[0])
        low, high = np.percentile(means("", True), [2.5, 97.5])
        seeds, wide = [str(s) for s in self.document["settings"]["budget"]["seeds"]], 0.0
        if len(seeds) > 1:
            spread = float(np.std([means(s, False)[0] for s in seeds], ddof=1))
            wide = _T[min(len(seeds) - 1, len(_T)) - 1] * spread / len(seeds) ** 0.5
        below, above = (np.hypot(max(0.0, x), wide) for x in (mean - low, high - mean))
        return Cell(mean, float(mean - below), float(mean + above))


@lru_cache(maxsize=None)
def _shares(text: str, count: int, drawn: bool) -> np.ndarray:
    """Return how much each prompt of a text weighs, ``(draws, count)``, always the same."""
    even = np.full((1, count), 1.0 / count)
    rng = np.random.default_rng((crc32(text.encode()), count))
    return rng.multinomial(count, even[0], _DRAWS) / count if drawn else even
