"""draftwire verifiers as a Ray Serve deployment: replicas behind Ray's own proxy.

    pip install "draftwire[ray,ort,tokenizers]"
    serve run deploy.ray_serve:app target=/models/v1.target token_file=/etc/verifier.tokens

or in a program: ``serve.run(app({"target": ..., "token_file": ...}))``. Ray routes by the
header ``X-Session-Id`` that devices send, with its ConsistentHashRouter: a device that
comes back finds the replica that has kept its streams. A replica that is gone costs a
resume, as it does behind ``draftwire verifier gateway`` (docs/machines.md).

In each replica an ordinary verifier listens on loopback, with all that it checks and
counts; what comes through Ray's proxy is passed on to it, frame by frame.
"""

# No `from __future__ import annotations`: Ray copies the methods below to other processes,
# where FastAPI could not look up the names in their annotations.

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Coroutine

from fastapi import FastAPI, WebSocket
from fastapi.responses import Response
from ray import serve
from ray.serve.config import RequestRouterConfig
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response as Refusal
from websockets.typing import Subprotocol

from draftwire.errors import ConfigError
from draftwire.transport.answers import retry_after
from draftwire.transport.codec import MAX_FRAME, SUBPROTOCOL, Codec
from draftwire.transport.dial import SESSION_HEADER
from draftwire.transport.messages import Error
from draftwire.verifier.backends.loading import Loader
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.accounts import Accounts, read_accounts
from draftwire.verifier.serving.limits import QUEUED_FRAMES, Limits
from draftwire.verifier.serving.service import VerifierService

__all__ = ["Verifier", "app"]

# Ray calls it experimental; the version is pinned in the extra `ray`.
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_SEE = "see deploy/ray_serve.py"
_PASSED = ("authorization", "origin", "x-forwarded-for", SESSION_HEADER.lower())
api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


# Before the class: Ray copies what its methods name when it sees them.


async def _refuse(device: WebSocket, response: Refusal) -> None:
    """Pass on that the verifier wants no connection now, or none of this device."""
    if response.status_code not in (429, 503):
        # Before the upgrade: Ray's proxy makes a 403 of whatever is said.
        await device.close()
        return
    # That would be final; whoever may come back is told so in our own words.
    later = retry_after(dict(response.headers))
    error = Error(
        "busy",
        "this verifier has no room",
        fatal=True,
        retry_after_ms=round(1e3 * (2.0 if later is None else later)),
    )
    await device.accept(subprotocol=SUBPROTOCOL)
    await device.send_bytes(Codec().encode(error))
    await device.close(1008)


async def _up(device: WebSocket, verifier: ClientConnection) -> None:
    code = 1001  # whatever is no close of the device's own parks its streams
    try:
        while True:
            message = await device.receive()
            if message["type"] == "websocket.disconnect":
                code = 1000 if message.get("code") == 1000 else 1001
                return
            frame = message.get("bytes")
            await verifier.send(message.get("text", "") if frame is None else frame)
    except ConnectionClosed:
        pass  # said in the other direction
    finally:
        await verifier.close(code)


async def _down(device: WebSocket, verifier: ClientConnection) -> None:
    try:
        async for frame in verifier:
            assert isinstance(frame, bytes)
            await device.send_bytes(frame)
    except ConnectionClosed:
        pass
    code, why = verifier.close_code or 1001, verifier.close_reason or ""
    try:
        await device.close(code if code != 1006 else 1001, why)
    except RuntimeError:
        pass  # the device has gone first


