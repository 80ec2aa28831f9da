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
- ``gap``: energy that nobody saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Mapping, Sequence

from draftwire.energy.integrate import Integrator
from draftwire.energy.rails import Accuracy

__all__ = ["Uncertainty", "estimate"]

_ROOT3, _ROOT12 = math.sqrt(3.0), math.sqrt(12.0)


@dataclass(frozen=True)
class Uncertainty:
    """95 % half-width in joules, and its terms as standard uncertainties.

    Attributes:
        joules: Half-width, k = 2.
        terms: Joules by term; the offset and gain terms are shared by all windows of
            the same sensor, which matters when two are compared.
        sensor_known: False when nothing is known about the sensor's accuracy: then
            ``joules`` covers sampling and resolution only.
    """

    joules: float
    terms: Mapping[str, float] = field(default_factory=dict)
    sensor_known: bool = True

    @property
    def random_j(self) -> float:
        """Standard uncertainty of what differs from run to run."""
        shared = ("offset", "gain")
        return math.sqrt(sum(v * v for k, v in self.terms.items() if k not in shared))


def estimate(
    integral: Integrator,
    accuracies: Sequence[Accuracy],
    *,
    update_s: float | None = None,
    context_step2: float = 0.0,
    clock_u_s: float = 0.0,
    observed_step_w: float | None = None,
    gaps_outside: bool = False,
) -> Uncertainty | None:
    """Return the uncertainty of an integral's total.

    None when nothing can be said: the reading never changed and its resolution is not
    known.

    Args:
        integral: A finished integrator.
        accuracies: Of each rail in the total.
        update_s: How often the sensor renews.
        context_step2: Mean ``(difference x period)^2`` of an interval around the
            window; a window of few samples cannot know it by itself.
        clock_u_s: Standard uncertainty of the window's length.
        observed_step_w: Smallest step seen, for rails whose step is not known.
        gaps_outside: The joules speak of the covered time only (pauses in a log).
    """
    seconds, joules = integral.covered_s[0], integral.joules[0]
    mean_w = joules / seconds if seconds > 0 else 0.0
    terms = {}
    known = [a for a in accuracies if a.offset_w is not None]
    if known:
        terms["offset"] = math.sqrt(
            sum((a.offset_w or 0.0) ** 2 for a in known)
        ) * seconds / _ROOT3  # fmt: skip
    gains = [a.gain for a in accuracies if a.gain is not None]
    if gains:
        terms["gain"] = max(gains) * abs(joules) / _ROOT3
    steps = [
        a.step_w if a.step_w is not None else observed_step_w or 0.0 for a in accuracies
    ]
    step_w = math.sqrt(sum(step * step for step in steps))
    if step_w == 0 and integral.changes == 0 and not integral.counted:
        return None
    if not integral.counted:
        terms["quantisation"] = step_w * seconds / _ROOT12 / math.sqrt(1 + integral.changes)
        n = max(integral.intervals, 1)
        step2 = integral.sum_step2
        if integral.intervals < 20:
            step2 = max(step2, n * context_step2)
        # Student's factor for few samples, folded into the standard uncertainty.
        few = 1.0 + 2.0 / n
        terms["sampling"] = few * math.sqrt(step2 / 2.0)
        swing = math.sqrt(integral.sum_diff2 / n)
        terms["edge"] = integral.held_s * swing
    else:
        period = seconds / max(integral.intervals, 1)
        spread = integral.max_w - integral.min_w
        # A counter is exact between samples; only the two edges are interpolated.
        terms["edge"] = _finite(period * spread / _ROOT12 * math.sqrt(2.0))
    if update_s:
        swing = integral.last_w - integral.first_w
        terms["lag"] = _finite(update_s * abs(swing) / _ROOT3)
    if clock_u_s:
        terms["clock"] = clock_u_s * abs(mean_w)
    missing_s = integral.seconds - seconds
    if missing_s > 1e-9 and not gaps_outside:
        terms["gap"] = missing_s * abs(mean_w) / 2.0
    total = 2.0 * math.sqrt(sum(term * term for term in terms.values()))
    return Uncertainty(total, terms, bool(known) and len(known) == len(accuracies))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
