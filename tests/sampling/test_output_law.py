"""The law of the output, scheme by scheme, and every planted mistake that breaks it.

Two instruments look at each scheme:

``law_statistic`` runs draft and target as Markov chains over a small vocabulary, with the
real noise, blocks, corrections and bonus tokens, and compares the counts of every token
after every pair of tokens with the target's law (chi-square). Power: with 9,000 tokens
and 4 ids a bias that moves 5 % of the mass in each context is found with probability
above 0.99 (``test_power`` measures it); a true law fails once in 10,000 seeds, and the
seeds are fixed.

``exact_law`` takes the noise into its own hand and integrates over it: the accept coin,
the draw of the draft and that of the correction are step functions of one uniform number
each, whose steps are found by bisection. That gives the law of the first token to 1e-7.
"""

from __future__ import annotations

import numpy as np
import pytest

from draftwire.sampling import (
    SCHEMES,
    Decision,
    Proposal,
    SamplingParams,
    law_of,
    make_decider,
    make_proposer,
    philox,
    qs,
    residual,
    separate,
)
from draftwire.sampling.evidence import Lattice, quantise
from draftwire.sampling.laws import Law
from draftwire.sampling.philox import Domain
from draftwire.sampling.qs import encode
from draftwire.sampling.rejection import residual_of

VOCAB = 4
TOKENS = 5000
LIMIT = 4.0  # normal deviates: a true law passes but for 1 seed in 10,000


def chains(seed, vocab=VOCAB, apart=0.8):
    """Return target and draft logits ``(vocab, vocab)``: a row follows each token."""
    rng = np.random.default_rng(seed)
    target = rng.normal(0, 1.0, (vocab, vocab))
    return target, target + rng.normal(0, apart, (vocab, vocab))


def run(proposer, decider, target, draft, tokens=TOKENS, block=2, correct=None):
    """Return the text that the two halves make of two Markov chains."""
    text = [0, 0]
    while len(text) < tokens:
        proposals, last = [], text[-1]
        for j in range(block):
            proposals.append(proposer.propose(draft[last], len(text) + j))
            last = proposals[-1].token
        ids = [p.token for p in proposals]
        rows = target[[text[-1], *ids]]
        decision = decider.decide(ids, proposer.pack(proposals), rows, len(text))
        token = decision.token
        if token == -1:
            at = decision.accepted
            token = proposer.correct(proposals[at], decision.evidence, len(text) + at)
        text += [*ids[: decision.accepted], token]
    return text[:tokens]


