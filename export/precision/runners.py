"""Graphs with their caches, run as plainly as can be: what gates and tests read with.

The device's engines reach deeper; these do not, so that the two cannot share a mistake.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from draftwire.errors import ModelError
from draftwire.export.sources.architecture import Architecture

Logits = NDArray[np.float32]
_SMALL = 64 << 20


class Reader:
    """A model with a cache that holds ``length`` tokens."""

    length = 0

    def feeds(self, ids: Sequence[int], *, rows: int = 1) -> dict[str, NDArray[Any]]:
        """Return the inputs of the graph that further tokens make."""
        raise NotImplementedError

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Logits:
        """Take further tokens; return ``(rows, V)`` logits of the last ones."""
        raise NotImplementedError

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self.length = length


def threads(graph: Path) -> int:
    """Return how many threads a graph is worth; a small one waits for them more."""
    data = graph.with_name(graph.name + ".data")
    if not data.exists() or data.stat().st_size < _SMALL:
        return 1
    return max(1, min(4, len(os.sched_getaffinity(0))))


def supplied(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the tensors that a graph's user supplies."""
    location = onnx.TensorProto.EXTERNAL
    return [t.name for t in graph.graph.initializer if t.data_location == location]


def session(
    model: Any, *, threads: int = 1, weights: Mapping[str, Logits] | None = None
) -> Any:
    """Return an onnxruntime session on the CPU for a graph, serialised or not, or its path.

    ``weights`` must outlive this call. A ModelError where a tensor is missing.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if weights is not None:
        names = supplied(model)
        missing = [name for name in names if name not in weights]
        if missing:
            raise ModelError(f"the graph asks for {missing[0]}, which the target lacks")
        options.add_external_initializers(
            names, [ort.OrtValue.ortvalue_from_numpy(weights[name]) for name in names]
        )
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    elif isinstance(model, Path):
        model = str(model)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class DraftRunner(Reader):
    """A draft graph, serialised or a path, with ``caches`` that are updated in place: by
    layer and kind ("0.key"), each ``(1, heads, context, dim)``.
    """

    def __init__(self, model: Any, architecture: Architecture, *, threads: int = 1) -> None:
        self._session = session(model, threads=threads)
        a, start = architecture, len("past_key_values.")
        self.a = a
        self.caches: dict[str, NDArray[Any]] = {
            node.name[start:]: np.zeros(
                (1, node.shape[1], a.context, node.shape[3]),
                np.int8 if node.type == "tensor(int8)" else np.float32,
            )
            for node in self._session.get_inputs()
            if node.name.startswith("past_key_values.")
        }

    def feeds(self, ids: Sequence[int], *, rows: int = 1) -> dict[str, NDArray[Any]]:
        total = self.length + len(ids)
        return {
            "input_ids": np.ascontiguousarray(ids, np.int64)[None],
            "seqlens_k": np.array([total - 1], np.int32),
            "total_seq_len": np.array(total, np.int32),
            "logits_from": np.array([-rows], np.int64),
            **{"past_key_values." + n: array for n, array in self.caches.items()},
        }

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Logits:
        given = self.feeds(ids, rows=rows)
        self.length += len(ids)
        binding = self._session.io_binding()
        logits: Logits = np.empty((1, rows, self.a.vocab_size), np.float32)
        presents = {"present." + n: array for n, array in self.caches.items()}
        for bind, arrays in (
            (binding.bind_input, given),
            (binding.bind_output, {**presents, "logits": logits}),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return np.asarray(logits[0])


class ConcatRunner(Reader):
    """A ``concat`` graph with its cache; ``shape`` is layers, key/value heads and head
    dimension, as its inputs say. A ModelError where those are none of a decoder's.
    """

    def __init__(self, path: Path) -> None:
        self._session = session(path, threads=threads(path))
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._wants = frozenset(inputs)
        self._pasts = [name for name in inputs if name.startswith("past_key_values.")]
        known = {"input_ids", "attention_mask", "position_ids"}
        odd = self._wants - set(self._pasts) - known
        dims = {tuple(inputs[name].shape[1::2]) for name in self._pasts}
        if "input_ids" not in inputs or not self._pasts:
            raise ModelError("Optimum's graph has no past_key_values")
        if odd or len(dims) > 1 or not all(isinstance(d, int) for d in next(iter(dims))):
            raise ModelError(
                f"Optimum's graph has inputs that no draft engine feeds: "
                f"{', '.join(sorted(odd)) or 'caches of several shapes'}"
            )
        heads, dim = next(iter(dims))
        self.shape = {"layers": len(self._pasts) // 2, "kv_heads": heads, "head_dim": dim}
        self._cache = dict.fromkeys(self._pasts, np.zeros((1, heads, 0, dim), np.float32))

    def feeds(self, ids: Sequence[int], *, rows: int = 1) -> dict[str, NDArray[Any]]:
        total = self.length + len(ids)
        known: dict[str, NDArray[Any]] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.length, total)[None],
            **self._cache,
        }
        return {name: known[name] for name in self._wants}

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Logits:
        names = [n.replace("past_key_values", "present") for n in self._pasts]
        logits, *caches = self._session.run(["logits", *names], self.feeds(ids))
        self._cache = dict(zip(self._pasts, caches, strict=True))
        self.length += len(ids)
        return np.asarray(logits[0, -rows:], np.float32)

    def rewind(self, length: int) -> None:
        self._cache = {k: c[:, :, :length].copy() for k, c in self._cache.items()}
        self.length = length


def run_target(
    graph: onnx.ModelProto,
    weights: Mapping[str, Logits],
    a: Architecture,
    ids: Sequence[int],
) -> Logits:
    """Run a target graph over a text in blocks of several sizes; return ``(T, V)``."""
    engine = session(graph, weights=weights)
    names = [output.name for output in engine.get_outputs()]
    caches = {
        f"past.{i}.{kind}": np.zeros((1, a.kv_heads, len(ids), a.head_dim), np.float32)
        for i in range(a.layers)
        for kind in ("key", "value")
    }
    done = 0
    found: list[Logits] = []
    while done < len(ids):
        size = (len(ids) // 2, 1, 5)[min(len(found), 2)] or 1
        step = np.asarray(ids[done : done + size], np.int64)
        feeds = {"input_ids": step[None], "past_lens": np.array([done])}
        feeds["rows"] = np.arange(len(step))
        results = dict(zip(names, engine.run(names, {**feeds, **caches}), strict=True))
        found.append(results.pop("logits"))
        for name, result in results.items():
            caches[name.replace("new", "past", 1)][:, :, done : done + len(step)] = result
        done += len(step)
    return np.concatenate(found)
