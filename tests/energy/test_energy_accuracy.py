"""Known waveforms through the real code path of each source: is the stated error true?

For each source, waveforms (steps, ramps, bursts of 1 to 50 Hz) with known
integrals go through a simulated sensor (offset, gain and resolution as its data sheet
allows) into the files, lines or replies that the source really reads.  In at least 95 %
of them the joules must lie within the stated uncertainty.  40 waveforms a source in `make
test`, 1000, the full test of ``docs/energy.md``, in `make slow`.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from energy_lab import Now

from draftwire.energy.account.meter import Meter, deadline_ns
from draftwire.energy.files.logs import import_tegrastats
from draftwire.energy.files.meters import read_meter
from draftwire.energy.files.recording import Recorder, read_recording
from draftwire.energy.rails import load_chips, load_tables
from draftwire.energy.reports.rows import analyse, row_of_recording
from draftwire.energy.sources.choose import total_of
from draftwire.energy.sources.counters import BatterySource, PmicSource, RaplSource
from draftwire.energy.sources.hwmon import HwmonSource
from draftwire.energy.sources.jetson import JtopSource, TegrastatsSource

TABLES = load_tables()
CASES = pytest.mark.parametrize("cases", [40, pytest.param(1000, marks=pytest.mark.slow)])
NX_STEP, NX_OFFSET, GAIN, _ = load_chips()["ina3221"].figures(0.005, 5.0)


class Wave:
    """Power over time, straight between edges, with its exact integral."""

    def __init__(self, rng, length):
        low, high = np.sort(rng.uniform(1.0, 15.0, 2))
        kind = rng.integers(3)
        if kind == 0:  # steps
            edges = np.sort(rng.uniform(0, length, rng.integers(1, 6)))
            edges = np.concatenate([[0.0], edges, [length]])
            starts = rng.uniform(low, high, len(edges) - 1)
            ends = starts
        elif kind == 1:  # ramps
            edges = np.sort(rng.uniform(0, length, rng.integers(0, 4)))
            edges = np.concatenate([[0.0], edges, [length]])
            points = rng.uniform(low, high, len(edges))
            starts, ends = points[:-1], points[1:]
        else:  # bursts
            period = 1.0 / rng.uniform(1.0, 50.0)
            duty = rng.uniform(0.1, 0.9)
            count = int(length / period) + 2
            begin = (np.arange(count) - rng.uniform()) * period
            edges = np.sort(np.concatenate([begin, begin + duty * period]))
            first_high = edges[0] == begin[0]
            level = np.where((np.arange(len(edges)) % 2 == 0) == first_high, high, low)
            keep = (edges > 0) & (edges < length)
            at_zero = level[max(np.searchsorted(edges, 0.0, "right") - 1, 0)]
            edges, level = edges[keep], level[keep]
            edges = np.concatenate([[0.0], edges, [length]])
            starts = ends = np.concatenate([[at_zero], level])
        slopes = (ends - starts) / np.maximum(np.diff(edges), 1e-12)
        pieces = (starts + ends) / 2 * np.diff(edges)
        # Lists: bisect on them is ten times faster than numpy for one number.
        self.edges, self.starts = edges.tolist(), starts.tolist()
        self.slopes = slopes.tolist()
        self.sums = [0.0, *np.cumsum(pieces).tolist()]

    def _place(self, t):
        return min(max(bisect.bisect_right(self.edges, t) - 1, 0), len(self.starts) - 1)

    def at(self, t):
        i = self._place(t)
        return self.starts[i] + self.slopes[i] * (t - self.edges[i])

    def joules(self, a, b):
        return self._upto(b) - self._upto(a)

    def _upto(self, t):
        i = self._place(t)
        into = t - self.edges[i]
        return self.sums[i] + (self.starts[i] + self.slopes[i] * into / 2) * into


class Sensor:
    """Offset, gain and resolution, drawn once a case from the data sheet's limits."""

    def __init__(self, rng, step, offset, gain):
        self.step = step
        self.offset = rng.uniform(-offset, offset)
        self.gain = 1 + rng.uniform(-gain, gain)

    def __call__(self, watt):
        return round((watt * self.gain + self.offset) / self.step) * self.step


