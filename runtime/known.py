"""What a device remembers of a verifier: so that it can begin without one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from draftwire.io import replacing
from draftwire.packages import DraftPackage
from draftwire.sampling import SCHEMES
from draftwire.transport.codec import VERSION
from draftwire.transport.messages import Welcome

__all__ = ["assumed_welcome", "recall_welcome", "remember_welcome", "state_folder"]

log = logging.getLogger("draftwire.session")
_FORMAT = "draftwire.welcome/1"
_LARGEST = 1 << 16
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
    fields = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in dataclasses.asdict(welcome).items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            fresh.write_text(json.dumps({"format": _FORMAT, "welcome": fields}))
    except OSError as exc:
        log.info("what the verifier said is not kept: %s", exc)


def recall_welcome(url: str, target: str, draft: DraftPackage) -> Welcome | None:
    """Return what the verifier at ``url`` said last to this draft, or None."""
    path = _path(url, target, draft)
    try:
        if path is None or path.stat().st_size > _LARGEST:
            return None
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            return None
        known = {field.name: field.type for field in dataclasses.fields(Welcome)}
        raw = {name: document["welcome"][name] for name in known}
        for name, kind in known.items():
            if kind == "bytes":
                raw[name] = bytes.fromhex(raw[name])
            elif isinstance(raw[name], list):
                raw[name] = tuple(raw[name])
        found = Welcome(**raw)
        fits = found.tokenizer.hex() == draft.family.tokenizer
        sane = 1 <= found.vocab_size <= draft.vocab_size and found.context > 1
        return found if fits and sane else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def assumed_welcome(draft: DraftPackage) -> Welcome:
    """Return what a verifier that nobody has met would say, as far as the draft tells."""
    return Welcome(
        version=VERSION,
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
        schemes=tuple(SCHEMES),
    )


def _path(url: str, target: str, draft: DraftPackage) -> Path | None:
    folder = state_folder()
    if folder is None:
        return None
    key = hashlib.sha256("\0".join((url, target, draft.id)).encode()).hexdigest()[:32]
    return folder / "verifiers" / f"{key}.json"
