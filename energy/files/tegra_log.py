"""Any tegrastats log: samples, runs, clocks and what is odd about it.

Streamed: only powers (4 bytes a rail) and stamps (8 bytes) of each sample stay in
memory, so that a log of 500 MB needs less than 100 MB.  Stamps have 1 s resolution, so
a line is fitted through (sample number, stamp) and used as the clock; where the stamps
jump, each side is fitted alone.  A log without stamps needs an interval or a duration.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Iterator

import numpy as np

from draftwire.energy.files.unpack import UNPACK_ERRORS, open_bytes
from draftwire.energy.sources.base import Reading, unique
from draftwire.energy.sources.tegrastats import (
    MAX_SAMPLE,
    SAMPLE_START,
    Sample,
    parse_heat,
    parse_sample,
)
from draftwire.errors import ConfigError

__all__ = ["Log", "LogFinding", "Run", "Segment", "read_log", "sample_texts"]

MISSING = np.iinfo(np.int32).min
BLOCK = 8192
NO_STAMP = np.iinfo(np.int64).min


@dataclass(frozen=True)
class LogFinding:
    """One odd thing in a log.

    Attributes:
        kind: Short and stable, for programs.
        sample: Number of the sample, from 1, or None for the whole log.
        text: One sentence for people.
    """

    kind: str
    sample: int | None
    text: str


@dataclass(frozen=True)
class Segment:
    """Samples ``first`` to ``last`` (exclusive) of a run, without a jump between them."""

    first: int
    last: int
    clock_u_s: float  # standard uncertainty of its length


@dataclass
class Run:
    """What one tegrastats process wrote.

    Attributes:
        first_sample: Its first sample in the log, from 1.
        rails: Names in order; repeated ones are numbered, ``NC`` is left out.
        rails_all: The same with ``NC``.
        segments: Stretches without a jump of the stamps, after ``set_clock``.
        times: Seconds of each sample, ``(samples,)``, after ``set_clock``; empty when
            nothing tells them.
        unit_s: What one unit of a stamp is.
        mean_checked: How many (now, mean) pairs agreed with the running mean.
        mean_wrong: How many did not.
    """

    first_sample: int
    rails: tuple[str, ...]
    rails_all: tuple[str, ...] = ()
    segments: list[Segment] = field(default_factory=list)
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    unit_s: float = 1.0
    heat_first: dict[str, float] = field(default_factory=dict)
    heat_last: dict[str, float] = field(default_factory=dict)
    mean_checked: int = 0
    mean_wrong: int = 0
    three_fields: bool = False
    samples: int = 0
    base_stamp: int | None = None
    _blocks: list[np.ndarray] = field(default_factory=list)
    _stamps: list[np.ndarray] = field(default_factory=list)
    _fill: int = 0

    def append(self, values: list[int], stamp: int | None) -> None:
        """Add a sample: milliwatts by rail, and the stamp in units of ``unit_s``."""
        if not self._blocks or self._fill == BLOCK:
            self._blocks.append(np.empty((BLOCK, len(self.rails)), np.int32))
            self._stamps.append(np.empty(BLOCK, np.int64))
            self._fill = 0
        self._blocks[-1][self._fill] = values
        if stamp is not None and self.base_stamp is None:
            self.base_stamp = stamp
        after = NO_STAMP if stamp is None else stamp - (self.base_stamp or 0)
        # A damaged year can lie anywhere; 34 years from the first stamp is no stamp.
        far = abs(after) * self.unit_s >= 2**30
        self._stamps[-1][self._fill] = NO_STAMP if far else after
        self._fill += 1
        self.samples += 1

    def stamps(self) -> np.ndarray:
        """Return the stamps, units from ``base_stamp``, ``(samples,)``, int64, once.

        ``NO_STAMP`` stands where a sample has none.  For a run that is read whole.
        """
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
    """A tegrastats log that was read.

    Attributes:
        name: The file, as given.
        bytes_read: Its size.
        samples: How many samples it holds.
        runs: What the tegrastats processes wrote, one after the other.
        findings: What is odd.
        stamped: True when its samples carry a time.
        foreign: True when another program wrote it (journald, ``ts``, a logger).
    """

    name: str
    bytes_read: int = 0
    samples: int = 0
    runs: list[Run] = field(default_factory=list)
    findings: list[LogFinding] = field(default_factory=list)
    stamped: bool = False
    foreign: bool = False

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


_FOREIGN = (
    # journalctl -o short-unix, `ts %s`, epoch in s, ms, us or ns; [seconds since boot]
    (re.compile(rb"^\W*(\d{9,10}\.\d+|\d{10}|\d{13}|\d{16}|\d{19})\b"), "epoch"),
    (re.compile(rb"^\[ *(\d+\.\d+)\]"), "boot"),
    # ISO 8601, as journalctl -o short-iso and rsyslog write it
    (
        re.compile(rb"^\W*(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)([.,]\d+)?"),
        "iso",
    ),
    # syslog, journalctl, `ts`: a month and a day, no year
    (
        re.compile(rb"^\W*([A-Z][a-z]{2}) +(\d{1,2}) (\d\d):(\d\d):(\d\d)(\.\d+)?"),
        "month",
    ),
    # `ts -s`, `ts -i %H:%M:%S`: a clock alone
    (re.compile(rb"^\W*(\d\d):(\d\d):(\d\d)(\.\d+)?(?= )"), "clock"),
)
_MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"


def foreign_stamp(before: bytes) -> int | None:
    """Return milliseconds of a stamp that another program wrote before a sample."""
    for pattern, kind in _FOREIGN:
        match = pattern.match(before)
        if match is None:
            continue
        parts = [part or b"0" for part in match.groups()]
        if kind in ("epoch", "boot"):
            value = float(parts[0])
            scale = next((s for size, s in _EPOCH_MS if value >= size), 1e3)
            return round(value * scale)
        fraction = float(parts[-1].replace(b",", b".")) if parts[-1] != b"0" else 0.0
        year, month, day = 2024, 1, 1
        if kind == "iso":
            year, month, day = (int(part) for part in parts[:3])
        elif kind == "month":
            place = _MONTHS.find(parts[0])
            if place < 0 or place % 3:
                return None
            month, day = place // 3 + 1, int(parts[1])
        hour, minute, second = (int(part) for part in parts[-4:-1])
        try:
            whole = calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
        except ValueError:
            return None
        return round((whole + fraction) * 1e3)
    return None


_EPOCH_MS = ((1e17, 1e-6), (1e14, 1e-3), (1e11, 1.0))


def read_log(path: Path | str, file: BinaryIO | None = None) -> Log:
    """Read a log and tell what is odd.

    Args:
        path: The file; its name is kept for the report.
        file: Read from here instead.

    Raises:
        ConfigError: The file cannot be read, or holds no sample at all.
    """
    log = Log(str(path))
    try:
        if file is None:
            with open_bytes(path) as opened:
                _read(opened, log)
        else:
            _read(file, log)
    except UNPACK_ERRORS as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc
    if not log.samples:
        raise ConfigError(
            f"{path} holds no tegrastats sample",
            hint="a sample starts with `RAM n/nMB`; USB-meter files end in .csv",
        )
    for run in log.runs:
        if not run.rails:
            log.note(
                "no-rails",
                run.first_sample,
                f"samples {run.first_sample} to {run.first_sample + run.samples - 1} "
                "have no power rail: no energy can be told",
            )
        if run.mean_wrong:
            log.note(
                "mean-broken",
                run.first_sample,
                "the mean column does not follow from the powers: samples were lost",
            )
        if run.three_fields:
            log.note(
                "three-fields",
                run.first_sample,
                "three power fields (L4T R39): now, mean, maximum; the first is used",
            )
    if log.foreign:
        log.note("foreign-stamps", None, "times are those that stand before each line")
    if len(log.runs) > 1:
        log.note(
            "several-runs",
            None,
            f"{len(log.runs)} runs of tegrastats in one file; each is integrated alone",
        )
    return log


def _read(file: BinaryIO, log: Log) -> None:
    mean: MeanColumn | None = None
    run: Run | None = None
    short, first_short = 0, 0
    unstamped = 0
    last_text, previous = b"", None
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
        if stamp is not None:
            log.stamped = True
        else:
            unstamped += 1
        names = unique(sample.rails)
        if run is not None and set(names) < set(run.rails) and len(names) < len(run.rails):
            short += 1  # a cut line, or a rail that failed: keep what is there
            first_short = first_short or number
            _append(run, names, sample, stamp)
            mean = None
            last_text = text
            continue
        restarted = mean is not None and mean.restarts(sample)
        if run is None or names != run.rails_all or restarted:
            if restarted:
                log.note(
                    "restart",
                    number,
                    f"the mean column restarts at sample {number}: a new run",
                )
            elif run is not None:
                log.note("rails-change", number, f"other rails from sample {number} on")
            if run is not None:
                run.heat_last = parse_heat(last_text)
            run = _new_run(number, names)
            run.unit_s = 1e-3 if log.foreign else 1.0
            run.heat_first = parse_heat(text)
            log.runs.append(run)
            mean = MeanColumn(sample, run)
            if mean.mid_run and names:
                log.note(
                    "mid-run",
                    number,
                    f"at sample {number} the mean differs from the power: this log "
                    "starts in the middle of a run, its mean column is older",
                )
        elif mean is None:
            mean = MeanColumn(sample, run, resync=True)
        else:
            mean.check(sample)
        run.three_fields = run.three_fields or sample.max_mw is not None
        _append(run, names, sample, stamp)
        last_text, previous = text, sample
    if run is not None:
        run.heat_last = parse_heat(last_text)
    if short:
        log.note(
            "cut-sample",
            first_short,
            f"{short} samples lack rails (first: sample {first_short}): cut lines; "
            "what they hold is used, missing rails are gaps",
        )
    if log.stamped and unstamped:
        log.note("stamps-missing", None, f"{unstamped} samples have no stamp")
    if not log.stamped and previous is not None:
        log.note(
            "no-stamps",
            None,
            "no time stamps (L4T R32, or shortened): give --interval or --duration",
        )


def _new_run(number: int, names: tuple[str, ...]) -> Run:
    keep = [i for i, name in enumerate(names) if name.split("#")[0] != "NC"]
    return Run(number, tuple(names[i] for i in keep), names)


def _append(run: Run, names: tuple[str, ...], sample: Sample, stamp: int | None) -> None:
    found = dict(zip(names, sample.now_mw))
    run.append([found.get(rail, MISSING) for rail in run.rails], stamp)


def _seconds(stamp: tuple[int, ...] | None) -> int | None:
    if stamp is None:
        return None
    month, day, year, hour, minute, second = stamp
    try:
        return calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
    except ValueError:
        return None


class MeanColumn:
    """The second number of each rail: the mean since that tegrastats started.

    It is no window mean and is never integrated.  It is an oracle inside the data: it
    must follow from the first numbers, and where it starts anew, a new process wrote.
    """

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


def context_of(run: Run) -> dict[str, Any]:
    """Return the temperatures at the start and the end of a run."""
    return {"heat_c": {"start": run.heat_first, "end": run.heat_last}}
