"""Golden vectors, and the numbers that no token may come from."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from draftwire.errors import ConfigError, ModelError, ProtocolError
from draftwire.sampling import (
    SCHEMES,
    Proposal,
    SamplingParams,
    card_of,
    check_race,
    law_of,
    make_decider,
    make_proposer,
    philox,
    qs,
    separate,
)
from draftwire.sampling.coupled import race
from draftwire.sampling.evidence import BitReader, BitWriter, Lattice, get_set, put_set
from draftwire.sampling.laws import largest
from draftwire.sampling.races import first_arrivals, noise_of

TESTS = Path(__file__).resolve().parents[1]
VECTORS = json.loads((TESTS / "golden" / "sampling_v2.json").read_text())
GOLDEN = 0x9E3779B97F4A7C15
DTYPES = (np.float32, np.float64)  # every logit of the vectors is the same in both


def params_of(case, **more):
    keys = ("scheme", "temperature", "top_k", "top_p", "noise", "sample")
    found = {key: case[key] for key in keys if key in case}
    return SamplingParams(**found, seed=int(case.get("seed", "0"), 16), **more)


@lru_cache(maxsize=None)
def generated(seed, size):
    """Return the logits that the vectors of large vocabularies name by a seed."""
    x = np.uint64(seed) + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x.view(np.uint8).reshape(size, 8).sum(axis=1) - 1020.0) / 64


def row_of(row, dtype):
    if isinstance(row, dict):
        return generated(int(row["splitmix"], 16), row["size"]).astype(dtype)
    return np.array([float(x) for x in row], dtype)


def unhex(text):
    return bytes.fromhex(text)


@pytest.mark.parametrize("case", VECTORS["noise"])
def test_noise(case):
    ids, seed = np.array(case["ids"]), int(case["seed"], 16)
    at = params_of(case).moment(case["position"])
    if "u" in case:
        found = philox.uniforms(seed, at, ids, domain=case["domain"])
        assert found.tolist() == case["u"]
    if case["domain"]:
        assert params_of(case).coin(case["position"], case["domain"]) == case["u"][0]
    else:  # the last bit of a logarithm is the library's
        found = noise_of(seed, at, ids, case["profile"])
        assert np.allclose(found, case["E"], rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", VECTORS["distributions"])
def test_distributions(case, dtype):
    logits = row_of(case["row"], dtype)
    law = law_of(logits, params_of(case, scheme="match"))
    ids = np.arange(len(logits)) if law.ids is None else law.ids
    assert len(ids) == case["count"]
    if "ids" in case:
        assert ids.tolist() == case["ids"]
    else:
        assert ids.sum() == case["sum"] and ids[:4].tolist() == case["first"]
    assert np.allclose(law.probs[: len(case["p"])], case["p"], rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("case", VECTORS["sets"])
def test_sets(case):
    bits = BitWriter()
    put_set(bits, case["members"], case["universe"])
    assert (bits.bits, bits.done().hex()) == (case["bits"], case["hex"])
    count = len(case["members"])
    found = get_set(BitReader(bits.done()), count, case["universe"])
    assert found == case["members"]


@pytest.mark.parametrize("case", VECTORS["quantised"])
def test_quantised_distributions(case):
    ids, weights = np.array(case["ids"]), np.array(case["weights"])
    draft = Lattice(ids, weights, int(weights.sum()))
    token, vocab = case["token"], case["vocab_size"]
    assert qs.encode(draft, token, vocab).hex() == case["hex"]
    (found,) = qs.unpack([token], unhex(case["hex"]), vocab)
    assert found.ids.tolist() == case["ids"] and found.weights.tolist() == case["weights"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", VECTORS["decisions"])
def test_decisions(case, dtype):
    rows = np.stack([row_of(row, dtype) for row in case["rows"]])
    decider = make_decider(params_of(case), case["vocab_size"])
    evidence = unhex(case["evidence"])
    found = decider.decide(case["tokens"], evidence, rows, case["position"])
    assert found == (case["accepted"], case["token"], unhex(case["down"]))


@pytest.mark.parametrize("case", VECTORS["corrections"])
def test_corrections(case):
    vocab, token = case["vocab_size"], case["refused"]
    ids, weights = separate.unpack_entries(unhex(case["down"]), token, vocab)
    assert ids.tolist() == case["ids"] and weights.tolist() == case["weights"]
    draft = Lattice(np.array(case["q_ids"]), np.array(case["q_weights"]), 2**24)
    params = params_of(case, scheme="separate", temperature=1.0, top_k=50)
    proposer = make_proposer(params, vocab)
    proposal = Proposal(token, None, draft)
    found = proposer.correct(proposal, unhex(case["down"]), case["position"])
    assert found == case["token"]


# What is wrong with evidence, and words of the sentence that says so.
SAID = {
    "no evidence belongs to ids": "takes no evidence",
    "missing": "0 bytes of evidence|cut short",
    "a byte is missing": "[27] bytes of evidence",
    "a byte too many": "7 bytes of evidence|left over|padding",
    "cut short": "cut short",
    "not a number": "no probability",
    "below 0": "no probability",
    "the whole is more than 5 % off 1": r"sums to (0\.75|4\.0)00",
    "the draft itself has probability 0": "probability 0",
    "no such id": "outside the vocabulary",
    "padding that is not zero": "padding",
    "5 ids out of 4": "support of 5 tokens out of 4",
    "3 weights above 0 that sum to 2": "3 weights above 0 cannot sum to 2",
    "no set of that rank": "no set of 1 out of [37]",
    "no entries": "0 entries",
    "they sum to more than 1": "sum to more than 1",
}


@pytest.mark.parametrize("case", VECTORS["refused"]["up"] + VECTORS["refused"]["down"])
def test_evidence_that_must_be_refused(case):
    vocab, words = case["vocab_size"], SAID.get(case["why"], "8 entries")
    if "down" in case:
        with pytest.raises(ProtocolError, match=words):
            separate.unpack_entries(unhex(case["down"]), case["refused"], vocab)
        return
    scheme, tokens = case["scheme"], case["tokens"]
    params = SamplingParams(scheme, 0.0 if scheme == "greedy" else 1.0)
    rows = np.zeros((len(tokens) + 1, vocab), np.float32)
    with pytest.raises(ProtocolError, match=words):
        make_decider(params, vocab).decide(tokens, unhex(case["evidence"]), rows, 5)


def test_what_must_be_refused():
    refused = VECTORS["refused"]
    for row in refused["logits"]:
        for scheme, t in (("greedy", 0.0), ("coupled", 1.0), ("qs", 1.0)):
            decider = make_decider(SamplingParams(scheme, t), len(row))
            with pytest.raises(ModelError):
                decider.decide([], b"", row_of(row, np.float32)[None], 0)
    for chosen in refused["settings"]:
        with pytest.raises(ConfigError):
            make_decider(SamplingParams(**{"temperature": 1.0, **chosen}), 32000)
    for scheme in refused["race"]:
        with pytest.raises(ConfigError, match="cannot race"):
            check_race(scheme)


def test_ties_at_the_edge_of_top_k_go_to_the_smaller_id():
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
    noise = np.concatenate([noise_of(3, t, np.arange(20000), "sparse") for t in range(10)])
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) with probability 0.001; the seed is fixed.
    sums = np.arange(1, len(noise) + 1) / len(noise)
    assert np.abs(1 - np.exp(-np.sort(noise)) - sums).max() < 1.95 / len(noise) ** 0.5
    # The early clock: E < 2**-10 for 1 in 1,024 ids; 195 expected, sd 14.
    assert 140 < (noise < 2.0**-10).sum() < 250
    ids = np.array([0, 5, 4095, 4096, 12000, 19999])
    whole = noise_of(3, 4, np.arange(20000), "sparse")
    assert np.array_equal(noise_of(3, 4, ids, "sparse"), whole[ids])
    assert np.array_equal(noise_of(3, 4, np.arange(5000), "sparse"), whole[:5000])
    assert not np.any(whole[:50] == noise_of(3, 5, np.arange(50), "sparse"))


@pytest.mark.parametrize("noise", ["philox", "sparse"])
def test_coupled_draws_follow_the_distribution(noise):
    logits = np.random.default_rng(1).normal(0, 2, 8).astype(np.float32)
    decider = make_decider(SamplingParams("coupled", 1.0, seed=3, noise=noise), 8)
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
        draft = qs.QsProposer(SamplingParams("qs", 1.0), 40, settings)
        lattice: Lattice = draft.propose(logits, 0).evidence
        law = law_of(logits, SamplingParams("qs", 1.0))
        rounded = np.zeros(40)
        rounded[lattice.ids] = lattice.weights / lattice.total
        moved.append(np.abs(rounded - law.probs).sum() / 2)
    assert max(moved) <= 0.05 + 1e-12
