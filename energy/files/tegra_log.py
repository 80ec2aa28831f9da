"""Any tegrastats log: samples, runs, clocks and what is odd about it.

Streamed: only powers (4 bytes a rail) and stamps (8 bytes) of each sample stay in
memory, so that a log of 500 MB needs less than 100 MB.  Times are made of the stamps in
``tegra_clock``.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Iterator, Sequence

import numpy as np

from draftwire.energy.files.unpack import open_bytes
from draftwire.energy.sources.base import Reading, unique
from draftwire.energy.sources.tegrastats import (
    MAX_SAMPLE,
    SAMPLE_START,
    Sample,
    parse_heat,
    parse_sample,
)
from draftwire.errors import ConfigError

MISSING = np.iinfo(np.int32).min
BLOCK = 8192
NO_STAMP = np.iinfo(np.int64).min


@dataclass(frozen=True)
class LogFinding:
    """One odd thing in a log."""

    kind: str  # short and stable, for programs
    sample: int | None  # number of the sample, from 1, or None for the whole log
    text: str  # one sentence for people


@dataclass
class Run:
    """What one tegrastats process wrote; ``times``: seconds, ``(samples,)``, after
    ``set_clock``, empty when nothing tells them."""

    first_sample: int  # its first sample in the log, from 1
    rails: tuple[str, ...]  # names in order; repeated ones are numbered, ``NC`` is left out
    rails_all: tuple[str, ...] = ()  # the same with ``NC``
    clock_u_s: float = 0.0  # standard uncertainty of its length, after ``set_clock``
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    unit_s: float = 1.0  # what one unit of a stamp is
    heat_first: dict[str, float] = field(default_factory=dict)
    heat_last: dict[str, float] = field(default_factory=dict)
    mean_checked: int = 0  # how many (now, mean) pairs agreed with the running mean
    mean_wrong: int = 0  # how many did not
    three_fields: bool = False
    samples: int = 0
    base_stamp: int | None = None
    _blocks: list[np.ndarray] = field(default_factory=list)
    _stamps: list[np.ndarray] = field(default_factory=list)
    _fill: int = 0

    def append(self, names: Sequence[str], milli: Sequence[int], stamp: int | None) -> None:
        """Add a sample: milliwatts by rail, and the stamp in units of ``unit_s``."""
        found = dict(zip(names, milli))
        if not self._blocks or self._fill == BLOCK:
            self._blocks.append(np.empty((BLOCK, len(self.rails)), np.int32))
            self._stamps.append(np.empty(BLOCK, np.int64))
            self._fill = 0
        self._blocks[-1][self._fill] = [found.get(r, MISSING) for r in self.rails]
        if stamp is not None and self.base_stamp is None:
            self.base_stamp = stamp
        after = NO_STAMP if stamp is None else stamp - (self.base_stamp or 0)
        # A damaged year can lie anywhere; 34 years from the first stamp is no stamp.
        far = abs(after) * self.unit_s >= 2**30
        self._stamps[-1][self._fill] = NO_STAMP if far else after
        self._fill += 1
        self.samples += 1

    def stamps(self) -> np.ndarray:
        """Return stamps, units from ``base_stamp``, ``(samples,)``, int64, once; NO_STAMP
        for none."""
        if not self._stamps:
            return np.empty(0, np.int64)
        whole = np.concatenate(self._stamps)[: self.samples]
        self._stamps = []
        return whole

    @property
    def period_s(self) -> float | None:
        """Median time between samples."""
        if len(self.times) < 2:
            return None
        return float(np.median(np.diff(self.times[: 1 << 16])))

    def readings(self) -> Iterator[Reading]:
        """Yield the readings of a run whose times are known."""
        for i, t in enumerate(self.times):
            yield Reading(round(float(t) * 1e9), self.watts(i))

    def watts(self, i: int) -> dict[str, float]:
        """Return watts by rail of one sample; a rail that it lacks is absent."""
        row = self._blocks[i // BLOCK][i % BLOCK]
        return {r: int(m) * 1e-3 for r, m in zip(self.rails, row) if m != MISSING}

    def observed_step_w(self) -> float | None:
        """Return a low percentile of the steps seen on the rails, or None."""
        if self.samples < 3 or not self.rails:
            return None
        last = self._fill if len(self._blocks) == 1 else BLOCK
        steps = np.abs(np.diff(self._blocks[0][:last].astype(np.int64), axis=0))
        steps = steps[(steps > 0) & (steps < 10**6)]
        return float(np.percentile(steps, 25)) * 1e-3 if steps.size else None


@dataclass
class Log:
    """A tegrastats log that was read; ``runs``: of each tegrastats process."""

    name: str  # the file, as given
    bytes_read: int = 0  # its size
    samples: int = 0  # how many samples it holds
    runs: list[Run] = field(default_factory=list)
    findings: list[LogFinding] = field(default_factory=list)  # what is odd
    stamped: bool = False  # true when its samples carry a time
    source: str = "tegrastats-log"
    foreign: bool = False  # true when another program wrote it (journald, ``ts``, a logger)

    def note(self, kind: str, sample: int | None, text: str) -> None:
        """Add a finding."""
        self.findings.append(LogFinding(kind, sample, text))


def sample_texts(file: BinaryIO, log: Log) -> Iterator[tuple[bytes, bytes]]:
    """Yield what stands before each sample on its line, and the sample, however the
    lines are broken."""
    tail = b""
    dropped = 0
    while True:
        chunk = file.read(1 << 20)
        log.bytes_read += len(chunk)
        text = tail + chunk
        starts = [match.start() for match in SAMPLE_START.finditer(text)]
        # What stands before a sample is on its own line; another sample is not.
        befores = []
        for last, start in zip([0, *starts], starts):
            line = text.rfind(b"\n", last, start) + 1
            befores.append(text[line:start][-160:] if line or not last else b"")
        if starts and starts[0] > 0:
            dropped += len(text[: starts[0]].strip()) - len(befores[0].strip())
        for a, b, before in zip(starts, starts[1:], befores):
            yield before, text[a:b][:MAX_SAMPLE]
        keep = starts[-1] - len(befores[-1]) if starts else 0
        if not chunk:
            if starts:
                yield befores[-1], text[starts[-1] :][:MAX_SAMPLE]
            else:
                dropped += len(text.strip())
            break
        rest = text[keep:]
        if not starts and len(rest) > MAX_SAMPLE:  # rubbish: keep what may be a start
            dropped += len(rest) - 512
            rest = rest[-512:]
        elif len(rest) > 2 * MAX_SAMPLE:
            dropped += len(rest) - 2 * MAX_SAMPLE
            rest = rest[: 2 * MAX_SAMPLE]
        tail = rest
    if dropped > 0:
        log.note("not-tegrastats", None, f"{dropped} bytes are no tegrastats sample")


_EPOCH_MS = ((1e17, 1e-6), (1e14, 1e-3), (1e11, 1.0), (0.0, 1e3))
_CLOCK = rb"(\d\d):(\d\d):(\d\d)([.,]\d+)?"
_FOREIGN = (
    # journalctl -o short-unix, `ts %s`, epoch in s, ms, us or ns; [seconds since boot]
    re.compile(rb"^\W*(?P<epoch>\d{9,10}\.\d+|\d{10}|\d{13}|\d{16}|\d{19})\b"),
    re.compile(rb"^\[ *(?P<epoch>\d+\.\d+)\]"),
    # ISO 8601, as journalctl -o short-iso and rsyslog write it
    re.compile(rb"^\W*(\d{4})-(\d\d)-(\d\d)[T ]" + _CLOCK),
    # syslog, journalctl, `ts`, `date`: a month and a day, no year
    re.compile(rb"^\W*(?:[A-Z][a-z]{2} )?(?P<month>[A-Z][a-z]{2}) +(\d{1,2}) " + _CLOCK),
    # `ts -s`, `ts -i %H:%M:%S`: a clock alone
    re.compile(rb"^\W*" + _CLOCK + rb"(?= )"),
)
_MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"


def foreign_stamp(before: bytes) -> int | None:
    """Return milliseconds of a stamp that another program wrote before a sample."""
    match = next((m for pattern in _FOREIGN for m in [pattern.match(before)] if m), None)
    if match is None:
        return None
    named = match.groupdict()
    if "epoch" in named:
        value = float(named["epoch"])
        return round(value * next(s for size, s in _EPOCH_MS if value >= size))
    *date, hour, minute, second, fraction = match.groups()
    if "month" in named:
        place = _MONTHS.find(date[0])
        if place < 0 or place % 3:
            return None
        date = [2024, place // 3 + 1, date[1]]
    year, month, day = (int(part) for part in date or (2024, 1, 1))
    whole = _seconds((month, day, year, int(hour), int(minute), int(second)))
    part = float((fraction or b"0").replace(b",", b"."))
    return None if whole is None else round((whole + part) * 1e3)


def read_log(path: Path | str, file: BinaryIO | None = None) -> Log:
    """Read a log and tell what is odd; a ConfigError where it holds no sample at all."""
    log = Log(str(path))
    if file is None:
        with open_bytes(path) as opened:
            _read(opened, log)
    else:
        _read(file, log)
    if not log.samples:
        hint = (
            "a sample starts with `RAM n/nMB`, one of a Pi 5 is what `vcgencmd "
            "pmic_read_adc` prints; meters' files end in .csv"
        )
        raise ConfigError(f"{path} holds no tegrastats sample", hint=hint)
    for run in log.runs:
        first, last = run.first_sample, run.first_sample + run.samples - 1
        odd = {
            "no-rails": not run.rails
            and f"samples {first} to {last} have no power rail: no energy can be told",
            "mean-broken": run.mean_wrong
            and "the mean column does not follow from the powers: samples were lost",
            "three-fields": run.three_fields
            and "three power fields (L4T R39): now, mean, maximum; the first is used",
        }
        for kind, text in odd.items():
            if text:
                log.note(kind, first, str(text))
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
    last_text, powered = b"", False
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
            mean, last_text = None, text
            continue
        restarted = mean is not None and mean.restarts(sample)
        if run is None or names != run.rails_all or restarted:
            if run is not None:
                run.heat_last = parse_heat(last_text)
            if restarted:
                what = f"the mean column restarts at sample {number}: a new run"
                log.note("restart", number, what)
            elif run is not None:
                log.note("rails-change", number, f"other rails from sample {number} on")
            keep = tuple(name for name in names if name.split("#")[0] != "NC")
            run = Run(number, keep, names, unit_s=1e-3 if log.foreign else 1.0)
            run.heat_first = parse_heat(text)
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
        last_text, powered = text, True
    if run is not None:
        run.heat_last = parse_heat(last_text)
    if short:
        what = (
            f"{short} samples lack rails (first: sample {first_short}): cut lines; "
            "what they hold is used, missing rails are gaps"
        )
        log.note("cut-sample", first_short, what)
    if log.stamped and unstamped:
        log.note("stamps-missing", None, f"{unstamped} samples have no stamp")
    if not log.stamped and powered:
        what = "no time stamps (L4T R32, or shortened): give --interval or --duration"
        log.note("no-stamps", None, what)


def _seconds(stamp: tuple[int, ...] | None) -> int | None:
    if stamp is None:
        return None
    month, day, year, hour, minute, second = stamp
    try:
        return calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
    except ValueError:
        return None


class MeanColumn:
    """The mean since that tegrastats started, never integrated: it must follow from the
    first numbers, and where it starts anew a new process wrote."""

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
                abs(int((s + now) / (self.n + 1)) - mean) > 1
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
            if abs(int(self.sums[i] / self.n) - mean) <= 1:
                self.run.mean_checked += 1
            else:
                self.run.mean_wrong += 1
                self.known = False
