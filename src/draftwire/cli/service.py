"""``draftwire service run|status|ask``: the supervised process of a board."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Callable

from draftwire.cli import _common, _mode_flags
from draftwire.errors import ConfigError

__all__ = ["register"]

_SETTINGS = (
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
_DEFAULTS = ("scheme", "temperature", "top_k", "top_p", "block")
# Put by the unit into the service's own folder; the owner's files are for root alone.
_HANDED_OVER = {"token_file": "token", "tls_key": "tls.key"}
_NO_LINK = 4


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "service",
        help="the supervised process of a board",
        description="Keep a draft loaded and a verifier connected, for the programs of "
        "this board: JSON lines on a local socket, see docs/shipping.md.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="serve local programs until SIGTERM",
        description="Serve local programs until SIGTERM. Under systemd it says when it is "
        "ready and that it lives; the unit of `draftwire boards bundle` starts it.",
    )
    add = run.add_argument
    add(
        "--socket",
        type=Path,
        metavar="PATH",
        help="default: draftwire.sock in $RUNTIME_DIRECTORY",
    )
    add("--socket-group", default="", metavar="GROUP", help="who else may use it (0660)")
    add("--state", type=Path, metavar="DIR", help="counters (default: $STATE_DIRECTORY)")
    add(
        "--energy",
        default="auto",
        metavar="SOURCE",
        help="as for `draftwire generate` (default: %(default)s)",
    )
    add("--insecure", action="store_true", help="allow plain ws:// to another machine")
    _mode_flags.add_mode_flags(run)
    _common.add_settings(run, _SETTINGS)
    _common.add_common_flags(run)
    run.set_defaults(run=_run)
    status = actions.add_parser(
        "status",
        help="how the service is",
        description="How the service is. Exit code 4: it does not run, or has no verifier.",
    )
    status.add_argument("--socket", type=Path, metavar="PATH", help="where it listens")
    _common.add_common_flags(status)
    status.set_defaults(run=_status)
    ask = actions.add_parser(
        "ask",
        help="write text through the service",
        description="Write text through the running service, to try a board out.",
    )
    ask.add_argument("prompt", metavar="PROMPT")
    ask.add_argument("--max-new-tokens", type=int, default=64, help="default: %(default)s")
    ask.add_argument("--deadline", type=float, metavar="SECONDS")
    ask.add_argument("--socket", type=Path, metavar="PATH", help="where it listens")
    _common.add_common_flags(ask)
    ask.set_defaults(run=_ask)


def _run(args: argparse.Namespace) -> int:
    import draftwire
    from draftwire.packages import load_draft
    from draftwire.runtime.service import Service, ServiceOptions
    from draftwire.runtime.service_client import default_socket

    _start_logging(verbose=args.verbose)
    values = {name: v.value for name, v in _common.read_settings(args).items()}
    if values["verifier"] is None:
        raise ConfigError(
            "no verifier is set",
            hint='verifier = "wss://HOST:PORT" in the file that --config names',
        )
    if values["draft"] is None:
        from draftwire.reference import draft_path

        values["draft"] = draft_path()
    package = load_draft(values["draft"])  # a damaged draft ends it here, exit code 5
    environ = os.environ
    options = ServiceOptions(
        socket=args.socket or default_socket(environ),
        group=args.socket_group,
        state=args.state or _folder(environ.get("STATE_DIRECTORY", "")),
        defaults={
            **_mode_flags.mode_options(args),
            **{name: values[name] for name in _DEFAULTS if values[name] is not None},
        },
        about={
            "version": draftwire.__version__,
            "verifier": values["verifier"],
            "draft": {"id": package.id, "name": package.name},
        },
    )
    make = _session_maker(args, package)
    Service(options, make, environ).run()
    return 0


def _session_maker(args: argparse.Namespace, package: Any) -> Callable[[], Any]:
    """Return what makes a session; it reads token and settings again each time."""

    def make() -> Any:
        import draftwire
        from draftwire.runtime.greeting import hello_of
        from draftwire.transport.client import Connection, tls_context

        values = {name: v.value for name, v in _common.read_settings(args).items()}
        handed = _folder(os.environ.get("RUNTIME_DIRECTORY", ""))
        for name, file in _HANDED_OVER.items():
            if handed is not None and (handed / file).is_file():
                values[name] = handed / file
        url, target = values["verifier"], values["target"] or ""
        files = {name: values[f"tls_{name}"] for name in ("ca", "cert", "key")}
        secure = url.startswith("wss:")
        access = {
            "token": None
            if values["token_file"] is None
            else _common.read_token(values["token_file"]),
            "insecure": args.insecure,
        }
        # A greeting first: a model is not loaded for a verifier that is not there.
        tls = tls_context(**files) if secure else None
        Connection(url, hello_of(package, target), tls=tls, **access).close()
        return draftwire.connect(
            url,
            draft=package,
            target=target,
            energy=args.energy,
            **access,
            **{f"tls_{name}": file for name, file in files.items() if file and secure},
            **_common.connect_options(args),
        )

    return make


def _folder(text: str) -> Path | None:
    """Return the first folder of systemd's list, or None."""
    first = text.split(":")[0]
    return Path(first) if first else None


