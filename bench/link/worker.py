"""The process that is the link: ``python -m draftwire.bench.link.worker``.

The first line on stdin says what to do, as JSON; the first line on stdout says what was
done, or why not.  After that ``stats`` on stdin is answered with a line, and the end of
stdin ends the link: it never outlives the program that wanted it, however that ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from typing import Any, Callable

from draftwire.bench.link.clock import fine_loop, go_realtime
from draftwire.bench.link.netem import NetemLink
from draftwire.bench.link.probe import Server, round_trips
from draftwire.bench.link.proxy import LinkProxy
from draftwire.bench.link.spec import LinkSpec
from draftwire.bench.link.tun import TunLink
from draftwire.errors import DraftwireError

_PINGS = 150
_MOST_S = 10.0


def _detour_s(echo_port: int, port: int) -> float:
    """Return what the way through ``port`` costs, a round trip, without any delay."""
    direct = round_trips(echo_port, _PINGS, _MOST_S)[0]
    return max(0.0, round_trips(port, _PINGS, _MOST_S)[0] - direct)


class _Control:
    """The worker's side of the conversation with its parent."""

    def __init__(self) -> None:
        self._buffer = b""

    def first(self) -> dict[str, Any]:
        """Read what to do."""
        while b"\n" not in self._buffer:
            data = os.read(0, 65536)
            if not data:
                raise SystemExit(1)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        wanted: dict[str, Any] = json.loads(line)
        return wanted

    def say(self, document: dict[str, Any]) -> None:
        """Write one line."""
        os.write(1, json.dumps(document).encode() + b"\n")

    def answer(self, report: Callable[[], dict[str, Any]]) -> bool:
        """Answer what has been asked; return False at the end."""
        data = os.read(0, 65536)
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for _ in filter(b"stats".__eq__, lines):
            self.say(report())
        return bool(data)

    def ready(self, port: int, detour_s: float | None, scheduling: str) -> None:
        """Say that the link is there."""
        detour = None if detour_s is None else round(detour_s * 1e6, 1)
        self.say({"port": port, "detour_us": detour, "scheduling": scheduling})


def main() -> int:
    """Be a link until stdin ends."""
    control = _Control()
    wanted = control.first()
    try:
        spec = LinkSpec.from_dict(wanted["spec"])
        target = (str(wanted["target"][0]), int(wanted["target"][1]))
        run = {"proxy": _proxy, "tun": _tun, "netem": _netem}[wanted["method"]]
        run(control, spec, target, int(wanted["listen"]), bool(wanted["calibrate"]))
    except (DraftwireError, OSError) as exc:
        hint = getattr(exc, "hint", "")
        control.say({"error": str(exc), "hint": hint, "kind": type(exc).__name__})
        return getattr(exc, "exit_code", 3)
    return 0


def _tun(
    control: _Control, spec: LinkSpec, target: tuple[str, int], listen: int, calibrate: bool
) -> None:
    echo = Server()
    link = TunLink(spec, [(target, listen), (("127.0.0.1", echo.port), 0)])
    try:
        scheduling = go_realtime()
        detour_s = None
        if calibrate:
            echo.start()
            stop_r, stop_w = os.pipe()
            found: list[float] = []

            def measure() -> None:
                try:
                    found.append(_detour_s(echo.port, link.ports[1]))
                finally:
                    os.close(stop_w)

            timing = threading.Thread(target=measure, daemon=True)
            timing.start()
            link.pump(stop_r, lambda: False)
            timing.join()
            os.close(stop_r)
            detour_s = found[0] if found else None
            link.compensation_s = (detour_s or 0.0) / 2
        link.use(spec)
        control.ready(link.ports[0], detour_s, scheduling)
        # A link without its relay is none: end, so that the parent notices.
        signal.signal(signal.SIGCHLD, lambda *_: os._exit(1))
        link.pump(0, lambda: control.answer(link.report))
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        link.close()


def _netem(
    control: _Control, spec: LinkSpec, target: tuple[str, int], listen: int, calibrate: bool
) -> None:
    echo = Server()
    link = NetemLink(spec, [(target, listen), (("127.0.0.1", echo.port), 0)])
    try:
        detour_s = None
        if calibrate:
            echo.start()
            detour_s = _detour_s(echo.port, link.ports[1])
        link.use(less_s=(detour_s or 0.0) / 2)
        control.ready(link.ports[0], detour_s, "kernel")
        while control.answer(link.report):
            pass
    finally:
        link.close()


def _proxy(
    control: _Control, spec: LinkSpec, target: tuple[str, int], listen: int, calibrate: bool
) -> None:
    scheduling = go_realtime()
    loop = fine_loop()

    async def serve() -> None:
        detour_s = None
        if calibrate:
            echo = Server()
            echo.start()
            bare = LinkProxy(LinkSpec(), ("127.0.0.1", echo.port))
            port = await bare.start()
            detour_s = await loop.run_in_executor(None, _detour_s, echo.port, port)
            await bare.stop()
        proxy = LinkProxy(spec, target)
        proxy.compensation_s = (detour_s or 0.0) / 2
        port = await proxy.start(listen)
        control.ready(port, detour_s, scheduling)
        over = asyncio.Event()

        def answer() -> None:
            if not control.answer(proxy.report):
                over.set()

        loop.add_reader(0, answer)
        await over.wait()
        await proxy.stop()

    loop.run_until_complete(serve())


if __name__ == "__main__":
    sys.exit(main())
