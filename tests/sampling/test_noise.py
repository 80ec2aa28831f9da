"""The shared noise, against the published vectors and the law it must follow."""

from __future__ import annotations

import numpy as np
import pytest

from draftwire.errors import ConfigError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.sampling.philox import philox4x32, uniforms
from draftwire.sampling.races import first_arrivals, hashes, murmur_noise

# Random123 1.09, tests/kat_vectors, "philox4x32 10": counter, key, result.
KNOWN = [
    "0 0 0 0  0 0  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    " ".join(["ffffffff"] * 6) + "  408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0"
    "  d16cfe09 94fdcceb 5001e420 24126ea1",
]


@pytest.mark.parametrize("words", KNOWN)
def test_published_vectors(words):
    numbers = [int(word, 16) for word in words.split()]
    counter = tuple(np.array([word], np.uint64) for word in numbers[:4])
    found = philox4x32(counter, tuple(numbers[4:6]))
    assert [int(word[0]) for word in found] == numbers[6:]


def test_noise_depends_on_seed_position_and_domain():
    ids = np.arange(64)
    base = uniforms(1, 5, ids)
    assert not np.any(base == uniforms(2, 5, ids))
    assert not np.any(base == uniforms(1 << 32, 5, ids))
    assert not np.any(base == uniforms(1, 6, ids))
    assert not np.any(base == uniforms(1, 5 + (1 << 32), ids))
    assert not np.any(base == uniforms(1, 5, ids, domain=2))


def test_uniforms_are_uniform_and_never_zero():
    u = np.concatenate([uniforms(9, t, np.arange(2000)) for t in range(50)])
    assert u.min() > 0 and u.max() <= 1
    assert len(np.unique(u)) == len(u)
    # 100,000 numbers in 64 bins: chi-square with 63 degrees of freedom stays below 120
    # except with probability 2e-5, and the seed is fixed.
    counts = np.histogram(u, 64, (0, 1))[0]
    assert ((counts - len(u) / 64) ** 2 / (len(u) / 64)).sum() < 120


# ---- the noise of stock servers


IDS = np.array([0, 1, 49151])


@pytest.mark.parametrize(
    ("seed", "position", "wanted"),
    # MurmurHash3_x86_32 of the 16 bytes, seed 0, by another implementation.
    [
        (0, 0, [0x8134CDF8, 0x00990201, 0xA4C4CC1B]),
        (2**63 + 5, 1000, [0x14B8EABB, 0x335BC67D, 0x56CC0037]),
    ],
)
def test_hashes_have_known_answers(seed, position, wanted):
    assert hashes(seed, position, IDS).tolist() == wanted


def test_the_position_that_is_hashed_is_that_of_the_token_before():
    drawn = 0x8134CDF8
    (vllm,) = murmur_noise("murmur3/vllm", 0, 1, IDS[:1])
    (sglang,) = murmur_noise("murmur3/sglang", 0, 1, IDS[:1])
    assert vllm == pytest.approx(-np.log1p(-(drawn + 0.5) / 2**32), rel=1e-14)
    assert sglang == pytest.approx(-np.log(drawn / (2**32 - 1)), rel=1e-14)


@pytest.mark.parametrize("noise", ["murmur3/vllm", "murmur3/sglang"])
def test_tokens_come_as_often_as_they_should(noise):
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    params = SamplingParams("coupled", 1.0, seed=11, noise=noise)
    decider = make_decider(params, 4)
    seen = np.zeros(4)
    for position in range(1, 4001):
        token = decider.decide((), b"", logits[None], position).token
        assert [token] == first_arrivals(logits, 1.0, logits[0], 11, position, noise=noise)
        seen[token] += 1
    wanted = 4000 * np.exp(logits)
    assert float(((seen - wanted) ** 2 / wanted).sum()) < 16.3  # once in a thousand


def test_it_has_no_samples():
    with pytest.raises(ConfigError, match="has no samples"):
        SamplingParams("coupled", 1.0, noise="murmur3/vllm", sample=1)
