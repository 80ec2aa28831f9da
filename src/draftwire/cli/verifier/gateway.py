"""``draftwire verifier gateway``: one address for many verifiers."""

from __future__ import annotations

import argparse
import logging
from functools import partial
from typing import Any

from draftwire.cli import _common
from draftwire.cli.verifier import network_of

log = logging.getLogger("draftwire.gateway")


def run(args: argparse.Namespace) -> int:
    """Pass streams on until a signal ends it."""
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
    options = process.Options(**network_of(args), limits=limits, fleet=fleet)

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
