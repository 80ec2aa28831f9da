"""Waking up in time: a loop with fine timers, and how late it was; and a TCP reset."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import selectors
import socket
from collections import deque
from typing import Any

_PR_SET_TIMERSLACK = 29
_KEPT = 4096
_MAX_LEAD_S = 0.001


class Lateness:
    """How late things were done, and how much earlier to wake up for the next one.

    The lead follows the median: it grows a little with each wake-up that came later
    than it, and shrinks with each that came sooner.  Nothing is done before its time
    for it; who wakes up early sleeps again.
    """

    def __init__(self) -> None:
        self.lead_s = 0.0
        self._late_s: deque[float] = deque(maxlen=_KEPT)
        self._count = 0

    def woke(self, late_s: float) -> None:
        """Note a wake-up that was ordered for some moment and came ``late_s`` after."""
        step = 5e-6 if late_s > self.lead_s else -5e-6
        self.lead_s = min(max(self.lead_s + step, 0.0), _MAX_LEAD_S)

    def done(self, late_s: float) -> None:
        """Note something done ``late_s`` after its due time."""
        self._late_s.append(late_s)
        self._count += 1

    def report(self) -> dict[str, Any]:
        """Return median and p99 of the last few thousand, microseconds, or null."""
        late = sorted(self._late_s)
        if not late:
            return {"count": 0, "median_us": None, "p99_us": None}
        return {
            "count": self._count,
            "median_us": round(late[len(late) // 2] * 1e6, 1),
            "p99_us": round(late[min(len(late) - 1, int(0.99 * len(late)))] * 1e6, 1),
        }


def fine_loop() -> asyncio.SelectorEventLoop:
    """Return an event loop whose timers have microseconds.

    Timers of the usual one, on epoll, are rounded up to whole milliseconds; those of
    select(2) are not.  It serves 1,024 file descriptors, enough for a link.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def go_realtime() -> str:
    """Ask for exact timers and real-time scheduling of this process.

    Returns:
        ``"fifo"`` or, where that is not allowed, ``"normal"``.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc than Linux's
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except (OSError, AttributeError):
        return "normal"
    return "fifo"


def reset(transport: asyncio.Transport | None) -> None:
    """End a TCP connection with a reset, as a dead one ends."""
    if transport is not None:
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # linger 0: a reset, not an end
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        transport.abort()
