"""The noise of stock servers: known answers, and the same texts as their own way."""

from __future__ import annotations

import numpy as np
import pytest

from draftwire.errors import ConfigError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.sampling.races import first_arrivals, hashes, murmur_noise

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
