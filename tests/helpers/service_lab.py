"""A service process, its verifier, and what is needed to talk to them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from verifier_process import ENVIRONMENT, ROOT, TINY, serving

from draftwire.errors import TransportError
from draftwire.runtime.service.client import ServiceClient

FIXTURES = ROOT / "tests" / "fixtures"
PATIENCE_S = 120


def eventually(check: Callable[[], Any], what: str) -> Any:
    """Wait until ``check`` returns something; a slow machine is no failure."""
    end = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        pause.wait(0.05)
    raise AssertionError(f"not in {PATIENCE_S} s: {what}")


class Manager:
    """The end of systemd: hears what the service says of itself."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except OSError:
                return
            if text == "over":
                return
            self.heard += text.split("\n")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"over", str(self.path))
        self._thread.join()
        self._socket.close()


@contextmanager
def verifier(port: int = 0, target: Path = TINY) -> Iterator[tuple[Any, int]]:
    """Run a verifier; yield its process and port."""
    words = ("--target", target, "--port", port)
    with serving(*words, stderr=subprocess.DEVNULL) as (process, url):
        yield process, int(url.rsplit(":", 1)[1])


class Running:
    """A service process and what is needed to talk to it."""

    def __init__(self, folder: Path, port: int, *words: str, **environ: str) -> None:
        self.folder = folder
        self.socket = folder / "run" / "draftwire.sock"
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self.log = open(folder / "log", "ab")  # noqa: SIM115  closed with the process
        command = [sys.executable, "-m", "draftwire", "service", "run"]
        command += ["--verifier", f"ws://127.0.0.1:{port}", "--energy", "off"]
        if "--draft" not in words:
            command += ["--draft", str(FIXTURES / "tiny.draft")]
        command += words
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={
                **ENVIRONMENT,
                "RUNTIME_DIRECTORY": str(folder / "run"),
                "STATE_DIRECTORY": str(self.state),
                **environ,
            },
            stdout=self.log,
            stderr=self.log,
        )

    def client(self) -> ServiceClient:
        def attempt() -> ServiceClient | None:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                return ServiceClient(self.socket, timeout=PATIENCE_S)
            except TransportError:
                return None

        found = eventually(attempt, "the service listens")
        assert isinstance(found, ServiceClient)
        return found

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.status()

    def up(self) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.status()
            return found if found["link"]["state"] == "up" else None

        found: dict[str, Any] = eventually(look, "the link is up")
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self.log.close()
        return code


@contextmanager
def service(folder: Path, port: int, *words: str, **environ: str) -> Iterator[Running]:
    running = Running(folder, port, *words, **environ)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        running.log.close()
