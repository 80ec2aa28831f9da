"""`draftwire verifier serve` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny.target"
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith("DRAFTWIRE_")},
    "PYTHONPATH": str(ROOT / "src"),
}


@contextmanager
def serving(*words, folder=None, stderr=subprocess.PIPE, **environment):
    """Run it with ``words``; yield the process and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "draftwire", "verifier", "serve", "--port", "0"]
        + ["--threads", "1", *map(str, words)],
        env={**ENVIRONMENT, **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            first = process.stdout.readline()
            assert first.startswith("listening on ws://127.0.0.1:"), process.stderr.read()
            yield process, first.split()[-1]
        finally:
            process.kill()
