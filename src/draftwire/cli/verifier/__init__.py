"""``draftwire verifier serve|check|gateway|top|token``: the cloud side."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftwire.cli import _common
from draftwire.cli._leaf import LOG_FORMAT, NUMERICS, Leaf
from draftwire.errors import ConfigError
from draftwire.options import OPTIONS

if TYPE_CHECKING:
    from draftwire.verifier.serving import process
    from draftwire.verifier.serving.service import VerifierService

log = logging.getLogger("draftwire.verifier")

SCHEMA = "draftwire.verifier/1"
_NETWORK = """
network:
--host NAME =127.0.0.1  address to listen on
--port N:port =8765   0 takes a free one
--tls-cert PEM        certificate chain, for wss://
--tls-key PEM         its private key
--tls-client-ca PEM   ask devices for certificates
--insecure            allow plain ws:// off loopback
--trusted-proxy ADDRESS... >trusted  take X-Forwarded-For of this proxy or network into the
                      logs; may be repeated
--origin NAME... >origins  let scripts of this page connect, such as https://a.b; may be
                      repeated
--server-name NAME... >names  a name that devices or a proxy reach this verifier by; may be
                      repeated
--admin HOST:PORT:address  health with names, and metrics, without a token: an address of
                      your own
"""
_SERVE = f"""
targets:
--target PATH... >targets  a target package or checkpoint folder, or kit for the conformance
                      kit's; more than once for several (default: the reference targets)
--targets-dir DIR     serve every *.target in DIR; new ones are taken in while it runs
--scan-seconds S:positive =5 >scan_s  how often DIR is looked at
--default NAME =      for devices that name no target
--backend {{auto,onnx,hf,vllm,openai}} =auto  onnxruntime for packages, transformers for
                      checkpoints; vllm for those and adapters on an embedded vLLM, openai
                      for a server of somebody's own
--engine URL          openai: the server, such as http://127.0.0.1:8000; --target is then
                      the folder of its model's tokenizer
--engine-model NAME =  openai: which of its models (default: the first)
--engine-key FILE     openai: its bearer token
--engine-timeout S:positive =60 >engine_timeout_s  openai: for one of its answers
--engine-args JSON:json  vllm: more for it, such as '{{"tensor_parallel_size": 2}}'
--openai HOST:PORT:address  vllm: OpenAI's clients on the same engine, without a token: an
                      address of your own
--threads N           of the engine (default: cores)
--slots N =16         streams a target
--context N           most tokens of a stream
--device NAME         torch device, for checkpoints
--dtype {{float32,float16,bfloat16}}  torch dtype, for checkpoints (default: float32 on a
                      CPU)
--adapters {{auto,beside,merged}} =auto  evolved versions beside the tensors of one base, or
                      each merged into a model of its own (auto: small packages only)
{NUMERICS}
--batch-tokens N =512  a forward
--max-batch N =64 >batch  streams a forward
--prefill-chunk N =128  a prompt
--draft DIR           a draft package that drafts here too, where a device's drafts are late
--impatient           hold no forward of a race back for drafts that are on their way
{_NETWORK}limits:
--wire-log FILE       {OPTIONS["wire_log"].help}
--max-sessions N =64 >connections  devices
--max-streams N =16 >streams  at once on a connection
--max-block N =64 >block  drafts of a block
--max-waiting N =256 >waiting  waiting drafts of a stream
--prefixes N:whole =8  ended texts of a token to go on from
--lookup N:whole =4   tokens looked up behind the drafts
--leaves N:whole =16  second choices judged beside the drafts
--progress-seconds S:positive =1 >progress_s  how often a device hears that work goes on
--max-message-bytes N =8388608 >message_bytes  a frame; a device can take six times that of
                      memory
--frames-per-second N =1000 >frames_per_s  of a device
--bytes-per-second N =16777216 >bytes_per_s  of a device
--idle-timeout S:positive =300 >idle_s
--ping-seconds S:positive =20 >ping_s
--send-timeout S:positive =15 >send_s
--resume-ttl S:number =120 >resume_s  keep a stream whose link is lost so long, 0 for never
--resume-streams N =1024 >parked  kept
--resume-mib N =64 >parked_mib  of kept text
--drain-timeout S:positive =10 >drain_s
logs:
{LOG_FORMAT}"""
_GATEWAY = f"""
verifiers:
--to URL...           a verifier, such as ws://127.0.0.1:8766; repeat it for each
--to-file FILE        more of them, one a line, with the word drain behind one that shall
                      get no new streams; read again when it has changed
--to-name URL...      a name that stands for several machines (such as a headless service):
                      each address of it is a verifier, looked up again at every look
