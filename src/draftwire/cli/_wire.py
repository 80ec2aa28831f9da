"""``draftwire report`` of the wire: what a frame on the wire says, what was logged."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from draftwire.cli._common import give_json
from draftwire.errors import ConfigError, ProtocolError
from draftwire.io import align

if TYPE_CHECKING:
    from draftwire.transport.wirelog import Event

__all__ = ["decode", "is_log", "log"]

_WIDEST = 24  # hex digits of one line
_SHOWN = 12  # ids of a list
_ARROWS = {"up": "->", "down": "<-", None: "  "}


def is_log(name: str) -> bool:
    """Return whether a file begins as a wire log does."""
    from draftwire.transport.wirelog import SCHEMA

    try:
        with open(name, "rb") as file:
            first = json.loads(file.readline(1 << 16))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.get("schema") == SCHEMA


def decode(args: argparse.Namespace) -> int:
    """Explain a frame."""
    from draftwire.transport.explain import explain

    if args.vocab is not None and not 2 <= args.vocab <= 1 << 24:
        raise ConfigError(f"--vocab is {args.vocab}", hint="2 to 16777216")
    text = sys.stdin.read() if args.frame == ["-"] else "".join(args.frame)
    for skipped in " :|\t\r\n":
        text = text.replace(skipped, "")
    text = text[2:] if text.startswith("0x") else text
    try:
        frame = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(
            "HEX is not an even number of hex digits",
            hint="such as: 0503c801030110c00000",
        ) from None
    found = explain(frame, args.vocab)
    document = {
        "schema": "draftwire.frame/1",
        "kind": found.kind,
        "bytes": len(frame),
        "pieces": [
            {"offset": p.offset, "hex": p.data.hex(), "name": p.name, "meaning": p.meaning}
            for p in found.pieces
        ],
        "error": found.error or None,
    }
    if give_json(args, document):
        rows = [(str(p.offset), _short(p.data), p.name, p.meaning) for p in found.pieces]
        print(align([("byte", "hex", "field", "meaning"), *rows], left=(1, 2, 3)))
        if not found.error:
            print(f"a valid {found.kind} of {len(frame)} bytes")
    if found.error:
        hint = "give --vocab N, the vocab_size of the welcome"
        raise ProtocolError(
            f"not a valid frame: {found.error}",
            hint=hint if found.error.startswith("token ids before") else "",
        )
    return 0


def _short(data: bytes) -> str:
    text = data.hex()
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def log(args: argparse.Namespace, name: str) -> int:
    """Show a log."""
    file = Path(name)
    if args.json is not None:
        events = [event._asdict() for event in _chosen(args, file)]
        document = {"schema": "draftwire.wirelog/1", "events": events}
        if not give_json(args, document):
            return 0
    for event in _chosen(args, file):
        print(_line(event))
    return 0


def _chosen(args: argparse.Namespace, file: Path) -> Iterator[Event]:
    from draftwire.transport.wirelog import read_wire_log

    for event in read_wire_log(file):
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
