"""The meter: a thread that samples a source, and windows over what it saw.

The thread wakes on absolute deadlines, so it does not drift.  Each deadline lies at
another, random place of its period: a load that pulses at the sampling rate would
otherwise be seen always in the same phase, and the error would not show.  (A
golden-ratio sequence spreads more evenly, but ties the weight of a sample to its place:
7 % wrong for a pulse at the sampling rate.)

    with Meter(source, choice) as meter:
        with meter.window("draft") as w:
            work()
        print(w.result.energy_j, w.result.uncertainty_j, w.result.scope)
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import re
import threading
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Sequence, TypeVar

from draftwire.energy.account.integral import (
    Baseline,
    EnergyResult,
    Integrator,
    Projector,
    Vector,
    build_result,
)
from draftwire.energy.rails import RailTable, TotalChoice, load_tables
from draftwire.energy.sources.base import (
    UNKNOWN_RESPONSE,
    Clock,
    PowerSource,
    Reading,
    monotonic_ns,
)
from draftwire.errors import ConfigError, SensorError

DEFAULT_HZ = 20.0
MAX_FAILURES = 50  # in a row; then it is asked once in ``AGAIN_S``
AGAIN_S = 1.0
KEEP = 1000  # results that a decorated function remembers
_MASK = (1 << 64) - 1
# Gets every sample (t_ns, watts, joules), in the sampler's thread, in order of time.
Listener = Callable[[int, Vector, Optional[Vector]], None]
Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger("draftwire.energy")


class Sample(NamedTuple):
    """One sample as the meter keeps it: total first, then rails, then other totals."""

    t_ns: int
    watts: Vector
    joules: Vector | None


def deadline_ns(k: int, period_ns: int) -> int:
    """Return deadline ``k``: slot ``k``, at a place that a hash (splitmix64) draws."""
    x = (k * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return k * period_ns + ((period_ns * ((x ^ (x >> 31)) >> 32)) >> 32)


class Meter:
    """Samples a source, which it closes, and integrates windows; ``context`` returns power
    mode, clocks and temperatures at their edges. Never faster than the sensor renews."""

    def __init__(
        self,
        source: PowerSource,
        choice: TotalChoice,
        *,
        hz: float = DEFAULT_HZ,
        clock: Clock = monotonic_ns,
        context: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        if not 0 < hz <= 1000:
            raise ConfigError(f"sampling rate {hz} Hz", hint="between 0 and 1000 Hz")
        if source.update_s:
            hz = min(hz, 1.0 / source.update_s)
        self.source, self.hz, self.clock = source, hz, clock
        self.period_ns = int(1e9 / hz)
        self.projector = Projector(source.rails, choice)
        self.failed_reads = 0  # reads that gave nothing
        self.broken = ""
        self.baseline: Baseline | None = None
        self.response = source.response
        self.context = context or dict
        self.lock = threading.RLock()  # held while a sample is taken
        self.last: Sample | None = None
        self.min_step_w: float | None = None  # smallest change of the total so far
        self.low_w, self.high_w = math.inf, -math.inf  # of the total so far
        self.context_step2 = 0.0  # mean (difference x period)^2 of late
        self._listeners: list[Listener] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def max_gap_ns(self) -> int:
        """Longest hole that is interpolated: two periods, and some lateness."""
        return int(2.7 * self.period_ns)

    def __enter__(self) -> Meter:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        if self._thread is None:
            self.read_now()
            name = "draftwire-energy"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self.source.close()

    def window(
        self, label: str = "", listener: Listener | None = None, clock: Clock | None = None
    ) -> Window:
        """Return a window, to be used in a ``with`` statement; a listener adds the samples
        to its integral itself."""
        return Window(self, label, listener, clock or self.clock)

    def add_listener(self, listener: Listener) -> None:
        """Let somebody else have every sample (accounts, recordings)."""
        with self.lock:
            self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Stop that; harmless when it was not there."""
        with self.lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def measure_baseline(self, seconds: float) -> EnergyResult:
        """Measure idle power now, in the mode and with the model of what follows; later
        windows report net energy against it."""
        with self.window("baseline") as window:
            time.sleep(seconds)
        result = window.result
        if result.mean_w is not None:
            u = result.uncertainty
            noise_w = 0.0 if u is None else u.random_j / result.duration_s
            self.baseline = Baseline(result.mean_w, noise_w)
        return result

    def read_now(self) -> bool:
        """Take a sample out of turn; sources that pace themselves are left alone."""
        return not self.source.paced and self._take()

    def _take(self) -> bool:
        # A source that paces itself waits in its read: others must not wait with it.
        with self.lock if not self.source.paced else contextlib.nullcontext():
            try:
                reading = self.source.read()
            except (SensorError, OSError) as exc:  # a port that was pulled out
                self.failed_reads += 1
                self.broken = str(exc)
                log.debug("energy: %s", exc)
                return False
            self.broken = ""
            self.push(reading)
            return True

    def push(self, reading: Reading) -> None:
        """Take a reading from outside (recordings, tests)."""
        watts, joules = self.projector.project(reading)
        with self.lock:
            last = self.last
            if last is not None and reading.t_ns <= last.t_ns:
                return
            if watts[0] == watts[0]:
                self.low_w = min(self.low_w, watts[0])
                self.high_w = max(self.high_w, watts[0])
            if last is not None:
                change, width_ns = watts[0] - last.watts[0], reading.t_ns - last.t_ns
                if 1e-9 < abs(change) < (self.min_step_w or math.inf):
                    self.min_step_w = abs(change)
                step = change * width_ns * 1e-9
                if width_ns <= self.max_gap_ns and step == step:
                    self.context_step2 += (step * step - self.context_step2) * 0.02
            self.last = Sample(reading.t_ns, watts, joules)
            for listener in self._listeners:
                listener(reading.t_ns, watts, joules)

    def _run(self) -> None:
        begin = self.clock()
        k = failures = 0
        while not self._stop.is_set():
            if not self.source.paced:
                k += 1
                wait_ns = begin + deadline_ns(k, self.period_ns) - self.clock()
                if wait_ns < -self.period_ns:  # starved, or suspended: go on from now
                    k = (self.clock() - begin) // self.period_ns
                if wait_ns > 0 and self._stop.wait(wait_ns * 1e-9):
                    return
            failures = 0 if self._take() else failures + 1
            if self.source.over:
                return
            if failures == MAX_FAILURES:
                log.warning("energy: the source does not answer: %s", self.broken)
            if failures >= MAX_FAILURES and self._stop.wait(AGAIN_S):
                return


