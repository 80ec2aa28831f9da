"""The driver's network port in virtual time: connections over a modelled link.

A connection is what a websocket is: a TCP handshake, an upgrade, a greeting, frames in
order, pings, and an end that the other side hears of when the link lets it. Frames are
written by the real codec and carried by
:class:`~draftwire.bench.link.model.StreamLink`. What the link does outlives a connection:
its queue, its outages and its dice go on. A network of no length delivers at once, for a
draft that lives beside the target.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Sequence

from draftwire.errors import DraftwireError, TransportError
from draftwire.runtime.ports import WireEvents
from draftwire.transport.answers import to_exception
from draftwire.transport.codec import Codec
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Frame,
    Hello,
    Message,
    Open,
    Welcome,
)
from draftwire.transport.traffic import Meter
from draftwire.verifier.dialogue import Dialogue

if TYPE_CHECKING:
    from draftwire.bench.sim.run import Device

_UP, _DOWN = 0, 1
# What a connection says before its first frame: SYN, SYN-ACK, the upgrade (with a bearer
# token), its answer. Bytes of the TCP stream, as `WebsocketNetwork` and our verifier.
_SET_UP = ((_UP, 0), (_DOWN, 0), (_UP, 270), (_DOWN, 200))
_PING = (10, 6)  # a frame with a mask and four bytes of content, and its answer


class VirtualWire:
    """One connection.

    Attributes:
        meter: What arrived, and what was sent; headers, retransmissions and
            acknowledgements counted.
    """

    def __init__(
        self, device: Device, hello: Hello, events: WireEvents, timeout_s: float
    ) -> None:
        self._device, self._clock = device, device.clock
        self._scheme, self._decode = device.plan.scheme, device.plan.decode
        self._dense = int(device.plan.profile["text.vocabulary"])
        self._codec = self._far = Codec(device.plan.ids)
        self._hello, self._events = hello, events
        self._links = device.ways.connection() if device.near else None
        self._dialogue: Dialogue | None = None
        self._greeted = self._over = False
        self._drafts = 0  # of the block that was sent last
        self._timer = self._clock.call_at(
            self._clock.now() + timeout_s, self._late, timeout_s
        )
        self.meter = Meter()
        self._clock.post(self._set_up, 0)

    def send(self, message: Message, stream: int = 0) -> int:
        """Put ``message`` of a stream on the way; return its bytes on the wire."""
        if self._over:
            return 0
        if isinstance(message, Open) and not self._scheme.bonus:
            message = replace(message, bonus=False)
        data = self._codec.encode(message, stream)
        size = len(data)
        if isinstance(message, Block) and message.tokens and not message.instead:
            self._drafts = len(message.tokens)
            size += self._scheme.evidence_bytes(self._drafts, self._dense)
        whose = None if isinstance(message, Hello) else stream
        frame = self._far.decode(data) if self._decode else Frame(whose, message)
        if self._links is None:
            self.meter.sent(whose, size, size)
            self._clock.post(self._arrive, frame)
            return size
        found = self._links[_UP].send(self._clock.now(), size)
        self.meter.sent(whose, size, found.wire_bytes, found.ack_bytes)
        self._clock.call_at(found.arrival_s, self._arrive, frame)
        return found.wire_bytes

    def ping(self) -> int:
        """Ask for a sign of life; the verifier's end answers whatever it is at."""
        return self._raw(
            _UP, _PING[_UP], self._raw, _DOWN, _PING[_DOWN], self._events.alive
        )

    def close(self) -> None:
        """End the connection at once; the verifier hears of it when a segment comes."""
        if not self._over:
            self._over = True
            self._timer.cancel()
            if self._dialogue is not None:
                self._segment(_UP, 0, self._dialogue.lost)

    # ---- the device's side

    def _set_up(self, step: int) -> None:
        if step == len(_SET_UP):
            self._dialogue = self._device.attach(_WayBack(self))
            self.send(self._hello)
        else:
            way, size = _SET_UP[step]
            self._raw(way, size, self._set_up, step + 1)

    def _raw(self, way: int, size: int, then: Callable[..., Any], *args: object) -> int:
        """Carry bytes of the TCP stream, and do what follows if anybody cares still."""
        if self._over:
            return 0
        return self._segment(way, size, self._unless_over, then, args)

    def _segment(self, way: int, size: int, then: Callable[..., Any], *args: object) -> int:
        if self._links is None:
            self._clock.post(then, *args)
            return size
        found = self._links[way].send_raw(self._clock.now(), size)
        up, down = found.wire_bytes, found.ack_bytes
        if way == _DOWN:
            up, down = down, up
        self.meter.total.up_wire += up
        self.meter.total.down_wire += down
        self._clock.call_at(found.arrival_s, then, *args)
        return found.wire_bytes

    def _unless_over(self, then: Callable[..., Any], args: Sequence[object]) -> None:
        if not self._over:
            then(*args)

    def _late(self, timeout_s: float) -> None:
        self._end(TransportError(f"no answer from the verifier within {timeout_s:g} s"))

    def _end(self, error: DraftwireError) -> None:
        if not self._over:
            self.close()
            self._events.down(error)

    def _deliver(self, frame: Frame, up: int, down: int) -> None:
        if self._over:
            return
        self.meter.came(frame.stream, frame.size, down, up)
        message = frame.message
        if self._greeted:
            self._events.message(frame)
        elif isinstance(message, Welcome):
            self._greeted = True
            self._timer.cancel()
            self._events.up(message)
        else:
            assert isinstance(message, Error)
            self._end(to_exception(message))

    # ---- the verifier's side

    def _arrive(self, frame: Frame) -> None:
        if not self._over and self._dialogue is not None:
            self._dialogue.take(frame.message, frame.stream)

    def answer(self, message: Message, stream: int = 0) -> None:
        """Put a message of the verifier on the way."""
        if self._over:
            return
        data = self._far.encode(message, stream)
        size = len(data)
        if isinstance(message, Commit) and message.accepted < self._drafts:
            # Of schemes that wait for each verdict.
            size += self._scheme.rejection_bytes(self._dense)
        whose: int | None = stream
        if isinstance(message, Welcome) or getattr(message, "fatal", False):
            whose = None
        frame = Frame(whose, message, size)
        if self._decode:
            frame = self._codec.decode(data)
        if isinstance(message, Welcome):  # the device says nothing before it has that
            self._codec, self._far = Codec.of(message), Codec.of(message)
        if self._links is None:
            self._clock.post(self._deliver, frame, 0, size)
            return
        found = self._links[_DOWN].send(self._clock.now(), size)
        up, down = found.ack_bytes, found.wire_bytes
        self._clock.call_at(found.arrival_s, self._deliver, frame, up, down)

    def hang_up(self) -> None:
        """The verifier ends the connection."""
        gone = TransportError("the verifier closed the connection")
        self._raw(_DOWN, 0, self._end, gone)


class _WayBack:
    """The way to the device, as the verifier's end of a connection knows it."""

    def __init__(self, wire: VirtualWire) -> None:
        self.send = wire.answer
        self.abort = wire.hang_up

    def close(self, error: Error | None) -> None:
        if error is not None:
            self.send(error)
        self.abort()
