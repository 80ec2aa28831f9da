"""Rows of the conformance kits: what is tried, by which section, and what was found."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Awaitable, Callable, Iterator, List, NamedTuple, Sequence, TypeVar

from websockets.exceptions import ConnectionClosed, WebSocketException

from draftwire.errors import DraftwireError
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Error, Message

_Run = Callable[..., Awaitable["str | None"]]
T = TypeVar("T")


class Failed(Exception):
    """The other end does not do what the specification says."""


class NotTested(Exception):
    """The row does not apply to this end, or could not be tried."""


def expect(truth: object, complaint: str) -> None:
    """Raise :class:`Failed` with ``complaint`` unless ``truth``."""
    if not truth:
        raise Failed(complaint)


def needs(truth: object, why: str) -> None:
    """Leave the row untested, and say ``why``, unless ``truth``."""
    if not truth:
        raise NotTested(why)


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Put ``what`` in front of a complaint."""
    try:
        yield
    except Failed as why:
        raise Failed(f"{what}: {why}") from None


def must_be(kind: type[T], message: object) -> T:
    """Return ``message``, or raise :class:`Failed` when it is of another kind."""
    if isinstance(message, kind):
        return message
    said = type(message).__name__.lower()
    if isinstance(message, Error):
        said = f"error {message.code!r} ({message.message})"
    raise Failed(f"{said} instead of {kind.__name__.lower()}")


class Result(NamedTuple):
    """How one row ended."""

    name: str  # what was tried
    section: str  # of PROTOCOL.md
    result: str  # ``"conforms"``, ``"fails"`` or ``"not tested"``
    detail: str  # why not, or how much was tried


class Row(NamedTuple):
    """One row: ``run(kit, *args)`` returns how much was tried, or raises why not."""

    name: str
    section: str
    run: _Run
    args: "tuple[Any, ...]" = ()  # noqa: UP037 - read by Python 3.8


class Table(List[Row]):
    """Rows of one part of the specification, in order."""

    def row(self, section: str, name: str, *args: Any) -> Callable[[_Run], _Run]:
        """Return a decorator that enters a function into the table."""

        def enter(run: _Run) -> _Run:
            self.append(Row(name, section, run, args))
            return run

        return enter

    def greeted(
        self, section: str, name: str, need: str = "", **changes: Any
    ) -> Callable[[_Run], _Run]:
        """Return a decorator that enters a function of the kit and a peer of it.

        The peer has greeted, see :meth:`.peer.Kit.greeted`.
        """

        def enter(run: _Run) -> _Run:
            async def row(kit: Any) -> str | None:
                async with kit.greeted(need, **changes) as peer:
                    return await run(kit, peer)

            self.row(section, name)(row)
            return run

        return enter


class Kept:
    """Rules that hold in every row; each has a row of its own. For dataclasses."""

    def __post_init__(self) -> None:
        self.broken: dict[str, str] = {}  # how each of them was broken first
        self.seen: dict[str, int] = {}  # how often it was looked at

    def rule(self, name: str, holds: object, complaint: str = "") -> None:
        """Note whether a rule was kept."""
        self.seen[name] = self.seen.get(name, 0) + 1
        if not holds:
            self.broken.setdefault(name, complaint)


class End:
    """An end of a websocket that says what it is told."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.codec = socket, Codec()

    async def send(self, data: bytes | str) -> None:
        """Send raw bytes; nothing happens when the connection has ended."""
        with contextlib.suppress(ConnectionClosed):
            await self.socket.send(data)

    async def say(self, message: Message, number: int = 0, tail: bytes = b"") -> None:
        """Send a message of a stream, with bytes behind it."""
        await self.send(self.codec.encode(message, number) + tail)


def rules(*entries: tuple[str, str, str]) -> list[Row]:
    """Return the rows of rules: section, rule, name."""

    async def run(kit: Kept, rule: str) -> str:
        needs(kit.seen.get(rule), "nothing of the kind was seen")
        expect(rule not in kit.broken, kit.broken.get(rule, ""))
        return f"{kit.seen[rule]} times"

    return [Row(name, section, run, (rule,)) for section, rule, name in entries]


async def run_rows(
    kit: Any,
    rows: Sequence[Row],
    told: Callable[[Result], None] = lambda _: None,
    *,
    seconds: float = 1e9,
    around: Callable[[], Any] = contextlib.AsyncExitStack,
) -> list[Result]:
    """Try every row on ``kit``, one after the other, ``around`` each a context of its own.

    ``told`` is called with each result as it comes; after so many seconds the rest is left
    out.
    """
    results = []
    until = time.monotonic() + seconds
    for row in rows:
        result, detail = "conforms", ""
        try:
            needs(time.monotonic() <= until, f"no time left of {seconds:.0f} s")
            async with around():
                detail = await row.run(kit, *row.args) or ""
        except NotTested as why:
            result, detail = "not tested", str(why)
        except Failed as why:
            result, detail = "fails", str(why)
        except (OSError, WebSocketException, asyncio.TimeoutError, DraftwireError) as why:
            result, detail = "fails", f"{type(why).__name__}: {why}"
        results.append(Result(row.name, row.section, result, detail))
        told(results[-1])
    return results
