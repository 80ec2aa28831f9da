"""Drafts of any other architecture: Optimum's graph, whose cache grows by a copy.

Inputs ``input_ids``, ``attention_mask``, maybe ``position_ids``, and
``past_key_values.{i}.key`` / ``.value`` ``[B, KV, P, D]``; outputs ``logits`` and
``present.{i}.*`` ``[B, KV, P + S, D]``.  Standard operators only, so it runs on any
onnxruntime, more slowly than the in-place graph the longer the context is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError
from draftwire.export.precision.gate import threads
from draftwire.export.precision.parity import (
    LIMITS,
    Limit,
    Logits,
    check_steps,
    compare,
    finite_logits,
    probe_ids,
    torch_logits,
)
from draftwire.export.sources.checkpoint import open_weights, read_config, special_ids
from draftwire.export.sources.tokens import check_tokens
from draftwire.packages import NewFile, tokenizer_fingerprint

__all__ = ["ConcatRunner", "export_with_optimum"]

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
_HIDDEN_NAMES = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")


def export_with_optimum(
    folder: Path,
    scratch: Path,
    precisions: Sequence[str],
    *,
    limit: Callable[[str], Limit],
    context: int | None,
    why: Exception | None,
) -> tuple[dict[str, Any], dict[str, NewFile]]:
    """Export a draft by way of Optimum.

    Args:
        folder: A Hugging Face directory with safetensors weights.
        scratch: An empty folder to work in.
        precisions: Any of "fp32", "int8", "int4".
        limit: What a precision must reach.
        context: Positions to serve; by default the trained ones, at most 4096.
        why: Why the exporter's own way was not taken.

    Returns:
        The manifest's fields but for the names, and the files.

    Raises:
        ConfigError: Optimum is not installed.
        ModelError: It cannot export the model, or the result differs from it.
    """
    from draftwire.export.onnx import DRAFT_CONTEXT, made_with, precisions_of, text_files

    main_export, version = _import_optimum(why)
    config = read_config(folder)
    open_weights(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder.name} has no tokenizer.json")
    trained = _first(folder, config, _CONTEXT_NAMES)
    if context is not None and not 0 < context <= trained:
        raise ConfigError(
            f"a context of {context} was asked for, {folder.name} has {trained}"
        )
    context = context or min(trained, DRAFT_CONTEXT)
    vocab_size = _first(folder, config, ("vocab_size",))
    bos_id, eos_ids = special_ids(folder, config, vocab_size)
    bos_id = check_tokens(folder, bos_id)
    ids = probe_ids(folder, vocab_size, bos_id, limit=min(224, context))
    whole = _run_optimum(main_export, folder, scratch)
    logits, against = torch_logits(folder, ids)
    expected = finite_logits(folder.name, logits)
    runner = ConcatRunner(whole)
    shape = runner.shape
    parity = compare(check_steps(runner, ids), expected, against)
    parity.require("the graph", LIMITS["fp32"])
    files, refused = precisions_of(
        whole,
        precisions,
        ConcatRunner,
        parity,
        limit,
        folder=folder,
        vocab_size=vocab_size,
        bos_id=bos_id,
        context=context,
        graph="concat",
    )
    fields = {
        "family": {
            "name": "",
            "backbone": None,
            "tokenizer": tokenizer_fingerprint(folder / "tokenizer.json"),
        },
        "vocab_size": vocab_size,
        "context": context,
        "bos_id": bos_id,
        "eos_ids": list(eos_ids),
        "shape": {**shape, "hidden": _first(folder, config, _HIDDEN_NAMES)},
        "made": {
            "from": folder.name.removesuffix(".hf"),
            "model_type": config.get("model_type"),
            "optimum": version,
            **refused,
            **made_with(),
        },
    }
    return fields, {**text_files(folder), **files}


def _import_optimum(why: Exception | None) -> tuple[Callable[..., Any], str]:
    try:
        from importlib.metadata import version

        from optimum.exporters.onnx import main_export

        return main_export, version("optimum-onnx")
    except ImportError as exc:
        raise ConfigError(
            f"{why or 'the concat graph is written by Optimum'}, "
            f"and Optimum, which exports the rest, is not installed",
            hint="pip install 'optimum-onnx[onnxruntime]' in a virtual environment "
            "of its own (it holds transformers below 4.58) and run this there",
        ) from exc


def _run_optimum(main_export: Callable[..., Any], folder: Path, scratch: Path) -> Path:
    out = scratch / "optimum"
    try:
        with _quiet():
            main_export(
                str(folder),
                output=str(out),
                task="text-generation-with-past",
                device="cpu",
                opset=18,
                do_validation=False,
                no_post_process=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ModelError(
            f"Optimum cannot export {folder.name}: {reason[:200]}",
            hint="use a draft of a supported architecture",
        ) from exc
    model = out / "model.onnx"
    if not model.is_file():
        raise ModelError(f"Optimum wrote no model.onnx for {folder.name}")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep tracer warnings and progress off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first(folder: Path, config: dict[str, Any], names: Sequence[str]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ModelError(f"{folder.name}: config.json has none of {', '.join(names)}")


class ConcatRunner:
    """A ``concat`` graph with its cache, for the gate and tests.

    Args:
        path: The graph.

    Attributes:
        shape: Layers, key/value heads and head dimension, as its inputs say.

    Raises:
        ModelError: Its inputs are not those of a decoder with a cache.
    """

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads(path)
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._wants = frozenset(inputs)
        self._pasts = [name for name in inputs if name.startswith("past_key_values.")]
        others = self._wants - set(self._pasts)
        if "input_ids" not in inputs or not self._pasts:
            raise ModelError("Optimum's graph has no past_key_values")
        odd = others - {"input_ids", "attention_mask", "position_ids"}
        dims = {tuple(inputs[name].shape[1::2]) for name in self._pasts}
        if odd or len(dims) > 1 or not all(isinstance(d, int) for d in next(iter(dims))):
            raise ModelError(
                f"Optimum's graph has inputs that no draft engine feeds: "
                f"{', '.join(sorted(odd)) or 'caches of several shapes'}"
            )
        kv_heads, head_dim = next(iter(dims))
        self.shape = {
            "layers": len(self._pasts) // 2,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
        }
        empty = np.zeros((1, kv_heads, 0, head_dim), np.float32)
        self._cache = dict.fromkeys(self._pasts, empty)
        self.length = 0

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Logits:
        """Take further tokens; return ``(rows, V)`` logits of the last ones."""
        total = self.length + len(ids)
        feeds: dict[str, NDArray[Any]] = {"input_ids": np.array([ids], np.int64)}
        if "attention_mask" in self._wants:
            feeds["attention_mask"] = np.ones((1, total), np.int64)
        if "position_ids" in self._wants:
            feeds["position_ids"] = np.arange(self.length, total)[None]
        feeds.update(self._cache)
        names = [n.replace("past_key_values", "present") for n in self._pasts]
        logits, *caches = self._session.run(["logits", *names], feeds)
        self._cache = dict(zip(self._pasts, caches, strict=True))
        self.length = total
        return np.asarray(logits[0, -rows:], np.float32)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self._cache = {k: c[:, :, :length].copy() for k, c in self._cache.items()}
        self.length = length
