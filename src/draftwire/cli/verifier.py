"""``draftwire verifier serve|gateway|check|mimic|top|token``: the cloud side."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftwire import rules
from draftwire.cli import (
    _common,
    _verifier_check,
    _verifier_gateway,
    _verifier_mimic,
    _verifier_top,
)
from draftwire.errors import ConfigError
from draftwire.options import OPTIONS

if TYPE_CHECKING:
    from draftwire.verifier.serving.service import VerifierService

__all__ = ["register"]

log = logging.getLogger("draftwire.verifier")

SCHEMA = "draftwire.verifier/1"
_COUNT = _common.ruled(rules.whole(1, 10**9))
_NONE = _common.ruled(rules.whole(0, 10**9))
_POSITIVE = _common.ruled(rules.number(0, 1e9, above=True))
_SECONDS = _common.ruled(rules.number(0, 1e9))
_FRAME = "a frame (8 MiB); a device can take six times that of memory"
_RESUME = "keep a stream whose link is lost so long, 0 for never (120)"


def register(subparsers: Any) -> None:
    """Add the command."""
    actions = _common.add_actions(
        subparsers,
        "verifier",
        help="serve targets to devices",
        description="Hold target models and verify what devices draft.",
    )
    _register_serve(actions)
    _verifier_gateway.register(actions, _register_network, _network_of)
    _verifier_check.register(actions)
    _verifier_mimic.register(actions)
    _verifier_top.register(actions)
    token = actions.add_parser(
        "token",
        help="make a bearer token",
        description="Make a random token; to stdout, or to a file for its owner alone. A "
        "token file may hold several tokens, one a line, each with limits of its own: "
        "TOKEN name=WHO sessions=N context=N blocks_per_s=N bytes_per_s=N frames_per_s=N. "
        "Devices get the token alone.",
    )
    token.add_argument("--out", type=Path, metavar="FILE", help="write it there, 0600")
    token.add_argument("--append", action="store_true", help="add it to what is in FILE")
    token.add_argument(
        "--limits",
        default="",
        metavar="WORDS",
        help="after the token, such as 'name=arm sessions=2 blocks_per_s=50'",
    )
    _common.add_common_flags(token)
    token.set_defaults(run=_token)


def _register_serve(actions: Any) -> None:
    serve = actions.add_parser(
        "serve",
        help="serve targets until SIGTERM",
        description="Serve targets to devices. SIGTERM and Ctrl-C let running streams "
        "finish; SIGHUP reads tokens, certificates and targets again: what has changed "
        "serves new connections.",
    )
    models = serve.add_argument_group("targets")
    add = models.add_argument
    add(
        "--target",
        dest="targets",  # `target` is a setting of devices
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="a target package or checkpoint folder, or kit for the conformance kit's; "
        "more than once for several (default: the reference targets)",
    )
    add(
        "--targets-dir",
        type=Path,
        metavar="DIR",
        help="serve every *.target in DIR; new ones are taken in while it runs",
    )
    add(
        "--scan-seconds",
        dest="scan_s",
        type=_POSITIVE,
        default=5.0,
        metavar="S",
        help="how often DIR is looked at (default: 5)",
    )
    add("--default", default="", metavar="NAME", help="for devices that name no target")
    add(
        "--backend",
        choices=("auto", "onnx", "hf"),
        default="auto",
        help="onnxruntime for packages, transformers for checkpoints (default: auto)",
    )
    add("--threads", type=_COUNT, metavar="N", help="of the engine (default: cores)")
    add("--slots", type=_COUNT, default=16, metavar="N", help="streams a target (16)")
    add("--context", type=_COUNT, metavar="N", help="most tokens of a stream")
    add("--device", metavar="NAME", help="torch device, for checkpoints")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="torch dtype, for checkpoints (default: float32 on a CPU)",
    )
    _common.add_numerics(models)
    add("--batch-tokens", type=_COUNT, default=512, metavar="N", help="a forward (512)")
    add(
        "--max-batch",
        dest="batch",
        type=_COUNT,
        default=64,
        metavar="N",
        help="streams a forward (64)",
    )
    add("--prefill-chunk", type=_COUNT, default=128, metavar="N", help="a prompt (128)")
    _register_network(serve)
    _register_limits(serve)
    _common.add_common_flags(serve)
    _common.add_log_format(serve)
    serve.set_defaults(run=_serve)


def _register_network(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument_group("network").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    add(
        "--port",
        type=_common.ruled(rules.whole(0, 65535)),
        default=8765,
        help="0 takes a free one (default: 8765)",
    )
    _common.add_settings(serve, ("token_file",))
    add("--tls-cert", type=Path, metavar="PEM", help="certificate chain, for wss://")
    add("--tls-key", type=Path, metavar="PEM", help="its private key")
    add("--tls-client-ca", type=Path, metavar="PEM", help="ask devices for certificates")
    add("--insecure", action="store_true", help="allow plain ws:// off loopback")
    add(
        "--trusted-proxy",
        dest="trusted",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="take X-Forwarded-For of this proxy or network into the logs; may be repeated",
    )
    for flag, name, about in (
        ("--origin", "origins", "let scripts of this page connect, such as https://a.b"),
        ("--server-name", "names", "a name that devices or a proxy reach this verifier by"),
    ):
        about += "; may be repeated"
        add(flag, dest=name, action="append", default=[], metavar="NAME", help=about)
    add(
        "--admin",
        type=_address,
        metavar="HOST:PORT",
        help="health with names, and metrics, without a token: an address of your own",
    )


def _register_limits(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument_group("limits").add_argument
    add("--wire-log", type=Path, metavar="FILE", help=OPTIONS["wire_log"].help)
    for flag, name, kind, default, about in (
        ("--max-sessions", "connections", _COUNT, 64, "devices (64)"),
        ("--max-streams", "streams", _COUNT, 16, "at once on a connection (16)"),
        ("--max-block", "block", _COUNT, 64, "drafts of a block (64)"),
        ("--max-waiting", "waiting", _COUNT, 256, "waiting drafts of a stream (256)"),
        ("--prefixes", "prefixes", _NONE, 8, "ended texts of a token to go on from (8)"),
        ("--lookup", "lookup", _NONE, 4, "tokens looked up behind the drafts (4)"),
        ("--progress-seconds", "progress_s", _POSITIVE, 1.0, "(1)"),
        ("--max-message-bytes", "message_bytes", _COUNT, 8 << 20, _FRAME),
        ("--frames-per-second", "frames_per_s", _COUNT, 1000, "of a device (1000)"),
        ("--bytes-per-second", "bytes_per_s", _COUNT, 16 << 20, "of a device (16 MiB)"),
        ("--idle-timeout", "idle_s", _POSITIVE, 300.0, "(300)"),
        ("--ping-seconds", "ping_s", _POSITIVE, 20.0, "(20)"),
        ("--send-timeout", "send_s", _POSITIVE, 15.0, "(15)"),
        ("--resume-ttl", "resume_s", _SECONDS, 120.0, _RESUME),
        ("--resume-streams", "parked", _COUNT, 1024, "kept (1024)"),
        ("--resume-mib", "parked_mib", _COUNT, 64, "of kept text (64)"),
        ("--drain-timeout", "drain_s", _POSITIVE, 10.0, "(10)"),
    ):
        letter = "N" if kind in (_COUNT, _NONE) else "S"
        add(flag, dest=name, type=kind, default=default, metavar=letter, help=about)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def _network_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``serving.Options`` that are an address to listen on."""
    token_file = _common.read_settings(args)["token_file"].value
    tls = (args.tls_cert, args.tls_key, args.tls_client_ca)
    if bool(args.tls_cert) != bool(args.tls_key) or (args.tls_client_ca and not tls[0]):
        raise ConfigError(
            "TLS needs both --tls-cert and --tls-key",
            hint="give both PEM files; --tls-client-ca goes with them",
        )
    return {
        "host": args.host,
        "port": args.port,
        "insecure": args.insecure,
        "trusted": tuple(args.trusted),
        "token_file": token_file,
        "origins": tuple(args.origins),
        "names": tuple(args.names),
        "admin": args.admin,
        "tls": tls if args.tls_cert else None,
    }


