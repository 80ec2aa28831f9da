"""Laws 1 and 2, and liveness, where the target's engine keeps streams itself.

The same histories as tests/laws/test_histories.py, on an engine that behaves as vLLM was
seen to (tests/helpers/fake_engine.py), and that dies now and then.
"""

import pytest
import world
from world import EngineWorld, Fault, Plan, StreamPlan, quiet

from draftwire.errors import ModelError
from draftwire.runtime.edge.mode import Mode
from draftwire.verifier.target_session import TargetSession

HISTORIES = 500
MECHANISMS = sorted(world.MECHANISMS)


@pytest.mark.timeout(600)
def test_histories():
    with quiet():
        found = [
            world.check_history(seed, mechanism, kind=EngineWorld).target
            for seed in range(HISTORIES // len(MECHANISMS))
            for mechanism in MECHANISMS
        ]
    # What they are for has happened in them.
    for what in ("deaths", "merged", "unasked"):
        assert sum(getattr(target, what) for target in found) > 20, what


def one(*faults, seed=0, **stream):
    sink, found = world.one(*faults, plan={"seed": seed}, kind=EngineWorld, **stream)
    return sink.run, found.target


@pytest.mark.parametrize("mode", [Mode(preempt=frozenset()), Mode.of("latency")])
def test_what_the_report_says_of_forwards_is_what_ran(mode):
    for seed in range(0, 30, 3):  # nothing odd: no step is lost
        run, target = one(seed=seed, mode=mode)
        read = len(target.ran)  # steps that read a prompt
        ran = target.ran.total()
        assert run.machine.counts.forwards in (ran - read, ran)


def test_where_the_device_waits_the_engine_does():
    """After a rejection it is the device's turn: no forward runs that nobody asked for."""
    run, target = one(seed=6, k=6)  # it looks at seven drafts in a step
    counts = run.machine.counts
    assert counts.drafted and target.steps <= counts.rounds + 1


@pytest.mark.parametrize("at_s", [0.0, 0.11, 0.3, 0.52])
def test_an_engine_that_dies_costs_time_and_no_text(at_s):
    run, target = one(Fault(at_s, "death", 3.0))
    assert run.finish == "length" and run.reconnects == 0 and not run.warnings
    assert target.deaths == 1


def test_an_engine_that_is_full_is_asked_again():
    plans = tuple(StreamPlan(prompt=(i, 2), count=12, patience_s=60.0) for i in range(9))
    found = world.check(Plan(plans), EngineWorld)  # eight fit
    assert all(sink.run.finish == "length" for sink in found.sinks)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("base", lambda push: push._replace(base=push.base + 1)),
        ("asks", lambda push: push._replace(asks=0, ahead=0)),
    ],
)
def test_a_wrong_push_is_caught(monkeypatch, name, change):
    """The histories can fail: a planted mistake breaks some of them."""
    honest = TargetSession.offer
    monkeypatch.setattr(TargetSession, "offer", lambda self: change(honest(self)))
    with pytest.raises((AssertionError, ModelError)):
        for seed in range(50):
            world.check(world.draw_plan(world.Dice(seed), "pipeline"), EngineWorld)


def test_a_step_that_is_taken_twice_is_caught(monkeypatch):
    honest = TargetSession.advance

    def again(self, step):
        return honest(self, step) + honest(self, step._replace(drafted=0))

    monkeypatch.setattr(TargetSession, "advance", again)
    with pytest.raises((AssertionError, ModelError)):
        world.check(Plan(), EngineWorld)
