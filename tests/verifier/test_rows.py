"""What stands in a forward beside the drafts: found, priced, judged, never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cached_target import CachedTarget
from opens import promised
from verifier_lab import assert_leaves

from draftwire.errors import ProtocolError
from draftwire.transport.messages import Block, Commit, Finish, Open
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.onnx_graph import opened
from draftwire.verifier.kit.target import VOCAB, KitTarget
from draftwire.verifier.rows import Leaves, Lookup
from draftwire.verifier.target_session import TargetSession

V = 16
TINY = Path(__file__).resolve().parents[1] / "fixtures" / "tiny.target"


def session(prompt=(1, 2, 3), leaves=4, further=True, context=64, **options):
    """Return a stream that has read its prompt."""
    lookup = Lookup(prompt, options.pop("lookup")) if "lookup" in options else None
    count = options.pop("count", 9)
    request = Open(prompt, "greedy", 0.0, 0, 1.0, 0, count, **options)
    has = ("leaves", "further") if further else ("leaves",)
    welcome = promised(V, context, capabilities=("processors", "logprobs", *has))
    found = TargetSession(request, welcome, leaves=leaves, lookup=lookup)
    found.complete(found.poll(), np.zeros((0, V), np.float32))
    return found


def logits(*ids):
    return np.eye(V, dtype=np.float32)[list(ids)] * 9


# ---- second choices of the device


def test_a_leaf_must_gain_more_than_its_row_costs():
    leaves = Leaves(4)
    drafts, seconds = [1, 2, 3, 4, 5, 6], [7, 2, 8, 9, 9, 9]
    free = leaves.choose(drafts, seconds, (), 0.0, 99)
    assert free == ((0, (7,)), (2, (8,)), (3, (9,)), (4, (9,))), (
        "a draft again is no second choice"
    )
    assert leaves.choose(drafts, seconds, (), 0.0, 1) == ((0, (7,)),)
    assert leaves.choose(drafts, seconds, (), 0.1, 99) == ((0, (7,)),)
    for _ in range(200):  # a draft that is always right needs none
        leaves.judged(4, 4, 0, ())
    assert leaves.choose(drafts, seconds, (), 0.01, 99) == ()
    for _ in range(200):
        leaves.judged(4, 0, 3, ((0, (3,)),))
    assert (0, (7,)) in leaves.choose(drafts, seconds, (), 0.9, 99)
    for _ in range(200):  # and so does one whose second choice never is
        leaves.judged(4, 0, 3, ((0, (7,)),))
    assert leaves.choose(drafts, seconds, (), 0.05, 99) == ()
    assert Leaves(0).choose(drafts, seconds, (), 0.0, 99) == ()


def test_drafts_behind_a_leaf_go_along_while_they_gain_more_than_their_rows():
    leaves = Leaves(4)
    drafts, seconds = [1, 2, 3], [7, 8]
    sides = [(1, (8, 5, 6)), (2, (9, 4)), (0, (6, 1))]
    free = leaves.choose(drafts, seconds, sides, 0.0, 99)
    assert free == ((0, (6, 1)), (0, (7,)), (1, (8, 5, 6)), (2, (9, 4)))
    assert leaves.choose(drafts, seconds, sides, 0.0, 5) == (*free[:2], (1, (8, 5)))
    # A leaf is right where a draft is wrong, three times in five; what stands behind it
    # four times in five.
    assert leaves.choose(drafts, seconds, sides, 0.09, 99) == (
        *((0, (6, 1)), (0, (7,)), (1, (8,))),
    )
    assert Leaves(2).choose(drafts, seconds, sides, 0.0, 99) == free[:2]


def test_a_leaf_that_is_right_brings_the_token_behind_it():
    found = session()
    found.receive(Block(0, 0, (4, 5, 6), leaves=(7, 8)))
    work = found.poll()
    assert list(work.tokens) == [3, 4, 5, 6, 7, 8] and work.rows == 6
    assert work.drafts == [4, 5, 6] and work.sides == ((0, (7,)), (1, (8,)))
    (said,) = found.complete(work, logits(4, 8, 0, 0, 1, 9))
    assert said == Commit(0, 1, 8, further=(9,))
    assert (found.counts.accepted, found.counts.emitted) == (1, 3)
    assert (found.counts.leaves, found.counts.leaves_right) == (2, 1)
    assert found.epoch == 1 and found.idle, "no forward of its own for the leaf"
    found.receive(Block(1, 3, (2,)))
    work = found.poll()
    assert work.start == 4 and list(work.tokens) == [8, 9, 2] and work.rows == 2


@pytest.mark.parametrize(
    ("options", "further"),
    [({"stop_ids": (7,)}, ()), ({"stop_ids": (9,)}, (9,)), ({"count": 2}, (9,))],
)
def test_the_text_ends_behind_a_leaf_too(options, further):
    found = session(**options)
    found.receive(Block(0, 0, (4, 5), leaves=(7,)))
    work = found.poll()
    (said,) = found.complete(work, logits(7, *[0] * work.drafted, 9))
    finish = Finish.LENGTH if "count" in options else Finish.STOP
    assert (said.token, said.finish, said.further) == (7, finish, further)


@pytest.mark.parametrize(
    "options",
    [{"leaves": 0}, {"further": False}, {"bonus": False}],
    ids=["none agreed on", "old device", "no bonus"],
)
def test_they_are_left_out(options):
    found = session(**options)
    found.receive(Block(0, 0, (4,), leaves=(7,)))
    assert found.poll().sides == ()


def test_they_stay_within_the_context():
    found = session(context=6)
    found.receive(Block(0, 0, (4, 5), leaves=(7, 8)))
    work = found.poll()
    assert work.start + len(work.tokens) == 6 and work.sides == ((0, (7,)),)


def test_more_of_them_than_drafts_is_an_error():
    with pytest.raises(ProtocolError, match="2 second choices for 1 drafts"):
        session().receive(Block(0, 0, (4,), leaves=(7, 8)))


def test_one_overtaken_draft_takes_its_leaf_along():
    found = session(objective="latency")
    found.receive(Block(0, 0, (4,), leaves=(7,), race=True))
    work = found.poll()
    found.receive(Block(0, 1, (5, 6), leaves=(8, 9), race=True))
    found.complete(work, logits(4, 5, 0))  # the bonus is the draft on its way
    assert found.poll().sides == ((0, (9,)),)


def test_rows_of_leaves_are_those_of_chains():
    """Beside a stranger, behind a cache: and nothing of a leaf is left."""
    pytest.importorskip("onnxruntime")
    from draftwire.verifier.backends.onnx_target import OnnxTarget

    target = OnnxTarget(TINY, slots=2, threads=1)
    assert target.leaves
    assert_leaves(target, target.vocab_size, 1e-4)
    assert_leaves(CachedTarget(), 23, 0)
    assert_leaves(KitTarget(), VOCAB, 0)
    exact = OnnxTarget(TINY, slots=2, threads=1, numerics="exact")
    assert not exact.leaves, "their sums would have another order"
    mask = exact.forward([SlotInput(exact.allocate(), 0, np.arange(5), 5)])
    assert np.isfinite(mask[0]).all()


def test_a_graph_of_another_form_is_left_as_it_is():
    damaged = b"", b"\x3a\xff\xff", b"\x3a\x01\x0b", b"\x0e\x00"
    assert [opened(graph) for graph in damaged] == [None] * 4
    graph = (TINY / "model.onnx").read_bytes()
    assert opened(graph) is not None
    assert opened(graph.replace(b"new_mask", b"odd_mask")) is None


# ---- what the verifier looks up


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


def looking(**options):
    return session((1, 2, 3, 1, 2), lookup=4, **options)


def test_a_commit_brings_what_came_true():
    found = looking()
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
    found = looking(**options)
    found.receive(Block(0, 0, (3,)))
    work = found.poll()
    (said,) = found.complete(work, logits(*[3, 1, 2, 3, 7, 0][: work.rows]))
    assert (said.accepted, said.token, said.further) == (1, 1, (2,))
    assert said.finish is finish and len(work.drafts) <= 5


@pytest.mark.parametrize(
    "options", [{"further": False}, {"bonus": False}], ids=["old device", "no bonus"]
)
def test_a_device_that_cannot_take_more_gets_one_token(options):
    found = looking(**options)
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
