"""What a draft shares with its targets, as one number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

_EMBEDDINGS = frozenset(
    {
        "model.embed_tokens.weight",
        "gpt_neox.embed_in.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
)
_LAYER = re.compile(r"(?:model|gpt_neox)\.layers\.(\d+)\.|transformer\.h\.(\d+)\.")


def anchor_parameters(names: Iterable[str], layers: int) -> list[str]:
    """Return the parameters of the anchor: embedding and the first ``layers``."""
    found = []
    for name in names:
        match = _LAYER.match(name)
        if name in _EMBEDDINGS or (match and int(match[match.lastindex or 1]) < layers):
            found.append(name)
    return sorted(found)


def backbone_fingerprint(
    names: Iterable[str], weight: Callable[[str], NDArray[np.float32]], *, layers: int
) -> str:
    """Return the fingerprint, 64 hex digits, of a model's anchor: the embedding and so many
    first layers of the parameters ``names``, each of which ``weight`` gives as float32.

    Draft and targets of a family have it in common, and no evolution may touch it. Names do
    not matter, nor does a file's format: ``transport/PROTOCOL.md`` 4.1 says it to the byte.
    Weights are rounded to float16, so that a checkpoint and its float16 package have the
    same value.
    """
    groups: dict[int, list[str]] = {at: [] for at in range(-1, layers)}
    for name in anchor_parameters(names, layers):
        match = _LAYER.match(name)
        with np.errstate(over="ignore"):
            values = weight(name).astype("<f2") + np.float16(0)  # one zero, not two
        found = hashlib.sha256(values.tobytes()).hexdigest()
        groups[int(match[match.lastindex or 1]) if match else -1].append(found)
    lines = [f"draftwire.backbone/2 {layers}"]
    for at, digests in groups.items():
        lines += ["embedding" if at < 0 else f"layer {at}", *sorted(digests)]
    packed = "".join(line + "\n" for line in lines)
    return hashlib.sha256(packed.encode("ascii")).hexdigest()
