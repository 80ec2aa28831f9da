"""Links that are not there: one model of them, and emulators that follow it.

``LinkSpec`` says what a link is like, ``LinkModel`` and ``StreamLink`` when things
arrive over it, in virtual time; ``emulate`` (in ``draftwire.bench.link.emulate``) puts
one between two real programs.
"""

from __future__ import annotations

from draftwire.bench.link.model import LinkModel, StreamLink
from draftwire.bench.link.spec import Jitter, LinkSpec, Outages
from draftwire.bench.link.traces import Trace

__all__ = ["Jitter", "LinkModel", "LinkSpec", "Outages", "StreamLink", "Trace"]
