"""Text of a model's own, and whether a smaller form of it still says the same.

What a draft meets is text like its own, and 100 positions cannot tell 94 % from 97 %. So
the float32 graph writes a few texts first, and every precision reads them, a token and 64
tokens at a time: rounding that depends on what else is in a step shows there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from draftwire.errors import ModelError
from draftwire.export.graphs.draft import rotation
from draftwire.export.precision.parity import Parity, largest, mask_rows
from draftwire.export.precision.quantise import inputs_of
from draftwire.export.precision.runners import DraftRunner, Logits, Reader, session, threads

POSITIONS = 1056  # of the gate, and about as many again to calibrate on
CHUNKS = (64, 1)
TEMPERATURE = 0.7

_STARTS = (
    "Once upon a time there was a robot who",
    "The weather in the north is",
    "def area(width, height):\n    return",
    "Question: how do I boil an egg? Answer:",
    "In 1998 the company",
    "Dear Anna, thank you for",
)
# Text to come goes further: what is cut off costs more than coarser steps (SmolLM2 from 200
# tokens: divergence 0.0073 without, 0.0063 with a fifth more, 0.026 with a fifth less).
_HEADROOM = np.float32(1.2)
_GROUP = 128  # inputs that are watched in one pass


@dataclass(frozen=True)
class Texts:
    """What the gate reads and what calibrates, both written by the model."""

    judge: tuple[tuple[int, ...], ...]  # for the gate
    calibrate: tuple[tuple[int, ...], ...]  # for GPTQ, and the ranges of caches

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of the gate's text."""
        digest = hashlib.sha256(repr(self.judge).encode()).hexdigest()
        return {
            "by": "the checkpoint itself",
            "temperature": TEMPERATURE,
            "tokens": sum(map(len, self.judge)),
            "sha256": digest,
        }


