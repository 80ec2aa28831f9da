"""The supervised process of a board: one session kept alive, offered on a local socket.

Local programs speak JSON, one object a line (:mod:`service_requests`; docs/shipping.md).
The event loop owns the socket, the watchdog and the state file; a worker thread writes
the streams, a keeper thread holds the session.
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
from typing import Any, Callable, Iterator, Mapping

from draftwire.errors import BusyError, ConfigError, DraftwireError
from draftwire.runtime.service_link import Keeper
from draftwire.runtime.service_notify import Notifier
from draftwire.runtime.service_requests import (
    MAX_LINE,
    Cancel,
    Generate,
    Status,
    parse_request,
)
from draftwire.runtime.service_state import StateFile
from draftwire.runtime.service_worker import Job, Worker, error_event

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
        socket: Path of the local socket.
        group: Group that may use it, or "" for the owner alone.
        state: Folder for the counters, or None.
        defaults: Options for ``Session.generate`` that a request may override.
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
        make_session: Makes a connected session; raises DraftwireError.
        environ: The environment, for systemd's words.
    """

    def __init__(
        self,
        options: ServiceOptions,
        make_session: Callable[[], Any],
        environ: Mapping[str, str],
    ) -> None:
        self._options = options
        self._notifier = Notifier(environ)
        self._keeper = Keeper(make_session, self._changed, self._fatal)
        self._worker = Worker(self._keeper, options.defaults)
        self._state = StateFile(options.state)
        self._clients: set[_Client] = set()
        self._began_s = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._error: DraftwireError | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigError: The socket cannot be had, or a setting is wrong.
            ModelError: The draft does not load.
        """
        with _listening(self._options.socket, self._options.group) as listener:
            asyncio.run(self._serve(listener))
        if self._error is not None:
            raise self._error

    async def _serve(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._state.started()
        server = await asyncio.start_unix_server(self._serve_client, sock=listener)
        self._worker.start()
        self._keeper.start()
        self._notifier.ready()
        _LOG.warning("serving local programs at %s", self._options.socket)
        tasks = [asyncio.ensure_future(self._watchdog())]
        tasks.append(asyncio.ensure_future(self._save()))
        try:
            await self._stop.wait()
        finally:
            self._notifier.stopping()
            server.close()
            for task in tasks:
                task.cancel()
            await self._loop.run_in_executor(None, self._close)
            await asyncio.gather(*(client.finish() for client in list(self._clients)))
            self._state.stopped(self._worker.counts)

    def _close(self) -> None:
        self._worker.close()
        self._keeper.close()

    # ---- told by the threads

    def _changed(self, sentence: str) -> None:
        self._notifier.status(sentence)

    def _fatal(self, error: DraftwireError) -> None:
        self._error = error
        assert self._loop is not None and self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    # ---- what goes on beside the clients

    async def _watchdog(self) -> None:
        wanted = self._notifier.watchdog_s
        while wanted is not None:
            if self._worker.healthy:
                self._notifier.alive()
            else:  # systemd will kill and start us: the one cure for what hangs
                _LOG.error("a stream hangs; the watchdog is no longer told that we live")
            await asyncio.sleep(wanted / 3)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            self._state.save(self._worker.counts)

    def status(self) -> dict[str, Any]:
        """Return how the service is."""
        session = self._keeper.session
        target = None
        if session is not None:
            welcome = session.welcome
            target = {"name": welcome.target, "version": welcome.target_version}
        return {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began_s, 3),
            **self._options.about,
            "link": self._keeper.state(),
            "target": target,
            "streams": {
                "running": int(self._worker.running),
                "waiting": self._worker.waiting,
                **{k: v for k, v in self._worker.counts.items() if k != "tokens"},
            },
            "tokens": self._worker.counts["tokens"],
            "healthy": self._worker.healthy,
            "clients": len(self._clients),
            "watchdog_s": self._notifier.watchdog_s,
            "memory_mib": _resident_mib(),
            "state": self._state.document(self._worker.counts),
        }

    # ---- the clients

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        client = _Client(writer)
        if len(self._clients) >= MAX_CLIENTS:
            error = BusyError(f"{MAX_CLIENTS} programs are connected already")
            client.put(error_event(None, error))
            await client.finish()
            return
        self._clients.add(client)
        try:
            async for line in _lines(reader, client):
                self._take(client, line)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(client)
            for job in list(client.jobs.values()):  # nobody is there to read them
                self._worker.stop(job)
            await client.finish()

    def _take(self, client: _Client, line: bytes) -> None:
        identity = None
        try:
            request = parse_request(line)
            identity = request.id
            if isinstance(request, Status):
                client.put({"id": identity, "event": "status", **self.status()})
            elif isinstance(request, Cancel):
                job = client.jobs.get(identity)
                if job is None:
                    raise ConfigError(f"there is no running stream {identity!r}")
                self._worker.stop(job)
            else:
                self._submit(client, request)
        except DraftwireError as exc:
            client.put(error_event(identity, exc))

    def _submit(self, client: _Client, request: Generate) -> None:
        if request.id in client.jobs:
            raise ConfigError(f"stream {request.id!r} is still running on this connection")
        loop = self._loop
        assert loop is not None

        def send(event: dict[str, Any]) -> bool:
            if event["event"] in ("done", "error"):
                loop.call_soon_threadsafe(client.jobs.pop, request.id, None)
            loop.call_soon_threadsafe(client.put, event)
            return not client.gone

        job = Job(request, send)
        client.jobs[request.id] = job
        try:
            self._worker.submit(job)
        except DraftwireError:
            del client.jobs[request.id]
            raise


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


async def _lines(reader: asyncio.StreamReader, client: _Client) -> Any:
    """Yield whole lines until the end, or until one is too long."""
    rest = b""
    while True:
        end = rest.find(b"\n")
        if end >= 0:
            line, rest = rest[:end], rest[end + 1 :]
            if line.strip():
                yield line
            continue
        if len(rest) > MAX_LINE:
            error = ConfigError(f"a request has at most {MAX_LINE >> 10} KiB")
            client.put(error_event(None, error))
            return
        data = await reader.read(1 << 16)
        if not data:
            return
        rest += data


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
