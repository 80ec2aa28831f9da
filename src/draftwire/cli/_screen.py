"""A view in a terminal that is drawn again and again, until a key is pressed."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from typing import Callable, Iterator

from draftwire.cli._common import plain
from draftwire.errors import TransportError

WIDTH = 80
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# The other screen, without a cursor; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def watch(args: argparse.Namespace, draw: Callable[[int], list[str]]) -> None:
    """Show what ``draw`` returns for so many lines, each ``--interval``.

    It ends with a key or Ctrl-C, after ``--count``, or for ``--json`` after two. Who was
    there once and is not now may be back (TransportError: from ``draw``, at the first time
    or where nobody watches).
    """
    live = sys.stdout.isatty() and args.count is None and args.json is None
    left = args.count or (2 if args.json is not None else 10**9)
    seen = False
    with _screen(live) as pressed, contextlib.suppress(KeyboardInterrupt):
        while left:
            left -= 1
            try:
                lines, seen = draw(room()[1] if live else 200), True
            except TransportError as error:
                if not (live and seen):
                    raise
                lines = [plain(error)[:WIDTH], "asking again"]
            if args.json is None:
                _show(fitting(lines) if live else lines, live)
            if left and pressed(args.interval):
                break


def room() -> tuple[int, int]:
    """Return the columns and lines that the terminal has now; the last line stays free."""
    columns, lines = shutil.get_terminal_size()
    return columns, max(lines - 1, 1)


def fitting(lines: list[str]) -> list[str]:
    """Return what of ``lines`` the terminal has room for: one that is folded moves all."""
    columns, most = room()
    return [line[:columns] for line in lines[:most]]


def _show(lines: list[str], live: bool) -> None:
    """Put ``lines`` in the place of those before; not ``live``: below them."""
    if live:
        text = "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines)
        sys.stdout.write(_HOME + text + _CLEAR_BELOW)
    else:
        sys.stdout.write("\n".join([*lines, "", ""]))
    sys.stdout.flush()


@contextlib.contextmanager
def _screen(live: bool) -> Iterator[Callable[[float], bool]]:
    """Take the terminal; yield what waits for a time or a key that ends it."""
    if not live:

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        yield wait
        return
    import os
    import select
    import termios
    import tty

    keys = sys.stdin.isatty()
    fd = sys.stdin.fileno() if keys else -1
    before = termios.tcgetattr(fd) if keys else []

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if not select.select([fd] if keys else [], [], [], left)[0]:
                return False
            if os.read(fd, 64) in (b"q", b"Q", b"\x1b", b""):
                return True

    sys.stdout.write(_ENTER)
    try:
        if keys:
            tty.setcbreak(fd)
        yield pressed
    finally:
        if keys:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
