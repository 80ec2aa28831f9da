"""Every tutorial does what it says: its blocks run in order, in an empty folder.

Blocks marked ``sh`` and ``python`` are run as one script; what stands in plain fences needs
a board, or minutes of export.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


def blocks(page, *kinds):
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(kind, text) for kind, text in found if kind in kinds]


def script_of(page):
    lines = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for kind, text in blocks(page, "sh", "python"):
        lines.append(text if kind == "sh" else f"python - <<'PAGE'\n{text}PAGE")
    return "\n".join(lines)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow  # `make docs` runs them
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path):
    script = script_of(page)
    for port in set(re.findall(r"\b(876\d|9100)\b", script)):
        script = script.replace(port, str(free_port()))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, words in (("python", ""), ("draftwire", " -m draftwire")):
        file = bin_ / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
        file.chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DRAFTWIRE")}
    environ.update(
        PATH=f"{bin_}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT / "src"),
        MODELS=str(ROOT / "models"),
        HOME=str(tmp_path),
    )
    (tmp_path / "work").mkdir()
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path / "work",
            env=environ,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(280)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (tmp_path / "said").read_text()
