"""What the verifier looks up behind the drafts: found, priced, judged, never trusted."""

from __future__ import annotations

import numpy as np
import pytest

from draftwire.errors import ProtocolError
from draftwire.transport.messages import Block, Commit, Finish, Open
from draftwire.verifier.rows import Lookup
from draftwire.verifier.target_session import TargetSession

V = 16


def test_it_finds_what_followed_the_longest_like_end():
    lookup = Lookup([1, 2, 3, 9, 5, 6, 2, 3, 7, 8, 1, 2, 3], 2)
    assert lookup.find([]) == [9, 5], "three tokens alike count for more than two later"
    assert lookup.find([9, 5]) == [6, 2]
    lookup.extend([4])
    assert lookup.find([]) == [], "nothing like it"
    assert lookup.find([7, 8]) == [1, 2], "drafts alone may be the end"
    assert Lookup([3, 3], 2).find([]) == [] and Lookup([1], 2).find([]) == []


def test_a_loop_goes_on():
    assert Lookup([1, 2] * 4, 4).find([]) == [1, 2, 1, 2]
    assert Lookup([7] * 9, 3).find([]) == [7, 7, 7]
    assert Lookup([1, 2] * 4, 3).find([1]) == [2, 1, 2]


def test_what_is_seldom_right_is_not_worth_a_row():
    lookup = Lookup([1, 2, 3, 4, 5, 1, 2], 4)
    assert len(lookup.find([])) == 4, "free rows take all"
    assert len(lookup.find([], 0.1)) == 1
    for _ in range(50):
        lookup.find([])
        lookup.judged(1, 0)
    assert lookup.find([], 0.1) == []
    for _ in range(200):
        lookup.find([])
        lookup.judged(4, 4)
    assert len(lookup.find([], 0.1)) == 4


def session(prompt=(1, 2, 3, 1, 2), further=True, **options):
    request = Open(prompt, "greedy", 0.0, 0, 1.0, 0, options.pop("count", 9), **options)
    found = TargetSession(
        request, vocab_size=V, context=64, max_block=8, further=further,
        lookup=Lookup(prompt, 4),
    )  # fmt: skip
    reading = found.poll()
    found.complete(reading, np.zeros((0, V), np.float32))
    return found


def logits(*ids):
    return np.eye(V, dtype=np.float32)[list(ids)] * 9


def test_a_commit_brings_what_came_true():
    found = session()
    found.receive(Block(0, 0, (3, 1)))
    work = found.poll()
    assert work.drafts == [3, 1, 2, 3, 1, 2] and work.found == 4
    (said,) = found.complete(work, logits(3, 1, 2, 3, 7, 0, 0))
    assert said == Commit(0, 2, 2, forwards=None, further=(3, 7))
    assert found.counts.drafted == found.counts.accepted == 2
    assert (found.counts.found, found.counts.found_right) == (4, 2)
    found.receive(Block(0, 4, (7, 5)))  # one was overtaken, the other waits
    work = found.poll()
    assert work.start == 9 and list(work.tokens) == [7, 5]
    found.complete(work, logits(1, *[0] * (work.rows - 1)))  # behind a wrong draft
    assert (found.counts.found, found.counts.found_right, found.epoch) == (4, 2, 1)


@pytest.mark.parametrize(
    ("options", "finish"),
    [({"count": 3}, Finish.LENGTH), ({"stop_ids": (2,)}, Finish.STOP)],
)
def test_the_text_ends_within_what_came_true(options, finish):
    found = session(**options)
    found.receive(Block(0, 0, (3,)))
    work = found.poll()
    (said,) = found.complete(work, logits(*[3, 1, 2, 3, 7, 0][: work.rows]))
    assert (said.accepted, said.token, said.further) == (1, 1, (2,))
    assert said.finish is finish and len(work.drafts) <= 5


@pytest.mark.parametrize(
    "options", [{"further": False}, {"bonus": False}], ids=["old device", "no bonus"]
)
def test_a_device_that_cannot_take_more_gets_one_token(options):
    found = session(**options)
    found.receive(Block(0, 0, (3, 1)))
    assert found.poll().drafts == [3, 1]


def test_a_device_refuses_what_follows_nothing():
    from draftwire.runtime.edge.in_flight import InFlight
    from draftwire.runtime.edge.lines import Lines
    from draftwire.runtime.edge.verdict import read_verdict

    wire = InFlight(whole=False)
    said = Commit(0, 0, None, Finish.LENGTH, further=(1,))
    with pytest.raises(ProtocolError, match="left out a token"):
        read_verdict(said, wire, Lines(), None, 0)
