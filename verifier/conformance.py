"""Runs any verifier through the specification, from outside, and says what conforms.

The kit speaks raw frames to an address; it knows nothing of our service. It cannot know
the target's text either, but the target's text must not depend on the drafts: what comes
for empty blocks is the measure of what comes for right, wrong and interrupted ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from dataclasses import dataclass, replace
from typing import Any, AsyncIterator, Awaitable, Callable, List, NamedTuple, Sequence
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from draftwire.errors import DraftwireError, ProtocolError, TransportError
from draftwire.transport.codec import MAX_FRAME, SUBPROTOCOL, Codec
from draftwire.transport.dial import is_loopback
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Hello,
    Message,
    Open,
    Opened,
    Resume,
    Welcome,
)

__all__ = [
    "direct",
    "Check",
    "Failed",
    "Kit",
    "Peer",
    "Result",
    "Skipped",
    "Table",
    "expect",
    "run_checks",
]


def direct(url: str) -> dict[str, None]:
    """Return what keeps ``connect`` from reaching this machine through a proxy.

    From version 15 on websockets takes proxies from the environment by itself.
    """
    knows = "proxy" in inspect.signature(connect).parameters
    return {"proxy": None} if knows and is_loopback(urlsplit(url).hostname or "") else {}


class Failed(Exception):
    """The verifier does not do what the specification says."""


class Skipped(Exception):
    """The check does not apply to this verifier, or cannot be made from outside."""


def expect(truth: object, complaint: str) -> None:
    """Raise :class:`Failed` with ``complaint`` unless ``truth``."""
    if not truth:
        raise Failed(complaint)


class Result(NamedTuple):
    """How one check ended.

    Attributes:
        name: What was checked.
        section: Of PROTOCOL.md.
        result: ``"pass"``, ``"fail"`` or ``"skip"``.
        detail: Why not.
    """

    name: str
    section: str
    result: str
    detail: str


class Peer:
    """A device end that says what it is told.

    Args:
        socket: The websocket.
        kit: For the hello and the patience.

    Attributes:
        welcome: What the verifier answered to the hello.
    """

    def __init__(self, socket: Any, kit: Kit) -> None:
        self.socket = socket
        self.kit = kit
        self.codec = Codec()
        self.welcome: Welcome | None = None

    @property
    def max_block(self) -> int:
        """The verifier's limit on drafts that wait."""
        assert self.welcome is not None
        return self.welcome.max_block

    async def send(self, frame: bytes | str) -> None:
        """Send raw bytes."""
        with contextlib.suppress(ConnectionClosed):  # `hear` tells how it ended
            await self.socket.send(frame)

    async def say(self, message: Message) -> None:
        """Send a message."""
        await self.send(self.codec.encode(message))

    async def hear(self) -> Message:
        """Return the next message.

        Raises:
            Failed: There is none, or it is not valid.
        """
        try:
            frame = await asyncio.wait_for(self.socket.recv(), self.kit.patience_s)
        except asyncio.TimeoutError:
            raise Failed(f"no answer within {self.kit.patience_s:g} s") from None
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else "none"
            raise Failed(f"the connection ended (code {code})") from None
        expect(isinstance(frame, bytes), "a text frame")
        try:
            return self.codec.decode(frame)
        except ProtocolError as error:
            raise Failed(f"an invalid frame {frame[:32].hex()}: {error}") from None

    async def silence(self, seconds: float) -> None:
        """Expect that nothing comes for a while."""
        try:
            frame = await asyncio.wait_for(self.socket.recv(), seconds)
        except asyncio.TimeoutError:
            return
        except ConnectionClosed:
            raise Failed("the connection ended") from None
        raise Failed(f"a frame of {len(frame)} bytes, not asked for")

    async def greet(self, **changes: Any) -> Message:
        """Say hello; return the answer."""
        await self.say(replace(self.kit.hello, **changes))
        answer = await self.hear()
        if isinstance(answer, Welcome):
            self.welcome = answer
            expect(answer.vocab_size >= 2, f"a vocabulary of {answer.vocab_size}")
            self.codec = Codec(answer.vocab_size)
        return answer

    async def open(self, count: int, **changes: Any) -> Opened:
        """Open a greedy stream on the kit's prompt.

        Raises:
            Failed: It is refused.
        """
        await self.say(replace(self.kit.request(count), **changes))
        answer = await self.hear()
        expect(isinstance(answer, Opened), f"{_say(answer)} instead of opened")
        assert isinstance(answer, Opened)
        return answer

    async def resume(self, opened: Opened, position: int) -> Message:
        """Ask to go on; return the answer."""
        await self.resume_unread(opened, position)
        return await self.hear()

    async def resume_unread(self, opened: Opened, position: int) -> None:
        """Ask to go on, and leave the answer unread."""
        await self.say(Resume(opened.session, opened.secret, position))

    async def commit(self) -> Commit:
        """Return the next message, which must be a commit."""
        answer = await self.hear()
        expect(isinstance(answer, Commit), f"{_say(answer)} instead of a commit")
        assert isinstance(answer, Commit)
        return answer

    async def judge(self, epoch: int, base: int, tokens: Sequence[int]) -> Commit:
        """Send a block; return its commit."""
        await self.say(Block(epoch & 0xFF, base, tuple(tokens)))
        return await self.commit()

    async def text(self, held: Sequence[int], epoch: int, count: int) -> list[int]:
        """Return the text up to ``count`` tokens, asked for with empty blocks."""
        text = list(held)
        while len(text) < count:
            commit = await self.judge(epoch, len(text), ())
            expect(commit.token is not None, "a commit without a token")
            assert commit.token is not None
            text.append(commit.token)
            if commit.finish:
                break
        return text

    async def refused(self, code: str, *, fatal: bool = True, close: int = 0) -> Error:
        """Expect an error and, when it is fatal, the end of the connection.

        Args:
            code: Its word; several are separated by spaces.
            fatal: Whether it must be.
            close: Websocket close code.
        """
        answer = await self.hear()
        expect(isinstance(answer, Error), f"{_say(answer)} instead of an error")
        assert isinstance(answer, Error)
        expect(answer.code in code.split(), f"error {answer.code!r}, not {code!r}")
        expect(answer.fatal == fatal, f"error {code!r} has fatal={int(answer.fatal)}")
        expect(answer.message, f"error {code!r} has no message")
        if close:
            await self.closed(close)
        return answer

    async def closed(self, code: int) -> None:
        """Expect the end of the connection."""
        try:
            frame = await asyncio.wait_for(self.socket.recv(), self.kit.patience_s)
        except ConnectionClosed as error:
            found = error.rcvd.code if error.rcvd else None
            expect(found == code, f"close code {found}, not {code}")
        except asyncio.TimeoutError:
            raise Failed("the connection stays open") from None
        else:
            raise Failed(f"{len(frame)} more bytes instead of the end")

    def cut(self) -> None:
        """End the connection as a broken link does."""
        self.socket.transport.abort()


