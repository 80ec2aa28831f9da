"""A verifier process on this machine, for as long as a ``with`` lasts."""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Iterator, Sequence

from draftwire.errors import TransportError
from draftwire.io import end_child, environment

START_S = 300.0  # a slow board may need a while to load a target
STOP_S = 15.0
_URL = re.compile(r"^listening on (ws://\S+)\n", re.M)


@contextlib.contextmanager
def local_verifier(
    targets: Sequence[Path], flags: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Serve ``targets`` on a free loopback port; yield its URL and token.

    A TransportError, with its own words, where the verifier does not start.
    """
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="draftwire-") as folder:
        token_file = Path(folder) / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token + "\n", encoding="ascii")
        log = Path(folder) / "verifier.log"
        command = [sys.executable, "-m", "draftwire", "verifier", "serve"]
        command += ["--host", "127.0.0.1", "--port", "0"]
        command += ["--token-file", str(token_file)]
        command += flags
        for target in targets:
            command += ["--target", str(target)]
        with open(log, "wb") as handle:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=environment(PYTHONUNBUFFERED="1"),
                start_new_session=True,  # Ctrl-C is ours: the session closes first
            )
        try:
            yield _wait_for_url(process, log), token
        finally:
            end_child(process, STOP_S)


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    pause = threading.Event()
    while time.monotonic() < deadline:
        ended = process.poll()
        text = log.read_text(encoding="utf-8", errors="replace")
        found = _URL.search(text)
        if found:
            return found.group(1)
        if ended is not None:
            raise _failure(f"the local verifier ended with exit code {ended}", text)
        pause.wait(0.02)
    raise _failure(f"the local verifier said no address within {START_S:.0f} s", text)


def _failure(what: str, text: str) -> TransportError:
    lines = [line for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if "error: " in line), lines[-1] if lines else "")
    said = said.replace("draftwire: error: ", "")
    hint = next((x[len("hint: ") :] for x in lines if x.startswith("hint: ")), "")
    return TransportError(f"{what}: {said}" if said else what, hint=hint)
