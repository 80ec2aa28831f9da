"""``draftwire verifier check URL``: does a verifier do what the specification says?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftwire.cli import _common
from draftwire.errors import TransportError
from draftwire.rules import number

if TYPE_CHECKING:
    import ssl

    from draftwire.verifier.conformance import Kit, Result

__all__ = ["register"]

HEALTH_SCHEMA = "draftwire.verifier/1"
SCHEMA = "draftwire.conformance/1"
HEALTH_S = 10.0


def register(actions: Any) -> None:
    """Add the command."""
    parser = actions.add_parser(
        "check",
        help="run a verifier through the specification",
        description="Run any verifier through transport/PROTOCOL.md, from outside, and "
        "say which parts conform. Exit code 4 when one does not.",
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
    add("--target", default="", metavar="NAME", help="check this one (default: its own)")
    add("--exhaust", action="store_true", help="also take every slot, for error 'busy'")
    seconds = _common.ruled(number(0, 1e6, above=True))
    add("--patience", type=seconds, default=10.0, metavar="S", help="an answer (10)")
    _common.add_settings(parser, ("token_file",))
    add("--ca", type=Path, metavar="PEM", help="authority to trust")
    add("--insecure", action="store_true", help="allow plain ws:// off loopback")
    _common.add_common_flags(parser)
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from draftwire.transport.client import tls_context
    from draftwire.transport.dial import check_url, health_url

    # Its health is no secret: only what a token would follow needs TLS.
    uri = check_url(args.url, insecure=args.insecure or args.health)
    tls = tls_context(ca=args.ca, cert=None, key=None) if uri.secure else None
    if args.health:
        return _health(args, health_url(args.url), uri.host, tls)
    return _conformance(args, tls)


def _health(
    args: argparse.Namespace, url: str, host: str, tls: ssl.SSLContext | None
) -> int:
    import json
    import urllib.error

    from draftwire.transport.answers import clean
    from draftwire.transport.dial import web

    try:
        with web(host, tls).open(url, timeout=HEALTH_S) as answer:
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
        targets = [f"{t['name']} {t['version']}" for t in health["targets"]]
        line = f"{health['status']}: {', '.join(targets)}; {health['sessions']} devices"
    except (ValueError, KeyError, TypeError) as error:
        raise TransportError(
            f"what answers at {args.url} is no draftwire verifier"
        ) from error
    if _common.give_json(args, {"schema": HEALTH_SCHEMA, **health}):
        print(clean(line, 2000))
    return 0 if health["status"] == "ok" else TransportError.exit_code


def _conformance(args: argparse.Namespace, tls: ssl.SSLContext | None) -> int:
    import asyncio

    from draftwire.verifier.checks import CHECKS
    from draftwire.verifier.conformance import run_checks

    kit = _kit(args, tls)
    results = asyncio.run(run_checks(kit, CHECKS))
    counts = {
        word: sum(r.result == word for r in results) for word in ("pass", "fail", "skip")
    }
    conforms = not counts["fail"]
    document = {
        "schema": SCHEMA,
        "url": args.url,
        "protocol": "draftwire.v2",
        "conforms": conforms,
        "counts": counts,
        "checks": [r._asdict() for r in results],
    }
    if _common.give_json(args, document):
        _print(results, quiet=args.quiet)
        verdict = "conforms to" if conforms else "does not conform to"
        print(
            f"{args.url} {verdict} draftwire.v2: {counts['pass']} passed, "
            f"{counts['fail']} failed, {counts['skip']} skipped"
        )
    return 0 if conforms else TransportError.exit_code


def _print(results: list[Result], *, quiet: bool) -> None:
    width = max(len(r.name) for r in results)
    for r in results:
        if not quiet or r.result == "fail":
            line = f"{r.section:<4} {r.name:<{width}}  {r.result}"
            print(f"{line}  {r.detail}" if r.detail else line)


def _kit(args: argparse.Namespace, tls: ssl.SSLContext | None) -> Kit:
    from draftwire import __version__
    from draftwire.packages import load_draft
    from draftwire.reference import draft_path
    from draftwire.transport.messages import Hello
    from draftwire.verifier.conformance import Kit

    token_file = _common.read_settings(args)["token_file"].value
    draft = load_draft(draft_path() if args.draft is None else args.draft)
    hello = Hello(
        agent=f"draftwire-check/{__version__}",
        target=args.target,
        tokenizer=bytes.fromhex(draft.family.tokenizer),
        backbone=bytes.fromhex(draft.family.backbone or ""),
        vocab_size=draft.vocab_size,
        draft_id=bytes.fromhex(draft.id),
        family=draft.family.name,
    )
    token = None if token_file is None else _common.read_token(token_file)
    return Kit(args.url, hello, token, tls, args.patience, args.exhaust)
