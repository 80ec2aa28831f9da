"""The verifier's websocket service: who may come in, how long, and how it ends.

One listening socket serves the protocol (on any path), ``/healthz`` and ``/metrics``.
Credentials are checked before the upgrade. The service owns no model: the registry has
the targets, each connection drives its own session, the schedulers batch their work.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import socket as sockets
import ssl
from pathlib import Path
from typing import Any, Sequence

from websockets.asyncio.server import serve

from draftwire import __version__
from draftwire.errors import ConfigError
from draftwire.transport.answers import clean
from draftwire.transport.codec import SUBPROTOCOL
from draftwire.transport.dial import is_loopback
from draftwire.transport.wirelog import ConnectionLog, WireLog
from draftwire.verifier.accounts import Accounts
from draftwire.verifier.connection import Connection
from draftwire.verifier.forwarded import Forwarded
from draftwire.verifier.limits import QUEUED_FRAMES, Limits
from draftwire.verifier.metrics import CONTENT_TYPE, Histogram, Page
from draftwire.verifier.registry import Registry
from draftwire.verifier.streams import KeptStreams

__all__ = ["VerifierService", "tls_context"]

log = logging.getLogger("draftwire.verifier")

# websockets writes a traceback for every port scan; what matters is in our own log.
_QUIET = logging.getLogger("draftwire.verifier.websockets")
_QUIET.setLevel(logging.CRITICAL)

# asyncio reads 256 KiB at a time: 40,000 frames that one device may send at once. By 2 KiB
# its neighbours wait 0.04 s for a text instead of 0.5 (0.3 s instead of 26 when it sends
# pings), and the 2.4 MB of the largest evidence take 60 ms instead of 33.
_READ_BYTES = 2048


def tls_context(cert: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """Return the server's TLS settings.

    Args:
        cert: Certificate chain, PEM.
        key: Its private key, PEM.
        client_ca: When given, devices must show a certificate that it has signed.

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


