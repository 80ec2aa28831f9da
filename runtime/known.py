"""What a device remembers of a verifier: so that it can begin without one."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from draftwire.errors import ProtocolError
from draftwire.io import replacing
from draftwire.packages import DraftPackage
from draftwire.sampling import NOISES, SCHEMES
from draftwire.transport.codec import MAX_FRAME, Codec
from draftwire.transport.messages import Welcome

__all__ = ["assumed_welcome", "recall_welcome", "remember_welcome", "state_folder"]

log = logging.getLogger("draftwire.session")
_ALONE = 1 << 20  # context of a target that nobody has met


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
