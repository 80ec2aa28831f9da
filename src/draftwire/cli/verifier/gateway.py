"""``draftwire verifier gateway``: one address for many verifiers."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from draftwire.cli import _common
from draftwire.cli.verifier import announce, serving_options
from draftwire.transport.dial import tls_context
from draftwire.verifier.gateway.fleet import Fleet
from draftwire.verifier.serving import process
from draftwire.verifier.serving.limits import Limits

SCHEMA = "draftwire.gateway/1"


def run(args: argparse.Namespace) -> None:
    """Pass streams on until a signal ends it."""
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
    options = serving_options(args, limits=limits, fleet=fleet)

    def listening(service: Any) -> None:
        replicas = service.fleet.replicas.values()
        verifiers = [{"url": one.url, "state": one.state} for one in replicas]
        lines = [f"  {one.url} ({one.state})" for one in replicas]
        announce(args, options, service, SCHEMA, {"verifiers": verifiers}, lines)

    process.serve(options, listening)
