"""``draftwire protocol decode|log``: what a frame on the wire says, what was logged."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from draftwire.cli import _common, _protocol_log
from draftwire.errors import ConfigError, ProtocolError
from draftwire.io import align
from draftwire.rules import whole

__all__ = ["register"]

SCHEMA = "draftwire.frame/1"
_WIDEST = 24  # hex digits of one line


def register(subparsers: Any) -> None:
    """Add the command."""
    actions = _common.add_actions(
        subparsers,
        "protocol",
        help="explain what crosses the wire",
        description="Tools for draftwire.v2, the protocol of transport/PROTOCOL.md.",
    )
    decode = actions.add_parser(
        "decode",
        help="explain a frame field by field",
        description="Explain one frame (the payload of one binary websocket message) "
        "field by field; exit code 4 when it is not valid.",
    )
    decode.add_argument(
        "hex",
        nargs="+",
        metavar="HEX",
        help="the frame in hex; spaces, ':' and '|' are skipped, - reads stdin",
    )
    decode.add_argument(
        "--vocab",
        type=_common.ruled(whole(2, 1 << 24)),
        metavar="N",
        help="vocab_size of the connection's welcome, to read token ids",
    )
    _common.add_common_flags(decode)
    decode.set_defaults(run=_decode)
    _protocol_log.register(actions)


def _decode(args: argparse.Namespace) -> int:
    from draftwire.transport.explain import explain

    text = sys.stdin.read() if args.hex == ["-"] else "".join(args.hex)
    for skipped in " :|\t\r\n":
        text = text.replace(skipped, "")
    text = text[2:] if text.startswith("0x") else text
    try:
        frame = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(
            "HEX is not an even number of hex digits", hint="such as: 0503c801030110c00000"
        ) from None
    found = explain(frame, args.vocab)
    document = {
        "schema": SCHEMA,
        "kind": found.kind,
        "bytes": len(frame),
        "pieces": [
            {"offset": p.offset, "hex": p.data.hex(), "name": p.name, "meaning": p.meaning}
            for p in found.pieces
        ],
        "error": found.error or None,
    }
    if _common.give_json(args, document):
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
