"""The runtime's own account: joules by phase and by token of one generation.

``phase`` costs under a microsecond: it appends to a list that the sampler's thread
folds in, so memory stays bounded for any length.  Phases are words of design.md:
``prefill``, ``draft``, ``transmit``, ``wait``, ``verify-wait``, ``idle``; any other
word works too.  The mean power of a phase (``phases``) times its exact seconds is its
energy; one factor makes the phases sum to the trapezoid's total exactly.  A phase that
the sensor cannot tell from others has no energy, and a reason.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Mapping

from draftwire.energy.account.integral import (
    SHARED,
    EnergyResult,
    Integrator,
    PhasePower,
    Uncertainty,
    Vector,
)
from draftwire.energy.account.meter import Meter, Window
from draftwire.energy.live import marks
from draftwire.energy.sources.base import Clock, monotonic_ns
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.energy.account.phases import PhaseFit

COUNTS = ("drafted", "accepted", "emitted", "requests")
NO_SOURCE = "no power source on this machine: see `draftwire energy sources`"
STEERING = 0.25  # half-width, relative, up to which watts by phase steer pacing
AFRESH = 32  # samples before they are worked out, and again when there are half more
# Phases that a short model leaves out, and what they are most like.
ALIKE = {"prefill": "draft", "transmit": "draft", "verify-wait": "wait", "idle": "wait"}


class ModelSource:
    """Watts per phase that somebody stated, with a relative half-width or None."""

    kind = scope = "modelled"

    def __init__(
        self,
        name: str,
        watts: Mapping[str, float],
        *,
        uncertainty: float | None = None,
        origin: str = "",
    ) -> None:
        for phase, watt in watts.items():
            if not (isinstance(watt, (int, float)) and watt >= 0):
                raise ConfigError(f"model {name}: {watt!r} W in phase {phase}")
        if not watts:
            raise ConfigError(f"model {name} has no phase")
        self.name = f"model:{name}"
        lent = {p: q for p, q in ALIKE.items() if p not in watts and q in watts}
        self.watts = {phase: float(watt) for phase, watt in watts.items()}
        self.watts.update({phase: self.watts[other] for phase, other in lent.items()})
        self.uncertainty = uncertainty
        self.notes = (
            f"modelled, not measured ({origin or 'origin not stated'})",
            *(f"phase {phase} not stated: taken as {q}" for phase, q in lent.items()),
        )


class Account:
    """Joules of one session, by phase. Without a meter seconds are still split, joules are
    null (``why``), or those of a model and labelled so; ``mirror``: tell phases and
    tokens to who records this process from outside."""

    def __init__(
        self,
        meter: Meter | None = None,
        *,
        model: ModelSource | None = None,
        why: str = NO_SOURCE,
        clock: Clock = monotonic_ns,
        mirror: bool = True,
    ) -> None:
        self._mirror = mirror and clock is monotonic_ns and marks.sending()
        self.meter = meter
        self.model = model if meter is None else None
        self._why = why
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._fit: PhaseFit | None = None
        self._powers: dict[str, PhasePower] = {}
        self._powers_at = 0
        self._switches: deque[tuple[int, str]] = deque()
        self._tokens = dict.fromkeys(COUNTS, 0)
        self._now = ""  # phase at the last folded moment
        self._folded = 0
        self._t = self._n = 0
        self._w = self._c = math.nan
        self._watch: Window | None = None
        self.integral: Integrator | None = None
        self.start_ns = 0  # left edge, nanoseconds of the clock
        self.end_ns = 0  # right edge; 0 before ``result``
        self._done: dict[str, Any] | None = None
        self.energy: EnergyResult | None = None  # the whole result, once closed

    def start(self, phase: str = "idle") -> Account:
        """Open the account in a phase."""
        if self._mirror:
            marks.mark(phase)
        meter, self._now = self.meter, phase
        if meter is None:
            self.start_ns = self._folded = self._clock()
            return self
        from draftwire.energy.account.phases import PhaseFit

        with meter.lock:
            self._watch = meter.window("session", self.sample, self._clock).open()
            self.integral = self._watch.integral
            self.start_ns = self._folded = self._watch.start_ns
            self._fit = PhaseFit(meter.response, 0.0, phase)
            if meter.last is not None:
                self._t, self._w = meter.last.t_ns, meter.last.watts[0]
        return self

    def phase(self, name: str, t_ns: int | None = None) -> None:
        """Say that from now on (or from ``t_ns``) the device does something else."""
        self._switches.append((self._clock() if t_ns is None else t_ns, name))
        if self._mirror:
            marks.mark(name)
        if self.meter is None and len(self._switches) >= 1024:
            with self._lock:
                self._fold(self._switches[-1][0])

    def close_at(self, t_ns: int) -> None:
        """Set the right edge ahead of ``result``: samples after it only close it."""
        self.end_ns = t_ns
        if self.integral is not None:
            self.integral.end_ns = t_ns

    def close_now(self) -> None:
        """Set the right edge to this moment."""
        self.close_at(self._clock())

    def count(self, **tokens: int) -> None:
        """Add tokens, for joules per token: ``drafted``, ``accepted``, ``emitted``, and
        ``requests``."""
        for kind, count in tokens.items():
            self._tokens[kind] += count

    def joules(self) -> float | None:
        """Return what was spent so far, up to now; None when nothing measures."""
        if self.model is not None:
            with self._lock:
                self._fold(self._clock())
                return self._modelled()[0]
        integral, meter = self.integral, self.meter
        if integral is None or meter is None or not integral.seen[0]:
            return None
        ahead_ns = max(0, self._clock() - max(self._t, self.start_ns))
        if ahead_ns > 4 * meter.max_gap_ns or self._w != self._w:
            return None  # the sensor went away: a budget must not run on old news
        return integral.joules[0] + self._w * (ahead_ns * 1e-9)

    def watts_by_phase(self) -> dict[str, float | None]:
        """Return mean watts so far, for pacing; empty until every phase is known to a
        quarter: what cannot tell phases apart steers nothing."""
        with self._lock:
            if self.model is not None:
                self._fold(self._clock())
                return {name: self.model.watts.get(name) for name in self._seconds}
            if self._fit is None or self._n < AFRESH:
                return {}
            if not self._powers or self._n >= 1.5 * self._powers_at:
                self._powers_at = self._n
                self._powers = self._fit.solve((self._folded - self.start_ns) * 1e-9)
            for watts, half_w, _ in self._powers.values():
                if watts is None or half_w is None or half_w > STEERING * abs(watts):
                    return {}
            return {name: p.watts for name, p in self._powers.items()}

    def result(self) -> dict[str, Any]:
        """Close the account; return the ``energy`` entry of a run report, the same on
        every call: each figure with a half-width of its own (95 %), and why what is
        null is null."""
        if self._done is None:
            self._done = self._close()
            if self._mirror:
                counts = {k: v for k, v in self._tokens.items() if v}
                marks.mark("idle", **{**counts, "requests": 1})
        return self._done

    def sample(self, t_ns: int, watts: Vector, joules: Vector | None) -> None:
        """Take a sample of the meter: it is its listener."""
        integral = self.integral
        with self._lock:
            if integral is None or t_ns <= self._t:
                return
            integral.add(t_ns, watts, joules)
            watt, span_s = watts[0], 0.0
            if joules is not None:  # the mean since the reading before, exactly
                step, span_s = joules[0] - self._c, (t_ns - self._t) * 1e-9
                self._c = joules[0]
                watt = step / span_s
            end = t_ns if not self.end_ns else min(t_ns, self.end_ns)
            self._fold(end)
            if end == t_ns and self._fit is not None:
                self._fit.sample((t_ns - self.start_ns) * 1e-9, watt, span_s)
                self._n += 1
            self._t, self._w = t_ns, watts[0]

    def _fold(self, until: int) -> None:
        """Give the time up to ``until`` to its phases."""
        switches = self._switches
        while self._folded < until:
            stop = until
            if switches and switches[0][0] < until:
                stop = max(switches[0][0], self._folded)
            seconds = (stop - self._folded) * 1e-9
            self._seconds[self._now] = self._seconds.get(self._now, 0.0) + seconds
            self._folded = stop
            self._pull(stop)
        self._pull(until)

    def _pull(self, until: int) -> None:
        switches = self._switches
        while switches and switches[0][0] <= until:
            t_ns, self._now = switches.popleft()
            if self._fit is not None:
                self._fit.switch((t_ns - self.start_ns) * 1e-9, self._now)

    def _close(self) -> dict[str, Any]:
        if self._watch is not None:
            self.end_ns = self._watch.stop(self.end_ns)
        self.end_ns = self.end_ns or self._clock()
        with self._lock:
            self._fold(self.end_ns)
        seconds = sum(self._seconds.values())
        if self._watch is not None:
            result = self._watch.finish()
            return self._entry(result, self._split(result))
        if self.model is None:
            return self._entry(EnergyResult("session", why_null=self._why), {})
        model, part = self.model, self.model.uncertainty
        known: dict[str, Any] = {"source": model.name, "kind": model.kind}
        joules, by_phase, unknown = self._modelled()
        if joules is None:
            why = f"the model {model.name} has no watts for phase {', '.join(unknown)}"
            return self._entry(EnergyResult("session", why_null=why, **known), {})
        if part is not None:
            half = part * joules
            known["uncertainty"] = Uncertainty(half, {"model": half / 2.0}, False)
        result = EnergyResult(
            "session",
            joules,
            scope=model.scope,
            rails=("MODEL",),
            duration_s=seconds,
            mean_w=joules / seconds if seconds > 0 else None,
            flags=("modelled",),
            notes=model.notes,
            **known,
        )
        split = {n: PhasePower(j, part * j if part else None) for n, j in by_phase.items()}
        return self._entry(result, split)

    def _modelled(self) -> tuple[float | None, dict[str, float], list[str]]:
        """Return joules, those of each phase, and the phases that the model lacks."""
        assert self.model is not None
        known = self.model.watts
        unknown = sorted(name for name in self._seconds if name not in known)
        spent = {n: known[n] * s for n, s in self._seconds.items() if n in known}
        return (None if unknown else sum(spent.values())), spent, unknown

    def _split(self, result: EnergyResult) -> dict[str, PhasePower]:
        """Split the total over the phases; those that are told sum to it exactly."""
        if result.energy_j is None or self._fit is None:
            return {}
        names = [name for name, seconds in self._seconds.items() if seconds > 0]
        if len(names) < 2:
            half = result.uncertainty_j
            return {name: PhasePower(result.energy_j, half) for name in names}
        powers = self._fit.solve((self.end_ns - self.start_ns) * 1e-9)
        raw = {
            name: p.watts * self._seconds[name]
            for name, p in powers.items()
            if p.watts is not None and name in self._seconds
        }
        whole = sum(raw.values())
        told = len(raw) == len(names) and whole > 0
        scale = result.energy_j / whole if told else 1.0
        terms = {} if result.uncertainty is None else result.uncertainty.terms
        offset_j, gain_j, hole_j = (terms.get(k, 0.0) for k in (*SHARED, "hole"))
        split = {}
        for name in names:
            power, seconds = powers[name], self._seconds[name]
            if power.watts is None:
                split[name] = power
                continue
            joules = raw[name] * scale
            half = (power.half_w or 0.0) * seconds + abs(joules - raw[name])
            # Its part of what is wrong with the whole: offset by time, gain by energy.
            offset = offset_j * seconds / (result.duration_s or 1.0)
            gain = gain_j * joules / (result.energy_j or 1.0)
            half = math.sqrt(half**2 + 4 * (offset**2 + gain**2))
            # What a hole hides, nobody can say of which phase.
            half += 2 * hole_j * seconds / (result.duration_s or 1.0)
            split[name] = PhasePower(joules, half)
        return split

    def _entry(
        self, result: EnergyResult, split: Mapping[str, PhasePower]
    ) -> dict[str, Any]:
        by_phase = {name: part.watts for name, part in split.items()}
        told = [value for value in by_phase.values() if value is not None]
        if told and len(told) == len(by_phase) and result.energy_j is not None:
            # The last bit: the total is the sum of what is printed, in that order.
            result = replace(result, energy_j=sum(told))
        self.energy = result
        joules, half, seconds = result.energy_j, result.uncertainty_j, dict(self._seconds)
        halves = {name: part.half_w for name, part in split.items()}
        watts = {
            name: value / seconds[name] if value is not None and seconds[name] else None
            for name, value in by_phase.items()
        }
        known = joules is not None
        return {
            **result.entry(),
            "by_phase": by_phase if known else None,
            "uncertainty_by_phase": halves if known else None,
            "why_null_by_phase": {n: part.why for n, part in split.items() if part.why},
            "seconds_by_phase": seconds,
            "watts_by_phase": watts if known else None,
            "tokens": {k: v for k, v in self._tokens.items() if v or k != "requests"},
            "per_token": per_token(joules, by_phase, self._tokens),
            "uncertainty_per_token": {}
            if half is None
            else per_token(half, halves, self._tokens),
        }


def per_token(
    joules: float | None,
    by_phase: Mapping[str, float | None] | None,
    tokens: Mapping[str, int],
) -> dict[str, float | None]:
    """Return joules per token: ``drafted`` of the draft phase, the others of the whole."""
    over = {"drafted": (by_phase or {}).get("draft"), "accepted": joules, "emitted": joules}
    return {
        kind: energy / tokens[kind] if energy is not None and tokens.get(kind) else None
        for kind, energy in over.items()
    }


class Budget:
    """Stops a generation when it has spent its joules. ConfigError: nothing measures or
    models joules, or the limit is not positive."""

    def __init__(self, account: Account, max_joules: float) -> None:
        if not max_joules > 0:
            raise ConfigError(f"max_joules is {max_joules}, it must be positive")
        if account.meter is None and account.model is None:
            raise ConfigError(
                "max_joules needs a power source, and there is none",
                hint="`draftwire energy sources` tells what is missing",
            )
        choice = None if account.meter is None else account.meter.projector.choice
        if choice is not None and choice.total is None:
            raise ConfigError(f"max_joules needs a total: {choice.why_none}")
        self.max_joules = max_joules
        self._account = account

    def left(self) -> float | None:
        """Return the joules that are left, or None while the sensor is silent."""
        spent = self._account.joules()
        return None if spent is None else self.max_joules - spent

    def exceeded(self) -> bool:
        """Return True when nothing is left, or when nobody can tell any more."""
        left = self.left()
        return left is None or left <= 0
