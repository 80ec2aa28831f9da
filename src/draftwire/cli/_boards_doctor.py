"""``draftwire boards doctor``: would a draft run here, and what mends it if not?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from draftwire.cli import _boards_common as common
from draftwire.cli import _boards_verifier as verifier
from draftwire.cli import _common
from draftwire.cli._boards_text import labelled, wrapped
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.boards.doctor import Report

__all__ = ["add_flags", "render", "run"]

# Opens a draft in a process of its own; the boards' room knows no engine of ours.
PROBE = ("-m", "draftwire.runtime.engines.probe")
_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.epilog = (
        "exit code: 0 a draft would run (warnings or not), 3 something on this machine, "
        "4 the verifier, 5 the draft keeps it from running"
    )
    common.add_root_flags(parser)
    common.add_profile_flag(parser)
    names = ("verifier", "draft", "target", "token_file", "threads")
    _common.add_settings(parser, names)
    verifier.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from draftwire.boards.detect import detect
    from draftwire.boards.doctor import examine

    values = {name: v.value for name, v in _common.read_settings(args).items()}
    url, draft = values["verifier"], values["draft"]
    found = detect(
        common.root(args), common.profiles(args), board=args.board, engines=False
    )
    host = found.tree.host
    progress = _progress(quiet=args.quiet)
    place = _draft(draft) if host else None
    report = examine(
        found,
        None if place is None else (*PROBE, str(place)),
        threads=values["threads"] if isinstance(values["threads"], int) else 1,
        secure=verifier.is_secure(url),
        progress=progress,
    )
    if url and host:
        progress("asking the verifier")
        answer = verifier.check_verifier(
            url,
            place,
            token_file=values["token_file"],
            target=values["target"] or "",
            ca=args.tls_ca,
            insecure=args.insecure,
        )
        report = report.plus(answer)
    progress("")
    if args.json is not None:
        _common.write_json(report.to_dict(), args.json)
    if args.json != "-":
        colour = _common.wants_colour(sys.stdout, never=args.no_color)
        print(render(report, colour=colour, quiet=args.quiet))
    return report.exit_code


def _progress(*, quiet: bool) -> Callable[[str], None]:
    """Return what shows on a terminal what takes time, in one line that goes away."""
    show = sys.stderr.isatty() and not quiet

    def tell(text: str) -> None:
        if show:
            more = f"{text} ..." if text else ""
            print(f"\r\x1b[K{more}", end="", file=sys.stderr, flush=True)

    return tell


def _draft(named: Path | None) -> Path | None:
    """Return the draft to open: the named one, else the reference draft if there is."""
    from draftwire.reference import draft_path

    if named is not None:
        return named.resolve()
    try:
        return draft_path().resolve()
    except ConfigError:
        return None


def render(report: Report, *, colour: bool = False, quiet: bool = False) -> str:
    """Return the lines for people: one a finding, its mending command below it."""
    width = max(len(finding.name) for finding in report.findings)
    lines = []
    for finding in report.findings:
        if quiet and finding.status in ("ok", "skip"):
            continue
        label = f"{finding.status:<4} {finding.name:<{width}}"
        text = labelled(label, finding.detail, width=len(label))
        if colour:
            code = _COLOURS[finding.status]
            text = f"\x1b[{code}m{text[:4]}\x1b[0m{text[4:]}"
        lines.append(text)
        if finding.fix and finding.status in ("warn", "fail"):
            # One line, however long: it is there to be copied.
            lines.append(f"     {'':<{width}} fix: {finding.fix}")
    lines += ["", wrapped(_verdict(report), "")]
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    bad = [finding.name for finding in report.findings if finding.status == "fail"]
    doubts = sum(finding.status == "warn" for finding in report.findings)
    more = f" {doubts} warning{'s' if doubts > 1 else ''}." if doubts else ""
    if bad:
        names = ", ".join(dict.fromkeys(bad))
        return f"A draft would not run here: {names}.{more}"
    if report.would_run is None:
        return f"Nothing found against a draft, and none was opened.{more}"
    return f"A draft would run here.{more}"
