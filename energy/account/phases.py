"""Which phase took the power: a fit of the readings on what the device was doing.

No sensor shows a phase of 5 to 50 ms alone: a reading comes late by a *lag*, averages over
a *window*, and is renewed at a moment that is known to a *jitter* only.  So a reading is
the sum over phases of the phase's mean power times its *share* of what the reading stands
for, and the mean powers are found by least squares over the run.  The method, and what
its intervals span: docs/energy.md.

Source:
    Liang and Zeger, Biometrika 73, 1986: the cluster-robust "sandwich" over blocks.
"""

from __future__ import annotations

from array import array

import numpy as np

from draftwire.energy.account.integral import PhasePower, t_factor
from draftwire.energy.sources.base import Response

FEW = 5.0  # samples below which nothing is said of a phase
SHAPE = 0.05  # of the contrast: what a load's shape within a phase may hide in a blur
SMEARS_S = (0.002, 0.004, 0.008, 0.016)  # how long a load may run on
BLOCK = 4  # samples of a block of residuals
MOST_BLOCKS = 192  # then neighbours are joined: memory stays bounded
_STEP = 64 * BLOCK  # samples that are taken in at once
MOST_WAITING = 4096  # samples of a run of one phase, which nobody asks to split
_DIRECT_RATIO = 2.0  # a phase must last this much longer than the response is unsure


