"""What a draft engine is: something that steps one model over one KV cache.

The engine holds the cache's memory and no count: the caller says how many cached
tokens are valid, so rewinding is the caller lowering a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Sequence

import numpy as np


@dataclass(frozen=True)
class ModelSpec:
    """What an engine must know of the model before it opens the file."""

    layers: int  # transformer layers, each with one key and one value cache
    kv_heads: int  # key/value heads
    head_dim: int  # values per head
    vocab_size: int  # rows of the logits
    capacity: int  # tokens the KV cache shall hold
    graph: str  # form of the graph, as ``draft.json`` names it ("gqa", "concat", "static")
    min_engine: str = ""  # oldest engine version that loads the file, or ""


class Engine(Protocol):
    """One model and the memory of its KV cache; ``name`` is engine and version.

    Without ``multi_token`` a forward with a past is right for one token only. An engine may
    have ``warnings`` for the run report, and ``tail(tokens, past, rows)``, a ``block`` that
    returns logits ``(rows, vocab)`` of the last of them, a reused view.
    One with several ``lanes``, each a cache, has ``wide(first, tokens, pasts)``, a token
    for each lane from ``first`` on in one forward: logits ``(n, vocab)``, likewise; and
    ``copy(source, lane, start, end)``, of the cache of positions. All else is the first
    lane's.
    """

    name: str
    multi_token: bool

    # Run a token at position ``past``, or several from there on in one forward; logits
    # ``(vocab,)`` of the last, a reused view.
    def step(self, token: int, past: int) -> np.ndarray: ...
    def block(self, tokens: Sequence[int], past: int) -> np.ndarray: ...
    # How many of ``count`` tokens such a block has there; 1 where a step serves.
    def most(self, count: int, past: int) -> int: ...


def first_line(exc: BaseException) -> str:
    """Return the first line of what a library says of an error."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
