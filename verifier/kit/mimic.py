"""A verifier that tries devices: it serves texts by a script, with the script's faults.

Its target agrees with three drafts in four, whatever they are, and otherwise says what the
kit's target says: so a real draft meets acceptances and rejections alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import time
from dataclasses import dataclass, field, replace
from typing import Any, AsyncIterator, Awaitable, Callable

import numpy as np
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from draftwire.errors import ConfigError, DraftwireError, ProtocolError
from draftwire.sampling import NOISES, SCHEMES
from draftwire.sampling.grammar import Grammar as Text
from draftwire.transport.codec import MAX_FRAME, SUBPROTOCOL, Codec, check_of
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Frame,
    Grammar,
    Hello,
    Message,
    Open,
    Opened,
    Progress,
    Resume,
    Resumed,
    Welcome,
)
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.kit.rows import End, Failed, Kept, NotTested, expect, must_be, needs
from draftwire.verifier.kit.target import logits_after
from draftwire.verifier.target_session import TargetSession

SECRET = bytes(range(16))
_LATE_S = 1.0  # after which a device has surely read what was sent to it
_CAPABILITIES = ("resume", "exits", "processors", "logprobs")


def _name(message: Message) -> str:
    return type(message).__name__.lower()


class Gone(Failed):
    """The device has ended the stream or the connection."""


@dataclass
class Mimic(Kept):
    """The verifier's end, one device at a time."""

    # starts a device that asks for one text, given the address; what it returns is awaited
    # when the text is over. None waits for a device to come.
    device: Callable[[str], Awaitable[object]] | None = None
    patience_s: float = 10.0  # for a device to say something
    port: int = 0  # 0 takes a free one
    grace_s: float = 1.0  # for a started device to end by itself, when its text is over
    refusal: int = 0  # HTTP status to answer the next upgrade with
    # when a device asked for an upgrade, in this row
    upgrades: list[float] = field(default_factory=list)
    _links: asyncio.Queue[Link] = field(default_factory=asyncio.Queue)
    _open: set[Link] = field(default_factory=set)

    def rule(self, name: str, holds: object, complaint: str = "") -> None:
        """Note whether a rule was kept; nothing else can be said of who breaks one."""
        super().rule(name, holds, complaint)
        needs(holds, f"the device broke another rule: {complaint}")

    @property
    def url(self) -> str:
        """Where devices connect."""
        return f"ws://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Mimic]:
        """Listen while this lasts."""

        def before(socket: Any, request: Any) -> Any:
            self.upgrades.append(time.monotonic())
            offered = request.headers.get("Sec-WebSocket-Protocol", "")
            right = SUBPROTOCOL in offered.replace(" ", "").split(",")
            with contextlib.suppress(NotTested):
                self.rule("subprotocol", right, f"it offers {offered!r}")
            if self.refusal or not right:
                status = http.HTTPStatus(self.refusal or 426)
                return socket.respond(status, "this is a mimic\n")
            return None

        async def handle(socket: Any) -> None:
            link = Link(self, socket)
            self._open.add(link)
            self._links.put_nowait(link)
            await link.read()
            self._open.discard(link)

        async with serve(
            handle,
            "127.0.0.1",
            self.port,
            process_request=before,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=MAX_FRAME,
            close_timeout=1,
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            yield self

    @contextlib.asynccontextmanager
    async def text(self) -> AsyncIterator[None]:
        """Let a device ask for one text while this lasts."""
        self.refusal, self.upgrades = 0, []
        self._links = asyncio.Queue()
        at_work = None
        if self.device is not None:
            at_work = asyncio.ensure_future(self.device(self.url))
        try:
            yield
        finally:
            for link in list(self._open):
                await link.close(1001)
            if at_work is not None:
                done, _ = await asyncio.wait([at_work], timeout=self.grace_s)
                if not done:
                    at_work.cancel()
                await asyncio.gather(at_work, return_exceptions=True)

    async def connection(self, **changes: Any) -> Link:
        """Return the next connection, greeted; ``changes`` are of the welcome."""
        link = await self.raw_connection()
        await link.greet(**changes)
        return link

    async def raw_connection(self) -> Link:
        """Return the next connection."""
        try:
            return await asyncio.wait_for(self._links.get(), self.patience_s)
        except asyncio.TimeoutError:
            raise Failed(f"no device came within {self.patience_s:g} s") from None

    async def stream(self, **changes: Any) -> Served:
        """Return the stream that the next connection opens, accepted."""
        link = await self.connection(**changes)
        served = await link.asked()
        await served.accept()
        return served


class Link(End):
    """One connection of a device."""

    hello: Hello  # what it said first
    welcome: Welcome  # what was answered

    def __init__(self, mimic: Mimic, socket: Any) -> None:
        super().__init__(socket)
        self.mimic = mimic
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._back: list[Frame] = []
        self.numbers: set[int] = set()  # of streams that run
        self.grammars: set[bytes] = set()  # digests of those that it has sent
        self.brief = False  # its last open was

    async def read(self) -> None:
        """Take in what comes until the connection ends."""
        with contextlib.suppress(ConnectionClosed):
            async for data in self.socket:
                self._frames.put_nowait(data if isinstance(data, bytes) else b"")
        self._frames.put_nowait(None)

    async def hear(self, patience_s: float | None = None) -> Frame:
        """Return the next frame; Failed where none comes, Gone where none can."""
        if self._back:
            return self._back.pop()
        wait = self.mimic.patience_s if patience_s is None else patience_s
        try:
            data = await asyncio.wait_for(self._frames.get(), wait)
        except asyncio.TimeoutError:
            raise Failed(f"the device says nothing for {wait:g} s") from None
        if data is None:
            self._frames.put_nowait(None)
            raise Gone("it has closed the connection")
        try:
            frame = self.codec.decode(data)
        except ProtocolError as error:
            self.mimic.rule("frames", False, f"a frame {data[:24].hex()}: {error}")
            raise
        self.mimic.rule("frames", True)
        kinds = (Hello, Open, Block, Resume, Error, Bye, Grammar)
        said = f"it sends a {_name(frame.message)}"
        self.mimic.rule("messages", isinstance(frame.message, kinds), said)
        return frame

    @property
    def waits(self) -> bool:
        """There is more to be heard."""
        return not self._frames.empty()

    def put_back(self, frame: Frame) -> None:
        """Let a frame be heard again."""
        self._back.append(frame)

    async def greet(
        self, tail: bytes = b"", also: tuple[str, ...] = (), **changes: Any
    ) -> None:
        """Take the hello in and answer it, with capabilities beside the usual ones."""
        self.hello = hello = await self.heard(Hello)
        self.mimic.rule("messages", hello.vocab_size >= 2, "a vocabulary below 2")
        capabilities = tuple(c for c in hello.capabilities if c in _CAPABILITIES + also)
        noise = tuple(n for n in hello.noise if n in NOISES)
        self.welcome = welcome = Welcome(
            agent="draftwire-mimic",
            target="mimic",
            target_version="1",
            family=hello.family,
            tokenizer=hello.tokenizer,
            backbone=hello.backbone,
            vocab_size=hello.vocab_size,
            **{
                "context": 2048,
                "max_block": 16,
                "max_waiting": 64,
                "capabilities": capabilities,
                "schemes": tuple(SCHEMES),
                "noise": noise,
                "streams": 4,
                "progress_ms": 500,
                **changes,
            },
        )
        await self.say(welcome, tail=tail)
        self.codec = Codec.of(welcome)

    async def heard(self, kind: type[Any]) -> Any:
        """Return the next message, which must be of a kind."""
        message = (await self.hear()).message
        right = f"a {_name(message)} where a {kind.__name__.lower()} belongs"
        self.mimic.rule("messages", isinstance(message, kind), right)
        return message

    async def asked(self) -> Served:
        """Return the stream that the next open asks for, not accepted yet."""
        while True:
            number, request, _ = await self.hear()
            if isinstance(request, Open):
                break
            if isinstance(request, Grammar):
                self._take_grammar(request)
                continue
            in_flight = isinstance(request, (Block, Bye)) and number not in self.numbers
            wrong = f"a {_name(request)} where an open belongs"
            self.mimic.rule("messages", in_flight, wrong)
        taken = f"an open with the running number {number}"
        self.mimic.rule("numbers", number not in self.numbers, taken)
        most = self.welcome.streams
        self.mimic.rule("numbers", len(self.numbers) < most, f"more than {most} streams")
        self.brief = request.brief
        if request.brief:
            right = check_of(replace(request, prefix=b"")) == request.prefix
            right &= not request.prefix_length
            self.mimic.rule("opens", right, "a brief open with a wrong check")
            request = replace(request, brief=False, prefix=b"")
        if name := request.grammar:
            self.mimic.rule("grammars", name in self.grammars, "a grammar it did not send")
        return Served(self, number or 0, request)

    def _take_grammar(self, message: Grammar) -> None:
        """Note a grammar; the mimic compiles none."""
        agreed = "grammar" in self.welcome.capabilities
        self.mimic.rule("messages", agreed, "a grammar without that capability")
        name = Text.name(message.format, message.text)
        self.mimic.rule("grammars", name not in self.grammars, "a grammar twice")
        self.grammars.add(name)

    async def resumed(self, old: Served) -> Served:
        """Take a resume in: the stream goes on here. The answer is not sent yet."""
        number, message, _ = await self.hear()
        request = must_be(Resume, message)
        expect(request.id == old.id, "another id than that of opened")
        expect(request.secret == SECRET, "another secret than that of opened")
        expect(request.text_hash, "no text hash in its resume")
        old.session.detach(cached=True)
        try:
            resumed = old.session.resume(request.position, request.text_hash)
        except ProtocolError as error:
            raise Failed(f"its resume: {error}") from None
        old.link, old.number, old.answer = self, number or 0, resumed
        old.dead_s = time.monotonic()
        self.numbers.add(old.number)
        return old

    async def cut(self) -> None:
        """End the connection as a broken link does, when what was sent has arrived."""
        await asyncio.sleep(0.05)
        self.socket.transport.abort()
        self.mimic._open.discard(self)

    async def close(self, code: int = 1000) -> None:
        """End the connection."""
        await self.socket.close(code)


class Served:
    """A stream of the device; its ``session`` holds the blocks to the rules."""

    def __init__(self, link: Link, number: int, request: Open) -> None:
        self.link, self.number, self.request = link, number, request
        self.mimic, self.id = link.mimic, bytes((7,) * 7 + (number & 0xFF,))
        self.dead_s = 0.0  # when something was sent that may have ended a branch
        self.told, self.lag = 0, 0.0
        self.began: int | None = None  # the last branch of which drafts came
        self.beside: int | None = None  # the last one beside which some came
        self.kept = 0  # drafts with which branches began
        self.contrary = False  # its target says ids that have drafts beside a branch
        self.stale: int | None = None  # the branch of the last block, if it is dead
        self.answer = Resumed(0, 0, ())
        self.lied = False  # what it heard may have confused it
        try:
            self.session = TargetSession(request, link.welcome)
        except ConfigError as error:
            self.mimic.rule("opens", False, f"its open: {error}")
        self.mimic.rule("opens", True)

    @property
    def text(self) -> tuple[int, ...]:
        """Committed tokens."""
        return self.session.committed()

    async def accept(self, tail: bytes = b"") -> None:
        """Say opened."""
        resumes = "resume" in self.link.welcome.capabilities
        answer = Opened(self.id, SECRET) if resumes else Opened()
        self.link.numbers.add(self.number)
        await self.link.say(answer, self.number, tail)

    async def say(self, message: Message, tail: bytes = b"") -> None:
        """Send a message of the stream."""
        await self.link.say(message, self.number, tail)
        self.dead_s, self.told = time.monotonic(), self.session.counts.emitted

    @property
    def unseen(self) -> int:
        """Tokens of the last commit, which may not have arrived."""
        return self.session.counts.emitted - self.told

    def hash(self) -> bytes:
        """Return the text hash."""
        return TextHash([*self.request.prompt, *self.text]).digest()

    async def serve(self, until: int = 1 << 24, tail: bytes = b"") -> str:
        """Give verdicts until the text has so many tokens, or ends."""
        while not self.session.done and len(self.text) < until:
            for message in await self.step():
                await self.say(message, tail)
        if self.session.done:
            self.link.numbers.discard(self.number)
        return f"{len(self.text)} tokens, {self.session.counts.drafted} drafts"

    async def verdict(self) -> Commit:
        """Return the next commit, not sent yet."""
        while True:
            for message in await self.step():
                if isinstance(message, Commit):
                    return message
                await self.say(message)

    async def listen(self, seconds: float, found: Callable[[], bool]) -> None:
        """Take in what comes for a while, or until what is looked for is ``found``."""
        await self.say(Progress("judging", self.session.epoch, len(self.text), 1))
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not found():
            try:
                number, message, _ = await self.link.hear(left)
            except Gone:
                raise
            except Failed:
                break
            if number == self.number and isinstance(message, (Bye, Error)):
                self.link.put_back(Frame(number, message, 0))
                return
            if number == self.number:
                self.take(message)

    async def rest(self) -> None:
        """See that nothing comes of an ended stream but what was on its way."""
        begin = time.monotonic()
        with contextlib.suppress(Failed):
            while (passed := time.monotonic() - begin) < 0.4:
                number, message, _ = await self.link.hear(0.4 - passed)
                late = time.monotonic() - begin > 0.2
                goes_on = isinstance(message, Block) and number == self.number and late
                self.mimic.rule("ends", not goes_on, "a block after the end")

    async def ended(self, why: str) -> None:
        """Expect that the device ends the connection, or the stream with an error.

        It hears that there is work, so that its patience does not end first.
        """
        until = time.monotonic() + self.mimic.patience_s
        while time.monotonic() < until:
            await self.say(Progress("judging", self.session.epoch, len(self.text), 1))
            try:
                message = (await self.link.hear(0.25)).message
            except Gone:
                return
            except Failed:
                continue
            if isinstance(message, Error) or message == Bye("error"):
                return
        raise Failed(f"it goes on after {why}")

    async def step(self) -> list[Message]:
        """Take frames in until there is something to send; return that."""
        session = self.session
        while True:
            await asyncio.sleep(self.lag)
            work = None if self.lag and self.link.waits else session.poll()
            if work is not None:
                before = session.epoch
                try:
                    found = session.complete(work, self._logits(work))
                except ProtocolError as error:
                    self.mimic.rule("evidence", False, f"its evidence: {error}")
                    raise
                self.mimic.rule("evidence", True)
                if session.epoch != before and len(session.branch):
                    self.began = session.epoch  # with what stood beside the one before
                    self.kept += len(session.branch)
                if found:
                    return found
                continue
            try:
                number, message, _ = await self.link.hear()
                if number == self.number and isinstance(message, (Bye, Error)):
                    self.link.numbers.discard(self.number)
                    await self.link.say(Bye("ended", session.counts.forwards), self.number)
                    raise Gone(f"it ends the stream ({message})")
            except (Gone, Failed):
                stale = f"its last block was of branch {self.stale}, which had ended"
                self.mimic.rule("branches", self.stale is None or self.lied, stale)
                raise
            if number == self.number and (answer := self.take(message)):
                return answer

    def take(self, message: Message) -> list[Message]:
        """Take a block in; return what is to be said at once."""
        rule, session, welcome = self.mimic.rule, self.session, self.link.welcome
        rule("messages", isinstance(message, Block), f"a {_name(message)} in a stream")
        assert isinstance(message, Block)
        epoch, size = message.epoch, len(message.tokens)
        ahead = (epoch - session.epoch) & 0xFF
        self.stale = epoch if ahead >= 128 else None
        if ahead >= 128:
            late = time.monotonic() - self.dead_s
            rule("branches", late < _LATE_S, f"branch {epoch} {late:.1f} s after its end")
        else:
            beside = len(session.branch.sides)
            gave_up = ahead == 1 and session.epoch == self.began and not beside
            # The next one may have begun here with what stood beside it.
            if self.beside is not None and not gave_up:
                gave_up = epoch == (self.beside + 2) & 0xFF and ahead <= 2
            right = ahead == 0 or gave_up and not message.instead
            said = f"branch {epoch} where {session.epoch} comes next"
            rule("branches", right, said + ", with drafts beside it" * (beside > 0))
        if message.instead:
            self.beside = epoch
        elif size:
            self.began = epoch
        most = welcome.max_block
        rule("max_block", size <= most, f"{size} drafts in a block, the limit is {most}")
        try:
            found = session.receive(message)
        except DraftwireError as error:
            limit = "beside" if message.instead else "places"
            limit = "max_waiting" if "wait for judgement" in str(error) else limit
            rule(limit, False, f"{error}")
            raise
        if message.instead and session.branch.heir(message).epoch != epoch:
            self.began = session.epoch
        rule("beside" if message.instead else "places", True)
        rule("max_waiting", True)
        return found

    def _logits(self, work: Any) -> Any:
        """Return rows that agree with three drafts in four."""
        others = dict(list(self.session.branch.sides)) if self.contrary else {}
        vocab = self.link.welcome.vocab_size
        drafts, ids = work.drafts, [*self.request.prompt, *self.text]
        rows = np.zeros((len(drafts) + 1, vocab), np.float32)
        for i, row in enumerate(rows):
            after = [*ids, *drafts[:i]]
            ranks = np.argsort(-logits_after(after, vocab), kind="stable")
            own = int(next(t for t in ranks if t not in self.request.stop_ids))
            agrees = i < len(drafts) and drafts[i] not in self.request.stop_ids
            chosen = drafts[i] if agrees and (own + len(after)) % 4 else own
            other = others.get(len(self.text) + i, chosen)
            chosen = chosen if other in self.request.stop_ids else other
            row[chosen] = 1e4
        return rows
