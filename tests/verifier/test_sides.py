"""Drafts beside a branch: both ends count branches alike, whatever crosses on the way."""

import dataclasses
import random
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opens import asked, chains_of, promised

from draftwire.errors import ProtocolError
from draftwire.runtime.edge.in_flight import InFlight
from draftwire.sampling import Proposal
from draftwire.transport.messages import Block
from draftwire.verifier.target_session import TargetSession

V = 5
PROMPT = (1, 2, 3)
COUNT = 40


def after(ids):
    """Return what the target says after ``ids``."""
    return random.Random(str(ids[-3:])).randrange(V)


def text_of(count):
    ids = list(PROMPT)
    while len(ids) < len(PROMPT) + count:
        ids.append(after(ids))
    return ids[len(PROMPT) :]


TEXT = text_of(COUNT)


def session(room=16, objective="cost", leaves=4, **changes):
    has = ("further", "leaves", "trees")
    welcome = promised(V, max_block=4, max_waiting=room, capabilities=has)
    changes = {"max_new_tokens": COUNT, "objective": objective, **changes}
    found = TargetSession(asked(prompt=PROMPT, **changes), welcome, leaves=leaves)
    reading = found.poll()
    found.complete(reading, np.zeros((0, V), np.float32))
    return found


def rows_of(work, tokens):
    """Return what the target makes of ``work``."""
    chains = chains_of(work, tokens)
    rows = np.zeros((len(chains), V), np.float32)
    for row, chain in zip(rows, chains):
        row[after(chain)] = 9
    return rows


class Ends:
    """A device and a verifier, and what is on its way between them."""

    def __init__(self, rng, objective):
        self.rng, self.race = rng, objective == "latency"
        self.cloud, self.wire = session(objective=objective), InFlight(whole=False)
        self.text, self.up, self.down = [], deque(), deque()
        self.work = None
        self.taken = 0

    def drafts(self, before):
        """Return what a draft that is right three times in four says behind ``before``."""
        ids, found = [*PROMPT, *before], []
        for _ in range(1 + self.rng.randrange(4)):
            wrong = self.rng.randrange(V)
            found.append(after(ids) if self.rng.random() < 0.7 else wrong)
            ids.append(found[-1])
        return found

    def send(self):
        branch = self.wire.tokens
        if len(branch) > 8 or len(self.text) + len(branch) > COUNT - 2:
            return
        fresh = self.drafts([*self.text, *branch])
        base = len(self.text) + len(branch)
        block = Block(self.wire.epoch, base, tuple(fresh), race=self.race)
        self.wire.send([Proposal(t) for t in fresh], [Proposal(t) for t in fresh], base)
        self.up.append(block)

    def beside(self):
        branch, sides = self.wire.tokens, self.wire.sides
        if not branch or sum(map(len, sides.values())) > 12:
            return
        place = self.rng.randrange(len(branch))
        stem = [*self.text, *branch[:place]]
        others = [t for t in range(V) if t != branch[place]]
        likely = after([*PROMPT, *stem])
        instead = self.rng.choice(others)
        if likely in others and self.rng.random() < 0.7:
            instead = likely
        at = len(self.text) + place, instead
        stem.append(instead)
        known = sides.get(at, [])
        fresh = self.drafts([*stem, *known])
        base = at[0] + 1 + len(known)
        sides[at] = [*known, *fresh]
        said = {"instead": (len(known) + 1, instead), "race": self.race}
        block = Block(self.wire.epoch, base, tuple(fresh), **said)
        self.up.append(block)

    def turn(self):
        self.wire.turn()

    def deliver(self):
        if self.up:
            assert self.cloud.receive(self.up.popleft()) == []

    def poll(self):
        if self.work is None:
            self.work = self.cloud.poll()

    def complete(self):
        work, self.work = self.work, None
        if work is not None:
            rows = rows_of(work, self.cloud.tokens)
            self.down += self.cloud.complete(work, rows)

    def hear(self):
        if not self.down:
            return
        commit, wire = self.down.popleft(), self.wire
        accepted = wire.reach(commit.epoch, commit.accepted)
        new = [*wire.branch(commit.epoch)[:accepted], commit.token, *commit.further]
        before = wire.epoch
        wire.advance(commit.epoch, new, accepted, len(self.text))
        self.taken += wire.epoch != before and wire.adopted > 0
        self.text += new
        assert self.text == TEXT[: len(self.text)]

    def compare(self):
        """Let all that is on its way arrive; both ends have one branch then."""
        while self.up or self.down:
            self.deliver()
            self.hear()
        assert self.text == list(self.cloud.committed())
        if self.cloud.done:
            return
        branch, wire, work = self.cloud.branch, self.wire, self.work
        judged = work.drafts if work and work.epoch == branch.epoch else []
        if branch.epoch == wire.epoch:
            assert [*judged, *branch.waiting(partial=True)] == wire.tokens
        else:  # it has not heard of a branch that has no drafts yet
            assert not wire.tokens and not branch.behind(wire.epoch)


