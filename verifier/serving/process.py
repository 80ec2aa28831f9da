"""A verifier process from start to end: load, listen, watch, drain."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import ssl
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.errors import ConfigError, RefusedError
from draftwire.transport.wirelog import WireLog
from draftwire.verifier.backends.base import TargetBackend
from draftwire.verifier.backends.loading import Loader
from draftwire.verifier.backends.streaming import StreamBackend
from draftwire.verifier.beside import Drafts
from draftwire.verifier.gateway.fleet import Fleet
from draftwire.verifier.gateway.relay import Gateway
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.accounts import Account, Accounts, read_accounts
from draftwire.verifier.serving.service import Settings, VerifierService, tls_context

log = logging.getLogger("draftwire.verifier")


@dataclass(frozen=True)
class Options(Settings):
    """How to serve."""

    port: int = 8765
    targets: tuple[Path, ...] = ()  # packages or checkpoint folders
    # folder whose ``*.target`` packages come and go while it runs
    targets_dir: Path | None = None
    scan_s: float = 5.0  # seconds between two looks at ``targets_dir``
    default: str = ""  # target of devices that ask for none; "" means the newest
    # makes backends of paths
    loader: Callable[[Path], TargetBackend | StreamBackend] = field(default_factory=Loader)
    accounts: tuple[Account, ...] = ()  # who may connect; none for everyone
    token_file: Path | None = None  # holds them, in their place
    # certificate, key and the client authority (or None), or None for plain
    tls: tuple[Path, Path, Path | None] | None = None
    wire_log: Path | None = None  # file for wire events
    batch_tokens: int = 512  # most tokens in one forward
    batch: int = 64  # most streams in one forward
    prefill_chunk: int = 128  # most tokens of one prompt in one forward
    impatient: bool = False  # no forward of a race is held back for drafts
    # makes what drafts beside a target, or None
    draft: Callable[[TargetBackend], Drafts | None] | None = None
    drain_s: float = 10.0  # seconds that running streams may take at the end
    # verifiers to pass streams on to, in place of targets
    fleet: Callable[[], Fleet] | None = None

    def read_accounts(self) -> Sequence[Account]:
        """Return who may connect, by the token file as it is now."""
        return self.accounts if self.token_file is None else read_accounts(self.token_file)

    def read_tls(self) -> ssl.SSLContext | None:
        """Return the TLS settings, by the certificates as they are now."""
        return tls_context(*self.tls) if self.tls else None


def serve(options: Options, listening: Callable[[VerifierService], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once.

    SIGHUP reads the token file, the certificates, ``targets`` and ``targets_dir`` again.
    ``listening`` is called once, when devices can connect.

    Raises:
        ConfigError: An option does not fit, or the address cannot be had.
        ModelError: A target of ``options.targets`` does not load.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    brief, handlers = Brief(), tuple(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(brief)
    try:
        asyncio.run(_serve(options, listening))
    finally:
        for handler in handlers:
            handler.removeFilter(brief)


class Brief(logging.Filter):
    """Lets few lines of a kind pass in a while, and then says how many there were."""

    LINES, SECONDS = 10, 10.0

    def __init__(self) -> None:
        super().__init__()
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Count a line; tell whether it passes."""
        kind = f"{record.name} {str(record.msg)[:40]}"
        since, lines = self._seen.pop(kind, (record.created, 0))
        if record.created - since > self.SECONDS:
            if lines > self.LINES:
                record.msg = f"{record.msg} (and {lines - self.LINES} lines left out)"
            since, lines = record.created, 0
        self._seen[kind] = since, lines + 1
        if len(self._seen) > 256:
            self._seen.popitem(last=False)
        return lines < self.LINES


async def _serve(options: Options, listening: Callable[[VerifierService], None]) -> None:
    if not 1 <= options.prefill_chunk <= options.batch_tokens:
        raise ConfigError(
            f"a prompt chunk of {options.prefill_chunk} tokens is not within 1 and the "
            f"{options.batch_tokens} tokens of a forward"
        )
    registry = Registry(
        options.loader,
        scheduler={
            "max_tokens": options.batch_tokens,
            "max_batch": options.batch,
            "chunk": options.prefill_chunk,
            "patience": not options.impatient,
        },
        default=options.default,
        draft=options.draft,
    )
    path = options.wire_log
    wire_log = None if path is None else WireLog(path, "verifier")
    more: dict[str, Any] = {
        "accounts": Accounts(options.read_accounts()),
        "tls": options.read_tls(),
        "wire_log": wire_log,
    }
    if options.fleet is None:
        service = VerifierService(registry, options, **more)
    else:
        service = Gateway(registry, options, fleet=options.fleet(), **more)
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    watcher = None
    try:
        for path in options.targets:
            await registry.load(path)
        if options.targets_dir is not None:
            await registry.scan(options.targets_dir)
        watcher = asyncio.ensure_future(_watch(service, options, again))
        if options.default:
            try:
                registry.find(options.default, "")
            except RefusedError as error:
                raise ConfigError(str(error), hint="--default names one of them") from error
        await service.start()
        listening(service)
        await stop.wait()
        # From here on the signals have their usual effect: a second one is for good.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        await service.drain(options.drain_s)
    finally:
        if watcher is not None:
            watcher.cancel()
        await service.close()
        if wire_log is not None:
            wire_log.close()


async def _watch(service: VerifierService, options: Options, again: asyncio.Event) -> None:
    """Look at the targets now and then, and at everything when told so."""
    scan_s = None if options.targets_dir is None else options.scan_s
    while True:
        try:
            await asyncio.wait_for(again.wait(), scan_s)
        except asyncio.TimeoutError:
            pass
        try:
            if again.is_set():
                again.clear()
                log.warning("reading tokens, certificates and targets again")
                service.renew(options.read_accounts(), options.read_tls())
                await service.registry.reload()
            if options.targets_dir is not None:
                await service.registry.scan(options.targets_dir)
        except ConfigError as error:  # what was there before holds until it is mended
            log.error("%s", error)
