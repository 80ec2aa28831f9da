"""The process of the ``draftwire`` command; ``python -m draftwire`` is the same."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_AGAIN_S = 0.005


def main() -> int:
    """Run the command of this process; return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
        signal.signal(signal.SIGALRM, _interrupted)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, _ended)
    try:
        from draftwire.cli import main as run

        return run()
    except KeyboardInterrupt:  # before the command took it upon itself
        if "--debug" in sys.argv:
            raise
        return 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGINT) is _interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left to do is Python's


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: at the end of an import that is going on, at once when it comes again.

    Libraries in C, and whoever can do without one, take an import that was interrupted for
    one that failed.
    """
    waits = signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
    if waits or not _imports(frame):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _ended(number: int, frame: FrameType | None) -> None:
    """Unwind, which ends our children and removes what is half made; again: end at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


if __name__ == "__main__":
    sys.exit(main())
