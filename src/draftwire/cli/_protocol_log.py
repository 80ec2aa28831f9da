"""``draftwire protocol log FILE``: wire events, a line each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from draftwire.cli import _common
from draftwire.rules import whole

if TYPE_CHECKING:
    from draftwire.transport.wirelog import Event

__all__ = ["register"]

SCHEMA = "draftwire.wirelog/1"
_NUMBER = _common.ruled(whole(1, 10**9))
_SHOWN = 12  # ids of a list
_ARROWS = {"up": "->", "down": "<-", None: "  "}


def register(actions: Any) -> None:
    """Add the action."""
    log = actions.add_parser(
        "log",
        help="show what --wire-log has written",
        description="Show the events of a file that --wire-log has written: seconds, run "
        "and connection, -> from the device, <- from the verifier, the kind and its "
        "stream, bytes of payload, fields. --json gives them as a list.",
    )
    log.add_argument("file", type=Path, metavar="FILE", help="a wire log")
    log.add_argument("--connection", type=_NUMBER, metavar="N", help="only this one")
    log.add_argument("--kind", metavar="WORD", help="only messages of this kind")
    _common.add_common_flags(log)
    log.set_defaults(run=_log)


def _log(args: argparse.Namespace) -> int:
    if args.json is not None:
        events = [event._asdict() for event in _chosen(args)]
        if not _common.give_json(args, {"schema": SCHEMA, "events": events}):
            return 0
    for event in _chosen(args):
        print(_line(event))
    return 0


def _chosen(args: argparse.Namespace) -> Iterator[Event]:
    from draftwire.transport.wirelog import read_wire_log

    for event in read_wire_log(args.file):
        if args.connection in (None, event.connection) and args.kind in (None, event.kind):
            yield event


def _line(event: Event) -> str:
    from draftwire.transport.answers import clean

    stream = "" if event.stream is None else f"#{event.stream}"
    size = "" if event.bytes is None else f"{event.bytes} B"
    what = " ".join(f"{name}={_value(value)}" for name, value in event.fields.items())
    who = f"{event.t_s:12.6f} {event.run}.{event.connection} {_ARROWS[event.direction]}"
    kind = clean(event.kind + stream, 40)
    return f"{who} {kind:14} {size:>7} {clean(what, 400)}".rstrip()


def _value(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        shown = ",".join(map(str, value[:_SHOWN]))
        return f"[{shown},... {len(value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
