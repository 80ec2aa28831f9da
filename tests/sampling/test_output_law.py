"""The law of the output, scheme by scheme, exactly, and planted mistakes that break it.

``exact_laws`` takes the noise into its own hand and integrates over it: the accept coin,
the draw of the draft, that of the correction and that of the bonus token are step
functions of one uniform number each, whose steps are found by bisection. That gives the
law of the first token that a block of one draft commits, and of the bonus token behind an
accepted one, to 1e-7. What the shipped ends make of longer blocks, whatever crosses on
the way, is held to the law in tests/laws/test_pipelined_laws.py.
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
from draftwire.sampling.rejection import residual_of

NEAR = 2e-7
ALWAYS, NEVER = 1e-12, 1.0  # coins of acceptance


class Noise:
    """Stands in for ``philox.coin``: one number for each domain."""

    def __init__(self):
        self.units = {}

    def coin(self, seed, position, domain):
        return self.units[domain]


@pytest.fixture
def noise(monkeypatch):
    found = Noise()
    monkeypatch.setattr(philox, "coin", found.coin)
    return found


def logits_of(seed, vocab):
    """Return what a draft says, and a target after it and after one more token."""
    rng = np.random.default_rng(seed)
    target = rng.normal(0, 1.0, (2, vocab))
    return target[0] + rng.normal(0, 0.8, vocab), target


def steps(function):
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

    split(0.0, function(1e-12), 1.0, function(1.0), 0)
    return found


def exact_laws(proposer, decider, draft, rows, noise):
    """Return the law of the first token, and of the one behind an accepted draft."""
    laws = np.zeros((2, rows.shape[1]))

    def drafted(unit):
        noise.units[Domain.DRAFT] = unit
        return proposer.propose(draft, 7).token

    # Draws follow the order of the ids, so the same token never comes back later.
    lower = 0.0
    for token, share in steps(drafted).items():
        noise.units[Domain.DRAFT] = lower + share / 2
        lower += share
        proposal = proposer.propose(draft, 7)
        assert proposal.token == token
        evidence = proposer.pack([proposal])

        def decide(accept, correct, token=token, evidence=evidence):
            noise.units.update({Domain.ACCEPT: accept, Domain.CORRECT: correct})
            return decider.decide([token], evidence, rows, 7)

        def first(accept, correct, proposal=proposal, decide=decide):
            decision = decide(accept, correct)
            if decision.accepted:
                return proposal.token
            if decision.token >= 0:
                return decision.token
            return proposer.correct(proposal, decision.evidence, 7)

        for accepted, part in steps(lambda u, f=decide: f(u, 0.5).accepted).items():
            coin = ALWAYS if accepted else NEVER
            for other, measure in steps(lambda u, f=first, c=coin: f(c, u)).items():
                laws[0, other] += share * part * measure
        if decide(ALWAYS, 0.5).accepted:
            for other, measure in steps(lambda u, f=decide: f(ALWAYS, u).token).items():
                laws[1, other] += share * measure
    return laws / np.maximum(laws.sum(axis=1, keepdims=True), 1e-9)


def off(laws, rows, params):
    """Return how far laws are from the target's."""
    wanted = [law_of(row, params).dense(rows.shape[1]) for row in rows[: len(laws)]]
    return np.abs(laws - wanted).max()


EXACT = [
    ("match", {}),
    ("residual", {}),
    ("residual", {"top_p": 0.8}),
    ("qs", {}),
    ("qs", {"top_k": 3}),
    ("separate", {"top_k": 6}),
    ("separate", {"top_k": 3, "temperature": 0.7}),
]


def test_every_scheme_that_claims_exactness_is_looked_at():
    sampled = {n for n, s in SCHEMES.items() if s.card.exact and s.card.sampled}
    # What noise is behind coupled draws is in test_vectors.py and test_noise.py.
    assert sampled == {"coupled"} | {name for name, _ in EXACT}


@pytest.mark.parametrize(("scheme", "options"), EXACT)
@pytest.mark.parametrize("vocab", [2, 5, 8])
def test_output_has_the_targets_law(scheme, options, vocab, noise):
    params = SamplingParams(scheme, **{"temperature": 0.9, **options})
    draft, rows = logits_of(vocab, vocab)
    halves = make_proposer(params, vocab), make_decider(params, vocab)
    laws = exact_laws(*halves, draft, rows, noise)
    # Where one number both accepts and draws, the second law is not that of a bonus.
    assert off(laws[: 1 + (scheme != "match")], rows, params) < NEAR


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


class Late(qs.QsProposer):
    """Draws from the draft's law first, and then sends one that the token is in.

    A coarse lattice of all ids, or one of the token and the likeliest alone.
    """

    fault = ""

    def propose(self, logits, position):
        law = law_of(logits, self._params)
        token = law.draw(philox.coin(self._params.seed, position, Domain.DRAFT))
        ids, total = np.arange(len(logits)), 4
        if self.fault == "support after sampling":
            ids, total = np.unique([token, int(np.argmax(law.probs))]), 100
        weights = quantise(law.probs[ids] / law.probs[ids].sum(), total)
        weights = np.maximum(weights, ids == token)
        weights[np.argmax(weights)] -= weights.sum() - total
        kept = weights > 0
        if kept.sum() == 1:
            return Proposal(token, None, Lattice(ids[kept], np.ones(1, np.int64), 1))
        return Proposal(token, None, Lattice(ids[kept], weights[kept], total))


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


FAULTS = [
    "inverted ratio",
    "shared draft and accept coin",
    "shared accept and correction coin",
    "residual from raw logits",
    "correction from the target",
    "bonus from the residual",
    "quantise after sampling",
    "support after sampling",
    "unrounded draw",
    "none",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_mistakes_are_caught(fault, noise):
    scheme = residual if fault == "unrounded draw" else qs
    params = SamplingParams(scheme.CARD.name, 1.0)
    draft, rows = logits_of(9, 6)
    proposer = make_proposer(params, 6)
    if fault == "unrounded draw":
        proposer = HalfFloatsAfterSampling(params)
    elif "after sampling" in fault:
        proposer = Late(params, 6)
        proposer.fault = fault
    laws = exact_laws(proposer, FaultyDecider(fault, params, scheme), draft, rows, noise)
    error = off(laws, rows, params)
    assert (error < NEAR) == (fault == "none"), error


def test_lossy_schemes_are_caught_too(noise, monkeypatch):
    draft, rows = logits_of(4, 4)
    monkeypatch.setattr(separate, "SUPPORT", 1)
    for scheme in ("argmax", "separate-lossy"):
        params = SamplingParams(scheme, 1.0)
        halves = make_proposer(params, 4), make_decider(params, 4)
        assert off(exact_laws(*halves, draft, rows, noise)[:1], rows, params) > 1e-3


@pytest.mark.parametrize("scheme", ["qs", "match"])
def test_dropping_a_weak_token_after_a_look_at_it_is_caught(scheme, noise):
    """Why ``Card.any_draft`` matters: a block may end after a weak token, not before."""
    params, (draft, rows) = SamplingParams(scheme, 1.0), logits_of(3, 4)
    decider = make_decider(params, 4)

    class Choosy:
        def decide(self, tokens, evidence, logits, position):
            if law_of(draft, params).prob(tokens[0]) < 0.4:
                tokens, evidence, logits = [], b"", logits[:1]
            return decider.decide(tokens, evidence, logits, position)

    laws = exact_laws(make_proposer(params, 4), Choosy(), draft, rows, noise)
    assert (off(laws[:1], rows, params) < NEAR) == SCHEMES[scheme].card.any_draft