def _start_logging(*, verbose: bool) -> None:
    """Log to stderr; for the journal with the level as it likes it, and without time."""
    _common.start_logging(verbose=verbose)
    if not os.environ.get("JOURNAL_STREAM"):
        return
    import logging

    levels = {"DEBUG": 7, "INFO": 6, "WARNING": 5, "ERROR": 3, "CRITICAL": 2}

    class ForJournal(logging.Formatter):
        """Puts the priority of sd-daemon(3) in front."""

        def format(self, record: logging.LogRecord) -> str:
            level = levels.get(record.levelname, 5)
            return f"<{level}>{record.name}: {record.getMessage()}"

    for handler in logging.getLogger().handlers:
        handler.setFormatter(ForJournal())


def _status(args: argparse.Namespace) -> int:
    from draftwire.runtime.service_client import ServiceClient

    with ServiceClient(args.socket, timeout=10) as service:
        found = service.status()
    found = {k: v for k, v in found.items() if k not in ("id", "event")}
    link = found["link"]
    if args.json is not None:
        _common.write_json(found, args.json)
    if args.json != "-":
        print(_sentence(found))
        if not args.quiet:
            streams, state = found["streams"], found["state"]
            print(
                f"streams: {streams['finished']} finished, {streams['failed']} failed, "
                f"{streams['cancelled']} cancelled, {streams['running']} running, "
                f"{streams['waiting']} waiting; {found['tokens']} tokens"
            )
            print(
                f"over all runs: {state['starts']} starts, {state['clean_stops']} clean "
                f"stops, {state['tokens']} tokens"
                + (f" (not kept: {state['why_not_kept']})" if not state["kept"] else "")
            )
    return 0 if link["state"] == "up" else _NO_LINK


def _sentence(found: dict[str, Any]) -> str:
    link, target = found["link"], found["target"]
    where = f"{found['verifier']}, draft {found['draft']['name']}"
    if link["state"] == "up":
        again = f", {link['reconnects']} reconnects" if link["reconnects"] else ""
        return f"up: target {target['name']} at {where}{again}"
    return f"{link['state']}: {where} ({link['error'] or 'first try'})"


def _ask(args: argparse.Namespace) -> int:
    from draftwire.runtime.service_client import ServiceClient

    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens}
    if args.deadline is not None:
        options["deadline_s"] = args.deadline
    report = None
    screen = sys.stderr if args.json == "-" else sys.stdout
    with ServiceClient(args.socket) as service:
        for event in service.generate(args.prompt, **options):
            screen.write(event.get("text", ""))
            screen.flush()
            report = event.get("report", report)
    screen.write("\n")
    if args.json is not None:
        _common.write_json(report, args.json)
    return 0
