"""``draftwire energy report --import``: from any log to joules that can be defended.

Logs of tegrastats, and dumps of ``vcgencmd pmic_read_adc`` one after another.  Streamed:
only powers (4 bytes a rail) and stamps (8 bytes) of each sample stay in memory, so that a
log of 500 MB needs less than 100 MB.  Stamps have 1 s resolution and are local time, so
neighbours often have the same: a line is fitted through (sample number, stamp), and where
stamps jump each side is fitted alone.
"""

from __future__ import annotations

import calendar
import contextlib
import math
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Sequence

import numpy as np

from draftwire.energy.account.integral import (
    EnergyResult,
    Integrator,
    Projector,
    build_result,
)
from draftwire.energy.files import open_bytes, read_head
from draftwire.energy.files.recording import Recording
from draftwire.energy.rails import RailTable, TotalChoice, choose_total
from draftwire.energy.sources.base import Reading, unique
from draftwire.energy.sources.counters import PmicSource, parse_adc
from draftwire.energy.sources.jetson import (
    MAX_SAMPLE,
    SAMPLE_START,
    Sample,
    parse_heat,
    parse_sample,
)
from draftwire.errors import ConfigError

DUMP_START = re.compile(rb"\b(\w+)_A\s+current\(\d+\)=")
MISSING = np.iinfo(np.int32).min
NO_STAMP = np.iinfo(np.int64).min


@dataclass(frozen=True)
class LogFinding:
    """One odd thing in a log."""

    kind: str  # short and stable, for programs
    sample: int | None  # number of the sample, from 1, or None for the whole log
    text: str  # one sentence for people


@dataclass
class Run:
    """What one process wrote; ``times``: seconds, ``(samples,)``, once they are set, empty
    when nothing tells them."""

    first_sample: int  # its first sample in the log, from 1
    rails_all: tuple[str, ...]  # names in order; repeated ones are numbered
    unit_s: float = 1.0  # what one unit of a stamp is
    clock_u_s: float = 0.0  # standard uncertainty of its length
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    texts: Sequence[bytes] = (b"", b"")  # its first sample as it is written, and its last
    mean_checked: int = 0  # how many (now, mean) pairs agreed with the running mean
    mean_wrong: int = 0  # how many did not
    three_fields: bool = False
    samples: int = 0
    base_stamp: int | None = None
    choice: TotalChoice = TotalChoice(None)
    result: EnergyResult = EnergyResult("")

    def __post_init__(self) -> None:
        self.rails = tuple(r for r in self.rails_all if r.split("#")[0] != "NC")
        self._milli, self.stamps = array("i"), array("q")

    def append(self, names: Sequence[str], milli: Sequence[int], stamp: int | None) -> None:
        """Add a sample: milliwatts by rail, and the stamp in units of ``unit_s``."""
        found = {n: mw for n, mw in zip(names, milli) if abs(mw) < 2**31}
        self._milli.extend(found.get(rail, MISSING) for rail in self.rails)
        if self.base_stamp is None:
            self.base_stamp = stamp
        after = NO_STAMP if stamp is None else stamp - (self.base_stamp or 0)
        # A damaged year can lie anywhere; 34 years from the first stamp is no stamp.
        far = abs(after) * self.unit_s >= 2**30
        self.stamps.append(NO_STAMP if far else after)
        self.samples += 1

    @property
    def period_s(self) -> float | None:
        """Median time between samples."""
        few = self.times[: 1 << 16]
        return float(np.median(np.diff(few))) if len(few) > 1 else None

    def readings(self) -> Iterator[Reading]:
        """Yield the readings of a run whose times are known."""
        for i, t in enumerate(self.times):
            yield Reading(round(float(t) * 1e9), self.watts(i))

    def watts(self, i: int) -> dict[str, float]:
        """Return watts by rail of one sample; a rail that it lacks is absent."""
        n = len(self.rails)
        pairs = zip(self.rails, self._milli[i * n : (i + 1) * n])
        return {rail: milli * 1e-3 for rail, milli in pairs if milli != MISSING}

    def observed_step_w(self) -> float | None:
        """Return a low percentile of the steps seen on the rails, or None."""
        if self.samples < 3 or not self.rails:
            return None
        head = np.array(self._milli[: 8192 * len(self.rails)], np.int64)
        steps = np.abs(np.diff(head.reshape(-1, len(self.rails)), axis=0))
        steps = steps[(steps > 0) & (steps < 10**6)]
        return float(np.percentile(steps, 25)) * 1e-3 if steps.size else None


