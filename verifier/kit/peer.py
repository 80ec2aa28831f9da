"""The kit's device end: it says what it is told, and holds what it hears to the rules."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import ssl
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, AsyncIterator, Sequence
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from draftwire.errors import ProtocolError
from draftwire.sampling.grammar import Guide, Rules
from draftwire.transport.codec import MAX_FRAME, SUBPROTOCOL, Codec
from draftwire.transport.dial import is_loopback
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Finish,
    Hello,
    Message,
    Open,
    Opened,
    Progress,
    Provisional,
    Resume,
    Resumed,
    Welcome,
)
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.kit.rows import End, Failed, Kept, about, expect, must_be, needs
from draftwire.verifier.kit.target import text_of

EVIDENCE = ("residual", "qs", "separate", "separate-lossy")  # schemes


def direct(url: str) -> dict[str, None]:
    """Return what keeps ``connect`` from reaching this machine through a proxy."""
    # From version 15 on websockets takes proxies from the environment by itself.
    knows = "proxy" in inspect.signature(connect).parameters
    return {"proxy": None} if knows and is_loopback(urlsplit(url).hostname or "") else {}


@dataclass
class Kit(Kept):
    """How to reach the verifier, what to say to it, and what was seen of it."""

    url: str  # its address
    hello: Hello  # of a device whose draft fits a target there
    token: str | None = None  # bearer token, or None
    tls: ssl.SSLContext | None = None  # for ``wss://``
    patience_s: float = 10.0  # seconds to wait for an answer
    exhaust: bool = False  # also take every slot, for the error ``busy``
    long: int = 2000  # tokens of the long texts, at most
    known: bool = False  # its target is the kit's own
    noise: str = "philox"  # what coupled texts are drawn with
    # the ``tokenizer.json`` of its target; without one no grammars
    tokenizer: Path | None = None
    _texts: dict[Any, list[int]] = field(default_factory=dict)

    def headers(self, token: str | None) -> dict[str, str]:
        """Return the upgrade's headers."""
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    @contextlib.asynccontextmanager
    async def peer(self, url: str = "", **options: Any) -> AsyncIterator[Peer]:
        """Connect without greeting; ``options`` are those of ``websockets.connect``."""
        settings: dict[str, Any] = {
            "subprotocols": [SUBPROTOCOL],
            "compression": None,
            "max_size": MAX_FRAME,
            "close_timeout": 1,
            "open_timeout": self.patience_s,
            "additional_headers": self.headers(self.token),
            **({} if self.tls is None else {"ssl": self.tls}),
            **direct(self.url),
        }
        socket = await connect(url or self.url, **{**settings, **options})
        try:
            yield Peer(socket, self)
        finally:
            # asyncio's transport raises it when the other end was quicker to go.
            with contextlib.suppress(AttributeError):
                await socket.close()

    @contextlib.asynccontextmanager
    async def greeted(self, need: str = "", **changes: Any) -> AsyncIterator[Peer]:
        """Connect and greet, with changes of the hello.

        Raises:
            Failed: The answer is no welcome.
            NotTested: It lacks the capability, or the scheme with evidence, ``need``.
        """
        needs(need != "grammar" or self.tokenizer, "its tokenizer is not known")
        if need and need not in EVIDENCE:
            further = ("further", "leaves") if need == "trees" else ()
            changes.setdefault("capabilities", (*further, need))
        async with self.peer() as peer:
            welcome = must_be(Welcome, await peer.greet(**changes))
            needs(
                not need or need in welcome.capabilities + welcome.schemes,
                f"it does not offer {need!r}",
            )
            yield peer

    def request(self, count: int, **changes: Any) -> Open:
        """Return an open, greedy unless ``changes`` say otherwise."""
        return replace(Open((1, 0, 1, 1), "greedy", 0.0, 0, 1.0, 0, count), **changes)

    def coupled(self, count: int, **changes: Any) -> Open:
        """Return an open of scheme ``coupled``."""
        fields = {"temperature": 0.9, "seed": 7, "noise": self.noise, **changes}
        return self.request(count, **{"scheme": "coupled", **fields})

    async def want(self, request: Open, count: int = 0) -> list[int]:
        """Return the text that must come of ``request``: ``count`` tokens, or all.

        Of the kit's own target it is computed. Of any other it is what comes for empty
        blocks, one token at a time: drafts must not change it.
        """
        count = min(count or request.max_new_tokens, request.max_new_tokens)
        plain = replace(request, objective="cost", bonus=True, exits=False, credit=0)
        key = replace(plain, max_new_tokens=1, stop_ids=())
        if len(self._texts.get(key, ())) < count:
            if self.known:
                self._texts[key] = text_of(key, count, self.hello.vocab_size)
            else:
                async with self.greeted(capabilities=("processors",)) as peer:
                    stream = await peer.open(replace(key, max_new_tokens=count))
                    await stream.fill(count)
                self._texts[key] = stream.text
        return self._texts[key][:count]


