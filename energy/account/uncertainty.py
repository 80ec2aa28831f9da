"""How wrong a number of joules can be: 95 % half-width, from stated terms.

Sensor data sheet, not calibrated.  Terms, each as a standard uncertainty, then the root
of their squares times two:

- ``offset``: largest constant error of each rail of the total, over the whole time;
- ``gain``: largest relative error;
- ``quantisation``: one step, averaged down only as often as the reading changed;
- ``sampling``: what happens between samples.  Differences of neighbours tell how fast
  the power moves; for samples that are independent of the load (the meter dithers its
  deadlines for that reason) the variance of the integral is half the sum of
  ``(difference x period)^2``, and a single step in an interval errs by less;
- ``edge``: held values at the ends of the window;
- ``lag``: a sensor that renews late shifts energy over the edges;
- ``clock``: time stamps of coarse resolution;
- ``hole``: energy that nobody saw, as if the power had stood at the run's lowest or
  highest reading throughout every hole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Mapping, Sequence

from draftwire.energy.account.integrate import Integrator
from draftwire.energy.rails import Accuracy

SHARED = ("offset", "gain")  # the same for all windows of one sensor
_ROOT3, _ROOT12 = math.sqrt(3.0), math.sqrt(12.0)
# Student's t, 97.5 %, for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t_factor(freedom: float) -> float:
    """Return Student's t for a 95 % interval."""
    if freedom < 1:
        return math.inf
    return _T[int(freedom) - 1] if freedom < 31 else 1.96 + 2.6 / freedom


@dataclass(frozen=True)
class Uncertainty:
    """95 % half-width in joules, and its terms as standard uncertainties; those of
    ``SHARED`` cancel between runs of one sensor. Without ``sensor_known`` it covers
    sampling and resolution only, and everything that shows it says so."""

    joules: float  # half-width, k = 2
    terms: Mapping[str, float] = field(default_factory=dict)
    sensor_known: bool = True

    @property
    def random_j(self) -> float:
        """Standard uncertainty of what differs from run to run."""
        return math.sqrt(sum(v * v for k, v in self.terms.items() if k not in SHARED))


def estimate(
    integral: Integrator,
    accuracies: Sequence[Accuracy],
    *,
    lag_s: float = 0.0,
    context_step2: float = 0.0,
    clock_u_s: float = 0.0,
    observed_step_w: float | None = None,
) -> Uncertainty | None:
    """Return the uncertainty of a finished integrator's total, from what is known of each
    of its rails; None when nothing can be said: the reading never changed and its
    resolution is not known.

    Args:
        lag_s: How late the sensor may be, its averaging included.
        context_step2: Mean ``(difference x period)^2`` of an interval around the
            window; a window of few samples cannot know it by itself.
        clock_u_s: Standard uncertainty of the window's length.
        observed_step_w: Smallest step seen, for rails whose step is not known.
    """
    seconds, joules = integral.seconds, integral.joules[0]
    offsets = [a.offset_w for a in accuracies if a.offset_w is not None]
    gains = [a.gain for a in accuracies if a.gain is not None]
    steps = [a.step_w if a.step_w is not None else observed_step_w for a in accuracies]
    step_w = math.sqrt(sum((step or 0.0) ** 2 for step in steps))
    if step_w == 0 and integral.changes == 0 and not integral.counted:
        return None
    terms = {}
    n = max(integral.intervals, 1)
    if offsets:
        terms["offset"] = math.sqrt(sum(w * w for w in offsets)) * seconds / _ROOT3
    if gains:
        terms["gain"] = max(gains) * abs(joules) / _ROOT3
    if not integral.counted:
        terms["quantisation"] = step_w * seconds / _ROOT12 / math.sqrt(1 + integral.changes)
        step2 = integral.sum_step2
        if integral.intervals < 20:
            step2 = max(step2, n * context_step2)
        # Student's factor for few samples, folded into the standard uncertainty.
        terms["sampling"] = (1.0 + 2.0 / n) * math.sqrt(step2 / 2.0)
        terms["edge"] = integral.held_s * math.sqrt(integral.sum_diff2 / n)
    else:
        # A counter is exact between samples; only the two edges are interpolated.
        spread = integral.max_w - integral.min_w
        terms["edge"] = _finite(seconds / n * spread / _ROOT12 * math.sqrt(2.0))
    if lag_s:
        terms["lag"] = _finite(lag_s * abs(integral.last_w - integral.first_w) / _ROOT3)
    if clock_u_s:
        terms["clock"] = clock_u_s * abs(joules / seconds if seconds > 0 else 0.0)
    if integral.hole_s[0] > 1e-9:
        terms["hole"] = _finite(integral.hidden_j) / 2.0  # a bound, not a deviation
    total = 2.0 * math.sqrt(sum(term * term for term in terms.values()))
    return Uncertainty(total, terms, len(offsets) == len(gains) == len(accuracies))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
