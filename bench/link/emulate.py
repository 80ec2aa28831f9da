"""``emulate``: a link between programs on this machine, by whatever method works here.

::

    with emulate("80ms/2mbit/loss=1%", port) as link:
        draftwire.connect(f"ws://127.0.0.1:{link.url_port}", ...)
"""

from __future__ import annotations

from typing import Any

from draftwire.bench.child import Child
from draftwire.bench.link.model import LinkModel
from draftwire.bench.link.netem import why_no_netem, why_not_netem
from draftwire.bench.link.spec import DIRECTIONS, LinkSpec
from draftwire.errors import BoardError, ConfigError

METHODS = ("auto", "proxy", "netem")
_START_S = 60.0
_ANSWER_S = 15.0


def choose_method(spec: LinkSpec, method: str = "auto") -> tuple[str, list[str]]:
    """Return the method for a link on this machine, and why not the better one.

    netem as root, where the kernel has it and the link asks for nothing beyond it; else
    the proxy.

    Raises:
        ConfigError: The method is unknown or cannot do this link.
        BoardError: The method asked for is not to be had here.
    """
    if method not in METHODS:
        raise ConfigError(f"no method {method!r}", hint=f"one of {', '.join(METHODS)}")
    if method == "netem" and why_not_netem(spec):
        raise ConfigError(why_not_netem(spec), hint="use --method proxy")
    notes: list[str] = []
    if method != "proxy":
        why = why_not_netem(spec) or why_no_netem()
        if not why:
            return "netem", notes
        if method == "netem":
            raise BoardError(f"no link over netem here: {why}", hint="use --method proxy")
        notes.append(f"not netem: {why}")
    if spec.loss or spec.bursts is not None:
        notes.append("a proxy loses no packets: loss is imitated as the stall it causes")
    return "proxy", notes


class Emulator(Child):
    """A link, or its text form, in front of a server; a context manager.

    The link is a process of its own, so that it keeps time while this one works, and it
    ends with this one however that ends: connections over it are cut, devices and
    namespaces go. With ``calibrate`` what the detour costs is measured first and taken off
    the delay.

    Attributes:
        spec: What it is like.
        method: ``"proxy"`` or ``"netem"``.
        url_port: Port of 127.0.0.1 to connect to instead of the server's own.
        detour_us: Round trip that the emulator itself costs, measured at the start and
            taken off the delay; None when it was not measured.
        scheduling: ``"fifo"``, ``"normal"`` or ``"kernel"``.
        notes: Why not a better method, and what this one cannot do.

    Raises:
        ConfigError: The link, the method or a trace is wrong.
        BoardError: The method is not to be had here, or the port is taken.
    """

    def __init__(
        self,
        spec: LinkSpec | str,
        target_port: int,
        method: str = "auto",
        *,
        target_host: str = "127.0.0.1",
        listen_port: int = 0,
        calibrate: bool = True,
    ) -> None:
        self.spec = LinkSpec.parse(spec) if isinstance(spec, str) else spec
        self.method, self.notes = choose_method(self.spec, method)
        for way in DIRECTIONS:  # read the traces where an error has somebody to hear it
            LinkModel(self.spec, way)
        super().__init__("draftwire.bench.link.worker", "the link", BoardError)
        wanted = {
            "spec": self.spec.to_dict(),
            "target": (target_host, target_port),
            "listen": listen_port,
            "method": self.method,
            "calibrate": calibrate,
        }
        first = self.begin(wanted, _START_S, ConfigError)
        self.url_port = int(first["port"])
        self.detour_us: float | None = first["detour_us"]
        self.scheduling = str(first["scheduling"])

    def stats(self) -> dict[str, Any]:
        """Return what has passed and was lost in each direction, and the lateness.

        Raises:
            BoardError: The link is gone.
        """
        return self.ask("stats", _ANSWER_S)


emulate = Emulator  # as it is read: `with emulate(...) as link`
