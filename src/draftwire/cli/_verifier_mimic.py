"""``draftwire verifier mimic``: does a device do what the specification says?"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from draftwire import rules
from draftwire.cli import _common
from draftwire.cli._verifier_check import say_row, show_rows

if TYPE_CHECKING:
    from draftwire.verifier.kit.rows import Result

__all__ = ["register"]


def register(actions: Any) -> None:
    """Add the command."""
    parser = actions.add_parser(
        "mimic",
        help="run a device through the specification",
        description="Play a verifier with scripted faults on a loopback port, and say "
        "what a device makes of them. Each row takes one text: COMMAND is run for each, "
        "with {url} replaced by the address (also in DRAFTWIRE_VERIFIER); without one, "
        "start devices by hand. Exit code 4 when a row fails; see docs/conformance.md.",
    )
    add = parser.add_argument
    add("command", nargs="*", metavar="COMMAND", help="behind --: asks for one text")
    port = _common.ruled(rules.whole(0, 65535))
    add("--port", type=port, default=0, help="0 takes a free one (default)")
    seconds = _common.ruled(rules.number(0, 1e6, above=True))
    add("--patience", type=seconds, default=10.0, metavar="S", help="with a device (10)")
    add("--only", default="", metavar="WORDS", help="rows whose name has these words")
    _common.add_common_flags(parser)
    parser.set_defaults(run=_mimic)


def _mimic(args: argparse.Namespace) -> int:
    from draftwire.errors import ConfigError
    from draftwire.verifier.kit.device_rows import EXERCISES, try_device
    from draftwire.verifier.kit.mimic import Mimic

    if not any(args.only in row.name for row in EXERCISES):
        raise ConfigError(
            f"no row has {args.only!r} in its name",
            hint="leave --only out: the table has all names",
        )
    results: list[Result] = []
    told = say_row(args)

    def tell(result: Result) -> None:
        results.append(result)
        told(result)

    async def device(url: str) -> None:
        words = [word.replace("{url}", url) for word in args.command]
        quiet = None if args.verbose else asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr if args.verbose else quiet,
            stderr=quiet,
            env={**os.environ, "DRAFTWIRE_VERIFIER": url},
        )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def run() -> None:
        mimic = Mimic(device if args.command else None, args.patience, port=args.port)
        async with mimic.listening():
            if not args.command:
                print(f"listening on {mimic.url}", file=sys.stderr, flush=True)
            await try_device(mimic, tell, args.only)

    try:
        with contextlib.suppress(KeyboardInterrupt):  # what was seen is shown
            asyncio.run(run())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot run {shlex.join(args.command) or 'a mimic'}: {error}",
            hint="give the device's command behind --, or another --port",
        ) from error
    return show_rows(args, shlex.join(args.command) or "the device", results)
