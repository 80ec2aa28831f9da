"""The process that is the link: ``python -m draftwire.bench.link.worker``.

The first line on stdin says what to do, as JSON; the first line on stdout says what was
done, or why not.  After that ``stats`` on stdin is answered with a line, and the end of
stdin ends the link: it never outlives the program that wanted it, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

from draftwire.bench.child import answer, be_child
from draftwire.bench.link.clock import fine_loop, go_realtime
from draftwire.bench.link.netem import NetemLink
from draftwire.bench.link.probe import Server, round_trips
from draftwire.bench.link.proxy import LinkProxy
from draftwire.bench.link.spec import LinkSpec

_PINGS = 150
_MOST_S = 10.0


def _detour_s(echo_port: int, port: int) -> float:
    """Return what the way through ``port`` costs, a round trip, without any delay."""
    direct = round_trips(echo_port, _PINGS, _MOST_S)[0]
    return max(0.0, round_trips(port, _PINGS, _MOST_S)[0] - direct)


async def _serve(wanted: dict[str, Any], scheduling: str) -> None:
    """Be a link until stdin ends."""
    loop = asyncio.get_running_loop()
    kind: Any = NetemLink if wanted["method"] == "netem" else LinkProxy
    detour_s = None
    if wanted["calibrate"]:
        echo = Server()
        bare = kind(LinkSpec(), ("127.0.0.1", echo.port))
        port = await bare.start()
        detour_s = await loop.run_in_executor(None, _detour_s, echo.port, port)
        await bare.stop()
    link = kind(LinkSpec.from_dict(wanted["spec"]), tuple(wanted["target"]))
    link.compensation_s = (detour_s or 0.0) / 2
    port = await link.start(wanted["listen"])
    detour = None if detour_s is None else round(detour_s * 1e6, 1)
    answer({"port": port, "detour_us": detour, "scheduling": scheduling})
    over, said = asyncio.Event(), b""

    def hear() -> None:
        nonlocal said
        data = os.read(0, 65536)
        *lines, said = (said + data).split(b"\n")
        for _ in filter(b"stats".__eq__, lines):
            answer(link.report())
        if not data:
            over.set()

    loop.add_reader(0, hear)
    await over.wait()
    await link.stop()


def _work(wanted: dict[str, Any]) -> None:
    if wanted["method"] == "netem":
        # The relay alone: the kernel keeps the time.
        scheduling = "kernel"
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    else:
        scheduling = go_realtime()
    fine_loop().run_until_complete(_serve(wanted, scheduling))


if __name__ == "__main__":
    sys.exit(be_child(_work))
