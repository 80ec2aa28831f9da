"""``draftwire boards doctor``: would a draft run here, does the verifier take it?"""

from __future__ import annotations

import argparse
import sys
import time
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from draftwire.boards.checks.findings import Finding
from draftwire.boards.detect import detect
from draftwire.boards.doctor import Report, examine
from draftwire.cli import _common, boards
from draftwire.cli._ask import Verifier, reason_of
from draftwire.errors import ConfigError, DraftwireError, RefusedError, TransportError
from draftwire.io import labelled, parse_json, wrapped
from draftwire.packages import load_draft
from draftwire.reference import draft_path
from draftwire.runtime.greeting import hello_of
from draftwire.transport.answers import clean
from draftwire.transport.client import Connection
from draftwire.transport.dial import health_url, is_loopback

# Opens a draft in a process of its own; `draftwire.boards` knows no engine of ours.
PROBE = ("-m", "draftwire.runtime.engines.probe")
_ANSWER_S = 8.0
_CLOCK_S = 120.0  # a certificate's edges and a log's order can do with less
_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    values = {name: v.value for name, v in _common.read_settings(args).items()}
    url, draft = values["verifier"], values["draft"]
    found = detect(
        boards.root(args), boards.profiles(args), board=args.board, engines=False
    )
    host = found.tree.host
    progress = _common.progress(args)
    place = _draft(draft) if host else None
    report = examine(
        found,
        None if place is None else (*PROBE, str(place)),
        threads=values["threads"] if isinstance(values["threads"], int) else 1,
        secure=urlsplit(url or "").scheme == "wss",
        progress=progress,
    )
    if url and host:
        progress("asking the verifier")
        answer = check_verifier(
            url,
            place,
            token_file=values["token_file"],
            target=values["target"] or "",
            ca=args.tls_ca,
            insecure=args.insecure,
        )
        report = report.plus(answer)
    progress("")
    if _common.give_json(args, report.to_dict()):
        colour = _common.wants_colour(sys.stdout, never=args.no_color)
        print(render(report, colour=colour, quiet=args.quiet))
    return report.exit_code


def _draft(named: Path | None) -> Path | None:
    """Return the draft to open: the named one, else the reference draft if there is."""
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


# ---- the verifier


def check_verifier(
    url: str,
    draft: Path | None,
    *,
    token_file: Path | None,
    target: str,
    ca: Path | None,
    insecure: bool,
) -> list[Finding]:
    """Ask the verifier for its health, then greet it as a session would (ConfigError: the
    address, or a file of the user, is wrong)."""
    if not urlsplit(url).hostname:
        raise ConfigError(f"{url} is no ws:// or wss:// address")
    verifier = Verifier(url, token_file, ca, insecure=False)
    findings = _health(verifier)
    if findings[0].status == "fail" or draft is None:
        return findings
    return [*findings, _greet(verifier, draft, target=target, insecure=insecure)]


def _health(verifier: Verifier) -> list[Finding]:
    url, port = verifier.url, verifier.port
    bad = partial(Finding, "verifier", "fail", exit_code=TransportError.exit_code)
    try:
        answer = verifier.ask()
    except (OSError, ValueError) as exc:
        reason = reason_of(exc)
        fix = f"nc -vz {verifier.host} {port}"
        if isinstance(reason, ConnectionRefusedError):
            fix = f"draftwire verifier serve --target models/v1.target --port {port}"
            if not is_loopback(verifier.host):
                fix = f"ssh {verifier.host} draftwire verifier serve --port {port}"
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            fix = f"openssl s_client -connect {verifier.host}:{port} -showcerts"
        return [bad(f"{url} does not answer: {reason}", fix)]
    asked = health_url(url)
    try:
        health = parse_json(answer.body)
        # Without a token a verifier does not name them.
        served = health.get("targets", ())
        names = "".join(f"{t['name']} {t['version']}, " for t in served)[:-2]
        targets, status = clean(names, 1000), clean(str(health["status"]), 40)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [
            bad(f"what answers at {asked} is no draftwire verifier", f"curl -i {asked}")
        ]
    found = Finding("verifier", "ok", f"{url}: {targets or status}")
    if status != "ok":
        detail = f"{url} is {status} {targets}".rstrip()
        found = Finding("verifier", "warn", detail, f"curl {asked}")
    return [found, *_clock(answer.date)]


def _clock(date: str | None) -> list[Finding]:
    """Compare this machine's clock with the verifier's, which its answer carries."""
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, IndexError):
        return []
    ahead = time.time() - theirs
    if abs(ahead) <= _CLOCK_S:
        return []
    side = "ahead of" if ahead > 0 else "behind"
    detail = f"{abs(ahead):.0f} s {side} the verifier's"
    return [Finding("clock", "warn", detail, "sudo timedatectl set-ntp true")]


def _greet(verifier: Verifier, draft: Path, *, target: str, insecure: bool) -> Finding:
    url, token = verifier.url, verifier.token
    options: dict[str, Any] = {"token": token, "insecure": insecure, "tls": verifier.tls}
    start = time.monotonic()
    try:
        hello = hello_of(load_draft(draft), target)
        connection = Connection(url, hello, timeout=_ANSWER_S, **options)
    except RefusedError as exc:
        fix = exc.hint if exc.hint.startswith("draftwire ") else ""
        if token is None:
            fix = f"draftwire boards doctor --verifier {url} --token-file FILE"
        detail = f"it refuses this device: {exc}"
        again = fix or f"draftwire verifier check {url} --health"
        return Finding("handshake", "fail", detail, again, exc.exit_code)
    except DraftwireError as exc:
        hint = f" ({exc.hint})" if exc.hint else ""
        fix = f"draftwire verifier check {url} --health"
        return Finding("handshake", "fail", f"{exc}{hint}", fix, exc.exit_code)
    taken = time.monotonic() - start
    welcome = connection.welcome
    connection.close()
    text = f"it takes this draft for target {welcome.target}; {taken * 1e3:.0f} ms"
    return Finding("handshake", "ok", text)