def judge(errors, widest=0.15):
    """Check the share of cases inside the stated half-width."""
    # A reading that never changed, at an unknown resolution, states no uncertainty.
    stated = [case for case in errors if case[1] is not None]
    assert len(stated) >= 0.9 * len(errors)
    errors = np.array(stated)
    inside = np.abs(errors[:, 0]) <= errors[:, 1]
    share = inside.mean()
    width = np.median(errors[:, 1] / errors[:, 2])
    print(f"inside {100 * share:.1f} %, median half-width {100 * width:.2f} %")
    assert share >= 0.95
    assert width < widest, "an uncertainty that covers everything says nothing"


def drive(meter, now, wave, show, a, b):
    """Run a window from a to b on a virtual clock, with the meter's own deadlines."""

    def go(t_ns, read=True):
        now.ns = t_ns
        show(t_ns * 1e-9)
        if read:
            meter.read_now()

    for t in (a - 0.4, a - 0.3, a - 0.2, a - 0.1):  # the meter has been running before
        go(int(t * 1e9))
    go(int(a * 1e9), read=False)
    with meter.window() as window:
        for k in itertools.count(1):
            t_ns = int(a * 1e9) + deadline_ns(k, meter.period_ns)
            if t_ns >= b * 1e9:
                break
            go(t_ns)
        go(int(b * 1e9), read=False)
    return error_of(window.result, wave.joules(a, b))


def error_of(result, exact):
    assert result.energy_j is not None, result.why_null
    return result.energy_j - exact, result.uncertainty_j, exact


def fresh(source, now, **choice):
    now.ns = 0
    return Meter(source, total_of(source, TABLES, **choice), clock=now)


def trials(cases, seed, now, source, showing, length=20.0, a_s=(0.5, 8.0), b_s=(2.0, 10.0),
           widest=0.15, **choice):  # fmt: skip
    """Judge cases: ``showing`` gives what brings a wave to the source at a time."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(cases):
        wave = Wave(rng, length)
        show = showing(rng, wave)
        made = source() if callable(source) else source
        meter = fresh(made, now, **choice)
        a = rng.uniform(*a_s)
        errors.append(drive(meter, now, wave, show, a, a + rng.uniform(*b_s)))
        if made is not source:
            made.close()
    judge(errors, widest)


def files(root, base, texts):
    """Write a tree; return what writes numbers to the files that are live."""
    fds = []
    for name, text in texts.items():
        path = root / base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{0:<12d}" if text == "live" else f"{text}\n")
        if text == "live":
            fds.append(os.open(path, os.O_WRONLY))

    def write(*values):
        for fd, value in zip(fds, values):
            os.pwrite(fd, b"%-12d" % value, 0)

    return write


@CASES
def test_sysfs_mainline(tmp_path, cases):
    """Three rails of an AGX Orin: 2 mohm at 20 V, 20 V and 5 V."""
    texts = {"name": "ina3221", "update_interval": 7}
    volts = (20.0, 20.0, 5.0)
    for i, rail in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 1):
        texts.update({f"in{i}_label": rail, f"in{i}_input": round(volts[i - 1] * 1000)})
        texts.update({f"shunt{i}_resistor": 2000, f"curr{i}_input": "live"})
    write, now = files(tmp_path, "sys/class/hwmon/hwmon0", texts), Now()

    def showing(rng, wave):
        shares = rng.dirichlet((2, 2, 2))
        sensors = [Sensor(rng, 0.02, 0.1255 / 2, GAIN - 0.003) for _ in volts]  # A
        return lambda t: write(*(
            round(sensor(wave.at(t) * share / volt) * 1000)
            for sensor, share, volt in zip(sensors, shares, volts)
        ))  # fmt: skip

    # Two offsets of up to 1.26 W each.
    trials(cases, 1, now, HwmonSource(tmp_path, clock=now), showing, widest=0.4)


@CASES
def test_sysfs_r32(tmp_path, cases):
    """One power file in milliwatt, as NVIDIA's old driver has it."""
    base = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    texts = {"rail_name_0": "POM_5V_IN", "in_power0_input": "live"}
    write, now = files(tmp_path, base, texts), Now()

    def showing(rng, wave):
        sensor = Sensor(rng, 0.038, NX_OFFSET * 0.95, GAIN)
        return lambda t: write(round(sensor(wave.at(t)) * 1000))

    trials(cases, 2, now, HwmonSource(tmp_path, clock=now), showing)


