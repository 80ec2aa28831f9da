"""The length rule: the published optima exactly, and what it learns from verdicts."""

import math
import random

import pytest

from draftwire.runtime.pacing.length_rule import Confidence, Line, Survival, best_ratio

# Optimum length for S_k = a^k, by brute force (methods, section 5): T_f / T_m = 4 .. 32.
OPTIMA = {
    0.5: (1, 2, 3, 4),
    0.7: (2, 4, 5, 7),
    0.8: (3, 5, 7, 9),
    0.9: (6, 9, 12, 16),
}


@pytest.mark.parametrize("acceptance", OPTIMA)
def test_the_published_optima(acceptance):
    curve = [acceptance**k for k in range(1, 65)]
    assert tuple(best_ratio(curve, f, 1.0)[0] for f in (4, 8, 16, 32)) == OPTIMA[acceptance]


def test_nothing_pays_when_drafts_are_never_right():
    assert best_ratio([0.0] * 9, 8.0, 1.0)[0] == 0
    assert best_ratio([], 8.0, 1.0) == (0, 1 / 8)


def test_what_lies_behind_a_rejection_is_not_counted_and_the_past_fades():
    survival, rng = Survival(), random.Random(1)
    for rate, most in ((0.85, 400), (0.45, 40)):
        for _ in range(most):
            accepted = 0
            while accepted < 6 and rng.random() < rate:
                accepted += 1
            survival.learn(6, accepted)
        assert survival.acceptance == pytest.approx(rate, abs=0.2)
    once = survival.acceptance
    survival.learn(6, 0)
    assert survival.curve(2) == pytest.approx([survival.acceptance, survival.acceptance**2])
    assert once > survival.acceptance > once - 0.05


def test_confidence_is_calibrated_as_verdicts_come():
    rng = random.Random(3)
    confidence = Confidence()
    for _ in range(600):  # a draft that is too sure of itself
        said = rng.random()
        confidence.learn(said, rng.random() < 0.7 * said)
    assert confidence.acceptance(0.9) == pytest.approx(0.63, abs=0.12)
    assert confidence.acceptance(0.2) == pytest.approx(0.14, abs=0.12)
    useless = Confidence()
    for _ in range(600):
        useless.learn(rng.random(), rng.random() < 0.6)
    assert abs(useless.acceptance(0.9) - useless.acceptance(0.1)) < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_text_that_repeats_itself_for_long_ends_no_stream(seed):
    """Hundreds of sure drafts that are right: the line ran away until exp overflowed."""
    rng = random.Random(seed)
    confidence = Confidence()
    for i in range(4000):
        sure = i // 400 % 2 == 0
        p = rng.uniform(0.99, 1.0) if sure else rng.betavariate(2, 1)
        assert 0.0 < confidence.acceptance(p) <= 1.0
        confidence.learn(p, sure or rng.random() < p)


def test_a_cost_that_grows_with_a_count():
    line = Line(5.0, 2.0)
    assert line.at(3.0) == 11.0 and math.isinf(line.error)
    for x in (1, 4, 2, 8, 3, 5):
        line.learn(x, 10 + 0.5 * x)
    assert line.slope == pytest.approx(0.5) and line.at(0.0) == pytest.approx(10)
    same = Line(5.0, 2.0)
    for _ in range(9):
        same.learn(4, 30.0)
    assert same.slope == 2.0, "equal counts tell nothing of the slope"
    assert same.at(4.0) == pytest.approx(30.0)
