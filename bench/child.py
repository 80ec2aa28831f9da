"""Processes beside this one that find this very draftwire, and end with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence, TypeVar

from draftwire.boards.child import run_python
from draftwire.errors import ConfigError, DraftwireError, TransportError
from draftwire.io import end_child, environment

_START_S = 300.0  # a slow board may need a while to load a target
_STOP_S = 15.0
_MEASURED_S = 7200.0
_Own = TypeVar("_Own", bound="Child")
_PORT = re.compile(r"^listening on wss?://\S+:(\d+)\S*\n", re.M)


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

    def __enter__(self: _Own) -> _Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

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
        deadline, poll = time.monotonic() + timeout_s, select.poll()
        poll.register(process.stdout, select.POLLIN)
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1e3 * left):
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

    def begin(
        self, wanted: dict[str, Any], timeout_s: float, *own: type[DraftwireError]
    ) -> dict[str, Any]:
        """Say what it is to do; return its answer, or end it where that is an error.

        Raises:
            DraftwireError: Of the given kind, or of that of ``own`` which it tells of.
        """
        try:
            found = self.ask(json.dumps(wanted), timeout_s)
            if "error" in found:
                kinds = {kind.__name__: kind for kind in own}
                said = f"{self._name} did not start: {found['error']}"
                raise kinds.get(found["kind"], self._error)(said, hint=found["hint"])
        except BaseException:
            self.close()
            raise
        return found

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


def be_child(work: Callable[[dict[str, Any]], None]) -> int:
    """Do the ``work`` that the first line on stdin asks for; return the exit code.

    What goes wrong is the answer to that line.
    """
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data:
            return 1
        line += data
    try:
        work(json.loads(line))
    except (DraftwireError, OSError) as exc:
        hint = getattr(exc, "hint", "")
        answer({"error": str(exc), "hint": hint, "kind": type(exc).__name__})
        return int(getattr(exc, "exit_code", 3))
    return 0


def answer(document: dict[str, Any]) -> None:
    """Answer a line as :class:`Child` wants it."""
    os.write(1, json.dumps(document).encode() + b"\n")


def run_child(code: str, *args: str) -> str:
    """Run ``code`` in a fresh interpreter that finds this very draftwire; return what it
    prints.

    A ConfigError, with the last line, where it fails.
    """
    child = run_python(["-c", code, *args], timeout_s=_MEASURED_S)
    if not child.ok:
        last = (child.err.strip().splitlines() or [child.how()])[-1]
        raise ConfigError(f"a measuring process ended with {child.code}: {last}")
    return child.out


class VerifierProcess:
    """A verifier in a process of its own that can be killed, frozen and restarted.

    A ``with`` starts it, and kills it at its end.

    Args:
        targets: Target packages.
        flags: More words for ``draftwire verifier serve``.
        log: Where what it says goes.
        command: ``"serve"``, or ``"gateway"``.

    Attributes:
        port: Of loopback; known from the first start on, and the same over restarts.
    """

    def __init__(
        self,
        targets: Sequence[Path],
        *,
        flags: Sequence[str] = (),
        log: Path | None = None,
        command: str = "serve",
    ) -> None:
        self._log, self.port = log, 0
        self._words = [sys.executable, "-m", "draftwire", "verifier", command]
        for target in targets:
            self._words += ["--target", str(target)]
        self._words += ["--host", "127.0.0.1", *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VerifierProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it listens.

        A TransportError, with its own words, where it does not.
        """
        log = tempfile.TemporaryFile() if self._log is None else open(self._log, "a+b")
        with log:
            began = log.seek(0, os.SEEK_END)
            process = self._process = subprocess.Popen(
                [*self._words, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,  # Ctrl-C is ours: a session closes first
            )
            deadline = time.monotonic() + _START_S
            while True:
                ended = process.poll()
                said = os.pread(log.fileno(), 1 << 20, began).decode(errors="replace")
                if found := _PORT.search(said):
                    self.port = int(found.group(1))
                    return
                if ended is not None:
                    raise _not_started(f"ended with exit code {ended}", said)
                if time.monotonic() > deadline:
                    self.kill()
                    raise _not_started(f"said no address within {_START_S:.0f} s", said)
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}"

    def drain(self, patience_s: float | None = None) -> None:
        """End it as an operator does (SIGTERM), and wait for that where told how long."""
        if self._process is not None:
            self._process.terminate()
            if patience_s is not None:
                end_child(self._process, patience_s)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self._process is not None:
            self.thaw()
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop it (SIGSTOP): the port stays open, nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)


def _not_started(what: str, text: str) -> TransportError:
    lines = [line for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if "error: " in line), lines[-1] if lines else "")
    said = said.replace("draftwire: error: ", "")
    hint = next((x[len("hint: ") :] for x in lines if x.startswith("hint: ")), "")
    what = f"the local verifier {what}"
    return TransportError(f"{what}: {said}" if said else what, hint=hint)


@contextlib.contextmanager
def local_verifier(
    targets: Sequence[Path], flags: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Serve ``targets`` on a free loopback port, behind a fresh token; yield both.

    A TransportError, with its own words, where the verifier does not start.
    """
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="draftwire-") as folder:
        file = Path(folder, "token")
        file.touch(mode=0o600)
        file.write_text(token + "\n", encoding="ascii")
        words = ["--token-file", str(file), *flags]
        process = VerifierProcess(targets, flags=words, log=Path(folder, "verifier.log"))
        try:
            process.start()
            yield process.url, token
        finally:
            process.drain(_STOP_S)
