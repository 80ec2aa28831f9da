"""Where things lie, and a command of draftwire as a user types it."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES, MODELS = ROOT / "tests" / "fixtures", ROOT / "models"


def free_port():
    """Return a port that nobody listens on yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more):
    """Return the tests' own, without settings of draftwire, and ``more``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DRAFTWIRE_")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **more}


@contextlib.contextmanager
def full_disk(room=0):
    """Let no file of this process grow beyond ``room`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def draftwire(*words, folder=None, timeout=600, stdout=subprocess.PIPE, said="", **more):
    """Run a command to its end; return its code and what it said.

    It hears ``said``; ``more`` are variables of its environment.
    """
    return subprocess.run(
        [sys.executable, "-m", "draftwire", *map(str, words)],
        env=environment(**more),
        cwd=folder,
        input=said,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )
