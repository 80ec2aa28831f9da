"""What an engine decides by itself is committed as our own decisions are."""

import random

import numpy as np
import pytest
from cached_target import CachedTarget
from opens import asked, promised

from draftwire.errors import ConfigError, ModelError, ProtocolError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.transport.messages import Block, Finish, Open
from draftwire.verifier.backends.streaming import Push, Step
from draftwire.verifier.backends.vllm.wish import Wish
from draftwire.verifier.target_session import TargetSession

V = 23


def session(**changes):
    base = dict(prompt=(1, 2, 3), max_new_tokens=20)
    request = asked(**{**base, **changes})
    return TargetSession(request, promised(V, max_block=9))


def test_rounds_as_complete_has_them():
    """Beside the session of slots, with the same drafts: the same commits."""
    rng = random.Random(1)
    target = CachedTarget(V)
    rounds = 0
    while rounds < 2000:
        sampled = rng.random() < 0.5
        how = ("coupled", 0.9) if sampled else ("greedy", 0.0)
        changes = dict(scheme=how[0], temperature=how[1], seed=rng.getrandbits(30))
        changes["stop_ids"] = (5,) * rng.randrange(2)
        changes["prompt"] = tuple(rng.randrange(V) for _ in range(1 + rng.randrange(4)))
        slots, engine = session(**changes), session(**changes)
        params = SamplingParams(*how, seed=changes["seed"])
        decider = make_decider(params, V)
        reading = slots.poll()
        if reading is not None:
            slots.complete(reading, target.rows_after([1])[None][:0])
        while not slots.done:
            rounds += 1
            text = slots.tokens
            drafts = target.text(text, params, rng.randrange(8))
            drafts = [rng.randrange(V) if rng.random() < 0.2 else t for t in drafts]
            block = Block(slots.epoch, len(text) - len(changes["prompt"]), tuple(drafts))
            for each in (slots, engine):
                assert each.receive(block) == []
            work, push = slots.poll(), engine.offer()
            assert push.drafts == tuple(work.drafts) and push.base == len(text)
            rows = [target.rows_after([*text, *work.drafts[:j]]) for j in range(work.rows)]
            decision = decider.decide(work.drafts, b"", rows, len(text))
            tokens = (*work.drafts[: decision.accepted], decision.token)
            # The engine ends where the text does.
            end = len(changes["prompt"]) + 20 - len(text)
            stop = next(
                (i + 1 for i, t in enumerate(tokens) if t in changes["stop_ids"]), 99
            )
            tokens = tokens[: min(stop, end)]
            step = Step(tokens, len(push.drafts), push.epoch)
            assert slots.complete(work, np.stack(rows)) == engine.advance(step)
            assert slots.tokens == engine.tokens
            assert slots.counts == engine.counts
            assert slots.state is engine.state


def test_what_nobody_asked_for_waits_until_somebody_does():
    """The first step brings a token whether or not it is wanted."""
    found = session()
    assert found.advance(Step((7,))) == [] and found.committed() == ()
    assert found.receive(Block(0, 0, (7, 8, 9))) == []  # the engine judges the rest
    assert found.offer() == Push(0, 3, (7, 8, 9), 6, 3)
    (commit,) = found.advance(Step((8, 9, 4), 2, 0))
    assert (commit.accepted, commit.token, commit.forwards) == (3, 4, 2)
    found = session()
    found.advance(Step((7,)))
    (commit,) = found.receive(Block(0, 0, (5, 6)))  # known to be wrong
    assert (commit.accepted, commit.token, found.epoch) == (0, 7, 1) and found.idle
    found = session()
    found.advance(Step((7,)))
    (commit,) = found.receive(Block(0, 0, ()))
    assert (commit.accepted, commit.token) == (0, 7) and found.idle
    found = session()
    found.advance(Step((7,)))
    assert found.receive(Block(0, 0, (7,))) == [] and found.offer().asks == 5
    (commit,) = found.advance(Step((8,)))
    assert (commit.accepted, commit.token) == (1, 8)
    found = session(max_new_tokens=1)
    assert found.advance(Step((7,))) == []
    (commit,) = found.receive(Block(0, 0, ()))
    assert commit.finish is Finish.LENGTH


def test_a_step_that_knew_of_no_drafts():
    for race in (False, True):
        found = session()
        found.receive(Block(0, 0, (8, 9), race=race))
        said = found.advance(Step((8,)))
        assert [(c.accepted, c.token) for c in said] == [(0, 8)] * race
        assert found.offer().drafts == (8, 9)[race:] and not found.idle
        (commit,) = found.advance(Step((4,), 0))
        assert (found.epoch, commit.accepted, commit.token) == (1, 1 - race, 4)
        assert found.idle is not race
        assert found.counts.drafted == 1 - race and found.ready == 0


def test_more_drafts_than_a_step_looks_at():
    found = session()
    found.receive(Block(0, 0, (1, 2, 3, 4, 5)))
    assert found.advance(Step((1, 2, 3), 2, 0)) == []
    (commit,) = found.advance(Step((4, 5, 6), 2, 0))
    assert (commit.accepted, commit.token) == (5, 6) and found.idle


