"""``draftwire verifier top``: what a verifier does now, in a terminal."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Callable

from draftwire.cli import _common
from draftwire.cli._screen import height, screen, show
from draftwire.errors import ConfigError, TransportError

SCHEMA = "draftwire.verifier.top/1"


def run(args: argparse.Namespace) -> int:
    """Show it until a key is pressed."""
    from draftwire.verifier.serving.top import Top

    fetch, name = _source(args)
    top = Top(name)
    live = sys.stdout.isatty() and args.count is None and args.json is None
    left = args.count or (2 if args.json is not None else 10**9)
    with screen(live) as pressed:
        while left:
            left -= 1
            try:
                top.take(fetch(), time.monotonic())
                lines = top.render(time.strftime("%H:%M:%S"), height(live))
            except TransportError as error:
                if not (live and top.seen):
                    raise
                lines = [_common.plain(str(error))[:80], "asking again"]  # it may be back
            if args.json is None:
                show(lines, live)
            if left and pressed(args.interval):
                break
    _common.give_json(args, {"schema": SCHEMA, "verifier": name, **top.document()})
    return 0


def _source(args: argparse.Namespace) -> tuple[Callable[[], Any], str]:
    """Return what reads the metrics, and how the verifier is called.

    Raises:
        ConfigError: The address is none, or the token would go over plain ws://.
    """
    import urllib.error
    from urllib.request import Request

    from draftwire.transport.dial import (
        check_url,
        health_url,
        is_loopback,
        tls_context,
        web,
    )
    from draftwire.verifier.serving.top import read_page

    url = args.url
    if url.startswith("http"):
        url = "ws" + url[len("http") :]
    uri = check_url(url, insecure=True)
    tls = tls_context(ca=args.ca, cert=None, key=None) if uri.secure else None
    headers = {}
    token_file = _common.read_settings(args)["token_file"].value
    if token_file is not None:
        if not (uri.secure or args.insecure or is_loopback(uri.host)):
            raise ConfigError(
                f"{args.url} would show the token to the network",
                hint="use wss://, or allow it in so many words with --insecure",
            )
        headers["Authorization"] = f"Bearer {_common.read_token(token_file)}"
    request = Request(health_url(url, "metrics"), headers=headers)

    def fetch() -> Any:
        try:
            with web(uri.host, tls).open(request, timeout=10.0) as answer:
                return read_page(answer.read(16 << 20).decode())
        except urllib.error.HTTPError as error:
            raise TransportError(
                f"the verifier at {args.url} does not show its metrics: {error.code}",
                hint="give --token-file, or the address of its --admin",
            ) from error
        except (OSError, ValueError) as error:
            raise TransportError(
                f"no verifier shows its metrics at {args.url}: "
                f"{getattr(error, 'reason', error)}",
                hint="check the address, and that `draftwire verifier serve` runs there",
            ) from error

    return fetch, args.url
