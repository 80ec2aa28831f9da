"""What is said on one device's connection: greeting, then streams, one at a time.

Plain code: messages in, messages out, no socket and no loop. The asyncio shell around it
is :mod:`draftwire.verifier.connection`; simulators and generated histories have others.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Callable

from draftwire.errors import ConfigError, ProtocolError, RefusedError
from draftwire.transport.messages import (
    Block,
    Bye,
    Error,
    Hello,
    Message,
    Open,
    Opened,
    Resume,
)
from draftwire.verifier.greeting import DRAINING, FatalError, error_of
from draftwire.verifier.streams import KeptStreams, Stream, Terms

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # `typing.Protocol` costs start-up time and checks nothing here

__all__ = ["Dialogue", "Peer"]

log = logging.getLogger("draftwire.verifier")


class Peer(Protocol):
    """The way to a device; nothing of it waits or raises."""

    def send(self, message: Message) -> None:
        """Put ``message`` in the outbox."""

    def close(self, error: Error | None) -> None:
        """Send ``error``, if there is one, after what is in the outbox, and hang up."""

    def abort(self) -> None:
        """Hang up without a word: nobody reads at the other end."""


class Dialogue:
    """One connection's state; it holds the stream that runs on it.

    Args:
        kept: All streams of the verifier.
        greet: Chooses target and terms for a hello, or raises what to answer.
        peer: The way to the device.
        name: Of the device, for logs.

    Attributes:
        terms: What was agreed on, or None before the greeting.
        over: True once nothing more is taken in.
    """

    def __init__(
        self,
        kept: KeptStreams,
        greet: Callable[[Hello], Terms],
        peer: Peer,
        name: object = "",
    ) -> None:
        self._kept = kept
        self._greet = greet
        self._peer = peer
        self._name = name
        self._stream: Stream | None = None  # running, or with an end to be seen
        self._draining = False
        self.terms: Terms | None = None
        self.over = False

    @property
    def busy(self) -> bool:
        """True while a stream is running."""
        return self._stream is not None and not self._stream.session.done

    def take(self, message: Message) -> None:
        """Take in a message; whatever is wrong with it goes to the device."""
        if self.over:
            return
        try:
            self._take(message)
        except Exception as error:  # noqa: BLE001 - a bug of ours ends this connection only
            self.leave(error_of(error))

    def lost(self) -> None:
        """The link is gone: the stream waits for its device."""
        self.over = True
        self._end_stream(park=True)

    def leave(self, error: Error, *, park: bool = False) -> None:
        """Say why, and hang up.

        Args:
            error: What the device is told.
            park: Its stream waits for it to come back.
        """
        if self.over:
            return
        if error is not DRAINING:
            log.info("%s: %s", self._name, error.message)
        self._end_stream(park=park)
        self.over = True
        self._peer.close(dataclasses.replace(error, fatal=True))

    def drain(self, *, now: bool) -> None:
        """End the connection because the verifier goes away.

        Args:
            now: Also when a stream is running; otherwise that one may finish first.
        """
        self._draining = True
        if now or not self.busy:
            self.leave(DRAINING)

    # ---- messages

    def _take(self, message: Message) -> None:
        if self.terms is None:
            self._hello(message)
        elif isinstance(message, Block):
            if self._stream is not None:  # else of a stream that ended meanwhile
                self._stream.receive(message)
        elif isinstance(message, Open):
            self._open(message, self._ready("an open"))
        elif isinstance(message, Resume):
            self._resume(message, self._ready("a resume"))
        elif isinstance(message, (Bye, Error)):
            self._end_stream(park=False)
            if self._draining:
                raise FatalError.of(DRAINING)
            if isinstance(message, Error) and message.fatal:
                self.over = True
                self._peer.close(None)
        else:
            raise ProtocolError(f"{_name(message)} does not go to a verifier")

    def _hello(self, message: Message) -> None:
        if not isinstance(message, Hello):
            raise ProtocolError(f"the first message is {_name(message)}, not a hello")
        if self._draining:
            raise FatalError.of(DRAINING)
        self.terms = terms = self._greet(message)
        self._peer.send(terms.welcome)
        log.info("%s: %r on %s", self._name, message.agent[:80], terms.served.label)

    def _ready(self, what: str) -> Terms:
        if self.busy:
            raise ProtocolError(f"{what} while a stream is running")
        if self._draining:
            raise FatalError.of(DRAINING)
        assert self.terms is not None
        return self.terms

    # ---- streams

    def _open(self, request: Open, terms: Terms) -> None:
        self._end_stream(park=False)  # whoever opens the next has seen the last one end
        try:
            stream = self._kept.open(request, terms, self)
        except (ConfigError, RefusedError) as error:
            self._peer.send(error_of(error))  # the connection stays
            return
        self._begin(stream, terms, Opened(request.stream, stream.id, stream.secret))

    def _resume(self, request: Resume, terms: Terms) -> None:
        try:
            stream, answer = self._kept.resume(request, terms, self)
        except RefusedError as error:
            self._peer.send(error_of(error))
            return
        if self._stream is not stream:
            self._end_stream(park=True)
        self._begin(stream, terms, answer)

    def _begin(self, stream: Stream, terms: Terms, answer: Message) -> None:
        self._stream = stream
        self._peer.send(answer)
        stream.start(exits="exits" in terms.welcome.capabilities)

    def _end_stream(self, *, park: bool) -> None:
        """End the stream, or keep it for its device to come back."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.holder is self:
            (self._kept.park if park else self._kept.forget)(stream)

    def deliver(self, stream: Stream, messages: list[Message]) -> None:
        """Send what comes out of the stream; see :class:`~.streams.Holder`."""
        for message in messages:
            if isinstance(message, Error):
                log.warning("stream of %s: %s", self._name, message.message)
                self._stream = None
                if message.fatal:
                    self.leave(message)
                    return
            self._peer.send(message)
        if self._draining and not self.busy:
            self.leave(DRAINING)

    def lose(self, stream: Stream) -> None:
        """Let go of ``stream``: its device has come back on another connection."""
        self._stream = None
        self.over = True
        self._peer.abort()


def _name(message: Message) -> str:
    return type(message).__name__.lower()
