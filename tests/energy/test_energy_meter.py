"""Meter, windows, account and budget on a virtual clock."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time

import pytest
from energy_lab import CHOICE, Fake, Now, advance, setup

from draftwire import energy
from draftwire.energy.account import meter as meter_module
from draftwire.energy.account.account import Account, Budget, ModelSource
from draftwire.energy.account.integral import Baseline
from draftwire.energy.account.meter import Meter, deadline_ns
from draftwire.energy.rails import RailTable, Total, TotalChoice, choose_total
from draftwire.energy.sources.base import UNKNOWN_RESPONSE, monotonic_ns
from draftwire.errors import ConfigError, SensorError
from draftwire.io import environment


def result_of(power, end, start=0.0, **options):
    """Return the result of a window from ``start`` to ``end``."""
    now, meter = setup(power, **options)
    if start:
        advance(now, meter, start)
    with meter.window("one") as window:
        advance(now, meter, end)
    assert window.energy_j == window.result.energy_j
    return window.result


def test_window_between_samples_is_exact_for_a_ramp():
    result = result_of(lambda t: 2.0 + t, 4.571, 1.013)
    exact = 2 * (4.571 - 1.013) + (4.571**2 - 1.013**2) / 2
    assert result.energy_j == pytest.approx(exact, rel=1e-6)
    assert result.coverage == pytest.approx(1.0)
    assert (result.label, result.scope, result.source) == ("one", "module", "fake")
    assert result.duration_s == pytest.approx(3.558)
    json.dumps(result.to_dict(), allow_nan=False)


def test_windows_nest_and_share_nothing():
    now, meter = setup(lambda t: 5.0)
    with meter.window("outer") as outer:
        advance(now, meter, 1.0)
        with meter.window("inner") as inner:
            advance(now, meter, 2.0)
        advance(now, meter, 3.0)
    assert (inner.energy_j, outer.energy_j) == pytest.approx((5.0, 15.0))


def test_a_short_window_is_coarse_and_says_so():
    result = result_of(lambda t: 5.0 + math.sin(40 * t), 2.02, 2.0)
    assert "coarse" in result.flags
    assert result.uncertainty_j > 0.02  # the neighbourhood swings by 2 W


def test_a_hole_is_bridged_and_its_energy_is_uncertain():
    result = result_of(lambda t: None if 1.0 < t < 2.0 else 5.0 + (t > 2.5), 4.0)
    assert {"gaps", "failed reads"} <= set(result.flags)
    assert result.duration_s == pytest.approx(4.0)
    assert result.coverage == pytest.approx(3 / 4, abs=0.05)
    assert result.mean_w == pytest.approx(result.energy_j / 4.0)
    assert result.energy_j == pytest.approx(21.5, abs=0.1)
    assert result.uncertainty_j > 0.9, "it may have stood at 6 W for a second"


def test_a_hole_may_hide_what_the_meter_saw_before_the_window():
    result = result_of(lambda t: None if 4 < t < 5 else 12.0 if t < 1 else 5.0, 6.0, 2.0)
    assert result.max_w == 5.0
    assert result.uncertainty_j > 6.0, "it drew 12 W a moment ago"
    result = result_of(lambda t: None if 2.0 < t < 3.0 else 5.0, 4.0)
    assert result.uncertainty.terms["hole"] * 2 >= 0.09 * 5.0


@pytest.mark.parametrize("first", [True, False])
def test_a_hole_at_the_edge_is_a_hole(first):
    """A sensor that is silent at the edge is held for a gap's length, and no longer."""
    result = result_of(lambda t: 5.0 + t % 0.3 if (t > 1.6) == first else None, 4.0)
    silent = 1.6 if first else 2.4
    held = 2.7 / 20
    if silent > 2.0:
        assert result.energy_j is None and "samples cover" in result.why_null
    else:
        assert result.uncertainty.terms["hole"] > 0
    assert result.coverage == pytest.approx(1 - (silent - held) / 4.0, abs=0.04)


def test_a_sensor_that_is_dead_gives_null_not_zero():
    result = result_of(lambda t: None, 1.0)
    assert result.energy_j is None and "no sample" in result.why_null
    assert any("bus error" in note for note in result.notes)
    result = result_of(lambda t: 0.0, 1.0)
    assert result.energy_j is None and "dead sensor" in result.flags


STILL = {
    "never changed": (lambda t: 4.2, 12.0),
    "stuck": (lambda t: 4.2 + (t if t < 6 else 6) % 0.31, 18.0),
    # A coarse step, at rest; and at rest for minutes, half a minute of load in between.
    "": (lambda t: 4.2 + 0.04 * (int(t) % 4 == 0), 30.0),
    " ": (lambda t: 9 + t % 0.3 if 100 < t < 130 else 5 + 0.04 * (t % 7 < 0.1), 200.0),
}