class Peer(End):
    """One connection."""

    welcome: Welcome  # what the verifier answered to the hello

    def __init__(self, socket: Any, kit: Kit) -> None:
        super().__init__(socket)
        self.kit = kit
        self._heard: dict[int | None, deque[Message]] = {}

    @property
    def block(self) -> int:
        """Drafts that may always be sent: one block."""
        return min(self.welcome.max_block, self.welcome.room)

    def _of(self, number: int | None) -> deque[Message]:
        return self._heard.setdefault(number, deque())

    async def _read(self, patience_s: float | None = None) -> bool:
        """Take in a frame; return False when none comes for a while."""
        wait = self.kit.patience_s if patience_s is None else patience_s
        try:
            data = await asyncio.wait_for(self.socket.recv(), wait)
        except asyncio.TimeoutError:
            return False
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else "none"
            raise Failed(f"the connection ended (code {code})") from None
        expect(isinstance(data, bytes), "a text frame")
        try:
            stream, message, _ = self.codec.decode(data)
        except ProtocolError as error:
            raise Failed(f"an invalid frame {data[:32].hex()}: {error}") from None
        self._of(stream).append(message)
        return True

    async def hear(self, number: int | None = 0) -> Message:
        """Return the next message of a stream, None being the connection.

        Raises:
            Failed: There is none, it is not valid, or the connection ends with an error.
        """
        mine = self._of(number)
        while not mine:
            for fatal in self._of(None):
                must_be(Welcome, fatal)
            if not await self._read():
                raise Failed(f"no answer within {self.kit.patience_s:g} s")
        return mine.popleft()

    async def silence(self, seconds: float, number: int = 0) -> None:
        """Expect that nothing but progress comes of a stream for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self._read(max(0.0, until - time.monotonic()))
            while self._of(number):
                must_be(Progress, self._of(number).popleft())

    async def greet(self, **changes: Any) -> Message:
        """Say hello; return the answer."""
        await self.say(replace(self.kit.hello, **changes))
        answer = await self.hear(None)
        if isinstance(answer, Welcome):
            self.welcome = answer
            expect(answer.vocab_size >= 2, f"a vocabulary of {answer.vocab_size}")
            self.codec = Codec.of(answer)
        return answer

    async def open(
        self,
        request: Open,
        number: int = 0,
        want: Sequence[int] | None = None,
        rules: Rules | None = None,
    ) -> Stream:
        """Open a stream; ``want`` is the text that must come of it, if that is known.

        ``rules`` are what the grammar that it names makes of it.
        """
        await self.say(request, number)
        opened = must_be(Opened, await self.hear(number))
        stream = Stream(self, number, request, want, opened)
        if rules is not None:
            stream.guide = rules.guide(len(request.prompt))
            stream.force(stream.guide.path().ids)
            if stream.guide.path().ended:
                await stream.commit()  # all of it is forced
        return stream

    async def known(self, request: Open, number: int = 0) -> Stream:
        """Open a stream; what must come of it is known, or asked for before."""
        return await self.open(request, number, await self.kit.want(request))

    async def resume(
        self, old: Stream, number: int = 0, position: int | None = None
    ) -> Stream:
        """Go on with a stream of another connection, of which a position is held."""
        held = len(old.text) if position is None else position
        await self.say(old.resuming(held), number)
        answer = must_be(Resumed, await self.hear(number))
        expect(answer.position == held, f"resumed at {answer.position}, not at {held}")
        stream = Stream(self, number, old.request, old.want, old.opened)
        stream.text = old.text[:held]
        stream.epoch, stream.forwards = answer.epoch, answer.forwards
        stream.grow(answer.tokens)
        stream.check_hash(answer.text_hash, answer.finish)
        return stream

    async def refused(
        self, code: str, number: int | None = None, *, close: int = 0
    ) -> None:
        """Expect an error of a stream, or the connection; one of the words of ``code``.

        Then the end of the connection, where there is a ``close`` code of it.
        """
        while not self._of(number):
            for scope in list(self._heard):
                wrong = [m for m in self._of(scope) if isinstance(m, Error)]
                expect(not wrong, f"{wrong[:1]} of the wrong scope")
            if not await self._read():
                raise Failed(f"no error {code!r} within {self.kit.patience_s:g} s")
        answer = must_be(Error, self._of(number).popleft())
        found = f"error {answer.code!r} ({answer.message})"
        expect(answer.code in code.split(), f"{found}, not {code!r}")
        expect(answer.message, f"error {code!r} has no message")
        if close:
            await self.closed(close)

    async def refuses(self, requests: dict[str, Open], code: str = "request") -> None:
        """Say each of the named opens, and expect that it is refused."""
        for name, request in requests.items():
            await self.say(request, 1)
            with about(name):
                await self.refused(code, 1)

    async def closed(self, code: int) -> None:
        """Expect the end of the connection."""
        try:
            while True:
                await asyncio.wait_for(self.socket.recv(), self.kit.patience_s)
        except ConnectionClosed as error:
            found = error.rcvd.code if error.rcvd else None
            expect(found == code, f"close code {found}, not {code}")
        except asyncio.TimeoutError:
            raise Failed("the connection stays open") from None

    def cut(self) -> None:
        """End the connection as a broken link does."""
        self.socket.transport.abort()


class Stream:
    """A stream as its device sees it."""

    def __init__(
        self,
        peer: Peer,
        number: int,
        request: Open,
        want: Sequence[int] | None,
        opened: Opened,
    ) -> None:
        self.peer, self.number, self.request = peer, number, request
        self.want = want  # what the text must be, or None
        self.opened = opened
        self.text: list[int] = []  # committed tokens
        self.ahead: list[int] = []  # drafts of the present branch beyond the text
        self.epoch = 0  # of the present branch
        self.forwards = 0  # of the target, as the verifier has said
        self.hints = 0  # provisional verdicts heard
        self.finish = Finish.NOT_YET
        self.guide: Guide | None = None  # where its text stands in a grammar
        self.forced = 0  # ids that the grammar left no choice about
        self._hashed = 0
        self._past: dict[int, list[int]] = {}  # branches that were given up
        # drafts behind other ids, by their branch, the place of the id, and that
        self.beside: dict[tuple[int, int, int], list[int]] = {}

    def _digest(self, held: int) -> bytes:
        return TextHash([*self.request.prompt, *self.text[:held]]).digest()

    def resuming(self, held: int) -> Resume:
        """Return the resume of a device that holds ``held`` tokens."""
        return Resume(self.opened.id, self.opened.secret, held, self._digest(held))

    async def draft(self, tokens: Sequence[int], **fields: Any) -> None:
        """Send drafts behind those that were sent, in blocks that the verifier bears."""
        most = self.peer.welcome.max_block
        parts = [tuple(tokens[i : i + most]) for i in range(0, len(tokens), most)]
        for part in parts or [()]:
            at = len(self.text) + len(self.ahead)
            self.ahead += part
            await self.send(Block(self.epoch & 0xFF, at, part, **fields))

    async def draft_beside(
        self, at: int, token: int, drafts: Sequence[int], **fields: Any
    ) -> None:
        """Send drafts that stand behind ``token`` at place ``at`` of the text or branch."""
        known = self.beside.setdefault((self.epoch & 0xFF, at, token), [])
        most = self.peer.welcome.max_block
        for i in range(0, len(drafts), most):
            part, behind = tuple(drafts[i : i + most]), len(known) + 1
            known += part
            fields["instead"] = (behind, token)
            await self.send(Block(self.epoch & 0xFF, at + behind, part, **fields))

    def room_beside(self) -> int:
        """Return how many more drafts may stand beside the present branch."""
        stand = [len(ids) for key, ids in self.beside.items() if self._stands(key)]
        return self.peer.welcome.room - sum(stand)

    async def send(self, block: Block) -> None:
        """Send a block as it is."""
        await self.peer.say(block, self.number)

    def give_up(self, epoch: int | None = None) -> None:
        """Begin another branch before the verdict."""
        self._past[self.epoch & 0xFF] = self.ahead
        # The verifier may have begun the next one with what stands beside this.
        skipped = any(map(self._stands, self.beside))
        self.epoch = self.epoch + 1 + skipped if epoch is None else epoch
        self.ahead = []

    async def commit(self) -> Commit:
        """Take in the next commit."""
        while True:
            message = await self.peer.hear(self.number)
            if isinstance(message, Progress):
                self.progress(message)
            elif isinstance(message, Provisional):
                self._hint(message)
            else:
                self._take(must_be(Commit, message))
                return must_be(Commit, message)

    async def judge(self, tokens: Sequence[int], **fields: Any) -> Commit:
        """Send drafts, and take in a commit."""
        await self.draft(tokens, **fields)
        return await self.commit()

    async def fill(self, count: int) -> None:
        """Ask for tokens one by one until the text has ``count``, or ends."""
        while len(self.text) < count and not self.finish:
            await self.judge(())

    async def until(self, count: int) -> None:
        """Take in commits until the text has ``count`` tokens, or ends."""
        while len(self.text) < count and not self.finish:
            await self.commit()

    async def bye(self) -> Bye:
        """End it; return the verifier's answer."""
        await self.peer.say(Bye("cancelled"), self.number)
        while True:
            answer = await self.peer.hear(self.number)
            if not isinstance(answer, (Commit, Progress, Provisional)):
                return must_be(Bye, answer)

    async def play(self, seed: int, near: dict[int, int], **fields: Any) -> str:
        """Draft to the end of the text: right, near and wrong tokens, blocks of any size,
        with what is right beside them where that may be.

        ``near`` are tokens that the target nearly chose, by their place in the text.
        """
        rng, want, blocks, drafts = random.Random(seed), self.want or (), 0, 0
        vocab, trees = (
            self.peer.welcome.vocab_size,
            "trees" in self.peer.welcome.capabilities,
        )
        while not self.finish:
            held, at = len(self.text), len(self.text) + len(self.ahead)
            block = list(want[at : at + rng.choice((0, 1, 2, 3, 4, 5, 8, 16))])
            for i in range(len(block)):
                dice = rng.random()
                if dice < 0.04 and at + i in near:
                    block[i] = near[at + i]
                elif dice < 0.08:
                    block[i] = rng.randrange(vocab)
                elif dice < 0.12:
                    block[i] = (block[i] + rng.choice((1, vocab - 1))) % vocab
                elif dice < 0.14:
                    block[i:] = [rng.randrange(vocab) for _ in block[i:]]
            room = self.peer.welcome.room - len(self.ahead)
            block = block[: max(0, min(self.peer.block, room))]
            await self.draft(block, **fields)
            blocks, drafts = blocks + 1, drafts + len(block)
            for i, token in enumerate(block if trees else ()):
                place, right = at + i, want[at + i]
                other = right if token != right else rng.randrange(vocab)
                some = want[place + 1 : place + 1 + rng.choice((0, 1, 2, 3))]
                if other != token and len(some) <= self.room_beside():
                    await self.draft_beside(place, other, some, **fields)
            await self.until(held + 1)
        return f"{len(self.text)} tokens, {drafts} drafts in {blocks} blocks"

    # ---- what every stream is held to

    def _behind(self, epoch: int) -> bool:
        return (self.epoch - epoch) & 0xFF < 128

    def _take(self, commit: Commit) -> None:
        rule, epoch = self.peer.kit.rule, commit.epoch
        expect(self._behind(epoch), f"a commit of branch {epoch} after {self.epoch}")
        current = epoch == self.epoch & 0xFF
        branch = self.ahead if current else self._past.get(epoch, [])
        found = f"{commit.accepted} accepted, and {len(branch)} were sent of branch {epoch}"
        expect(commit.accepted <= len(branch), found)
        ran = self.forwards + 1 if commit.forwards is None else commit.forwards
        rule("forwards", ran >= self.forwards, f"{ran} after {self.forwards}")
        self.forwards = ran
        new, left = branch[: commit.accepted], len(branch) - commit.accepted
        agreed = "further" in self.peer.welcome.capabilities and commit.token is not None
        expect(agreed or not commit.further, f"{commit.further}, as nobody agreed on")
        own = [] if commit.token is None else [commit.token, *commit.further]
        self.grow([*new, *own])
        evidence = self.request.scheme in EVIDENCE and (left or commit.evidence)
        if current and epoch == self.epoch & 0xFF and evidence:
            self.epoch, self.ahead = self.epoch + 1, []
        owes = commit.evidence and commit.text_hash
        rule("owed", not owes, "a hash with a commit that owes a correction")
        late = len(self.text) - self._hashed - len(new)
        rule("hash often", commit.text_hash or late <= 256, f"none for {late} tokens")
        self.check_hash(commit.text_hash, commit.finish)

    def grow(self, tokens: Sequence[int]) -> None:
        """Make ``tokens`` text; a draft that they contradict ends its branch."""
        before = len(self.text)
        if self.guide is None:
            self.text += tokens
        elif tokens:
            path = self.guide.path((), tokens)
            found = f"{list(tokens)} after {self.text} is not in the grammar"
            expect(path.valid == len(tokens), found)
            self.force(path.ids, len(tokens))
        self.epoch, self.ahead = self._follow(self.epoch, self.ahead, before, tokens)
        past = [self._follow(*one, before, tokens) for one in self._past.items()]
        self._past = {epoch & 0xFF: left for epoch, left in past if left}
        at = len(self.text)
        expect(at <= self.request.max_new_tokens, f"{at} tokens, more than were asked for")
        if self.want is not None and self.text != list(self.want[:at]):
            pairs = enumerate(zip(self.text, self.want))
            i = next((i for i, (a, b) in pairs if a != b), len(self.want))
            raise Failed(f"token {i} is another: {self.text[i : i + 3]}")

    def _follow(
        self, epoch: int, branch: list[int], at: int, tokens: Sequence[int]
    ) -> tuple[int, list[int]]:
        """Return the branch that stands after a text of length ``at`` grew by ``tokens``,
        and its number: where they contradict it, what stood beside it."""
        while branch[: len(tokens)] != list(tokens[: len(branch)]):
            same = next(i for i, (a, b) in enumerate(zip(branch, tokens)) if a != b)
            branch = self.beside.get((epoch & 0xFF, at + same, tokens[same]), [])
            epoch, at, tokens = epoch + 1, at + same + 1, tokens[same + 1 :]
        return epoch, branch[len(tokens) :]

    def _stands(self, key: tuple[int, int, int]) -> bool:
        """Return whether those drafts stand beside the present branch."""
        epoch, at, _ = key
        return epoch == self.epoch & 0xFF and at >= len(self.text)

    def force(self, ids: Sequence[int], chosen: int = 0) -> None:
        """Make text of ids of which a grammar has forced all but ``chosen``."""
        assert self.guide is not None
        self.text += ids[: self.request.max_new_tokens - len(self.text)]
        self.forced += len(ids) - chosen
        self.guide.follow([*self.request.prompt, *self.text])

    def check_hash(self, digest: bytes, finish: Finish) -> None:
        """Hold a hash to the text, and note whether that has ended."""
        rule, at = self.peer.kit.rule, len(self.text)
        self.finish = finish
        if digest:
            self._hashed = at
            rule("hash", digest == self._digest(at), f"another one after {at} tokens")
        if finish:
            rule("hash at the end", digest, f"none with {finish.name.lower()}")

    def _hint(self, hint: Provisional) -> None:
        rule = self.peer.kit.rule
        rule("hints", self.request.exits, "one that was not asked for")
        fits = hint.epoch != self.epoch & 0xFF or hint.accepted <= len(self.ahead)
        rule("hints", fits, f"{hint} with {len(self.ahead)} drafts in flight")
        self.hints += 1

    def progress(self, word: Progress) -> None:
        """Hold a word of progress to what is known of the stream."""
        rule, idle = self.peer.kit.rule, word.activity == "idle"
        rule("progress", idle is (word.work == 0), f"{word.activity} with work {word.work}")
        right = self._behind(word.epoch) and word.position <= len(self.text)
        rule("progress", right, f"{word} at {len(self.text)}, branch {self.epoch}")