def test_the_step_that_reads_the_prompt_is_no_forward_where_another_follows():
    found = session()
    found.order()
    found.receive(Block(0, 0, (1, 2)))
    assert found.advance(Step((1,))) == []
    (commit,) = found.advance(Step((2, 3), 1, 0))
    assert (commit.accepted, commit.forwards) == (2, None) and found.counts.forwards == 1


def test_a_bonus_that_is_not_wanted_is_for_the_next_block():
    found = session(bonus=False)
    found.receive(Block(0, 0, (7, 8)))
    (commit,) = found.advance(Step((7, 8, 9), 2, 0))
    assert (commit.accepted, commit.token, commit.finish) == (2, None, Finish.NOT_YET)
    found.receive(Block(0, 2, (9, 1)))
    assert found.offer().drafts == (9, 1)
    (commit,) = found.advance(Step((2,), 1, 0))
    assert (commit.accepted, commit.token) == (1, 2) and found.counts.drafted == 4


def test_answers_of_several_steps_in_one():
    found = session(objective="latency")
    said = found.advance(Step((7, 8, 9)))
    assert [c.token for c in said] == [7, 8, 9] and found.committed() == (7, 8, 9)
    found = session()
    found.receive(Block(0, 0, (1, 2)))
    (commit,) = found.advance(Step((1, 2, 3, 4), 2, 0))
    assert (commit.accepted, commit.token) == (2, 3) and found.committed() == (1, 2, 3)
    (commit,) = found.receive(Block(0, 3, ()))
    assert (commit.accepted, commit.token) == (0, 4)


def test_drafts_of_a_branch_that_was_given_up_are_committed_under_its_number():
    found = session()
    found.receive(Block(0, 0, (1, 2)))
    found.receive(Block(1, 0, (5, 6)))
    (commit,) = found.advance(Step((1, 2, 3), 2, 0))
    assert (commit.epoch, commit.accepted, commit.token) == (0, 2, 3)
    assert found.epoch == 2  # (5, 6) contradict it


def test_the_text_ends_within_the_drafts():
    for tokens, finish in (((1, 3), Finish.STOP), ((1, 2, 4, 4, 4), Finish.LENGTH)):
        found = session(stop_ids=(3,), max_new_tokens=5)
        found.receive(Block(0, 0, (*tokens, 9)))
        assert found.offer().drafts == (*tokens, 9)[:4]
        (commit,) = found.advance(Step(tokens, min(4, len(tokens) + 1), 0))
        assert commit.finish is finish and found.committed() == tokens
        assert commit.token == (None if len(tokens) == 2 else 4)
        assert found.advance(Step((1,))) == []  # it was on its way
    parked = session()
    parked.detach(cached=False)
    assert parked.advance(Step((1,))) == [] and parked.committed() == ()


def test_an_engine_that_accepts_what_nobody_drafted_is_refused():
    for step in (Step((1, 5, 6), 2, 0), Step((1, 2, 3, 4), 3, 0)):
        found = session()
        found.receive(Block(0, 0, (1, 2)))
        with pytest.raises(ModelError, match="not drafted"):
            found.advance(step)


def test_evidence_is_no_affair_of_an_engine():
    found = session()
    with pytest.raises(ProtocolError, match="takes no evidence"):
        found.receive(Block(0, 0, (1,), b"abc"))
    request = Open((1, 2), "residual", 1.0, 0, 1.0, 0, 9)
    with pytest.raises(ConfigError, match="cannot do scheme 'residual'"):
        TargetSession(request, promised(V, schemes=("greedy", "coupled")))


def test_a_race_tells_how_far_it_may_run_ahead():
    found = session(objective="latency")
    assert found.offer().ahead == 23
    found = session(objective="latency", credit=4)
    assert found.offer().ahead == 7
    found.receive(Block(0, 0, (1, 2), race=True))
    assert found.offer() == Push(0, 3, (1, 2), 5, 9)
    found.receive(Block(0, 2, (), race=False))
    assert found.offer() == Push(0, 3, (1, 2), 5, 3)


# ---- the engine's side


def test_a_wish_waits_where_it_is_the_devices_turn():
    wish, text = Wish(), [1, 2, 3]
    assert wish.holds(3), "nobody has asked yet"
    wish.take(Push(4, 3, (7, 8, 9), 6, 0))
    wish.settle(text, 3)
    assert wish.drafts(3, 2) == [7, 8] and not wish.holds(3)
    text += [7, 8]
    wish.settle(text, 5)
    assert wish.drafts(5, 9) == [9] and not wish.holds(5)
    text += [5]  # contradicted: what was asked for ends with the branch
    wish.settle(text, 6)
    assert wish.drafts(6, 9) == [] and wish.holds(6)
    wish.take(Push(5, 5, (1,), 6, 20))  # late: a race goes on
    wish.settle(text, 6)
    assert wish.drafts(6, 9) == [] and not wish.holds(6) and wish.holds(20)
    wish.take(Push(5, 9, (1,), 10, 0))
    assert wish.drafts(6, 9) == [], "from further on than the text is"


def test_a_step_that_reads_a_prompt_counts_where_it_alone_decides():
    found = session()
    found.order()
    assert found.advance(Step((1,))) == []
    (commit,) = found.receive(Block(0, 0, ()))
    assert commit.token == 1 and found.counts.forwards == 1
