"""The supervised process of a board: one session kept alive, offered to local programs.

They speak HTTP as OpenAI's clients do, on a local socket and, when asked for, on a port
(docs/service.md). Everything happens in one event loop: the doors, the watchdog, the state
file, and the streams, which are those of an asynchronous session.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import re
import signal
import socket
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Iterator, Mapping

from draftwire.errors import BusyError, ConfigError, DraftwireError, TransportError
from draftwire.options import MAX_TOKENS
from draftwire.runtime.service.http import Gate, HttpError, HttpServer, Reply, Request
from draftwire.runtime.service.openai import (
    Answer,
    Ask,
    Done,
    Form,
    Response,
    Words,
    read_ask,
)
from draftwire.runtime.service.streams import Streams, Supervisor
from draftwire.runtime.service.system import Notifier, StateFile

if TYPE_CHECKING:
    import ssl

    from draftwire.runtime.service.openai import Events
    from draftwire.runtime.session import AsyncSession
    from draftwire.runtime.stream import AsyncStream, Chunk


SCHEMA = "draftwire.service/1"
_LOG = logging.getLogger("draftwire.service")
_BACKLOG = 16
_RETRY_S = 1  # for who comes too early
_ASKS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text",
    "/v1/responses": "response",
}
_LOOPBACK = re.compile(r"127\.[0-9.]+|::1|localhost")
_SAVE_S = 60.0  # the state is written at most so often: SD cards wear


@dataclass(frozen=True)
class ServiceOptions:
    """What a service is told."""

    socket: Path  # where it listens
    group: str = ""  # group that may use it, or "" for the owner alone
    http: str = ""  # ``HOST:PORT`` where it listens as well, or ""
    token: str = ""  # who comes by that address must have it, unless it is ""
    origins: tuple[str, ...] = ()  # web pages that may ask
    tls: ssl.SSLContext | None = None  # of that address, or None for plain HTTP
    state: Path | None = None  # folder for the counters, or None
    # options for ``generate`` that a request may override
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # what the status says of the draft and of the settings
    about: Mapping[str, Any] = field(default_factory=dict)


class Service:
    """Serves local programs until a signal; ``make_session`` is told whether a verifier has
    refused before, and ``environ`` has systemd's words."""

    def __init__(
        self,
        options: ServiceOptions,
        make_session: Callable[[bool], Awaitable[AsyncSession]],
        environ: Mapping[str, str],
    ) -> None:
        self._options = options
        self._notifier = Notifier(environ)
        self._supervisor = Supervisor(make_session, self._notifier.status)
        self._streams = Streams(self._supervisor, options.defaults)
        self._state = StateFile(options.state)
        self._http = HttpServer(self._answer)
        self._address: str | None = None
        self._began_s = time.monotonic()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. A ConfigError where an address cannot be had or a
        setting is wrong; a ModelError where the draft does not load."""
        told = self._options
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_port(told)) if told.http else None
            local = stack.enter_context(_listening(told.socket, told.group))
            asyncio.run(self._serve(local, port))

    async def _serve(self, local: socket.socket, port: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._state.started()
        told = self._options
        await self._http.listen(Gate(origins=told.origins), sock=local)
        if port is not None:
            host, number = port.getsockname()[:2]
            scheme = "http" if told.tls is None else "https"
            self._address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{number}/v1"
            names = {told.http.rpartition(":")[0].lower(), socket.gethostname().lower()}
            names |= {"localhost", *(f"{name}.local" for name in names)}
            gate = Gate(told.token, told.origins, tuple(names))
            await self._http.listen(gate, sock=port, ssl=told.tls)
        work = (self._supervisor.run(), stop.wait(), self._watchdog(), self._save())
        supervisor, stopped, *others = map(asyncio.ensure_future, work)
        self._notifier.say("READY=1")
        also = f" and {self._address}" if self._address else ""
        _LOG.warning("serving local programs at %s%s", told.socket, also)
        try:
            await asyncio.wait({stopped, supervisor}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._notifier.say("STOPPING=1")
            self._http.shut()
            self._streams.close()
            await self._http.close()
            self._state.stopped(self._streams.counts)
            for task in (supervisor, stopped, *others):
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor  # closes the session; or says why it ended

    # ---- what goes on beside the clients

    async def _watchdog(self) -> None:
        wanted = self._notifier.watchdog_s
        while wanted is not None:
            if self._streams.healthy:
                self._notifier.say("WATCHDOG=1")
            else:  # systemd will kill and start us: the one cure for what hangs
                _LOG.error("a stream hangs; the watchdog is no longer told that we live")
            await asyncio.sleep(wanted / 3)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            self._state.save(self._streams.counts)

    def status(self) -> dict[str, Any]:
        streams, counts = self._streams, dict(self._streams.counts)
        tokens = counts.pop("tokens")
        return {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began_s, 3),
            **self._options.about,
            "link": self._supervisor.state(),
            "target": self._supervisor.target(),
            "streams": {"running": streams.running, "waiting": streams.waiting, **counts},
            "tokens": tokens,
            "written": streams.written,
            "work": dict(streams.work),
            "healthy": streams.healthy,
            "http": self._address,
            "clients": self._http.clients,
            "watchdog_s": self._notifier.watchdog_s,
            "memory_mib": _resident_mib(),
            "state": self._state.document(streams.counts),
        }

    # ---- requests

    async def _answer(self, request: Request, reply: Reply) -> None:
        try:
            await self._routed(request, reply)
        except DraftwireError as exc:
            raise _http_error(exc) from exc
        except (HttpError, ConnectionError):
            raise
        except Exception as exc:  # one request must not end the service
            _LOG.exception("a request failed: this is a bug")
            raise HttpError(500, f"this is a bug: {type(exc).__name__}: {exc}") from exc

    async def _routed(self, request: Request, reply: Reply) -> None:
        path = request.path.rstrip("/")
        model = path[len("/v1/models/") :] if path.startswith("/v1/models/") else None
        if not (path in ("/status", "/v1/models") or path in _ASKS or model):
            known = ", ".join([*_ASKS, "/v1/models", "/status"])
            raise HttpError(
                404, f"there is nothing at {path[:80] or '/'}; there is {known}"
            )
        if request.method == "OPTIONS":
            return await reply.json(None, 204)
        allowed = "POST" if path in _ASKS else "GET"
        if request.method != allowed:
            raise HttpError(405, f"{path} takes {allowed}", headers={"Allow": allowed})
        if path == "/status":
            return await reply.json(self.status())
        if path in _ASKS:
            ask = read_ask(_ASKS[path], request.body)
            self._check_model(ask.model)
            return await self._write(ask, reply)
        found = {
            name: {"id": name, "object": "model", "created": 0, "owned_by": "draftwire"}
            for name in self._models()
        }
        if not model:
            return await reply.json({"object": "list", "data": list(found.values())})
        self._check_model(model)
        await reply.json(found[model])

    def _models(self) -> list[str]:
        """Return what a request may call the model: the target first, when it is known."""
        target = self._supervisor.target() or {}
        draft = self._options.about.get("draft") or {}
        names = [target.get("name"), target.get("version"), draft.get("name"), "draftwire"]
        return [name for name in dict.fromkeys(names) if name]

    def _check_model(self, name: str) -> None:
        known = self._models()
        if name and name not in known:
            what = f"there is no model {name[:64]!r}; this board has {', '.join(known)}"
            raise HttpError(404, what, param="model", code="model_not_found")

    async def _write(self, ask: Ask, reply: Reply) -> None:
        """Have all choices written, and answer."""
        form: Form = (Response if ask.kind == "response" else Answer)(
            ask, self._models()[0]
        )
        prompts = [prompt for prompt in ask.prompts for _ in range(ask.choices)]
        queue: asyncio.Queue[tuple[int, Chunk | Done | Exception]] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(self._choice(ask, form, index, prompt, queue))
            for index, prompt in enumerate(prompts)
        ]
        done: dict[int, Done] = {}

        async def send(events: Events) -> None:
            for name, data in events if ask.stream else ():
                await reply.event(data, name)

        try:
            while len(done) < len(tasks):
                index, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if not reply.begun:
                    await send(form.begin())
                if isinstance(item, Done):
                    done[index] = item
                    await send(form.over(index, item))
                else:
                    await send(form.piece(index, item))
            written = [done[index] for index in range(len(tasks))]
            if not ask.stream:
                return await reply.json(form.whole(written))
            await send(form.end(written))
        except DraftwireError as exc:
            error = _http_error(exc)
            if isinstance(exc, ConfigError) and exc.about:
                error.param = ask.field_of(exc.about)
            if not reply.begun:
                raise error from exc
            await send(form.failed(error.document()))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await reply.end()

    async def _choice(
        self, ask: Ask, form: Form, index: int, prompt: Any, queue: asyncio.Queue[Any]
    ) -> None:
        options = dict(ask.options)
        if ask.kind != "text" and "max_new_tokens" not in self._options.defaults:
            options.setdefault("max_new_tokens", MAX_TOKENS)  # an answer ends by itself
        options["sample"] = options.get("sample", 0) + index

        def begin(session: AsyncSession, found: Mapping[str, Any]) -> AsyncStream:
            form.words = Words(session.word)
            if ask.kind == "text":
                return session.generate(prompt, **found)
            return session.chat(
                prompt,
                tools=ask.tools,
                tool_choice=ask.tool_choice,
                parallel_tool_calls=ask.parallel,
                template_options=ask.template_options,
                **found,
            )

        try:
            async with self._streams.turn(begin, options) as turn:
                async for chunk in turn.chunks():
                    if turn.stream is not None and turn.stream.calls is not None:
                        continue  # what is said and what is called is known at the end
                    if chunk.text or chunk.tokens or chunk.revision is not None:
                        queue.put_nowait((index, chunk))
                report = await turn.report()
                stream = turn.stream
                assert stream is not None
                finish, text, calls = stream.finish or "cancelled", stream.text, None
                if stream.calls is not None:
                    text, calls = stream.called
                queue.put_nowait((index, Done(text, finish, report, stream.tokens, calls)))
        except Exception as exc:  # noqa: BLE001  (told to who waits for it)
            queue.put_nowait((index, exc))


def _http_error(exc: DraftwireError) -> HttpError:
    """Return the error as HTTP tells it."""
    status, headers = 500, {}
    if isinstance(exc, ConfigError):
        status = 400
    elif isinstance(exc, TransportError):
        busy = isinstance(exc, BusyError)
        status = 429 if busy else 503
        wait = getattr(exc, "retry_after_s", None) or _RETRY_S
        headers = {"Retry-After": str(max(1, round(wait)))}
    name = type(exc).__name__
    return HttpError(status, str(exc), hint=exc.hint, code=name, headers=headers)


@contextlib.contextmanager
def _port(told: ServiceOptions) -> Iterator[socket.socket]:
    """Own a TCP address."""
    host, _, number = told.http.rpartition(":")
    host = host.strip("[]")
    if not host or not re.fullmatch("[0-9]{1,5}", number) or int(number) > 65535:
        hint = "it must be HOST:PORT or unix:PATH"
        raise ConfigError(f"http is {told.http!r}", hint=hint)
    if not told.token and not _LOOPBACK.fullmatch(host):
        raise ConfigError(
            f"without a token, every machine that reaches {told.http} could use this board",
            hint="give --http-token-file, or listen on 127.0.0.1",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, int(number)), family=family)
    except OSError as exc:
        why = (exc.strerror or str(exc)).partition(" (while")[0]
        what = f"{told.http} cannot be listened on: {why}"
        raise ConfigError(what, hint="choose another port with --http") from exc
    with listener:
        yield listener


@contextlib.contextmanager
def _listening(path: Path, group: str) -> Iterator[socket.socket]:
    """Own the socket at ``path``; a dead service's is replaced, a living one's is not."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if not stat.S_ISSOCK(path.stat().st_mode):
                    raise ConfigError(f"{path} is there and is no socket")
                if _answers(path):
                    what = f"a service runs at {path} already"
                    raise ConfigError(what, hint="stop it, or name --socket")
                path.unlink()
            mask = os.umask(0o177)  # nobody else, until the group is set
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            stack.callback(path.unlink, missing_ok=True)
            if group:
                os.chown(path, -1, grp.getgrnam(group).gr_gid)
                os.chmod(path, 0o660)
            listener.listen(_BACKLOG)
        except KeyError as exc:
            raise ConfigError(f"there is no group {group!r}") from exc
        except OSError as exc:
            raise ConfigError(
                f"{path} cannot be listened on: {exc.strerror or exc}",
                hint="name another with --socket, or run it as a service",
            ) from exc
        yield listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _resident_mib() -> float | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
