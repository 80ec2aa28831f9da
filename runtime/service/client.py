"""The other end of the service's socket, for programs on the same board.

>>> with ServiceClient(path) as service:
...     for event in service.generate("Take the", max_new_tokens=16, deadline_s=0.8):
...         print(event.get("text", ""), end="")               # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Iterator, Mapping

from draftwire import errors
from draftwire.errors import DraftwireError, TransportError

__all__ = ["ServiceClient", "default_socket"]


def default_socket(environ: Mapping[str, str]) -> Path:
    """Return where the service listens: systemd's folder for it, or the user's own."""
    folder = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if folder:
        return Path(folder) / "draftwire.sock"
    installed = Path("/run/draftwire/draftwire.sock")
    own = environ.get("XDG_RUNTIME_DIR", "")
    if installed.exists() or not own:
        return installed
    return Path(own) / "draftwire" / "draftwire.sock"


class ServiceClient:
    """One connection to the service.

    Args:
        path: Its socket; None takes the usual one.
        timeout: Seconds without a word from the service that count as its death.

    Raises:
        TransportError: No service listens there.
    """

    def __init__(self, path: Path | None = None, *, timeout: float = 300.0) -> None:
        path = default_socket(os.environ) if path is None else path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except OSError as exc:
            self._socket.close()
            what = f"no service listens at {path}: {exc.strerror or exc}"
            hint = "systemctl status draftwire; or start `draftwire service run`"
            if isinstance(exc, PermissionError):
                what = f"you may not use the service at {path}"
                hint = "ask for its group (`ls -l` shows which), or be root"
            raise TransportError(what, hint=hint) from exc
        self._file = self._socket.makefile("rb")
        self._last = 0

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; streams that still run are cancelled."""
        self._file.close()
        self._socket.close()

    def status(self) -> dict[str, Any]:
        """Return how the service is."""
        identity = self._ask({"op": "status"})
        return next(self._events(identity))

    def generate(self, prompt: str | list[int], **options: Any) -> Iterator[dict[str, Any]]:
        """Yield the events of one stream, "done" the last.

        Args:
            prompt: Text, or token ids.
            options: Those of ``Session.generate`` (docs/options.md).

        Raises:
            DraftwireError: The service refused, or the stream failed.
        """
        identity = self._ask({"prompt": prompt, **options})
        over = False
        try:
            for event in self._events(identity):
                over = event["event"] == "done"
                yield event
                if over:
                    return
        except DraftwireError:
            over = True
            raise
        finally:
            if not over and self._socket.fileno() >= 0:
                self._send({"op": "cancel", "id": identity})

    def _ask(self, request: dict[str, Any]) -> int:
        self._last += 1
        self._send({"id": self._last, **request})
        return self._last

    def _send(self, request: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode("utf-8") + b"\n")
        except OSError as exc:
            raise TransportError(f"the service went away: {exc}") from exc

    def _events(self, identity: int) -> Iterator[dict[str, Any]]:
        while True:
            try:
                line = self._file.readline()
            except OSError as exc:
                raise TransportError(f"the service says nothing: {exc}") from exc
            if not line:
                raise TransportError("the service went away")
            try:
                event = json.loads(line.decode("utf-8"))
                found, kind = event.get("id"), event["event"]
            except (ValueError, AttributeError, KeyError) as exc:
                raise TransportError(
                    f"what listens there is no service of ours: {line[:40]!r}"
                ) from exc
            if kind == "error" and found in (identity, None):
                name = event.get("kind", "")
                error = getattr(errors, name) if name in errors.__all__ else TransportError
                raise error(str(event.get("message")), hint=str(event.get("hint") or ""))
            if found == identity:
                yield event
