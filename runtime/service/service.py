"""The supervised process of a board: one session kept alive, offered on a local socket.

Local programs speak JSON, one object a line (:mod:`service_streams`; docs/shipping.md).
Everything happens in one event loop: the socket, the watchdog, the state file, and the
streams, which are those of an asynchronous session.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import logging
import os
import signal
import socket
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Iterator, Mapping

from draftwire.errors import BusyError, ConfigError, DraftwireError
from draftwire.runtime.service.link import Keeper
from draftwire.runtime.service.streams import (
    MAX_LINE,
    Cancel,
    Generate,
    Job,
    Status,
    Streams,
    error_event,
    read_request,
    request_of,
)
from draftwire.runtime.service.system import Notifier, StateFile

if TYPE_CHECKING:
    from draftwire.runtime.session import AsyncSession

__all__ = ["SCHEMA", "Service", "ServiceOptions"]

SCHEMA = "draftwire.service/1"
_LOG = logging.getLogger("draftwire.service")
MAX_CLIENTS = 16
MAX_UNSENT = 4 << 20  # bytes that wait for a client that does not read
_BACKLOG = 16
_SAVE_S = 60.0  # the state is written at most so often: SD cards wear


@dataclass(frozen=True)
class ServiceOptions:
    """What a service is told.

    Attributes:
        socket: Where it listens.
        group: Group that may use it, or "" for the owner alone.
        state: Folder for the counters, or None.
        defaults: Options for ``generate`` that a request may override.
        about: What the status says of the draft and of the settings.
    """

    socket: Path
    group: str = ""
    state: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


class Service:
    """Serves local programs until a signal.

    Args:
        options: What it is told.
        make_session: Makes a session; told whether a verifier has refused before.
        environ: The environment, for systemd's words.
    """

    def __init__(
        self,
        options: ServiceOptions,
        make_session: Callable[[bool], Awaitable[AsyncSession]],
        environ: Mapping[str, str],
    ) -> None:
        self._options = options
        self._notifier = Notifier(environ)
        self._keeper = Keeper(make_session, self._notifier.status)
        self._streams = Streams(self._keeper, options.defaults)
        self._state = StateFile(options.state)
        self._clients: set[_Client] = set()
        self._began_s = time.monotonic()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigError: The socket cannot be had, or a setting is wrong.
            ModelError: The draft does not load.
        """
        with _listening(self._options.socket, self._options.group) as listener:
            asyncio.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._state.started()
        server = await asyncio.start_unix_server(
            self._serve_client, sock=listener, limit=MAX_LINE
        )
        keeper, stopped, *others = (
            asyncio.ensure_future(task)
            for task in (self._keeper.run(), stop.wait(), self._watchdog(), self._save())
        )
        self._notifier.ready()
        _LOG.warning("serving local programs at %s", self._options.socket)
        try:
            await asyncio.wait({stopped, keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._notifier.stopping()
            server.close()
            await self._streams.close()
            await asyncio.gather(*(client.finish() for client in list(self._clients)))
            self._state.stopped(self._streams.counts)
            for task in (keeper, stopped, *others):
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper  # closes the session; or says why it ended

    # ---- what goes on beside the clients

    async def _watchdog(self) -> None:
        wanted = self._notifier.watchdog_s
        while wanted is not None:
            if self._streams.healthy:
                self._notifier.alive()
            else:  # systemd will kill and start us: the one cure for what hangs
                _LOG.error("a stream hangs; the watchdog is no longer told that we live")
            await asyncio.sleep(wanted / 3)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            self._state.save(self._streams.counts)

    def status(self) -> dict[str, Any]:
        """Return how the service is."""
        streams, counts = self._streams, dict(self._streams.counts)
        tokens = counts.pop("tokens")
        return {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began_s, 3),
            **self._options.about,
            "link": self._keeper.state(),
            "target": self._keeper.target(),
            "streams": {"running": streams.running, "waiting": streams.waiting, **counts},
            "tokens": tokens,
            "healthy": streams.healthy,
            "clients": len(self._clients),
            "watchdog_s": self._notifier.watchdog_s,
            "memory_mib": _resident_mib(),
            "state": self._state.document(streams.counts),
        }

    # ---- the clients

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        client = _Client(writer)
        if len(self._clients) >= MAX_CLIENTS:
            full = BusyError(f"{MAX_CLIENTS} programs are connected already")
            client.put(error_event(None, full))
            return await client.finish()
        self._clients.add(client)
        try:
            async for line in _lines(reader):
                self._take(client, line)
        except ConfigError as exc:
            client.put(error_event(None, exc))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(client)
            for job in list(client.jobs.values()):  # nobody is there to read them
                job.stop()
            await client.finish()

    def _take(self, client: _Client, line: bytes) -> None:
        identity = None
        try:
            identity, raw = read_request(line)
            request = request_of(identity, raw)
            if isinstance(request, Status):
                client.put({"id": identity, "event": "status", **self.status()})
            elif isinstance(request, Cancel):
                job = client.jobs.get(identity)
                if job is None:
                    raise ConfigError(f"there is no running stream {identity!r}")
                job.stop()
            else:
                self._submit(client, request)
        except DraftwireError as exc:
            client.put(error_event(identity, exc))

    def _submit(self, client: _Client, request: Generate) -> None:
        if request.id in client.jobs:
            raise ConfigError(f"stream {request.id!r} is still running on this connection")

        def send(event: Mapping[str, Any]) -> bool:
            if event["event"] in ("done", "error"):
                client.jobs.pop(request.id, None)
            client.put(event)
            return not client.gone

        job = Job(request, send)
        self._streams.submit(job)
        client.jobs[request.id] = job


class _Client:
    """One connected program."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.jobs: dict[Any, Job] = {}
        self.gone = False

    def put(self, event: Mapping[str, Any]) -> None:
        """Send an event; a program that does not read is let go."""
        if self.gone:
            return
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n"
        self._writer.write(text.encode("utf-8", "replace"))
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > MAX_UNSENT:
            self.gone = True
            transport.abort()

    async def finish(self) -> None:
        """Send what is left, and close."""
        self.gone = True
        with contextlib.suppress(ConnectionError, OSError, asyncio.TimeoutError):
            self._writer.close()
            await asyncio.wait_for(self._writer.wait_closed(), 5)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines until the end.

    Raises:
        ConfigError: One is longer than the reader's limit, however its bytes arrive.
    """
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            raise ConfigError(f"a request has at most {MAX_LINE >> 10} KiB") from None
        if line.strip():
            yield line[:-1]


@contextlib.contextmanager
def _listening(path: Path, group: str) -> Iterator[socket.socket]:
    """Own the socket at ``path``; a dead service's is replaced, a living one's is not."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise ConfigError(f"{path} is there and is no socket")
            if _answers(path):
                raise ConfigError(
                    f"a service runs at {path} already", hint="stop it, or name --socket"
                )
            path.unlink()
        mask = os.umask(0o177)  # nobody else, until the group is set
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
            os.chmod(path, 0o660)
        listener.listen(_BACKLOG)
    except KeyError as exc:
        listener.close()
        path.unlink()
        raise ConfigError(f"there is no group {group!r}") from exc
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"{path} cannot be listened on: {exc.strerror or exc}",
            hint="name another with --socket, or run it as a service",
        ) from exc
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _resident_mib() -> float | None:
    """Return the memory that we hold, MiB, or None where /proc does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