@CASES
def test_pmic(cases):
    now, shown = Now(), {"w": 5.0}

    def run():
        amp = round(shown["w"] / 0.85 / 0.0097) * 0.0097
        return f"VDD_CORE_A current(7)={amp:.8f}A\nVDD_CORE_V volt(15)=0.85000000V\n"

    def showing(rng, wave):
        return lambda t: shown.update(w=wave.at(t))

    spans = {"length": 30.0, "b_s": (4.0, 20.0)}
    source = PmicSource(run, clock=now)
    trials(cases, 3, now, source, showing, rails=["VDD_CORE"], **spans)
    assert fresh(source, now).hz == 10.0


@CASES
def test_rapl(tmp_path, cases):
    wrap = 40_000_000
    texts = {"name": "package-0", "energy_uj": "live", "max_energy_range_uj": wrap}
    write, now = files(tmp_path, "sys/class/powercap/intel-rapl:0", texts), Now()

    def showing(rng, wave):
        begin = rng.integers(wrap)
        # RAPL counts in 61 uJ.
        show = lambda t: write((begin + int(wave.joules(0, t) * 1e6 / 61) * 61) % wrap)  # noqa: E731
        now.ns = 0
        show(0.0)
        return show

    trials(cases, 4, now, lambda: RaplSource(tmp_path, clock=now), showing, b_s=(1.0, 10.0))


@CASES
def test_battery(tmp_path, cases):
    texts = {"type": "Battery", "status": "Discharging", "power_now": "live"}
    write, now = files(tmp_path, "sys/class/power_supply/BAT0", texts), Now()

    def showing(rng, wave):
        return lambda t: write(round(wave.at(t) * 100) * 10_000)

    spans = {"length": 140.0, "a_s": (0.5, 20.0), "b_s": (40.0, 110.0)}
    trials(cases, 5, now, BatterySource(tmp_path, clock=now), showing, **spans)


