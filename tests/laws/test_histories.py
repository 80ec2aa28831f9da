"""Laws 1 and 2, and liveness, over random histories of the shipped driver and verifier.

``make test`` runs 10,000 over all families; ``make slow`` 10,000 of each family and of each
addition (patience, hush, leaves, lookup, outcomes, hybrid), and 500 long ones.
"""

import dataclasses
import logging
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import Fault, Plan, StreamPlan

from draftwire.errors import BusyError, ProtocolError, VerifierError
from draftwire.runtime.edge.mode import Mode
from draftwire.transport.messages import Commit, Provisional

HISTORIES = int(os.environ.get("DRAFTWIRE_HISTORIES", "10000"))
PARTS = 8
MECHANISMS = sorted(world.MECHANISMS)


def run_part(mechanism, first, count, step, long):
    logging.disable(logging.CRITICAL)  # lost links by the thousand
    for seed in range(first, count, step):
        world.check_history(seed, mechanism, long)


def run(count, mechanisms=MECHANISMS, *, long=False):
    """Run ``count`` histories of each mechanism on every core."""
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(run_part, mechanism, part, count, PARTS, long)
            for part in range(PARTS)
            for mechanism in mechanisms
        ]
        for job in jobs:
            job.result()


@pytest.mark.timeout(600)
def test_histories():
    run(HISTORIES // len(MECHANISMS))


@pytest.mark.timeout(600)
def test_long_histories():
    """Over 1,500 tokens: epochs wrap."""
    run(3, long=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_conversations_in_a_grammar_with_penalties_and_log_probabilities(mechanism):
    """All of it at once, while links break and what both ends hold goes at any moment."""
    if not world.GRAMMARS:
        pytest.skip("llguidance is not installed")
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(40):
            dice = world.Dice(seed)
            plan = world.draw_plan(dice, mechanism)
            system = tuple(dice.whole(0, world.VOCAB - 1) for _ in range(120))
            turns = []
            for turn in range(4):
                drawn = world.draw_stream(dice, mechanism, turn * 0.7, False)
                changes = {"shape": "penalties", "grammar": dice.one_of(world.GRAMMARS)}
                changes.update(scheme="", logprobs=2, forcing=dice.one_of([False, True]))
                prompt = (*system, *drawn.prompt)
                drawn = dataclasses.replace(drawn, prompt=prompt, **changes)
                turns.append(dataclasses.replace(drawn, follows=turn > 0))
            kinds = ("evict", "forget", "evict", "cut", "restart", "swallow")
            faults = sorted(
                (
                    Fault(dice.whole(0, 300) / 100, dice.one_of(kinds), 0.5)
                    for _ in range(5)
                ),
                key=lambda fault: fault.at_s,
            )
            world.check(
                dataclasses.replace(
                    plan,
                    streams=tuple(turns),
                    faults=tuple(faults),
                    connects=(),
                    context=1 << 20,
                    shared=120,
                )
            )
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mechanism", [*MECHANISMS, *world.ADDITIONS])
def test_10000_histories_of_each_mechanism(mechanism):
    run(max(HISTORIES, 10_000), [mechanism])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_500_long_histories():
    run(500 // len(MECHANISMS), long=True)


class Draw:
    """Draws of a plan that hypothesis can shrink."""

    def __init__(self, data):
        self._draw = data.draw

    def whole(self, low, high):
        return self._draw(st.integers(low, high))

    def one_of(self, things):
        return self._draw(st.sampled_from(list(things)))


@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(st.data())
def test_histories_that_shrink(data):
    logging.disable(logging.CRITICAL)
    try:
        world.check(world.draw_plan(Draw(data)))
    finally:
        logging.disable(logging.NOTSET)


def test_what_a_verifier_has_dropped_holds_nothing_back():
    """A branch given up twice before its verdict: the next block once waited for ever."""
    stream = StreamPlan(
        prompt=(20, 15, 0),
        count=9,
        seed=635921674,
        mode=Mode.of(pipeline=3, preempt="exits,outcomes", cut=True),
        k=4,
    )
    quick = {"delay_s": 0.0, "jitter": 0.0, "step_s": 0.0, "forward_s": 0.002}
    world.check(Plan((stream,), luck=0.0, context=60, max_block=5, seed=660721132, **quick))


def test_what_an_exit_said_before_the_link_was_lost_holds_nothing_back():
    """It has no evidence, so it cannot be sent, and no verdict comes: it once stayed."""
    mode = Mode.of(objective="auto", pipeline=3, preempt="exits,outcomes", cut=True)
    other = StreamPlan(
        prompt=(15, 3, 16), count=4, seed=346468237, mode=mode, k=1, patience_s=3.0,
        grammar="any", offline="error", stops=(3,), draft_context=23, cancel_s=0.98,
    )  # fmt: skip
    stream = StreamPlan(
        prompt=(17,), count=6, scheme="qs", seed=36909300, mode=mode, k=3, off=True,
        grammar="long", forcing=True, patience_s=30.0,
    )  # fmt: skip
    slow = {"delay_s": 0.2, "jitter": 0.0, "step_s": 0.05, "forward_s": 0.1}
    world.check(
        Plan(
            (other, stream),
            (Fault(1.2, "restart", 3.0),),
            luck=0.5,
            context=60,
            max_block=5,
            most=2,
            holds=True,
            seed=247959812,
            **slow,
        )
    )


def one(*faults, connects=(), **stream):
    """Run one stream through ``faults``; return what its user saw, and the world."""
    stream = {"prompt": (1, 2, 3), "count": 40, "patience_s": 30.0, **stream}
    plan = Plan((StreamPlan(**stream),), faults, connects)
    found = world.check(plan)
    return found.sinks[0], found


@pytest.mark.parametrize("outcome", ["502", "503", "reset", "nonsense", "hang"])
@pytest.mark.parametrize("offline", ["wait", "draft"])
def test_an_answer_of_an_unknown_kind_is_tried_again(outcome, offline):
    sink, _ = one(Fault(0.3, "cut"), connects=("ok", outcome, outcome), offline=offline)
    assert sink.run.finish == "length" and sink.run.reconnects == 1


@pytest.mark.parametrize("outcome", ["401", "incompatible"])
def test_a_refusal_for_good_ends_the_stream_with_its_own_name(outcome):
    sink, found = one(Fault(0.3, "cut"), connects=("ok", outcome))
    assert sink.run.finish == "error"
    assert type(sink.error) is type(world.REFUSALS[outcome]())
    assert found.driver.link.failed


def test_a_full_verifier_is_not_stormed():
    sink, found = one(Fault(0.0, "full", 20.0), patience_s=60.0)
    assert sink.run.finish == "length"
    assert len(found.wires) <= 14, "pauses grow although every greeting succeeds"


def test_a_full_verifier_is_an_error_within_patience():
    """Although one connection after another comes to be."""
    sink, _ = one(Fault(0.0, "full", 500.0), patience_s=4.0)
    assert sink.run.finish == "error" and isinstance(sink.error, BusyError)
    assert sink.run.ended_s == pytest.approx(4.0, abs=0.1)


def test_a_verifier_that_falls_silent_is_an_error_within_patience():
    sink, _ = one(Fault(0.3, "mute", 500.0), patience_s=4.0)
    assert sink.run.finish == "error" and "no verdict for 4 s" in str(sink.error)


@pytest.mark.parametrize("at_s", [0.31, 0.52, 0.8])
def test_a_swallowed_flow_goes_on_within_three_seconds_at_80_ms(at_s):
    plan = Plan(
        (StreamPlan(prompt=(1, 2, 3), count=40),),
        (Fault(at_s, "swallow"),),
        delay_s=0.04,
        jitter=0.0,
    )
    whole = world.check(dataclasses.replace(plan, faults=()))
    found = world.check(plan)
    lost = found.sinks[0].run.ended_s - whole.sinks[0].run.ended_s
    assert found.sinks[0].run.reconnects == 1 and lost <= 3.0


@pytest.mark.parametrize("kind", ["engine", "nan", "callback"])
def test_a_fault_of_our_own_ends_one_stream_and_the_next_works(kind):
    plan = Plan(
        (
            StreamPlan(prompt=(1, 2, 3), count=40),
            StreamPlan(at_s=5.0, prompt=(4, 5), count=12),
        ),
        (Fault(0.2, kind),),
    )
    found = world.check(plan)
    first, second = world.sorted_sinks(found)
    assert first.run.finish == "error" and first.run.reconnects == 0
    assert second.run.finish == "length" and second.run.reconnects == 0
    words = {"engine": "planted: the engine", "nan": "not numbers", "callback": "callback"}
    assert words[kind] in str(first.error)
    # The peer was told: nothing waits there for a device that will not come.
    assert len(found.kept) == 0


def test_a_verifiers_own_error_is_no_lost_link():
    sink, _ = one(Fault(0.2, "internal"))
    assert sink.run.finish == "length" and sink.run.reconnects == 0
    assert any("planted: the target fails" in w for w in sink.run.warnings)
    sink, _ = one(Fault(0.2, "internal"), Fault(0.2, "internal"))
    assert sink.run.finish == "error" and isinstance(sink.error, VerifierError)


def test_a_deadline_is_kept_while_nothing_gets_through():
    sink, _ = one(Fault(0.1, "stall", 4.0), deadline_s=0.5)
    assert sink.run.finish == "deadline"
    assert sink.run.ended_s - sink.run.began_s == pytest.approx(0.5)


def test_streams_at_once_share_the_draft_model_and_no_text():
    streams = tuple(
        StreamPlan(at_s=i / 50, prompt=(i, 2, 3), count=40, sampled=bool(i % 2), seed=i)
        for i in range(4)
    )
    found = world.check(Plan(streams))
    assert all(sink.run.finish == "length" for sink in found.sinks)
    said = [bool(sink.run.warnings) for sink in world.sorted_sinks(found)]
    assert said == [False, True, True, True]
    cancelled = dataclasses.replace(streams[1], cancel_s=0.2)
    found = world.check(Plan((streams[0], cancelled, *streams[2:])))
    assert [s.run.finish for s in world.sorted_sinks(found)].count("length") == 3


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_the_report_says_of_forwards_is_what_ran(mechanism):
    """Forwards whose verdict was lost with the link count as well."""
    for seed in range(40):
        plan = world.draw_plan(world.Dice(seed), mechanism)
        stream = dataclasses.replace(
            plan.streams[0],
            patience_s=300.0,
            offline="wait",
            cancel_s=None,
            deadline_s=None,
        )
        # A stream whose `opened` was lost is opened anew: what it had is nobody's.
        first_s = 3 * plan.delay_s
        cuts = tuple(Fault(0.1 * i + 0.03 + first_s, "cut") for i in range(seed % 4))
        found = world.check(
            dataclasses.replace(
                plan, streams=(stream,), faults=cuts, connects=(), jitter=0.0
            )
        )
        true = sum(rows > 0 for call in found.target.ran for *_, rows in call)
        assert found.sinks[0].run.machine.counts.forwards == true, seed


@pytest.mark.parametrize(
    ("context", "count"), [(10, 60), (4, 30), (25, 60)], ids=["short", "tiny", "most"]
)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_target_outlives_its_draft(context, count, mechanism):
    for mode in world.MECHANISMS[mechanism]:
        sink, _ = one(draft_context=context, count=count, mode=mode)
        assert len(sink.shown) == count and sink.run.finish == "length"


def test_a_verifier_that_loses_a_token_on_resume_is_caught(monkeypatch):
    """The histories can fail: a planted mistake breaks some of them."""
    honest = world.KeptStreams.session_class.resume

    def forgetful(self, position):
        answer = honest(self, position)
        return dataclasses.replace(answer, tokens=answer.tokens[1:])

    monkeypatch.setattr(world.KeptStreams.session_class, "resume", forgetful)
    with pytest.raises((AssertionError, ProtocolError)):
        for seed in range(1000):
            world.check(world.draw_plan(world.Dice(seed)))


def test_an_early_exit_that_is_taken_for_a_verdict_is_caught(monkeypatch):
    """Nor may provisional tokens become text: this mistake must show."""
    from draftwire.runtime.edge.machine import EdgeSession

    honest = EdgeSession.message

    def hasty(self, message):
        if isinstance(message, Provisional):
            message = Commit(message.epoch, message.accepted, message.token)
        return honest(self, message)

    monkeypatch.setattr(EdgeSession, "message", hasty)
    with pytest.raises((AssertionError, ProtocolError)):
        for seed in range(300):
            world.check(world.draw_plan(world.Dice(seed), "preempt"))
