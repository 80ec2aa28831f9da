"""A target as its exits see it: hidden states between its layers, and its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from draftwire.errors import ModelError
from draftwire.export.graphs.builder import value
from draftwire.export.graphs.parts import head_of
from draftwire.packages import TargetPackage
from draftwire.tensors import target_weights

__all__ = ["GraphModel", "StudiedModel", "engine_session"]

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class StudiedModel(Protocol):
    """What the exits' training asks of a target.

    Attributes:
        layers: How many it has.
        hidden: Width of its hidden state.
        vocab_size: Token ids that count.
        context: Longest sequence.
    """

    layers: int
    hidden: int
    vocab_size: int
    context: int

    def states(self, ids: Ids, at: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Run texts of equal length.

        Args:
            ids: ``(B, S)`` token ids.
            at: After how many layers the hidden state is wanted.

        Returns:
            For each ``(B * S, hidden)``, and the logits ``(B * S, vocab)``.
        """

    def new_norm(self) -> nn.Module:
        """Return a copy of the last norm, to be trained."""

    def head(self, x: Tensor) -> Tensor:
        """Return the frozen head's logits ``(n, vocab)`` for ``(n, hidden)``."""

    def sample(self, rows: int, length: int, seed: int) -> Ids:
        """Return ``(rows, length)`` tokens that the target itself draws."""


class _RMSNorm(nn.Module):
    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale * self.weight


class _LayerNorm(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(
            x, self.weight.shape, self.weight, self.bias, self.eps
        )


def engine_session(
    model: onnx.ModelProto, weights: dict[str, Floats], threads: int = 1
) -> Any:
    """Return a session of a target graph, or of a part of one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    location = onnx.TensorProto.EXTERNAL
    names = [t.name for t in model.graph.initializer if t.data_location == location]
    missing = [name for name in names if name not in weights]
    if missing:
        raise ModelError(f"the graph asks for {missing[0]}, which the target lacks")
    options.add_external_initializers(
        names, [ort.OrtValue.ortvalue_from_numpy(weights[name]) for name in names]
    )
    content = model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class GraphModel:
    """A target package on onnxruntime, its adapter merged.

    Args:
        package: The target.
        threads: Of the engine.

    Raises:
        ModelError: Its graph is not one of this exporter.
        PackageError: Its tensors are damaged.
    """

    def __init__(self, package: TargetPackage, *, threads: int = 1) -> None:
        whole = package.base or package
        if "model.onnx" not in whole.files:
            raise ModelError(f"{whole.path.name} has no model.onnx")
        self.graph = onnx.load(str(whole.path / "model.onnx"), load_external_data=False)
        self.names = head_of(self.graph)
        self.weights = target_weights(package)
        self.layers, self.hidden = package.shape.layers, package.shape.hidden
        self.vocab_size, self.context = package.vocab_size, package.context
        self._bos_id = package.bos_id
        self._cache = (package.shape.kv_heads, package.shape.head_dim)
        self._threads = threads
        self._table = torch.from_numpy(self.weights[self.names.head])
        self._sessions: dict[tuple[int, ...], Any] = {}

    def _session(self, at: tuple[int, ...]) -> Any:
        if at not in self._sessions:
            graph = onnx.ModelProto()
            graph.CopyFrom(self.graph)
            for layer in at:
                name = f"l{layer - 1}.out"
                graph.graph.output.append(value(name, "float32", ["BS", self.hidden]))
            self._sessions[at] = engine_session(graph, self.weights, self._threads)
        return self._sessions[at]

    def _caches(self, rows: int, length: int) -> dict[str, Floats]:
        heads, dim = self._cache
        return {
            f"past.{i}.{kind}": np.zeros((rows, heads, length, dim), np.float32)
            for i in range(self.layers)
            for kind in ("key", "value")
        }

    def states(self, ids: Ids, at: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Run texts of equal length; see :class:`StudiedModel`."""
        rows, length = ids.shape
        feeds = {
            "input_ids": ids,
            "past_lens": np.zeros(rows, np.int64),
            "rows": np.arange(rows * length),
            **self._caches(rows, 0),
        }
        names = [f"l{layer - 1}.out" for layer in at]
        found = self._session(tuple(at)).run([*names, "logits"], feeds)
        tensors = [torch.from_numpy(x) for x in found]
        return tensors[:-1], tensors[-1][:, : self.vocab_size]

    def new_norm(self) -> nn.Module:
        """Return a copy of the last norm, to be trained."""
        attributes = {
            a.name: helper.get_attribute_value(a) for a in self.names.norm.attribute
        }
        weight = torch.from_numpy(self.weights[self.names.scale])
        eps = float(attributes["epsilon"])
        if self.names.bias is None:
            return _RMSNorm(weight, eps)
        return _LayerNorm(weight, torch.from_numpy(self.weights[self.names.bias]), eps)

    def head(self, x: Tensor) -> Tensor:
        """Return the frozen head's logits for ``x``."""
        return (x @ self._table.T)[:, : self.vocab_size]

    def sample(self, rows: int, length: int, seed: int) -> Ids:
        """Draw texts from the target itself at temperature 1."""
        rng = np.random.default_rng(seed)
        ids = np.zeros((rows, length), np.int64)
        if self._bos_id is None:
            ids[:, 0] = rng.integers(0, self.vocab_size, rows)
        else:
            ids[:, 0] = self._bos_id
        session, caches = self._session(()), self._caches(rows, length)
        names = [output.name for output in session.get_outputs()]
        for n in range(length - 1):
            feeds = {
                "input_ids": ids[:, n : n + 1],
                "past_lens": np.full(rows, n, np.int64),
                "rows": np.arange(rows),
            }
            results = dict(zip(names, session.run(names, {**feeds, **caches}), strict=True))
            logits = results.pop("logits")[:, : self.vocab_size]
            for name, new in results.items():
                caches[name.replace("new", "past", 1)][:, :, n : n + 1] = new
            noise = -np.log(rng.exponential(size=logits.shape))
            ids[:, n + 1] = (logits + noise).argmax(-1)
        return ids
