"""A session that is played: no model, no verifier, the same three chunks each time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterator

import pytest

import draftwire
from draftwire import Chunk, Token


def words_of_generate() -> list[str]:
    """Return a whole ``generate`` command."""
    words = ["generate", "Once", "--verifier", "ws://x:1", "--draft", "d.draft"]
    return [*words, "--target", "v1", "--token-file", "token"]


def report_of(tokens: int, finish: str) -> dict[str, Any]:
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

    def __init__(self, interrupt: bool) -> None:
        self.report: dict[str, Any] | None = None
        self.error: Exception | None = None
        self._interrupt = interrupt

    def cancel(self) -> None:
        pass

    def __iter__(self) -> Iterator[Chunk]:
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
    failure: Exception | None = None
    at_close: Exception | None = None
    calls: list[tuple[str, dict[str, Any]]] = []
    where: dict[str, Any] = {}
    report_of = staticmethod(report_of)
    words = staticmethod(words_of_generate)

    def __init__(self, url: str, **where: Any) -> None:
        type(self).where = {"url": url, **where}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.at_close:
            raise self.at_close

    def generate(self, prompt: str, **options: Any) -> FakeStream:
        self.calls.append((prompt, options))
        if self.failure:
            raise self.failure
        return FakeStream(self.interrupt)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSession]:
    """Put a played session behind `draftwire.connect`, and stand in an empty folder."""

    class Played(FakeSession):
        calls: list[tuple[str, dict[str, Any]]] = []

    monkeypatch.setattr(draftwire, "connect", Played)
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("DRAFTWIRE_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "token").write_text("secret\n")
    return Played
