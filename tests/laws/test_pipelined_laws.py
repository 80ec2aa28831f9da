"""Rejection-based schemes keep the target's law under every mechanism and interleaving.

In a race they would not (a block that leaves early on what was drawn is judged, a late
one is not), so that is refused.

Thousands of short streams, each with a seed, an interleaving and a draft of its own, over
a vocabulary of which the law leaves three tokens: 27 texts, whose probabilities under the
target alone are computed exactly. The chi-square statistic of 26 degrees of freedom is
above 75 once in a million times.
"""

import random

import pytest
import world
from cached_target import CachedTarget
from world import Plan, StreamPlan

from draftwire.runtime.edge.mode import Mode
from draftwire.sampling import SamplingParams, law_of

STREAMS = 2500
LENGTH = 3
PROMPT = (5, 1)
SALT = b"law!"
MODES = {
    "stop-and-wait": world.STOP_AND_WAIT,
    "guess": Mode.of(preempt="guess"),
    "pipeline": Mode.of(pipeline=3, cut=True),
    "exits": Mode.of(preempt="guess,exits"),
}


def expected(params):
    """Return the probability of every text of ``LENGTH`` tokens that can come."""
    target = CachedTarget(world.VOCAB, slots=1, salt=SALT)
    texts = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for text, chance in texts.items():
            law = law_of(target.rows_after([*PROMPT, *text]), params)
            for token, p in zip(law.ids, law.probs):
                longer[(*text, int(token))] = chance * float(p)
        texts = longer
    return texts


def play(scheme, mode, seed):
    rng = random.Random(seed * 31 + 7)
    stream = StreamPlan(
        prompt=PROMPT,
        count=LENGTH,
        scheme=scheme,
        seed=seed,
        mode=mode,
        k=rng.randint(1, 3),
        moody=rng.randint(1, 99) if rng.random() < 0.3 else 0,
        off=True,
    )
    plan = Plan(
        (stream,),
        luck=0.6,
        delay_s=rng.choice([0.0, 0.02, 0.2]),
        step_s=rng.choice([0.0, 0.005, 0.05]),
        forward_s=rng.choice([0.002, 0.1]),
        seed=seed,
        salt=SALT,
    )
    game = world.World(plan)
    game.run()
    return tuple(game.sinks[0].shown)


QUICK = {("residual", "pipeline"), ("qs", "exits"), ("separate", "pipeline")}
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
    from draftwire.sampling import Decision
    from draftwire.sampling.rejection import Judge

    honest = Judge.decide

    def generous(self, tokens, evidence, logits, position, forced=()):
        k = len(tokens)
        last = honest(self, [], b"", logits[k:], position + k)
        return Decision(k, last.token)

    monkeypatch.setattr(Judge, "decide", generous)
    assert statistic_of("residual", MODES["pipeline"], 1200) > 75