class VerifierService:
    """Accepts devices and serves them.

    Args:
        registry: The targets.
        host: Address to listen on.
        port: 0 takes a free one.
        accounts: Who may connect; without any everyone may, which is refused off
            loopback.
        tls: From :func:`tls_context`, or None for plain ``ws://``.
        insecure: Allow plain ``ws://`` off loopback.
        limits: Bounds for each device.
        trusted: Proxies whose ``X-Forwarded-For`` names devices in logs.
        wire_log: Where wire events are noted.

    Attributes:
        accounts: Who may connect.
        connections: Those that are open.
        kept: Streams that can be resumed.
        draining: True once the service is going away.

    Raises:
        ConfigError: The address needs TLS or a token that is not there.
    """

    connection_class = Connection

    def __init__(
        self,
        registry: Registry,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        accounts: Accounts | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        trusted: Sequence[str] = (),
        wire_log: WireLog | None = None,
    ) -> None:
        if not is_loopback(host):
            if tls is None and not insecure:
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
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.kept = KeptStreams(self.limits)
        self.draining = False
        self.bytes_in = 0
        self.bytes_out = 0
        self.name_of = Forwarded(trusted).name
        self._wire_log = wire_log
        self._refused: dict[str, int] = {}
        self._host, self._port, self._tls = host, port, tls
        self.accounts = accounts or Accounts()
        self._server: Any = None
        self._watchdog: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where devices connect."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"ws{'s' if self._tls else ''}://{host}:{self._port}"

    def log_of(self, socket: Any) -> ConnectionLog:
        """Return where the wire events of a new connection are noted."""
        log = self._wire_log
        return ConnectionLog() if log is None else log.connection(self.name_of(socket))

    def refused(self, code: str) -> None:
        """Count an error sent to a device."""
        self._refused[code] = self._refused.get(code, 0) + 1

    async def start(self) -> None:
        """Begin to listen; ``url`` is final after that.

        Raises:
            ConfigError: The address cannot be had.
        """
        try:
            self._server = await serve(
                self._handle,
                self._host,
                self._port,
                process_request=self._before_upgrade,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                compression=None,  # packed ids do not shrink
                max_size=self.limits.message_bytes,
                max_queue=QUEUED_FRAMES,
                open_timeout=self.limits.hello_s,
                ping_interval=self.limits.ping_s,
                ping_timeout=self.limits.ping_s,
                close_timeout=2,
                server_header=None,
                ssl=self._tls,
                logger=_QUIET,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self._host} port {self._port}: {error.strerror}",
                hint="choose another --port (0 takes a free one) or --host",
            ) from error
        self._port = next(iter(self._server.sockets)).getsockname()[1]
        self._watchdog = asyncio.ensure_future(self._watch())

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
        that a balancer looks elsewhere.

        Args:
            timeout_s: Seconds that running streams may still take.
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
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self.registry.close()

    async def _handle(self, socket: Any) -> None:
        raw = socket.transport.get_extra_info("socket")
        if raw is not None and raw.family in (sockets.AF_INET, sockets.AF_INET6):
            # asyncio sets it too; a round would cost 40 ms more without it.
            raw.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        socket.transport.max_size = _READ_BYTES
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
        path = request.path.partition("?")[0]
        what = path.rpartition("/")[2]  # a proxy may leave its own prefix in front
        if what == "healthz":
            return self._health(socket)
        usage = self.accounts.find(request.headers.get_all("Authorization"))
        if usage is None:
            self.refused("token")
            log.warning("%s: missing or wrong token", self.name_of(socket))
            answer = socket.respond(
                http.HTTPStatus.UNAUTHORIZED,
                "missing or wrong token: send the verifier's token as "
                "'Authorization: Bearer TOKEN' (--token-file on the device)\n",
            )
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        if what == "metrics":
            return _typed(socket.respond(http.HTTPStatus.OK, self._metrics()), CONTENT_TYPE)
        if request.headers.get("Upgrade") is None:
            return socket.respond(
                http.HTTPStatus.BAD_REQUEST,
                "nothing here but a websocket; a proxy must pass Upgrade and Connection\n",
            )
        if request.headers.get("Sec-WebSocket-Protocol") is None:
            return socket.respond(
                http.HTTPStatus.BAD_REQUEST,
                f"the upgrade offers no subprotocol, and this verifier speaks "
                f"{SUBPROTOCOL}: a proxy must pass Sec-WebSocket-Protocol\n",
            )
        if self.draining:
            return socket.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, "this verifier is going away\n"
            )
        offered = ", ".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if SUBPROTOCOL not in offered.replace(" ", "").split(","):
            self.refused("version")
            return socket.respond(
                http.HTTPStatus.UPGRADE_REQUIRED,
                f"this verifier speaks {SUBPROTOCOL}, and the device offered "
                f"{clean(offered, 80)}: update draftwire on the device or here, whichever "
                "is older\n",
            )
        socket.account_usage = usage
        return None

    def _health(self, socket: Any) -> Any:
        ready = not self.draining and bool(self.registry.targets)
        status = "draining" if self.draining else "ok" if ready else "no target"
        body = {
            "status": status,
            "draftwire": __version__,
            "draining": self.draining,
            "targets": [
                {
                    "name": s.backend.name,
                    "version": s.backend.version,
                    "family": s.backend.family.name,
                    "context": s.backend.context,
                    "numerics": s.backend.numerics,
                    "near_ties": s.near_ties,
                }
                for s in self.registry.targets
            ],
            "sessions": len(self.connections),
            "streams": sum(c.running for c in self.connections),
        }
        code = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
        return _typed(socket.respond(code, json.dumps(body) + "\n"), "application/json")

    def _metrics(self) -> str:
        page, kept = Page(), self.kept

        def add(
            name: str, help_text: str, value: float, tags: dict[str, str] | None = None
        ) -> None:
            kind = "counter" if name.endswith("_total") else "gauge"
            page.add(name, kind, help_text, value, tags)

        add("sessions", "Open connections.", len(self.connections))
        add("streams", "Running streams.", sum(c.running for c in self.connections))
        add("streams_total", "Streams opened.", kept.opened)
        add("kept_streams", "Streams that wait for their device.", len(kept))
        add("kept_bytes", "Memory of their texts, about.", kept.kept_bytes)
        add("kept_slots", "KV slots kept for them.", kept.kept_slots)
        for how in ("resumed", "refused", "expired", "evicted"):
            add("resumes_total", "Lost links.", getattr(kept, how), {"outcome": how})
        for usage in self.accounts.all:
            tags = {"account": usage.account.name}
            add("account_sessions", "Connections.", usage.connections, tags)
            add("account_streams", "Running streams.", usage.streams, tags)
            add("paused_seconds_total", "Held back.", usage.paused_s, tags)
        prefixes = kept.prefixes
        add("prefixes", "Ended texts kept for the next turn.", len(prefixes))
        add("prefix_slots", "KV slots kept with them.", prefixes.slots)
        add("prompt_tokens_total", "Ids of prompts.", prefixes.tokens_read)
        reused = "Those that were in a slot already."
        add("prefix_tokens_reused_total", reused, prefixes.tokens_reused)
        add("draining", "1 while going away.", int(self.draining))
        add("received_bytes_total", "Payload received.", self.bytes_in)
        add("sent_bytes_total", "Payload sent.", self.bytes_out)
        add("provisionals_total", "Hints of early exits sent.", kept.provisionals)
        for code, count in sorted(self._refused.items()):
            add("errors_total", "Errors sent.", count, {"code": code})
        for served in self.registry.all:
            tags = {"target": served.backend.name, "version": served.backend.version}
            counts = served.scheduler.counters
            for name, help_text, value in (
                ("drafted_tokens_total", "Drafted tokens judged.", served.drafted),
                ("accepted_tokens_total", "Drafted tokens kept.", served.accepted),
                ("committed_tokens_total", "Tokens committed.", served.emitted),
                (
                    "near_ties_total",
                    "Tokens chosen too narrowly to tell.",
                    served.near_ties,
                ),
                (
                    "logit_error",
                    "Logits may be off by so much.",
                    served.backend.logit_error,
                ),
                ("forward_tokens_total", "Tokens computed.", counts.tokens),
                ("forward_seconds_total", "Time in forwards.", counts.compute_s),
                ("failed_requests_total", "Requests with an error.", counts.failed),
                ("cancelled_requests_total", "Requests withdrawn.", counts.cancelled),
                ("waiting_requests", "Waiting for a forward.", served.scheduler.waiting),
            ):
                add(name, help_text, value, tags)
            reads = counts.prefill_forwards
            for kind, count in (("prefill", reads), ("verify", counts.forwards - reads)):
                add(
                    "forwards_total",
                    "Forwards of the target.",
                    count,
                    {**tags, "kind": kind},
                )
            most = self.limits.session_bytes(served.backend.context)
            help_text = "Most memory that one device can take, its KV slot apart."
            add("session_bytes_limit", help_text, most, tags)
            sizes = Histogram((1, 2, 4, 8, 16, 32, 64))
            for size, times in counts.batch_sizes.items():
                sizes.add(size, times)
            page.add_histogram("batch_size", "Blocks in a verify forward.", sizes, tags)
        for name, help_text, histogram in (
            ("verify_seconds", "Forwards that carried a block.", kept.verify_seconds),
            ("queue_seconds", "Waiting of a block for its forward.", kept.queue_seconds),
        ):
            page.add_histogram(name, help_text, histogram)
        return page.text()


def _typed(response: Any, content_type: str) -> Any:
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    return response