def own_texts(
    reader: Reader,
    encode: Callable[[str], list[int]],
    *,
    vocab_size: int,
    context: int,
    calibrate: bool,
) -> Texts:
    """Let a float32 graph write what the gate judges, and with ``calibrate`` what int4
    and an int8 cache need.

    Tokens from ``vocab_size`` on are rows without a word.
    """
    rng = np.random.default_rng(20)
    length = min(context - 1, max(2, POSITIONS // len(_STARTS)))

    def write(start: str) -> tuple[int, ...]:
        ids = encode(start)[: length // 2] or [0]
        reader.rewind(0)
        logits = reader.forward(ids)[-1]
        while len(ids) < length:
            scaled = logits[:vocab_size].astype(np.float64) / TEMPERATURE
            sums = np.cumsum(np.exp(scaled - scaled.max()))
            ids.append(int(np.searchsorted(sums, rng.random() * sums[-1])))
            logits = reader.forward(ids[-1:])[-1]
        return tuple(ids)

    # Short contexts need more texts for as many positions.
    rounds = -(-POSITIONS // (length * len(_STARTS)))
    judge = tuple(write(start) for _ in range(rounds) for start in _STARTS)
    more = tuple(write(start) for start in _STARTS) if calibrate else ()
    return Texts(judge, more)


def gate(
    whole: Reader,
    small: Reader,
    texts: Iterable[Sequence[int]],
    against: str,
    masks: Sequence[int] = (),
    context: int = 0,
) -> Parity:
    """Return how far ``small`` is from ``whole`` over texts, at the worse chunk, and how
    often they agree behind ``masks``.
    """
    texts = [list(text) for text in texts]
    same, kl = dict.fromkeys(CHUNKS, 0.0), dict.fromkeys(CHUNKS, 0.0)
    apart = peak = 0.0
    for text in texts:
        whole.rewind(0)
        right = whole.forward(text, rows=len(text))
        peak = max(peak, largest(right))
        for chunk in CHUNKS:
            small.rewind(0)
            small.forward(text[:3])  # rejected: its entries must not be seen again
            small.rewind(0)
            steps = [text[i : i + chunk] for i in range(0, len(text), chunk)]
            found = [small.forward(step, rows=len(step)) for step in steps]
            agreed, lost, far = _compare(np.concatenate(found), right)
            same[chunk], kl[chunk] = same[chunk] + agreed, kl[chunk] + lost
            apart = max(apart, far)
    count = sum(map(len, texts))
    shares = {chunk: agreed / count for chunk, agreed in same.items()}
    behind = None
    if masks:
        wanted, got = (
            np.concatenate([r for t in texts for r in mask_rows(reader, t, masks, context)])
            for reader in (whole, small)
        )
        behind = _compare(got, wanted)[0] / len(wanted)
    return Parity(
        against=against,
        tokens=count,
        max_difference=apart,
        max_logit=peak,
        agreement=min(shares.values()),
        kl=max(kl.values()) / count,
        by_chunk={str(chunk): round(share, 4) for chunk, share in shares.items()},
        masks=behind,
    )


def _compare(found: Logits, expected: Logits) -> tuple[float, float, float]:
    """Return positions that agree, the sum of KL in nats, the largest difference."""
    if not np.isfinite(found).all():
        return 0.0, np.inf, np.inf
    p, q = _log_softmax(expected), _log_softmax(found)
    kl = float((np.exp(p) * (p - q)).sum())
    same = float((found.argmax(-1) == expected.argmax(-1)).sum())
    return same, kl, float(np.abs(found - expected).max())


def _log_softmax(logits: Logits) -> NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def moments_of(
    path: Path, reader: Reader, texts: Iterable[Sequence[int]]
) -> dict[str, NDArray[np.float32]]:
    """Return the second moments ``(K, K)`` of what each matrix of a float32 graph, which
    ``reader`` reads, is multiplied with; one array for matrices that share their input.
    """
    model = onnx.load(str(path), load_external_data=False)
    inputs = inputs_of(model)
    watched = sorted(set(inputs.values()))
    for name in watched:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        model.graph.output.append(output)
    probe = path.with_name(path.name + ".probe")  # beside its data
    onnx.save_model(model, str(probe))
    engine = session(probe, threads=threads(path))
    probe.unlink()
    sums: dict[str, NDArray[np.float32]] = {}
    texts = [list(text) for text in texts]
    reader.rewind(0)
    # All activations of a text at once would be gigabytes for a large model.
    for start in range(0, len(watched), _GROUP):
        group = watched[start : start + _GROUP]
        for text in texts:
            values = engine.run(group, reader.feeds(text))
            for name, rows in zip(group, values, strict=True):
                flat = rows.reshape(-1, rows.shape[-1])
                sums[name] = sums.get(name, np.float32(0)) + flat.T @ flat
    return {matrix: sums[source] for matrix, source in inputs.items()}


def cache_ranges(
    reader: Reader, texts: Iterable[Sequence[int]]
) -> dict[str, NDArray[np.float32]]:
    """Return how large each channel of each cache may become ``(1, heads, 1, dim)``.

    Keys turn with their position: both channels of a pair get the length of the pair,
    which no position exceeds. A ModelError for a graph of another form than ``gqa``.
    """
    if not isinstance(reader, DraftRunner):
        raise ModelError("only a graph that updates its cache in place can keep it as int8")
    a = reader.a
    found: dict[str, NDArray[np.float32]] = {}
    for text in texts:
        reader.rewind(0)
        reader.forward(text)
        for name, cache in reader.caches.items():
            layer, kind = name.split(".")
            held = np.abs(cache[:, :, : len(text)])
            rope = a.rope_of[int(layer)]
            if kind == "key" and rope >= 0:
                half = len(rotation(a, a.ropes[rope].rates)[0])
                pair = np.hypot(held[..., :half], held[..., half : 2 * half])
                held[..., : 2 * half] = np.concatenate([pair, pair], -1)
            most = held.max(2, keepdims=True) * _HEADROOM
            found[name] = np.maximum(found.get(name, most), most)
    return found
