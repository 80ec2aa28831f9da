"""Hush: no step whose work the next verdict would probably void; never for long."""

import math
from dataclasses import replace

import pytest

from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.runtime.edge.rest import Hush


def known(judged=40, right=24):
    hush = Hush()
    hush.verdict(1.0, 0.1, judged, right)
    return hush


def test_it_waits_for_news_that_are_due_before_a_step_ends():
    hush = known()
    assert hush.until_s(1.01, 0.02, 9) == 1.01, "it ends before them"
    assert hush.until_s(1.09, 0.02, 9) == pytest.approx(1.15)
    assert hush.until_s(1.09, 0.02, 1) == 1.09, "that may well be of use"
    assert hush.until_s(1.2, 0.02, 9) == 1.2, "news that are late are not waited for"


def test_a_draft_that_is_mostly_right_goes_on():
    assert known(400, 395).until_s(1.09, 0.02, 9) == 1.09
    assert known(40, 0).until_s(1.09, 0.02, 1) > 1.09


def test_where_it_pays_in_simulation():
    """Long forwards, a short trip, a draft that is often wrong."""
    profile = find("agx-a100-llama").replaced(
        "assumed", "a test", link__rtt_ms=80.0, text__acceptance=0.6,
        cloud__read_ms_per_token=0.0, draft__read_ms_per_token=0.0,
        link__up_mbit_s=math.inf, link__down_mbit_s=math.inf,
    )  # fmt: skip
    plan = Plan(profile, scheme_named("cloud"), streams=1, tokens=600)
    loud = simulate(replace(plan, scheme=scheme_named("race+patience")))
    quiet = simulate(replace(plan, scheme=scheme_named("race+patience+hush")))
    assert quiet.ms_per_token < 0.99 * loud.ms_per_token
