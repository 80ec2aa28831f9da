"""Both state machines by hand; their histories are those of ``tests/laws``."""

import numpy as np
import pytest
import world
from opens import asked, promised
from world import VOCAB

from draftwire.errors import ConfigError, ProtocolError
from draftwire.runtime.driver import StreamSpec
from draftwire.runtime.edge.actions import Counts, Finished, Send
from draftwire.runtime.edge.in_flight import InFlight
from draftwire.runtime.edge.machine import EdgeSession
from draftwire.runtime.edge.verdict import tally
from draftwire.runtime.pacing.controller import FixedLength
from draftwire.sampling import Proposal, SamplingParams, make_proposer
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Finish,
    Opened,
    Resumed,
)
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.target_session import TargetSession


@pytest.mark.parametrize(("seed", "mechanism"), [(23303, "preempt"), (38, "pipeline")])
def test_histories_that_went_wrong_once(seed, mechanism):
    world.check_history(seed, mechanism)


def edge(**options):
    params = SamplingParams()
    defaults = {
        "params": params,
        "proposer": make_proposer(params, VOCAB),
        "controller": FixedLength(3),
        "max_new_tokens": 20,
        "context": 100,
        "mode": world.STOP_AND_WAIT,
    }
    spec = StreamSpec(
        prompt=[1, 2, 3],
        vocab_size=VOCAB,
        account=None,
        **{**defaults, **options},
    )
    return EdgeSession(spec)


def drafted(session, tokens):
    branch = session.start()[-1].branch
    out = []
    for token in tokens:
        out += session.drafted(branch, Proposal(token))
    session.message(Opened())
    return out


def test_a_rejection_rewinds_and_raises_the_epoch():
    session = edge()
    (sent,) = drafted(session, [7, 8, 9])
    assert sent == Send(Block(0, 0, (7, 8, 9)))
    emit, draft = session.message(Commit(0, 1, 5))
    assert [(t.id, t.kind) for t in emit.tokens] == [(7, "accepted"), (5, "correction")]
    assert (draft.valid, draft.tokens, draft.count) == (4, (5,), 3)
    out = []
    for token in (1, 1, 1):
        out += session.drafted(draft.branch, Proposal(token))
    assert out == [Send(Block(1, 2, (1, 1, 1)))]


def test_full_acceptance_brings_a_bonus_and_keeps_the_epoch():
    session = edge()
    drafted(session, [7, 8, 9])
    emit, draft = session.message(Commit(0, 3, 4))
    assert [t.kind for t in emit.tokens] == ["accepted"] * 3 + ["bonus"]
    assert (draft.valid, draft.tokens) == (6, (4,))


@pytest.mark.parametrize(
    "commit",
    [Commit(0, 4, 1), Commit(9, 2, 1), Commit(0, 0, None)],
    ids=["more than sent", "another branch", "nothing at all"],
)
def test_a_verifier_that_contradicts_itself_is_caught(commit):
    session = edge()
    drafted(session, [7, 8, 9])
    with pytest.raises(ProtocolError):
        session.message(commit)


def test_more_text_than_asked_for_is_refused():
    session = edge(max_new_tokens=3)
    branch = session.start()[-1].branch
    session.message(Opened())
    for token in (7, 8):
        session.drafted(branch, Proposal(token))
    session.message(Commit(0, 2, 1, Finish.LENGTH))
    assert session.finish == "length"
    session = edge(max_new_tokens=1)
    session.start()
    session.message(Opened())
    session.message(Commit(0, 0, 1, Finish.LENGTH))
    assert session.message(Commit(0, 0, 1)) == []


@pytest.mark.parametrize("position", [1, 3])
def test_a_resume_at_another_position_is_refused(position):
    session = edge()
    session.start()
    session.message(Opened(b"s" * 8, b"t" * 16))
    session.link_lost()
    session.link_up(resume=True)
    with pytest.raises(ProtocolError, match=f"resumes at {position}, not at 0"):
        session.message(Resumed(1, position, (4, 4)))


def test_a_verdict_before_the_stream_is_opened_is_ignored():
    session = edge()
    session.start()
    assert session.message(Commit(0, 0, 5)) == []
    assert session.committed == ()


def test_a_text_that_is_not_the_verifiers_is_an_error():
    session = edge()
    session.start()
    session.message(Opened())
    right = TextHash((1, 2, 3, 5)).digest()
    session.message(Commit(0, 0, 5, text_hash=right))
    assert session.committed == (5,)
    with pytest.raises(ProtocolError, match="hashes differ after 2 tokens"):
        session.message(Commit(0, 0, 6, text_hash=right))