@pytest.mark.parametrize("flag", STILL)
def test_a_stuck_sensor_is_flagged_and_a_still_one_is_not(flag):
    flags = set(result_of(*STILL[flag]).flags)
    assert flags & {"stuck", "never changed"} == set(filter(str.strip, [flag]))


def test_negative_power_averages_out():
    now, meter = setup(lambda t: -0.4 if int(t * 1000) % 2 else 0.4)
    with meter.window() as window:
        advance(now, meter, 5.0)
    assert window.energy_j is not None and abs(window.energy_j) < 1.0
    assert meter.low_w == -0.4


def test_no_total_no_joules_but_rails():
    now = Now()
    choice = choose_total(["VDD_IN"], [RailTable("other")])
    meter = Meter(Fake(now, lambda t: 5.0), choice, clock=now)
    with meter.window() as window:
        advance(now, meter, 2.0)
    result = window.result
    assert result.energy_j is None and "--rails" in result.why_null
    assert result.by_rail["VDD_IN"] == pytest.approx(10.0)


def test_baseline_and_net():
    now, meter = setup(lambda t: 4.0 + 0.04 * (int(t * 7) % 2) + 5 * (t > 2))
    meter.baseline = Baseline(4.0, 0.01)
    advance(now, meter, 2.2)
    with meter.window() as window:
        advance(now, meter, 4.2)
    result = window.result
    assert result.net_j == pytest.approx(10.0, abs=0.1)
    # The offset of 0.08 W cancels; the baseline's own noise and the gain do not.
    assert 2 * 0.01 * 2.0 < result.net_uncertainty_j < result.uncertainty_j
    meter.baseline = Baseline(9.01)
    with meter.window() as window:
        advance(now, meter, 6.0)
    assert window.result.net_j is None and "net below one step" in window.result.flags


def test_bursts_at_the_sampling_rate_are_not_aliased():
    """A load that pulses 20 times a second, sampled 20 times a second."""
    result = result_of(lambda t: 12.0 if (t * 20) % 1.0 < 0.3 else 2.0, 20.0)
    exact = 20 * (0.3 * 12 + 0.7 * 2)
    assert result.energy_j == pytest.approx(exact, rel=0.06)
    assert abs(result.energy_j - exact) < result.uncertainty_j


def test_mode_change_and_throttling_are_flagged():
    looks = [
        {"power_mode": "15W", "cpu_cap_hz": 2e9},
        {"power_mode": "25W", "cpu_cap_hz": 1e9, "throttled": "0x4"},
    ]
    result = result_of(lambda t: 5.0, 2.0, context=lambda: looks.pop(0))
    assert {"mode changed", "clocks fell", "throttled"} <= set(result.flags)


def test_deadlines_do_not_drift_and_cover_the_period():
    places = [deadline_ns(k, 1000) - 1000 * k for k in range(1, 500)]
    assert 0 <= min(places) < max(places) - 950 and max(places) < 1000
    gaps = [deadline_ns(k + 1, 1000) - deadline_ns(k, 1000) for k in range(1, 500)]
    assert min(gaps) > 0 and max(gaps) < 2000


def test_the_thread_samples_and_stops():
    meter = Meter(Fake(monotonic_ns, lambda t: 5.0), CHOICE, hz=100)
    seen = threading.Event()
    meter.add_listener(lambda *sample: seen.set())
    with meter:
        with meter.window() as window:
            assert seen.wait(10.0)
    assert window.energy_j > 0
    assert meter.source.closed
    assert not any(t.name == "draftwire-energy" for t in threading.enumerate())


@pytest.mark.parametrize("error", [SensorError("bus error"), OSError(5, "pulled out")])
def test_a_sensor_that_was_away_for_long_is_back(monkeypatch, error):
    monkeypatch.setattr(meter_module, "AGAIN_S", 0.001)
    left, back = [3 * meter_module.MAX_FAILURES], threading.Event()

    def power(t):
        left[0] -= 1
        if 0 < left[0] < 3 * meter_module.MAX_FAILURES - 1:
            raise error
        return 5.0

    meter = Meter(Fake(monotonic_ns, power), CHOICE, hz=1000)
    with meter:
        while meter.failed_reads < 2 * meter_module.MAX_FAILURES:
            time.sleep(0.001)
        assert meter.broken == str(error)
        meter.add_listener(lambda *sample: back.set())
        assert back.wait(10.0) and not meter.broken


