"""The verifier's websocket service: who may come in, how long, and how it ends.

One address serves the protocol (on any path), ``/healthz`` and ``/metrics``; another one
the latter two without a token, where that is wanted. Who a request is for, which page it
comes from and its credentials are checked before the upgrade. The service owns no model:
the registry has the targets, each connection drives its own session, the schedulers batch
their work.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import math
import re
import ssl
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Iterable, Sequence

from websockets.asyncio.server import serve

from draftwire import __version__
from draftwire.errors import ConfigError
from draftwire.transport.answers import clean
from draftwire.transport.codec import SUBPROTOCOL
from draftwire.transport.dial import is_loopback
from draftwire.transport.wirelog import ConnectionLog, WireLog
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.accounts import Account, Accounts
from draftwire.verifier.serving.connection import Connection
from draftwire.verifier.serving.door import Forwarded, Lobby, open_doors
from draftwire.verifier.serving.intake import Intake, Reader
from draftwire.verifier.serving.limits import QUEUED_FRAMES, Limits
from draftwire.verifier.serving.metrics import CONTENT_TYPE, metrics_page
from draftwire.verifier.streams import KeptStreams

log = logging.getLogger("draftwire.verifier")

# websockets writes a traceback for every port scan; what matters is in our own log.
_QUIET = logging.getLogger("draftwire.verifier.websockets")
_QUIET.setLevel(logging.CRITICAL)

# What a Host header may be: a name, or an address (group 2); then perhaps a port.
_NAME = re.compile(r"((\[[0-9a-f:.]+\]|\d+\.\d+\.\d+\.\d+)|[a-z0-9_.-]+?)\.?(?::\d{1,5})?")


def tls_context(cert: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """Return the server's TLS settings, of PEM files.

    With ``client_ca`` devices must show a certificate that it has signed.

    Raises:
        ConfigError: A file is missing or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS cannot start with {cert}, {key}"
            f"{f', {client_ca}' if client_ca else ''}: {error}",
            hint="give PEM files: --tls-cert, its --tls-key, --tls-client-ca",
        ) from error
    return context


class _Renewable(ssl.SSLContext):
    """TLS settings whose place others may take, for handshakes from then on."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*args, **options)


@dataclass(frozen=True)
class Settings:
    """Where a service listens, for whom, and what it allows."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0 takes a free one
    insecure: bool = False  # allow plain ``ws://`` off loopback
    limits: Limits = field(default_factory=Limits)  # bounds for each device
    trusted: tuple[str, ...] = ()  # proxies whose ``X-Forwarded-For`` names devices in logs
    origins: tuple[str, ...] = ()  # pages whose scripts may connect, as browsers name them
    # further names that requests may be for; see :meth:`VerifierService._misled`
    names: tuple[str, ...] = ()
    admin: tuple[str, int] | None = None  # address of health and metrics without a token


