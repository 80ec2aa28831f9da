"""``draftwire report FILE...``: run reports as a table, as JSON, as a plot; wire logs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Sequence

from draftwire.cli._common import give_json
from draftwire.cli._leaf import Leaf
from draftwire.errors import ConfigError, ProtocolError
from draftwire.io import align, parse_json

if TYPE_CHECKING:
    from draftwire.runtime.report import Summary
    from draftwire.transport.wirelog import Event

_WIDEST = 24  # hex digits of one line
_SHOWN = 12  # ids of a list
_ARROWS = {"up": "->", "down": "<-", None: "  "}


LEAF = Leaf(
    "what runs did, what crossed the wire",
    "draftwire.cli.report:run",
    """
[FILES...]            run reports, as a table; or one wire log, event by event
--plot FILE           draw acceptance and speed (needs matplotlib)
wire:
--connection N        of a log: only this one
--kind WORD           of a log: only messages of this kind
--frame HEX+          explain a frame (the payload of one binary websocket message): spaces,
                      ':' and '|' are skipped, - reads stdin
--vocab N             vocab_size of the connection's welcome, to read its token ids
--brief               of a frame: both ends had the capability 'brief'; places of blocks are
                      read as those of a stream's first
""",
    about="Show what runs did: files that --json wrote, one or many. Or the events of a "
    "file that --wire-log wrote: seconds, run and connection, -> from the device, <- from "
    "the verifier, the kind and its stream, bytes of payload, fields. Or explain a frame "
    "of draftwire.v2 (transport/PROTOCOL.md) field by field, exit code 4 when it is not "
    "valid.",
)


def run(args: argparse.Namespace) -> None:
    """Read, summarise, print."""
    if args.frame:
        return _decode(args)
    if not args.files:
        raise ConfigError("no FILE", hint="run reports, or what --wire-log wrote")
    if len(args.files) == 1 and _is_log(args.files[0]):
        return _log(args, args.files[0])
    from draftwire.runtime.report import (
        load_reports,
        positions_table,
        preemption_table,
        summarise,
        table,
    )

    reports = load_reports(args.files)
    summaries = [summarise(label, report) for label, report in reports]
    if args.plot is not None:
        _plot(summaries, args.plot)
    runs = [asdict(summary) for summary in summaries]
    if give_json(args, {"schema": "draftwire.summary/1", "runs": runs}):
        print(table(summaries))
        labels, documents = zip(*reports) if reports else ((), ())
        more = (positions_table(summaries), preemption_table(labels, documents))
        for extra in filter(None, more):
            print(f"\n{extra}")


def _plot(summaries: Sequence[Summary], target: Path) -> None:
    from draftwire.energy.reports.plots import picture

    with picture(target) as pyplot:
        _, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
        for summary in summaries:
            shares = [float("nan") if s is None else s for s in summary.by_position or ()]
            places = range(1, len(shares) + 1)
            left.plot(places, shares, marker="o", label=summary.label)
        left.xaxis.get_major_locator().set_params(integer=True)
        left.set(xlabel="position in the block", ylabel="share accepted", ylim=(0, 1.02))
        if any(summary.by_position for summary in summaries):
            left.legend(fontsize="small")
        measured = [s for s in summaries if s.tokens_per_s is not None]
        right.barh([s.label for s in measured], [s.tokens_per_s or 0.0 for s in measured])
        right.set(xlabel="tokens/s")
        right.invert_yaxis()  # as the legend and the table have them


# ---- the wire


def _is_log(name: str) -> bool:
    """Return whether a file begins as a wire log does."""
    from draftwire.transport.wirelog import SCHEMA

    try:
        with open(name, "rb") as file:
            first = parse_json(file.readline(1 << 16))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.get("schema") == SCHEMA


def _decode(args: argparse.Namespace) -> None:
    """Explain a frame."""
    from draftwire.transport.codec import explain

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
    found = explain(frame, args.vocab, brief=args.brief)
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


def _short(data: bytes) -> str:
    text = data.hex()
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _log(args: argparse.Namespace, name: str) -> None:
    """Show a log."""
    file = Path(name)
    if args.json is not None:
        events = [event._asdict() for event in _chosen(args, file)]
        document = {"schema": "draftwire.wirelog/1", "events": events}
        if not give_json(args, document):
            return
    for event in _chosen(args, file):
        print(_line(event))


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
