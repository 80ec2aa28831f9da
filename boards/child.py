"""Running a part of draftwire in a process of its own, whatever becomes of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from draftwire.io import environment, parse_json

_KEPT = 4000  # characters of what it said
_SIGNALS: Mapping[int, str] = {
    signal.SIGILL: "illegal instruction (SIGILL)",
    signal.SIGSEGV: "segmentation fault (SIGSEGV)",
    signal.SIGBUS: "bus error (SIGBUS)",
    signal.SIGKILL: "killed (SIGKILL), as when memory runs out",
}


@dataclass(frozen=True)
class Child:
    """How a process ended."""

    code: int | None  # exit code, negative for a signal, None when it was stopped for time
    out: str  # what it wrote to stdout
    err: str  # the end of what it wrote to stderr
    seconds: float  # how long it took

    @property
    def ok(self) -> bool:
        """True when it ended with 0."""
        return self.code == 0

    @property
    def illegal(self) -> bool:
        """True for an unknown instruction; a shell or an emulator between says 128 + the
        signal."""
        return self.code in (-signal.SIGILL, 128 + signal.SIGILL)

    def document(self) -> dict[str, Any] | None:
        """Return the JSON object on the last line of its output, or None."""
        try:
            found = parse_json(self.out.strip().rpartition("\n")[2])
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def how(self) -> str:
        """Return how it ended in a few words."""
        if self.code is None:
            return f"no answer within {self.seconds:.0f} s"
        if self.code < 0 or 128 < self.code < 160:
            number = -self.code if self.code < 0 else self.code - 128
            known = {one.value: one.name for one in signal.Signals}
            return _SIGNALS.get(number) or known.get(number) or f"signal {number}"
        lines = [line for line in self.err.strip().splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else f"exit code {self.code}"


def run_python(
    words: Sequence[str],
    *,
    timeout_s: float = 120.0,
    extra: Mapping[str, str] | None = None,
    python: str | None = None,
) -> Child:
    """Run this Python (or ``python``) with ``words``, and ``extra`` in its environment."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            [python or sys.executable, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(**(extra or {})),
            cwd="/",  # nothing of the user's folder is imported by chance
            timeout=timeout_s,
            check=False,
        )
        code: int | None = done.returncode
        out, err = done.stdout, done.stderr
    except OSError as exc:
        return Child(127, "", str(exc), 0.0)
    except subprocess.TimeoutExpired as exc:
        code, out, err = None, exc.stdout or b"", exc.stderr or b""
    seconds = time.monotonic() - start
    texts = [data.decode("utf-8", "replace") for data in (out, err)]
    return Child(code, texts[0], texts[1][-_KEPT:], seconds)
