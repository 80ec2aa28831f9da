"""The other end of the service's socket, for programs on the same board.

>>> with ServiceClient(path) as service:
...     for event in service.generate("Take the", max_new_tokens=16, deadline_s=0.8):
...         print(event["text"], end="")               # doctest: +SKIP
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any, Iterator, Mapping

from draftwire import errors
from draftwire.errors import ConfigError, DraftwireError, TransportError
from draftwire.io import parse_json


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


class _Connection(http.client.HTTPConnection):
    """HTTP over a local socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ServiceClient:
    """One connection to the service at ``path``, or the usual socket; it carries one stream
    at a time, and ``timeout`` seconds without a word count as the service's death.

    Raises:
        TransportError: No service listens there.
    """

    def __init__(self, path: Path | None = None, *, timeout: float = 300.0) -> None:
        path = default_socket(os.environ) if path is None else path
        self._connection = _Connection(path, timeout)
        try:
            self._connection.connect()
        except OSError as exc:
            self.close()
            what = f"no service listens at {path}: {exc.strerror or exc}"
            hint = "systemctl status draftwire; or start `draftwire service run`"
            if isinstance(exc, PermissionError):
                what = f"you may not use the service at {path}"
                hint = "ask for its group (`ls -l` shows which), or be root"
            raise TransportError(what, hint=hint) from exc

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; a stream that still runs is cancelled."""
        self._connection.close()

    def status(self) -> dict[str, Any]:
        """Return how the service is."""
        found = self._json(self._ask("GET", "/status").read())
        if "schema" not in found:
            raise TransportError("what listens there is no service of ours")
        return found

    def generate(self, prompt: str | list[int], **options: Any) -> Iterator[dict[str, Any]]:
        """Yield the pieces of one text; the last one has ``finish`` and ``report``.

        ``prompt`` is text or token ids, ``options`` are those of ``Session.generate``.

        Raises:
            DraftwireError: The service refused, or the stream failed.
        """
        asked = {**options, "report": True}
        body = {"prompt": prompt, "stream": True, "draftwire": asked}
        answer = self._ask("POST", "/v1/completions", body)
        over = False
        try:
            for line in iter(answer.readline, b""):
                if not line.startswith(b"data: "):
                    continue
                if line == b"data: [DONE]\n":
                    over = True
                    continue  # to the end of the answer, for the next request
                document = self._json(line[6:])
                if "error" in document:
                    raise self._error(document["error"])
                for choice in document["choices"]:
                    yield {"text": choice["text"], **(choice.get("draftwire") or {})}
        except OSError as exc:
            raise TransportError(f"the service says nothing: {exc}") from exc
        finally:
            if not over:  # hanging up is how a stream is cancelled
                self._connection.close()
        if not over:
            raise TransportError("the service went away")

    def _ask(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        sent = None if body is None else json.dumps(body).encode("utf-8")
        try:
            self._connection.request(method, path, sent)
            answer = self._connection.getresponse()
            if answer.status == 200:
                return answer
            document = self._json(answer.read())
        except (OSError, http.client.HTTPException) as exc:
            raise TransportError(
                f"the service went away: {exc or type(exc).__name__}"
            ) from exc
        raise self._error(document.get("error") or {})

    @staticmethod
    def _json(data: bytes) -> dict[str, Any]:
        try:
            found = parse_json(data)
        except ValueError as exc:
            raise TransportError(f"no service of ours says {data[:40]!r}") from exc
        return found if isinstance(found, dict) else {}

    @staticmethod
    def _error(found: Mapping[str, Any]) -> DraftwireError:
        name, text = str(found.get("code")), str(found.get("message"))
        wrong = found.get("type") == "invalid_request_error"
        kind: type[DraftwireError] = ConfigError if wrong else TransportError
        if name in errors.__all__:
            kind = getattr(errors, name)
        return kind(text, hint=str(found.get("hint") or ""))