class Window:
    """An integral over a meter's samples, from ``open`` until ``stop``; ``result`` is
    there when it was left."""

    def __init__(
        self, meter: Meter, label: str, listener: Listener | None, clock: Clock
    ) -> None:
        self.meter, self.label = meter, label
        self._listener, self._clock = listener, clock
        self.result = EnergyResult(label, why_null="the window is still open")

    def open(self) -> Window:
        """Begin now."""
        meter = self.meter
        self._before = meter.context()
        self._failed = meter.failed_reads
        with meter.lock:
            meter.read_now()
            self.start_ns, gap = self._clock(), meter.max_gap_ns
            width = meter.projector.width
            self.integral = Integrator(width, self.start_ns, max_gap_ns=gap)
            if meter.last is not None:
                self.integral.add(*meter.last)
            self._listener = self._listener or self.integral.add
            meter.add_listener(self._listener)
        return self

    def stop(self, end_ns: int = 0) -> int:
        """End it now, or where the caller says; return where."""
        meter = self.meter
        with meter.lock:
            self.integral.end_ns = end_ns = end_ns or self._clock()
            meter.read_now()  # a sample just after the edge: nothing is held there
            if self._listener is not None:
                meter.remove_listener(self._listener)
        return end_ns

    def finish(self) -> EnergyResult:
        """Return the result."""
        meter, source, integral = self.meter, self.meter.source, self.integral
        integral.finish()
        integral.low_w = min(integral.low_w, meter.low_w)
        integral.high_w = max(integral.high_w, meter.high_w)
        lag_s = getattr(source, "lag_s", source.update_s) or 0.0
        if meter.response is not UNKNOWN_RESPONSE:
            lag_s = max(lag_s, meter.response.mean_lag_s)
        context, flags = compare_context(self._before, meter.context())
        notes = list(source.notes)
        failed = meter.failed_reads - self._failed
        if failed:
            flags.append("failed reads")
            notes.append(f"{failed} reads failed: {meter.broken or 'now well again'}")
        self.result = build_result(
            self.label,
            integral,
            meter.projector,
            source=source.name,
            kind=source.kind,
            accuracy=source.accuracy,
            lag_s=lag_s,
            context_step2=meter.context_step2,
            observed_step_w=meter.min_step_w,
            baseline=meter.baseline,
            notes=notes,
            flags=flags,
            context=context,
        )
        return self.result

    def __enter__(self) -> Window:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.finish()

    @property
    def energy_j(self) -> float | None:
        return self.result.energy_j

    @property
    def source(self) -> str:
        return self.result.source


