"""Several tokens in one forward: what is drafted, its law, and the choice of the way."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from draftwire import rules
from draftwire.errors import ConfigError
from draftwire.packages import Parallel
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.auto import Auto
from draftwire.runtime.pacing.controller import (
    DRAFTING,
    FixedLength,
    Round,
    make_controller,
)
from draftwire.runtime.pacing.decisions import Memory
from draftwire.runtime.pacing.parallel import ParallelPacing, Prices
from draftwire.sampling import SamplingParams, make_decider, make_proposer
from draftwire.sampling.qs import QsProposer, QsSettings

VOCAB, MASK = 12, 12


class Rows:
    """A model whose row for a place depends on the text that is fed and on the depth."""

    def __init__(self, block=4, mask_ids=(MASK,), width=VOCAB + 1):
        self.parallel, self.mask_ids = Parallel(mask_ids, block), mask_ids
        self.width, self.fed, self.calls = width, [], []

    @property
    def length(self):
        return len(self.fed)

    def rewind(self, length):
        assert 0 <= length <= len(self.fed)
        del self.fed[length:]

    def row(self, depth):
        seed = [len(self.fed), depth, *self.fed]
        return np.random.default_rng(seed).normal(0, 2, self.width).astype(np.float32)

    def forward(self, tokens):
        return self.ahead(tokens, 1)[0]

    def ahead(self, tokens, count):
        assert len(tokens) > 0
        self.fed += tokens
        self.calls.append((len(tokens), count))
        return np.stack([self.row(depth) for depth in range(count)])


def drafted(drafter):
    steps = []
    while (step := drafter.step()) is not None:
        steps.append(step)
    return steps


def begun(model, scheme="greedy", temperature=0.0, vocab=VOCAB, **given):
    drafter = Drafter(model, vocab)
    params = SamplingParams(scheme, temperature, seed=7, **given)
    drafter.begin(1, make_proposer(params, vocab))
    return drafter


@pytest.mark.parametrize(
    ("way", "count", "calls", "depths"),
    [
        ("autoregressive", 3, [(3, 1), (1, 1), (1, 1)], [0, 0, 0]),
        ("parallel", 4, [(3, 4)], [0, 1, 2, 3]),
        ("parallel", 6, [(3, 4), (4, 2)], [0, 1, 2, 3, 0, 1]),
        ("hybrid", 5, [(3, 1), (1, 4)], [0, 0, 1, 2, 3]),
        ("hybrid", 1, [(3, 1)], [0]),
    ],
)
def test_forwards_of_each_way(way, count, calls, depths):
    model = Rows()
    drafter = begun(model)
    drafter.submit(1, Draft(1, 0, (1, 2, 3), count, way))
    steps = drafted(drafter)
    assert model.calls == calls
    assert [step.proposal.depth for step in steps] == depths
    fed = [(step.fed, step.masks + 1) for step in steps if step.fed]
    assert fed == calls, "what the clock is told"


def test_each_row_is_drawn_at_its_own_place():
    """Coupled: the noise of place ``p + j``, so that a target that agrees is matched."""
    model = Rows()
    drafter = begun(model, "coupled", 0.9)
    drafter.submit(1, Draft(1, 0, (1, 2, 3), 4, "parallel"))
    found = [step.proposal.token for step in drafted(drafter)]
    model.fed = [1, 2, 3]
    proposer = make_proposer(SamplingParams("coupled", 0.9, seed=7), VOCAB)
    rows = [model.row(depth)[:VOCAB] for depth in range(4)]
    assert found == [proposer.propose(row, 3 + j).token for j, row in enumerate(rows)]


def test_a_new_branch_forgets_the_rows_and_more_of_the_same_keeps_them():
    model = Rows(block=6)
    drafter = begun(model)
    drafter.submit(1, Draft(1, 0, (1, 2, 3), 6, "parallel"))
    first = [drafter.step().proposal.token for _ in range(2)]
    drafter.submit(1, Draft(1, 5, (), 4, "parallel"))  # two are there: four more
    more = [step.proposal.token for step in drafted(drafter)]
    assert model.calls == [(3, 6)] and len(more) == 4
    drafter.submit(1, Draft(2, 4, (9,), 3, "parallel"))  # another second token
    steps = drafted(drafter)
    assert model.calls[1:] == [(2, 3)] and len(steps) == 3
    assert model.fed == [1, 2, 3, first[0], 9]


def test_a_mask_is_never_proposed():
    """Not where it is a row of the connection's vocabulary either."""
    model = Rows(mask_ids=(5,), width=VOCAB)
    row = model.row
    model.row = lambda depth: np.where(np.arange(VOCAB) == 5, 50, row(depth))
    for way in DRAFTING:
        drafter = begun(model)
        drafter.submit(1, Draft(1, 0, (1, 2, 3), 40, way))
        assert 5 not in [step.proposal.token for step in drafted(drafter)]
        model.rewind(0)


