"""Several lanes of one draft: what one forward over them gives, and who takes part."""

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cached_target import FedDraft
from places import MODELS

from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Plan, simulate
from draftwire.errors import ConfigError
from draftwire.packages import Parallel
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.runtime.engines.onnx import _zeros
from draftwire.runtime.pacing.length_rule import Costs
from draftwire.sampling import SamplingParams, make_proposer

REFERENCE = MODELS / "reference.draft"
PROMPT = (5, 9, 40, 7)


def alone(tokens):
    model = DraftModel.load(REFERENCE)
    return model.forward(tokens).copy()


def near(found, wanted):
    assert np.argmax(found) == np.argmax(wanted)
    assert found == pytest.approx(wanted, abs=0.35)  # int8 rounds rows of a batch together


def test_each_lane_of_a_forward_says_what_it_would_say_alone():
    model = DraftModel.load(REFERENCE)
    first, second, third = model.beside
    model.forward(PROMPT)
    third.copy(model, 3)
    third.forward((77,))
    found = model.wide({0: 11, 3: 12})
    near(found[3], alone((*PROMPT[:3], 77, 12)))
    near(found[0], alone((*PROMPT, 11)))
    assert [lane.length for lane in (model, *model.beside)] == [5, 0, 0, 5]
    second.copy(third, 5)
    near(model.wide({2: 13})[2], alone((*PROMPT[:3], 77, 12, 13)))
    assert first.length == 0 and model.length == 5
    near(model.forward((14,)), alone((*PROMPT, 11, 14)))


def test_a_full_lane_that_has_no_part_gives_up_a_token_and_one_that_has_says_so():
    model = DraftModel.load(REFERENCE, max_context=4)
    first, second = model.beside[:2]
    for lane in (model, first):
        lane.forward(PROMPT)
    model.rewind(2)
    second.copy(model, 2)
    near(model.wide({0: 40, 2: 40})[2], alone(PROMPT[:3]))
    assert [lane.length for lane in (model, first, second)] == [3, 3, 3]
    first.forward((7,))
    with pytest.raises(ConfigError, match="context of 4 is full"):
        model.wide({0: 7, 1: 7})


@pytest.mark.skipif(
    not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="only Linux gives a lane small pages"
)
def test_a_lane_takes_memory_as_it_is_written():
    caches = _zeros((4, 1, 1 << 18, 16), np.float32)  # 16 MiB each
    before = resident()
    caches[:, :, :4] = 1
    assert resident() - before < 18 << 20 and not caches[:, :, 4:].any()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_draft_with_masks_has_one_lane():
    model = DraftModel.load(REFERENCE)
    assert len(model.beside) == 3
    sizes = {"vocab_size": 8, "context": 8, "precision": "int8"}
    assert not DraftModel(model._engine, **sizes, parallel=Parallel((7,), 4)).beside


class Lanes(FedDraft):
    """Says each time the number of its tokens, and notes each forward."""

    def __init__(self, lanes=3):
        super().__init__(lambda fed: np.eye(64, dtype=np.float32)[len(fed)])
        self.forwards = []
        self.beside = [FedDraft(self.says) for _ in range(1, lanes)]

    def forward(self, tokens):
        self.forwards.append({0: len(tokens)})
        return super().forward(tokens)

    def wide(self, tokens):
        self.forwards.append(tokens)
        lanes = (super(), *self.beside)
        return {number: lanes[number].forward([one]) for number, one in tokens.items()}


@pytest.fixture
def model():
    return Lanes()


@pytest.fixture
def drafter(model):
    found = Drafter(model, 64)
    found.begin(1, make_proposer(SamplingParams(), 64))
    found.submit(1, Draft(1, 0, PROMPT, 3))
    return found


def drafts(step):
    return [(d.lane, d.branch, d.proposal.token) for d in step.drafts]


def test_lanes_go_on_together_and_copy_what_another_has_read(model, drafter):
    assert drafts(drafter.step()) == [(0, 1, 4)]
    drafter.submit(1, Draft(7, 0, (*PROMPT, 60), 2, lane=2, role="beside"))
    step = drafter.step()
    assert drafts(step) == [(0, 1, 5), (2, 7, 5)] and (step.fed, step.lanes) == (1, 3)
    assert model.forwards == [{0: 4}, {0: 4, 2: 60}]
    assert drafts(drafter.step()) == [(0, 1, 6), (2, 7, 6)]
    # The main line has none to draft until its next order: nobody steps without it.
    drafter.submit(1, Draft(8, 0, (*PROMPT, 60, 5, 6), 2, lane=2, role="beside"))
    assert drafter.step() is None
    drafter.submit(1, Draft(8, 0, (*PROMPT, 60, 5, 6), 2, lane=2, role="alone"))
    assert drafts(drafter.step()) == [(2, 8, 7)]
    # What was prepared leads: it goes on where it is, and the other lane takes it over.
    drafter.submit(1, Draft(9, 5, (5, 6, 7), 1, lane=2))
    drafter.submit(1, Draft(2, 4, (60, 5, 6, 61), 1, role="beside"))
    assert drafts(drafter.step()) == [(0, 2, 8), (2, 9, 8)]
    assert model.forwards[-1] == {0: 61, 2: 7}


def test_a_lane_that_lacks_more_reads_on_before_it_drafts(model, drafter):
    drafter.step()
    drafter.submit(1, Draft(7, 0, (*PROMPT[:2], 50, 51, 52), 1, lane=1, role="beside"))
    assert [drafts(drafter.step()) for _ in range(2)] == [[(0, 1, 5)], [(0, 1, 6)]]
    drafter.submit(1, Draft(1, 7, (), 1))
    assert drafts(drafter.step()) == [(0, 1, 7), (1, 7, 5)]


def test_an_engine_that_fails_ends_the_orders_of_all_lanes(model, drafter):
    drafter.step()
    drafter.submit(1, Draft(7, 0, (*PROMPT, 60), 2, lane=1, role="beside"))
    model.wide = lambda tokens: 1 / 0
    with pytest.raises(ZeroDivisionError):
        drafter.step()
    assert drafter.step() is None


def test_what_a_lane_adds_to_a_step_is_measured():
    costs = Costs()
    assert costs.lane_part == 0.25
    for _ in range(8):
        costs.stepped(1, 0.010)
        costs.stepped(4, 0.013)
    assert costs.lane_part == pytest.approx(0.1)


def test_where_lanes_pay_in_simulation():
    facts = {"text__acceptance": 0.8, "link__rtt_ms": 10.0, "draft__step_ms": 12.0}
    board = find("agx-a100-llama").replaced("assumed", "a test", **facts)
    plan = Plan(board, scheme_named("ours"), streams=2, tokens=150, seed=3)
    one = simulate(plan)
    several = simulate(replace(plan, profile=board.replaced("assumed", "", draft__lanes=4)))
    assert several.ms_per_token < 0.97 * one.ms_per_token
    used = [sum([s.counts.outcomes_used for s in run.streams]) for run in (one, several)]
    assert used[1] > used[0]
    assert [s.ids for s in one.streams] == [s.ids for s in several.streams]