@dataclass
class Log:
    """A log that was read; ``runs``: of each process, with their energy."""

    name: str  # the file, as given
    source: str = "tegrastats-log"
    foreign: bool = False  # true when another program wrote it (journald, ``ts``, a logger)
    samples: int = 0  # how many samples it holds
    runs: list[Run] = field(default_factory=list)
    findings: list[LogFinding] = field(default_factory=list)  # what is odd
    stamped: bool = False  # true when its samples carry a time
    mean_checked: int = 0  # over all runs
    mean_wrong: int = 0

    def note(self, kind: str, sample: int | None, text: str) -> None:
        """Add a finding."""
        self.findings.append(LogFinding(kind, sample, text))

    @property
    def energy_j(self) -> float | None:
        """Joules of all runs, or None when one of them has none."""
        values = [run.result.energy_j for run in self.runs]
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "draftwire.energy-import/1",
            "file": self.name,
            "samples": self.samples,
            "energy_j": self.energy_j,
            "mean_column": {"checked": self.mean_checked, "wrong": self.mean_wrong},
            "findings": [vars(finding) for finding in self.findings],
            "runs": [
                {
                    "first_sample": run.first_sample,
                    "samples": run.samples,
                    "period_s": run.period_s,
                    "board": run.choice.board,
                    "total_by": run.choice.how,
                    **run.result.to_dict(),
                }
                for run in self.runs
            ],
        }

    def recording(self, run: Run) -> Recording:
        """Return a run as a recording; without times a ConfigError."""
        if not len(run.times):
            raise ConfigError(f"{self.name} has no times to draw")
        header = {"source": self.source, "rails": list(run.rails)}
        samples = list(run.readings())
        end_ns = samples[-1].t_ns
        return Recording(self.name, header, run.choice, {}, samples, end_ns=end_ns)


def parse_window(text: str) -> tuple[float, float]:
    """Parse ``a:b``, seconds from the first sample, either may be empty; else a
    ConfigError."""
    left, colon, right = text.partition(":")
    try:
        a = float(left) if left.strip() else 0.0
        b = float(right) if right.strip() else float("inf")
    except ValueError as exc:
        raise ConfigError(f"--window {text!r} is not a:b in seconds") from exc
    if not colon or not b > a:
        raise ConfigError(f"--window {text!r} is not a:b in seconds with b after a")
    return a, b


def import_tegrastats(
    path: Path | str,
    tables: Sequence[RailTable],
    *,
    file: BinaryIO | None = None,
    board: str | None = None,
    rails: Sequence[str] | None = None,
    scope: str | None = None,
    window: tuple[float, float] | None = None,
    interval_s: float | None = None,
    duration_s: float | None = None,
) -> Log:
    """Read a log and integrate each of its runs, within the ``window`` (seconds from the
    first sample); ``board`` None tells it by its rails. Logs without stamps need what was
    asked of tegrastats, ``interval_s``, or how long the log took as a whole,
    ``duration_s``. ConfigError: no sample in the file, or a setting is wrong."""
    dumps = file is None and DUMP_START.search(read_head(path, 1 << 12))
    log = read_pmic_log(path) if dumps else read_log(path, file)
    _set_clock(log, interval_s, duration_s)
    runs, log.runs = log.runs, []
    origin = next((float(r.times[0]) for r in runs if len(r.times)), 0.0)
    bounds = None if window is None else (origin + window[0], origin + window[1])
    for run in runs:
        log.mean_checked += run.mean_checked
        log.mean_wrong += run.mean_wrong
        run.choice = choose_total(
            run.rails, tables, board=board, user_rails=rails, scope=scope
        )
        result = _energy(log.source, run, Projector(run.rails, run.choice), bounds)
        if result is not None:
            run.result = result
            log.runs.append(run)
            for warning in run.choice.warnings:
                log.note("total", run.first_sample, warning)
    if window is not None and not log.runs:
        raise ConfigError("the window lies outside of the log")
    return log