class VerifierService:
    """Accepts devices and serves them.

    Raises:
        ConfigError: The address needs TLS or a token that is not there.
    """

    connection_class = Connection

    def __init__(
        self,
        registry: Registry,
        settings: Settings | None = None,
        *,
        # who may connect; without any everyone may, which is refused off loopback
        accounts: Accounts | None = None,
        # from :func:`tls_context`, or None for plain ``ws://``
        tls: ssl.SSLContext | None = None,
        wire_log: WireLog | None = None,  # where wire events are noted
    ) -> None:
        settings = settings or Settings()
        host = settings.host
        if not is_loopback(host):
            if tls is None and not settings.insecure:
                raise ConfigError(
                    f"plain ws:// on {host} would show tokens and text to the network",
                    hint="give --tls-cert and --tls-key, or --insecure behind a proxy "
                    "that does TLS",
                )
            if accounts is None or accounts.open:
                raise ConfigError(
                    f"without a token anyone who reaches {host} could use this verifier",
                    hint="make one: draftwire verifier token --out FILE, then "
                    "--token-file FILE",
                )
        self.registry = registry
        self.limits = settings.limits
        self.connections: set[Connection] = set()  # those that are open
        self.kept = KeptStreams(self.limits)  # streams that can be resumed
        self.draining = False  # true once the service is going away
        self.bytes_in = 0
        self.bytes_out = 0
        self._forwarded = Forwarded(settings.trusted)
        self.name_of = self._forwarded.name
        # who has not said hello yet
        self.lobby = Lobby(self.limits, self._forwarded.trusts)
        self._wire_log = wire_log
        # how often which word of PROTOCOL.md, section 5, was the answer
        self.refusals: Counter[str] = Counter()
        self._host, self._port, self._tls = host, settings.port, tls
        self._admin = settings.admin
        self._origins = frozenset(settings.origins)
        self._names = frozenset(name.lower() for name in (host, *settings.names))
        # The public name of another machine cannot be known; there must be tokens there.
        self._any_name = not is_loopback(host) and not settings.names
        self.accounts = accounts or Accounts()  # who may connect
        self._servers: list[Any] = []
        self._listening_tls: _Renewable | None = None
        self._watchdog: asyncio.Task[None] | None = None

    @property
    def greeted(self) -> int:
        """How many devices have said hello."""
        return sum(connection.greeted for connection in self.connections)

    @property
    def admin_url(self) -> str | None:
        """Where health and metrics are to be had without a token."""
        return None if self._admin is None else _url("http", *self._admin)

    @property
    def url(self) -> str:
        """Where devices connect."""
        return _url("wss" if self._tls else "ws", self._host, self._port)

    def log_of(self, socket: Any) -> ConnectionLog:
        """Return where the wire events of a new connection are noted."""
        log = self._wire_log
        return ConnectionLog() if log is None else log.connection(self.name_of(socket))

    def more_metrics(self) -> Iterable[tuple[str, float, dict[str, str]]]:
        """Return samples that are this kind of service's own: name, value, labels."""
        return ()

    def refused(self, code: str) -> None:
        """Count an error sent to a device."""
        self.refusals[code] += 1

    async def start(self) -> None:
        """Begin to listen; ``url`` is final after that.

        Raises:
            ConfigError: The address cannot be had.
        """
        tls = None if self._tls is None else _Renewable(ssl.PROTOCOL_TLS_SERVER)
        self._listening_tls = tls
        self.renew((), self._tls)
        self._port = await self._listen(self._host, self._port, self._before_upgrade, tls)
        if self._admin is not None:
            host, port = self._admin
            self._admin = host, await self._listen(host, port, self._administer, None)
        self._watchdog = asyncio.ensure_future(self._watch())

    async def _listen(self, host: str, port: int, answer: Any, tls: Any) -> int:
        """Listen at an address; return its port."""
        try:
            doors = open_doors(host, port, self.lobby)
        except OSError as error:
            flags = "--port or --host" if answer == self._before_upgrade else "--admin"
            raise ConfigError(
                f"cannot listen on {host} port {port}: {error.strerror}",
                hint=f"choose another {flags} (port 0 takes a free one)",
            ) from error
        intake = Intake(self.limits)
        for door in doors:
            self._servers.append(
                await serve(
                    self._handle,
                    sock=door,
                    process_request=answer,
                    subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                    compression=None,  # packed ids do not shrink
                    max_size=self.limits.message_bytes,
                    max_queue=QUEUED_FRAMES,
                    open_timeout=self.limits.hello_s,
                    ping_interval=self.limits.ping_s,
                    ping_timeout=self.limits.ping_s,
                    close_timeout=2,
                    server_header=None,
                    ssl=tls,
                    logger=_QUIET,
                    create_connection=partial(Reader, intake),  # type: ignore[arg-type]
                )
            )
        found: int = doors[0].getsockname()[1]
        return found

    def renew(self, accounts: Sequence[Account], tls: ssl.SSLContext | None) -> None:
        """Take over tokens and certificates; who has lost its token is shown out.

        Without accounts, or with None, who may connect, or TLS, is left as it is.
        """
        if tls is not None and self._listening_tls is not None:
            self._listening_tls.current = tls
        if accounts:
            self.accounts.update(accounts)
            for connection in tuple(self.connections):
                if connection.usage.revoked:
                    connection.revoke()
            self.kept.revoke()

    async def _watch(self) -> None:
        """Show out silent devices; one timer for all is cheaper than one a frame."""
        limits = self.limits
        times = (limits.hello_s, limits.idle_s, limits.send_s, limits.resume_s or 4.0)
        pause = min(1.0, min(times) / 4)
        while True:
            await asyncio.sleep(pause)
            now = asyncio.get_running_loop().time()
            self.kept.sweep()
            for connection in tuple(self.connections):
                blocked_s = connection.blocked_s
                if blocked_s is not None and now - blocked_s > limits.send_s:
                    log.warning("a device reads nothing: cutting its connection")
                    connection.abort()
                    continue
                allowed_s = limits.idle_s if connection.greeted else limits.hello_s
                if now - connection.active_s > allowed_s and not connection.expired:
                    connection.expire()

    async def drain(self, timeout_s: float) -> None:
        """Let running streams finish, then show everyone out.

        New connections and streams are refused at once, and ``/healthz`` says 503, so
        that a balancer looks elsewhere. Running streams may still take ``timeout_s``.
        """
        self.draining = True
        log.info("draining: %d connections", len(self.connections))
        loop = asyncio.get_running_loop()
        for now, patience_s in ((False, timeout_s), (True, 4.0)):
            for connection in tuple(self.connections):
                connection.drain(now=now)
            deadline = loop.time() + patience_s
            while self.connections and loop.time() < deadline:
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop listening, close connections and targets."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        for server in self._servers:
            server.close()
            await server.wait_closed()
        self.lobby.close()
        self.registry.close()

    async def _handle(self, socket: Any) -> None:
        usage = socket.account_usage
        usage.connections += 1
        connection = self.connection_class(socket, self, usage)
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            usage.connections -= 1

    # ---- before the upgrade

    def _before_upgrade(self, socket: Any, request: Any) -> Any:
        """Answer plain HTTP, and refuse upgrades without the token."""
        refusal = self._misled(socket, request, any_name=self._any_name)
        if refusal is not None:
            return refusal
        address = self._forwarded.address(socket)
        through = self._forwarded.trusts(str((socket.remote_address or ("",))[0]))
        if self.lobby.knock(address, float(through)) > 0:
            return self._later(socket, 429, "this address connects too often")
        shown = request.headers.get_all("Authorization")
        usage = self.accounts.find(shown)
        what = _last_word(request)
        if usage is None and (shown or what != "healthz"):
            self.refused("token")
            self.lobby.missed(address)
            log.warning("%s: missing or wrong token", self.name_of(socket))
        if what == "healthz":
            return self._page(socket, what, whole=usage is not None)
        if usage is None:
            answer = _say(
                socket,
                401,
                "missing or wrong token: send the verifier's token as "
                "'Authorization: Bearer TOKEN' (--token-file on the device)",
            )
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        if what == "metrics":
            return self._page(socket, what, whole=True)
        offered = ", ".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if "Upgrade" not in request.headers:
            why = "nothing here but a websocket; a proxy must pass Upgrade and Connection"
            return _say(socket, 400, why)
        if not offered:
            return _say(
                socket,
                400,
                f"the upgrade offers no subprotocol, and this verifier speaks "
                f"{SUBPROTOCOL}: a proxy must pass Sec-WebSocket-Protocol",
            )
        if SUBPROTOCOL not in offered.replace(" ", "").split(","):
            self.refused("version")
            return _say(
                socket,
                426,
                f"this verifier speaks {SUBPROTOCOL}, and the device offered "
                f"{clean(offered, 80)}: update draftwire on the device or here, whichever "
                "is older",
            )
        most = self.limits.connections
        now = asyncio.get_running_loop().time()
        if self.draining:
            return self._later(socket, 503, "this verifier is going away")
        if not usage.may_have(most, lambda u: u.connections, now):
            return self._later(socket, 429, "this token has its share of the connections")
        if self.greeted >= most:
            return self._later(socket, 503, f"{most} devices are connected, the limit")
        socket.account_usage = usage
        return None

    def _administer(self, socket: Any, request: Any) -> Any:
        """Answer at the address that wants no token."""
        what = _last_word(request)
        if what in ("healthz", "metrics"):
            refusal = self._misled(socket, request, any_name=False)
            return refusal or self._page(socket, what, whole=True)
        return _say(socket, 404, "nothing here but /healthz and /metrics")

    def _misled(self, socket: Any, request: Any, *, any_name: bool) -> Any:
        """Refuse what a browser sends for a page of somebody else, None if it does not.

        A script may name any address in its own name's place (DNS rebinding), so where
        there is no token the name counts: an address, ``localhost``, or one that was given.
        """
        host = ", ".join(request.headers.get_all("Host"))
        name = _NAME.fullmatch(host.lower())
        # Every browser names a host; the health checks of some balancers do not.
        if "Host" in request.headers and not (
            name and (any_name or name[2] or is_loopback(name[1]) or name[1] in self._names)
        ):
            self.refused("host")
            return _say(
                socket,
                403,
                f"this request is for {clean(host, 80) or 'nobody'}, which is no name of "
                "this verifier: give it --server-name NAME",
            )
        for origin in request.headers.get_all("Origin"):
            if origin not in self._origins:
                self.refused("origin")
                return _say(
                    socket,
                    403,
                    f"pages of {clean(origin, 80)} may not use this verifier: give it "
                    "--origin ORIGIN to let them",
                )
        return None

    def _later(self, socket: Any, status: int, why: str) -> Any:
        """Turn away who may come back, and say when."""
        self.refused("busy")
        seconds = math.ceil(self.lobby.return_s())
        answer = _say(socket, status, f"{why}; come back in {seconds} s")
        answer.headers["Retry-After"] = str(seconds)
        return answer

    def _page(self, socket: Any, what: str, *, whole: bool) -> Any:
        """Return health, or metrics; ``whole``: who asks may know names and numbers."""
        if what == "metrics":
            return _say(socket, 200, metrics_page(self)[:-1], CONTENT_TYPE)
        status = "draining" if self.draining else "ok" if self.ready else "no target"
        body = {"status": status, **(self.health() if whole else {})}
        code = 200 if status == "ok" else 503
        return _say(socket, code, json.dumps(body), "application/json")

    @property
    def ready(self) -> bool:
        """There is something to connect to."""
        return bool(self.registry.targets)

    def health(self) -> dict[str, Any]:
        """Return what health says to who may know names and numbers."""
        targets = [
            {
                "name": s.backend.name,
                "version": s.backend.version,
                "family": s.backend.family.name,
                "context": s.backend.context,
                "numerics": s.backend.numerics,
                "near_ties": s.tally.near_ties,
            }
            for s in self.registry.targets
        ]
        return {
            "draftwire": __version__,
            "draining": self.draining,
            "targets": targets,
            "sessions": self.greeted,
            "streams": sum(c.running for c in self.connections),
        }


def _last_word(request: Any) -> str:
    path: str = request.path.partition("?")[0]
    return path.rpartition("/")[2]  # a proxy may leave its own prefix in front


def _say(socket: Any, status: int, text: str, content_type: str = "") -> Any:
    """Return an answer of plain HTTP."""
    answer = socket.respond(http.HTTPStatus(status), f"{text}\n")
    if content_type:
        del answer.headers["Content-Type"]
        answer.headers["Content-Type"] = content_type
    return answer


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