# The account.


def run_account(power, switches, end, hz=20.0, response=None):
    now, meter = setup(power, hz)
    meter.response = response or meter.response
    advance(now, meter, 0.5)
    account = Account(meter, clock=now).start(switches[0][1])
    events = [(t, lambda n=name: account.phase(n)) for t, name in switches[1:]]
    advance(now, meter, end, events)
    return account, account.result()


def alternate(start, end, draft_s, wait_s):
    switches, t = [(start, "draft")], start
    while t < end:
        t += draft_s
        switches.append((t, "wait"))
        t += wait_s
        switches.append((t, "draft"))
    return [s for s in switches if s[0] < end]


def test_phases_sum_to_the_total_exactly():
    account, entry = run_account(
        lambda t: 5 + 0.1 * math.sin(40 * t),
        [(0.5, "prefill"), (1.7, "draft"), (3.3, "wait")],
        6.1,
    )
    assert sum(entry["by_phase"].values()) == entry["joules"]
    assert entry["joules"] == pytest.approx(account.integral.joules[0], rel=1e-12)
    for name, half in entry["uncertainty_by_phase"].items():
        offset = 2 * 0.08 * entry["seconds_by_phase"][name] / math.sqrt(3)
        assert half > offset, "a phase has its part of the sensor's offset"
    assert entry["seconds_by_phase"]["draft"] == pytest.approx(1.6)
    assert sum(entry["seconds_by_phase"].values()) == pytest.approx(5.6)
    assert set(entry) >= {
        "joules", "source", "scope", "uncertainty", "by_phase", "why_null"
    }  # fmt: skip
    assert account.result() is entry


def test_phases_shorter_than_the_period_are_told_apart():
    """15 ms of drafting at 12 W, 35 ms of waiting at 4 W, sampled each 50 ms."""
    switches = alternate(0.5, 60.5, 0.015, 0.035)
    power = {name: watt for name, watt in (("draft", 12.0), ("wait", 4.0))}

    def at(t):
        return power["draft"] if (t - 0.5) % 0.05 < 0.015 else power["wait"]

    _, entry = run_account(at, switches, 60.5)
    watts = entry["watts_by_phase"]
    assert watts["draft"] == pytest.approx(12.0, rel=0.05)
    assert watts["wait"] == pytest.approx(4.0, rel=0.05)
    assert sum(entry["by_phase"].values()) == entry["joules"]
    # The same readings through a sensor of which nothing is known: nothing is claimed.
    account, entry = run_account(at, switches, 60.5, response=UNKNOWN_RESPONSE)
    assert entry["by_phase"] == {"draft": None, "wait": None}
    assert "known to" in entry["why_null_by_phase"]["draft"]
    assert entry["joules"] > 0 and account.watts_by_phase() == {}


def test_a_phase_that_no_sample_hit_is_marked():
    _, entry = run_account(
        lambda t: 5.0 + 0.04 * (int(t * 40) % 2),
        [(0.5, "draft"), (1.51, "transmit"), (1.513, "draft")],
        4.0,
    )
    assert entry["by_phase"]["transmit"] is None
    assert "samples fell into it" in entry["why_null_by_phase"]["transmit"]
    assert entry["by_phase"]["draft"] == pytest.approx(3.497 * 5.02, rel=0.02)


def test_tokens():
    now, meter = setup(lambda t: 5.0 + 0.01 * (int(t * 40) % 2))
    account = Account(meter, clock=now).start("draft")
    account.count(drafted=8, accepted=4)
    account.count(emitted=5)
    advance(now, meter, 2.0, [(1.0, lambda: account.phase("wait"))])
    entry = account.result()
    per, half = entry["per_token"], entry["uncertainty_per_token"]
    assert half["emitted"] == pytest.approx(entry["uncertainty"] / 5)
    assert half["drafted"] == pytest.approx(entry["uncertainty_by_phase"]["draft"] / 8)
    assert per["drafted"] == pytest.approx(5.0 / 8, rel=0.01)
    assert per["accepted"] == pytest.approx(10.0 / 4, rel=0.01)
    assert per["emitted"] == pytest.approx(10.0 / 5, rel=0.01)


def test_without_a_source_time_is_split_and_joules_are_null():
    now = Now()
    account = Account(None, why="no sensor on this board", clock=now).start("draft")
    for i in range(5000):
        now.ns += 1_000_000
        account.phase("wait" if i % 2 else "transmit")
    assert len(account._switches) < 2048 and account.watts_by_phase() == {}
    now.ns += 1_000_000
    entry = account.result()
    assert entry["joules"] is None and entry["by_phase"] is None
    assert entry["why_null"] == "no sensor on this board"
    assert sum(entry["seconds_by_phase"].values()) == pytest.approx(5.001)
    assert entry["per_token"]["emitted"] is None


