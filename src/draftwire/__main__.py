"""The process of the ``draftwire`` command; ``python -m draftwire`` is the same."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_AGAIN_S, _TWICE_S = 0.005, 0.2
_asked = signal.SIGINT  # what came last


def main() -> int:
    """Run the command of this process; return its exit code."""
    signal.signal(signal.SIGALRM, _come)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _come)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, _come)
    try:
        _open_streams()
        from draftwire.cli import main as run

        return run()
    except KeyboardInterrupt:  # before the command took it upon itself
        if "--debug" in sys.argv:
            raise
        return 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGINT) is _come:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left to do is Python's


def _open_streams() -> None:
    """See that the standard streams are there, and take any text.

    What was closed (``>&-``) leads nowhere: a file or socket of ours would get its number.
    What the locale cannot spell, such as names of files, is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif stream.errors == "strict":
            reads = name == "stdin"
            stream.reconfigure(errors="surrogateescape" if reads else "backslashreplace")


def _come(number: int, frame: FrameType | None) -> None:
    """A signal: at the end of an import that is going on; Ctrl-C again in it, at once.

    Libraries in C, and whoever can do without one, take an import that was interrupted for
    one that failed. SIGTERM and SIGHUP unwind, which ends our children and removes what is
    half made; one that comes later ends us at once.
    """
    global _asked
    waits = signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
    if number != signal.SIGALRM:
        _asked = signal.Signals(number)
    if _imports(frame) and not (waits and number == signal.SIGINT):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    elif _asked == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        signal.signal(_asked, signal.SIG_IGN)  # timeout(1) sends it twice at once
        signal.signal(
            signal.SIGALRM, lambda number, frame: signal.signal(_asked, signal.SIG_DFL)
        )
        signal.setitimer(signal.ITIMER_REAL, _TWICE_S)
        raise SystemExit(128 + _asked)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


if __name__ == "__main__":
    sys.exit(main())
