"""Links that are not there: one model of them, and emulators that follow it.

``LinkSpec`` says what a link is like, ``LinkModel`` and ``StreamLink`` when things
arrive over it, in virtual time; ``emulate`` (in ``draftwire.bench.link.emulate``) puts
one between two real programs.
"""

from __future__ import annotations

from draftwire.bench.link.model import Delivery, LinkModel, StreamDelivery, StreamLink
from draftwire.bench.link.spec import Bursts, Jitter, LinkSpec, Outages
from draftwire.bench.link.traces import Trace, read_trace

__all__ = [
    "Bursts",
    "Delivery",
    "Jitter",
    "LinkModel",
    "LinkSpec",
    "Outages",
    "StreamDelivery",
    "StreamLink",
    "Trace",
    "read_trace",
]
