"""Simulated sessions that are one gateway: whose turn it is, and what they share."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.command import Question, answer, row_of
from draftwire.bench.sim.device import Accelerator, VirtualEngine
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate, synthetic_of
from draftwire.bench.sim.texts import Synthetic, TextDraft, parse_luck
from draftwire.cli import main
from draftwire.clock import VirtualClock
from draftwire.errors import ConfigError
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.sampling import SamplingParams, make_proposer

LLAMA = find("agx-a100-llama")
STEP_MS = 10
TEXT = Synthetic(parse_luck("1.0"), prompt_tokens=5).text(0, 60)


class Session:
    """An engine with orders of stream 1, of which ``out`` drafts are not judged."""

    def __init__(self, name, accelerator, clock, log, out=0):
        self.name, self.clock, self.log = name, clock, log
        self.drafter = Drafter(None, TEXT.width)
        self.engine = VirtualEngine(
            clock, self.drafter, lambda _: STEP_MS / 1e3, 0.0, accelerator
        )
        self.engine.driver, self.drafter.stream = self, 1
        self.streams = {1: SimpleNamespace(machine=SimpleNamespace(out=(0, out)))}
        greedy = SamplingParams("greedy", 0.0)
        self.drafter.begin(1, make_proposer(greedy, TEXT.width), None, TextDraft(TEXT))

    def order(self, count, branch=1, out=None):
        if out is not None:
            self.streams[1].machine.out = (0, out)
        self.drafter.submit(1, Draft(branch, 0, TEXT.prompt, count))
        self.engine.wake()

    def stepped(self, step, seconds):
        times = [round(1e3 * s) for s in (self.clock.now(), seconds)]
        self.log.append((*times, self.name))


def gateway(*outs):
    """Return a clock, what happens, and a session for each number of drafts out."""
    clock, log = VirtualClock(), []
    accelerator = Accelerator(clock)
    named = zip("abcd", outs)
    return clock, log, [Session(n, accelerator, clock, log, out) for n, out in named]


def test_who_drafts_behind_judged_text_goes_first_then_the_least_far_ahead():
    clock, log, (a, b, c, d) = gateway(0, 3, 1, 0)
    for one in (a, b, c, d):  # a begins at once
        one.order(2)
    clock.run()
    # One step at a time; a block that was begun behind judged text is not held up.
    assert [(at, name) for at, _, name in log] == [
        (10 * i, name) for i, name in enumerate("aaddccbb", 1)
    ]
    # What a driver learns of its pace has the turns of the others in it.
    assert [ms for _, ms, _ in log] == [10, 10, 30, 10, 50, 10, 70, 10]


def test_a_verdict_moves_a_session_to_the_end_of_those_behind_judged_text():
    clock, log, (a, b, c) = gateway(2, 0, 5)
    a.order(3)
    b.order(3)
    c.order(2)
    clock.call_at(0.025, c.order, 2, 2, 0)  # its verdict comes while b drafts
    clock.call_at(0.035, a.order, 1, 2, 0)
    clock.run()
    assert [name for _, _, name in log] == [*"abbb", *"cc", "a"]


def test_a_session_that_is_closed_leaves_its_turns_to_the_others():
    clock, log, (a, b) = gateway(0, 0)
    a.order(5)
    b.order(2)
    clock.call_at(0.015, a.engine.close)
    clock.run()
    assert [name for _, _, name in log] == ["a", "a", "b", "b"]


def plan(scheme, sessions, profile=LLAMA, **options):
    options = {"streams": 1, "tokens": 60, "gateway": True, **options}
    return Plan(profile, scheme_named(scheme), sessions=sessions, **options)


@pytest.mark.parametrize("name", ["await", "earlyexit", "picospec", "ours", "colocated"])
def test_one_session_is_what_it_is_without(name):
    one = plan(name, 1, link=LinkSpec.parse("40ms/5mbit/jitter=8ms/loss=1%"))
    whole, alone = (simulate(replace(one, gateway=on)) for on in (True, False))
    seen = [
        json.dumps([row_of(found), [s.seen for s in found.streams], found.reports])
        for found in (whole, alone)
    ]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["picospec", "ours", "auto", "hybrid", "colocated"])
def test_a_gateway_writes_the_targets_texts_over_a_bad_link(name):
    source = synthetic_of(LLAMA, 1)
    link = LinkSpec.parse("60ms/2mbit/jitter=10ms/loss=3%/outages=4s:500ms")
    outcome = simulate(plan(name, 3, link=link, source=source, tokens=40))
    for number, stream in enumerate(outcome.streams):
        assert tuple(stream.ids) == source.text(number, 40).tokens
        assert stream.energy["joules"] is None
        assert "several sessions" in stream.energy["why_null"]


def test_waits_are_filled_with_the_work_of_others_until_there_are_none():
    link = LinkSpec.parse("400ms")  # a token takes 24 ms of drafting and 545 of waiting
    waits = {n: simulate(plan("await:1", n, link=link, tokens=30)) for n in (1, 4)}
    assert waits[4].ms_per_token < 1.3 * waits[1].ms_per_token
    crowd = simulate(plan("await:4", 8, link=LinkSpec.parse("40ms")))
    steps_s = 0.024 * sum(s.counts.proposed for s in crowd.streams)
    assert 0.85 * crowd.seconds < steps_s < crowd.seconds  # one at a time, and no pause
    own = simulate(plan("await:4", 8, link=LinkSpec.parse("40ms"), gateway=False))
    assert 0.024 * sum(s.counts.proposed for s in own.streams) > 1.5 * own.seconds


def test_the_uplink_is_shared():
    quick = LLAMA.replaced("assumed", "a test", draft__step_ms=0.01)
    crowd = plan("vanilla", 4, quick, link=LinkSpec.parse("10ms/10mbit"), tokens=30)
    apart = simulate(replace(crowd, gateway=False))
    assert simulate(crowd).ms_per_token > 2.5 * apart.ms_per_token


def test_the_command_says_what_a_gateway_makes_of_all(capsys):
    asked = Question(schemes="await,cloud", tokens=20, streams=1, sessions=2, gateway=True)
    found = answer(asked)
    row = found["rows"][0]
    every = row["tokens"] / row["simulated_s"]
    assert row["tokens_per_s_of_all"] == pytest.approx(every)
    assert any("One gateway: its 2 sessions" in note for note in found["notes"])
    words = ["--scheme", "await", "--tokens", "20", "--streams", "1"]
    assert main(["bench", "simulate", *words, "--sessions", "2", "--gateway"]) == 0
    assert "all tokens/s" in capsys.readouterr().out
    assert main(["bench", "simulate", *words, "--gateway"]) == 0  # of one session
    assert "all tokens/s" not in capsys.readouterr().out


def test_what_nobody_knows_of_a_gateway_is_said():
    asked = Question(schemes="await", sessions=2, gateway=True, tokens=20, streams=1)
    with pytest.raises(ConfigError, match="several sessions"):
        answer(replace(asked, objective="energy", block="best"))


@pytest.mark.parametrize("shared", [False, True])
def test_real_models_of_several_sessions_have_caches_of_their_own(shared):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    asked = Question(real="v1", schemes="await", tokens=8, streams=1, runs=True)
    alone = answer(replace(asked, streams=2))["runs"]
    crowd = answer(replace(asked, sessions=2, gateway=shared))["runs"]
    assert [one["token_ids"] for one in crowd] == [one["token_ids"] for one in alone]
    assert [one["accepted"] for one in crowd] == [one["accepted"] for one in alone]