--to-ca PEM           trusted for wss:// to verifiers
--to-cert PEM         shown to verifiers that ask for one
--to-key PEM          its key
--health-seconds S:positive =2 >health_s  between two looks at each verifier
{_NETWORK}limits:
--max-sessions N =4096 >connections  devices
logs:
{LOG_FORMAT}"""
LEAVES = {
    "serve": Leaf(
        "serve targets until SIGTERM",
        "draftwire.cli.verifier:serve",
        _SERVE,
        about="Serve targets to devices. SIGTERM and Ctrl-C let running streams finish; "
        "SIGHUP reads tokens, certificates and targets again: what has changed serves new "
        "connections.",
        settings=("token_file",),
    ),
    "check": Leaf(
        "run a verifier, or a device, through the specification",
        "draftwire.cli.verifier.check:run",
        """
[URL]                 ws://HOST:PORT or wss://HOST:PORT
[COMMAND...]          with --device, behind --: asks for one text
--health              only ask for its health and its targets
--draft DIR           a draft package that fits a target there (default: the reference
                      draft)
--target NAME =       check this one (default: its own); kit: the kit's, without a draft
--quick               texts of 120 tokens, in seconds
--exhaust             also take every slot, for error 'busy'
--seconds S:positive =60  about
--patience S:positive =10  for an answer
--tls-ca,--ca PEM >ca  authority to trust
--insecure            allow plain ws:// off loopback
seeds:
--explain-seed N:whole  instead: what a stock vLLM or SGLang samples after --prompt with
                      this seed, by the weights in --target (a folder; default: the
                      reference target v1), and a curl command that asks the server at URL
--prompt TEXT =Once upon a time
--tokens N =8
--noise {murmur3/vllm,murmur3/sglang} =murmur3/vllm  the server's
--temperature T:positive =0.8
--top-k N:whole =0
--top-p P:share =1
device:
--device              instead: play a verifier with scripted faults on a loopback port, and
                      say what a device makes of them
--port N:port =0      0 takes a free one
--only WORDS =        rows whose name has these words
""",
        about="Run any verifier through transport/PROTOCOL.md, from outside, and say "
        "which rows conform, which fail and which were not tested; with --device any "
        "device: each row takes one text, COMMAND is run for each, with {url} replaced by "
        "the address (also in DRAFTWIRE_VERIFIER); without one, start devices by hand. "
        "Exit code 4 when a row fails. `--target kit` checks against exact texts; see "
        "docs/conformance.md.",
        settings=("token_file",),
    ),
    "gateway": Leaf(
        "one address for many verifiers",
        "draftwire.cli.verifier.gateway:run",
        _GATEWAY,
        about="Pass streams on to verifiers by consistent hashing. Nothing is kept: a "
        "stream finds its verifier by its id, and one whose verifier is gone is opened "
        "anew by its device. SIGTERM ends it; SIGHUP reads tokens and certificates again.",
        settings=("token_file",),
    ),
    "top": Leaf(
        "watch a verifier in a terminal",
        "draftwire.cli.verifier.top:run",
        """
[URL] =ws://127.0.0.1:8765  ws://HOST:PORT, wss://..., or http://HOST:PORT of --admin
--interval S:positive =2
--count N             print it N times, and end
--tls-ca,--ca PEM >ca  authority to trust
--insecure            show the token over plain ws:// as well
""",
        about="Show what a verifier does now, from its metrics: 80 columns, over ssh as "
        "well. q or Ctrl-C ends it. It wants a token, or the address of --admin.",
        settings=("token_file",),
    ),
    "token": Leaf(
        "make a bearer token",
        "draftwire.cli.verifier:token",
        """