def _energy(
    source: str, run: Run, projector: Projector, bounds: tuple[float, float] | None
) -> EnergyResult | None:
    """Integrate a run; None when the window misses it."""
    label = f"samples {run.first_sample} to {run.first_sample + run.samples - 1}"
    whys = {
        "the log has no power rail": not run.rails,
        "a single sample has no duration": run.samples < 2,
        "the log has no time stamps: give --interval or --duration": not len(run.times),
    }
    why = next((text for text, true in whys.items() if true), "")
    if why:
        notes = _mean_power(run, projector)
        known: dict[str, Any] = {"notes": notes, "source": source, "samples": run.samples}
        return EnergyResult(label, why_null=why, **known)
    start, end = float(run.times[0]), float(run.times[-1])
    whole_s = end - start
    if bounds is not None:
        start, end = max(start, bounds[0]), min(end, bounds[1])
        if end <= start:
            return None
    gap_s = 2 * (run.period_s or 1.0) + 0.3 * run.unit_s
    edges = round(start * 1e9), round(end * 1e9)
    integral = Integrator(projector.width, *edges, max_gap_ns=int(gap_s * 1e9))
    for reading in run.readings():
        integral.add(reading.t_ns, projector.watts(reading.watts))
    integral.finish()
    return build_result(
        label,
        integral,
        projector,
        source=source,
        clock_u_s=run.clock_u_s * (end - start) / max(whole_s, 1e-9),
        observed_step_w=run.observed_step_w(),
        context={"heat_c": dict(zip(("start", "end"), map(parse_heat, run.texts)))},
    )


def _mean_power(run: Run, projector: Projector) -> tuple[str, ...]:
    """Say the mean power: without a clock that is all a log can give."""
    total = projector.choice.total
    sums = [projector.watts(run.watts(i))[0] for i in range(run.samples)]
    known = [watt for watt in sums if watt == watt]
    if total is None or not known:
        return ()
    mean_w = sum(known) / len(known)
    return (f"mean power of {len(known)} samples, {total.scope}: {mean_w:.2f} W",)


# Samples.


def sample_texts(file: BinaryIO, log: Log) -> Iterator[tuple[bytes, bytes]]:
    """Yield what stands before each sample on its line, and the sample, however the
    lines are broken."""
    tail, dropped, chunk = b"", 0, b"-"
    while chunk:
        chunk = file.read(1 << 20)
        text = tail + chunk
        starts = [match.start() for match in SAMPLE_START.finditer(text)]
        # What stands before a sample is on its own line; another sample is not.
        befores = []
        for last, start in zip([0, *starts], starts):
            line = text.rfind(b"\n", last, start) + 1
            befores.append(text[line:start][-160:] if line or not last else b"")
        if starts and starts[0] > 0:
            dropped += len(text[: starts[0]].strip()) - len(befores[0].strip())
        ends = starts[1:] if chunk else [*starts[1:], len(text)]
        for a, b, before in zip(starts, ends, befores):
            yield before, text[a:b][:MAX_SAMPLE]
        tail = text[starts[-1] - len(befores[-1]) :] if starts else text
        if not chunk:
            dropped += 0 if starts else len(text.strip())
        elif not starts and len(tail) > MAX_SAMPLE:  # rubbish: keep what may be a start
            dropped += len(tail) - 512
            tail = tail[-512:]
        elif len(tail) > 2 * MAX_SAMPLE:
            dropped += len(tail) - 2 * MAX_SAMPLE
            tail = tail[: 2 * MAX_SAMPLE]
    if dropped > 0:
        log.note("not-tegrastats", None, f"{dropped} bytes are no tegrastats sample")


