"""The fleet study: its machine against what can be computed by hand, and its rules."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from draftwire.cli._leaf import add_flags
from studies.fleet.__main__ import FLAGS, most_devices, render, spread, study
from studies.fleet.machine import MODES, Board, Load, World, simulate

STEADY = Load(think_s=1e-9, prompt=1, text=400.0)


def test_one_device_takes_the_times_that_its_parts_take():
    world = World(board=Board(acceptance=1.0, rtt_s=0.1), load=STEADY)
    plain = simulate(world, "streaming", 1, 1)
    step = world.server.forward(1, 0)
    assert np.median(plain.token_s) == pytest.approx(step, rel=0.1)
    # Every draft right: five tokens a round trip and a forward, the drafting hidden in it.
    edge = simulate(replace(world, seconds=300.0), "edge", 1, 1)
    rtt = 0.1 * np.random.default_rng(1).lognormal(0.0, np.log(1.5))
    assert edge.seconds / edge.tokens == pytest.approx((rtt + step) / 5, rel=0.1)
    assert edge.tokens / edge.forwards == pytest.approx(5, rel=0.15)


def test_drafts_that_are_never_right_bring_a_token_a_forward():
    wrong = World(board=Board(acceptance=0.0), load=STEADY)
    for mode in ("edge", "colocated"):
        out = simulate(wrong, mode, 1, 2)
        assert out.tokens == pytest.approx(out.forwards, rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_one_device_more_than_a_verifier_bears_is_too_many(mode):
    assert most_devices(World(seconds=10.0), mode) > 64
    assert most_devices(World(load=Load(slow_s=0.001), seconds=10.0), mode) == 0


def test_the_gateways_rule_bounds_what_the_ring_gives():
    plain, bound = (spread(50, 5000, bounded=b) for b in (False, True))
    assert sum(plain.values()) == sum(bound.values()) == 5000
    assert max(bound.values()) <= 126 < max(plain.values())


def test_the_study_runs_and_prints_its_tables(monkeypatch):
    parser = argparse.ArgumentParser()
    add_flags(parser, FLAGS)
    args = parser.parse_args(["--devices", "300", "--seconds", "5"])
    monkeypatch.setattr("studies.fleet.__main__.spread", _even)
    document = study(args, lambda line: None)
    text = render(document)
    for mode in MODES:
        assert f"| {mode} | 300 |" in text
    for row in document["rows"]:
        assert row["tokens_per_s"] > 0
        assert row["dollars_per_million"] > 0


def _even(verifiers, devices, *, bounded):
    return Counter({str(i): devices // verifiers for i in range(verifiers)})
