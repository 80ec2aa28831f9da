"""The examples run as a reader would run them, against a real verifier."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import draftwire
from draftwire.cli._local_verifier import local_verifier

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def verifier():
    with local_verifier([MODELS / "v1.target"]) as found:
        yield found


def example(name, *words, token=""):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TOKEN": token},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_textbook_writes_what_draftwire_writes(verifier):
    url, token = verifier
    done = example("textbook.py", url, "Once upon a time", token=token)
    with draftwire.connect(url, draft=MODELS / "reference.draft", token=token) as session:
        stream = session.generate("Once upon a time", max_new_tokens=48)
        text = "".join(chunk.text for chunk in stream)
        report = stream.report
    assert done.stdout == f"Once upon a time{text}\n"
    assert f"{report['tokens']} tokens in" in done.stderr
    lines = (ROOT / "examples" / "textbook.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100, "a textbook page"