_EPOCH_MS = ((1e17, 1e-6), (1e14, 1e-3), (1e11, 1.0), (0.0, 1e3))
_CLOCK = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?P<part>[.,]\d+)?"
_FOREIGN = (
    # journalctl -o short-unix, `ts %s`, epoch in s, ms, us or ns; [seconds since boot]
    re.compile(rb"^\W*(?P<epoch>\d{9,10}\.\d+|\d{10}|\d{13}|\d{16}|\d{19})\b"),
    re.compile(rb"^\[ *(?P<epoch>\d+\.\d+)\]"),
    # ISO 8601, as journalctl -o short-iso, rsyslog and containers write it
    re.compile(
        rb"^.*?\b(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)[T ]"
        + _CLOCK
        + rb"(?P<zone>[+-]\d\d:?\d\d)?"
    ),
    # syslog, journalctl, `ts`, and `date` in any language; a year is left out
    re.compile(
        rb"^(?P<words>\D{0,20}(?P<day>\d\d?)\D{1,20}?(?:\d{4} )?)"
        + _CLOCK
        + rb"(?: (?P<half>[AP])M)?"
    ),
    # `ts -s`, `ts -i %H:%M:%S`: a clock alone
    re.compile(rb"^\W*" + _CLOCK + rb"(?= )"),
)
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def foreign_stamp(before: bytes) -> int | None:
    """Return milliseconds of a stamp that another program wrote before a sample."""
    match = next((m for pattern in _FOREIGN for m in [pattern.match(before)] if m), None)
    if match is None:
        return None
    named = {name: text for name, text in match.groupdict().items() if text}
    if "epoch" in named:
        value = float(named["epoch"])
        return round(value * next(s for size, s in _EPOCH_MS if value >= size))
    words = named.get("words", b"")
    month = next((n for n, word in enumerate(_MONTHS, 1) if word in words), 1)
    # Of a year that is not told: 29 February is 1 March, and the clock was set once more.
    known = {"year": 2023, "month": month, "day": 1}
    date = [int(named.get(name, other)) for name, other in known.items()]
    hour, minute, second = (int(named[name]) for name in ("hour", "minute", "second"))
    if "half" in named:
        hour = hour % 12 + 12 * (named["half"] == b"P")
    zone = int(named.get("zone", b"0").replace(b":", b""))  # hours and minutes, as 530
    minute -= zone - 40 * int(zone / 100)
    whole = _seconds((*date[1:], date[0], hour, minute, second))
    part = float(named.get("part", b"0").replace(b",", b"."))
    return None if whole is None else round((whole + part) * 1e3)


def _seconds(stamp: tuple[int, ...] | None) -> int | None:
    if stamp is None:
        return None
    month, day, year, *clock = stamp
    try:
        return calendar.timegm((year, month, day, *clock, 0, 0, 0))
    except ValueError:
        return None


def read_log(path: Path | str, file: BinaryIO | None = None) -> Log:
    """Read a log and tell what is odd; a ConfigError where it holds no sample at all."""
    log = Log(str(path))
    with open_bytes(path) if file is None else contextlib.nullcontext(file) as opened:
        _read(opened, log)
    if not log.samples:
        hint = (
            "a sample starts with `RAM n/nMB`, one of a Pi 5 is what `vcgencmd "
            "pmic_read_adc` prints; meters' files end in .csv"
        )
        raise ConfigError(f"{path} holds no tegrastats sample", hint=hint)
    for run in log.runs:
        first, last = run.first_sample, run.first_sample + run.samples - 1
        if not run.rails:
            what = f"samples {first} to {last} have no power rail: no energy can be told"
            log.note("no-rails", first, what)
        if run.mean_wrong:
            what = "the mean column does not follow from the powers: samples were lost"
            log.note("mean-broken", first, what)
        if run.three_fields:
            what = "three power fields (L4T R39): now, mean, maximum; the first is used"
            log.note("three-fields", first, what)
    if log.foreign:
        log.note("foreign-stamps", None, "times are those that stand before each line")
    if len(log.runs) > 1:
        text = f"{len(log.runs)} runs of tegrastats in one file; each is integrated alone"
        log.note("several-runs", None, text)
    return log


def _read(file: BinaryIO, log: Log) -> None:
    mean: MeanColumn | None = None
    run: Run | None = None
    short = first_short = unstamped = 0
    for before, text in sample_texts(file, log):
        sample = parse_sample(text)
        if sample is None:
            continue
        log.samples += 1
        number = log.samples
        stamp = _seconds(sample.stamp)
        foreign = foreign_stamp(before) if before else None
        if foreign is not None and (log.foreign or not log.stamped):
            log.foreign, stamp = True, foreign
        elif log.foreign:
            stamp = None
        log.stamped = log.stamped or stamp is not None
        unstamped += stamp is None
        names = unique(sample.rails)
        if run is not None and set(names) < set(run.rails) and len(names) < len(run.rails):
            short += 1  # a cut line, or a rail that failed: keep what is there
            first_short = first_short or number
            run.append(names, sample.now_mw, stamp)
            mean, run.texts = None, (run.texts[0], text)
            continue
        restarted = mean is not None and mean.restarts(sample)
        if run is None or names != run.rails_all or restarted:
            if restarted:
                what = f"the mean column restarts at sample {number}: a new run"
                log.note("restart", number, what)
            elif run is not None:
                log.note("rails-change", number, f"other rails from sample {number} on")
            run = Run(number, names, 1e-3 if log.foreign else 1.0, texts=(text, text))
            log.runs.append(run)
            mean = MeanColumn(sample, run)
            if mean.mid_run and names:
                what = (
                    f"at sample {number} the mean differs from the power: this log "
                    "starts in the middle of a run, its mean column is older"
                )
                log.note("mid-run", number, what)
        elif mean is None:
            mean = MeanColumn(sample, run, resync=True)
        else:
            mean.check(sample)
        run.three_fields = run.three_fields or sample.max_mw is not None
        run.append(names, sample.now_mw, stamp)
        run.texts = run.texts[0], text
    if short:
        what = (
            f"{short} samples lack rails (first: sample {first_short}): cut lines; "
            "what they hold is used, missing rails are gaps"
        )
        log.note("cut-sample", first_short, what)
    if log.stamped and unstamped:
        log.note("stamps-missing", None, f"{unstamped} samples have no stamp")
    if not log.stamped and log.runs:
        what = "no time stamps (L4T R32, or shortened): give --interval or --duration"
        log.note("no-stamps", None, what)