@pytest.mark.parametrize("scheme", ["residual", "qs"])
def test_the_law_is_the_targets_behind_masks(scheme):
    """Two tokens of a block that is said at once, over their whole joint law."""
    vocab, runs = 4, 6000
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1.0, vocab), rng.normal(0, 1.0, (vocab, vocab))

    class Two(Rows):
        def row(self, depth):
            return np.array([0.5, -0.5, 0.3, 0.1, 9.0], np.float32) * (1 - 0.6 * depth)

    counts = np.zeros((vocab, vocab))
    for seed in range(runs):
        params = SamplingParams(scheme, 1.0, seed=seed)
        proposer, decider = make_proposer(params, vocab), make_decider(params, vocab)
        if isinstance(proposer, QsProposer):
            proposer.settings = QsSettings.of("")
        model = Two(mask_ids=(vocab,), width=vocab + 1)
        drafter = Drafter(model, vocab)
        drafter.begin(1, proposer)
        drafter.submit(1, Draft(1, 0, (1,), 2, "parallel"))
        proposals = [step.proposal for step in drafted(drafter)]
        tokens = [p.token for p in proposals]
        assert model.calls == [(1, 2)]
        rows = np.stack([first, second[tokens[0]], second[tokens[1]]]).astype(np.float32)
        said = decider.decide(tokens, proposer.pack(proposals), rows, 1)
        token = said.token
        if token < 0:
            place = 1 + said.accepted
            token = proposer.correct(proposals[said.accepted], said.evidence, place)
        text = [*tokens[: said.accepted], token]
        if len(text) == 1:  # what the next block begins with
            row = second[text[0]].astype(np.float32)
            text.append(decider.decide([], b"", row[None], 2).token)
        counts[text[0], text[1]] += 1
    law = np.exp(first) / np.exp(first).sum()
    law = law[:, None] * (np.exp(second) / np.exp(second).sum(1, keepdims=True))
    chi = ((counts - runs * law) ** 2 / (runs * law)).sum()
    assert chi < 45, "15 degrees of freedom: once in 10,000"


# ---- the choice


class Board:
    """Stop and wait on a clock of its own: prices by rows, chances by depth."""

    def __init__(self, chances, row, one_s=0.01, wait_s=0.035, seed=0):
        self.chances, self.row, self.one_s, self.wait_s = chances, row, one_s, wait_s
        self.rng = random.Random(seed)
        self.mode = Mode.of(preempt="off")
        self.now_s, self.tokens, self.ways = 0.0, 0, []

    def price(self, rows):
        return self.one_s * (1 + self.row * (rows - 1))

    def run(self, controller, blocks):
        k, unread = len(self.chances), 1
        controller.begin(self.mode)
        for _ in range(blocks):
            limit, way = controller.limit(), controller.way
            self.ways += [way] if limit else []
            block, began_s, left, depth = [], self.now_s, 0, 0
            while len(block) < limit:
                if left:
                    depth, left = depth + 1, left - 1
                else:
                    alone = way == "autoregressive" or (way == "hybrid" and not block)
                    masks = 0 if alone else min(k, limit - len(block)) - 1
                    seconds = self.price(unread + masks)
                    self.now_s += seconds
                    controller.forwarded(unread, masks, seconds)
                    depth, left, unread = 0, masks, 0
                unread += 1
                block.append(SimpleNamespace(depth=depth, confidence=None, forced=False))
                if len(block) < limit and controller.enough(block):
                    break
            accepted = 0
            while accepted < len(block):
                if self.rng.random() >= self.chances[block[accepted].depth]:
                    break
                accepted += 1
            unread = max(1, unread - len(block) + accepted + 1)
            self.now_s += self.wait_s
            self.tokens += accepted + 1
            if block:
                controller.leaving(block)
                controller.sent(len(block))
            controller.judged(len(block), accepted)
            controller.measured(
                Round(self.now_s, accepted + 1, len(block), accepted, self.now_s - began_s,
                      self.wait_s - 0.025, 0.0, 0.025, 80, self.wait_s - 0.025)
            )  # fmt: skip
        return self.now_s / self.tokens


SHARP = (0.95, 0.92, 0.9, 0.9, 0.88, 0.85, 0.85, 0.8)  # predictable text, greedy
FLAT = (0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)  # open text, sampled
MIDDLE = (0.9, 0.45, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7)  # the token behind the first is hard


