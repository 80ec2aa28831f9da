"""Means and intervals of a study of evolving targets, from its document alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWS = 2000
Values = np.ndarray  # (seeds, prompts)


@dataclass(frozen=True)
class Cell:
    """A mean with its 95 % interval."""

    mean: float  # over seeds and prompts
    low: float  # end of the bootstrap interval
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
    metric: str = "greedy"  # "greedy" or "coupled" (accepted of a block), or "overlap"

    @property
    def evolved(self) -> list[str]:
        """The evolved targets, nearest to the base first."""
        names = [name for name in self.document["targets"] if name != "base"]
        return sorted(names, key=self.divergence)

    @property
    def arms(self) -> list[str]:
        """The arms that were measured against some evolved target."""
        return [
            arm
            for arm in ("frozen", "suffix", "independent", "long", "stale", "retrained")
            if any(self.groups(name, arm) for name in self.evolved)
        ]

    def divergence(self, target: str) -> float:
        """Return a target's mean divergence from the base, nats per token."""
        rows = self.document["targets"][target]["domains"].values()
        return float(np.mean([row["kl_to_base"] for row in rows]))

    def groups(self, target: str, arm: str) -> list[Values]:
        """Return ``(seeds, prompts)`` values for each kind of text."""
        found = []
        for row in self.document["targets"][target]["domains"].values():
            seeds = row["arms"].get(arm, {})
            if seeds:
                found.append(np.array([seeds[s][self.metric] for s in sorted(seeds)]))
        return found

    def cell(self, targets: Sequence[str], arm: str) -> Cell | None:
        """Return the mean of an arm over targets, each target with equal weight."""
        parts = [self.groups(name, arm) for name in targets]
        if not all(parts):
            return None
        return _interval(lambda rng: _mean(parts, rng))

    def difference(self, targets: Sequence[str], one: str, other: str) -> Cell | None:
        """Return the mean of ``one - other``; prompts are paired, seeds are not."""
        ones = [self.groups(name, one) for name in targets]
        others = [self.groups(name, other) for name in targets]
        if not (all(ones) and all(others)):
            return None
        return _interval(lambda rng: _pair(ones, others, rng))

    def retention(self, target: str, arm: str) -> Cell | None:
        """Return acceptance against a target over that against the base, same text."""
        domains = list(self.document["targets"][target]["domains"])
        base = self.document["targets"]["base"]["domains"]
        if not all(d in base and arm in base[d]["arms"] for d in domains):
            return None
        later = self.groups(target, arm)
        before = [
            np.array([seeds[s][self.metric] for s in sorted(seeds)])
            for seeds in (base[d]["arms"][arm] for d in domains)
        ]
        return _interval(
            lambda rng: _mean([later], rng) / np.maximum(1e-9, _mean([before], rng))
        )

    def between(self, one: str, other: str, arm: str) -> Cell | None:
        """Return an arm's acceptance against one target less that against another."""
        first, second = self.groups(one, arm), self.groups(other, arm)
        if not (first and second):
            return None
        return _interval(lambda rng: _mean([first], rng) - _mean([second], rng))


def read_table(document: Mapping[str, Any], metric: str) -> Table:
    """Return the table of one metric."""
    return Table(document, metric)


def _interval(draw: Callable[[np.random.Generator | None], np.ndarray]) -> Cell:
    low, high = np.percentile(draw(np.random.default_rng(0)), [2.5, 97.5])
    return Cell(float(draw(None)[0]), float(low), float(high))


def _shares(count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return how much each of ``count`` things weighs, ``(draws, count)``."""
    if rng is None:
        return np.full((1, count), 1.0 / count)
    return rng.multinomial(count, np.full(count, 1.0 / count), _DRAWS) / count


def _weighed(seeds: np.ndarray, values: Values, prompts: np.ndarray) -> np.ndarray:
    """Return the weighed means ``(draws,)``."""
    found: np.ndarray = ((seeds @ values) * prompts).sum(1)
    return found


def _mean(parts: Sequence[Sequence[Values]], rng: np.random.Generator | None) -> np.ndarray:
    total = np.zeros(1)
    for groups in parts:
        for values in groups:
            seeds, prompts = (_shares(n, rng) for n in values.shape)
            total = total + _weighed(seeds, values, prompts) / len(groups)
    return total / len(parts)


def _pair(
    ones: Sequence[Sequence[Values]],
    others: Sequence[Sequence[Values]],
    rng: np.random.Generator | None,
) -> np.ndarray:
    total = np.zeros(1)
    for first, second in zip(ones, others):
        for a, b in zip(first, second):
            prompts = _shares(a.shape[1], rng)
            change = _weighed(_shares(len(a), rng), a, prompts)
            change = change - _weighed(_shares(len(b), rng), b, prompts)
            total = total + change / len(first)
    return total / len(ones)