class MeanColumn:
    """The mean since that tegrastats started, never integrated: it must follow from the
    first numbers, and where it starts anew a new process wrote."""

    def __init__(self, sample: Sample, run: Run, *, resync: bool = False) -> None:
        self.run = run
        self.mid_run = sample.now_mw != sample.mean_mw
        self.known = not self.mid_run and not resync
        self.n, self.sums, self.last_mean = 1, list(sample.now_mw), sample.mean_mw
        run.mean_checked += len(self.sums) if self.known else 0

    def restarts(self, sample: Sample) -> bool:
        """Return True when this sample can only be the first of a new run."""
        if len(sample.now_mw) != len(self.sums) or sample.now_mw != sample.mean_mw:
            return False
        if self.known:
            sums = zip(self.sums, sample.now_mw)
            due: Sequence[int] = [int((s + now) / (self.n + 1)) for s, now in sums]
        else:
            due = self.last_mean
        return any(abs(new - old) > 1 for new, old in zip(sample.mean_mw, due))

    def check(self, sample: Sample) -> None:
        """Compare the mean column with the running mean of the powers."""
        self.last_mean = sample.mean_mw
        if not self.known:
            return
        self.n += 1
        for i, (now, mean) in enumerate(zip(sample.now_mw, sample.mean_mw)):
            self.sums[i] += now
            if abs(int(self.sums[i] / self.n) - mean) <= 1:
                self.run.mean_checked += 1
            else:
                self.run.mean_wrong += 1
                self.known = False


def read_pmic_log(path: Path | str) -> Log:
    """Read dumps of a Raspberry Pi 5, as a loop writes them, as one run of a log; what
    ``date``, ``ts`` or journald put before them are their times."""
    log, stamp, first = Log(str(path), source="pmic-log", foreign=True), None, b""
    dumps: list[tuple[int | None, list[str]]] = []
    with open_bytes(path) as file:
        for line in file:
            found, rail = foreign_stamp(line), DUMP_START.search(line)
            stamp = stamp if found is None else found
            if rail and rail.group(1) == (first or rail.group(1)):  # a dump begins
                first = rail.group(1)
                dumps.append((stamp, []))
                stamp = None
            if dumps:
                dumps[-1][1].append(line.decode("utf-8", "replace"))
    for stamp, lines in dumps:
        watts = parse_adc("".join(lines))
        log.runs = log.runs or [Run(1, tuple(watts), 1e-3)]
        milli = [round(1e3 * watt) for watt in watts.values()]
        log.runs[0].append(tuple(watts), milli, stamp)
    log.note("partial-sum", None, PmicSource.notes[0])
    log.samples = len(dumps)
    log.stamped = any(stamp is not None for stamp, _ in dumps)
    return log


# Times.