def test_cancel_says_goodbye_once_and_stops_drafting():
    session = edge()
    session.start()
    send, stop_drafting, finished = session.stop("cancelled")
    assert send == Send(Bye("cancelled")) and stop_drafting.count == 0
    assert finished == Finished("cancelled")
    assert session.stop("cancelled") == []


def target(**changes):
    base = dict(prompt=(1, 2, 3), max_new_tokens=9)
    return TargetSession(asked(**{**base, **changes}), promised(VOCAB))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompt": ()}, "prompt is empty"),
        ({"prompt": tuple(range(20)) * 4}, "80 tokens, the target's context is 64"),
        ({"scheme": "nonsense"}, "unknown sampling scheme"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_an_open_that_cannot_be_served_says_why(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        target(**changes)


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        ([Block(0, 0, (1, 2)), Block(0, 1, (2,))], "repeats drafts"),
        ([Block(0, 0, tuple(range(9)))], "the limit is 8"),
        ([Block(0, 0, (1,), correction=4)], "not asked for"),
    ],
)
def test_blocks_that_cannot_follow_are_refused(blocks, complaint):
    session = target()
    with pytest.raises(ProtocolError, match=complaint):
        for block in blocks:
            session.receive(block)


def finish_prefill(session):
    work = session.poll()
    assert work.prefill and list(work.tokens) == [1, 2]
    session.complete(work, np.zeros((0, VOCAB), np.float32))


def one_hot(*tokens):
    rows = np.zeros((len(tokens), VOCAB), np.float32)
    rows[np.arange(len(tokens)), tokens] = 1
    return rows


def test_blocks_of_a_dead_branch_are_dropped():
    session = target()
    finish_prefill(session)
    session.receive(Block(0, 0, (7, 8)))
    work = session.poll()
    assert list(work.tokens) == [3, 7, 8] and work.start == 2
    session.receive(Block(0, 2, (9, 9)))  # drafted on, before the verdict
    (commit,) = session.complete(work, one_hot(7, 5, 0))
    assert (commit.accepted, commit.token, commit.epoch) == (1, 5, 0)
    assert session.receive(Block(0, 4, (9,))) == []
    assert session.poll() is None and session.idle
    session.receive(Block(1, 2, (6,)))
    work = session.poll()
    assert (work.start, list(work.tokens)) == (4, [5, 6])


def test_drafts_beyond_a_right_guess_of_the_bonus_live_on():
    session = target()
    finish_prefill(session)
    session.receive(Block(0, 0, (7,)))
    work = session.poll()
    session.receive(Block(0, 1, (8, 9)))
    (commit,) = session.complete(work, one_hot(7, 8))
    assert (commit.accepted, commit.token) == (1, 8)
    work = session.poll()
    assert list(work.tokens) == [8, 9] and work.drafted == 1 and session.epoch == 0
    # The device hears of the bonus only now; a block may repeat the text's end.
    session.complete(work, one_hot(9, 4))
    session.receive(Block(0, 3, (4, 2)))
    assert list(session.poll().tokens) == [4, 2]


def test_a_block_that_contradicts_the_text_kills_its_branch():
    session = target()
    finish_prefill(session)
    session.receive(Block(0, 0, (7,)))
    session.complete(session.poll(), one_hot(7, 8))
    session.receive(Block(0, 1, (5, 5)))
    assert session.poll() is None and session.epoch == 1
    session.receive(Block(0, 3, (5,)))
    assert session.poll() is None


def test_a_block_in_parts_is_judged_when_it_is_whole():
    session = target()
    finish_prefill(session)
    session.receive(Block(0, 0, (7,), more=True))
    assert session.poll() is None
    session.receive(Block(0, 1, (8,)))
    assert list(session.poll().tokens) == [3, 7, 8]


def test_a_stop_id_inside_a_block_ends_the_text_there():
    session = target(stop_ids=(8,))
    finish_prefill(session)
    session.receive(Block(0, 0, (7, 8, 9)))
    (commit,) = session.complete(session.poll(), one_hot(7, 8, 9, 1))
    assert (commit.accepted, commit.token, commit.finish) == (2, None, Finish.STOP)
    assert session.committed() == (7, 8)


@pytest.mark.parametrize("leaf", [7, 8, None])
def test_a_second_choice_is_right_where_it_was_sent_and_became_text(leaf):
    """A verifier that looks up text adds tokens too, behind one that was nobody's leaf."""
    wire, counts = InFlight(whole=False), Counts()
    drafts = [Proposal(4), Proposal(5, runner_up=7)]
    wire.send(drafts, drafts, 0)
    if leaf is not None:
        wire.leaves[0, 1] = leaf
    tally(counts, FixedLength(2), Commit(0, 1, 7, further=(9,)), wire, (4, 7, 9), 0)
    assert counts.leaves_right == (leaf == 7) and not wire.leaves
