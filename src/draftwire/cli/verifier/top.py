"""``draftwire verifier top``: what a verifier does now, in a terminal."""

from __future__ import annotations

import argparse
import time

from draftwire.cli import _common
from draftwire.cli._ask import Verifier, gone
from draftwire.cli._screen import watch
from draftwire.errors import ConfigError, TransportError
from draftwire.verifier.serving.top import Top, read_page

SCHEMA = "draftwire.verifier.top/1"


def run(args: argparse.Namespace) -> None:
    """Show it until a key is pressed."""
    url = "ws" + args.url[4:] if args.url.startswith("http") else args.url
    token_file = _common.read_settings(args)["token_file"].value
    verifier = Verifier(url, token_file, args.ca, insecure=args.insecure)
    if verifier.token is not None and not verifier.shown:
        hint = "use wss://, or allow it in so many words with --insecure"
        raise ConfigError(f"{args.url} would show the token to the network", hint=hint)
    top = Top(args.url)

    def draw(height: int) -> list[str]:
        try:
            answer = verifier.ask("metrics")
            if answer.status != 200:
                raise TransportError(
                    f"the verifier at {args.url} does not show its metrics: "
                    f"{answer.status}",
                    hint="give --token-file, or the address of its --admin",
                )
            top.take(read_page(answer.body.decode()), time.monotonic())
        except (OSError, ValueError) as error:
            raise gone(args.url, error, "shows its metrics") from error
        return top.render(time.strftime("%H:%M:%S"), height)

    watch(args, draw)
    _common.give_json(args, {"schema": SCHEMA, "verifier": args.url, **top.document()})
