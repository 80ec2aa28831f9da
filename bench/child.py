"""Processes beside this one that find this very draftwire, and end with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import draftwire
from draftwire.errors import ConfigError, DraftwireError


def environment() -> dict[str, str]:
    """Return this process's environment, in which Python finds this very draftwire."""
    home = str(Path(draftwire.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


class Child:
    """A module of ours that answers each line on its stdin with a line of JSON.

    The end of its stdin is its own end, so it never outlives us.

    Args:
        module: Run with ``-m``.
        name: For errors, such as ``"the link"``.
        error: What is raised when it does not answer.
    """

    def __init__(self, module: str, name: str, error: type[DraftwireError]) -> None:
        self._name, self._error = name, error
        self._said = b""
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            start_new_session=True,  # Ctrl-C is ours; it ends after that
        )

    def ask(self, line: str, timeout_s: float) -> dict[str, Any]:
        """Send a line; return the answer.

        Raises:
            DraftwireError: Of the given kind: it is gone (with its last words), or silent.
        """
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # gone: its last words are below
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise self._error(f"{self._name} did not answer within {timeout_s:.0f} s")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                self._errors.seek(0)
                words = self._errors.read().decode(errors="replace").strip().splitlines()
                last = words[-1] if words else "no word"
                raise self._error(f"{self._name}'s process is gone: {last}")
            self._said += data
        answer, _, self._said = self._said.partition(b"\n")
        document: dict[str, Any] = json.loads(answer)
        return document

    def close(self, patience_s: float = 10.0) -> None:
        """End it; harmless a second time."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()


def run_child(code: str, *args: str) -> str:
    """Run ``code`` in a fresh interpreter that finds this very draftwire.

    Args:
        code: Python; what it prints is returned.
        *args: Its ``sys.argv[1:]``.

    Raises:
        ConfigError: It failed; the message is its last line.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"a measuring process ended with {done.returncode}: {last}")
    return done.stdout