class _Sums:
    """Normal equations of one response, by block: ``(blocks, k, k)`` and so on."""

    def __init__(self) -> None:
        self.xx, self.xy = np.zeros((0, 1, 1)), np.zeros((0, 1))
        self.yy, self.n = np.zeros(0), np.zeros(0)

    def grow(self, k: int) -> None:
        more = k - self.xy.shape[1]
        if more:
            self.xx = np.pad(self.xx, ((0, 0), (0, more), (0, more)))
            self.xy = np.pad(self.xy, ((0, 0), (0, more)))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        blocks, pad = -(-len(y) // BLOCK), -len(y) % BLOCK
        xb = np.pad(x, ((0, pad), (0, 0))).reshape(blocks, BLOCK, -1)
        yb = np.pad(y, (0, pad)).reshape(blocks, BLOCK)
        sizes = np.full(blocks, BLOCK)
        sizes[-1] -= pad
        new = {
            "xx": np.einsum("bik,bil->bkl", xb, xb),
            "xy": np.einsum("bik,bi->bk", xb, yb),
            "yy": (yb * yb).sum(1),
            "n": sizes,
        }
        for name, more in new.items():
            whole = np.concatenate([getattr(self, name), more])
            while len(whole) > MOST_BLOCKS:
                even = len(whole) // 2 * 2
                joined = whole[0:even:2] + whole[1:even:2]
                whole = np.concatenate([joined, whole[even:]])
            setattr(self, name, whole)

    def solve(self, spread: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Return watts, half-widths, and the sum of squared residuals of readings that
        differ by ``spread`` at the most."""
        n, blocks, k = float(self.n.sum()), len(self.n), self.xy.shape[1]
        if n < 2:
            return np.zeros(k), np.full(k, np.inf), np.inf
        xx, xy, yy = self.xx.sum(0), self.xy.sum(0), float(self.yy.sum())
        mean = xy.sum() / n
        variance = max(yy / n - mean * mean, 1e-12)
        # A weak prior keeps phases without samples at the mean, with a wide interval.
        prior = variance / (4.0 * spread * spread)
        inverse = np.linalg.inv(xx + prior * np.eye(k))
        w = inverse @ (xy + prior * mean)
        rss = max(yy - 2.0 * float(w @ xy) + float(w @ xx @ w), 0.0)
        freedom = max(n - k, 1.0)
        plain = np.sqrt(np.maximum(np.diag(inverse), 0.0) * rss / freedom)
        half = t_factor(freedom) * plain
        if blocks > 1:
            scores = self.xy - self.xx @ w
            meat = scores.T @ scores * (blocks / (blocks - 1.0))
            robust = np.sqrt(np.maximum(np.diag(inverse @ meat @ inverse), 0.0))
            half = np.maximum(half, t_factor(max(1.0, blocks - 1.0)) * robust)
        return w, half, rss


class PhaseFit:
    """Gathers samples and switches of one run from ``start_s`` on; memory stays bounded."""

    def __init__(self, response: Response, start_s: float, phase: str) -> None:
        self.response = response
        self.names: list[str] = [phase]
        self.seconds = [0.0]
        self.stretches = [1]
        self._at = array("d", [start_s])  # switches that a kernel may still reach
        self._phase = array("i", [0])
        self._start = start_s
        self._t, self._y, self._span = array("d"), array("d"), array("d")
        corners = response.corners()
        self._grid = [(lag, window, 0.0) for lag, window in corners]
        self._grid += [(*corners[0], smear) for smear in SMEARS_S]
        self._entries: dict[tuple[int, int], int] = {}
        self._sums = [_Sums() for _ in self._grid]
        self._low, self._high = np.inf, -np.inf

    def switch(self, t_s: float, name: str) -> None:
        """Say that another phase begins; times must not run back."""
        now = self._phase[-1]
        if name == self.names[now]:
            return
        self.seconds[now] += max(0.0, t_s - self._at[-1])
        if name not in self.names:
            self.names.append(name)
            self.seconds.append(0.0)
            self.stretches.append(0)
        place = self.names.index(name)
        self.stretches[place] += 1
        self._entries[place, now] = self._entries.get((place, now), 0) + 1
        self._at.append(max(t_s, self._at[-1]))
        self._phase.append(place)

    def sample(self, t_s: float, watt: float, span_s: float = 0.0) -> None:
        """Take a reading (NaN is skipped); switches before it must be known. ``span_s``:
        of a counter, the time that this mean is over."""
        if watt != watt:
            return
        self._t.append(t_s)
        self._y.append(watt)
        self._span.append(span_s)
        if len(self._t) >= (_STEP if len(self.names) > 1 else MOST_WAITING):
            self._absorb()

    def _absorb(self) -> None:
        if not self._t:
            return
        t, y, span = np.array(self._t), np.array(self._y), np.array(self._span)
        reach = self.response.reach_s + SMEARS_S[-1] + float(span.max())
        keep = t - reach >= self._start
        at, phase = np.array(self._at), np.array(self._phase)
        if keep.any():
            self._low = min(self._low, float(y[keep].min()))
            self._high = max(self._high, float(y[keep].max()))
            for (lag, window, smear), sums in zip(self._grid, self._sums):
                width = np.maximum(window, span[keep])
                spread = self.response.jitter_s + smear
                x = shares(t[keep], at, phase, len(self.names), lag, width, spread)
                sums.grow(len(self.names))
                sums.add(x, y[keep])
        first = int(np.searchsorted(at, t[-1] - reach, "right")) - 1
        if first > 0:
            del self._at[:first], self._phase[:first]
        del self._t[:], self._y[:], self._span[:]

    def solve(self, now_s: float) -> dict[str, PhasePower]:
        """Return the mean power of each phase so far."""
        self._absorb()
        seconds = list(self.seconds)
        seconds[self._phase[-1]] += max(0.0, now_s - self._at[-1])
        spread, fits = max(self._high - self._low, 1e-9), []
        for (_, _, smear), sums in zip(self._grid, self._sums):
            sums.grow(len(self.names))
            w, halves, rss = sums.solve(spread)
            fits.append((self._while_in(w, smear, seconds), halves, rss, smear))
        best = min(fits, key=lambda fit: fit[2])
        # Neighbouring readings are not independent: a quarter of them counts.
        limit = best[2] * (1.0 + 24.0 / max(float(self._sums[0].n.sum()), 1.0))
        fits = [fit for fit in fits if not fit[3] or fit[2] <= limit]
        samples = self._sums[0].xx.sum(0).sum(1)  # how many each phase weighs
        mean_w = float(self._sums[0].xy.sum() / max(1.0, self._sums[0].n.sum()))
        low = np.min([w - u for w, u, _, _ in fits], axis=0)
        high = np.max([w + u for w, u, _, _ in fits], axis=0)
        powers = {}
        for i, name in enumerate(self.names):
            watts = float(best[0][i])
            half = float(max(high[i] - best[0][i], best[0][i] - low[i]))
            stretch = seconds[i] / max(1, self.stretches[i])
            # Where a reading covers a good part of a stretch of the phase:
            width = self.response.window_s[1] + self.response.jitter_s
            if len(self.names) > 1 and width > 0.5 * stretch:
                half += SHAPE * float(best[0].max() - best[0].min())
            why = self._why_not(stretch, float(samples[i]))
            if not why and not half <= 0.5 * max(abs(watts), abs(mean_w)):
                why = "the readings do not tell it from the other phases"
            powers[name] = PhasePower(None, None, why) if why else PhasePower(watts, half)
        return powers

    def _while_in(self, w: np.ndarray, smear: float, seconds: list[float]) -> np.ndarray:
        """Return mean watts while in each phase, when its power comes late by ``smear``."""
        found = w.copy()
        for (place, before), count in self._entries.items():
            length = seconds[place]
            part = min(1.0, count * smear / 2.0 / length) if length > 0 else 0.0
            found[place] += part * (w[before] - w[place])
        return found

    def _why_not(self, stretch_s: float, samples: float) -> str:
        if len(self.names) == 1:
            return ""
        unsure = self.response.unsure_s
        if unsure * _DIRECT_RATIO > stretch_s:
            return (
                f"a stretch of it lasts {1e3 * stretch_s:.0f} ms, and the sensor's lag and "
                f"window are known to {1e3 * unsure:.0f} ms only"
            )
        return f"{samples:.1f} samples fell into it" if samples < FEW else ""


def shares(
    t: np.ndarray,
    at: np.ndarray,
    phase: np.ndarray,
    k: int,
    lag: float,
    window: np.ndarray | float,
    jitter: float,
) -> np.ndarray:
    """Return how much of each reading each of ``k`` phases is, ``(n, k)``; rows sum to 1.

    ``t`` ``(n,)`` are stamps of the readings; stretches of ``phase`` ``(m,)`` begin ``at``
    ``(m,)``, rising, the last goes on for ever. A reading averages over ``window`` seconds
    that end ``lag`` before its stamp, spread evenly over ``jitter``.
    """
    begin, t = at - at[0], t - at[0]
    least = max(1e-4, 1e-6 * float(t[-1] - t[0]) if len(t) else 0.0)
    window = np.maximum(np.asarray(window, dtype=np.float64), least)
    jitter = max(jitter, least)
    length = np.append(np.diff(begin), 0.0)
    found = np.empty((len(t), k))
    right = t - lag
    points = [right, right - window, right - jitter, right - window - jitter]
    places = [np.maximum(np.searchsorted(begin, p, "right") - 1, 0) for p in points]
    past = [p - begin[m] for p, m in zip(points, places)]
    for i in range(k):
        on = (phase == i).astype(np.float64)
        once = np.concatenate([[0.0], np.cumsum(on * length)])[:-1]
        twice = np.cumsum((once + on * length / 2) * length)
        twice = np.concatenate([[0.0], twice])[:-1]
        a, b, c, d = (
            twice[m] + (once[m] + on[m] * dx / 2) * dx for m, dx in zip(places, past)
        )
        found[:, i] = (a - b - c + d) / (window * jitter)
    return np.clip(found, 0.0, 1.0)
