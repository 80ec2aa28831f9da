"""The examples run as a reader would run them, against a real verifier."""

from __future__ import annotations

import subprocess
import sys

from live import MODELS, ROOT, connect, serving
from places import environment

PROMPT = "Once upon a time"
EXAMPLE = ROOT / "examples" / "textbook.py"


def textbook(*words):
    command = [sys.executable, str(EXAMPLE), *words]
    how = {"env": environment(), "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, cwd=ROOT, check=False, **how)


def test_the_textbook_writes_what_draftwire_writes():
    with serving(MODELS / "v1.target") as verifier:
        done = textbook(verifier.url, PROMPT)
        assert done.returncode == 0, done.stderr
        with connect(verifier, draft=MODELS / "reference.draft") as session:
            stream = session.generate(PROMPT, max_new_tokens=48)
            text = "".join(chunk.text for chunk in stream)
            report = stream.report
    assert done.stdout == f"{PROMPT}{text}\n"
    assert f"{report['tokens']} tokens in" in done.stderr
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100, "a textbook page"


def test_the_textbook_without_arguments_says_how_it_is_called():
    done = textbook()
    assert done.returncode == 1 and "examples/textbook.py ws://" in done.stderr
    assert "Traceback" not in done.stderr
