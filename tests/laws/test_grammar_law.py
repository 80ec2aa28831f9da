"""Laws under a grammar: forced ids come at no price, and text keeps to it whatever fails.

That its distribution is the target's, restricted, is in test_pipelined_laws.py.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("llguidance")
import world  # noqa: E402
from pieces import plain_text  # noqa: E402
from world import Plan, StreamPlan, World  # noqa: E402

from draftwire.runtime.edge.mode import Mode  # noqa: E402

QUICK = {"delay_s": 0.0, "jitter": 0.0, "step_s": 0.0, "forward_s": 0.002}


def run(plan):
    """Run one stream to its end, held to the laws of every history."""
    found = world.check(plan)
    return found.sinks[0], found


@pytest.mark.parametrize("mode", [Mode.of(preempt="off"), Mode.of(pipeline=2)])
@pytest.mark.parametrize("sampled", [False, True])
def test_forcing_changes_the_price_and_not_the_text(mode, sampled):
    """Where a tokenizer has one way to write it, forced and drawn text are the same."""
    stream = StreamPlan(
        prompt=(1, 2), count=60, grammar="pieces", mode=mode, sampled=sampled, stops=(3,)
    )
    plan = Plan((stream,), luck=1.0, salt=b"b", **QUICK)
    forced, there = run(plan)
    drawn, here = run(
        dataclasses.replace(plan, streams=(dataclasses.replace(stream, forcing=False),))
    )
    assert forced.shown == drawn.shown and len(forced.shown) > 6
    counts, without = forced.run.machine.counts, drawn.run.machine.counts
    assert without.forced == 0 and counts.forced > 0.7 * counts.tokens
    share = 1 - counts.forced / counts.tokens
    assert counts.drafted <= math.ceil(without.drafted * share) + 3
    assert counts.rounds <= math.ceil(without.rounds * share) + 1
    ups = [s.run.traffic.up_payload for s in (forced, drawn)]
    assert ups[0] < ups[1]


def test_a_text_without_any_choice_asks_nobody():
    sink, found = run(Plan((StreamPlan(prompt=(1,), grammar="one", count=40),), **QUICK))
    counts = sink.run.machine.counts
    assert sink.run.finish == "stop" and counts.forced == counts.tokens == 11
    assert found.target.forwards == 0 and counts.drafted == 0


def test_a_budget_that_ends_inside_a_structure_says_length():
    stream = StreamPlan(prompt=(1,), grammar="long", count=20)
    sink, _ = run(Plan((stream,), **QUICK))
    assert sink.run.finish == "length" and len(sink.shown) == 20


def test_a_draft_alone_keeps_to_the_grammar():
    stream = StreamPlan(
        prompt=(1, 4), grammar="object", count=200, offline="draft", patience_s=2.0
    )
    found = World(Plan((stream,), luck=0.3, connects=("401",), **QUICK))
    found.run()
    sink = found.sinks[0]
    text = [*sink.shown, *sink.guessed]
    guide = world.rules_of(stream).guide(0)
    guide.follow(text)
    assert guide.length == len(text) and guide.path().ended
    assert sink.run.finish == "stop" and sink.shown, "what is forced is certain"
    assert any("the draft's alone" in w for w in sink.run.warnings)


def test_a_stream_that_began_anew_goes_on_in_its_grammar():
    """Another verifier: the grammar is sent again, and knows where the text stood."""
    for at_s in np.arange(0.02, 0.4, 0.03):
        stream = StreamPlan(prompt=(1, 4), grammar="object", count=60, sampled=True)
        sink, found = run(Plan((stream,), (world.Fault(float(at_s), "restart"),)))
        assert sink.run.finish in ("stop", "length")


def test_a_verifier_without_grammars_is_named():
    stream = StreamPlan(prompt=(1, 4), grammar="object", count=60)
    found = World(Plan((stream,), connects=("hang",)))
    greet = found.greet
    found.greet = lambda hello: greet(dataclasses.replace(hello, capabilities=()))
    found.run()
    (sink,) = found.sinks
    assert sink.run.finish == "error" and "does not know grammar" in str(sink.error)


def test_plain_decoding_is_what_it_says():
    """The reference of the histories is target-only decoding, one row a free token."""
    asked = []
    target = World(Plan((StreamPlan(),), salt=b"c")).target

    def rows(sequence):
        asked.append(len(sequence))
        return target.rows_after(sequence)

    stream = StreamPlan(prompt=(1, 2), grammar="object", count=200)
    params, rules = world.params_of(stream), world.rules_of(stream)
    text = plain_text(rows, (1, 2), params, 200, world.VOCAB, 400, rules=rules)
    assert world.complete(stream, text) and len(asked) < len(text)
