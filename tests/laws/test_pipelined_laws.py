"""Rejection-based schemes keep the target's law under every mechanism and interleaving.

Thousands of short streams, each with a seed, an interleaving and a draft of its own, over
a vocabulary of which the law leaves three tokens: 27 texts, whose probabilities under the
target alone are computed exactly. The chi-square statistic of 26 degrees of freedom is
above 75 once in a million times.
"""

import numpy as np
import pytest
import world
from world import Moody, World, target_logits

from draftwire.runtime.mode import Mode
from draftwire.sampling import SamplingParams, law_of

STREAMS = 2500
LENGTH = 3
PROMPT = [5, 1]
SALT = b"law!"
MODES = {
    "stop-and-wait": world.STOP_AND_WAIT,
    "guess": Mode.of(preempt="guess"),
    "pipeline": Mode.of(pipeline=3, cut=True),
    "race": Mode.of("latency"),
    "exits": Mode.of(preempt="guess,exits"),
}


def expected(params):
    """Return the probability of every text of ``LENGTH`` tokens that can come."""
    texts = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for text, chance in texts.items():
            law = law_of(target_logits([*PROMPT, *text], SALT), params)
            for token, p in zip(law.ids, law.probs):
                longer[(*text, int(token))] = chance * float(p)
        texts = longer
    return texts


def play(scheme, mode, seed):
    rng = np.random.default_rng([seed, 7])
    params = SamplingParams(scheme, 1.0, 3, 1.0, seed)
    game = World(
        PROMPT,
        params,
        SALT,
        k=int(rng.integers(1, 4)),
        count=LENGTH,
        context=50,
        stops=[],
        luck=0.6,
        rng=rng,
        mode=mode,
    )
    if rng.random() < 0.3:
        game.edge._controller = Moody(2, rng, off=True)
    while game.finish is None:
        moves = game.enabled()
        moves[rng.integers(len(moves))]()
    return tuple(game.shown)


QUICK = {("residual", "pipeline"), ("qs", "race"), ("separate", "pipeline")}
CASES = [
    pytest.param(scheme, mode, marks=() if (scheme, mode) in QUICK else pytest.mark.slow)
    for scheme in ("residual", "qs", "separate")
    for mode in MODES
]


def statistic_of(scheme, mode, streams):
    chances = expected(SamplingParams(scheme, 1.0, 3, 1.0, 0))
    assert len(chances) == 27 and min(chances.values()) * streams > 4
    seen = dict.fromkeys(chances, 0)
    for seed in range(streams):
        text = play(scheme, mode, seed)
        if text not in chances:
            return float("inf")  # the target alone never says that
        seen[text] += 1
    return sum((seen[t] - streams * p) ** 2 / (streams * p) for t, p in chances.items())


@pytest.mark.parametrize(("scheme", "mode"), CASES)
def test_the_targets_law(scheme, mode):
    assert statistic_of(scheme, MODES[mode], STREAMS) < 75


def test_a_draft_that_is_always_accepted_would_show(monkeypatch):
    """The test can fail: a verifier that takes every draft breaks the law."""
    from draftwire.sampling import Decision, residual

    honest = residual.judge

    def generous(tokens, drafts, logits, params, position):
        last = honest([], [], logits[len(tokens) :], params, position + len(tokens))
        return Decision(len(tokens), last.token)

    monkeypatch.setattr(residual, "judge", generous)
    assert statistic_of("residual", MODES["pipeline"], 1200) > 75
