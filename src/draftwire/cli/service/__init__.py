"""``draftwire service run|status|top``: the supervised process of a board."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Awaitable, Callable

from draftwire.cli import _common
from draftwire.cli._leaf import LOG_FORMAT, Leaf
from draftwire.errors import ConfigError, DraftwireError
from draftwire.options import GROUPS, Doors
from draftwire.settings import Value

if TYPE_CHECKING:
    import ssl

    from draftwire.packages import DraftPackage
    from draftwire.runtime.session import AsyncSession

# Put by the unit into the service's own folder; the owner's files are for root alone.
_HANDED_OVER = {"token_file": "token", "tls_key": "tls.key"}
_CLIENTS = "one line of your choice; its reader is the service's user"
_NO_LINK = 4


LEAF = Leaf(
    "the supervised process of a board: run it, or how it is",
    "draftwire.cli.service:service",
    f"""
[WHAT] {{run,status,top}} =run  serve local programs until SIGTERM; how the running one is;
                      the same again and again, with watts and heat
--socket PATH         where it listens (default: draftwire.sock in $RUNTIME_DIRECTORY)
--socket-group GROUP =  who else may use it (0660)
--interval S:positive =2  of top
--count N             top: print it N times, and end
--state DIR           counters (default: $STATE_DIRECTORY)
{LOG_FORMAT}""",
    about="Keep a draft loaded and a verifier connected, for the programs of this board: "
    "as OpenAI's API, see docs/service.md. Under systemd it says when it is ready and "
    "that it lives; the unit of `draftwire boards bundle` starts it. status: exit code 4 "
    "when it does not run, or has no verifier. `draftwire generate --service PROMPT` "
    "tries it out.",
    groups=(Doors, *GROUPS),
)


def service(args: argparse.Namespace) -> int:
    """Run it, or say how it is."""
    if args.what == "top":
        from draftwire.cli.service.top import run

        return run(args)
    return _status(args) if args.what == "status" else _run(args)


def _run(args: argparse.Namespace) -> int:
    import draftwire
    from draftwire.packages import load_draft
    from draftwire.runtime.service.client import default_socket
    from draftwire.runtime.service.service import Service, ServiceOptions

    _common.start_logging(verbose=args.verbose, form=args.log_format)
    values = _common.read_settings(args)
    where = _options(args)
    http, file = values["http"].value or "", values["http_token_file"].value
    place = args.socket or default_socket(os.environ)
    if http.startswith("unix:"):
        place, http = Path(http[len("unix:") :]), ""
    defaults = _common.stream_options(values)
    if values["max_new_tokens"].origin == "default":
        del defaults["max_new_tokens"]  # an answer in a chat ends by itself
    package = load_draft(where["draft"])  # a damaged draft ends it here, exit code 5
    environ = os.environ
    options = ServiceOptions(
        socket=place,
        group=args.socket_group,
        http=http,
        token=_common.read_token(file, _CLIENTS) if file is not None else "",
        origins=values["http_origin"].value,
        tls=_tls(values["http_cert"].value, values["http_key"].value),
        state=args.state or _folder(environ.get("STATE_DIRECTORY", "")),
        defaults=defaults,
        about={
            "version": draftwire.__version__,
            "verifier": where["url"],
            "draft": {"id": package.id, "name": package.name},
        },
    )
    Service(options, _session_maker(args, package), environ).run()
    return 0


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return what makes --http https, or None."""
    import ssl

    if cert is None:
        if key is not None:
            raise ConfigError("there is a key without a certificate", hint="--http-cert")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except OSError as exc:  # those of ssl are some
        hint = "PEM files that the service's user can read"
        raise ConfigError(f"certificate {cert} does not load: {exc}", hint=hint) from exc
    return context


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `draftwire.connect` takes, token and settings read anew."""
    values = _common.read_settings(args)
    handed = _folder(os.environ.get("RUNTIME_DIRECTORY", ""))
    for name, file in _HANDED_OVER.items():
        if handed is not None and (handed / file).is_file():
            values[name] = Value(handed / file, "systemd")
    where = _common.session_options(values)
    if not where["url"].startswith(
        "wss:"
    ):  # the board's settings may have both addresses in turn
        where.update(tls_ca=None, tls_cert=None, tls_key=None)
    return {**where, "offline": "draft"}


def _session_maker(
    args: argparse.Namespace, package: DraftPackage
) -> Callable[[bool], Awaitable[AsyncSession]]:
    """Return what makes a session."""

    async def make(again: bool) -> AsyncSession:
        from draftwire import aio

        where = {**_options(args), "draft": package}
        if again:  # no model is loaded for a verifier that still refuses
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, lambda: _greet(where))
        return await aio.connect(**where)

    return make


def _greet(where: dict[str, Any]) -> None:
    from draftwire.runtime.greeting import hello_of
    from draftwire.transport.answers import may_pass
    from draftwire.transport.client import Connection
    from draftwire.transport.dial import tls_context

    files = {name: where[f"tls_{name}"] for name in ("ca", "cert", "key")}
    tls = tls_context(**files) if files["ca"] or files["cert"] else None
    given = {name: where[name] for name in ("token", "insecure", "proxy")}
    hello = hello_of(where["draft"], where["target"])
    given.update(tls=tls, timeout=where["timeout_s"])
    try:
        Connection(where["url"], hello, **given).close()
    except DraftwireError as exc:
        if not may_pass(exc):
            raise


def _folder(text: str) -> Path | None:
    """Return the first folder of systemd's list, or None."""
    first = text.split(":")[0]
    return Path(first) if first else None


def _status(args: argparse.Namespace) -> int:
    from draftwire.runtime.service.client import ServiceClient

    with ServiceClient(args.socket, timeout=10) as service:
        found = service.status()
    if _common.give_json(args, found):
        print(sentence(found))
        if not args.quiet:
            streams, state = found["streams"], found["state"]
            if found["http"]:
                print(f"serving {found['http']}")
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
    return 0 if found["link"]["state"] in ("up", "asleep") else _NO_LINK


def sentence(found: dict[str, Any]) -> str:
    link, target = found["link"], found["target"]
    where = f"{found['verifier']}, draft {found['draft']['name']}"
    if link["state"] in ("up", "asleep"):
        again = f", {link['reconnects']} reconnects" if link["reconnects"] else ""
        return f"{link['state']}: target {target['name']} at {where}{again}"
    return f"{link['state']}: {where} ({link['error'] or 'first try'})"
