"""``draftwire generate``: write text with a draft here and a target at a verifier."""

from __future__ import annotations

import argparse
import sys
from typing import IO, TYPE_CHECKING, Any, Generator, cast

from draftwire.cli import _common
from draftwire.cli._mode_flags import add_mode_flags
from draftwire.errors import ConfigError, DraftwireError

if TYPE_CHECKING:
    from draftwire import Chunk
    from draftwire.cli._stream import Painter

__all__ = ["register"]

SETTINGS = (
    "verifier",
    "draft",
    "target",
    "token_file",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "scheme",
    "temperature",
    "top_k",
    "top_p",
    "block",
    *_common.ENGINE_SETTINGS,
)
INTERRUPTED = 130


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "generate",
        help="write text",
        description="Continue a prompt. The text goes to stdout, the totals to stderr.",
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads it from stdin"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, help="default: %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, help="of the sampling noise (default: a new one each time)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text (may be repeated)",
    )
    parser.add_argument(
        "--offline",
        choices=("wait", "draft", "error"),
        default="wait",
        help="while the link is lost: wait for it, go on with the draft alone (guesses "
        "are marked and put right later), or fail at once (default: %(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long a link may be lost before that is an error (default: %(default)s)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="end after so many seconds with what is there",
    )
    parser.add_argument(
        "--max-joules",
        type=float,
        metavar="J",
        help="end with what is there once this device has spent so much",
    )
    parser.add_argument(
        "--energy",
        default="auto",
        metavar="SOURCE",
        help="auto, off, a source of `draftwire energy sources`, or "
        "model:draft=6,wait=3,... in watts (default: %(default)s)",
    )
    parser.add_argument(
        "--capture",
        action="store_true",
        help="count the bytes on the wire instead of computing them (root)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow plain ws:// to another machine: token and text can be read on the way",
    )
    add_mode_flags(parser)
    _common.add_settings(parser, SETTINGS)
    _common.add_common_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate, stream, and print the totals."""
    import draftwire
    from draftwire.cli._stream import Painter, summary

    options = _common.generate_options(args)
    options.update(
        stop=list(args.stop),
        offline=args.offline,
        patience_s=args.patience,
        deadline_s=args.deadline,
        max_joules=args.max_joules,
    )
    where = _where(args)
    prompt = _prompt(args.prompt)
    _common.start_logging(verbose=args.verbose)
    screen: IO[str] = sys.stderr if args.json == "-" else sys.stdout
    colour = _common.wants_colour(screen, never=args.no_color)
    tokenizer = None
    if colour:
        from draftwire.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(where["draft"])
    painter = Painter(screen, tokenizer, colour=colour)
    code = 0
    with draftwire.connect(**where, **_common.connect_options(args)) as session:
        # A generator, whose close() ends the stream wherever Ctrl-C caught us.
        stream = session.generate(prompt, **options)
        chunks = cast("Generator[Chunk, None, None]", stream)
        try:
            for chunk in chunks:
                if args.json != "-" or not args.quiet:
                    painter.show(chunk)
        except KeyboardInterrupt:
            chunks.close()
            code = INTERRUPTED
        except DraftwireError:
            _end_line(painter, screen)  # the message starts on a line of its own
            raise
        report = session.report
    _end_line(painter, screen)
    for sentence in (report or {}).get("warnings") or ():
        print(f"warning: {sentence}", file=sys.stderr)
    if report and not args.quiet:
        print(summary(report), file=sys.stderr)
    if report and args.json:
        _common.write_json(report, args.json)
    return code


def _end_line(painter: Painter, screen: IO[str]) -> None:
    if not painter.ended_line:
        screen.write("\n")
        screen.flush()


def _where(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `draftwire.connect` needs to know of the settings."""
    values = {name: v.value for name, v in _common.read_settings(args).items()}
    if values["verifier"] is None:
        raise ConfigError(
            "no verifier is set",
            hint="give --verifier ws://HOST:PORT, or verifier = ... in draftwire.toml",
        )
    if values["draft"] is None:
        from draftwire.reference import draft_path

        values["draft"] = draft_path()
    token_file = values["token_file"]
    security = {
        "capture": args.capture,
        "insecure": args.insecure,
        "tls_ca": values["tls_ca"],
        "tls_cert": values["tls_cert"],
        "tls_key": values["tls_key"],
    }
    return {
        "url": values["verifier"],
        "draft": str(values["draft"]),
        "target": values["target"] or "",
        "token": None if token_file is None else _common.read_token(token_file),
        "energy": args.energy,
        **{name: value for name, value in security.items() if value},
    }


def _prompt(given: str | None) -> str:
    """Return the prompt: the argument, a pipe on stdin, or an error."""
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise ConfigError(
            "there is no prompt", hint='draftwire generate "Once upon a time"'
        )
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the prompt on stdin is not UTF-8: {exc}") from exc
    if not text:
        raise ConfigError("the prompt on stdin is empty")
    return text
