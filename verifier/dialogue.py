"""What is said on one device's connection: a greeting, then streams.

Plain code: messages in, messages out, no socket and no loop. The asyncio shell around it
is ``serving/connection.py``; simulators and generated histories have others.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Callable, Protocol

from draftwire.errors import ConfigError, ProtocolError, RefusedError
from draftwire.sampling.grammar import Compiled
from draftwire.transport.messages import (
    Block,
    Bye,
    Error,
    Grammar,
    Hello,
    Message,
    Open,
    Opened,
    Resume,
)
from draftwire.verifier.grammars import Shelf
from draftwire.verifier.greeting import DRAINING, error_of, fatal
from draftwire.verifier.patience import Pace
from draftwire.verifier.serving.limits import FatalError, Refusal
from draftwire.verifier.streams import KeptStreams, Stream, Terms

_HELD = 64  # blocks of an open that waits for its grammar

log = logging.getLogger("draftwire.verifier")


class Peer(Protocol):
    """The way to a device; nothing of it waits or raises."""

    def send(self, message: Message, stream: int = 0) -> None:
        """Put ``message`` of a stream in the outbox."""

    def close(self, error: Error | None) -> None:
        """Send ``error``, if there is one, after what is in the outbox, and hang up."""

    def abort(self) -> None:
        """Hang up without a word: nobody reads at the other end."""


class Dialogue:
    """One connection's state; it holds the streams that run on it."""

    def __init__(
        self,
        kept: KeptStreams,  # all streams of the verifier
        # chooses target and terms for a hello, or raises what to answer
        greet: Callable[[Hello], Terms],
        peer: Peer,  # the way to the device
        name: object = "",  # of the device, for logs
    ) -> None:
        self._kept, self._greet, self._peer, self._name = kept, greet, peer, name
        self._streams: dict[int, Stream] = {}  # running, or with an end to be seen
        self._shelf: Shelf | None = None
        # Opens whose grammar is being compiled, each with what came for it since.
        self._waiting: dict[int, list[Message]] = {}
        self._draining = False
        self.pace = Pace()  # of its device's drafts
        self.terms: Terms | None = None  # what was agreed on, or None before the greeting
        self.over = False  # true once nothing more is taken in

    @property
    def running(self) -> int:
        """How many streams run."""
        running = sum(not stream.session.done for stream in self._streams.values())
        return running + len(self._waiting)

    def take(self, message: Message, number: int | None = 0) -> None:
        """Take in a message; whatever is wrong with it goes to the device.

        ``number`` is of its stream, None for one of the connection.
        """
        if self.over:
            return
        try:
            self._take(message, number)
        except Exception as error:  # noqa: BLE001 - a bug of ours ends this connection only
            self.leave(error_of(error))

    def lost(self, *, closed: bool = False) -> None:
        """The link is gone: its streams wait for their device.

        Where that has ``closed`` it, it has seen the ends of those that have ended.
        """
        self.over = True
        self._waiting.clear()
        for number, stream in list(self._streams.items()):
            self._end(number, park=not (closed and stream.session.done))

    def leave(self, error: Error, *, park: bool = False) -> None:
        """Say why, and hang up; ``park``: its streams wait for it to come back."""
        if self.over:
            return
        if error is not DRAINING:
            log.info("%s: %s", self._name, error.message)
        for number in list(self._streams):
            self._end(number, park=park)
        self.over = True
        self._peer.close(dataclasses.replace(error, fatal=True))

    def drain(self, *, now: bool) -> None:
        """End the connection because the verifier goes away.

        ``now``: also when streams are running; otherwise they may finish first.
        """
        self._draining = True
        self._drained(now=now)

    def _drained(self, *, now: bool = False) -> None:
        """Hang up where the verifier goes away and nothing runs any more."""
        if self._draining and (now or not self.running):
            self.leave(DRAINING)

    # ---- messages

    def _take(self, message: Message, number: int | None) -> None:
        if self.terms is None:
            self._hello(message)
        elif isinstance(message, Grammar):
            self._grammar(message, self.terms)
        elif number in self._waiting:
            self._hold(message, number)
        elif number is None:
            if not isinstance(message, Error):
                raise ProtocolError(f"{_name(message)} does not go to a verifier now")
            for stream in list(self._streams):
                self._end(stream, park=False)
            self.over = True
            self._peer.close(None)
        elif isinstance(message, Block):
            if number in self._streams:  # else of a stream that ended meanwhile
                self._streams[number].receive(message)
                if message.evidence:
                    self._check_evidence()
        elif isinstance(message, Open):
            self._open(message, number, self.terms)
        elif isinstance(message, Resume):
            self._resume(message, number, self.terms)
        elif isinstance(message, (Bye, Error)):
            self._goodbye(number)
        else:
            raise ProtocolError(f"{_name(message)} does not go to a verifier")

    def _check_evidence(self) -> None:
        """See that all streams together hold no more than one device may."""
        held = sum(stream.session.evidence for stream in self._streams.values())
        most = 2 * self._kept.limits.message_bytes
        if held > most:
            raise FatalError(
                "limit",
                f"{held} bytes of evidence of this connection's streams wait or are under "
                f"judgement, the limit is {most}",
                "wait for verdicts before sending more",
            )

    def _hello(self, message: Message) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"the first message is {_name(message)}, not a hello")
        if self._draining:
            raise fatal(DRAINING)
        self.terms = terms = self._greet(message)
        if "grammar" in terms.welcome.capabilities:
            self._shelf = Shelf(terms.served.grammars)
        self._peer.send(terms.welcome)
        log.info("%s: %r on %s", self._name, message.agent[:80], terms.served.label)

    # ---- streams

    def _room(self, number: int, what: str) -> None:
        """See that a stream may begin."""
        before = self._streams.get(number)
        if before is not None and not before.session.done:
            raise ProtocolError(f"{what} with the number of a running stream, {number}")
        if before is not None:  # whoever uses its number has seen the last one end
            self._end(number, park=False)
        if self._draining:
            raise fatal(DRAINING)
        most = self._kept.limits.streams
        if self.running >= most:
            raise Refusal(
                "limit",
                f"{most} streams run on this connection, that is its limit",
                "wait for one to end, or connect once more",
            )
        while len(self._streams) >= 2 * most:  # ends that nobody says he has seen
            ended = (n for n, s in self._streams.items() if s.session.done)
            self._end(next(ended), park=True)

    def _grammar(self, message: Grammar, terms: Terms) -> None:
        """Take in a grammar; opens that name it wait until it is compiled."""
        if self._shelf is None:
            raise ProtocolError("a grammar without the capability grammar")

        def ready() -> None:
            waiting, self._waiting = self._waiting, {}
            for number, messages in waiting.items():
                for held in messages:
                    self.take(held, number)

        if not self._shelf.put(message, ready):
            raise FatalError(
                "limit",
                "too many grammars of this connection are being compiled",
                "wait for the answers to the opens that name them",
            )

    def _hold(self, message: Message, number: int) -> None:
        """Keep what comes for a stream whose grammar is being compiled."""
        if isinstance(message, (Bye, Error)):
            del self._waiting[number]
            self._peer.send(Bye("ended", 0), number)
        elif not isinstance(message, Block):
            raise ProtocolError(f"{_name(message)} with the number of a stream")
        elif len(self._waiting[number]) > _HELD:
            raise FatalError(
                "limit",
                f"more than {_HELD} blocks for a stream that waits for its grammar",
                "wait for the answer to the open",
            )
        else:
            self._waiting[number].append(message)

    def _compiled(self, request: Open) -> Compiled | None:
        """Return the grammar of an open; None while it is being compiled."""
        if self._shelf is None:
            raise ConfigError(
                "the open names a grammar without the capability grammar",
                hint="leave it out, or serve with llguidance installed",
            )
        return self._shelf.find(request.grammar)

    def _open(self, request: Open, number: int, terms: Terms) -> None:
        grammar: Compiled | None = None
        try:
            self._room(number, "an open")
            if request.grammar:
                grammar = self._compiled(request)
                if grammar is None:
                    self._waiting[number] = [request]
                    return
            stream = self._kept.open(request, terms, self, grammar)
        except (ConfigError, RefusedError) as error:
            self._refuse(error, number)
            return
        answer = Opened(stream.id, stream.secret, stream.reused)
        self._begin(stream, number, terms, answer)

    def _resume(self, request: Resume, number: int, terms: Terms) -> None:
        try:
            self._room(number, "a resume")
            stream, answer = self._kept.resume(request, terms, self)
        except RefusedError as error:
            self._refuse(error, number)
            return
        if self._streams.get(stream.number) is stream:
            del self._streams[stream.number]
        self._begin(stream, number, terms, answer)

    def _refuse(self, error: Exception, number: int) -> None:
        """Answer what cannot be served; the connection stays, unless it drains."""
        said = dataclasses.replace(error_of(error), fatal=False)
        self._peer.send(said, number)
        self._drained()

    def _begin(self, stream: Stream, number: int, terms: Terms, answer: Message) -> None:
        stream.number = number
        self._streams[number] = stream
        self._peer.send(answer, number)
        exits = "exits" in terms.welcome.capabilities
        stream.start(exits=exits, opened=isinstance(answer, Opened))

    def _goodbye(self, number: int) -> None:
        """The device ends a stream, or has seen its end."""
        stream = self._streams.get(number)
        if stream is None:
            return
        answer = None if stream.session.done else stream.goodbye()
        self._end(number, park=False)
        if answer is not None:
            self._peer.send(answer, number)
        self._drained()

    def _end(self, number: int, *, park: bool) -> None:
        """End a stream, or keep it for its device to come back."""
        stream = self._streams.pop(number, None)
        if stream is not None and stream.holder is self:
            (self._kept.park if park else self._kept.forget)(stream)

    def deliver(self, stream: Stream, messages: list[Message]) -> None:
        """Send what comes out of the stream; neither waits nor raises.

        An error is the last message of one that has failed and that nobody holds any more.
        """
        for message in messages:
            if isinstance(message, Error):
                log.warning("stream of %s: %s", self._name, message.message)
                self._streams.pop(stream.number, None)
                if message.fatal:
                    self.leave(message)
                    return
            self._peer.send(message, stream.number)
        self._drained()

    def lose(self, stream: Stream) -> None:
        """Let go of ``stream``: its device has come back on another connection."""
        self._streams.pop(stream.number, None)
        if not self._streams:  # half open: nobody is there
            self.over = True
            self._peer.abort()


def _name(message: Message) -> str:
    return type(message).__name__.lower()
