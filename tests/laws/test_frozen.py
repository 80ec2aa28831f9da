"""Live streams say what they said when ``tests/golden/frozen_v1.json`` was written.

``tests/helpers/frozen.py`` says what is in it, what is not and why, and writes it anew.
"""

from __future__ import annotations

import frozen
import pytest

from draftwire.sampling import SCHEMES

GOLDEN = frozen.read(frozen.LIVE)


@pytest.fixture(scope="module")
def served():
    with frozen.serve() as found:
        yield found


def check(lines):
    """Fail, unless this machine's arithmetic is not that of the golden file."""
    if not lines:
        return
    if other := frozen.moved(GOLDEN["logits"], frozen.fingerprints()):
        pytest.skip(f"the models compute other logits on this machine: {other}")
    pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize("target", frozen.TARGETS)
@pytest.mark.parametrize("law", frozen.LAWS)
def test_texts_and_stop_and_wait_counts(served, law, target):
    lines = []
    for path, value in frozen.live(served, law, target):
        lines += frozen.moved(frozen.at(GOLDEN, path), value, " / ".join(path))
    check(lines)


def test_what_a_report_tells(served):
    for path, keys in frozen.reports(served):
        assert set(keys) == set(frozen.at(GOLDEN, path))


def test_every_scheme_is_in_it():
    assert {law["scheme"] for law in frozen.LAWS.values()} == set(SCHEMES)
    assert set(GOLDEN["texts"]) == set(frozen.LAWS)
    by_argmax = [GOLDEN["texts"][law] for law in ("greedy", "argmax", "argmax at 0.8")]
    assert by_argmax[0] == by_argmax[1] == by_argmax[2]
