"""What a verifier tells a monitor: numbers in Prometheus' text format, by hand."""

from __future__ import annotations

import bisect
from typing import Iterable, Mapping

__all__ = ["CONTENT_TYPE", "Histogram", "Page"]

# Source: Prometheus text exposition format 0.0.4,
# https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts values in fixed buckets.

    Args:
        bounds: Upper bounds, ascending; one more bucket takes the rest.
    """

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` times."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Page:
    """Collects metrics and writes them grouped by name, as the format demands."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(
        self,
        name: str,
        kind: str,
        help_text: str,
        value: float,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Add one sample of the metric ``name``.

        Args:
            name: Without prefix.
            kind: ``"counter"`` or ``"gauge"``.
            help_text: One line.
            value: The sample.
            labels: Which of several.
        """
        self._head(name, kind, help_text).append(
            f"{_PREFIX}{name}{_labels(labels or {})} {value:.10g}"
        )

    def add_histogram(
        self,
        name: str,
        help_text: str,
        histogram: Histogram,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Add a histogram."""
        lines = self._head(name, "histogram", help_text)
        total = 0
        for bound, count in zip((*histogram.bounds, None), histogram.counts):
            total += count
            le = "+Inf" if bound is None else f"{bound:g}"
            tags = _labels({**(labels or {}), "le": le})
            lines.append(f"{_PREFIX}{name}_bucket{tags} {total}")
        tags = _labels(labels or {})
        lines.append(f"{_PREFIX}{name}_sum{tags} {histogram.sum:.10g}")
        lines.append(f"{_PREFIX}{name}_count{tags} {total}")

    def _head(self, name: str, kind: str, help_text: str) -> list[str]:
        if name not in self._lines:
            self._lines[name] = [
                f"# HELP {_PREFIX}{name} {help_text}",
                f"# TYPE {_PREFIX}{name} {kind}",
            ]
        return self._lines[name]

    def text(self) -> str:
        """Return the page."""
        return "".join(line + "\n" for lines in self._lines.values() for line in lines)


_PREFIX = "draftwire_verifier_"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""

    def quote(value: str) -> str:
        value = value.replace("\\", r"\\").replace('"', r"\"")
        return value.replace("\n", r"\n")

    return "{" + ",".join(f'{k}="{quote(v)}"' for k, v in labels.items()) + "}"
