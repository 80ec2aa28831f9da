"""Evidence: what goes in comes out, in how many bits, and nonsense is refused."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwire.errors import ConfigError, ProtocolError
from draftwire.sampling import (
    SCHEMES,
    SamplingParams,
    law_of,
    loss_of,
    make_decider,
    make_proposer,
    qs,
)
from draftwire.sampling.evidence import (
    BitReader,
    BitWriter,
    Lattice,
    get_set,
    put_set,
    quantise,
)
from draftwire.sampling.qs import RESOLUTIONS

WITH_EVIDENCE = ["residual", "qs", "separate"]
VOCABULARIES = (4096, 32000, 151936)


def _log2_comb(n: int, k: int) -> float:
    gamma = math.lgamma
    return (gamma(n + 1) - gamma(k + 1) - gamma(n - k + 1)) / math.log(2)


def bound_bits(vocab_size: int, support: int, resolution: int) -> int:
    """Return the bits that the published scheme counts for one law.

    ``ceil(log2 C(V, S)) + ceil(log2 C(l + S - 1, S - 1))``; with ``S = V`` it is the
    dense lattice's.

    Source:
        https://arxiv.org/abs/2507.00605 and https://arxiv.org/abs/2510.09942.
    """
    return math.ceil(_log2_comb(vocab_size, support) - 1e-6) + math.ceil(
        _log2_comb(resolution + support - 1, support - 1) - 1e-6
    )


def logits_from(seed, rows, vocab, spread=2.0):
    return np.random.default_rng(seed).normal(0, spread, (rows, vocab))


def params_of(scheme, **options):
    return SamplingParams(scheme, **{"temperature": 1.0, "top_k": 40, **options})


# ---- round trips


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 2**24), st.integers(0, 127))
def test_sets_come_back(seed, universe, k):
    k = min(k, universe)
    rng = np.random.default_rng(seed)
    if universe < 5000:
        ids = sorted(rng.permutation(universe)[:k].tolist())
    else:
        ids = sorted({*rng.integers(0, universe, 2 * k).tolist()})[:k]
    bits = BitWriter()
    put_set(bits, ids, universe)
    bits.put(5, 3)
    reader = BitReader(bits.done())
    assert get_set(reader, len(ids), universe) == ids
    assert reader.take(3) == 5
    reader.finish()


@pytest.mark.parametrize("universe", [1016, 1017, 4096, 2**24])
def test_sets_at_the_ends_of_a_vocabulary_come_back(universe):
    for ids in (list(range(127)), list(range(universe - 127, universe))):
        bits = BitWriter()
        put_set(bits, ids, universe)
        assert get_set(BitReader(bits.done()), 127, universe) == ids


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([2, 3, 9, 128, 129, 1000, *VOCABULARIES, 2**24]),
    st.integers(1, 128),
    st.sampled_from(RESOLUTIONS),
    st.floats(0.05, 5.0),
)
def test_quantised_laws_come_back(seed, vocab, support, resolution, flat):
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, vocab, support))
    weights = quantise(rng.dirichlet(np.full(len(ids), flat)), resolution)
    assert weights.sum() == resolution and weights.min() >= 0
    kept = np.flatnonzero(weights)
    draft = Lattice(ids[kept], weights[kept], resolution)
    if len(kept) == 1:
        draft = Lattice(ids[kept], np.ones(1, np.int64), 1)
    token = draft.draw(rng.random())
    evidence = qs.encode(draft, token, vocab)
    assert len(evidence) <= qs.MAX_BYTES
    bits = BitReader(evidence)
    found = qs.decode(bits, token, vocab)
    bits.finish()
    assert np.array_equal(found.ids, draft.ids)
    assert np.array_equal(found.weights, draft.weights)
    assert found.total == draft.total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 300), st.integers(0, 5), st.integers(0, 5))
def test_blocks_can_be_cut_and_joined_anywhere(seed, vocab, first, more):
    rows = logits_from(seed, first + more + 1, vocab)
    for scheme in SCHEMES:
        params = params_of(scheme, temperature=0.0 if scheme == "greedy" else 1.0)
        proposer, decider = make_proposer(params, vocab), make_decider(params, vocab)
        proposals = [proposer.propose(rows[j], 9 + j) for j in range(first + more)]
        a, b = proposals[:first], proposals[first:]
        assert proposer.pack(proposals) == proposer.pack(a) + proposer.pack(b)
        # The same logits on both sides: rounding aside, everything is accepted.
        tokens = [p.token for p in a]
        decision = decider.decide(tokens, proposer.pack(a), rows[: first + 1], 9)
        assert 0 <= decision.accepted <= first and -1 <= decision.token < vocab
        if decision.token == -1:
            correction = proposer.correct(
                a[decision.accepted], decision.evidence, 9 + decision.accepted
            )
            assert 0 <= correction < vocab and correction != tokens[decision.accepted]


# ---- bits and their bound


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize(
    ("support", "resolution"),
    [(1, 16), (4, 16), (16, 16), (16, 100), (64, 100), (64, 400), (128, 400), (128, 768)],
)
def test_bits_stay_at_their_bound(vocab, support, resolution):
    rng = np.random.default_rng(support)
    limit = 1.02 * bound_bits(vocab, support, resolution) + 16
    ids = np.sort(rng.choice(vocab, support, replace=False))
    # All weights above 0 is the dearest case; the width does not depend on the ids.
    weights = quantise(np.full(support, 1 / support), resolution)
    draft = Lattice(ids, weights, resolution)
    if support == 1:
        draft = Lattice(ids, np.ones(1, np.int64), 1)
    bits = 8 * len(qs.encode(draft, int(ids[0]), vocab))
    assert bits <= limit
    # Nor is the code longer than the number of such laws asks for.
    if support > 1:
        own = bound_bits(vocab - 1, support - 1, 0)
        own += bound_bits(resolution - 1, support - 1, 0)
        assert bits <= 1.02 * own + 16 + 7  # 7 to fill the last byte
    else:
        assert bits == 8


def test_bound_is_that_of_the_published_examples():
    assert bound_bits(151936, 151936, 100) == 1197
    assert bound_bits(151936, 16, 100) == 294


def test_dense_lattice_is_that_of_the_whole_vocabulary():
    vocab, settings_ = 151936, qs.QsSettings(128, budget=0.0, resolution=100)
    params = SamplingParams("qs", 1.0, seed=3)
    sizes = []
    for spread in (0.3, 1.0, 2.5):
        logits = logits_from(8, 1, vocab, spread)[0]
        proposal = qs.QsProposer(params, vocab, settings_).propose(logits, 1)
        whole = quantise(law_of(logits, params).dense(vocab), 100)
        assert np.array_equal(proposal.evidence.ids, np.flatnonzero(whole))
        assert np.array_equal(proposal.evidence.weights, whole[whole > 0])
        sizes.append(8 * len(qs.encode(proposal.evidence, proposal.token, vocab)))
    assert max(sizes) <= 1.02 * bound_bits(vocab, vocab, 100) + 16


# ---- how much is sent


def test_a_confident_law_takes_one_byte():
    logits = np.zeros(151936)
    logits[77] = 40.0
    proposer = make_proposer(SamplingParams("qs", 1.0), 151936)
    proposal = proposer.propose(logits, 0)
    assert proposal.token == 77 and proposer.pack([proposal]) == b"\0"


def test_threshold_drops_its_budget_on_average():
    vocab = 100  # less than the support can hold, so that only the threshold cuts
    for budget in (0.02, 0.1):
        proposer = qs.QsProposer(
            SamplingParams("qs", 1.0), vocab, qs.QsSettings(128, budget=budget)
        )
        dropped = []
        for t in range(1000):
            logits = logits_from(t, 1, vocab, 2.5)[0]
            law = law_of(logits, SamplingParams("qs", 1.0))
            threshold = proposer.threshold
            dropped.append(law.probs[law.probs < threshold].sum())
            proposer.propose(logits, t)
        # The rule telescopes: the average is off by what the threshold moved at most.
        assert abs(np.mean(dropped[100:]) - budget) < 0.2 * budget


def test_a_budget_that_the_support_cannot_keep_is_told():
    rows = logits_from(6, 40, 2000, 1.0)
    for temperature, told in ((0.2, False), (1.5, True)):
        params = SamplingParams("qs", temperature, seed=3)
        proposer, left = make_proposer(params, 2000), []
        for t, row in enumerate(rows):
            assert not proposer.shortfall() or t >= 16
            probs = law_of(row, params).probs
            kept = np.sort(probs[probs >= proposer.threshold])[::-1]
            left.append(kept[64:].sum())
            proposer.propose(row, t)
        assert (proposer.shortfall() != "") == told == (np.mean(left) > 0.1)
    assert f"left out {np.mean(left):.0%}" in proposer.shortfall()


def test_a_discarded_branch_leaves_no_trace():
    rows = logits_from(5, 12, 500)
    params = SamplingParams("qs", 1.0, seed=1)
    straight, wandering = make_proposer(params, 500), make_proposer(params, 500)
    for t in range(6):
        straight.propose(rows[t], t)
        wandering.propose(rows[t], t)
    for t in range(4, 9):  # rejected at 3: these were drafted for nothing
        wandering.propose(rows[-1] * 3, t)
    for t in range(4, 9):
        a, b = straight.propose(rows[t], t), wandering.propose(rows[t], t)
        assert straight.pack([a]) == wandering.pack([b])


def test_finer_tolerance_sends_more():
    logits = logits_from(5, 1, 500, 1.0)[0]
    sizes = []
    for tolerance in (0.2, 0.05, 0.01):
        proposer = qs.QsProposer(
            SamplingParams("qs", 1.0), 500, qs.QsSettings(tolerance=tolerance)
        )
        sizes.append(len(proposer.pack([proposer.propose(logits, 0)])))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"support": 0},
        {"support": 129},
        {"budget": 1.0},
        {"rate": -0.1},
        {"resolution": 99},
        {"tolerance": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        qs.QsSettings(**options)


def test_separate_refuses_what_it_cannot_cover():
    for make in (make_proposer, make_decider):
        make(SamplingParams("separate", 1.0, top_k=64), 32000)
        make(SamplingParams("separate", 1.0), 64)
        for top_k in (0, 65):
            with pytest.raises(ConfigError, match="corrections would be biased"):
                make(SamplingParams("separate", 1.0, top_k=top_k), 32000)
    lossy = SamplingParams("separate-lossy", 1.0)
    make_proposer(lossy, 32000), make_decider(lossy, 32000)
    assert "approximates" in loss_of(lossy, 32000)
    assert loss_of(SamplingParams("separate-lossy", 1.0, top_k=64), 32000) == ""


def test_every_card_and_loss_say_the_same():
    for name, scheme in SCHEMES.items():
        card = scheme.card
        assert card.name == name
        if card.sampled:
            lost = loss_of(SamplingParams(name, 0.8, top_k=40 if card.exact else 0), 32000)
            assert card.exact == (lost == "")
            assert card.exact != ("LOSSY" in card.note)
    assert loss_of(SamplingParams("argmax", 0.0), 32000) == ""
    assert "greedy" in loss_of(SamplingParams("argmax", 1.0), 32000)


# ---- nonsense


def halves(*numbers):
    return struct.pack(f"<{len(numbers)}e", *numbers)


@pytest.mark.parametrize(
    ("scheme", "tokens", "evidence", "complaint"),
    [
        ("residual", [], b"\0\0", "2 bytes of evidence"),
        ("residual", [1], halves(0, 0.5, float("inf"), 0.5), "no probability"),
        ("residual", [1], halves(0, 0, 0, 0), "sums to 0.0000"),
        ("residual", [-1], halves(0, 0.5, 0.5, 0), "outside the vocabulary"),
        ("qs", [1], b"\0" * 2000, "at most 512 each"),
    ],
)
def test_nonsense_from_the_device_is_refused(scheme, tokens, evidence, complaint):
    """Beside what the vectors have: test_vectors.py."""
    decider = make_decider(SamplingParams(scheme, 1.0), 4)
    rows = logits_from(1, len(tokens) + 1, 4)
    with pytest.raises(ProtocolError, match=complaint):
        decider.decide(tokens, evidence, rows, 5)


def test_entries_that_leave_no_correction_are_refused():
    bits = BitWriter()
    for value, width in ((1, 7), (1, 3), (0, 24)):
        bits.put(value, width)
    proposer = make_proposer(SamplingParams("separate", 1.0), 8)
    with pytest.raises(ProtocolError, match="leave no correction"):
        proposer.correct(proposer.propose(np.zeros(8), 3), bits.done(), 3)


def test_only_separate_lets_the_device_correct():
    for scheme in ("coupled", "match", "residual", "qs", "argmax"):
        proposer = make_proposer(SamplingParams(scheme, 1.0), 8)
        proposal = proposer.propose(np.zeros(8), 3)
        with pytest.raises(ProtocolError, match="the cloud"):
            proposer.correct(proposal, b"\0", 3)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(WITH_EVIDENCE), st.integers(0, 1000))
def test_one_changed_byte_gives_a_verdict_or_a_protocol_error(data, scheme, seed):
    vocab, k = 50, 3
    params = params_of(scheme)
    proposer, decider = make_proposer(params, vocab), make_decider(params, vocab)
    rows = logits_from(seed, k + 1, vocab)
    proposals = [proposer.propose(rows[j], j) for j in range(k)]
    evidence = bytearray(proposer.pack(proposals))
    at = data.draw(st.integers(0, len(evidence) - 1))
    evidence[at] ^= data.draw(st.integers(1, 255))
    try:
        decision = decider.decide([p.token for p in proposals], bytes(evidence), rows, 0)
    except ProtocolError:
        return
    assert 0 <= decision.accepted <= k and -1 <= decision.token < vocab