def paced(cases, seed, length, now, source, say, times_of):
    """Judge a source that paces itself: ``say`` brings it a reading at each time."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(cases):
        wave, sensor = Wave(rng, length), Sensor(rng, NX_STEP, NX_OFFSET, GAIN)
        meter = fresh(source, now)
        times, a, b = times_of(rng)
        window, late = meter.window(), [t for t in times if t >= a]

        def go(times, wave=wave, sensor=sensor, meter=meter):
            for t in times:
                now.ns = int(t * 1e9)
                say(sensor(wave.at(t)))
                meter._take()

        go(t for t in times if t < a)
        now.ns = int(a * 1e9)
        with window:
            go(late)
            now.ns = int(b * 1e9)
        errors.append(error_of(window.result, wave.joules(a, b)))
    judge(errors)


@CASES
def test_jtop(cases):
    """Renews each half second and some, as the service does."""
    now, jitter = Now(), np.random.default_rng(60)
    client = SimpleNamespace(ok=lambda: True, power={"rail": {"VDD_IN": {"power": 5000}}})

    def say(watt):
        client.power = {"rail": {"VDD_IN": {"power": round(watt * 1000)}}}

    def times_of(rng):
        t, a, times = rng.uniform(0.0, 0.5), rng.uniform(1.0, 8.0), []
        b = a + rng.uniform(20.0, 70.0)
        while t < b:
            times.append(t)
            t += 0.5 + jitter.uniform(0.0, 0.03)
        return times, a, b

    paced(cases, 6, 90.0, now, JtopSource(client, clock=now), say, times_of)


def line_of(watt, stamp="", mean=None):
    milli = round(float(watt) * 1000)
    mean = milli if mean is None else mean
    return f"{stamp}RAM 1/2MB CPU [1%@729] tj@50C VDD_IN {milli}mW/{mean}mW\n".encode()


@CASES
def test_tegrastats_live(tmp_path, cases):
    """One process for all waveforms, lines through a real pipe, a virtual clock."""
    fifo, script = tmp_path / "lines", tmp_path / "tegrastats"
    os.mkfifo(fifo)
    script.write_text(f"#!/bin/sh\nexec cat {fifo}\n")
    script.chmod(0o755)
    now, keeper = Now(), os.open(fifo, os.O_RDWR)  # opens before the reader does
    os.write(keeper, line_of(5.0))
    source = TegrastatsSource(100, command=[str(script)], clock=now)

    def times_of(rng):
        times = np.cumsum(rng.uniform(0.102, 0.112, 100))
        a, b = times[2] + 0.03, times[rng.integers(40, 90)] + 0.05
        return times[times < b], a, b

    try:
        say = lambda watt: os.write(keeper, line_of(watt))  # noqa: E731
        paced(cases, 7, 12.0, now, source, say, times_of)
    finally:
        source.close()
        os.close(keeper)


@CASES
def test_tegrastats_log(cases):
    """Periods of 1.02 to 1.07 s for an interval of 1000 ms, stamps cut to seconds."""
    rng = np.random.default_rng(8)
    errors = []
    for _ in range(cases):
        n = int(rng.integers(40, 90))
        wave, sensor = Wave(rng, 110.0), Sensor(rng, NX_STEP, NX_OFFSET, GAIN)
        period = rng.uniform(1.02, 1.07)
        times = np.cumsum(period + rng.normal(0.0, 0.008, n))
        start = rng.uniform(0.0, 1.0)
        lines, total = [], 0
        for count, t in enumerate(times, 1):
            watt = sensor(wave.at(t))
            total += round(watt * 1000)
            clock = time.gmtime(int(1_760_000_000 + start + t))
            stamp = time.strftime("%m-%d-%Y %H:%M:%S ", clock)
            lines.append(line_of(watt, stamp, int(total / count)))
        imported = import_tegrastats("log", TABLES, file=io.BytesIO(b"".join(lines)))
        assert imported.samples == n
        # The log cannot say where it stands to a fraction of a second, so it is held
        # against the exact energy between its own first and last sample.
        errors.append(error_of(imported.runs[0].result, wave.joules(times[0], times[-1])))
    judge(errors)


@CASES
def test_meter_csv(tmp_path, cases):
    """A USB meter at 100 Hz, in the columns of the FNIRSI logger."""
    rng = np.random.default_rng(9)
    path = tmp_path / "meter.csv"
    errors = []
    for _ in range(cases):
        wave = Wave(rng, 8.0)
        times = np.arange(rng.uniform(0, 0.01), 8.0, 0.01)
        times = times[: int(rng.integers(150, 500))]
        rows = ["timestamp sample_in_packet voltage_V current_A dp_V"]
        amps = [wave.at(t) / 5.1 for t in times]
        rows += [f"{t:.6f} 0 5.10000 {amp:.5f} 0" for t, amp in zip(times, amps)]
        path.write_text("\n".join(rows))
        row = row_of_recording(read_meter(path))
        exact = wave.joules(times[0], times[-1])
        errors.append((row.energy_j - exact, row.uncertainty_j, exact))
    judge(errors)


@CASES
def test_recording_and_replay(tmp_path, cases):
    """Through the recorder's file and back: the same joules as live, and as true."""
    base = "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0"
    write = files(tmp_path, base, {"rail_name_0": "VDD_IN", "in_power0_input": "live"})
    rng, now = np.random.default_rng(10), Now()
    source = HwmonSource(tmp_path, clock=now)
    path = tmp_path / "run.jsonl"
    errors = []
    for _ in range(cases):
        wave, sensor = Wave(rng, 14.0), Sensor(rng, NX_STEP, NX_OFFSET, GAIN)

        def show(t, wave=wave, sensor=sensor):
            write(round(sensor(wave.at(t)) * 1000))

        meter = fresh(source, now)
        recorder = Recorder(path, source, meter.projector, hz=meter.hz, force=True)
        meter.add_listener(recorder.sample)
        a = rng.uniform(0.5, 4.0)
        b = a + rng.uniform(3.0, 9.0)
        recorder.phase(int(a * 1e9), "run")
        live = drive(meter, now, wave, show, a, b)
        recorder.end(int(b * 1e9), {})
        entry, _ = analyse(read_recording(path))
        assert entry["joules"] == pytest.approx(live[0] + live[2], rel=1e-3)
        errors.append((entry["joules"] - live[2], entry["uncertainty"], live[2]))
    judge(errors)
