"""Laws 1 and 2, and liveness, over random histories of the shipped driver and verifier.

``make test`` runs 10,000 over all families; ``make slow`` 10,000 of each family and of each
addition (patience, hush, leaves, sides, lookup, outcomes...), and 500 long ones.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import world
from world import Fault, Plan, StreamPlan, World, one, quiet

from draftwire.errors import BusyError, ProtocolError, RefusedError, VerifierError
from draftwire.runtime.edge.machine import EdgeSession
from draftwire.runtime.edge.mode import Mode
from draftwire.transport.messages import Commit, Provisional

HISTORIES = int(os.environ.get("DRAFTWIRE_HISTORIES", "10000"))
PARTS = 8
MECHANISMS = sorted(world.MECHANISMS)


def run_part(mechanism, first, count, step, long):
    with quiet():
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
    kinds = ("evict", "forget", "evict", "cut", "restart", "swallow")
    with quiet():
        for seed in range(40):
            dice = world.Dice(seed)
            plan = world.draw_plan(dice, mechanism)
            system = tuple(dice.whole(0, world.VOCAB - 1) for _ in range(120))
            turns = []
            for turn in range(4):
                drawn = world.draw_stream(dice, mechanism, turn * 0.7, False)
                changes = {"shape": "penalties", "grammar": dice.one_of(world.GRAMMARS)}
                changes.update(scheme="", logprobs=2, forcing=dice.one_of([False, True]))
                changes.update(prompt=(*system, *drawn.prompt), follows=turn > 0)
                turns.append(replace(drawn, **changes))
            struck = [(dice.whole(0, 300) / 100, dice.one_of(kinds)) for _ in range(5)]
            faults = tuple(Fault(at_s, kind, 0.5) for at_s, kind in sorted(struck))
            changes = {"connects": (), "context": 1 << 20, "shared": 120}
            world.check(replace(plan, streams=tuple(turns), faults=faults, **changes))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mechanism", [*MECHANISMS, *world.ADDITIONS])
def test_10000_histories_of_each_mechanism(mechanism):
    run(max(HISTORIES, 10_000), [mechanism])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_500_long_histories():
    run(500 // len(MECHANISMS), long=True)


CUT = Mode.of(pipeline=3, preempt="exits,outcomes", cut=True)
CUT_AUTO = replace(CUT, objective="auto")
SEEN = {
    # A branch given up twice before its verdict: the next block waited for ever.
    "what a verifier has dropped holds nothing back": Plan(
        (StreamPlan(prompt=(20, 15, 0), count=9, seed=635921674, mode=CUT, k=4),),
        luck=0.0, context=60, max_block=5, seed=660721132, delay_s=0.0, jitter=0.0,
        step_s=0.0, forward_s=0.002,
    ),
    # It has no evidence, so it cannot be sent, and no verdict comes: it stayed.
    "what an exit said before the link was lost holds nothing back": Plan(
        (
            StreamPlan(
                prompt=(15, 3, 16), count=4, seed=346468237, mode=CUT_AUTO, k=1,
                grammar="any" if world.GRAMMARS else "", offline="error", stops=(3,),
                draft_context=23, cancel_s=0.98, patience_s=3.0,
            ),
            StreamPlan(
                prompt=(17,), count=6, scheme="qs", seed=36909300, mode=CUT_AUTO, k=3,
                off=True, grammar="long" if world.GRAMMARS else "",
            ),
        ),
        (Fault(1.2, "restart", 3.0),), luck=0.5, context=60, max_block=5, most=2,
        holds=True, seed=247959812, delay_s=0.2, jitter=0.0, step_s=0.05, forward_s=0.1,
    ),
    # Drawn on the device, and never told: the text was whole, and a new stream asked for 0.
    "a correction that ends a text is its end, though the link is lost": Plan(
        (
            StreamPlan(
                at_s=1.0608, prompt=(21, 3, 4, 3), count=6, scheme="separate", k=2,
                grammar="choice" if world.GRAMMARS else "", seed=546759346, patience_s=3.0,
                mode=CUT,
            ),
        ),
        (Fault(1.2272, "torn", 1.1),), luck=0.5, max_waiting=9, leaves=4, seed=958353975,
        delay_s=0.02, jitter=1.0, step_s=0.005, forward_s=0.002, context=1 << 20,
        parallel=5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("plan", SEEN.values(), ids=SEEN)
def test_histories_that_once_failed(plan):
    world.check(plan)


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


def test_a_stream_bears_neighbours_that_fill_the_verifier_and_takes_their_room_at_once():
    streams = [StreamPlan(prompt=(n,), count=300, patience_s=2.0) for n in range(8)]
    streams += [StreamPlan(prompt=(n,), count=9, patience_s=2.0) for n in range(2)]
    found = World(Plan(tuple(streams)))
    found.run()
    runs = [sink.run for sink in found.sinks]
    assert [run.finish for run in runs] == ["length"] * 10
    freed = min(run.ended_s for run in runs[:8])
    assert freed > 5.0 and max(run.ended_s for run in runs[8:]) < freed + 1.0


def test_a_verifier_that_falls_silent_is_an_error_within_patience():
    sink, _ = one(Fault(0.3, "mute", 500.0), patience_s=4.0)
    assert sink.run.finish == "error" and "no verdict for 4 s" in str(sink.error)


@pytest.mark.parametrize("at_s", [0.31, 0.52, 0.8])
def test_a_swallowed_flow_goes_on_within_three_seconds_at_80_ms(at_s):
    slow = {"delay_s": 0.04, "jitter": 0.0}
    (whole, _), (found, _) = one(plan=slow), one(Fault(at_s, "swallow"), plan=slow)
    assert found.run.reconnects == 1
    assert found.run.ended_s - whole.run.ended_s <= 3.0


@pytest.mark.parametrize("kind", ["engine", "nan", "callback"])
def test_a_fault_of_our_own_ends_one_stream_and_the_next_works(kind):
    later = StreamPlan(at_s=5.0, prompt=(4, 5), count=12)
    _, found = one(Fault(0.2, kind), others=(later,))
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


@pytest.mark.parametrize("offline", ["wait", "draft", "error"])
def test_an_idle_link_that_is_shown_out_sleeps_until_a_stream_asks(offline):
    later = StreamPlan(at_s=400.0, prompt=(4, 5), count=12, offline=offline)
    even = {"jitter": 0.0}  # the last word comes before the end
    _, found = one(Fault(300.0, "idle"), others=(later,), plan=even)
    later = world.sorted_sinks(found)[1]
    assert later.run.finish == "length" and found.driver.link.reconnects == 0
    assert len(found.wires) == 2 and not later.run.warnings

    # As soon as that, and in its own words, it hears of a token that was revoked meanwhile.
    later = StreamPlan(at_s=400.0, prompt=(4, 5), count=12, offline=offline)
    refused = ("ok", "401")
    _, found = one(Fault(300.0, "idle"), others=(later,), connects=refused, plan=even)
    later = world.sorted_sinks(found)[1]
    if offline == "draft":
        assert "cannot be had any more: 401" in later.run.warnings[0]
    else:
        assert isinstance(later.error, RefusedError)


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
    cancelled = replace(streams[1], cancel_s=0.2)
    found = world.check(Plan((streams[0], cancelled, *streams[2:])))
    assert [s.run.finish for s in world.sorted_sinks(found)].count("length") == 3


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_the_report_says_of_forwards_is_what_ran(mechanism):
    """Forwards whose verdict was lost with the link count as well."""
    for seed in range(40):
        plan = world.draw_plan(world.Dice(seed), mechanism)
        calm = {"offline": "wait", "cancel_s": None, "deadline_s": None}
        stream = replace(plan.streams[0], patience_s=300.0, **calm)
        # A stream whose `opened` was lost is opened anew: what it had is nobody's.
        first_s = 3 * plan.delay_s
        cuts = tuple(Fault(0.1 * i + 0.03 + first_s, "cut") for i in range(seed % 4))
        changes = {"faults": cuts, "connects": (), "jitter": 0.0}
        found = world.check(replace(plan, streams=(stream,), **changes))
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
        return replace(answer, tokens=answer.tokens[1:])

    monkeypatch.setattr(world.KeptStreams.session_class, "resume", forgetful)
    with pytest.raises((AssertionError, ProtocolError)):
        for seed in range(1000):
            world.check(world.draw_plan(world.Dice(seed)))


def test_an_early_exit_that_is_taken_for_a_verdict_is_caught(monkeypatch):
    """Nor may provisional tokens become text: this mistake must show."""
    honest = EdgeSession.message

    def hasty(self, message):
        if isinstance(message, Provisional):
            message = Commit(message.epoch, message.accepted, message.token)
        return honest(self, message)

    monkeypatch.setattr(EdgeSession, "message", hasty)
    with pytest.raises((AssertionError, ProtocolError)):
        for seed in range(300):
            world.check(world.draw_plan(world.Dice(seed), "preempt"))
