"""A live verifier, sessions with the tiny family, and what their streams say."""

from __future__ import annotations

from pathlib import Path

import draftwire
from draftwire.bench.child import VerifierProcess

ROOT = Path(__file__).resolve().parents[2]
FIXTURES, MODELS = ROOT / "tests" / "fixtures", ROOT / "models"
DRAFT, TARGET = FIXTURES / "tiny.draft", FIXTURES / "tiny.target"
WATTS = "model:prefill=9,draft=6,transmit=4,verify-wait=3,wait=2,idle=1"


def serving(*targets, flags=()):
    """Return a verifier process with ``targets``, or the tiny one, for a ``with``."""
    return VerifierProcess(targets or [TARGET], flags=flags)


def connect(where, **options):
    """Return a session with what has an ``url``; a machine that is busy is no lost link."""
    return draftwire.connect(where.url, **{"draft": DRAFT, "silence_s": 15.0, **options})


def ids_of(stream):
    """Read a stream to its end; return its tokens as the chunks brought them."""
    return [token.id for chunk in stream for token in chunk.tokens]