STEPS = ("send", "beside", "beside", "deliver", "poll", "complete", "hear", "turn")
WEIGHED = st.sampled_from([*STEPS[:-1], *STEPS[:-1], *STEPS])


@settings(deadline=None, max_examples=200)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(["cost", "latency"]),
    st.lists(WEIGHED, max_size=90),
)
def test_both_ends_count_branches_alike(rng, objective, steps):
    ends = Ends(rng, objective)
    for step in steps:
        getattr(ends, step)()
    ends.compare()
    while ends.poll() or ends.work:
        ends.complete()
        ends.compare()
    assert not ends.wire.tokens


# ---- one end by hand


@pytest.mark.parametrize("leaves", [0, 4])
def test_drafts_beside_a_branch_begin_the_next_one(leaves):
    cloud, (a, b, c, d) = session(leaves=leaves), TEXT[:4]
    wrong = (a + 1) % V
    cloud.receive(Block(0, 0, (wrong, 0)))
    cloud.receive(Block(0, 1, (b, c), instead=(1, a)))
    cloud.receive(Block(0, 3, (d,), instead=(3, a)))
    work = cloud.poll()
    assert work.drafts == [wrong, 0]
    (commit,) = cloud.complete(work, rows_of(work, cloud.tokens))
    assert (commit.epoch, commit.accepted, commit.token) == (0, 0, a)
    assert cloud.epoch == 1
    if leaves:  # they went along
        assert commit.further[:3] == (b, c, d) and not len(cloud.branch)
        return
    assert cloud.branch.waiting(partial=True) == (b, c, d)
    work = cloud.poll()
    (commit,) = cloud.complete(work, rows_of(work, cloud.tokens))
    assert (commit.epoch, commit.accepted) == (1, 3)


def test_drafts_that_come_when_their_id_is_text_belong_to_the_branch_it_began():
    cloud, (a, b, c) = session(), TEXT[:3]
    wrong = (a + 1) % V
    cloud.receive(Block(0, 0, (wrong,)))
    work = cloud.poll()
    cloud.complete(work, rows_of(work, cloud.tokens))
    assert cloud.epoch == 1
    for base, token in ((1, wrong), (2, b), (2, a)):
        assert cloud.receive(Block(0, base, (c,), instead=(1, token))) == []
        assert not len(cloud.branch), "not of that place"
    cloud.receive(Block(0, 1, (b, c), instead=(1, a)))
    assert cloud.branch.waiting(partial=True) == (b, c)
    with pytest.raises(ProtocolError, match="leaves a gap: 3"):
        cloud.receive(Block(0, 4, (0,), instead=(4, a)))


