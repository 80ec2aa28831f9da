"""``draftwire verifier gateway``: one address for many verifiers."""

from __future__ import annotations

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any, Callable

from draftwire import rules
from draftwire.cli import _common

__all__ = ["register"]

log = logging.getLogger("draftwire.gateway")

_SECONDS = _common.ruled(rules.number(0, 1e9, above=True))
_COUNT = _common.ruled(rules.whole(1, 10**9))


def register(
    actions: Any,
    add_network: Callable[[argparse.ArgumentParser], None],
    options_of: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    """Add the command.

    Args:
        actions: Of ``draftwire verifier``.
        add_network: Adds the flags of an address to listen on.
        options_of: Makes fields of ``process.Options`` of those.
    """
    parser = actions.add_parser(
        "gateway",
        help="one address for many verifiers",
        description="Pass streams on to verifiers by consistent hashing. Nothing is kept: "
        "a stream finds its verifier by its id, and one whose verifier is gone is opened "
        "anew by its device. SIGTERM ends it; SIGHUP reads tokens and certificates again.",
    )
    add = parser.add_argument_group("verifiers").add_argument
    add(
        "--to",
        action="append",
        default=[],
        metavar="URL",
        help="a verifier, such as ws://127.0.0.1:8766; repeat it for each",
    )
    add(
        "--to-file",
        type=Path,
        metavar="FILE",
        help="more of them, one a line, with the word drain behind one that shall get no "
        "new streams; read again when it has changed",
    )
    add(
        "--to-name",
        action="append",
        default=[],
        metavar="URL",
        help="a name that stands for several machines (such as a headless service): each "
        "address of it is a verifier, looked up again at every look",
    )
    add("--to-ca", type=Path, metavar="PEM", help="trusted for wss:// to verifiers")
    add("--to-cert", type=Path, metavar="PEM", help="shown to verifiers that ask for one")
    add("--to-key", type=Path, metavar="PEM", help="its key")
    add(
        "--health-seconds",
        dest="health_s",
        type=_SECONDS,
        default=2.0,
        metavar="S",
        help="between two looks at each verifier (2)",
    )
    add_network(parser)
    add = parser.add_argument_group("limits").add_argument
    add(
        "--max-sessions",
        dest="connections",
        type=_COUNT,
        default=4096,
        metavar="N",
        help="devices (4096)",
    )
    _common.add_common_flags(parser)
    _common.add_log_format(parser)
    parser.set_defaults(run=partial(_run, options_of))


def _run(
    options_of: Callable[[argparse.Namespace], dict[str, Any]], args: argparse.Namespace
) -> int:
    from draftwire.transport.dial import tls_context
    from draftwire.verifier.gateway.fleet import Fleet
    from draftwire.verifier.gateway.service import Gateway
    from draftwire.verifier.serving import process
    from draftwire.verifier.serving.limits import Limits

    _common.start_logging(verbose=args.verbose, form=args.log_format)
    tls = None
    if args.to_ca or args.to_cert:
        tls = tls_context(ca=args.to_ca, cert=args.to_cert, key=args.to_key)
    fleet = partial(
        Fleet,
        args.to,
        file=args.to_file,
        names=args.to_name,
        insecure=args.insecure,
        tls=tls,
        health_s=args.health_s,
    )
    # Devices are slowed down and shown out by their verifiers; what is here bounds memory.
    limits = Limits(
        connections=args.connections, strangers=256, idle_s=86400.0, knocks_per_s=1000.0
    )
    options = process.Options(**options_of(args), limits=limits, fleet=fleet)

    def listening(service: Any) -> None:
        assert isinstance(service, Gateway)
        replicas = service.fleet.replicas.values()
        if options.token_file is None and not args.quiet:
            log.warning("no token file: everyone on this machine may connect")
        document = {
            "schema": "draftwire.gateway/1",
            "url": service.url,
            "verifiers": [{"url": one.url, "state": one.state} for one in replicas],
        }
        if service.admin_url is not None:
            document["admin"] = service.admin_url
        if _common.give_json(args, document):
            print(f"listening on {service.url}", flush=True)
            if not args.quiet:
                if service.admin_url is not None:
                    print(f"health and metrics on {service.admin_url}", flush=True)
                for one in replicas:
                    print(f"  {one.url} ({one.state})", flush=True)

    process.serve(options, listening)
    return 0