@dataclass
class Kit:
    """How to reach the verifier, and what to say to it.

    Attributes:
        url: Its address.
        hello: Of a device whose draft fits a target there.
        token: Bearer token, or None.
        tls: For ``wss://``.
        patience_s: Seconds to wait for an answer.
        exhaust: Also take every slot, for the ``busy`` error.
    """

    url: str
    hello: Hello
    token: str | None = None
    tls: ssl.SSLContext | None = None
    patience_s: float = 10.0
    exhaust: bool = False
    _texts: dict[int, list[int]] | None = None

    def headers(self, token: str | None) -> dict[str, str]:
        """Return the upgrade's headers."""
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    @contextlib.asynccontextmanager
    async def peer(self, **options: Any) -> AsyncIterator[Peer]:
        """Connect without greeting; ``options`` are those of ``websockets.connect``."""
        settings: dict[str, Any] = {
            "subprotocols": [SUBPROTOCOL],
            "compression": None,
            "max_size": MAX_FRAME,
            "close_timeout": 1,
            "open_timeout": self.patience_s,
            "additional_headers": self.headers(self.token),
        }
        if self.tls is not None:
            settings["ssl"] = self.tls
        settings.update(direct(self.url))
        socket = await connect(self.url, **{**settings, **options})
        try:
            yield Peer(socket, self)
        finally:
            # asyncio's transport raises it when the other end was quicker to go.
            with contextlib.suppress(AttributeError):
                await socket.close()

    @contextlib.asynccontextmanager
    async def greeted(self, **changes: Any) -> AsyncIterator[Peer]:
        """Connect and greet.

        Raises:
            Failed: The answer is no welcome.
        """
        async with self.peer() as peer:
            answer = await peer.greet(**changes)
            expect(isinstance(answer, Welcome), f"{_say(answer)} instead of a welcome")
            yield peer

    def request(self, count: int) -> Open:
        """Return a greedy open."""
        return Open(self.prompt, "greedy", 0.0, 0, 1.0, 0, count)

    @property
    def prompt(self) -> tuple[int, ...]:
        """A short prompt of ids that every vocabulary has."""
        return (1, 0, 1, 1)

    async def reference(self, count: int = 12) -> list[int]:
        """Return the target's greedy text, as it comes without drafts."""
        self._texts = self._texts or {}
        if count not in self._texts:
            async with self.greeted() as peer:
                await peer.open(count)
                text = await peer.text([], 0, count)
            expect(len(text) == count, f"{len(text)} tokens instead of {count}")
            self._texts[count] = text
        return self._texts[count]

    def wrong(self, token: int) -> int:
        """Return another id than ``token``."""
        return (token + 1) % 2 if token < 2 else 0


_Run = Callable[[Kit], Awaitable[None]]


class Check(NamedTuple):
    """One row of the table.

    Attributes:
        name: What is checked, in a few words.
        section: Of PROTOCOL.md.
        run: Raises :class:`Failed` or :class:`Skipped`, or returns.
    """

    name: str
    section: str
    run: _Run


class Table(List[Check]):
    """Checks of one part of the specification, in order."""

    def check(self, section: str, name: str) -> Callable[[_Run], _Run]:
        """Return a decorator that enters a function into the table."""

        def enter(run: _Run) -> _Run:
            self.append(Check(name, section, run))
            return run

        return enter


async def run_checks(
    kit: Kit, checks: Sequence[Check], told: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """Make every check, one after the other.

    Args:
        kit: The verifier.
        checks: What to check.
        told: Called with each result as it comes.

    Raises:
        TransportError: Nobody answers at all.
    """
    try:
        async with kit.greeted():
            pass
    except (OSError, asyncio.TimeoutError, WebSocketException, Failed) as error:
        raise TransportError(
            f"{kit.url} does not greet a device: {error or type(error).__name__}",
            hint="is the address right, the token (--token-file), the draft (--draft)?",
        ) from error
    results = []
    for check in checks:
        result, detail = "pass", ""
        try:
            await check.run(kit)
        except Skipped as skipped:
            result, detail = "skip", str(skipped)
        except Failed as failed:
            result, detail = "fail", str(failed)
        except (OSError, WebSocketException, asyncio.TimeoutError, DraftwireError) as error:
            result, detail = "fail", f"{type(error).__name__}: {error}"
        results.append(Result(check.name, check.section, result, detail))
        told(results[-1])
    return results


def _say(message: Message) -> str:
    if isinstance(message, Error):
        return f"error {message.code!r} ({message.message})"
    return type(message).__name__.lower()
