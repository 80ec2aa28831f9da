"""The files of early exits, past the gate: a target in parts equals the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError
from draftwire.export.graphs.parts import exit_tensors, head_of, split_target_graph
from draftwire.export.precision.runners import session, supplied
from draftwire.packages import NewExits, NewFile, TargetPackage
from draftwire.packages.exits import EXITS_FILE, EXITS_FORMAT
from draftwire.tensors import target_weights, write_tensors

Floats = NDArray[np.float32]

_TOLERANCE = 1e-4  # of the largest logit: the parts against the whole


def whole_graph(package: TargetPackage) -> onnx.ModelProto:
    """Return a target's graph; a ModelError where it is not one of this exporter."""
    path = (package.base or package).path / "model.onnx"
    if not path.is_file():
        raise ModelError(f"{path.parent.name} has no model.onnx")
    graph = onnx.load(str(path), load_external_data=False)
    head_of(graph)
    return graph


def exit_files(
    package: TargetPackage,
    entries: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, NDArray[np.float16]],
    rank: int,
    made: Mapping[str, Any],
    scratch: Path,
) -> NewExits:
    """Return the manifest's section and the files of a target's exits.

    ``tensors`` go by the names of the split graph; large files go to ``scratch``. A
    ModelError where the target in parts differs from the whole one.
    """
    layers = [entry["layer"] for entry in entries]
    whole, weights = whole_graph(package), dict(target_weights(package))
    graphs = split_target_graph(whole, layers, rank=rank)
    for k in range(len(layers)):
        for name, shape in exit_tensors(head_of(whole), k, rank).items():
            weight = tensors[name].astype(np.float32)
            if weight.shape != shape or not np.isfinite(weight).all():
                raise ModelError(f"training of the exits diverged: {name} is not finite")
            weights[name] = weight
    _gate(package, whole, graphs, weights)
    write_tensors(scratch / EXITS_FILE, tensors)
    files = {EXITS_FILE: NewFile(scratch / EXITS_FILE, {"precision": "fp16"})}
    parts = []
    for k, graph in enumerate(graphs):
        name = f"part{k}.onnx"
        files[name] = NewFile(
            graph.SerializeToString(deterministic=True),
            {"engine": "onnxruntime", "graph": "target-part"},
        )
        parts.append({"file": name, "weights": supplied(graph)})
    fields = {"rank": rank, "exits": list(entries), "parts": parts, "made": dict(made)}
    return NewExits(fields, files)


def made_up(package: TargetPackage, whole: Any) -> dict[str, Any]:
    """Return the inputs of a forward of 5 tokens on 128, or as many as there can be."""
    rng, context = np.random.default_rng(0), package.context
    past, block = max(1, min(128, context // 2)), max(1, min(5, context // 4))
    feeds: dict[str, Any] = {
        "input_ids": rng.integers(0, package.vocab_size, (1, block)),
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
    package: TargetPackage,
    graph: onnx.ModelProto,
    graphs: Sequence[onnx.ModelProto],
    weights: Mapping[str, Floats],
) -> None:
    """Compare whole and parts on a made-up block."""
    whole = session(graph, weights=weights)
    feeds = made_up(package, whole)
    found = in_parts([session(part, weights=weights) for part in graphs], feeds)
    for info, result in zip(whole.get_outputs(), whole.run(None, feeds), strict=True):
        limit = _TOLERANCE * max(1.0, float(np.abs(result).max()))
        if not float(np.abs(result - found[info.name]).max()) <= limit:
            raise ModelError(
                f"the target in parts differs from the whole one in {info.name}",
                hint="this is a fault of the exporter: please report the model",
            )


def write_exits_file(
    place: Path,
    entries: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, NDArray[np.float16]],
    rank: int,
    made: Mapping[str, Any],
) -> None:
    """Write the exits of a checkpoint beside its weights; a ConfigError where the file
    cannot be written.
    """
    header = {
        "format": EXITS_FORMAT,
        "exits": json.dumps(list(entries)),
        "rank": str(rank),
        "made": json.dumps(dict(made)),
    }
    try:
        write_tensors(place, tensors, metadata=header)
    except OSError as exc:
        raise ConfigError(f"{place} cannot be written: {exc}") from exc
