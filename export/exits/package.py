"""The files of early exits in a target package, past the gate: parts equal the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from draftwire.errors import ModelError
from draftwire.exits import EXITS_FILE
from draftwire.export.exits.model import GraphModel, engine_session
from draftwire.export.graphs.parts import exit_tensors, split_target_graph
from draftwire.packages import NewExits, NewFile
from draftwire.tensors import write_tensors

__all__ = ["exit_files", "in_parts", "made_up"]

Floats = NDArray[np.float32]

_TOLERANCE = 1e-4  # of the largest logit: the parts against the whole


def exit_files(
    model: GraphModel,
    entries: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, NDArray[np.float16]],
    rank: int,
    made: Mapping[str, Any],
    scratch: Path,
) -> NewExits:
    """Return the section and the files of a target's exits.

    Args:
        model: The target.
        entries: One for each exit, as the manifest has them.
        tensors: Their weights, by the names of the split graph.
        rank: Of their residuals.
        made: How, for the manifest.
        scratch: A folder for large files.

    Raises:
        ModelError: The target in parts differs from the whole one.
    """
    layers = [entry["layer"] for entry in entries]
    graphs = split_target_graph(model.graph, layers, rank=rank)
    weights = dict(model.weights)
    for k in range(len(layers)):
        for name, shape in exit_tensors(model.names, k, rank).items():
            weight = tensors[name].astype(np.float32)
            if weight.shape != shape or not np.isfinite(weight).all():
                raise ModelError(f"training of the exits diverged: {name} is not finite")
            weights[name] = weight
    _gate(model, graphs, weights)
    write_tensors(scratch / EXITS_FILE, tensors)
    files = {EXITS_FILE: NewFile(scratch / EXITS_FILE, {"precision": "fp16"})}
    parts = []
    for k, graph in enumerate(graphs):
        name = f"part{k}.onnx"
        files[name] = NewFile(
            graph.SerializeToString(deterministic=True),
            {"engine": "onnxruntime", "graph": "target-part"},
        )
        parts.append({"file": name, "weights": _supplied(graph)})
    fields = {"rank": rank, "exits": list(entries), "parts": parts, "made": dict(made)}
    return NewExits(fields, files)


def _supplied(graph: onnx.ModelProto) -> list[str]:
    location = onnx.TensorProto.EXTERNAL
    return [t.name for t in graph.graph.initializer if t.data_location == location]


def made_up(model: GraphModel, whole: Any) -> dict[str, Any]:
    """Return the inputs of a forward of 5 tokens on 128, or as many as there can be."""
    rng = np.random.default_rng(0)
    past, block = max(1, min(128, model.context // 2)), max(1, min(5, model.context // 4))
    feeds: dict[str, Any] = {
        "input_ids": rng.integers(0, model.vocab_size, (1, block)),
        "past_lens": np.array([past]),
        "rows": np.arange(block),
    }
    for info in whole.get_inputs():
        if info.name.startswith("past."):
            shape = (1, info.shape[1], past, info.shape[3])
            feeds[info.name] = rng.normal(size=shape).astype(np.float32)
    return feeds


def in_parts(parts: Sequence[Any], feeds: Mapping[str, Any]) -> dict[str, Floats]:
    """Run a target's parts one after another; return all that they give."""
    found = dict(feeds)
    for part in parts:
        names = [output.name for output in part.get_outputs()]
        wanted = {i.name: found[i.name] for i in part.get_inputs()}
        found.update(zip(names, part.run(names, wanted), strict=True))
    return found


def _gate(
    model: GraphModel, graphs: Sequence[onnx.ModelProto], weights: dict[str, Floats]
) -> None:
    """Compare whole and parts on a made-up block.

    Raises:
        ModelError: They differ.
    """
    whole = engine_session(model.graph, weights)
    parts = [engine_session(graph, weights) for graph in graphs]
    feeds = made_up(model, whole)
    found = in_parts(parts, feeds)
    for info, result in zip(whole.get_outputs(), whole.run(None, feeds), strict=True):
        limit = _TOLERANCE * max(1.0, float(np.abs(result).max()))
        if not float(np.abs(result - found[info.name]).max()) <= limit:
            raise ModelError(
                f"the target in parts differs from the whole one in {info.name}",
                hint="this is a fault of the exporter: please report the model",
            )
