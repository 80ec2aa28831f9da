"""Smaller weights for a draft graph: what the device reads for every token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from draftwire.errors import ConfigError

__all__ = ["PRECISIONS", "quantise"]

PRECISIONS = ("fp32", "int8", "int4")
EMBEDDING, HEAD = "embedding", "head.weight"  # as the graph writers call them
BLOCK = 32  # weights that share a scale in int4


def quantise(source: Path, target: Path, precision: str) -> None:
    """Write a float32 graph again with smaller weights.

    int8 is dynamic: weights per output channel, activations per tensor and step; it
    runs on every supported onnxruntime and saturates on no core.  A head that is tied
    to the embedding shares its bytes (and its one scale).  int4 keeps
    activations in float and scales blocks of 32 weights; its embedding is int8.

    Args:
        source: The float32 graph.
        target: Where to write.
        precision: "int8" or "int4".

    Source:
        onnxruntime, "Quantize ONNX models"; ``MatMulNBits`` in its
        docs/ContribOperators.md.
    """
    with _quiet():
        if precision == "int8":
            _dynamic(source, target, ["MatMul", "Gather"])
            _share_tied_head(source, target)
        elif precision == "int4":
            halfway = target.with_name(target.name + ".int4")
            _four_bits(source, halfway)
            _dynamic(halfway, target, ["Gather"])
            halfway.unlink()
        else:
            raise ConfigError(
                f"there is no precision {precision!r}",
                hint=f"choose from {', '.join(PRECISIONS)}",
            )


def _dynamic(source: Path, target: Path, operators: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=operators,
        per_channel=True,
        # Unsigned: products of unsigned activations and signed weights saturate on
        # x86 cores without VNNI, which cost 1.5 where rounding costs 0.5 in logits.
        weight_type=QuantType.QUInt8,
        # The types behind onnxruntime's own operators cannot be inferred.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _share_tied_head(source: Path, target: Path) -> None:
    """Store an embedding once that is the head's matrix too."""
    before = {t.name: t for t in onnx.load(str(source)).graph.initializer}
    tied = EMBEDDING in before and HEAD in before
    if not tied or not np.array_equal(
        numpy_helper.to_array(before[EMBEDDING]), numpy_helper.to_array(before[HEAD]).T
    ):
        return
    model = onnx.load(str(target))
    graph = model.graph
    dropped = [f"{HEAD}_{part}" for part in ("quantized", "scale", "zero_point")]
    kept = [t for t in graph.initializer if t.name not in dropped]
    if len(kept) != len(graph.initializer) - len(dropped):
        return
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in dropped[1:]:
                node.input[i] = name.replace(HEAD, EMBEDDING)
    # onnxruntime folds this into a constant when it loads the graph.
    graph.node.insert(
        0,
        helper.make_node(
            "Transpose", [f"{EMBEDDING}_quantized"], [dropped[0]], perm=[1, 0]
        ),
    )
    onnx.save(model, str(target))


def _four_bits(source: Path, target: Path) -> None:
    """Put every product with a constant matrix into ``MatMulNBits``."""
    model = onnx.load(str(source))
    graph = model.graph
    matrices = {t.name: t for t in graph.initializer if len(t.dims) == 2}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in matrices:
            continue
        name = node.input[1]
        weight = numpy_helper.to_array(matrices[name])  # (K, N)
        packed, scales = pack_four_bits(np.ascontiguousarray(weight.T))
        replacement = helper.make_node(
            "MatMulNBits",
            [node.input[0], name + ".int4", name + ".scales"],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=weight.shape[0],
            N=weight.shape[1],
            bits=4,
            block_size=BLOCK,
            accuracy_level=4,
        )
        graph.initializer.remove(matrices.pop(name))
        graph.initializer.append(numpy_helper.from_array(packed, name + ".int4"))
        graph.initializer.append(numpy_helper.from_array(scales, name + ".scales"))
        node.CopyFrom(replacement)
    if "com.microsoft" not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save_model(model, str(target))


def pack_four_bits(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round a matrix to 16 values for each block of 32 weights in a row.

    The weight of largest magnitude in a block becomes -8 scales exactly, which uses
    all 16 values.

    Args:
        weight: ``(N, K)``.

    Returns:
        ``(N, blocks, 16)`` bytes, the even weight in the low half, 8 standing for 0,
        and ``(N * blocks,)`` scales.
    """
    rows, width = weight.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :width] = weight
    parts = padded.reshape(rows, blocks, BLOCK)
    largest = np.abs(parts).argmax(-1)[..., None]
    scales = np.take_along_axis(parts, largest, -1) / np.float32(-8)
    steps = np.divide(parts, scales, where=scales != 0, out=np.zeros_like(parts))
    values = np.clip(np.rint(steps) + 8, 0, 15).astype(np.uint8)
    packed = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed, scales.reshape(-1).astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantisers' hundreds of INFO and WARNING lines off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