@serve.deployment(
    name="verifier",
    num_replicas=2,
    max_ongoing_requests=64,  # websockets at the same time of one replica
    graceful_shutdown_timeout_s=15,
    health_check_period_s=2,
    request_router_config=RequestRouterConfig(request_router_class=ROUTER),
)
@serve.ingress(api)
class Verifier:
    """One replica.

    Raises:
        ConfigError: A target or an option is of no use.
    """

    def __init__(
        self,
        targets: list[str],  # packages or checkpoint folders
        token_file: str,  # who may connect; "" for everyone who reaches Ray's proxy
        # fields of :class:`~draftwire.verifier.backends.loading.Loader`
        loader: dict[str, Any],
        # fields of :class:`~draftwire.verifier.serving.limits.Limits`
        limits: dict[str, Any],
    ) -> None:
        self._loop = asyncio.SelectorEventLoop()  # Ray has uvloop, whose sockets differ
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        accounts = Accounts(read_accounts(Path(token_file)) if token_file else ())
        registry = Registry(Loader(**loader))
        self._service = VerifierService(
            registry,
            accounts=accounts,
            limits=Limits(**limits),
            trusted=("127.0.0.1",),  # us, who pass on where a device is
        )
        for target in targets:
            self._run(registry.load(Path(target)))
        self._run(self._service.start())

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def check_health(self) -> None:
        """Tell Ray whether this replica is of use.

        Raises:
            RuntimeError: It has no target.
        """
        if not self._service.registry.targets:
            raise RuntimeError("no target")

    def __del__(self) -> None:
        """Let go of what still runs; its devices resume elsewhere."""
        self._run(self._service.drain(0.0))
        self._run(self._service.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    @api.get("/healthz")
    def health(self) -> Response:
        """Answer as a verifier does."""
        return Response(json.dumps({"status": "ok"}) + "\n", media_type="application/json")

    @api.websocket("/{path:path}")
    async def connect(self, device: WebSocket, path: str) -> None:
        """Pass a device's frames to the verifier of this replica, and its back."""
        headers = [
            (name, value) for name, value in device.headers.items() if name in _PASSED
        ]
        if device.client is not None:
            headers.append(("X-Forwarded-For", device.client.host))
        try:
            verifier = await connect(
                self._service.url,
                subprotocols=[Subprotocol(s) for s in device.scope["subprotocols"]] or None,
                additional_headers=headers,
                compression=None,
                max_size=MAX_FRAME,
                max_queue=QUEUED_FRAMES,
                close_timeout=2,
                proxy=None,
            )
        except InvalidStatus as error:
            await _refuse(device, error.response)
            return
        await device.accept(subprotocol=verifier.subprotocol)
        up = asyncio.ensure_future(_up(device, verifier))
        try:
            await _down(device, verifier)
        finally:
            up.cancel()


def app(args: dict[str, str]) -> Any:
    """Return the application that ``serve run deploy.ray_serve:app KEY=VALUE ...`` runs.

    Args:
        args: ``target`` (several with commas; required), ``token_file``, ``open`` ("yes":
            without tokens), ``replicas``, ``num_cpus`` and ``num_gpus`` of one,
            ``threads``, ``slots``, ``backend``, ``device``, ``dtype``, ``sessions``.

    Raises:
        ConfigError: A key is unknown, no number where one is due, or there is neither a
            token file nor ``open``.
    """
    left = dict(args)
    targets = [name for name in left.pop("target", "").split(",") if name]
    token_file = left.pop("token_file", "")
    everyone = left.pop("open", "") == "yes"
    if not targets:
        raise ConfigError("no target", hint="target=/models/v1.target")
    if not token_file and not everyone:
        raise ConfigError(
            "without a token anyone who reaches Ray's proxy could use these verifiers",
            hint="token_file=FILE (draftwire verifier token --out FILE), or open=yes",
        )

    def number(key: str, kind: type = int, default: str = "") -> Any:
        text = str(left.pop(key, default))
        try:
            return kind(text)
        except ValueError as exc:
            raise ConfigError(f"{key}={text} is no number", hint=_SEE) from exc

    options: dict[str, Any] = {"num_replicas": number("replicas", default="2")}
    resources = {k: number(k, float) for k in ("num_cpus", "num_gpus") if k in left}
    sessions = number("sessions", default="64")
    options.update(max_ongoing_requests=sessions, ray_actor_options=resources)
    loader: dict[str, Any] = {
        k: left.pop(k) for k in ("backend", "device", "dtype") if k in left
    }
    loader.update({k: number(k) for k in ("threads", "slots") if k in left})
    if left:
        raise ConfigError(f"unknown: {', '.join(sorted(left))}", hint=_SEE)
    deployment = Verifier.options(**options)  # type: ignore[attr-defined]
    return deployment.bind(targets, token_file, loader, {"connections": sessions})
