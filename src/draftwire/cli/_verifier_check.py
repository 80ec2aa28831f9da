"""``draftwire verifier check URL``: does a verifier do what the specification says?"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from draftwire.cli import _common
from draftwire.errors import TransportError
from draftwire.rules import number

if TYPE_CHECKING:
    import ssl
    from urllib.request import Request

    from draftwire.verifier.kit.peer import Kit
    from draftwire.verifier.kit.rows import Result

__all__ = ["register", "say_row", "show_rows"]

HEALTH_SCHEMA = "draftwire.verifier/1"
SCHEMA = "draftwire.conformance/2"
HEALTH_S = 10.0


def register(actions: Any) -> None:
    """Add the command."""
    parser = actions.add_parser(
        "check",
        help="run a verifier through the specification",
        description="Run any verifier through transport/PROTOCOL.md, from outside, and "
        "say which rows conform, which fail and which were not tested. Exit code 4 when "
        "one fails. `--target kit` checks against exact texts; see docs/conformance.md.",
    )
    add = parser.add_argument
    add("url", help="ws://HOST:PORT or wss://HOST:PORT")
    add("--health", action="store_true", help="only ask for its health and its targets")
    add(
        "--draft",
        type=Path,
        metavar="DIR",
        help="a draft package that fits a target there (default: the reference draft)",
    )
    add(
        "--target",
        default="",
        metavar="NAME",
        help="check this one (default: its own); kit: the kit's, without a draft",
    )
    add("--quick", action="store_true", help="texts of 120 tokens, in seconds")
    add("--exhaust", action="store_true", help="also take every slot, for error 'busy'")
    seconds = _common.ruled(number(0, 1e6, above=True))
    add("--seconds", type=seconds, default=60.0, metavar="S", help="about (60)")
    add("--patience", type=seconds, default=10.0, metavar="S", help="an answer (10)")
    _common.add_settings(parser, ("token_file",))
    add("--ca", type=Path, metavar="PEM", help="authority to trust")
    add("--insecure", action="store_true", help="allow plain ws:// off loopback")
    _common.add_common_flags(parser)
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from urllib.request import Request

    from draftwire.transport.client import tls_context
    from draftwire.transport.dial import check_url, health_url, is_loopback

    # Its health is no secret: only what a token would follow needs TLS.
    uri = check_url(args.url, insecure=args.insecure or args.health)
    tls = tls_context(ca=args.ca, cert=None, key=None) if uri.secure else None
    if args.health:
        token_file = _common.read_settings(args)["token_file"].value
        headers = {}
        if token_file is not None and (
            uri.secure or args.insecure or is_loopback(uri.host)
        ):
            headers["Authorization"] = f"Bearer {_common.read_token(token_file)}"
        request = Request(health_url(args.url), headers=headers)
        return _health(args, request, uri.host, tls)
    return _conformance(args, tls)


def _health(
    args: argparse.Namespace, request: Request, host: str, tls: ssl.SSLContext | None
) -> int:
    import json
    import urllib.error

    from draftwire.transport.answers import clean
    from draftwire.transport.dial import web

    try:
        with web(host, tls).open(request, timeout=HEALTH_S) as answer:
            body = answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        body = error.read(1 << 20)  # 503 while it drains: the body says so
    except (OSError, ValueError) as error:
        raise TransportError(
            f"no verifier answers at {args.url}: {getattr(error, 'reason', error)}",
            hint="check the address, and that `draftwire verifier serve` runs there",
        ) from error
    try:
        health = json.loads(body)
        line = str(health["status"])
        if "targets" in health:  # who shows no token is not told
            targets = [f"{t['name']} {t['version']}" for t in health["targets"]]
            line += f": {', '.join(targets)}; {health['sessions']} devices"
    except (ValueError, KeyError, TypeError) as error:
        raise TransportError(
            f"what answers at {args.url} is no draftwire verifier"
        ) from error
    if _common.give_json(args, {"schema": HEALTH_SCHEMA, **health}):
        print(clean(line, 2000))
    return 0 if health["status"] == "ok" else TransportError.exit_code


def _conformance(args: argparse.Namespace, tls: ssl.SSLContext | None) -> int:
    import asyncio

    from draftwire.verifier.kit.checks import CHECKS, prepare
    from draftwire.verifier.kit.rows import run_rows

    kit = _kit(args, tls)
    seconds = 10.0 if args.quick else args.seconds

    async def run() -> list[Result]:
        await prepare(kit, seconds=seconds)
        return await run_rows(kit, CHECKS, say_row(args), seconds=max(120.0, 2 * seconds))

    results = asyncio.run(run())
    return show_rows(args, args.url, results)


def say_row(args: argparse.Namespace) -> Callable[[Result], None]:
    """Return what tells of a row on stderr, where somebody looks."""
    import sys

    def told(result: Result) -> None:
        if sys.stderr.isatty() and not args.quiet:
            print(f"\r\x1b[K{result.section} {result.name}", end="", file=sys.stderr)

    return told


def show_rows(args: argparse.Namespace, whom: str, results: list[Result]) -> int:
    """Print the rows of a conformance kit and what they mean; return the exit code."""
    import sys

    from draftwire.transport.answers import clean

    if sys.stderr.isatty() and not args.quiet:
        print("\r\x1b[K", end="", file=sys.stderr)
    kinds = ("conforms", "fails", "not tested")
    counts = {kind: sum(r.result == kind for r in results) for kind in kinds}
    good = counts["conforms"] > 0 and not counts["fails"]
    document = {
        "schema": SCHEMA,
        "url": whom,
        "protocol": "draftwire.v2",
        "conforms": good,
        "counts": counts,
        "rows": [r._asdict() for r in results],
    }
    if _common.give_json(args, document):
        width = max((len(r.name) for r in results), default=0)
        for r in results:
            if not args.quiet or r.result == "fails":
                line = f"{r.section:<4} {r.name:<{width}}  {r.result:<10}  "
                print((line + clean(r.detail)).rstrip())
        print(
            f"{whom} {'conforms' if good else 'does not conform'} to draftwire.v2: "
            f"{counts['conforms']} rows conform, {counts['fails']} fail, "
            f"{counts['not tested']} not tested"
        )
    return 0 if good else TransportError.exit_code


def _kit(args: argparse.Namespace, tls: ssl.SSLContext | None) -> Kit:
    from draftwire.packages import load_draft
    from draftwire.reference import draft_path
    from draftwire.sampling import NOISES
    from draftwire.transport.messages import Hello
    from draftwire.verifier.kit.peer import Kit
    from draftwire.verifier.kit.target import KIT_HELLO, NAME

    token_file = _common.read_settings(args)["token_file"].value
    hello = KIT_HELLO
    if args.target != NAME:
        draft = load_draft(draft_path() if args.draft is None else args.draft)
        hello = Hello(
            agent=KIT_HELLO.agent,
            target=args.target,
            tokenizer=bytes.fromhex(draft.family.tokenizer),
            backbone=bytes.fromhex(draft.family.backbone or ""),
            vocab_size=draft.vocab_size,
            draft_id=bytes.fromhex(draft.id),
            family=draft.family.name,
        )
    token = None if token_file is None else _common.read_token(token_file)
    kit = Kit(
        args.url, replace(hello, noise=NOISES), token, tls, args.patience, args.exhaust
    )
    if args.quick:
        kit.long = 120
    return kit
