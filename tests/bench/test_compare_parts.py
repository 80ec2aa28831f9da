"""What a comparison is made of: its arithmetic, its schemes, its clocks."""

from __future__ import annotations

import time

import numpy as np
import pytest

from draftwire import sampling
from draftwire.bench.compare.carried import carried_scheme, carrying
from draftwire.bench.compare.pace import paced, paced_draft
from draftwire.bench.compare.server import played
from draftwire.bench.sim.cloud import ForwardCost, TextBackend
from draftwire.bench.sim.facts import Exit, find
from draftwire.bench.sim.run import Plan, real_job
from draftwire.bench.sim.schemes import ROWS, carried_sizes, schemes_named
from draftwire.bench.sim.show import render_compared
from draftwire.bench.sim.simulate import simulate
from draftwire.bench.sim.table import different_texts, rows_of
from draftwire.bench.sim.texts import (
    PlayedDraft,
    Synthetic,
    TextDraft,
    parse_luck,
    played_texts,
)
from draftwire.errors import ConfigError, ModelError, ProtocolError
from draftwire.packages import Family
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.base import SlotInput

GREEDY = SamplingParams("greedy", 0.0, 0, 1.0, 1)


def report(scheme, repeat, first_s, last_s, **other):
    """A run of 11 tokens, one of which came first; 5 forwards of 20 ms; 4 J."""
    return {
        "tokens": 11,
        "token_ids": other.get("ids", list(range(11))),
        "rounds": 5,
        "drafted": 20,
        "accepted": 6,
        "target_forwards": 5,
        "mode": {"controller": "fixed:4"},
        "sampling": {"scheme": "greedy"},
        "seconds": {"first_token": first_s, "draft": 0.1, "verify": 0.1},
        "bytes": {"up_payload": 22, "down_payload": 33, "up_wire": 220, "down_wire": None},
        "energy": {"joules": other.get("joules", 4.4), "source": "x", "why_null": "none"},
        "bench": {
            "scheme": scheme,
            "link": other.get("link", "wan"),
            "repeat": repeat,
            "prompt": 0,
            "place": other.get("place", "device"),
            "first_tokens": 1,
            "last_token_s": last_s,
            "same_text": other.get("same_text", True),
        },
    }


def test_rows_by_hand():
    runs = [
        # Repeat 2 was made while the machine was twice as slow.
        report("cloud", 0, 0.1, 1.1),
        report("ours", 0, 0.2, 0.7),
        report("cloud", 1, 0.1, 2.1),
        report("ours", 1, 0.2, 1.2),
        report("cloud", 2, 0.1, 1.1),
        report("ours", 2, 0.2, 0.9),
    ]
    cloud, ours = rows_of(runs)
    assert cloud["ms_per_token_each"] == pytest.approx([100, 200, 100])
    assert cloud["ms_per_token"] == pytest.approx(100) and cloud["ratio"] == 1.0
    assert ours["ms_per_token"] == pytest.approx(70)
    assert ours["ratio"] == pytest.approx(0.5)  # of 0.5, 0.5 and 0.7, not 70 over 100
    assert ours["first_token_ms"] == pytest.approx(200)
    assert ours["accepted_per_block"] == pytest.approx(6 / 5)
    assert ours["acceptance"] == pytest.approx(0.3)
    assert ours["forwards_per_token"] == pytest.approx(5 / 11)
    assert ours["forward_ms"] == pytest.approx(20)
    assert ours["capacity_tokens_s"] == pytest.approx(110)
    assert ours["up_payload_per_token"] == 2 and ours["up_wire_per_token"] == 20
    assert ours["down_wire_per_token"] is None
    assert ours["joules_per_token"] == pytest.approx(0.4)


def test_what_is_not_known_stays_unknown():
    (row,) = rows_of([report("colocated", 0, None, None, joules=None, place="cloud")])
    assert row["ms_per_token"] is None and row["ratio"] is None
    assert row["first_token_ms"] is None
    assert row["joules_per_token"] is None and row["joules_why_null"] == "none"
    assert row["joules_source"] is None
    assert row["capacity_tokens_s"] == pytest.approx(11 / 0.2)  # drafting counts there