def _serve(args: argparse.Namespace) -> int:
    targets = list(args.targets)
    if not targets and args.targets_dir is None:
        from draftwire import reference

        targets = [reference.target_path(name) for name in reference.target_names()]
    from draftwire.verifier.backends.loading import Loader
    from draftwire.verifier.serving import process
    from draftwire.verifier.serving.limits import Limits

    _common.start_logging(verbose=args.verbose, form=args.log_format)
    options = process.Options(
        **{
            **_fields(process.Options, args),
            **_network_of(args),
            "targets": tuple(targets),
            "loader": Loader(**_fields(Loader, args)),
            "limits": Limits(**_fields(Limits, args), parked_bytes=args.parked_mib << 20),
        }
    )

    def listening(service: VerifierService) -> None:
        if (
            options.token_file is None and not args.quiet
        ):  # the service takes only loopback then
            log.warning("no token file: everyone on this machine may connect")
        served = [
            {
                "name": s.backend.name,
                "version": s.backend.version,
                "id": s.backend.id,
                "context": s.backend.context,
                "numerics": s.backend.numerics,
            }
            for s in service.registry.targets
        ]
        document = {"schema": SCHEMA, "url": service.url, "targets": served}
        if service.admin_url is not None:
            document["admin"] = service.admin_url
        if _common.give_json(args, document):
            # The first line, so that a program that starts us can read the port.
            print(f"listening on {service.url}", flush=True)
            if not args.quiet:
                if service.admin_url is not None:
                    print(f"health and metrics on {service.admin_url}", flush=True)
                print(f"targets: {service.registry.listing()}", flush=True)

    process.serve(options, listening)
    return 0


def _fields(kind: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return those of ``args`` that are fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _token(args: argparse.Namespace) -> int:
    from draftwire.verifier.serving import process

    if args.append and args.out is None:
        raise ConfigError("--append needs --out FILE")
    line = process.make_token_line(args.limits)
    if args.out is None:
        print(line)
        return 0
    process.write_token_file(args.out, line, append=args.append)
    if not args.quiet:
        print(f"wrote {args.out}; devices get the token in it for their --token-file")
    return 0