def mode_name(root: Path = Path("/")) -> str | None:
    """Return the name of the present power mode, or None when there is none."""
    from draftwire.boards.system import power_mode
    from draftwire.boards.tree import Tree

    mode = power_mode(Tree(root))
    if mode is None or (mode.name is None and mode.number is None):
        return None
    return mode.name or f"id {mode.number}"


def read_context(root: Path = Path("/")) -> dict[str, Any]:
    """Return power mode, clocks and temperatures; what is not there is left out."""
    from draftwire.boards.system import heat
    from draftwire.boards.tree import Tree

    tree = Tree(root)
    caps, now, governors = [], [], set()
    for cpu in tree.find("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        cap, current, low = (
            tree.number(f"{cpu}/scaling_{name}_freq") for name in ("max", "cur", "min")
        )
        caps += [] if cap is None else [(cap, low)]
        now += [] if current is None else [current * 1000]
        governors.add(tree.text(f"{cpu}/scaling_governor") or "")
    throttled = tree.text("sys/devices/platform/soc/soc:firmware/get_throttled") or ""
    known = re.fullmatch(r"(0x)?[0-9a-fA-F]+", throttled)
    found = {
        "power_mode": mode_name(root),
        "cpu_cap_hz": max(cap for cap, _ in caps) * 1000 if caps else None,
        # jetson_clocks sets the lowest clock to the highest.
        "clocks_locked": all(cap == low for cap, low in caps) if caps else None,
        "cpu_hz": sorted(now, reverse=True) or None,
        "governor": "+".join(sorted(filter(None, governors))) or None,
        "cpus_online": tree.text("sys/devices/system/cpu/online") or None,
        "heat_c": heat(tree) or None,
        # The low bits are now; bits 16 and up are since boot and stay set.
        "throttled": hex(int(throttled, 16) & 0xFFFF) if known else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def compare_context(
    before: dict[str, Any], after: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Put the two looks at the machine together, and flag what changed."""
    if not before and not after:
        return {}, []
    cap, cap_now = before.get("cpu_cap_hz"), after.get("cpu_cap_hz")
    told = {
        "mode changed": before.get("power_mode") != after.get("power_mode"),
        "throttled": (after.get("throttled") or "0x0") != "0x0",
        "clocks fell": cap is not None and cap_now is not None and cap_now < cap,
    }
    return {"start": before, "end": after}, [flag for flag, true in told.items() if true]


class measure:  # noqa: N801 - used like a function
    """Measure a block or a function, with a running ``meter`` or one of its own.

    ``result`` is the whole result once the block is left; its ``energy_j``,
    ``uncertainty_j``, ``source``, ``scope``, ``why_null`` and so on are attributes here.
    A machine without a sensor runs the code all the same: ``energy_j`` is then None.
    """

    def __init__(
        self,
        label: str = "",
        *,
        meter: Meter | None = None,
        source: str = "auto",
        board: str | None = None,
        rails: Sequence[str] | None = None,
        hz: float = DEFAULT_HZ,
        tables: Sequence[RailTable] | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.label = label
        self.result = EnergyResult(label, why_null="the block has not ended yet")
        self._shared, self._tables = meter, tables
        self._choice: dict[str, Any] = {"board": board, "rails": rails, "hz": hz}
        self._choice.update(name=source, root=root)
        self._window: Window | None = None

    def __enter__(self) -> measure:
        from draftwire.energy.sources.choose import open_meter

        meter, self._exit = self._shared, contextlib.ExitStack()
        try:
            if meter is None:
                tables = load_tables() if self._tables is None else self._tables
                meter = self._exit.enter_context(open_meter(tables, **self._choice))
        except SensorError as exc:
            self.result = EnergyResult(self.label, why_null=str(exc))
            return self
        self._window = self._exit.enter_context(meter.window(self.label))
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()
        if self._window is not None:
            self.result, self._window = self._window.result, None

    def __call__(self, function: Function) -> Function:
        """Decorate a function; its results are in ``function.energy``."""
        results: list[EnergyResult] = []

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            block = copy.copy(self)
            block.label = self.label or function.__name__
            with block:
                value = function(*args, **kwargs)
            results.append(block.result)
            del results[:-KEEP]
            return value

        wrapper.energy = results  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        if name == "result":  # not there yet: no way round
            raise AttributeError(name)
        return getattr(self.result, name)
