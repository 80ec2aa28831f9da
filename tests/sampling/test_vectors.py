"""Golden vectors, and the numbers that no token may come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plain_sampling as plain
import pytest

from draftwire.errors import ConfigError, ModelError
from draftwire.sampling import (
    SCHEMES,
    SamplingParams,
    card_of,
    check_race,
    law_of,
    make_decider,
    make_proposer,
    qs,
)
from draftwire.sampling.coupled import race
from draftwire.sampling.lattice import Lattice
from draftwire.sampling.laws import largest
from draftwire.sampling.races import first_arrivals, noise_of, sparse_noise

TESTS = Path(__file__).resolve().parents[1]
CASES = json.loads((TESTS / "golden" / "sampling_v1.json").read_text())["cases"]


def test_the_vectors_are_what_the_plain_implementation_says():
    assert plain.vectors()["cases"] == CASES


@pytest.mark.parametrize("case", CASES)
def test_vectors(case):
    settings = [case[key] for key in ("temperature", "top_k", "top_p")]
    seed, at = int(case["seed"], 16), case["position"]

    def choose(scheme, dtype, *, noise="philox", cold=False):
        chosen = (0.0, 0, 1.0) if cold else settings
        params = SamplingParams(scheme, *chosen, seed, noise)
        logits = np.array(case["logits"], dtype)
        decider = make_decider(params, len(logits))
        return decider.decide([], b"", logits[None], at).token

    for dtype in (np.float32, np.float64):
        law = law_of(np.array(case["logits"], dtype), SamplingParams("match", *settings))
        kept = range(len(law.probs)) if law.ids is None else law.ids.tolist()
        if dtype is np.float64 or all(float(np.float32(x)) == x for x in case["logits"]):
            assert list(kept) == case["kept"]
            assert choose("greedy", dtype, cold=True) == case["greedy"]
            assert choose("coupled", dtype) == case["coupled"]
            assert choose("coupled", dtype, noise="sparse") == case["coupled_sparse"]
            assert choose("match", dtype) == case["match"]


def test_ties_at_the_edge_of_top_k_go_to_the_smaller_id():
    assert largest(np.array([3.0, 1, 2, 1, 1, 0, 1, 1, 5, 1, 0, 1, 1]), 5).tolist() == [
        8,
        0,
        2,
        1,
        3,
    ]
    logits = np.array([-2, -3, 0, -2, 0, 1, -0.0, 1], np.float32)
    for noise in ("philox", "sparse"):
        params = SamplingParams("coupled", 1.0, 1, 1.0, 9, noise)
        assert make_decider(params, 8).decide([], b"", logits[None], 0).token == 5
    rng = np.random.default_rng(1)
    for size in (7, 300, 5000):
        coarse = rng.integers(-3, 4, size).astype(np.float32)
        for n in (1, 2, 6, 50, size - 1, size, size + 5):
            order = sorted(range(size), key=lambda i: (-coarse[i], i))
            assert largest(coarse, n).tolist() == order[:n]


@pytest.mark.parametrize("noise", ["philox", "sparse"])
def test_a_race_over_all_tokens_is_the_race_over_their_distribution(noise):
    rng = np.random.default_rng(5)
    for trial in range(120):
        size = int(rng.integers(1, 9000))
        spread = float(rng.choice([0.0, 0.5, 2.0, 5.0]))
        logits = rng.normal(0, spread, size).astype(np.float32)
        if trial % 4 == 1:
            logits = np.round(logits)
        if trial % 4 == 2 and size > 1:
            logits[rng.random(size) < 0.6] = -np.inf
            logits[0] = 1.0
        t = float(rng.choice([0.05, 0.8, 1.5]))
        seed, at = int(rng.integers(2**63)), int(rng.integers(4000))
        law = law_of(logits, SamplingParams("coupled", t))
        with np.errstate(divide="ignore", over="ignore"):
            times = noise_of(seed, at, np.arange(size), noise) / law.probs
        expected = [i for i in np.argsort(times, kind="stable")[:2] if times[i] < np.inf]
        top = float(logits.max())
        found = first_arrivals(logits, t, top, seed, at, noise=noise, count=2)
        assert found == expected
        assert race(law, seed, at, noise=noise) == found[0]


def test_sparse_noise_is_exponential_and_any_part_of_it_is_the_same():
    noise = np.concatenate([sparse_noise(3, t, 20000) for t in range(10)])
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) with probability 0.001; the seed is fixed.
    sums = np.arange(1, len(noise) + 1) / len(noise)
    assert np.abs(1 - np.exp(-np.sort(noise)) - sums).max() < 1.95 / len(noise) ** 0.5
    # The early clock: E < 2**-10 for 1 in 1,024 ids; 195 expected, sd 14.
    assert 140 < (noise < 2.0**-10).sum() < 250
    ids = np.array([0, 5, 4095, 4096, 12000, 19999])
    whole = sparse_noise(3, 4, 20000)
    assert np.array_equal(noise_of(3, 4, ids, "sparse"), whole[ids])
    assert np.array_equal(sparse_noise(3, 4, 5000), whole[:5000])
    assert not np.any(sparse_noise(3, 4, 50) == sparse_noise(3, 5, 50))
    # The last bit of a logarithm is the library's.
    assert np.allclose(whole, plain.sparse_noise(3, 4, 20000), rtol=1e-15, atol=0)


def test_sparse_draws_follow_the_distribution():
    logits = np.random.default_rng(1).normal(0, 2, 8).astype(np.float32)
    decider = make_decider(SamplingParams("coupled", 1.0, seed=3, noise="sparse"), 8)
    draws = [decider.decide([], b"", logits[None], t).token for t in range(20000)]
    expected = law_of(logits, SamplingParams("coupled", 1.0)).probs * len(draws)
    observed = np.bincount(draws, minlength=8)
    # 7 degrees of freedom: above 29.9 with probability 1e-4.
    assert ((observed - expected) ** 2 / expected).sum() < 29.9


BROKEN = {
    "one NaN": lambda x: np.where(np.arange(len(x)) == 3, np.nan, x),
    "all NaN": lambda x: x * np.nan,
    "infinity": lambda x: np.where(np.arange(len(x)) == 3, np.inf, x),
    "nothing": lambda x: np.full(len(x), -np.inf),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_that_are_no_numbers_give_no_token(scheme, broken, dtype):
    card = card_of(scheme)
    logits = np.linspace(-2, 2, 12).astype(dtype)
    bad = BROKEN[broken](logits).astype(dtype)
    for t in [0.0] * card.greedy + [0.8] * card.sampled:
        for top_p in (1.0, 0.9):
            params = SamplingParams(scheme, t, 5, top_p)
            with pytest.raises(ModelError, match="no numbers"):
                make_proposer(params, 12).propose(bad, 4)
            proposer, decider = make_proposer(params, 12), make_decider(params, 12)
            drafted = proposer.propose(logits, 4)
            rows = np.stack([bad, bad])
            with pytest.raises(ModelError, match="no numbers"):
                decider.decide([drafted.token], proposer.pack([drafted]), rows, 4)


def test_a_race_takes_only_schemes_that_do_not_select_on_what_was_drawn():
    racing = {name for name in SCHEMES if card_of(name).racing}
    assert racing == {"greedy", "coupled", "match", "argmax"}
    check_race("coupled")
    for scheme in set(SCHEMES) - racing:
        with pytest.raises(ConfigError, match="cannot race"):
            check_race(scheme)


@pytest.mark.parametrize("noise", ["philox", "sparse"])
def test_each_sample_has_noise_of_its_own(noise):
    logits = np.zeros(1000, np.float32)

    def text(**which):
        params = SamplingParams("coupled", 1.0, noise=noise, **which)
        decider = make_decider(params, 1000)
        return tuple(decider.decide([], b"", logits[None], t).token for t in range(4))

    texts = {text(seed=7, sample=sample) for sample in range(20)}
    assert len(texts) == 20 and text(seed=7) in texts
    # Neither a neighbouring seed nor a later position meets a sample's noise.
    others = {text(seed=7 + 2**32 * i) for i in range(1, 20)}
    assert len(texts | others) == 39
    noise_of_plain = getattr(plain, noise + "_noise")
    late = SamplingParams("coupled", 1.0, seed=9, sample=2**32 - 1, noise=noise)
    found = noise_of(9, late.moment(2**24 - 1), np.arange(50), noise)
    expected = noise_of_plain(9, 2**24 - 1, 50, sample=2**32 - 1)
    assert np.allclose(found, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("scheme", ["match", "residual", "qs", "separate"])
def test_both_halves_draw_with_the_sample(scheme):
    logits = np.zeros((41, 40), np.float32)
    found = set()
    for sample in (0, 1, 2):
        params = SamplingParams(scheme, 1.0, seed=3, sample=sample)
        proposer, decider = make_proposer(params, 40), make_decider(params, 40)
        drafted = tuple(proposer.propose(logits[0], t).token for t in range(20))
        own = tuple(decider.decide([], b"", logits[:1], t).token for t in range(20))
        found |= {(scheme != "match") * drafted, own}
    assert len(found) == 6 - 2 * (scheme == "match")


def test_qs_keeps_its_tolerance_after_the_repair():
    rng = np.random.default_rng(2)
    moved = []
    for _ in range(300):
        logits = rng.normal(0, rng.choice([0.3, 1.0, 2.0]), 40)
        settings = qs.QsSettings(budget=0.0)
        draft = qs.make_proposer(SamplingParams("qs", 1.0), 40, settings)
        lattice: Lattice = draft.propose(logits, 0).evidence
        law = law_of(logits, SamplingParams("qs", 1.0))
        rounded = np.zeros(40)
        rounded[lattice.ids] = lattice.weights / lattice.total
        moved.append(np.abs(rounded - law.probs).sum() / 2)
    assert max(moved) <= 0.05 + 1e-12
