"""Private network namespaces without names: they go when the last process does.

Nothing here outlives its process, however it ends: namespaces are held by file
descriptors, TUN devices by theirs.  Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from typing import Iterator

from draftwire.errors import BoardError

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_IFF_UP = 0x1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace, new and empty; the calling thread stays where it is.

    Raises:
        BoardError: The kernel does not allow it.
    """

    def __init__(self) -> None:
        home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc().unshare(_CLONE_NEWNET):
                raise BoardError(
                    f"no network namespace: {os.strerror(ctypes.get_errno())}",
                    hint="run as root, or use --method proxy",
                )
            self.fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            _forget_metrics()
            _enter(home)
        finally:
            os.close(home)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put the calling thread into the namespace for the block."""
        home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self.fd)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    def socket(self) -> socket.socket:
        """Return a TCP socket that lives in the namespace."""
        with self.inside():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def _forget_metrics() -> None:
    """Keep one connection's round trips out of the next one's timers.

    The connection that times the detour, with no delay at all, would otherwise teach
    the kernel a round trip of microseconds, and those after it would probe at once.
    """
    with contextlib.suppress(OSError):  # an old kernel: all namespaces share the switch
        with open("/proc/sys/net/ipv4/tcp_no_metrics_save", "w", encoding="ascii") as one:
            one.write("1\n")


def _enter(fd: int) -> None:
    if _libc().setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise BoardError(f"cannot enter a network namespace: {os.strerror(number)}")


def open_tun(name: str) -> int:
    """Return a new TUN device in the calling thread's namespace, as a descriptor.

    Raises:
        BoardError: There is no /dev/net/tun, or it does not open.
    """
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise BoardError(f"{_TUN} does not open: {exc.strerror}") from exc
    try:
        request = struct.pack("16sH22x", name.encode("ascii"), _IFF_TUN_NO_PI)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as exc:
        os.close(fd)
        raise BoardError(f"no TUN device {name}: {exc.strerror}") from exc
    return fd


def set_address(name: str, address: str, netmask: str = "255.255.255.252") -> None:
    """Give a device of the calling thread's namespace an address, and bring it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, netmask)):
            raw = socket.inet_aton(value)
            named = name.encode("ascii")
            packed = struct.pack("16sHH4s16x", named, socket.AF_INET, 0, raw)
            fcntl.ioctl(control, request, packed)
        blank = struct.pack("16sH22x", name.encode("ascii"), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, blank), 16)
        up = struct.pack("16sH22x", name.encode("ascii"), flags | _IFF_UP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, up)


def why_no_namespaces() -> str:
    """Return why this process cannot make a namespace, or ``""`` when it can."""
    try:
        found = Namespace()
    except (BoardError, OSError) as exc:
        return str(exc)
    os.close(found.fd)
    return ""


def why_no_tun() -> str:
    """Return why a link over TUN cannot be had here, or ``""`` when it can."""
    if not os.path.exists(_TUN):
        return f"there is no {_TUN}"
    try:
        space = Namespace()
        try:
            with space.inside():
                os.close(open_tun("dw-check"))
        finally:
            os.close(space.fd)
    except (BoardError, OSError) as exc:
        return str(exc)
    return ""