def _set_clock(log: Log, interval_s: float | None, duration_s: float | None) -> None:
    """Give every run its times; findings about the clock are added to the log."""
    given = (value for value in (interval_s, duration_s) if value is not None)
    if not all(0 < value < math.inf for value in given):
        raise ConfigError("interval and duration must be positive")
    if duration_s is not None:
        steps = sum(max(run.samples - 1, 0) for run in log.runs)
        interval_s = duration_s / steps if steps else None
    base, origin = 0.0, None
    for run in log.runs:
        stamps, run.stamps = np.array(run.stamps), array("q")  # 500 MB of log must fit
        good = stamps != NO_STAMP
        count = int(good.sum())
        if run.samples >= 2 and count >= max(2, run.samples // 2):
            assert run.base_stamp is not None
            origin = run.base_stamp if origin is None else origin
            if count < run.samples:
                index = np.arange(len(stamps))
                stamps[~good] = np.interp(index[~good], index[good], stamps[good])
            unit_s = run.unit_s
            if unit_s < 1 and not ((stamps + run.base_stamp) % 1000).any():
                run.unit_s = 1.0  # whole seconds in milliseconds
            run.times = stamps.astype(np.float64)
            del stamps, good
            run.times *= unit_s
            _stamped(log, run)
            run.times += (run.base_stamp - origin) * unit_s
        elif interval_s is not None:
            if duration_s is None:
                run.clock_u_s = 0.05 * max(run.samples - 1, 0) * interval_s
                what = (
                    "times are the nominal interval: real periods are 3 to 7 % longer, "
                    "and so is the energy"
                )
                log.note("nominal-interval", run.first_sample, what)
            run.times = base + np.arange(run.samples) * interval_s
            base += run.samples * interval_s


def _stamped(log: Log, run: Run) -> None:
    """Make times of stamps: in place, stretch by stretch."""
    times, unit = run.times, run.unit_s
    steps = np.diff(times)
    forth = steps[: 1 << 18]
    forth = forth[forth >= 0]
    middle = float(np.median(forth)) if forth.size else 1.0
    usual = forth[forth <= 3 * middle + 2 * unit]
    period = float(usual.mean()) if usual.size else 1.0
    breaks = np.flatnonzero((steps < 0) | (steps > 2 * period + unit)) + 1
    jumps = steps[breaks - 1]
    del steps
    for place, step in zip(breaks.tolist(), jumps.tolist()):
        number = run.first_sample + place
        if step < 0:
            text = f"stamps go back by {-step:.4g} s at sample {number}: the clock was set"
            log.note("stamps-back", number, text)
            # tegrastats went on meanwhile: the next sample is one period later.
            times[place:] += -step + max(unit, round(period / unit) * unit)
        else:
            text = f"no sample for {step:.4g} s before sample {number}"
            log.note("gap", number, text)
    parts = np.split(times, breaks)  # views: each is straightened in place
    squares = (_fit(part, period, unit) ** 2 for part in parts if len(part))
    run.clock_u_s = float(sum(squares)) ** 0.5


def _fit(t: np.ndarray, period: float, unit_s: float) -> float:
    """Straighten the times of a stretch; return what its length is uncertain by."""
    n = len(t)
    if unit_s < 0.1:  # stamps of arrival, fine enough as they are
        return unit_s
    if n < 3 or t[0] == t[-1]:
        # Too few for a line: the stamps, spread by the period of the rest of the run.
        step = (t[-1] - t[0]) / (n - 1) if t[-1] > t[0] else period
        t[:] = t[0] + step * np.arange(n)
        return 0.41 * unit_s * (n > 1)  # sd of the difference of two roundings
    # Rounding to a unit has sd 0.29; a fitted length of n samples 0.29 x sqrt(12 / n).
    return 0.29 * unit_s * float(np.sqrt(12.0 * _lines(t) / n))


def _lines(t: np.ndarray) -> int:
    """Fit a line, or several where the period itself changed; return how many."""
    n = len(t)
    middle, mean = (n - 1) / 2.0, float(t.mean())
    parts = [(a, t[a : a + 65536]) for a in range(0, n, 65536)]

    def index(a: int, part: np.ndarray) -> np.ndarray:
        return np.arange(a, a + len(part), dtype=np.float64) - middle

    slope = sum(float(index(a, p) @ p) for a, p in parts) / (n * (n * n - 1.0) / 12.0)
    rests = (p - (mean + slope * index(a, p)) for a, p in parts)
    ends = [(float(rest.min()), float(rest.max())) for rest in rests]
    if n <= 400 or max(e[1] for e in ends) - min(e[0] for e in ends) <= 2.0:
        for a, part in parts:
            part[:] = mean + slope * index(a, part)
        return 1
    half = n // 2
    count = _lines(t[:half]) + _lines(t[half:])
    step = t[half] - t[half - 1]
    if step <= 0:  # the lines cross: time must not run back
        t[half:] += -step + slope / 2
    return count
