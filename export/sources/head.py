"""A draft's head over the frequent tokens alone: of a small model the head is what a step
reads most, and nearly every token that it drafts is one of a few thousand.

What it cannot say the target still can: the text stays the target's own.

Source:
    FR-Spec (frequency-ranked vocabulary of drafts), https://arxiv.org/abs/2502.14856.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError

KEY = "draft_head"  # of ``config.json``: which ids, a bit each, base64
UNSAID = np.float32(-1e4)  # the logit of every other token
_LEAST = 64
_ADDED = 256  # tokens at most that a tokenizer adds to its vocabulary and a head keeps


def head_ids(
    count: int,
    vocab_size: int,
    *,
    tokenizer: Any,
    keep: Iterable[int],
    seen: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the ids that a head of ``count`` tokens says, sorted: those to ``keep``, what
    the tokenizer (of tokenizers) adds to its vocabulary, then by how often each was
    ``seen`` ``(vocab_size,)``; those of one count by id, as byte-pair tokens are learnt.

    A ConfigError as of :func:`check_head`.
    """
    check_head(count, vocab_size)
    added = sorted(tokenizer.get_added_tokens_decoder())[:_ADDED]
    first = [i for i in (*keep, *added) if i < vocab_size]
    rank = np.zeros(vocab_size, np.int64) if seen is None else seen.astype(np.int64)
    rank[first] = np.iinfo(np.int64).max
    return np.sort(np.argsort(-rank, kind="stable")[:count])


def check_head(count: int, vocab_size: int) -> None:
    """Refuse (ConfigError) a head of too few tokens, or of no fewer than all."""
    if not _LEAST <= count < vocab_size:
        raise ConfigError(
            f"a head of {count:,} tokens was asked for, the draft has {vocab_size:,}",
            hint=f"choose {_LEAST} to {vocab_size - 1:,}; a sixth is a good beginning",
        )


def packed(ids: NDArray[np.int64], vocab_size: int) -> str:
    """Return what ``config.json`` keeps of a head's ids."""
    bits = np.zeros(vocab_size, np.uint8)
    bits[ids] = 1
    return base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")


def read_head(where: str, config: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the ids that a head says, () for all; a ModelError where it says none, or the
    table is another vocabulary's.
    """
    table = config.get(KEY)
    if table is None:
        return ()
    try:
        bits = np.frombuffer(base64.b64decode(table, validate=True), np.uint8)
    except (TypeError, ValueError, binascii.Error):
        bits = np.zeros(0, np.uint8)
    found = np.flatnonzero(np.unpackbits(bits))
    if len(bits) != -(-vocab_size // 8) or not len(found) or found[-1] >= vocab_size:
        raise ModelError(
            f"{where}: {KEY} is no table of its {vocab_size:,} tokens",
            hint="config.json belongs to another model",
        )
    return tuple(found.tolist())


def hushed(logits: NDArray[np.float32], said: tuple[int, ...]) -> NDArray[np.float32]:
    """Return logits ``(..., vocab)`` as a head of these ids gives them."""
    if not said:
        return logits
    found = np.full_like(logits, UNSAID)
    found[..., list(said)] = logits[..., list(said)]
    return found


def places(said: tuple[int, ...], vocab_size: int) -> NDArray[np.int32]:
    """Return the place of each token's logit among the head's, ``(vocab_size,)``: that
    after the last for one which is not said.
    """
    found = np.full(vocab_size, len(said), np.int32)
    found[list(said)] = np.arange(len(said))
    return found
