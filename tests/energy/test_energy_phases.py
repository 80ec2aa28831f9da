"""Phases shorter than the sensor sees, through Meter and Account: is the +- true?

20 ms at 12 W and 30 ms at 4 W for a minute, through sensors that are instant, average,
come late, or renew twice a second.  `make slow` has the full test of ``docs/energy.md``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from energy_lab import CHOICE, Fake

from draftwire.energy.account.account import Account
from draftwire.energy.account.meter import Meter, deadline_ns
from draftwire.energy.account.phases import PhaseFit, shares
from draftwire.energy.live.pulse import fit_response
from draftwire.energy.sources.base import UNKNOWN_RESPONSE, Reading, Response
from draftwire.errors import SensorError

WATTS = np.array([12.0, 4.0])
# What the sensor does: averages over, comes late by, renews each; all seconds.
SENSORS = {
    "instant": (0.0, 0.0, 0.05),
    "30 ms average": (0.03, 0.0, 0.05),
    "64 ms average": (0.064, 0.0, 0.05),
    "10 ms late": (0.0, 0.01, 0.05),
    "25 ms late": (0.0, 0.025, 0.05),
    "0.5 s, as jtop": (0.0, 0.012, 0.5),
}


class Load:
    """Two phases in turn, their lengths known to the runtime alone."""

    def __init__(self, rng, length, jitter):
        spread = 1 + jitter * rng.uniform(-1, 1, int(2 * length / 0.05) + 4)
        lengths = np.where(np.arange(len(spread)) % 2, 0.03, 0.02) * spread
        self.at = np.concatenate([[0.0], np.cumsum(lengths)])
        self.joules = np.concatenate(
            [[0.0], np.cumsum(lengths * WATTS[np.arange(len(lengths)) % 2])]
        )

    def upto(self, t):
        i = np.clip(np.searchsorted(self.at, t, "right") - 1, 0, len(self.at) - 2)
        return self.joules[i] + WATTS[i % 2] * (t - self.at[i])

    def mean(self, a, b):
        return (self.upto(b) - self.upto(a)) / (b - a)

    def switches(self, end):
        inside = self.at[(self.at < end)]
        return [(t, ("draft", "wait")[i % 2]) for i, t in enumerate(inside)]


def played(response, hz):
    """Return a meter that gets its readings from outside, its account, and their clock."""
    now = [0]
    source = Fake(None, None)
    source.paced, source.response = True, response
    source.accuracy = {"VDD_IN": replace(source.accuracy["VDD_IN"], offset_w=0.0, gain=0.0)}
    meter = Meter(source, CHOICE, hz=hz, clock=lambda: now[0])
    return meter, Account(meter, clock=lambda: now[0]), now


def account_of(load, rng, sensor, response, length=60.0):
    window, lag, period = sensor
    count = int(length / period)
    if period < 0.1:
        stamps = np.array([deadline_ns(k, int(period * 1e9)) * 1e-9 for k in range(count)])
    else:
        stamps = np.cumsum(rng.uniform(period, 1.06 * period, count))
    stamps = stamps[(stamps > 0.2) & (stamps < length)]
    ends = stamps - lag
    watts = load.mean(ends - max(window, 1e-6), ends)
    watts = np.round((watts + rng.normal(0, 0.03, len(watts))) / 0.04) * 0.04
    meter, account, now = played(response, 1 / period)
    now[0] = 200_000_000
    switches = load.switches(length)
    first = [name for t, name in switches if t <= 0.2][-1]
    account.start(first)
    place = len([1 for t, _ in switches if t <= 0.2])
    for t, watt in zip(stamps, watts):
        while place < len(switches) and switches[place][0] <= t:
            account.phase(switches[place][1], int(switches[place][0] * 1e9))
            place += 1
        now[0] = int(t * 1e9)
        meter.push(Reading(now[0], {"VDD_IN": float(watt)}))
    return account


def calibrated(rng, sensor, within=0.001):
    """What a calibration knows: the true values are somewhere in its ranges."""
    ranges = []
    for true in (sensor[1], sensor[0]):
        middle = true + rng.uniform(-within, within)
        ranges.append((max(0.0, middle - within), max(0.0, middle + within)))
    return Response(ranges[0], ranges[1], 0.0, "calibrated")


@pytest.mark.parametrize("cases", [2, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SENSORS)
def test_each_phase_is_inside_its_interval_and_that_is_useful(name, cases):
    rng = np.random.default_rng(sum(name.encode()))
    inside, widths, steered = [], [], 0
    for case in range(cases):
        load = Load(rng, 61.0, jitter=(0.0, 0.3)[case % 2])
        response = calibrated(rng, SENSORS[name])
        account = account_of(load, rng, SENSORS[name], response)
        steered += bool(account.watts_by_phase())
        entry = account.result()
        for phase, true in zip(("draft", "wait"), WATTS):
            seconds = entry["seconds_by_phase"][phase]
            watt = entry["by_phase"][phase] / seconds
            half = entry["uncertainty_by_phase"][phase] / seconds
            inside.append(abs(watt - true) <= half)
            widths.append(half / true)
        assert sum(entry["by_phase"].values()) == entry["joules"]
    print(f"{name}: inside {100 * np.mean(inside):.1f} %, width {np.median(widths):.3f}")
    assert np.mean(inside) >= 0.93
    assert np.median(widths) < 0.25
    assert steered >= 0.9 * cases or SENSORS[name][2] > 0.1


SHAPES = {
    "a ramp": lambda draft, into: np.where(draft, 8.0 + 8.0 * into, 4.0),
    "runs on": lambda draft, into: np.where(draft, 12.0, 4.0 + 5.0 * np.exp(-6.0 * into)),
}


@pytest.mark.parametrize("window", [0.03, 0.064])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_power_that_is_not_flat_within_a_phase(shape, window):
    """The truth is the mean while in the phase, whatever the power does there."""
    rng = np.random.default_rng(4)
    for _ in range(2):
        lengths = np.where(np.arange(2500) % 2, 0.03, 0.02) * rng.uniform(0.7, 1.3, 2500)
        at = np.concatenate([[0.0], np.cumsum(lengths)])
        t = np.arange(0.0, 60.0, 2e-4)
        place = np.searchsorted(at, t, "right") - 1
        draft = place % 2 == 0
        power = shape(draft, (t - at[place]) / lengths[place])
        joules = np.concatenate([[0.0], np.cumsum(power) * 2e-4])
        stamps = np.array([deadline_ns(k, 50_000_000) * 1e-9 for k in range(8, 1190)])
        grid = np.append(t, 60.0)
        upto, before = (np.interp(x, grid, joules) for x in (stamps, stamps - window))
        watts = (upto - before) / window + rng.normal(0, 0.03, len(stamps))
        fit = PhaseFit(calibrated(rng, (window, 0.0)), 0.0, "draft")
        switch = 1
        for stamp, watt in zip(stamps, watts):
            while at[switch] <= stamp:
                fit.switch(at[switch], ("draft", "wait")[switch % 2])
                switch += 1
            fit.sample(stamp, watt)
        powers = fit.solve(60.0)
        for name, true in (("draft", power[draft].mean()), ("wait", power[~draft].mean())):
            assert abs(powers[name].watts - true) <= powers[name].half_w < 0.4 * true


@pytest.mark.parametrize("name", SENSORS)
def test_a_sensor_of_which_nothing_is_known_says_nothing_of_short_phases(name):
    rng = np.random.default_rng(9)
    load = Load(rng, 61.0, jitter=0.3)
    account = account_of(load, rng, SENSORS[name], UNKNOWN_RESPONSE)
    assert account.watts_by_phase() == {}
    entry = account.result()
    assert entry["by_phase"] == {"draft": None, "wait": None}
    assert entry["why_null_by_phase"]["draft"].startswith("a stretch of it lasts")


def test_long_phases_are_told_by_any_sensor():
    """10 s at 4 W, 20 s at 12 W, and again: a sensor that lags by a second will do."""
    meter, account, now = played(UNKNOWN_RESPONSE, 20)
    account.start("wait")
    for k in range(1, 1201):
        t = k * 0.05
        if k % 600 in (0, 200):
            account.phase("draft" if k % 600 else "wait", int(t * 1e9))
        now[0] = int(t * 1e9)
        late = (t - 0.6) % 30.0
        meter.push(
            Reading(now[0], {"VDD_IN": (12.0 if late > 10 else 4.0) + 0.04 * (k % 2)})
        )
    entry = account.result()
    for phase, true in (("draft", 12.0), ("wait", 4.0)):
        watt = entry["watts_by_phase"][phase]
        half = entry["uncertainty_by_phase"][phase] / entry["seconds_by_phase"][phase]
        assert abs(watt - true) <= half < 0.25 * true


def test_no_contrast_no_figure():
    """Two phases that no reading tells apart: each one holds half of both."""
    fit = PhaseFit(Response((0.0, 0.0), (0.1, 0.1)), 0.0, "draft")
    rng = np.random.default_rng(1)
    for k in range(1, 2401):
        fit.switch(k * 0.025 - 1e-9, ("wait", "draft")[k % 2 == 0])
        if k % 4 == 0:
            fit.sample(k * 0.025, 8.0 + rng.normal(0, 0.5))
    powers = fit.solve(60.0)
    assert all(p.watts is None and "do not tell" in p.why for p in powers.values())


def test_what_is_told_to_a_third_only_steers_nothing():
    """Noise that leaves the powers of a phase +- a third: a figure, but no advice."""
    meter, account, now = played(Response(), 20)
    account.start("draft")
    rng = np.random.default_rng(5)
    for k in range(1, 161):
        if k % 8 == 0:
            account.phase(("draft", "wait")[k // 8 % 2], k * 50_000_000 - 1)
        now[0] = k * 50_000_000
        true = (6.0, 4.0)[k // 8 % 2]
        meter.push(Reading(now[0], {"VDD_IN": true + float(rng.normal(0, 7.5))}))
    assert account.watts_by_phase() == {}
    entry = account.result()
    joules, half = entry["by_phase"]["draft"], entry["uncertainty_by_phase"]["draft"]
    assert joules is not None and 0.25 < half / joules < 0.5


def test_shares_are_what_the_kernel_says():
    at, phase = np.array([0.0, 1.0, 2.0]), np.array([0, 1, 0])
    t = np.array([0.5, 1.0, 1.2, 1.6, 3.5])
    x = shares(t, at, phase, 2, 0.1, 0.4, 0.0)
    assert x[:, 1] == pytest.approx([0.0, 0.0, 0.25, 1.0, 0.0], abs=1e-3)
    assert x.sum(1) == pytest.approx(1.0, abs=1e-6)
    wide = shares(np.array([1.5]), at, phase, 2, 0.0, 0.5, 1.0)
    assert wide[0, 1] == pytest.approx(0.25, abs=1e-3), "it may have ended 1 s earlier"


def test_memory_is_bounded_and_late_blocks_count_as_early_ones():
    fit = PhaseFit(Response(), 0.0, "draft")
    rng = np.random.default_rng(2)
    for k in range(1, 20001):
        if k % 10 == 0:
            fit.switch(k * 0.05, ("draft", "wait")[k // 10 % 2])
        watt = (12.0 if k // 10 % 2 == 0 else 4.0) + rng.normal(0, 0.2)
        fit.sample(k * 0.05 + 0.01, watt)
    powers = fit.solve(1001.0)
    assert powers["draft"].watts == pytest.approx(12.0, abs=0.05)
    assert powers["wait"].watts == pytest.approx(4.0, abs=0.05)
    assert len(fit._at) < 40 and len(fit._sums[0].n) <= 192


@pytest.mark.parametrize(("window", "lag"), [(0.0, 0.0), (0.064, 0.02), (0.0, 0.3)])
def test_calibration_finds_lag_and_window(window, lag):
    """A random load for 40 s, a sensor at 50 Hz with noise."""
    rng = np.random.default_rng(7)
    edges = np.cumsum(rng.uniform(0.03, 0.5, 151))
    load = np.concatenate([[0.0], edges])
    t = np.arange(edges[0], edges[-1], 0.02) + rng.uniform(0, 0.002)

    def upto(x):
        on = (np.arange(len(load)) % 2).astype(float)
        sums = np.concatenate([[0.0], np.cumsum(on[:-1] * np.diff(load))])
        i = np.clip(np.searchsorted(load, x, "right") - 1, 0, len(load) - 1)
        return sums[i] + on[i] * (x - load[i])

    ends, width = t - lag, max(window, 1e-6)
    watts = 4 + 8 * (upto(ends) - upto(ends - width)) / width + rng.normal(0, 0.1, len(t))
    found = fit_response(np.column_stack([t, watts]), edges.tolist(), "played")
    low, high = found.response.lag_s
    short, long = found.response.window_s
    # Half of the window is like lag: both ranges are judged together.
    assert low - 0.002 <= lag <= high + 0.002 and short - 0.004 <= window <= long + 0.004
    assert found.response.unsure_s < 0.02
    assert found.contrast_w == pytest.approx(8.0, rel=0.05)


def test_calibration_without_contrast_says_so():
    rng = np.random.default_rng(3)
    edges = np.cumsum(rng.uniform(0.03, 0.5, 151))
    t = np.arange(edges[0], edges[-1], 0.02)
    table = np.column_stack([t, 5 + rng.normal(0, 0.1, len(t))])
    with pytest.raises(SensorError, match="moved the reading by"):
        fit_response(table, edges.tolist(), "played")
