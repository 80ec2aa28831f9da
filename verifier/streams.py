"""Running streams, and those of lost links that wait for their device.

A stream outlives its connection: when the link is lost the text stays, and the KV slot
too while nobody else needs it. A device that comes back with the stream's id and secret
goes on where it was. What waits is bounded in time, number and memory. Who holds the most
of it loses the oldest first, so that one device's lost links cannot push out another's.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import Counter
from typing import TYPE_CHECKING

from draftwire.errors import ProtocolError, RefusedError
from draftwire.transport.messages import Resume, Resumed
from draftwire.verifier.accounts import Usage
from draftwire.verifier.limits import Limits
from draftwire.verifier.registry import Served
from draftwire.verifier.target_session import TargetSession

if TYPE_CHECKING:
    from draftwire.verifier.connection import Connection

__all__ = ["KeptStreams", "Stream", "UnknownStreamError"]

_TOKEN_BYTES = 40  # a Python int and its place in a list
_STREAM_BYTES = 4096  # all else of a stream
_NO_SECRET = secrets.token_bytes(16)  # compared with when there is no such stream
_ANEW = "open the stream again, with its prompt and text as the prompt"


class UnknownStreamError(RefusedError):
    """There is no stream that this device may go on with."""


class Stream:
    """A stream: its session, its slot, and who drives it now.

    Args:
        session: The state machine.
        served: The target.
        slot: Its KV slot there.
        usage: Of the account that it belongs to.
        holder: The connection that drives it.
        prompt: Tokens of its prompt.
        vocab_size: Of that connection.

    Attributes:
        slot: None when it was given back.
        holder: None while the stream waits for its device.
        id: Eight bytes that a device resumes by, or b"" when it cannot.
        secret: Sixteen bytes that prove whose stream it is.
        wake: Set when the session may have work.
        lock: Held while the session is used.
        moving: Held while the stream changes hands.
        worker: Drives the session.
        unjudged: Bytes of evidence that may wait for judgement.
        wants_exits: Whether its open asks for what early exits expect.
        exits: Whether that is sent: they were negotiated, too.
        parked_s: When its link was lost.
    """

    def __init__(
        self,
        session: TargetSession,
        served: Served,
        slot: int,
        usage: Usage,
        holder: Connection,
        prompt: int,
        vocab_size: int,
    ) -> None:
        self.session = session
        self.served = served
        self.slot: int | None = slot
        self.usage = usage
        self.holder: Connection | None = holder
        self.id = b""
        self.secret = b""
        self.wake = asyncio.Event()
        self.lock = asyncio.Lock()
        self.moving = asyncio.Lock()
        self.worker: asyncio.Task[None] | None = None
        self.unjudged = 0
        self.wants_exits = False
        self.exits = False
        self.parked_s = 0.0
        self.vocab_size = vocab_size
        self._prompt = prompt
        self._booked = (0, 0, 0)  # drafted, accepted, emitted that metrics have seen

    @property
    def kept_bytes(self) -> int:
        """Memory of the text while the stream waits, about."""
        tokens = self._prompt + self.session.counts.emitted
        return _STREAM_BYTES + _TOKEN_BYTES * tokens

    def book(self) -> None:
        """Add what the stream did since the last time to its target's totals."""
        counts = self.session.counts
        now = (counts.drafted, counts.accepted, counts.emitted)
        drafted, accepted, emitted = (a - b for a, b in zip(now, self._booked))
        self.served.drafted += drafted
        self.served.accepted += accepted
        self.served.emitted += emitted
        self._booked = now

    async def stop(self) -> None:
        """End the worker, unless it is the worker who asks."""
        worker, self.worker = self.worker, None
        if worker is not None and worker is not asyncio.current_task():
            worker.cancel()
            await asyncio.wait([worker])
        self.book()

    def release(self) -> None:
        """Give the slot back."""
        if self.slot is not None:
            self.served.scheduler.release(self.slot)
            self.slot = None


