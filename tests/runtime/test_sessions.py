"""Both state machines back to back: the target's text, each token once, any interleaving.

The target is a hash of the text so far, the draft guesses it with some luck, and the
network delivers frames in order but at any time. Everything runs in virtual time.
"""

import hashlib
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwire.errors import ConfigError, ProtocolError
from draftwire.runtime.actions import (
    Draft,
    Emit,
    Finished,
    Revise,
    Send,
)
from draftwire.runtime.controller import FixedLength
from draftwire.runtime.edge_session import EdgeSession
from draftwire.sampling import Proposal, SamplingParams, make_decider, make_proposer
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Bye, Commit, Finish, Open, Opened, Resume
from draftwire.verifier.target_session import TargetSession

VOCAB = 23


def target_logits(sequence, salt):
    """Logits that depend on the whole sequence, as a real model's do."""
    digest = hashlib.sha256(bytes(salt) + bytes(sequence)).digest()
    return np.frombuffer(digest[:VOCAB], np.uint8).astype(np.float32) / 40


def target_only(prompt, params, salt, count, context, stops):
    """Plain decoding: one forward, one token."""
    decider = make_decider(params, VOCAB)
    sequence = list(prompt)
    while len(sequence) < min(context, len(prompt) + count):
        row = target_logits(sequence, salt)[None]
        sequence.append(decider.decide([], b"", row, len(sequence)).token)
        if sequence[-1] in stops:
            break
    return sequence[len(prompt) :]