def test_law_1_skips_schemes_with_texts_of_their_own():
    same = [report("a", 0, 0, 1), report("b", 0, 0, 1)]
    other = report("c", 0, 0, 1, ids=[9] * 11)
    assert different_texts(same) == []
    assert different_texts([*same, other]) == [
        "prompt 1: c over wan, repeat 1 differs from a over wan, repeat 1 from token 1 on"
    ]
    other["bench"]["same_text"] = False
    assert different_texts([*same, other]) == []
    short = report("c", 0, 0, 1, ids=list(range(10)))
    assert "from token 11 on" in different_texts([*same, short])[0]
    # Where the target's text is known, everybody is held to it.
    known = {0: [*range(11), 99]}
    assert different_texts(same, known) == []
    assert len(different_texts(same, {0: [7] * 11})) == 2


def test_where_colocated_wins_the_table_says_so():
    runs = [report("colocated", 0, 0.1, 0.3, place="cloud"), report("await", 0, 0.1, 0.7)]
    document = {
        "simulated": False,
        "paced_to": "p",
        "text": "t",
        "tokens": 11,
        "repeats": 1,
        "temperature": 0.0,
        "links": [{"name": "wan", "method": "proxy"}],
        "rows": rows_of(runs),
        "left_out": [{"scheme": "qs", "why": "because"}],
        "different": [],
        "compared": 2,
        "runs": runs,
    }
    said = render_compared(document)
    assert "co-located decoding wins: the best distributed row takes 3.00 of it" in said
    assert "await serves 2.00 times as many tokens on one server" in said
    assert "left out: qs: because" in said


def test_every_row_has_a_length_where_it_needs_one():
    for entry in schemes_named("all", ROWS):
        assert "{" not in entry.policy(4)
        assert entry.sampling(0.8, 2048) in sampling.SCHEMES
    await_ = schemes_named("await:7", ROWS)[0]
    assert await_.policy(4) == "fixed:7" and await_.name == "await:7"
    assert ROWS["vanilla"].sampling(0.0, 2048) == "greedy+4096"
    assert ROWS["latency"].sampling(0.0, 2048) == "greedy"
    sizes = carried_sizes(schemes_named("cloud,vanilla,qs,picospec"), 0.0, 2048)
    assert sizes == (4, 35, 4096)
    assert carried_sizes(schemes_named("vanilla"), 0.8, 2048) == ()


def test_carried_bytes_are_there_and_are_counted():
    scheme = carried_scheme(10)
    proposer = scheme.make_proposer(GREEDY, 8)
    decider = scheme.make_decider(GREEDY, 8)
    logits = np.zeros((2, 8), np.float32)
    logits[0, 3] = logits[1, 5] = 9
    proposal = proposer.propose(logits[0], 4)
    assert proposal.token == 3 and proposal.confidence is None
    proposer.insight = True
    seen = proposer.propose(logits[0], 4)
    assert seen.evidence == proposal.evidence and seen.runner_up is not None
    assert 0.9 < seen.confidence < 1
    evidence = proposer.pack([proposal])
    assert len(evidence) == 10 and len(proposer.pack([proposal] * 3)) == 30
    assert decider.decide([3], evidence, logits, 4)[:2] == (1, 5)
    assert decider.decide([2], evidence, logits, 4)[:2] == (0, 3)
    with pytest.raises(ProtocolError, match="10 each"):
        decider.decide([3], evidence[:-1], logits, 4)


def test_a_carrying_scheme_is_known_no_longer_than_needed():
    with carrying([12]):
        assert "greedy+12" in sampling.SCHEMES
    assert "greedy+12" not in sampling.SCHEMES


class Package:
    id, name, version, family = "0" * 64, "played", "v1", Family("f", None, "a" * 64)
    vocab_size, context, bos_id, eos_ids = 1000, 400, None, (0,)


@pytest.fixture
def texts():
    source = Synthetic(parse_luck("0.7"), prompt_tokens=9)
    return played_texts(source, 3, 30, vocab_size=Package.vocab_size)


def test_played_models_know_their_text_by_its_prompt(texts):
    target = TextBackend.of(Package(), targets=played(texts), slots=2)
    draft = PlayedDraft(played(texts))
    for text in (texts[2], texts[0]):
        slot = target.allocate()
        tokens = np.array(text.prompt + text.tokens[:4], np.int64)
        target.forward([SlotInput(slot, 0, tokens[:8], 0)])
        rows = target.forward([SlotInput(slot, 8, tokens[8:], 5)])[0]
        assert rows.argmax(axis=-1).tolist() == list(text.tokens[:5])
        fed = np.concatenate([tokens[8:], [1, 2, 3, 4]])
        leaves = SlotInput(slot, 8, fed, 9, (1, 2, 2, 2), (0, 0, 1, 2))
        found = target.forward([leaves])[0].argmax(axis=-1).tolist()
        assert found == [*text.tokens[:5], text.tokens[1], *text.tokens[2:5]]
        target.release(slot)
        logits = draft.forward(text.prompt)
        assert int(logits.argmax()) == text.proposals[0]
        draft.rewind(0)
    with pytest.raises(ConfigError, match="does not fit a vocabulary of 40"):
        played_texts(Synthetic(parse_luck("1")), 1, 30, vocab_size=40)
    with pytest.raises(ModelError, match="no text begins"):
        draft.forward([1, 2, 3])


