"""Text files to token streams, cut into parts that share no document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from draftwire.errors import ConfigError, ModelError

__all__ = ["encode", "read_documents", "split_documents"]

# Paragraphs of a plain text are joined to pieces of about this many characters, so that
# a piece still has sentences that belong together.
_PIECE = 2000
_FIELDS = ("text", "turns", "prompt", "content")


def read_documents(path: str | Path) -> list[str]:
    """Return the documents of a text file.

    Args:
        path: Plain text, cut at blank lines; or ``.jsonl`` with one object a line that
            has its text under "text", "turns", "prompt" or "content".

    Raises:
        ConfigError: The file is missing, empty, not UTF-8, or JSON of another kind.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"{path} cannot be read: {exc.strerror}", hint="give a text file with --data"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"{path} is not UTF-8 text", hint="convert it, or give another file"
        ) from exc
    if path.suffix == ".jsonl":
        documents = [
            _document(path, number, line)
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    else:
        documents, piece = [], ""
        for paragraph in re.split(r"\n\s*\n", text):
            if not paragraph.strip():
                continue
            piece += paragraph.strip("\n") + "\n\n"
            if len(piece) >= _PIECE:
                documents.append(piece)
                piece = ""
        documents += [piece] if piece else []
    if not documents:
        raise ConfigError(f"{path} holds no text")
    return documents


def _document(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"line {number} of {path} is not JSON") from exc
    for field in _FIELDS:
        value: Any = found.get(field) if isinstance(found, dict) else None
        if isinstance(value, list):
            value = "\n".join(map(str, value))
        if isinstance(value, str):
            return value
    raise ConfigError(
        f"line {number} of {path} has no text",
        hint=f"each line is an object with one of {', '.join(_FIELDS)}",
    )


def split_documents(
    documents: Sequence[str], shares: Mapping[str, float], *, seed: int
) -> dict[str, list[str]]:
    """Deal documents into parts.

    Args:
        documents: All of them.
        shares: Of each part, in the order in which they are served; a part with a
            share gets a document if there are enough.
        seed: Of the shuffle.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    shuffled = [documents[i] for i in order]
    whole, parts, at, passed = sum(shares.values()), {}, 0, 0.0
    for number, (name, share) in enumerate(shares.items()):
        passed += share
        end = round(len(shuffled) * passed / whole)
        if share and end == at and len(shuffled) - at > len(shares) - number - 1:
            end = at + 1
        parts[name] = shuffled[at:end]
        at = end
    return parts


def encode(
    tokenizer: Tokenizer, documents: Sequence[str], *, vocab_size: int, end: int | None
) -> NDArray[Any]:
    """Encode documents as one stream of ids.

    Args:
        tokenizer: The base's.
        documents: Texts.
        vocab_size: Of the base; decides the width of an id in the stream.
        end: Id put after each document, or None.

    Raises:
        ModelError: The tokenizer knows more tokens than the base.
    """
    kind = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    closing = [] if end is None else [end]
    rows = []
    for at in range(0, len(documents), 256):
        for found in tokenizer.encode_batch(
            list(documents[at : at + 256]), add_special_tokens=False
        ):
            ids = found.ids + closing
            if ids and max(ids) >= vocab_size:
                raise ModelError(
                    f"the tokenizer makes id {max(ids)}, the base has {vocab_size} tokens",
                    hint="give the tokenizer that the base was trained with",
                )
            rows.append(np.array(ids, kind))
    return np.concatenate(rows) if rows else np.zeros(0, kind)
