"""Bytes of a connection: what is counted, and what a frame costs beside its payload."""

from __future__ import annotations

from dataclasses import astuple, dataclass

# TCP/IPv4 with timestamps in one segment, a TLS 1.3 record, the mask of a client's frame.
# `WireCapture` counts the real ones; a test holds these to it.
_TCP_IP = 52
_TLS = 22
MASK = 4


@dataclass
class Traffic:
    """Bytes and frames of one connection, greetings included."""

    up_payload: int = 0  # message bytes sent
    down_payload: int = 0  # message bytes received
    up_wire: int = 0  # the same with websocket, TLS and TCP/IP headers, computed
    down_wire: int = 0  # likewise
    up_frames: int = 0  # messages sent
    down_frames: int = 0  # messages received

    def minus(self, before: Traffic) -> Traffic:
        """Return what was added since ``before``."""
        return Traffic(*(a - b for a, b in zip(astuple(self), astuple(before))))

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum of both."""
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other))))


class Meter:
    """Counts the bytes of a link, and whose they are.

    Attributes:
        total: All of them.
        framed: Those of frames that belong to streams.
        shares: The same by stream number, until they are taken.
    """

    def __init__(self) -> None:
        self.total = Traffic()
        self.framed = Traffic()
        self.shares: dict[int, Traffic] = {}

    def sent(self, stream: int | None, payload: int, wire: int, acks: int = 0) -> None:
        """Count a frame that was sent: bytes of its message, with headers, of bare acks."""
        for traffic in self._of(stream):
            traffic.up_frames += 1
            traffic.up_payload += payload
            traffic.up_wire += wire
            traffic.down_wire += acks

    def came(self, stream: int | None, payload: int, wire: int, acks: int = 0) -> None:
        """Count a frame that was received; the arguments are those of :meth:`sent`."""
        for traffic in self._of(stream):
            traffic.down_frames += 1
            traffic.down_payload += payload
            traffic.down_wire += wire
            traffic.up_wire += acks

    def _of(self, stream: int | None) -> tuple[Traffic, ...]:
        if stream is None:
            return (self.total,)
        return self.total, self.framed, self.shares.setdefault(stream, Traffic())

    def take(self, stream: int) -> Traffic:
        """Return the share of a stream, and count it no more."""
        return self.shares.pop(stream, None) or Traffic()

    def add(self, other: Meter) -> None:
        """Take over what ``other`` has counted, and what it counts no more."""
        self.total = self.total.plus(other.total)
        self.framed = self.framed.plus(other.framed)
        for stream, share in other.shares.items():
            self.shares[stream] = self.shares.get(stream, Traffic()).plus(share)


def wire_size(payload: int, *, secure: bool) -> int:
    """Return the bytes on the wire of a frame with so many of payload, computed."""
    header = 2 if payload < 126 else 4 if payload < 65536 else 10
    return payload + header + (_TLS if secure else 0) + _TCP_IP
