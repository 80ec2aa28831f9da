"""``draftwire generate``: write text with a draft here and a target at a verifier."""

from __future__ import annotations

import argparse
import io
import sys
from typing import TYPE_CHECKING, Any

from draftwire.cli import _common
from draftwire.cli._leaf import EXPLAIN, Leaf
from draftwire.errors import ConfigError, DraftwireError, OutputError, TransportError
from draftwire.options import GROUPS, OPTIONS, STREAM_GROUPS, check_prompt, options_of

if TYPE_CHECKING:
    from draftwire import Stream

INTERRUPTED = 130


LEAF = Leaf(
    "write text with a draft here and a target at a verifier",
    "draftwire.cli.generate:run",
    f"""
[PROMPT]              the prompt; - reads it from stdin
also:
{EXPLAIN}
--service             through the service of this board (service run)
--socket PATH         where that listens
""",
    about="Continue a prompt. The text goes to stdout, the totals to stderr.",
    groups=GROUPS,
)


def run(args: argparse.Namespace) -> int:
    """Generate, stream, and print the totals."""
    import draftwire
    from draftwire.cli._stream import Painter, painter_of, summary, warn

    prompt = _prompt(args.prompt)
    if args.service or args.socket is not None:
        return _ask(args, prompt)
    values = _common.read_settings(args)
    options = _common.stream_options(values)
    where = _common.session_options(values)
    _common.start_logging(verbose=args.verbose)
    alone = args.json == "-" and args.quiet
    nobody = Painter(io.StringIO())
    painter = nobody if alone else painter_of(args, where["draft"])
    code = 0
    stream: Stream | None = None
    failures: list[DraftwireError] = []  # to write; each is told once all else is written
    try:
        with draftwire.connect(**where) as session:
            explain = _common.say_block if args.explain else None
            stream = session.generate(prompt, **options, explain=explain)
            try:
                for chunk in stream:
                    painter.show(chunk)
            except KeyboardInterrupt:
                stream.cancel()
                code = INTERRUPTED
            except OutputError as exc:
                stream.cancel()
                painter = nobody
                failures.append(exc)
            finally:
                painter.end_line()  # for an error
    except OutputError as exc:  # the session could not keep its cache
        failures.append(exc)
        if stream is not None and stream.error is not None:
            failures.append(stream.error)
    report = None if stream is None else stream.report
    if report and report["finish"] != "error":
        warn(report)
        if not args.quiet:
            print(summary(report), file=sys.stderr)
        if args.json:
            try:
                _common.write_json(report, args.json)
            except OutputError as exc:
                failures.append(exc)
    for failure in failures[:-1]:
        print(_common.plain(f"draftwire: error: {failure}"), file=sys.stderr)
    if failures:
        raise failures[-1]
    return code


def _prompt(given: str | None) -> str | list[int]:
    """Return the prompt: the argument, a pipe on stdin, or an error."""
    if given is None and sys.stdin.isatty():
        raise ConfigError(
            "there is no prompt", hint='draftwire generate "Once upon a time"'
        )
    if given is None or given == "-":
        try:
            given = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as exc:
            what = f"the prompt on stdin is not UTF-8: {exc}"
            raise ConfigError(what, hint="convert it with iconv") from exc
    return check_prompt(given)


def _ask(args: argparse.Namespace, prompt: str | list[int]) -> int:
    """Write text through the running service."""
    from draftwire.cli._stream import Painter, screen_of, summary, warn
    from draftwire.runtime.service.client import ServiceClient

    options = {}  # what is not given here is as the service was told
    known = [option.name for option in options_of(*STREAM_GROUPS)]
    for name in args.settings:
        option, given = OPTIONS[name], getattr(args, name)
        if given is not None and name not in known:
            hint = "leave it out, or leave out --service"
            raise ConfigError(f"{option.flag} is the service's to know", hint=hint)
        if given is not None:
            options[name] = option.parse(given, option.flag)
    report: dict[str, Any] = {}
    painter = Painter(screen_of(args))
    try:
        with ServiceClient(args.socket) as service:
            for event in service.generate(prompt, **options):
                painter.event(event)
                report = event.get("report") or report
    finally:
        painter.end_line()
    _common.give_json(args, report)
    if not args.quiet:
        warn(report)
        print(summary(report), file=sys.stderr)
    if not report.get("tokens") and report.get("finish") == "deadline":
        raise TransportError("no token came before the deadline")
    return 0