@pytest.mark.parametrize("chances", [SHARP, FLAT, MIDDLE], ids=["sharp", "flat", "middle"])
@pytest.mark.parametrize(
    ("spec", "row"), [("fixed:4", 0.12), ("fixed:8", 0.05), ("fixed:8", 0.6)]
)
def test_never_slower_than_the_best_way(spec, chances, row):
    """A fixed length: beside each way forced, on the same clock."""
    blocks = 3000
    forced = {}
    for way in DRAFTING:
        rule = make_controller(f"{spec}:{way}")
        board = Board(chances, row)
        forced[way] = board.run(ParallelPacing(rule, Parallel((1,), 8)), blocks)
        assert set(board.ways) == {way}
    board = Board(chances, row)
    found = board.run(ParallelPacing(make_controller(spec), Parallel((1,), 8)), blocks)
    assert found < 1.03 * min(forced.values()), (forced, found)
    best = min(forced, key=forced.get)
    rest = sorted(forced.values())
    if rest[1] > 1.1 * rest[0]:
        late = board.ways[500:]
        assert late.count(best) > 0.9 * len(late), "the rest are trials"


@pytest.mark.parametrize(
    ("chances", "row", "way"),
    [
        (SHARP, 0.05, "parallel"),
        (FLAT, 0.12, "autoregressive"),
        (SHARP, 2.0, "autoregressive"),
    ],
)
def test_auto_chooses_by_what_it_measures(chances, row, way):
    board = Board(chances, row, one_s=0.008)
    controller = ParallelPacing(Auto(), Parallel((1,), 8))
    found = board.run(controller, 2000)
    late = board.ways[300:]
    assert late.count(way) > 0.9 * len(late), {w: late.count(w) for w in DRAFTING}
    alone = Board(chances, row, one_s=0.008).run(Auto(), 2000)
    assert found < 1.04 * alone
    assert way == "autoregressive" or found < 0.85 * alone
    assert way in controller.explain()
    told = controller.report()
    assert sum(told[w]["blocks"] for w in DRAFTING) == len(board.ways) > 1800
    assert told["acceptance_by_position"][0] == pytest.approx(chances[0], abs=0.15)


def test_text_that_changes_changes_the_way():
    board = Board(SHARP, 0.05, one_s=0.008)
    controller = ParallelPacing(Auto(), Parallel((1,), 8))
    board.run(controller, 400)
    board.chances = FLAT
    board.run(controller, 600)
    late = board.ways[-300:]
    assert late.count("autoregressive") > 0.85 * len(late)


def test_a_manifest_says_where_to_begin():
    hopeless = Parallel((1,), 8, (0.9, 0.05, *[0.05] * 6))
    board = Board(FLAT, 0.3)
    board.run(ParallelPacing(make_controller("fixed:4"), hopeless), 4)
    assert set(board.ways) == {"autoregressive"}
    sharp = Board(SHARP, 0.05)
    sharp.run(ParallelPacing(make_controller("fixed:4"), Parallel((1,), 8, SHARP)), 4)
    assert set(sharp.ways) == {"parallel"}


def test_prices_by_rows():
    prices = Prices()
    assert prices.of(8) > prices.of(1) > 0
    for _ in range(20):
        prices.learn(1, 0.010)
        for rows in (8, 12):
            prices.learn(rows, 0.010 + 0.001 * rows)
    assert prices.of(1) == pytest.approx(0.010)
    assert prices.of(10) == pytest.approx(0.020, rel=0.02)
    prices.learn(8, 10.0)  # a stall of the machine
    assert prices.of(8) < 0.04
    early = Prices()
    early.learn(1, 0.5)  # a stall again, at the first forward
    for _ in range(3):
        early.learn(8, 0.012)
    assert early.of(1) <= early.of(8) == pytest.approx(0.012)


def test_a_way_that_the_draft_has_not():
    memory = Memory("off", b"", 9, measures=False)
    for spec in ("fixed:4:parallel", FixedLength(4, "hybrid")):
        with pytest.raises(ConfigError, match="one forward, and this one") as caught:
            memory.controller(spec)
        assert caught.value.hint.startswith("fixed:4, or")
    assert memory.controller("fixed:4:autoregressive").name == "fixed:4:autoregressive"


def test_a_way_that_does_not_exist():
    with pytest.raises(ConfigError, match="no way of drafting 'sideways'") as caught:
        make_controller("fixed:4:sideways")
    assert "autoregressive, parallel, hybrid" in caught.value.hint
    assert make_controller("fixed:4:hybrid").name == "fixed:4:hybrid"
    assert rules.CONTROLLER.fits("fixed:4:hybrid")
    assert not rules.CONTROLLER.fits("fixed:4:sideways")
