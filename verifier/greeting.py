"""The verifier's side of the greeting: which target, on which terms, or why not.

A refusal says which side to change: the person who reads it has only one of them.
"""

from __future__ import annotations

import dataclasses
import logging

from draftwire import __version__
from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    ProtocolError,
    RefusedError,
)
from draftwire.sampling import NOISES
from draftwire.tracing import tracing
from draftwire.transport.messages import Error, Hello, Welcome
from draftwire.verifier.backends.streaming import keeps_streams, schemes_of
from draftwire.verifier.registry import Registry, Served
from draftwire.verifier.serving.accounts import Usage
from draftwire.verifier.serving.limits import FatalError, Limits

log = logging.getLogger("draftwire.verifier")

DRAINING = Error(
    "draining",
    "this verifier is going away",
    "connect again, to another verifier or in a while",
)
REVOKED = "the token of this device is not valid any more"


def fatal(error: Error) -> FatalError:
    """Return the exception that sends ``error``."""
    return FatalError(error.code, error.message, error.hint)


def error_of(error: Exception) -> Error:
    """Return what a device is told of ``error``; bugs of ours are logged.

    Whatever is not the device's mistake nor a lack of room is ``internal``.
    """
    if not isinstance(error, DraftwireError):
        log.error("the verifier failed", exc_info=error)
        return Error("internal", f"the verifier failed: {type(error).__name__}")
    kinds = (ProtocolError, "protocol"), (ConfigError, "request"), (RefusedError, "busy")
    code = next((word for kind, word in kinds if isinstance(error, kind)), "internal")
    code = getattr(error, "code", code)
    # A text field holds 4096 bytes, a character takes up to four. Engines put anything
    # into their sentences; people read this on a terminal.
    message, hint = (
        "".join(c if c.isprintable() else " " for c in text[:1000])
        for text in (str(error), error.hint)
    )
    told = Error(code, message, hint, getattr(error, "fatal", code == "protocol"))
    if isinstance(error, BusyError) and error.retry_after_s is not None:
        told = dataclasses.replace(told, retry_after_ms=round(1e3 * error.retry_after_s))
    return told


def check_room(connections: int, limits: Limits, usage: Usage) -> None:
    """Refuse a device where ``connections`` have said hello, and its account has its share.

    A device whose link broke may be back before its old connection is seen to be dead,
    so an account may have some more connections than streams.

    Raises:
        FatalError: There are too many.
    """
    if usage.revoked:
        raise FatalError("limit", REVOKED)
    if connections >= limits.connections:
        raise FatalError(
            "busy",
            f"{limits.connections} devices are connected, that is this verifier's limit",
            "try again later, or raise --max-sessions",
        )
    sessions = usage.account.sessions
    if sessions is not None and usage.connections > 2 * sessions + 2:
        raise FatalError(
            "limit",
            f"token {usage.account.name!r} allows {sessions} sessions, and "
            f"{usage.connections} of its devices are connected",
            "disconnect some of them; lost ones are noticed within a minute",
        )


def choose(hello: Hello, registry: Registry) -> Served:
    """Return the target for a device.

    Raises:
        FatalError: There is none, or it does not go with the device's draft.
        ProtocolError: The hello makes no sense.
    """
    if hello.vocab_size < 2:
        raise ProtocolError(f"a vocabulary of {hello.vocab_size}")
    tokenizer = hello.tokenizer.hex()
    try:
        served = registry.find(hello.target, tokenizer)
    except RefusedError as error:
        raise FatalError("target", str(error), error.hint) from None
    family = served.backend.family
    if family.tokenizer != tokenizer:
        of_family = f" of family {hello.family!r}" if hello.family else ""
        raise FatalError(
            "tokenizer",
            f"the draft{of_family} has tokenizer {tokenizer[:12]}, target "
            f"{served.label} of family {family.name!r} has {family.tokenizer[:12]}: "
            "their token ids mean different text",
            "on the device use a draft made for this target, or here serve a target of "
            "the draft's family",
        )
    return served


def welcome_to(
    hello: Hello,  # the device's
    served: Served,  # its target
    limits: Limits,  # of the verifier
    # longest sequence that the device's account allows, or None
    context: int | None = None,
) -> Welcome:
    """Return the terms of a connection, within what both sides can do."""
    backend = served.backend
    ours = not keeps_streams(backend)  # each token is decided here
    has = {
        "resume": limits.resume_s > 0,
        "exits": backend.exits,
        "prefix": limits.prefixes,
        "further": True,
        "brief": True,
        "leaves": limits.leaves and getattr(backend, "leaves", False),
        "trees": limits.leaves and getattr(backend, "leaves", False),
        "processors": ours,
        "logprobs": ours,
        "grammar": ours and served.grammars.offered,
        "beside": served.drafts is not None,
        "trace": tracing(),
    }
    family = backend.family
    same = hello.family == family.name
    if hello.backbone:
        same = hello.backbone.hex() == family.backbone
    try:
        digest = bytes.fromhex(backend.id)
    except ValueError:  # a checkpoint folder has a name only
        digest = b""
    vocab_size = min(hello.vocab_size, backend.vocab_size)
    noise = tuple(n for n in hello.noise if n in getattr(backend, "noises", NOISES))
    schemes = [s for s in schemes_of(backend) if noise or s != "coupled"]
    return Welcome(
        agent=f"draftwire-verifier/{__version__}",
        target=backend.name,
        target_version=backend.version,
        family=family.name,
        tokenizer=bytes.fromhex(family.tokenizer),
        backbone=bytes.fromhex(family.backbone or ""),
        vocab_size=vocab_size,
        context=min(
            backend.context, limits.context or backend.context, context or backend.context
        ),
        max_block=limits.block,
        max_waiting=max(limits.waiting, limits.block),
        eos_ids=tuple(i for i in backend.eos_ids if i < vocab_size),
        # how well the draft will age, as PROTOCOL.md 4.1 has it
        compatibility="family" if same else "tokenizer",
        capabilities=tuple(c for c in hello.capabilities if has.get(c)),
        schemes=tuple(schemes),
        target_id=digest if len(digest) == 32 else b"",
        noise=noise,
        numerics=backend.numerics,
        streams=limits.streams,
        progress_ms=round(limits.progress_s * 1e3),
    )
