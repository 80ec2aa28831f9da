"""The runtime's own account: joules by phase and by token of one generation.

How the runtime uses it::

    meter = energy.open_meter()             # None when this machine measures nothing
    account = Account(meter)                # or Account(None, why="...")
    account.start("prefill")
    ...
    account.phase("draft")                  # each change of what the device does
    account.phase("wait")
    ...
    account.count(drafted=5, accepted=3, emitted=4)
    report["energy"] = account.result()     # the "energy" key of a run report

``phase`` costs under a microsecond: it appends to a list that the sampler's thread
folds in, so memory stays bounded for any length.  Phases are words of design.md:
``prefill``, ``draft``, ``transmit``, ``wait``, ``verify-wait``, ``idle``; any other
word works too.

How energy is split.  Phases are shorter than the sampling period (a drafted token takes
5 to 50 ms, a sample comes each 50 ms), so interpolating power between samples would
smear one phase over the next.  Each sample counts for the phase in which it was taken;
the mean power of a phase times its exact seconds is its energy, and all are scaled by
one factor so that they sum to the trapezoid's total exactly.  A phase with too few
samples takes the interpolated power of its stretches, and says so.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import replace
from typing import Any

from draftwire.energy.integrate import Integrator, Vector
from draftwire.energy.meter import Meter, compare_context
from draftwire.energy.result import EnergyResult, build_result, null_result
from draftwire.energy.sources.base import Clock, monotonic_ns
from draftwire.energy.sources.modelled import ModelSource

__all__ = ["Account", "PHASES", "per_token"]

PHASES = ("prefill", "draft", "transmit", "wait", "verify-wait", "idle")
FEW = 5  # samples below which a phase's own mean is not trusted
NO_SOURCE = "no power source on this machine: see `draftwire energy sources`"


class _Phase:
    """Running sums of one phase."""

    __slots__ = ("cell_s", "cell_j", "n", "seconds", "smooth_j", "smooth_s", "x1", "x2")

    def __init__(self) -> None:
        self.seconds = 0.0  # exact, from the runtime's own switches
        self.cell_s = 0.0  # time that its samples stand for
        self.cell_j = 0.0  # their energy
        self.smooth_s = 0.0  # its stretches between samples
        self.smooth_j = 0.0  # the interpolated power over them
        self.n = 0
        self.x1 = 0.0
        self.x2 = 0.0

    def watts(self) -> float | None:
        """Return its mean power, from its own samples if there are enough."""
        if self.n >= FEW and self.cell_s > 0:
            return self.cell_j / self.cell_s
        if self.smooth_s > 0:
            return self.smooth_j / self.smooth_s
        return None


class Account:
    """Joules of one session, by phase.

    Args:
        meter: A running meter, or None: seconds are still split, joules are null.
        model: Watts per phase from a profile, when there is no meter; the result is
            labelled modelled.
        why: Why there is no meter, for the report.
        clock: Nanoseconds, monotonic; the meter's clock.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        *,
        model: ModelSource | None = None,
        why: str = NO_SOURCE,
        clock: Clock = monotonic_ns,
    ) -> None:
        self.meter = meter
        self.model = model
        self._why = why
        self._clock = clock
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._switches: deque[tuple[int, str]] = deque()
        self._tokens = {"drafted": 0, "accepted": 0, "emitted": 0}
        self._now = ""  # phase at the last folded moment
        self._folded = 0
        self._t = 0
        self._w = math.nan
        self._integral: Integrator | None = None
        self._start = 0
        self._end = 0
        self._done: dict[str, Any] | None = None
        self._before: dict[str, Any] = {}
        self.energy: EnergyResult | None = None  # the whole result, once closed

    @property
    def start_ns(self) -> int:
        """Left edge, nanoseconds of the clock; 0 before :meth:`start`."""
        return self._start

    @property
    def end_ns(self) -> int:
        """Right edge; 0 before :meth:`result`."""
        return self._end

    # What the runtime calls.

    def start(self, phase: str = "idle") -> Account:
        """Open the account in a phase."""
        meter = self.meter
        if meter is not None and meter.context is not None:
            self._before = meter.context()
        if meter is None:
            self._start = self._folded = self._clock()
            self._now = phase
            return self
        with meter._lock:
            meter.read_now()
            self._start = self._folded = self._clock()
            self._now = phase
            width = meter.projector.width
            self._integral = Integrator(width, self._start, max_gap_ns=meter.max_gap_ns)
            last = meter.last
            if last is not None:
                self._integral.add(last.t_ns, last.watts, last.joules)
                self._t, self._w = last.t_ns, last.watts[0]
            meter.add_listener(self)
        return self

    def phase(self, name: str, t_ns: int | None = None) -> None:
        """Say that from now on (or from ``t_ns``) the device does something else."""
        self._switches.append((self._clock() if t_ns is None else t_ns, name))
        if self.meter is None and len(self._switches) >= 1024:
            with self._lock:
                self._fold(self._switches[-1][0])

    def close_at(self, t_ns: int) -> None:
        """Set the right edge ahead of ``result``: samples after it only close it."""
        self._end = t_ns
        if self._integral is not None:
            self._integral.end_ns = t_ns

    def close_now(self) -> None:
        """Set the right edge to this moment."""
        self.close_at(self._clock())

    def count(self, *, drafted: int = 0, accepted: int = 0, emitted: int = 0) -> None:
        """Add tokens, for joules per token."""
        tokens = self._tokens
        tokens["drafted"] += drafted
        tokens["accepted"] += accepted
        tokens["emitted"] += emitted

    def joules(self) -> float | None:
        """Return what was spent so far, up to now; None when nothing measures."""
        if self.model is not None and self.meter is None:
            with self._lock:
                self._fold(self._clock())
                return self._modelled()[0]
        integral = self._integral
        if integral is None or integral.covered_s[0] <= 0 and self._w != self._w:
            return None
        ahead = max(0, self._clock() - max(self._t, self._start)) * 1e-9
        assert self.meter is not None
        if ahead * 1e9 > 4 * self.meter.max_gap_ns or self._w != self._w:
            return None  # the sensor went away: a budget must not run on old news
        return integral.joules[0] + self._w * ahead

    def watts_by_phase(self) -> dict[str, float | None]:
        """Return the mean power of each phase so far, for the controller."""
        with self._lock:
            if self.model is not None and self.meter is None:
                self._fold(self._clock())
                return {name: self.model.watts.get(name) for name in self._phases}
            return {name: phase.watts() for name, phase in self._phases.items()}

    def result(self) -> dict[str, Any]:
        """Close the account and return the ``energy`` entry of a run report.

        Keys: ``joules``, ``source``, ``scope``, ``uncertainty`` (95 %, joules),
        ``by_phase`` (joules, or None without a source), ``why_null``; beside them
        ``kind``, ``seconds_by_phase``, ``watts_by_phase``, ``few_samples``,
        ``per_token``, ``coverage``, ``samples``, ``flags``, ``net``, ``by_rail``,
        ``context``, ``notes``. Calling it again returns the same.
        """
        if self._done is None:
            self._done = self._close()
        return self._done

    # Samples come in here, in the sampler's thread.

    def sample(self, t_ns: int, watts: Vector, joules: Vector | None) -> None:
        """Take one sample from the meter."""
        with self._lock:
            self._take(t_ns, watts, joules)

    def _take(self, t_ns: int, watts: Vector, joules: Vector | None) -> None:
        integral = self._integral
        if integral is None or t_ns <= self._t:
            return
        integral.add(t_ns, watts, joules)
        t0, w0, w1 = self._t, self._w, watts[0]
        assert self.meter is not None
        end = t_ns if not self._end else min(t_ns, self._end)
        a, b = max(t0, self._folded), end
        whole = w0 == w0 and w1 == w1 and t_ns - t0 <= self.meter.max_gap_ns
        if b > a:
            at_left = self._now
            slope = (w1 - w0) / (t_ns - t0) if whole else 0.0
            self._fold(b, (t0, w0, slope) if whole else None)
            if whole:
                half = (b - a) * 0.5e-9
                self._cell(at_left, w0, half, count=False)
                self._cell(self._now, w1, half, count=end == t_ns)
        self._t, self._w = t_ns, w1

    def _cell(self, name: str, watt: float, seconds: float, *, count: bool) -> None:
        phase = self._phases.setdefault(name, _Phase())
        phase.cell_s += seconds
        phase.cell_j += watt * seconds
        if count:
            phase.n += 1
            phase.x1 += watt
            phase.x2 += watt * watt

    def _fold(self, until: int, line: tuple[int, float, float] | None = None) -> None:
        """Give the time up to ``until`` to its phases."""
        switches = self._switches
        while self._folded < until:
            if switches and switches[0][0] <= self._folded:
                self._now = switches.popleft()[1]
                continue
            stop = until
            if switches and switches[0][0] < until:
                stop = switches[0][0]
            phase = self._phases.setdefault(self._now, _Phase())
            seconds = (stop - self._folded) * 1e-9
            phase.seconds += seconds
            if line is not None:
                t0, w0, slope = line
                middle = w0 + slope * ((self._folded + stop) / 2 - t0)
                phase.smooth_s += seconds
                phase.smooth_j += middle * seconds
            self._folded = stop
        while switches and switches[0][0] <= until:
            self._now = switches.popleft()[1]

    # Closing.

    def _close(self) -> dict[str, Any]:
        meter = self.meter
        if meter is None:
            with self._lock:
                self._end = self._end or self._clock()
                self._fold(self._end)
                return self._without_meter()
        with meter._lock:
            self._end = self._end or self._clock()
            assert self._integral is not None, "result() before start()"
            self._integral.end_ns = self._end
            meter.read_now()
            meter.remove_listener(self)
        with self._lock:
            self._fold(self._end)
            self._integral.finish()
        after = {} if meter.context is None else meter.context()
        context, flags = compare_context(self._before, after)
        result = build_result(
            "session",
            self._integral,
            meter.projector,
            source=meter.source.name,
            kind=meter.source.kind,
            accuracy=meter.source.accuracy,
            update_s=meter.source.update_s,
            context_step2=meter.context_step2,
            observed_step_w=meter.min_step_w,
            baseline_w=meter.baseline_w,
            notes=meter.source.notes,
            flags=flags,
            context=context,
        )
        by_phase, few = self._split(result)
        return self._entry(result, by_phase, few)

    def _split(self, result: EnergyResult) -> tuple[dict[str, float] | None, list[str]]:
        """Split the total over the phases; they sum to it exactly."""
        if result.energy_j is None:
            return None, []
        watts = {name: phase.watts() for name, phase in self._phases.items()}
        few = sorted(name for name, p in self._phases.items() if p.n < FEW)
        mean_w = result.mean_w or 0.0
        shares = {
            name: (mean_w if watts[name] is None else watts[name] or 0.0) * phase.seconds
            for name, phase in self._phases.items()
        }
        whole = sum(shares.values())
        if not whole > 0:  # offsets below zero: only time is left to split by
            shares = {name: phase.seconds for name, phase in self._phases.items()}
            whole = sum(shares.values())
        if not whole > 0:
            return {}, few
        scale = result.energy_j / whole
        return {name: share * scale for name, share in shares.items()}, few

    def _without_meter(self) -> dict[str, Any]:
        if self.model is None:
            return self._entry(null_result("session", self._why), None, [])
        joules, by_phase, unknown = self._modelled()
        if joules is None:
            names = ", ".join(unknown)
            why = f"the model {self.model.name} has no watts for phase {names}"
            none = null_result("session", why, source=self.model.name, kind="modelled")
            return self._entry(none, None, [])
        result = self.model.result(joules, sum(p.seconds for p in self._phases.values()))
        return self._entry(result, by_phase, [])

    def _modelled(self) -> tuple[float | None, dict[str, float], list[str]]:
        assert self.model is not None
        known = self.model.watts
        unknown = sorted(name for name in self._phases if name not in known)
        by_phase = {
            name: known[name] * phase.seconds
            for name, phase in self._phases.items()
            if name in known
        }
        return (None if unknown else sum(by_phase.values())), by_phase, unknown

    def _entry(
        self, result: EnergyResult, by_phase: dict[str, float] | None, few: list[str]
    ) -> dict[str, Any]:
        if by_phase and result.energy_j is not None:
            # The last bit: the total is the sum of what is printed, in that order.
            result = replace(result, energy_j=sum(by_phase.values()))
        self.energy = result
        joules = result.energy_j
        seconds = {name: phase.seconds for name, phase in self._phases.items()}
        return {
            "joules": joules,
            "source": None if result.source == "none" else result.source,
            "scope": result.scope,
            "uncertainty": result.uncertainty_j,
            "by_phase": by_phase,
            "why_null": result.why_null or None,
            "kind": result.kind if joules is not None else None,
            "seconds_by_phase": seconds,
            "watts_by_phase": {
                name: by_phase[name] / seconds[name] if seconds[name] > 0 else None
                for name in by_phase
            }
            if by_phase is not None
            else None,
            "few_samples": few,
            "tokens": dict(self._tokens),
            "per_token": per_token(joules, by_phase, self._tokens),
            "net": result.net_j,
            "coverage": result.coverage,
            "samples": result.samples,
            "by_rail": dict(result.by_rail),
            "flags": list(result.flags),
            "notes": list(result.notes),
            "context": dict(result.context),
        }


def per_token(
    joules: float | None, by_phase: dict[str, float] | None, tokens: dict[str, int]
) -> dict[str, float | None]:
    """Return joules per token; what each is over is in its name.

    ``drafted`` divides the draft phase by the drafted tokens; ``accepted`` and
    ``emitted`` divide the whole session.
    """
    draft = None if by_phase is None else by_phase.get("draft")

    def over(energy: float | None, count: int) -> float | None:
        return energy / count if energy is not None and count > 0 else None

    return {
        "drafted": over(draft, tokens.get("drafted", 0)),
        "accepted": over(joules, tokens.get("accepted", 0)),
        "emitted": over(joules, tokens.get("emitted", 0)),
    }
