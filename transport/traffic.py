"""Bytes of a connection: what is counted, and what a frame costs beside its payload."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MASK", "Traffic", "wire_size"]

# TCP/IPv4 with timestamps in one segment, a TLS 1.3 record, the mask of a client's frame.
# `WireCapture` counts the real ones; a test holds these to it.
_TCP_IP = 52
_TLS = 22
MASK = 4


@dataclass
class Traffic:
    """Bytes and frames of one connection, greetings included.

    Attributes:
        up_payload: Message bytes sent.
        down_payload: Message bytes received.
        up_wire: The same with websocket, TLS and TCP/IP headers, computed.
        down_wire: Likewise.
        up_frames: Messages sent.
        down_frames: Messages received.
    """

    up_payload: int = 0
    down_payload: int = 0
    up_wire: int = 0
    down_wire: int = 0
    up_frames: int = 0
    down_frames: int = 0

    def minus(self, before: Traffic) -> Traffic:
        """Return what was added since ``before``."""
        return Traffic(
            *(getattr(self, f) - getattr(before, f) for f in self.__dataclass_fields__)
        )

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum of both."""
        return Traffic(
            *(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__)
        )


def wire_size(payload: int, *, secure: bool) -> int:
    """Return the bytes on the wire of a frame with so many bytes of payload, computed.

    Args:
        payload: Bytes of the message.
        secure: It goes through TLS.
    """
    header = 2 if payload < 126 else 4 if payload < 65536 else 10
    return payload + header + (_TLS if secure else 0) + _TCP_IP
