"""Texts for early exits: what they are trained, calibrated and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ConfigError
from draftwire.tokenizer import Tokenizer

__all__ = ["WINDOW", "Text", "cut", "read_texts", "training_batches", "windows"]

Ids = NDArray[np.int64]

WINDOW = 256  # tokens that the target reads at a time
_PIECE = 4000  # characters
_HELD_OUT = 10  # one piece of so many


@dataclass(frozen=True)
class Text:
    """One kind of text; every kind counts the same in calibration.

    Attributes:
        name: For tables.
        train: ``(n,)`` ids that the exits learn from.
        held_out: ``(n,)`` ids that they have not seen.
    """

    name: str
    train: Ids
    held_out: Ids


def read_texts(
    data: Sequence[Path],
    held_out: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    tokens: int,
    seed: int,
) -> list[Text]:
    """Read text files.

    Args:
        data: Files to learn from.
        held_out: As many files to calibrate and measure on, or none: then a tenth of
            each of ``data`` is held out.
        tokenizer: The target's.
        tokens: Wanted for training, of all files together.
        seed: Of the choice of passages.

    Raises:
        ConfigError: A file cannot be read or is too short, or the numbers differ.
    """
    if held_out and len(held_out) != len(data):
        raise ConfigError(
            f"{len(data)} files of --data need as many of --held-out, not {len(held_out)}",
            hint="give one held-out file for each, in the same order",
        )
    share = -(-tokens // len(data))
    texts = []
    for i, path in enumerate(data):
        pieces = _pieces(path)
        rng = np.random.default_rng((seed, i))
        order = rng.permutation(len(pieces))
        if held_out:
            rest = _pieces(held_out[i])
            rest = [rest[j] for j in rng.permutation(len(rest))]
        else:
            kept = max(2, len(pieces) // _HELD_OUT)
            rest = [pieces[j] for j in order[:kept]]
            order = order[kept:]
        train = _encode(tokenizer, [pieces[j] for j in order], share)
        seen = _encode(tokenizer, rest, max(4 * WINDOW, share // 4))
        if len(train) < 2 * WINDOW or len(seen) < 2 * WINDOW:
            raise ConfigError(
                f"{path} is too short: {len(train)} tokens to learn from and {len(seen)} "
                f"held out, each must be {2 * WINDOW} or more",
                hint="give more text, or no --data: then the target writes its own",
            )
        texts.append(Text(path.stem, train, seen))
    return texts


def _pieces(path: Path) -> list[str]:
    """Return a file in pieces that end at line ends."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path} is no UTF-8 text") from exc
    pieces, size = [""], 0
    for line in text.splitlines(keepends=True):
        if size >= _PIECE:
            pieces.append("")
            size = 0
        pieces[-1] += line
        size += len(line)
    return pieces


def _encode(tokenizer: Tokenizer, pieces: Sequence[str], wanted: int) -> Ids:
    """Return the ids of the first pieces, no more than ``wanted``."""
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer.encode(piece)
        if len(ids) >= wanted:
            break
    return np.array(ids[:wanted], np.int64)


def cut(ids: Ids, length: int) -> Ids:
    """Return ``(n, length)`` windows, side by side; a rest is dropped."""
    n = len(ids) // length
    return ids[: n * length].reshape(n, length)


def windows(texts: Sequence[Text], length: int, half: int) -> list[Ids]:
    """Return each text's held-out windows of one half, 0 or 1.

    The first half calibrates, the second measures: no passage is in both.
    """
    found = []
    for text in texts:
        all_of_it = cut(text.held_out, length)
        middle = len(all_of_it) // 2
        found.append(all_of_it[middle:] if half else all_of_it[:middle])
    return found


def training_batches(
    texts: Sequence[Text], *, length: int, rows: int, tokens: int, seed: int
) -> Iterator[Ids]:
    """Yield ``(rows, length)`` windows, each text as often as every other.

    Args:
        texts: What to read.
        length: Of a window.
        rows: Windows of a batch.
        tokens: In all batches together.
        seed: Of the choice.
    """
    rng = np.random.default_rng((seed, 2))
    for _ in range(max(1, tokens // (rows * length))):
        batch = []
        for _ in range(rows):
            ids = texts[int(rng.integers(len(texts)))].train
            start = int(rng.integers(0, len(ids) - length + 1))
            batch.append(ids[start : start + length])
        yield np.stack(batch)
