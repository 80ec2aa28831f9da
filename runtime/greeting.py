"""What a device says first, and what it remembers of a verifier, to begin without one."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

import draftwire
from draftwire.errors import ProtocolError
from draftwire.io import replacing
from draftwire.packages import DraftPackage
from draftwire.sampling import NOISES, SCHEMES
from draftwire.tracing import tracing
from draftwire.transport.codec import MAX_FRAME, Codec
from draftwire.transport.messages import Hello, Open, Welcome
from draftwire.transport.text_hash import TextHash

if TYPE_CHECKING:
    from draftwire.runtime.driver import StreamSpec

log = logging.getLogger("draftwire.session")
_ALONE = 1 << 20  # context of a target that nobody has met
_CAPABILITIES = (
    *("resume", "exits", "prefix", "further", "leaves", "trees", "beside"),
    *("processors", "logprobs", "brief"),
)
_PARAMS = (
    *("scheme", "temperature", "top_k", "top_p", "sample", "noise", "min_p", "bad_words"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
)
_GRAMMAR = ("grammar",) if find_spec("llguidance") else ()


def hello_of(package: DraftPackage, target: str) -> Hello:
    """Return the greeting for ``target`` (name or version, "" for the default)."""
    backbone = package.family.backbone
    return Hello(
        f"draftwire/{draftwire.__version__}",
        target,
        bytes.fromhex(package.family.tokenizer),
        bytes.fromhex(backbone) if backbone else b"",
        package.vocab_size,
        bytes.fromhex(package.id),
        package.family.name,
        (*_CAPABILITIES, *_GRAMMAR, *(["trace"] if tracing() else [])),
        NOISES,
    )


def open_of(
    spec: StreamSpec,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    bonus: bool,
    racing: bool,
    held: int,
    text: int,
) -> Open:
    """Return the request for a stream that begins with ``ids``.

    The verifier adds a token to a block accepted whole (``bonus``), or waits for no block
    (``racing``). ``held`` of the ids it has still: they are named, not sent; ``text`` at
    their end are text already.
    """
    params, grammar = spec.params, spec.grammar
    return Open(
        tuple(ids[held:]),
        **{name: getattr(params, name) for name in _PARAMS},
        seed=0 if params.scheme in ("greedy", "argmax") else params.seed,  # none is drawn
        max_new_tokens=max_new_tokens,
        stop_ids=tuple(spec.stop_ids),
        objective="latency" if racing else "cost",
        bonus=bonus,
        exits="exits" in spec.mode.preempt,
        prefix=TextHash(ids[:held]).digest(16) if held else b"",
        prefix_length=held,
        logprobs=spec.logprobs,
        text_before=text if params.penalised or grammar is not None else 0,
        grammar=b"" if grammar is None else grammar.compiled.grammar.digest,
        forced=grammar is None or grammar.forcing,
    )


def state_folder() -> Path | None:
    """Return where draftwire keeps what may be lost, or None without a home.

    Source:
        XDG Base Directory Specification; systemd sets ``STATE_DIRECTORY``.
    """
    handed = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if handed:
        return Path(handed)
    home = os.environ.get("HOME", "")
    base = os.environ.get("XDG_STATE_HOME", "") or (home and f"{home}/.local/state")
    return Path(base) / "draftwire" if base else None


def remember_welcome(url: str, target: str, draft: DraftPackage, welcome: Welcome) -> None:
    """Keep ``welcome`` for :func:`recall_welcome`; a full disk is no error."""
    path = _path(url, target, draft)
    if path is None or recall_welcome(url, target, draft) == welcome:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            fresh.write_bytes(Codec().encode(welcome))
    except OSError as exc:
        log.info("what the verifier said is not kept: %s", exc)


def recall_welcome(url: str, target: str, draft: DraftPackage) -> Welcome | None:
    """Return what the verifier at ``url`` said last to this draft, or None."""
    path = _path(url, target, draft)
    try:
        if path is None or path.stat().st_size > MAX_FRAME:
            return None
        found = Codec().decode(path.read_bytes()).message
    except (OSError, ProtocolError):
        return None
    if not isinstance(found, Welcome) or found.tokenizer.hex() != draft.family.tokenizer:
        return None
    sane = 1 <= found.vocab_size <= draft.vocab_size and found.context > 1
    return found if sane else None


def assumed_welcome(draft: DraftPackage) -> Welcome:
    """Return what a verifier that nobody has met would say, as far as the draft tells."""
    return Welcome(
        agent="",
        target="",
        target_version="",
        family=draft.family.name,
        tokenizer=bytes.fromhex(draft.family.tokenizer),
        backbone=b"",
        vocab_size=draft.vocab_size,
        context=_ALONE,
        max_block=255,
        eos_ids=tuple(draft.eos_ids),
        compatibility="unknown",
        capabilities=("processors", "grammar", "logprobs"),
        schemes=tuple(SCHEMES),
        noise=NOISES,
    )


def _path(url: str, target: str, draft: DraftPackage) -> Path | None:
    folder = state_folder()
    if folder is None:
        return None
    key = hashlib.sha256("\0".join((url, target, draft.id)).encode()).hexdigest()[:32]
    return folder / "verifiers" / f"{key}.welcome"
