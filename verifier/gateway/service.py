"""The gateway's own address: a verifier's, with other verifiers behind it."""

from __future__ import annotations

import asyncio
import http
import json
import logging
from typing import Any, Iterable

from draftwire.verifier.gateway.fleet import Fleet
from draftwire.verifier.gateway.relay import Relay
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.service import VerifierService

__all__ = ["Gateway"]

log = logging.getLogger("draftwire.gateway")


class Gateway(VerifierService):
    """Accepts devices and passes their frames on.

    Args:
        registry: Without targets: those are the verifiers'.
    """

    connection_class = Relay  # type: ignore[assignment]

    def __init__(self, registry: Registry, *, fleet: Fleet, **options: Any) -> None:
        super().__init__(registry, **options)
        self.fleet = fleet
        self.spilled = 0  # streams that were opened elsewhere than at their session's home
        self.lost = 0  # connections to verifiers that ended under a device
        self._health: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look at the verifiers, and begin to listen."""
        await self.fleet.look()
        await super().start()
        self._health = asyncio.ensure_future(self._keep_looking())

    async def _keep_looking(self) -> None:
        while True:
            await self.fleet.pause()
            try:
                await self.fleet.look()
            except Exception:  # noqa: BLE001 - the next look may fare better
                log.exception("looking at the verifiers failed")

    async def close(self) -> None:
        """Stop looking and listening."""
        if self._health is not None:
            self._health.cancel()
        await super().close()

    def _before_upgrade(self, socket: Any, request: Any) -> Any:
        answer = super()._before_upgrade(socket, request)
        if answer is None and not any(
            replica.state == "ok" for replica in self.fleet.replicas.values()
        ):
            return self._later(socket, 503, "no verifier is up behind this gateway")
        return answer

    def _page(self, socket: Any, what: str, *, whole: bool) -> Any:
        if what == "metrics":
            return super()._page(socket, what, whole=whole)
        replicas = self.fleet.replicas.values()
        up = any(replica.state == "ok" for replica in replicas)
        status = "draining" if self.draining else "ok" if up else "no target"
        body: dict[str, Any] = {"status": status}
        if whole:
            body["sessions"] = self.greeted
            body["verifiers"] = [
                {
                    "url": replica.url,
                    "state": "draining" if replica.drain else replica.state,
                    "connections": replica.connections,
                }
                for replica in replicas
            ]
        ready = status == "ok"
        code = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
        answer = socket.respond(code, json.dumps(body) + "\n")
        del answer.headers["Content-Type"]
        answer.headers["Content-Type"] = "application/json"
        return answer

    def more_metrics(self) -> Iterable[tuple[str, float, dict[str, str]]]:
        """Return what is the gateway's own, see the base class."""
        yield "gateway_spilled_total", self.spilled, {}
        yield "gateway_lost_total", self.lost, {}
        for replica in self.fleet.replicas.values():
            of = {"verifier": replica.url}
            yield "gateway_verifier_up", int(replica.state == "ok"), of
            yield "gateway_verifier_connections", replica.connections, of
            yield "gateway_verifier_streams_total", replica.streams, of