class KeptStreams:
    """Every stream that can be resumed: those that run, and those that wait.

    Args:
        limits: How many may wait, how large, for how long.

    Attributes:
        resumed: Resumes granted.
        refused: Resumes refused.
        expired: Streams whose device did not come back in time.
        evicted: Streams that made room for others.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[bytes, Stream] = {}
        self._parked: dict[bytes, Stream] = {}  # oldest first
        self._bytes = 0
        self.resumed = 0
        self.refused = 0
        self.expired = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def kept_bytes(self) -> int:
        """Memory of the texts that wait, about."""
        return self._bytes

    @property
    def kept_slots(self) -> int:
        """KV slots that are kept for devices to come back."""
        return sum(stream.slot is not None for stream in self._parked.values())

    def knows_any(self) -> bool:
        """Return whether any stream, running or waiting, can be resumed."""
        return bool(self._known)

    def enter(self, stream: Stream) -> None:
        """Give ``stream`` an id and a secret, so that it can be resumed."""
        stream.id = secrets.token_bytes(8)
        stream.secret = secrets.token_bytes(16)
        self._known[stream.id] = stream

    def forget(self, stream: Stream) -> None:
        """End ``stream`` for good."""
        self._known.pop(stream.id, None)
        self._take(stream)
        stream.release()

    def park(self, stream: Stream, now: float) -> None:
        """Keep ``stream``, whose link is lost, until its device comes back.

        Args:
            stream: Nobody drives it any more.
            now: Monotonic seconds.
        """
        if stream.id not in self._known:
            self.forget(stream)
            return
        stream.holder = None
        stream.parked_s = now
        if stream.session.done:
            stream.release()
        stream.session.detach(cached=stream.slot is not None)
        self._parked[stream.id] = stream
        self._bytes += stream.kept_bytes
        limits = self._limits
        while len(self._parked) > limits.parked or self._bytes > limits.parked_bytes:
            self.evicted += 1
            self.forget(self._next_victim())

    def _next_victim(self) -> Stream:
        owners = Counter(id(stream.usage) for stream in self._parked.values())
        greediest = max(owners.values())
        theirs = [s for s in self._parked.values() if owners[id(s.usage)] == greediest]
        # Most devices have long seen the end of a stream that has ended.
        return next((s for s in theirs if s.session.done), theirs[0])

    async def resume(
        self,
        request: Resume,
        served: Served,
        usage: Usage,
        vocab_size: int,
        taker: Connection,
    ) -> tuple[Stream, Resumed]:
        """Hand a stream to the connection that its device has come back on.

        Args:
            request: What the device says.
            served: The target of that connection.
            usage: Of its account.
            vocab_size: Of that connection.
            taker: The connection; it holds the stream afterwards.

        Returns:
            The stream, and the answer to send.

        Raises:
            RefusedError: There is no such stream, no slot, or no share left.
        """
        stream = self._find(request, served, usage, vocab_size)
        async with stream.moving:
            if stream.id not in self._known:
                self.refused += 1
                raise UnknownStreamError("the stream to resume has just ended")
            await self._detach(stream, taker)
            session = stream.session
            if not session.done:
                try:
                    usage.check_share()
                    if stream.slot is None:
                        stream.slot = self._slot(served)
                except RefusedError:
                    if stream.holder is not None:
                        self.park(stream, asyncio.get_running_loop().time())
                    raise
            try:
                answer = session.resume(request.position)
            except ProtocolError as error:
                # It may hold a correction that it drew itself: let it open anew.
                self.forget(stream)
                self.refused += 1
                raise UnknownStreamError(str(error), hint=_ANEW) from None
            self._take(stream)
            stream.holder = taker
            taker.hold(stream)
        self.resumed += 1
        return stream, answer

    @staticmethod
    async def _detach(stream: Stream, taker: Connection) -> None:
        if stream.holder is not None and stream.holder is not taker:
            stream.holder.lose(stream)  # half open: its device is here
        await stream.stop()
        if stream.session.done:
            stream.release()
        stream.unjudged = 0
        stream.session.detach(cached=stream.slot is not None)

    def _take(self, stream: Stream) -> None:
        if self._parked.pop(stream.id, None) is not None:
            self._bytes -= stream.kept_bytes

    def _find(
        self, request: Resume, served: Served, usage: Usage, vocab_size: int
    ) -> Stream:
        """Return the stream; what of this is wrong is nobody's business."""
        stream = self._known.get(request.session)
        secret = _NO_SECRET if stream is None else stream.secret
        if (
            not hmac.compare_digest(secret, request.secret)
            or stream is None
            or stream.served is not served
            or stream.usage is not usage
            or stream.vocab_size != vocab_size
        ):
            self.refused += 1
            raise UnknownStreamError(
                "there is no such stream to resume: it is unknown here, its time is up, "
                "or it belongs to another target",
                hint=_ANEW,
            )
        return stream

    def allocate(self, served: Served, usage: Usage) -> int:
        """Take a KV slot for a new stream; lost devices' slots go when none is free.

        Raises:
            LimitError: The account has as many streams as it may.
            RefusedError: Every slot is in use.
        """
        usage.check_share()
        return self._slot(served)

    def _slot(self, served: Served) -> int:
        while True:
            try:
                return served.backend.allocate()
            except RefusedError:
                if not self._make_room(served):
                    raise

    def _make_room(self, served: Served) -> bool:
        """Free the slot of the stream that has waited longest for its device."""
        for stream in self._parked.values():
            if stream.served is served and stream.slot is not None:
                stream.release()
                stream.session.detach(cached=False)
                return True
        return False

    def sweep(self, now: float) -> None:
        """Forget streams that have waited too long, or whose target has left.

        Args:
            now: Monotonic seconds.
        """
        for stream in list(self._parked.values()):
            late = now - stream.parked_s > self._limits.resume_s
            if late or stream.served.retired:
                self.expired += 1
                self.forget(stream)
