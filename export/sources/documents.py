"""Text files as documents and their ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from draftwire.errors import ConfigError, ModelError
from draftwire.io import parse_json
from draftwire.template import Template, check_messages
from draftwire.tokenizer import load_tokenizer

# Paragraphs of a plain text are joined to pieces of about this many characters, so that
# a piece still has sentences that belong together.
_PIECE = 2000
_FIELDS = ("text", "turns", "prompt", "content")
_EACH = f"each line is an object with one of {', '.join(_FIELDS)}, messages"


class Asking(str):
    """A conversation whose next turn is the model's."""

    __slots__ = ()


def read_documents(path: str | Path, template: Template | None = None) -> list[str]:
    """Return the documents of a text file: plain, cut at blank lines, or ``.jsonl`` with
    the text under "text", "turns", "prompt" or "content", or with "messages", which the
    chat template writes.

    A ConfigError where it is missing, empty, not UTF-8, or JSON of another kind.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        hint = "give a text file with --data"
        raise ConfigError(f"{path} cannot be read: {exc.strerror}", hint=hint) from exc
    except UnicodeDecodeError as exc:
        hint = "convert it, or give another file"
        raise ConfigError(f"{path} is not UTF-8 text", hint=hint) from exc
    if path.suffix == ".jsonl":
        lines = enumerate(text.splitlines(), 1)
        documents: list[str] = [
            _document(path, n, line, template) for n, line in lines if line.strip()
        ]
    else:
        documents = [""]
        for paragraph in re.split(r"\n\s*\n", text):
            if paragraph.strip():
                if len(documents[-1]) >= _PIECE:
                    documents.append("")
                documents[-1] += paragraph.strip("\n") + "\n\n"
    if not any(documents):
        raise ConfigError(f"{path} holds no text", hint="give another file")
    return documents


def _document(path: Path, number: int, line: str, template: Template | None) -> str:
    where = f"line {number} of {path}"
    try:
        found = parse_json(line)
    except ValueError as exc:
        raise ConfigError(f"{where} is not JSON", hint=_EACH) from exc
    if isinstance(found, dict) and "messages" in found:
        if template is None or template.text is None:
            raise ConfigError(
                f"{where} holds messages, and the base has no chat template",
                hint='give "text", or a base with a chat template',
            )
        try:
            messages = check_messages(found["messages"])
            asks = messages[-1]["role"] == "user"
            said = template.render(messages, add_generation_prompt=asks)
        except ConfigError as exc:
            raise ConfigError(f"{where}: {exc}", hint=exc.hint) from exc
        return Asking(said) if asks else said
    for field in _FIELDS:
        value: Any = found.get(field) if isinstance(found, dict) else None
        if isinstance(value, list):
            value = "\n".join(map(str, value))
        if isinstance(value, str):
            return value
    raise ConfigError(f"{where} has no text", hint=_EACH)


def count_ids(
    folder: Path, files: Sequence[str | Path], vocab_size: int
) -> NDArray[np.int64]:
    """Return how often each token is in some files, ``(vocab_size,)``, as the tokenizer and
    the chat template of a model's ``folder`` write them.

    Errors as of :func:`read_documents` and :func:`encode`.
    """
    engine, template = load_tokenizer(folder).engine, Template.of(folder)
    found = np.zeros(vocab_size, np.int64)
    for file in files:
        documents = read_documents(file, template)
        ids = encode(engine, documents, vocab_size=vocab_size)
        found += np.bincount(ids, minlength=vocab_size)
    return found


def encode(
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    vocab_size: int,
    end: int | None = None,
    most: int | None = None,
) -> NDArray[Any]:
    """Encode documents as one stream of ids, at most so many, as wide as ``vocab_size``
    asks, ``end`` after each.

    A ModelError where the tokenizer knows more tokens than the base.
    """
    kind = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    rows = [np.zeros(0, kind)]
    for at in range(0, len(documents), 256):
        if most is not None and sum(map(len, rows)) >= most:
            break
        batch = list(documents[at : at + 256])
        for found in tokenizer.encode_batch(batch, add_special_tokens=False):
            ids = found.ids + ([] if end is None else [end])
            if max(ids, default=0) >= vocab_size:
                raise ModelError(
                    f"the tokenizer makes id {max(ids)}, the base has {vocab_size} tokens",
                    hint="give the tokenizer that the base was trained with",
                )
            rows.append(np.array(ids, kind))
    return np.concatenate(rows)[:most]