def test_a_model_is_labelled_and_knows_its_limits():
    now = Now()
    model = ModelSource(
        "nano", {"draft": 8.0, "wait": 3.0}, uncertainty=0.3, origin="paper"
    )
    account = Account(None, model=model, clock=now).start("draft")
    now.ns = 10**9
    account.phase("wait")
    now.ns = 3 * 10**9
    assert account.joules() == pytest.approx(14.0)
    entry = account.result()
    assert entry["joules"] == pytest.approx(14.0)
    assert entry["source"] == "model:nano" and entry["kind"] == "modelled"
    assert "modelled" in entry["flags"]
    assert entry["uncertainty"] == pytest.approx(4.2)
    other = Account(None, model=model, clock=now).start("prefill")
    now.ns += 10**9
    entry = other.result()
    assert entry["joules"] == pytest.approx(8.0), "a short model lends its phases"
    assert "phase prefill not stated: taken as draft" in entry["notes"]
    other = Account(None, model=model, clock=now).start("thinking")
    now.ns += 10**9
    entry = other.result()
    assert entry["joules"] is None and "thinking" in entry["why_null"]


def test_budget():
    now, meter = setup(lambda t: 5.0 if t < 3.0 else None)
    account = Account(meter, clock=now).start("draft")
    budget, wide = Budget(account, 10.0), Budget(account, 1000.0)
    advance(now, meter, 1.9)
    assert not budget.exceeded() and budget.left() == pytest.approx(0.5)
    advance(now, meter, 2.1)
    assert budget.exceeded() and not wide.exceeded()
    advance(now, meter, 5.0)
    assert wide.left() is None and wide.exceeded(), "the sensor went silent"
    with pytest.raises(ConfigError, match="power source"):
        Budget(Account(None), 10.0)
    with pytest.raises(ConfigError, match="positive"):
        Budget(account, 0.0)


def test_watts_by_phase_for_the_controller():
    now, meter = setup(lambda t: (10.0 if t < 2 else 4.0) + 0.04 * (int(t * 40) % 2))
    account = Account(meter, clock=now).start("draft")
    advance(now, meter, 1.0)
    assert account.watts_by_phase() == {}, "too few samples steer nothing"
    advance(now, meter, 4.0, [(2.0, lambda: account.phase("wait"))])
    meter.read_now()
    watts = account.watts_by_phase()
    assert watts["draft"] == pytest.approx(10.0, rel=0.05)
    assert watts["wait"] == pytest.approx(4.0, rel=0.05)


# For other people's code.


def test_measure_as_context_and_decorator():
    now, meter = setup(lambda t: 5.0)
    with energy.measure("grasp", meter=meter) as m:
        advance(now, meter, 2.0)
    assert m.energy_j == pytest.approx(10.0) and m.scope == "module" and not m.why_null

    @energy.measure(meter=meter)
    def plan():
        advance(now, meter, 3.0)
        return 42

    assert plan() == 42
    assert plan.energy[-1].energy_j == pytest.approx(5.0)
    assert plan.energy[-1].label == "plan"


def test_measure_without_a_sensor_still_runs_the_code(tmp_path):
    with energy.measure("grasp", source="sysfs", root=tmp_path) as m:
        done = True
    assert done and m.energy_j is None and "INA3221" in m.why_null


def test_the_room_is_light_to_import():
    code = "import sys, draftwire.energy; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_the_sampler_costs_little():
    """Processor time of a thousand samples: 20 a second take under 1 % of a core."""
    now, meter = setup(lambda t: 5.0 + (t % 0.3))
    account = Account(meter, clock=now).start("draft")
    begin = time.process_time()
    advance(now, meter, 50.0)
    per_sample = (time.process_time() - begin) / 1000
    account.result()
    assert 20 * per_sample < 0.01


def test_the_pi5_estimate_is_a_note_and_not_a_measurement():
    now = Now()
    tables = energy.load_tables()
    pi = next(table for table in tables if table.board == "raspberry-pi-5")
    choice = TotalChoice(Total("pmic-rails", ("VDD_IN",)), table=pi)
    meter = Meter(Fake(now, lambda t: 7.24), choice, clock=now)
    with meter.window() as window:
        advance(now, meter, 1.0)
    (note,) = [text for text in window.result.notes if "estimated" in text]
    assert "8.88 J" in note and window.energy_j == pytest.approx(7.24)
