"""A short slice of ``make fuzz``: the corpus and some thousand mutations of it."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location("fuzz", HERE / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)  # puts the helpers on the path

from fuzz_targets import TARGETS, TargetSession, seeds  # noqa: E402

from draftwire.runtime.edge.lines import Guesses  # noqa: E402


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_foreseen_errors(name):
    assert fuzz.loop(name, 3000, seed=len(name)) > 3000


def test_the_corpus_begins_with_the_golden_vectors():
    assert len(seeds("codec")) > 20 and all(seeds(name) for name in TARGETS)


PLANTED = {
    # trailing bytes pass
    "codec": ("draftwire.transport.bits.Reader.end", lambda self: None),
    # the cache of a lost slot counts as there
    "target": (
        "draftwire.verifier.target_session.TargetSession.detach",
        lambda self, *, cached, detach=TargetSession.detach: detach(self, cached=True),
    ),
    # a guess is shown twice
    "edge": (
        "draftwire.runtime.edge.lines.Guesses.show",
        lambda self, ids, show=Guesses.show: [*show(self, ids), *show(self, ids)],
    ),
    # any name is ours, as without a check against rebinding
    "http": (
        "draftwire.verifier.serving.service.VerifierService._misled",
        lambda self, *args, **options: None,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name, monkeypatch, capsys):
    monkeypatch.setattr(*PLANTED[name])
    with pytest.raises(AssertionError):
        fuzz.loop(name, 3000, seed=1)
    assert "the input: " in capsys.readouterr().err
    assert "atheris" not in sys.modules
