"""The second number of each rail in tegrastats: the mean since that process started.

It is no window mean and is never integrated.  It is an oracle inside the data: it must
follow from the first numbers, and where it starts anew, a new process wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from draftwire.energy.sources.tegrastats import Sample

if TYPE_CHECKING:
    from draftwire.energy.tegra_log import Run

__all__ = ["MeanColumn"]


class MeanColumn:
    """Follows the mean column: an oracle inside the data, and what shows a restart."""

    def __init__(self, sample: Sample, run: Run, *, resync: bool = False) -> None:
        self.run = run
        self.mid_run = sample.now_mw != sample.mean_mw
        self.known = not self.mid_run and not resync
        self.n = 1
        self.sums = list(sample.now_mw)
        self.last_mean = sample.mean_mw
        if self.known:
            run.mean_checked += len(self.sums)

    def restarts(self, sample: Sample) -> bool:
        """Return True when this sample can only be the first of a new run."""
        if len(sample.now_mw) != len(self.sums) or not self.sums:
            return False
        if sample.now_mw != sample.mean_mw:
            return False
        if self.known:
            return any(
                abs(_cut(s + now, self.n + 1) - mean) > 1
                for s, now, mean in zip(self.sums, sample.now_mw, sample.mean_mw)
            )
        return any(abs(new - old) > 1 for new, old in zip(sample.mean_mw, self.last_mean))

    def check(self, sample: Sample) -> None:
        """Compare the mean column with the running mean of the powers."""
        self.last_mean = sample.mean_mw
        if not self.known:
            return
        self.n += 1
        for i, (now, mean) in enumerate(zip(sample.now_mw, sample.mean_mw)):
            self.sums[i] += now
            if abs(_cut(self.sums[i], self.n) - mean) <= 1:
                self.run.mean_checked += 1
            else:
                self.run.mean_wrong += 1
                self.known = False


def _cut(total: int, count: int) -> int:
    return int(total / count)
