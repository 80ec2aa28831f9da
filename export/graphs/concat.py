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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError, ModelError
from draftwire.export.pieces import DRAFT_CONTEXT, made_with, text_files
from draftwire.export.precision.parity import (
    LIMITS,
    MAX_PROBE,
    Limit,
    check_steps,
    compare,
    finite_logits,
    probe_ids,
    torch_logits,
)
from draftwire.export.precision.runners import ConcatRunner
from draftwire.export.sources.checkpoint import open_weights, read_config, special_ids
from draftwire.export.sources.tokens import check_tokens
from draftwire.export.sources.transformers_model import first_line
from draftwire.packages import NewFile, tokenizer_fingerprint

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
_HIDDEN_NAMES = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")


def export_with_optimum(
    folder: Path,
    scratch: Path,
    precisions: Sequence[str],
    *,
    limit: Callable[[str], Limit],
    context: int | None,
    why: Exception,
) -> tuple[dict[str, Any], dict[str, NewFile]]:
    """Export a draft by way of Optimum; return the manifest's fields and the files.

    ``why`` says why the exporter's own way was not taken; without ``context`` it serves at
    most 4096 positions. A ConfigError where Optimum is not installed, a ModelError where it
    cannot export the model or the result differs from it.
    """
    from draftwire.export.onnx import precisions_of

    try:
        from optimum.exporters.onnx import main_export
    except ImportError as exc:
        raise ConfigError(
            f"{why}, and Optimum, which exports the rest, is not installed",
            hint="pip install 'optimum-onnx[onnxruntime]' in a virtual environment "
            "of its own (it holds transformers below 4.58) and run this there",
        ) from exc
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
    ids = probe_ids(folder, vocab_size, bos_id, limit=min(MAX_PROBE, context))
    whole = _run(main_export, folder, scratch / "optimum")
    (logits,), against = torch_logits(folder, [ids])
    runner = ConcatRunner(whole)
    expected = finite_logits(folder.name, logits)
    parity = compare(check_steps(runner, ids), expected, against)
    parity.require("the graph", LIMITS["fp32"])
    made, files = precisions_of(
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
        "shape": {**runner.shape, "hidden": _first(folder, config, _HIDDEN_NAMES)},
        "made": {
            "from": folder.name.removesuffix(".hf"),
            "model_type": config.get("model_type"),
            "optimum": version("optimum-onnx"),
            **made,
            **made_with(),
        },
    }
    return fields, {**text_files(folder), **files}


def _run(main_export: Callable[..., Any], folder: Path, out: Path) -> Path:
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
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as exc:
        raise ModelError(
            f"Optimum cannot export {folder.name}: {first_line(exc)}",
            hint="use a draft of a supported architecture",
        ) from exc
    if not (out / "model.onnx").is_file():
        raise ModelError(f"Optimum wrote no model.onnx for {folder.name}")
    return out / "model.onnx"


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
