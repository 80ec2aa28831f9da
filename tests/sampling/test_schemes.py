"""Greedy and coupled decoding: the target's own text, whatever the draft proposes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwire.errors import ConfigError
from draftwire.sampling import SamplingParams, law_of, laws, make_decider, make_proposer
from draftwire.sampling.coupled import race


def logits_from(seed, rows, vocab, spread=2.0):
    return np.random.default_rng(seed).normal(0, spread, (rows, vocab)).astype(np.float32)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_a_draw_from_many_tokens_is_that_of_the_law_in_float64(spread, monkeypatch):
    params = SamplingParams("match", 0.8, seed=1)
    logits = logits_from(4, 1, 20000, spread)[0]
    logits[[7, 999, 19999]] += 6 * spread
    law = law_of(logits, params)
    ends = np.cumsum(law.probs)
    rng = np.random.default_rng(5)
    at_edges = ends[rng.integers(0, 20000, 200)]
    near = [at_edges, at_edges * (1 + 1e-9), at_edges * (1 - 1e-9)]
    units = np.concatenate([rng.random(400), *near, ends[[6, 7, 998, 999]], [1e-300, 1]])
    wanted = [law.draw(unit) for unit in units]
    asked = []
    monkeypatch.setattr(laws, "law_of", lambda *_: asked.append(1) or law)
    assert [laws.draw_of(logits, params, unit) for unit in units] == wanted
    assert 0 < len(asked) < len(units)
    asked.clear()
    laws.draw_of(logits, SamplingParams("match", 0.8, top_k=3, seed=1), 0.5)
    assert asked


def test_coupled_acceptance_meets_its_formula():
    params = SamplingParams("coupled", 1.0, seed=11)
    p = law_of(logits_from(2, 1, 12)[0], params)
    q = law_of(logits_from(2, 1, 12)[0] + logits_from(3, 1, 12, 0.5)[0], params)
    formula = sum(
        1 / sum(max(p.probs[i] / p.probs[j], q.probs[i] / q.probs[j]) for i in range(12))
        for j in range(12)
    )
    n = 6000
    agreed = sum(race(p, 11, t) == race(q, 11, t) for t in range(n)) / n
    assert abs(agreed - formula) < 4 * (formula * (1 - formula) / n) ** 0.5


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 700),
    st.integers(0, 50),
    st.floats(0.05, 1.0),
    st.floats(0.2, 3.0),
)
def test_law_against_a_plain_reading_of_top_k_and_top_p(seed, vocab, k, p, t):
    logits = logits_from(seed, 1, vocab)[0]
    law = law_of(logits, SamplingParams("coupled", t, k, p))
    order = sorted(range(vocab), key=lambda i: (-logits[i], i))[: k or vocab]
    weights = np.exp((logits.astype(np.float64) - logits.max()) / t)
    mass, kept = 0.0, []
    goal = p * weights[order].sum()
    for i in order:
        kept.append(i)
        mass += weights[i]
        if p < 1 and mass >= goal * (1 - 1e-12):
            break
    full = law.dense(vocab)
    assert abs(full.sum() - 1) < 1e-12
    assert set(np.flatnonzero(full)) == set(kept)
    assert np.allclose(full[kept], weights[kept] / weights[kept].sum(), atol=1e-12)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": -1}, "top_k -1"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_out_of_range_values_are_named(params, complaint):
    with pytest.raises(ConfigError, match=complaint):
        SamplingParams("coupled", **params)


def test_a_scheme_at_the_wrong_temperature_says_what_to_do():
    with pytest.raises(ConfigError, match="needs a temperature above 0"):
        make_decider(SamplingParams("coupled", 0.0), 10)
    with pytest.raises(ConfigError, match="cannot sample"):
        make_proposer(SamplingParams("greedy", 1.0), 10)
    with pytest.raises(ConfigError, match="unknown sampling scheme"):
        make_proposer(SamplingParams("nonsense"), 10)