def law_statistic(proposer, decider, params, target, draft, **options):
    """Return how many normal deviates the output is off the target's law."""
    text = np.array(run(proposer, decider, target, draft, **options))
    v = len(target)
    laws = np.array([law_of(row, params).dense(v) for row in target])
    counts = np.zeros((v, v, v))
    np.add.at(counts, (text[:-2], text[1:-1], text[2:]), 1)
    chi2, freedom = 0.0, 0
    for row, law in zip(counts.reshape(-1, v), np.tile(laws, (v, 1))):
        if row[law == 0].any():
            return float("inf")
        expected = row.sum() * law
        likely = expected >= 5
        if likely.sum() < 2:
            continue
        # Rare cells are pooled into one.
        seen = np.append(row[likely], row[~likely].sum())
        hoped = np.append(expected[likely], expected[~likely].sum())
        seen, hoped = (seen, hoped) if hoped[-1] >= 1 else (seen[:-1], hoped[:-1])
        chi2 += ((seen - hoped) ** 2 / hoped).sum()
        freedom += len(seen) - 1
    # Wilson and Hilferty: the cube root of a chi-square is nearly normal.
    spread = 2 / (9 * freedom)
    return ((chi2 / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


EXACT = [
    ("coupled", {}),
    ("match", {}),
    ("residual", {}),
    ("residual", {"top_p": 0.8}),
    ("qs", {}),
    ("qs", {"top_k": 3}),
    ("separate", {}),
    ("separate", {"top_k": 3, "temperature": 0.7}),
]


def test_every_scheme_that_claims_exactness_is_looked_at():
    sampled = {n for n, s in SCHEMES.items() if s.card.exact and s.card.sampled}
    assert sampled == {name for name, _ in EXACT}


@pytest.mark.parametrize(("scheme", "options"), EXACT)
def test_output_has_the_targets_law(scheme, options):
    params = SamplingParams(scheme, **{"temperature": 1.0, "seed": 17, **options})
    target, draft = chains(1)
    halves = make_proposer(params, VOCAB), make_decider(params, VOCAB)
    assert law_statistic(*halves, params, target, draft) < LIMIT


@pytest.mark.parametrize("block", [1, 5])
def test_the_law_holds_for_any_block_length(block):
    params = SamplingParams("qs", 1.0, seed=block)
    target, draft = chains(2)
    halves = make_proposer(params, VOCAB), make_decider(params, VOCAB)
    assert law_statistic(*halves, params, target, draft, block=block) < LIMIT


class Biased:
    """A proposer and decider in one: the target's chain with 5 % of the mass moved."""

    def __init__(self, target, moved, seed):
        laws = np.exp(target) / np.exp(target).sum(axis=1, keepdims=True)
        order = np.argsort(laws, axis=1)
        rows = np.arange(len(laws))
        laws[rows, order[:, -1]] -= moved
        laws[rows, order[:, 0]] += moved
        self.laws, self.seed = laws, seed

    def propose(self, logits, position):
        return Proposal(0)

    def pack(self, proposals):
        return b""

    def decide(self, tokens, evidence, logits, position):
        row = np.flatnonzero((self.target == logits[0]).all(axis=1))[0]
        coin = philox.coin(self.seed, position, Domain.CORRECT)
        return Decision(0, Law(None, self.laws[row]).draw(coin))


@pytest.mark.parametrize(("moved", "share"), [(0.0, 0.0), (0.05, 1.0)])
def test_power(moved, share):
    params = SamplingParams("match", 1.0)
    found = []
    for seed in range(3):
        target, draft = chains(1)
        biased = Biased(target, moved, seed)
        biased.target = target
        found.append(law_statistic(biased, biased, params, target, draft, block=1) >= LIMIT)
    assert np.mean(found) == share


# ---- planted mistakes


class FaultyDecider:
    """Rejection sampling on qs or residual evidence with one thing wrong."""

    def __init__(self, fault, params, scheme):
        self.fault, self.params, self.unpack = fault, params, scheme.unpack

    def decide(self, tokens, evidence, logits, position):
        drafts = self.unpack(tokens, evidence, logits.shape[1])
        seed, draft = self.params.seed, None
        for j, token in enumerate(tokens):
            law, draft = law_of(logits[j], self.params), drafts[j]
            p, q = law.prob(token), draft.weight(token) / draft.total
            ratio = q / p if self.fault == "inverted ratio" else p / q
            shared = self.fault == "shared draft and accept coin"
            domain = Domain.DRAFT if shared else Domain.ACCEPT
            if philox.coin(seed, position + j, domain) > ratio:
                return Decision(j, self.correction(law, draft, logits[j], position + j))
        k = len(tokens)
        law = law_of(logits[k], self.params)
        if self.fault == "bonus from the residual":
            law = residual_of(law, draft)
        return Decision(k, law.draw(philox.coin(seed, position + k, Domain.CORRECT)))

    def correction(self, law, draft, logits, position):
        rest = residual_of(law, draft)
        if self.fault == "residual from raw logits":
            with np.errstate(divide="ignore"):
                raw = np.log(np.bincount(draft.ids, draft.weights, len(logits)))
            over = np.maximum(logits - raw, 0)
            over[~np.isfinite(over)] = 0
            rest = Law(None, over / over.sum()) if over.sum() else law
        elif self.fault == "correction from the target":
            rest = law
        shared = self.fault == "shared accept and correction coin"
        domain = Domain.ACCEPT if shared else Domain.CORRECT
        return rest.draw(philox.coin(self.params.seed, position, domain))


class QuantiseAfterSampling:
    """Draws from the draft's law, and sends a coarse lattice of it."""

    def __init__(self, params):
        self.params = params

    def propose(self, logits, position):
        law = law_of(logits, self.params)
        token = law.draw(philox.coin(self.params.seed, position, Domain.DRAFT))
        weights = quantise(law.probs, 4)
        weights[token] = max(weights[token], 1)
        weights[np.argmax(weights)] -= weights.sum() - 4
        ids = np.flatnonzero(weights)
        if len(ids) == 1:
            return Proposal(token, None, Lattice(ids, np.ones(1, np.int64), 1))
        return Proposal(token, None, Lattice(ids, weights[ids], 4))

    def pack(self, proposals):
        return b"".join([encode(p.evidence, p.token, VOCAB) for p in proposals])


class UnmovedThreshold(qs.QsProposer):
    """Chooses the support after the draw: it must hold the token."""

    def propose(self, logits, position):
        law = law_of(logits, self._params)
        token = law.draw(philox.coin(self._params.seed, position, Domain.DRAFT))
        kept = np.unique([token, int(np.argmax(law.probs))])
        probs = law.probs[kept] / law.probs[kept].sum()
        if len(kept) == 1:
            return Proposal(token, None, Lattice(kept, np.ones(1, np.int64), 1))
        weights = np.maximum(quantise(probs, 100), 1)
        weights[np.argmax(weights)] -= weights.sum() - 100
        return Proposal(token, None, Lattice(kept, weights, 100))


FAULTS = [
    "inverted ratio",
    "shared draft and accept coin",
    "shared accept and correction coin",
    "residual from raw logits",
    "correction from the target",
    "bonus from the residual",
    "quantise after sampling",
    "support after sampling",
    "none",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_mistakes_are_caught(fault):
    params = SamplingParams("qs", 1.0, seed=5)
    target, draft = chains(3)
    proposer = make_proposer(params, VOCAB)
    if fault == "quantise after sampling":
        proposer = QuantiseAfterSampling(params)
    elif fault == "support after sampling":
        proposer = UnmovedThreshold(params, VOCAB, qs.QsSettings())
    decider = FaultyDecider(fault, params, qs)
    statistic = law_statistic(proposer, decider, params, target, draft)
    assert (statistic >= LIMIT) == (fault != "none"), statistic


def test_lossy_schemes_are_caught_too(monkeypatch):
    target, draft = chains(4)
    params = SamplingParams("argmax", 1.0)
    halves = make_proposer(params, VOCAB), make_decider(params, VOCAB)
    assert law_statistic(*halves, params, target, draft) >= LIMIT
    monkeypatch.setattr(separate, "SUPPORT", 1)
    params = SamplingParams("separate-lossy", 1.0)
    halves = make_proposer(params, VOCAB), make_decider(params, VOCAB)
    assert law_statistic(*halves, params, target, draft) >= LIMIT


def test_dropping_a_weak_token_after_a_look_at_it_is_caught():
    """Why ``Card.any_draft`` matters: a block may end after a weak token, not before."""
    params = SamplingParams("qs", 1.0, seed=6)
    target, draft = chains(3)
    decider = make_decider(params, VOCAB)
    proposer = make_proposer(params, VOCAB)

    short = {"block": 1, "tokens": 4000}

    class Choosy:
        def decide(self, tokens, evidence, logits, position):
            q = law_of(draft[np.flatnonzero((target == logits[0]).all(axis=1))[0]], params)
            if q.prob(tokens[0]) < 0.4:
                tokens, evidence, logits = [], b"", logits[:1]
            return decider.decide(tokens, evidence, logits, position)

    assert law_statistic(proposer, Choosy(), params, target, draft, **short) >= LIMIT
    # With shared noise the target's text does not care what was drafted.
    params = SamplingParams("coupled", 1.0, seed=6)
    decider, proposer = make_decider(params, VOCAB), make_proposer(params, VOCAB)
    assert law_statistic(proposer, Choosy(), params, target, draft, **short) < LIMIT


# ---- the law of one token, exactly


def steps(function, low=0.0, high=1.0):
    """Return ``{value: measure}`` of a step function on (0, 1]."""
    found = {}

    def split(a, fa, b, fb, depth):
        if depth > 6 and (fa == fb or b - a < 1e-9):
            found[fa] = found.get(fa, 0.0) + (b - a) / 2
            found[fb] = found.get(fb, 0.0) + (b - a) / 2
            return
        m = (a + b) / 2
        fm = function(m)
        split(a, fa, m, fm, depth + 1)
        split(m, fm, b, fb, depth + 1)

    first = max(low, 1e-12)
    split(low, function(first), high, function(high), 0)
    return found


class Noise:
    """Stands in for ``philox.coin``: one number for each domain."""

    def __init__(self):
        self.units = {}

    def coin(self, seed, position, domain):
        return self.units[domain]


def exact_law(proposer, decider, target, draft, noise):
    """Return the law of the first token that a block of one draft commits."""
    law = np.zeros(len(target))
    rows = np.stack([target, target])

    def drafted(unit):
        noise.units = {Domain.DRAFT: unit}
        return proposer.propose(draft, 7).token

    # Draws follow the order of the ids, so the same token never comes back later.
    lower = 0.0
    for token, share in steps(drafted).items():
        noise.units = {Domain.DRAFT: lower + share / 2}
        lower += share
        proposal = proposer.propose(draft, 7)
        assert proposal.token == token
        evidence = proposer.pack([proposal])

        def first(accept, correct, proposal=proposal, evidence=evidence):
            noise.units = {Domain.ACCEPT: accept, Domain.CORRECT: correct}
            decision = decider.decide([proposal.token], evidence, rows, 7)
            if decision.accepted:
                return proposal.token
            if decision.token >= 0:
                return decision.token
            return proposer.correct(proposal, decision.evidence, 7)

        kept = steps(lambda u, f=first: f(u, 0.5) == f(1e-12, 0.5))
        stays = kept[True] if first(1e-12, 0.5) == token else 0.0
        law[token] += share * stays
        if stays < 1 - 1e-9:
            for other, part in steps(lambda u, f=first: f(1.0, u)).items():
                law[other] += share * (1 - stays) * part
    return law


class HalfFloatsAfterSampling:
    """Draws from the draft's law as it is, and sends fp16 of it."""

    def __init__(self, params):
        self.params = params

    def propose(self, logits, position):
        law = law_of(logits, self.params)
        token = law.draw(philox.coin(self.params.seed, position, Domain.DRAFT))
        return Proposal(token, None, law.probs.astype("<f2").tobytes())

    def pack(self, proposals):
        return b"".join([p.evidence for p in proposals])


@pytest.mark.parametrize("scheme", ["residual", "qs", "separate"])
@pytest.mark.parametrize("vocab", [2, 5, 8])
def test_exact_law_of_one_token(scheme, vocab, monkeypatch):
    noise = Noise()
    monkeypatch.setattr(philox, "coin", noise.coin)
    params = SamplingParams(scheme, 0.9, top_k=0 if vocab == 5 else 6)
    target, draft = (row[0] for row in chains(vocab, vocab))
    halves = make_proposer(params, vocab), make_decider(params, vocab)
    law = exact_law(*halves, target, draft, noise)
    assert np.abs(law - law_of(target, params).dense(vocab)).max() < 2e-7


@pytest.mark.parametrize("fault", ["unrounded draw", "inverted ratio", "none"])
def test_exact_law_catches_even_a_lost_bit(fault, monkeypatch):
    noise = Noise()
    monkeypatch.setattr(philox, "coin", noise.coin)
    params = SamplingParams("residual", 1.0)
    target, draft = (row[0] for row in chains(9, 6))
    proposer = make_proposer(params, 6)
    if fault == "unrounded draw":
        proposer = HalfFloatsAfterSampling(params)
    law = exact_law(proposer, FaultyDecider(fault, params, residual), target, draft, noise)
    error = np.abs(law - law_of(target, params).dense(6)).max()
    assert (error < 2e-7) == (fault == "none"), error
