"""Texts for early exits: what they are trained, calibrated and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ConfigError
from draftwire.export.training.text import deal_file, encode, read_documents
from draftwire.tokenizer import Tokenizer

Ids = NDArray[np.int64]

WINDOW = 256  # tokens that the target reads at a time
_HELD_OUT = 0.1
_BATCH = 64  # documents that are encoded at a time


@dataclass(frozen=True)
class Text:
    """One kind of text; every kind counts the same in calibration."""

    name: str  # for tables
    train: Ids  # ``(n,)`` ids that the exits learn from
    held_out: Ids  # ``(n,)`` ids that they have not seen


def read_texts(
    data: Sequence[Path],
    held_out: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    tokens: int,
    seed: int,
) -> list[Text]:
    """Read text files, plain or ``.jsonl``: ``tokens`` ids of all together, and what is
    held out.

    Without ``held_out`` that is a tenth of each. A ConfigError where a file cannot be read
    or is too short, or the numbers differ.
    """
    if held_out and len(held_out) != len(data):
        raise ConfigError(
            f"{len(data)} files of --data need as many of --held-out, not {len(held_out)}",
            hint="give one held-out file for each, in the same order",
        )
    share = -(-tokens // len(data))
    texts = []
    for i, path in enumerate(map(Path, data)):
        learnt, rest = deal_file(path, held_out=_HELD_OUT, seed=seed + i)
        if held_out:
            learnt, rest = learnt + rest, read_documents(held_out[i])
        train = _ids(tokenizer, learnt, share)
        seen = _ids(tokenizer, rest, max(4 * WINDOW, share // 4))
        if len(train) < 2 * WINDOW or len(seen) < 2 * WINDOW:
            raise ConfigError(
                f"{path} is too short: {len(train)} tokens to learn from and {len(seen)} "
                f"held out, each must be {2 * WINDOW} or more",
                hint="give more text, or no --data: then the target writes its own",
            )
        texts.append(Text(path.stem, train, seen))
    return texts


def _ids(tokenizer: Tokenizer, documents: Sequence[str], wanted: int) -> Ids:
    """Return the ids of the first documents, no more than ``wanted``."""
    found: list[int] = []
    for at in range(0, len(documents), _BATCH):
        part = documents[at : at + _BATCH]
        size = tokenizer.vocab_size
        found += encode(tokenizer.engine, part, vocab_size=size, end=None).tolist()
        if len(found) >= wanted:
            break
    return np.array(found[:wanted], np.int64)


def windows(texts: Sequence[Text], length: int, half: int) -> list[Ids]:
    """Return each text's held-out windows ``(n, length)`` of one half, 0 or 1.

    The first half calibrates, the second measures: no passage is in both.
    """
    found = []
    for text in texts:
        count = len(text.held_out) // length
        whole = text.held_out[: count * length].reshape(count, length)
        found.append(whole[count // 2 :] if half else whole[: count // 2])
    return found


def training_batches(
    texts: Sequence[Text], *, length: int, rows: int, steps: int, seed: int
) -> Iterator[Ids]:
    """Yield ``(rows, length)`` windows, each text as often as every other."""
    rng = np.random.default_rng((seed, 2))
    for _ in range(steps):
        batch = []
        for _ in range(rows):
            ids = texts[int(rng.integers(len(texts)))].train
            start = int(rng.integers(0, len(ids) - length + 1))
            batch.append(ids[start : start + length])
        yield np.stack(batch)
