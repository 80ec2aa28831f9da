"""The next turn of a conversation costs what is new, at both ends, and says the same.

A real verifier process and sockets, the tiny family of the fixtures.
"""

from __future__ import annotations

import dataclasses

import pytest
from live import connect, ids_of, serving

from draftwire.errors import ConfigError, DraftwireError
from draftwire.options import Sampling
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.options import params_of
from draftwire.sampling import NOISES

BITS = 8  # of an id of the tiny family
LONG = [(i * 37) % 251 + 1 for i in range(90)]
SHORT = LONG[:9]


@pytest.fixture
def fresh():
    """A verifier that has read nothing yet."""
    with serving() as found:
        yield found


def say(session, prompt, **how):
    how = {"max_new_tokens": 8, "temperature": 0.7, "seed": 3, **how}
    stream = session.generate(prompt, **how)
    return ids_of(stream), stream.report


def test_turns_send_and_read_what_is_new(fresh, verifier):
    context = LONG
    with connect(fresh) as session, connect(verifier) as other:
        for number in range(4):
            user = [(number * 7 + i) % 250 + 1 for i in range(6)]
            prompt = [*context, *user]
            racing = number % 2 == 1
            ids, report = say(session, prompt, objective=("cost", "latency")[racing])
            assert ids == say(other, prompt)[0]
            unsent, reused = report["prefix"]["unsent"], report["prefix"]["reused"]
            if number:
                assert unsent == len(context) and reused >= len(context) - 1
                new = len(user) + max(len(ids), report["drafted"])
                most = new * BITS / 8 + 64
                if racing:
                    # Each draft leaves alone, at four bytes and as many for its second
                    # choice, one more where a branch begins, or beside a branch at 13:
                    # what they cost follows the clock, what the turn costs beside them not.
                    drafts = 9 * report["drafted"] + 13 * report["sides"]["sent"]
                    most = len(user) * BITS / 8 + 24 + drafts
                assert report["bytes"]["up_payload"] <= most
            else:
                assert (unsent, reused) == (0, 0)
            context = [*prompt, *ids]


def test_samples_share_a_prompt_that_is_sent_and_read_once(fresh):
    how = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    with connect(fresh) as session:
        streams = session.samples(LONG, 4, **how)
        texts = [ids_of(one) for one in streams]
        for i, (ids, one) in enumerate(zip(texts, streams)):
            sampling, shared = one.report["sampling"], 89 * (i > 0)
            assert (sampling["seed"], sampling["sample"]) == (5, i)
            assert one.report["prefix"] == {"unsent": shared, "reused": shared}
            assert ids == say(session, LONG, **how, sample=i)[0]
        assert len({*map(tuple, texts)}) > 1
        drawn = session.samples("a", 2, max_new_tokens=3, temperature=1.0)
        assert len({one.report["sampling"]["seed"] for one in drawn if list(one)}) == 1
        later = session.samples(LONG, 3, **{**how, "max_new_tokens": 60})
        for one in later:
            one.cancel()
        assert all(list(one) is not None and one.finish == "cancelled" for one in later)
        with pytest.raises(ConfigError, match="n is 0"):
            session.samples(LONG, 0)
        first, *others = session.samples(LONG, 3, max_new_tokens=60)
    list(first)
    for one in others:  # of a session that was closed before they began
        with pytest.raises(DraftwireError):
            list(one)


def test_a_verifier_that_has_forgotten_is_told_everything(verifier):
    with connect(verifier) as session:
        ids, _ = say(session, LONG)
        verifier.kill()
        verifier.start()
        prompt = [*LONG, *ids, 9, 9]
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


@pytest.mark.parametrize(
    ("temperature", "more"),
    [
        (0.0, PROCESSORS),
        (1.0, PROCESSORS),
        (1.0, {"noise": "philox"}),
        (1.0, {"noise": "sparse"}),
    ],
)
def test_the_text_is_the_targets_whatever_was_drafted(verifier, more, temperature):
    with connect(verifier) as session:
        how = {"max_new_tokens": 40, "temperature": temperature, "ignore_eos": True}
        plain, _ = say(session, SHORT, controller="off", **how)
        how.update(more)
        alone, report = say(session, SHORT, controller="off", **how)
        assert report["sampling"]["noise"] == more.get("noise", "philox")
        assert len(plain) == len(alone) == 40
        assert (alone == plain) == (more.get("noise") == "philox")
        for mode in ({}, {"objective": "latency"}, {"pipeline": 3}):
            assert say(session, SHORT, **how, **mode)[0] == alone
        if more is PROCESSORS:
            assert 41 not in alone
            # A verifier that knows nothing of a stream is told what counts as text.
            found, restarted = [], False
            for chunk in session.generate(SHORT, seed=3, **how):
                found += [token.id for token in chunk.tokens]
                if len(found) > 10 and not restarted:
                    verifier.kill()
                    verifier.start()
                    restarted = True
            assert found == alone and restarted


def test_log_probabilities_come_with_every_token(verifier):
    with connect(verifier) as session:
        how = {"max_new_tokens": 30, "temperature": 1.0, "seed": 3, "ignore_eos": True}
        told = []
        for mode in ({"controller": "off"}, {}, {"objective": "latency"}, {"scheme": "qs"}):
            stream = session.generate(SHORT, logprobs=4, **how, **mode)
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
        plain = session.generate(SHORT, **how)
        assert not any(token.logprobs for chunk in plain for token in chunk.tokens)
        how = {"temperature": 1.0, "top_k": 8, "scheme": "separate", "logprobs": 0}
        with pytest.raises(ConfigError, match="no log-probabilities"):
            session.generate(SHORT, **how)


def test_a_verifier_that_does_not_know_them_is_named_before_anything_is_sent(session):
    less = dataclasses.replace(session.welcome, capabilities=("resume",))
    session._driver.link.welcome = less
    for name, value in PROCESSORS.items():
        with pytest.raises(ConfigError, match="does not know min_p"):
            session.generate([1, 2], **{name: value})


def test_a_large_vocabulary_is_drawn_with_the_noise_that_costs_less(session):
    for size, offered, agent, asked, noise in (
        (session.welcome.vocab_size, NOISES, "v", {}, "philox"),
        (32768, NOISES, "v", {}, "sparse"),
        (32768, ("philox",), "v", {}, "philox"),
        (32768, NOISES, "", {}, "philox"),  # it was never met
        (32768, NOISES, "v", {"noise": "philox"}, "philox"),
    ):
        how = {"vocab_size": size, "noise": offered, "agent": agent}
        welcome = dataclasses.replace(session.welcome, **how)
        params = params_of(Sampling(**asked), welcome, Mode.of(), lambda text: [1])
        assert params.noise == noise