def test_a_device_that_gives_up_a_branch_leaves_out_the_number_of_its_heir():
    wire, draft = InFlight(whole=False), [Proposal(1)]
    for epoch, beside, after in ((0, (), 1), (1, (3,), 3), (3, (), 4)):
        assert wire.epoch == epoch
        wire.send(draft, draft, 0)
        if beside:  # the verifier may have begun its own branch with them by now
            wire.sides[0, 2] = [*beside]
        assert wire.turn() == [1] and wire.epoch == after


def test_what_stands_beside_drafts_beyond_the_end_is_not_judged():
    cloud, text = session(max_new_tokens=3), TEXT[:4]
    cloud.receive(Block(0, 0, tuple(text)))
    cloud.receive(Block(0, 4, (0,), instead=(1, (text[3] + 1) % V)))
    work = cloud.poll()
    assert work.drafts == text[:2] and work.sides == ()


def test_what_the_text_has_already_is_dropped():
    cloud, (a, b) = session(), TEXT[:2]
    cloud.receive(Block(0, 0, (a, b)))
    work = cloud.poll()
    cloud.complete(work, rows_of(work, cloud.tokens))
    assert cloud.receive(Block(0, 1, (4,), instead=(1, (a + 1) % V))) == []
    assert cloud.epoch == 0 and not len(cloud.branch)


BESIDE = Block(0, 1, (3,), instead=(1, 4))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"instead": (1,)}, "1 numbers in instead"),
        ({"instead": (1, 2, 3)}, "3 numbers in instead"),
        ({"instead": (0, 4)}, "0 before 1"),
        ({"instead": (2, 4)}, "2 before 1"),
        ({"instead": (1, V)}, f"{V} is outside the vocabulary"),
        ({"tokens": ()}, "instead without a draft"),
        ({"evidence": b"x"}, "instead with"),
        ({"correction": 0}, "instead with"),
        ({"leaves": (4,)}, "instead with"),
        ({"more": True}, "instead with"),
        ({"base": 3, "instead": (2, 3)}, "a block at 3 leaves a gap: 2"),
        ({"base": 2, "instead": (2, 1)}, "a block at 2 repeats drafts: 3"),
        ({"base": 4, "instead": (1, 4)}, "at 3 of a branch that ends at 3"),
        ({"epoch": 1}, "at 0 of a branch that ends at 0"),
        ({"tokens": (0,) * 5}, "a block of 5 tokens, the limit is 4"),
        ({"tokens": (0,) * 4}, "7 drafted tokens wait for judgement beside .* limit is 6"),
    ],
)
def test_what_cannot_stand_beside_a_branch_is_refused(changes, complaint):
    cloud = session(room=6)
    cloud.receive(Block(0, 0, (0, 1, 2)))
    cloud.receive(Block(0, 1, (0, 1), instead=(1, 1)))
    cloud.receive(Block(0, 2, (0,), instead=(1, 4)))
    with pytest.raises(ProtocolError, match=complaint):
        cloud.receive(dataclasses.replace(BESIDE, **changes))


@pytest.mark.parametrize(
    "changes", [{"scheme": "residual", "temperature": 0.8}, {"capabilities": ("leaves",)}]
)
def test_streams_that_have_no_drafts_beside_refuse_them(changes):
    has = changes.pop("capabilities", ("further", "leaves", "trees"))
    welcome = promised(V, capabilities=has)
    cloud = TargetSession(asked(prompt=PROMPT, **changes), welcome)
    with pytest.raises(ProtocolError, match="which this stream has not"):
        cloud.receive(BESIDE)


def test_without_a_bonus_they_are_kept_as_well():
    cloud, (a, b) = session(bonus=False), TEXT[:2]
    cloud.receive(Block(0, 0, ((a + 1) % V,)))
    cloud.receive(Block(0, 1, (b,), instead=(1, a)))
    work = cloud.poll()
    assert work.sides == ()
    cloud.complete(work, rows_of(work, cloud.tokens))
    assert cloud.branch.waiting(partial=True) == (b,)