--out FILE            write it there, 0600
--append              add it to what is in FILE
--limits WORDS =      after the token, such as 'name=arm sessions=2 blocks_per_s=50'
""",
        about="Make a random token; to stdout, or to a file for its owner alone. A token "
        "file may hold several tokens, one a line, each with limits of its own: TOKEN "
        "name=WHO sessions=N context=N blocks_per_s=N bytes_per_s=N frames_per_s=N. "
        "Devices get the token alone.",
    ),
}


def serving_options(args: argparse.Namespace, **more: Any) -> process.Options:
    """Return how to serve, by the flags and ``more``."""
    from draftwire.verifier.serving.process import Options

    token_file = _common.read_settings(args)["token_file"].value
    tls = (args.tls_cert, args.tls_key, args.tls_client_ca)
    if bool(args.tls_cert) != bool(args.tls_key) or (args.tls_client_ca and not tls[0]):
        hint = "give both PEM files; --tls-client-ca goes with them"
        raise ConfigError("TLS needs both --tls-cert and --tls-key", hint=hint)
    more.update({n: tuple(getattr(args, n)) for n in ("trusted", "origins", "names")})
    more.update(token_file=token_file, tls=tls if args.tls_cert else None)
    return _common.filled(Options, args, **more)


def serve(args: argparse.Namespace) -> None:
    """Serve targets until a signal ends it."""
    targets = list(args.targets)
    if not targets and args.targets_dir is None:
        from draftwire import reference

        targets = [reference.target_path(name) for name in reference.target_names()]
    from draftwire.verifier.serving import process
    from draftwire.verifier.serving.limits import Limits

    _common.start_logging(verbose=args.verbose, form=args.log_format)
    options = serving_options(
        args,
        targets=tuple(targets),
        loader=_loader(args, targets),
        draft=_draft(args),
        limits=_common.filled(Limits, args, parked_bytes=args.parked_mib << 20),
    )

    from draftwire.runtime.service.system import Notifier

    manager = Notifier(os.environ)

    def listening(service: VerifierService) -> None:
        manager.say("READY=1")
        keys = ("name", "version", "id", "context", "numerics")
        backends = [served.backend for served in service.registry.targets]
        targets = [{key: getattr(backend, key) for key in keys} for backend in backends]
        more = f"targets: {service.registry.listing()}"
        announce(args, options, service, SCHEMA, {"targets": targets}, [more])

    process.serve(options, listening)


def announce(
    args: argparse.Namespace,
    options: process.Options,
    service: Any,
    schema: str,
    more: dict[str, Any],
    lines: list[str],
) -> None:
    """Say where a service listens, and what else there is to say of it."""
    if options.token_file is None and not args.quiet:
        # The service takes only loopback then.
        log.warning("no token file: everyone on this machine may connect")
    document = {"schema": schema, "url": service.url, **more}
    if service.admin_url is not None:
        document["admin"] = service.admin_url
        lines.insert(0, f"health and metrics on {service.admin_url}")
    if _common.give_json(args, document):
        # The first line, so that a program that starts us can read the port.
        print(f"listening on {service.url}", flush=True)
        if not args.quiet:
            print("\n".join(lines), flush=True)


def _loader(args: argparse.Namespace, targets: list[Path]) -> Any:
    """Return what makes targets of paths (ConfigError: a flag is not for this backend)."""
    if (args.backend == "openai") is not bool(args.engine):
        hint = "--backend openai --engine http://127.0.0.1:8000 --target FOLDER"
        raise ConfigError("--backend openai and --engine go together", hint=hint)
    if args.backend == "openai":
        from draftwire.verifier.backends.attached import AttachedLoader

        return _common.filled(AttachedLoader, args)
    on_vllm = args.backend == "vllm"
    unfit = ("threads", "device", "numerics") if on_vllm else ("engine_args", "openai")
    for name in unfit:
        if getattr(args, name) is not None:
            message = f"--{name.replace('_', '-')} is not for --backend {args.backend}"
            own = "vLLM takes its own settings: --engine-args JSON"
            raise ConfigError(
                message, hint=own if on_vllm else "it goes with --backend vllm"
            )
    if on_vllm:
        from draftwire.verifier.backends.vllm.engine import VllmLoader

        return _common.filled(VllmLoader, args, targets=targets)
    from draftwire.verifier.backends.loading import Loader

    return _common.filled(Loader, args)


def _draft(args: argparse.Namespace) -> Any:
    """Return what makes models beside a target, or None (ConfigError: the package is none,
    or the backend drafts for itself)."""
    if args.draft is None:
        return None
    if args.backend in ("vllm", "openai"):
        raise ConfigError(
            f"--draft is not for --backend {args.backend}: its engine keeps the streams",
            hint="let the engine speculate by its own settings",
        )
    from draftwire.packages import load_draft
    from draftwire.runtime.engines.draft_model import DraftModel
    from draftwire.verifier.beside import Drafts

    package = load_draft(args.draft)
    DraftModel.load(package, threads=args.threads)  # what is wrong with it is said now

    def make(backend: Any) -> Drafts | None:
        if backend.family.tokenizer != package.family.tokenizer:
            log.warning(
                "%s %s is served without the draft %s: their tokenizers differ",
                *(backend.name, backend.version, package.name),
            )
            return None
        load = partial(DraftModel.load, package, threads=args.threads)
        return Drafts(load, package.vocab_size, package.context)

    return make


def token(args: argparse.Namespace) -> None:
    """Make a token."""
    from draftwire.verifier.serving.accounts import make_token_line, write_token_file

    if args.append and args.out is None:
        raise ConfigError("--append needs --out FILE")
    line = make_token_line(args.limits)
    if args.out is None:
        print(line)
        return
    write_token_file(args.out, line, append=args.append)
    if not args.quiet:
        print(f"wrote {args.out}; devices get the token in it for their --token-file")
