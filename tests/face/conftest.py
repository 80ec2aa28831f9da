"""A session that is played: no model, no verifier, the same three chunks each time."""

import os

import pytest

import draftwire
from draftwire import Chunk, Token


def words_of_generate():
    """Return a whole ``generate`` command."""
    words = ["generate", "Once", "--verifier", "ws://x:1", "--draft", "d.draft"]
    return [*words, "--target", "v1", "--token-file", "token"]


def report_of(tokens, finish):
    return {
        "schema": "draftwire.report/1",
        "tokens": tokens,
        "rounds": 2,
        "drafted": 8,
        "accepted": 6,
        "accepted_by_position": [2, 2, 1, 1],
        "target_forwards": 2,
        "finish": finish,
        "bytes": {"up_payload": 20},
        "seconds": {"total": 0.5},
        "energy": {"joules": None, "source": None},
    }


class FakeStream:
    """Plays three chunks; its report is there once it is over."""

    def __init__(self, interrupt):
        self.report = None
        self.error = None
        self._interrupt = interrupt

    def cancel(self):
        pass

    def __iter__(self):
        finish = "cancelled"
        try:
            yield Chunk(" lived", (Token(1, "accepted"),), 0.0)
            if self._interrupt:
                raise KeyboardInterrupt
            yield Chunk(" in a", (Token(2, "accepted"), Token(3, "correction")), 0.0)
            yield Chunk(" café.", (Token(4, "bonus"),), 0.0)
            finish = "length"
        finally:
            self.report = report_of(4, finish)


class FakeSession:
    """Gives played streams; ``interrupt`` plays Ctrl-C after the first chunk."""

    interrupt = False
    failure = None
    at_close = None
    calls = []
    where = {}
    report_of = staticmethod(report_of)
    words = staticmethod(words_of_generate)

    def __init__(self, url, **where):
        type(self).where = {"url": url, **where}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.at_close:
            raise self.at_close

    def generate(self, prompt, **options):
        self.calls.append((prompt, options))
        if self.failure:
            raise self.failure
        return FakeStream(self.interrupt)


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Put a played session behind `draftwire.connect`, and stand in an empty folder."""

    class Played(FakeSession):
        calls = []

    monkeypatch.setattr(draftwire, "connect", Played)
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("DRAFTWIRE_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "token").write_text("secret\n")
    return Played
