"""What really crosses the network: TCP/IP bytes of a connection, as the kernel sees them.

Linux and root (CAP_NET_RAW) only. The run report's ``up_wire`` and ``down_wire`` are
computed from header sizes; with a capture they are counted, handshakes, acknowledgements
and retransmissions included. Link-layer headers are not.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Callable, Tuple

from draftwire.errors import ConfigError

_OUTGOING = 4  # linux/if_packet.h, PACKET_OUTGOING
_TCP = 6
_ALL = 0x0003  # ETH_P_ALL; IP alone would miss what this machine sends
Pair = Tuple[int, int]  # (local port, remote port)


def tcp_segment(packet: bytes) -> tuple[int, int, int] | None:
    """Return source port, destination port and bytes of an IP packet; None if no TCP."""
    if len(packet) < 20:
        return None
    version = packet[0] >> 4
    if version == 4 and packet[9] == _TCP:
        start, size = (packet[0] & 0x0F) * 4, struct.unpack_from(">H", packet, 2)[0]
    elif version == 6 and len(packet) >= 40 and packet[6] == _TCP:
        start, size = 40, 40 + struct.unpack_from(">H", packet, 4)[0]
    else:
        return None
    if len(packet) < start + 4:
        return None
    source, destination = struct.unpack_from(">HH", packet, start)
    # Offloaded segments larger than the length field say 0 there.
    return source, destination, size or len(packet)


class WireCapture:
    """Counts the bytes of connections while it is open.

    Args:
        pairs: Returns the ``(local port, remote port)`` of the connection at hand; asked
            again for each packet, because a lost link comes back from another port.

    Attributes:
        up: Bytes sent so far, IP headers included.
        down: Bytes received so far.

    Raises:
        ConfigError: The kernel does not let us.
    """

    def __init__(self, pairs: Callable[[], Pair]) -> None:
        self._pairs = pairs
        self.up = self.down = 0
        self._stop = threading.Event()
        try:
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL)
            )
        except (AttributeError, PermissionError) as exc:
            raise ConfigError(
                "counting bytes on the wire needs Linux and CAP_NET_RAW",
                hint="run it as root, or leave --capture out: sizes are then computed",
            ) from exc
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(
            target=self._run, name="draftwire-capture", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                packet, address = self._socket.recvfrom(65536)
            except socket.timeout:
                continue
            except OSError:
                return
            found = tcp_segment(packet)
            if found is None:
                continue
            source, destination, size = found
            local, remote = self._pairs()
            outgoing = address[2] == _OUTGOING
            # On loopback every packet passes twice; what went out is counted.
            if (source, destination) == (local, remote) and outgoing:
                self.up += size
            elif (source, destination) == (remote, local) and (
                outgoing or address[0] != "lo"
            ):
                self.down += size

    def close(self) -> None:
        """Stop counting."""
        self._stop.set()
        self._thread.join(timeout=2)
        with contextlib.suppress(OSError):
            self._socket.close()
