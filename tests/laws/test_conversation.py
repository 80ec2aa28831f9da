"""The next turn of a conversation costs what is new, at both ends, and says the same.

A real verifier process and sockets, the tiny family of the fixtures.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import ConfigError, DraftwireError
from draftwire.options import Sampling
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.options import params_of
from draftwire.sampling import NOISES

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DRAFT = FIXTURES / "tiny.draft"
BITS = 8  # of an id of the tiny family


def started():
    found = VerifierProcess([FIXTURES / "tiny.target"])
    found.start()
    yield found
    found.kill()


verifier = pytest.fixture(scope="module")(started)
fresh = pytest.fixture(started)  # it has read nothing yet


def connect(verifier):
    url = f"ws://127.0.0.1:{verifier.port}"
    return draftwire.connect(url, draft=DRAFT, silence_s=15.0)


def say(session, prompt, **how):
    how = {"max_new_tokens": 8, "temperature": 0.7, "seed": 3, **how}
    stream = session.generate(prompt, **how)
    ids = [token.id for chunk in stream for token in chunk.tokens]
    return ids, stream.report


def test_turns_send_and_read_what_is_new(fresh, verifier):
    context = [(i * 37) % 251 + 1 for i in range(90)]
    with connect(fresh) as session, connect(verifier) as other:
        for number in range(4):
            user = [(number * 7 + i) % 250 + 1 for i in range(6)]
            prompt = [*context, *user]
            racing = number % 2 == 1
            ids, report = say(session, prompt, objective=("cost", "latency")[racing])
            alone, _ = say(other, prompt)
            assert ids == alone
            unsent, reused = report["prefix"]["unsent"], report["prefix"]["reused"]
            if number:
                assert unsent == len(context) and reused >= len(context) - 1
                new = len(user) + max(len(ids), report["drafted"])
                if racing:
                    # Each draft leaves alone, at two bytes and its second choice: what
                    # they cost follows the clock, what the turn costs beside them not.
                    most = len(user) * BITS / 8 + 24 + 4 * report["drafted"]
                else:
                    most = new * BITS / 8 + 64
                assert report["bytes"]["up_payload"] <= most
            else:
                assert (unsent, reused) == (0, 0)
            context = [*prompt, *ids]


def test_samples_share_a_prompt_that_is_sent_and_read_once(fresh):
    prompt = [(i * 37) % 251 + 1 for i in range(90)]
    how = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    with connect(fresh) as session:
        streams = session.samples(prompt, 4, **how)
        texts = [[t.id for chunk in one for t in chunk.tokens] for one in streams]
        for i, (ids, one) in enumerate(zip(texts, streams)):
            assert (one.report["sampling"]["seed"], one.report["sampling"]["sample"]) == (
                5,
                i,
            )
            prefix = one.report["prefix"]
            assert prefix == {"unsent": 89 * (i > 0), "reused": 89 * (i > 0)}
            assert ids == say(session, prompt, **how, sample=i)[0]
        assert len({*map(tuple, texts)}) > 1
        drawn = session.samples("a", 2, max_new_tokens=3, temperature=1.0)
        assert len({one.report["sampling"]["seed"] for one in drawn if list(one)}) == 1
        later = session.samples(prompt, 3, **{**how, "max_new_tokens": 60})
        for one in later:
            one.cancel()
        assert all(list(one) is not None and one.finish == "cancelled" for one in later)
        with pytest.raises(ConfigError, match="n is 0"):
            session.samples(prompt, 0)
    for one in session_closed(fresh, prompt):
        with pytest.raises(DraftwireError):
            list(one)


def session_closed(verifier, prompt):
    """Streams of a session that was closed before they began."""
    with connect(verifier) as session:
        first, *others = session.samples(prompt, 3, max_new_tokens=60)
    list(first)
    return others


def test_a_verifier_that_has_forgotten_is_told_everything(verifier):
    prompt = [(i * 37) % 251 + 1 for i in range(90)]
    with connect(verifier) as session:
        ids, _ = say(session, prompt)
        verifier.kill()
        verifier.start()
        prompt = [*prompt, *ids, 9, 9]
        again, report = say(session, prompt)
        assert report["prefix"] == {"unsent": 0, "reused": 0}
        with connect(verifier) as fresh:
            assert say(fresh, prompt)[0] == again


PROCESSORS = {
    "min_p": 0.02,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.3,
    "logit_bias": {40: 2.0, "41": -100},
    "bad_words": ["e", "th"],
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_and_bans_are_the_targets_whatever_was_drafted(verifier, temperature):
    prompt = [(i * 37) % 251 + 1 for i in range(9)]
    with connect(verifier) as session:
        how = {"max_new_tokens": 40, "temperature": temperature, "ignore_eos": True}
        plain, _ = say(session, prompt, controller="off", **how)
        alone, _ = say(session, prompt, controller="off", **how, **PROCESSORS)
        assert alone != plain and len(plain) == len(alone) == 40 and 41 not in alone
        for mode in ({}, {"objective": "latency"}, {"pipeline": 3}):
            ids, report = say(session, prompt, **how, **PROCESSORS, **mode)
            assert ids == alone
        # A verifier that knows nothing of a stream is told what of it counts as text.
        how, found, restarted = {**how, **PROCESSORS, "seed": 3}, [], False
        for chunk in session.generate(prompt, **how):
            found += [token.id for token in chunk.tokens]
            if len(found) > 10 and not restarted:
                verifier.kill()
                verifier.start()
                restarted = True
        assert found == alone and restarted


def test_log_probabilities_come_with_every_token(verifier):
    prompt = [(i * 37) % 251 + 1 for i in range(9)]
    with connect(verifier) as session:
        how = {"max_new_tokens": 30, "temperature": 1.0, "seed": 3, "ignore_eos": True}
        told = []
        for mode in ({"controller": "off"}, {}, {"objective": "latency"}, {"scheme": "qs"}):
            stream = session.generate(prompt, logprobs=4, **how, **mode)
            tokens = [token for chunk in stream for token in chunk.tokens]
            assert len(tokens) == 30
            for token in tokens:
                own, *best = token.logprobs
                assert own[0] == token.id and len(best) == 4 and own[1] <= best[0][1] + 1e-6
                assert [x for _, x in best] == sorted((x for _, x in best), reverse=True)
            told.append([token.logprobs for token in tokens])
        for other in told[1:3]:  # the same text: said alike, however it was drafted
            for a, b in zip(told[0], other):
                assert [i for i, _ in a] == [i for i, _ in b]
                assert [x for _, x in a] == pytest.approx([x for _, x in b], abs=1e-4)
        plain = session.generate(prompt, **how)
        assert not any(token.logprobs for chunk in plain for token in chunk.tokens)
        with pytest.raises(ConfigError, match="no log-probabilities"):
            session.generate(
                prompt, temperature=1.0, top_k=8, scheme="separate", logprobs=0
            )


def test_a_verifier_that_does_not_know_them_is_named_before_anything_is_sent(verifier):
    with connect(verifier) as session:
        less = dataclasses.replace(session.welcome, capabilities=("resume",))
        session._driver.link.welcome = less
        for name, value in PROCESSORS.items():
            with pytest.raises(ConfigError, match="does not know min_p"):
                session.generate([1, 2], **{name: value})


@pytest.mark.parametrize("noise", ["philox", "sparse"])
def test_both_noise_profiles_are_the_targets_own_text(verifier, noise):
    prompt = [(i * 37) % 251 + 1 for i in range(9)]
    with connect(verifier) as session:
        how = {"noise": noise, "max_new_tokens": 40, "temperature": 1.0}
        alone, _ = say(session, prompt, controller="off", **how)
        for mode in ({}, {"objective": "latency"}, {"pipeline": 3}):
            ids, report = say(session, prompt, **how, **mode)
            assert ids == alone and report["sampling"]["noise"] == noise
        assert say(session, prompt, **{**how, "noise": "philox"})[0] != alone or (
            noise == "philox"
        )


def test_a_large_vocabulary_is_drawn_with_the_noise_that_costs_less(verifier):
    with connect(verifier) as session:
        small = session.welcome
    for size, offered, noise in (
        (small.vocab_size, NOISES, "philox"),
        (32768, NOISES, "sparse"),
        (32768, ("philox",), "philox"),
    ):
        welcome = dataclasses.replace(small, vocab_size=size, noise=offered)
        params = params_of(Sampling(), welcome, Mode.of(), lambda text: [1])
        assert params.noise == noise
    unmet = dataclasses.replace(small, agent="", vocab_size=32768, noise=NOISES)
    assert params_of(Sampling(), unmet, Mode.of(), lambda text: [1]).noise == "philox"
    named = params_of(Sampling(noise="philox"), welcome, Mode.of(), lambda text: [1])
    assert named.noise == "philox"
