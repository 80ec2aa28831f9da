"""A view in a terminal that is drawn again and again, until a key is pressed."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import Callable, Iterator

_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# The other screen, without a cursor; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def height(live: bool) -> int:
    """Return how many lines there are; many, where it is no terminal."""
    return shutil.get_terminal_size().lines - 1 if live else 200


def show(lines: list[str], live: bool) -> None:
    """Put ``lines`` in the place of those before; not ``live``: below them."""
    if live:
        text = "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines)
        sys.stdout.write(_HOME + text + _CLEAR_BELOW)
    else:
        sys.stdout.write("\n".join([*lines, "", ""]))
    sys.stdout.flush()


@contextlib.contextmanager
def screen(live: bool) -> Iterator[Callable[[float], bool]]:
    """Take the terminal; yield what waits for a time or a key that ends it."""
    if not live or not sys.stdin.isatty():

        def wait(seconds: float) -> bool:
            time.sleep(seconds)
            return False

        sys.stdout.write(_ENTER if live else "")
        try:
            yield wait
        except KeyboardInterrupt:
            pass
        finally:
            sys.stdout.write(_LEAVE if live else "")
        return
    import os
    import select
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            ready = select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                return False
            if os.read(fd, 64) in (b"q", b"Q", b"\x1b", b""):
                return True

    sys.stdout.write(_ENTER)
    try:
        tty.setcbreak(fd)
        yield pressed
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