class World:
    """One device, one verifier, two pipes; ``step`` does one enabled thing."""

    def __init__(
        self,
        prompt,
        params,
        salt,
        *,
        k,
        count,
        context,
        stops,
        luck,
        rng,
        cuts=0,
        offline=False,
    ):
        self.cuts, self.keeps, self.attached = cuts, None, True
        self.params, self.salt, self.luck, self.rng = params, salt, luck, rng
        self.codec = Codec(VOCAB)
        self.edge = EdgeSession(
            prompt,
            params=params,
            proposer=make_proposer(params, VOCAB),
            controller=FixedLength(k),
            max_new_tokens=count,
            context=context,
            stop_ids=stops,
            guess_offline=offline,
        )
        self.context = context
        self.cloud = None
        self.up, self.down = deque(), deque()
        self.sequence, self.order, self.todo = [], None, 0
        self.shown, self.finish, self.work = [], None, None
        self.guessed = []
        self.act(self.edge.start())

    def act(self, actions):
        for action in actions:
            if isinstance(action, Send):
                self.up.append(self.codec.encode(action.message))
            elif isinstance(action, Draft):
                self.sequence[action.valid :] = action.tokens
                self.order, self.todo = action, action.count
            elif isinstance(action, Emit):
                assert self.finish is None
                ids = [t.id for t in action.tokens]
                if action.tokens[0].kind == "unverified":
                    assert not self.attached
                    self.guessed += ids
                    continue
                seen, fresh = ids[: action.shown], ids[action.shown :]
                assert self.guessed[: len(seen)] == seen
                del self.guessed[: len(seen)]
                assert not (fresh and self.guessed)
                self.shown += ids
            elif isinstance(action, Revise):
                keep = action.position - len(self.shown)
                assert 0 <= keep < len(self.guessed)
                del self.guessed[keep:]
            elif isinstance(action, Finished):
                self.finish = action.reason

    def enabled(self):
        found = []
        if self.todo:
            found.append(self.draft)
        if self.cuts and self.attached:
            found.append(self.cut)
        if not self.attached:
            found.append(self.restore)
        if self.up:
            found.append(self.deliver_up)
        if self.down:
            found.append(self.deliver_down)
        if self.cloud is not None and self.work is None:
            self.work = self.cloud.poll()
        if self.work is not None:
            found.append(self.compute)
        return found

    def cut(self):
        """Lose the link, with every frame that is on its way."""
        self.cuts -= 1
        self.attached = False
        self.up.clear()
        self.down.clear()
        self.work = None
        if self.cloud is not None:
            self.cloud.detach(cached=bool(self.rng.random() < 0.5))
            self.keeps, self.cloud = self.cloud, None
        if self.rng.random() < 0.3:
            self.keeps = None  # restarted, expired or out of memory
        self.act(self.edge.link_lost())

    def restore(self):
        self.attached = True
        self.act(self.edge.link_up(resume=True))

    def draft(self):
        self.todo -= 1
        logits = target_logits(self.sequence, self.salt)
        if self.rng.random() > self.luck:
            logits = self.rng.normal(0, 2, VOCAB).astype(np.float32)
        proposer = make_proposer(self.params, VOCAB)
        proposal = proposer.propose(logits, len(self.sequence))
        self.sequence.append(proposal.token)
        branch = self.order.branch
        self.act(self.edge.drafted(branch, proposal))

    def deliver_up(self):
        message = self.codec.decode(self.up.popleft())
        if isinstance(message, Open):
            self.cloud = TargetSession(
                message, vocab_size=VOCAB, context=self.context, max_block=255
            )
            opened = Opened(message.stream, b"12345678", b"0123456789abcdef")
            self.down.append(self.codec.encode(opened))
        elif isinstance(message, Resume):
            if self.keeps is None:
                self.act(self.edge.link_up(resume=False))  # told: session unknown
                return
            self.cloud, self.keeps = self.keeps, None
            self.down.append(self.codec.encode(self.cloud.resume(message.position)))
        elif isinstance(message, Block):
            self.down.extend(map(self.codec.encode, self.cloud.receive(message)))

    def deliver_down(self):
        self.act(self.edge.message(self.codec.decode(self.down.popleft())))

    def compute(self):
        work, self.work = self.work, None
        text = (
            [
                *self.prompt_and_text(),
                *map(int, work.tokens[len(work.tokens) - work.drafted :]),
            ]
            if work.drafted
            else self.prompt_and_text()
        )
        end = work.start + len(work.tokens)
        assert list(work.tokens) == list(text[work.start : end])
        rows = np.array(
            [
                target_logits(text[: end - work.rows + 1 + j], self.salt)
                for j in range(work.rows)
            ],
            np.float32,
        ).reshape(work.rows, VOCAB)
        self.down.extend(map(self.codec.encode, self.cloud.complete(work, rows)))

    def prompt_and_text(self):
        return list(self.cloud._tokens)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_targets_text_whatever_the_interleaving(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    sampled = data.draw(st.booleans())
    params = SamplingParams(
        "coupled" if sampled else "greedy",
        0.9 if sampled else 0.0,
        0,
        data.draw(st.sampled_from([1.0, 0.8])),
        seed,
    )
    prompt = rng.integers(0, VOCAB, rng.integers(1, 9)).tolist()
    count = data.draw(st.integers(1, 40))
    context = len(prompt) + data.draw(st.integers(1, 45))
    stops = [3] if data.draw(st.booleans()) else []
    salt = rng.bytes(4)
    world = World(
        prompt,
        params,
        salt,
        k=data.draw(st.integers(1, 7)),
        count=count,
        context=context,
        stops=stops,
        luck=data.draw(st.sampled_from([0, 0.5, 0.9, 1])),
        rng=rng,
        cuts=data.draw(st.sampled_from([0, 0, 1, 5])),
        offline=data.draw(st.booleans()),
    )
    cuts = world.cuts
    for _ in range(3000):
        moves = world.enabled()
        if world.finish is not None or not moves:
            break
        moves[rng.integers(len(moves))]()
    expected = target_only(prompt, params, salt, count, context, stops)
    assert world.shown == expected
    assert list(world.edge.committed) == expected
    ended = bool(stops) and expected[-1] in stops
    assert world.finish == ("stop" if ended else "length")
    counts = world.edge.counts
    assert counts.tokens == len(expected) and counts.accepted <= counts.drafted
    assert world.guessed == []
    if cuts:
        return
    assert counts.rounds == world.cloud.counts.forwards
    assert counts.accepted == world.cloud.counts.accepted
    if world.luck == 1 and not stops:
        k = world.edge._controller.limit()
        assert counts.rounds == -(-len(expected) // (k + 1))


def edge(**options):
    params = SamplingParams()
    defaults = {"controller": FixedLength(3), "max_new_tokens": 20, "context": 100}
    return EdgeSession(
        [1, 2, 3],
        params=params,
        proposer=make_proposer(params, VOCAB),
        **{**defaults, **options},
    )


def drafted(session, tokens):
    branch = session.start()[-1].branch
    out = []
    for token in tokens:
        out += session.drafted(branch, Proposal(token))
    session.message(Opened(1))
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


def test_proposals_of_an_old_branch_are_void():
    session = edge()
    first = session.start()[-1].branch
    session.stop("cancelled")
    assert session.drafted(first, Proposal(1)) == []


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
    session.message(Opened(1))
    for token in (7, 8):
        session.drafted(branch, Proposal(token))
    session.message(Commit(0, 2, 1, Finish.LENGTH))
    assert session.finish == "length"
    session = edge(max_new_tokens=1)
    session.start()
    session.message(Opened(1))
    session.message(Commit(0, 0, 1, Finish.LENGTH))
    assert session.message(Commit(0, 0, 1)) == []


def test_verdicts_of_an_earlier_stream_are_ignored():
    session = edge(stream=2)
    session.start()
    assert session.message(Commit(0, 0, 5)) == []
    session.message(Opened(1))
    assert session.message(Commit(0, 0, 5)) == []
    assert session.committed == ()


def test_cancel_says_goodbye_once_and_stops_drafting():
    session = edge()
    session.start()
    send, stop_drafting, finished = session.stop("cancelled")
    assert send == Send(Bye("cancelled")) and stop_drafting.count == 0
    assert finished == Finished("cancelled")
    assert session.stop("cancelled") == []


def target(**changes):
    fields = dict(
        stream=1,
        prompt=(1, 2, 3),
        scheme="greedy",
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        max_new_tokens=9,
    )
    return TargetSession(
        Open(**{**fields, **changes}), vocab_size=VOCAB, context=64, max_block=8
    )


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
        ([Block(0, 1, (1,))], "leaves a gap"),
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
    assert session.receive(Block(0, 4, (9,))) == [] and session.poll() is None
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
    assert session.counts.discarded == 3


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