def test_forwards_take_the_profiles_time_and_exits_their_share(texts):
    exits = [Exit(0.25, 1.0, 1.0, "assumed", "x"), Exit(0.75, 1.0, 1.0, "assumed", "x")]
    inner = TextBackend.of(Package(), exits, played(texts), slots=1)
    target = paced(inner, ForwardCost(0.02, read_s=0.001), layers=1000)
    slot = target.allocate()
    prompt = np.array(texts[0].prompt, np.int64)
    began = time.perf_counter()
    target.forward([SlotInput(slot, 0, prompt[:8], 0)])
    assert time.perf_counter() - began >= 0.028  # a base, and a millisecond a token
    heard = []
    began = time.perf_counter()
    item = SlotInput(slot, 8, prompt[8:], 1)
    rows = target.forward([item], lambda n, r: heard.append((n, time.perf_counter(), r)))
    ended = time.perf_counter()
    assert [n for n, _, _ in heard] == [0, 1]
    for (_, when, row), share in zip(heard, (0.25, 0.75)):
        assert share * 0.02 <= when - began <= ended - began
        assert row[0].argmax() == rows[0].argmax()
    assert ended - began >= 0.02


def test_a_draft_that_is_too_slow_is_counted(texts):
    draft = PlayedDraft(played(texts))
    pacer = paced_draft(draft, lambda tokens: 0.0 if tokens > 1 else 0.003)
    draft.forward(texts[0].prompt)
    began = time.perf_counter()
    draft.forward(texts[0].tokens[:1])
    assert time.perf_counter() - began >= 0.003
    assert pacer.count == 2 and pacer.missed >= 1
    assert draft.length == 10
    draft.rewind(9)
    assert draft.length == 9


def test_a_paced_draft_has_the_lanes_of_its_profile(texts):
    text = texts[0]
    draft = PlayedDraft(played(texts), lanes=4)
    pacer = paced_draft(draft, lambda tokens: 0.002, 2, 0.5)
    (other,) = draft.beside
    draft.forward(text.prompt)
    other.copy(draft, len(text.prompt))
    began = time.perf_counter()
    rows = draft.wide({0: text.tokens[0], 1: text.tokens[0]})
    assert time.perf_counter() - began >= 0.003
    assert (rows[0] == rows[1]).all() and pacer.count == 2  # one forward of both
    assert int(rows[1].argmax()) == text.proposals[1]


def test_a_paced_draft_that_says_several_tokens_at_once_takes_its_time(texts):
    draft = TextDraft(texts[0], at_once=4)
    pacer = paced_draft(draft, lambda tokens: 0.001 * tokens)
    began = time.perf_counter()
    rows = draft.ahead(texts[0].prompt, 4)
    assert time.perf_counter() - began >= 0.001 * (len(texts[0].prompt) + 3)
    assert len(rows) == 4 and pacer.count == 1


@pytest.mark.parametrize("own_pace", [True, False])
def test_co_located_rows_leave_their_slots(texts, own_pace):
    targets = played(texts)
    backend = TextBackend.of(Package(), targets=targets, slots=1)
    draft = PlayedDraft(targets)
    profile = find("nano-a100@1").replaced("assumed", "a test", cloud__forward_ms=2)
    for block in (1, 3, 5):
        plan = Plan(
            profile, ROWS["colocated"], block=block, streams=2, tokens=8, vocabulary=500,
            job=lambda index: real_job(draft, texts[index].prompt), backend=backend,
            real_time=True, own_pace=own_pace, draft_context=2000,
        )  # fmt: skip
        outcome = simulate(plan)
        for report, text in zip(outcome.reports, texts):
            assert tuple(report["token_ids"]) == text.tokens[:8]
        assert (outcome.joules_per_token is None) is own_pace
