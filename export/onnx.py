"""From a Hugging Face checkpoint to a package: the way behind ``export onnx``."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from draftwire.errors import ConfigError, ModelError
from draftwire.export import gqa_graph, target_graph
from draftwire.export.architecture import UnknownArchitecture
from draftwire.export.checkpoint import Checkpoint, load_checkpoint
from draftwire.export.fingerprint import backbone_fingerprint
from draftwire.export.gate import Reader, gate, moments_of, own_texts, threads
from draftwire.export.inputs import checkpoint_folder
from draftwire.export.parity import (
    LIMITS,
    DraftRunner,
    Limit,
    Logits,
    Parity,
    check_steps,
    compare,
    expected_logits,
    probe_tokens,
    run_target,
)
from draftwire.export.quantise import MIN_ENGINE, PRECISIONS, quantise
from draftwire.export.tokens import check_tokens
from draftwire.packages import NewFile, tokenizer_fingerprint, write_package
from draftwire.template import template_files
from draftwire.tensors import read_tensors, write_tensors
from draftwire.tokenizer import load_tokenizer

__all__ = [
    "DRAFT_CONTEXT",
    "export_onnx",
    "made_with",
    "package_fields",
    "precisions_of",
    "text_files",
]

# A draft's cache takes memory for all of it, so a long trained context is cut.
DRAFT_CONTEXT = 4096
# From here on weights lie beside the graph: onnxruntime maps them instead of copying.
EXTERNAL_BYTES = 64 << 20
PAGE = 4096
TARGET_PRECISIONS = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True)
class _Request:
    """What was asked for, but for the model and the place."""

    name: str
    version: str
    family_name: str | None
    anchor_layers: int
    min_agreement: float | None
    against: str
    made: Mapping[str, Any]

    def limit(self, precision: str) -> Limit:
        limit = LIMITS[precision]
        if self.min_agreement is None:
            return limit
        return Limit(limit.difference, self.min_agreement)


def export_onnx(
    model_dir: str | Path,
    out: str | Path,
    *,
    precision: str | Sequence[str] | None = None,
    role: str = "draft",
    graph: str = "auto",
    name: str | None = None,
    version: str = "v1",
    family_name: str | None = None,
    context: int | None = None,
    anchor_layers: int = 0,
    min_agreement: float | None = None,
    against: str = "auto",
    made: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Export a checkpoint as a draft or target package.

    The result is compared with the checkpoint first; nothing is written when it
    says something else.

    Args:
        model_dir: A Hugging Face directory with safetensors weights, a GGUF file, or
            ``owner/name`` on the hub.
        out: The package, ``NAME.draft`` or ``NAME.target``.
        precision: For a draft any of "fp32", "int8", "int8-split", "int4" (default
            int8), of which those that fail the gate are left out and named in the
            manifest; for a target how its weights are stored, "fp16" (default) or
            "fp32".
        role: "draft" or "target".
        graph: How a draft's cache is passed: "concat" for Optimum's graph, "auto" for
            the in-place one where the architecture is known here.
        name: The package's name; by default the folder's.
        version: The target's version.
        family_name: For people; by default the name.
        context: Positions to serve; by default the trained ones, for a draft at
            most 4096.
        anchor_layers: How many first layers draft and targets share; 0 for none.
        min_agreement: Least share of positions with the checkpoint's most likely
            token, in place of the precision's own limit.
        against: "torch", "numpy", or "auto" for transformers where installed.
        made: How the checkpoint came about, for the manifest.
        replace: Put it in the place of an older package.

    Returns:
        The package's folder.

    Raises:
        ConfigError: An argument is wrong, or ``out`` exists.
        ModelError: The checkpoint is damaged or of an unknown shape, or nothing made
            of it is within its limit.
    """
    out = Path(out)
    if role not in ("draft", "target"):
        raise ConfigError(f"there is no role {role!r}", hint="draft or target")
    if out.suffix != f".{role}":
        raise ConfigError(
            f"a {role} package is called NAME.{role}, not {out.name}",
            hint=f"--out {out.stem}.{role}",
        )
    if out.exists() and not replace:
        raise ConfigError(
            f"there is something at {out} already",
            hint="choose another place, or remove it first",
        )
    precisions = _precisions(precision, role)
    request = _Request(
        name or out.stem,
        version,
        family_name,
        anchor_layers,
        min_agreement,
        against,
        made or {},
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as scratch:
            fields, files = _make(
                checkpoint_folder(model_dir, Path(scratch)),
                role,
                graph,
                context,
                precisions,
                request,
                Path(scratch),
            )
            write_package(out, role, fields, files, replace=replace)
    except OSError as exc:
        raise ConfigError(f"{out} cannot be written: {exc}") from exc
    return out


def _make(
    folder: Path,
    role: str,
    graph: str,
    context: int | None,
    precisions: Sequence[str],
    request: _Request,
    scratch: Path,
) -> tuple[dict[str, Any], dict[str, NewFile]]:
    """Return the fields and files of the package, by the way that fits."""
    why = None
    if graph == "auto" or role == "target":
        try:
            checkpoint = load_checkpoint(folder, context=context)
            if request.against != "numpy":
                first = check_tokens(folder, checkpoint.bos_id)
                checkpoint = dataclasses.replace(checkpoint, bos_id=first)
            if role == "target":
                return _target(checkpoint, precisions, request, scratch)
            if context is None:
                checkpoint = checkpoint.cut(DRAFT_CONTEXT)
            return _draft(checkpoint, precisions, request, scratch)
        except UnknownArchitecture as exc:
            if role == "target":
                raise ModelError(
                    str(exc),
                    hint="as a target it can be served by the transformers backend",
                ) from exc
            why = exc
    elif graph != "concat":
        raise ConfigError(f"there is no graph {graph!r}", hint="auto or concat")
    if request.anchor_layers:
        raise ConfigError("a concat draft shares no anchor layers with a target")
    from draftwire.export.concat_graph import export_with_optimum

    fields, files = export_with_optimum(
        folder, scratch, precisions, limit=request.limit, context=context, why=why
    )
    fields["name"] = request.name
    fields["family"]["name"] = request.family_name or request.name
    return fields, files


def _precisions(wanted: str | Sequence[str] | None, role: str) -> list[str]:
    known = PRECISIONS if role == "draft" else tuple(TARGET_PRECISIONS)
    if wanted is None:
        wanted = "int8" if role == "draft" else "fp16"
    chosen = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for precision in chosen:
        if precision not in known:
            raise ConfigError(
                f"a {role} has no precision {precision!r}",
                hint=f"choose from {', '.join(known)}",
            )
    if not chosen or (role == "target" and len(chosen) > 1):
        raise ConfigError(f"{len(chosen)} precisions for a {role} were given")
    return chosen


def _draft(
    checkpoint: Checkpoint, precisions: Sequence[str], request: _Request, scratch: Path
) -> tuple[dict[str, Any], dict[str, NewFile]]:
    architecture = checkpoint.architecture
    ids = probe_tokens(checkpoint)
    expected, against = expected_logits(checkpoint, ids, against=request.against)
    whole = scratch / "whole.onnx"
    save_model(gqa_graph.build_gqa_graph(checkpoint), whole)

    def read(path: Path) -> DraftRunner:
        return DraftRunner(str(path), architecture, threads=threads(path))

    parity = compare(check_steps(read(whole), ids), expected, against)
    parity.require("the graph", LIMITS["fp32"])
    files, refused = precisions_of(
        whole,
        precisions,
        read,
        parity,
        request.limit,
        folder=checkpoint.folder,
        vocab_size=architecture.vocab_size,
        bos_id=checkpoint.bos_id,
        context=architecture.context,
        graph="gqa",
    )
    fields = _fields(checkpoint, request)
    fields["made"].update(refused)
    return fields, {**text_files(checkpoint.folder), **files}


def text_files(folder: Path) -> dict[str, NewFile]:
    """Return a package's files that turn text and messages into tokens."""
    found = {name: NewFile(said) for name, said in template_files(folder).items()}
    return {"tokenizer.json": NewFile(folder / "tokenizer.json"), **found}


def precisions_of(
    whole: Path,
    precisions: Sequence[str],
    read: Callable[[Path], Reader],
    parity: Parity,
    limit: Callable[[str], Limit],
    *,
    folder: Path,
    vocab_size: int,
    bos_id: int | None,
    context: int,
    graph: str,
) -> tuple[dict[str, NewFile], dict[str, Any]]:
    """Return the model files of a draft that pass the gate, and what is to say of them.

    Args:
        whole: The float32 graph.
        precisions: What to make of it.
        read: Opens a graph with a cache.
        parity: How far ``whole`` is from the checkpoint.
        limit: What a precision must reach.
        folder: Of the tokenizer.
        vocab_size: Rows of the logits.
        bos_id: What stands in front of a text.
        context: Positions that are served.
        graph: How the cache is passed, for the manifest.

    Raises:
        ModelError: None of them reaches its limit.
    """
    files: dict[str, NewFile] = {}
    refused: dict[str, str] = {}
    made: dict[str, Any] = {}
    reader = None
    for precision in precisions:
        path = whole.with_name(f"model.{precision}.onnx")
        found = parity
        if precision == "fp32":
            save_model(onnx.load(str(whole)), path)
        else:
            if reader is None:
                reader = read(whole)
                tokenizer = load_tokenizer(folder)
                texts = own_texts(
                    reader,
                    partial(tokenizer.encode, bos_id=bos_id),
                    vocab_size=min(vocab_size, tokenizer.vocab_size),
                    context=context,
                    calibrate="int4" in precisions,
                )
                made["gate"] = texts.record()
            moments = moments_of(whole, texts.calibrate) if precision == "int4" else None
            save_model(quantise(onnx.load(str(whole)), precision, moments), path)
            found = gate(reader, read(path), texts.judge, "its float32 graph")
        try:
            found.require(path.name, limit(precision))
        except ModelError as exc:
            refused[precision] = str(exc)
            continue
        details = {
            "engine": "onnxruntime",
            "precision": precision,
            "graph": graph,
            "min_engine": MIN_ENGINE[precision],
            "parity": found.record(),
        }
        files[path.name] = NewFile(path, details)
        data = path.with_name(path.name + ".data")
        if data.exists():
            files[data.name] = NewFile(data, {"of": path.name})
    if not files:
        raise ModelError(
            "; ".join(refused.values()),
            hint="choose a wider precision, or lower the limit with --min-agreement",
        )
    return files, {**made, **({"refused": refused} if refused else {})}


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; large weights go to ``<name>.data`` beside it, each once.

    Tensors of the same bytes share their place there: a head that is tied to the
    embedding has the embedding's bytes under other dimensions.
    """
    tensors = list(model.graph.initializer)
    large = [t for t in tensors if len(t.raw_data) >= 1024]
    keys = {id(t): hashlib.sha256(t.raw_data).digest() for t in large}
    shared = len(set(keys.values())) < len(keys)
    if not shared and sum(len(t.raw_data) for t in tensors) < EXTERNAL_BYTES:
        onnx.save_model(model, str(path))
        return
    data = path.with_name(path.name + ".data")
    places: dict[bytes, tuple[int, int]] = {}
    with open(data, "wb") as stream:
        for tensor in large:
            key = keys[id(tensor)]
            if key not in places:
                stream.write(b"\0" * (-stream.tell() % PAGE))  # a map begins at a page
                places[key] = (stream.tell(), len(tensor.raw_data))
                stream.write(tensor.raw_data)
            offset, length = places[key]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for name, value in (
                ("location", data.name),
                ("offset", offset),
                ("length", length),
            ):
                tensor.external_data.add(key=name, value=str(value))
    path.write_bytes(model.SerializeToString())


def _target(
    checkpoint: Checkpoint, precisions: Sequence[str], request: _Request, scratch: Path
) -> tuple[dict[str, Any], dict[str, NewFile]]:
    precision = precisions[0]
    graph = target_graph.build_target_graph(checkpoint).SerializeToString()
    weights = scratch / "weights.safetensors"
    kind = TARGET_PRECISIONS[precision]
    with np.errstate(over="ignore"):
        tensors = {n: checkpoint.weight(n).astype(kind) for n in checkpoint.parameters}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ModelError(
                f"{checkpoint.folder.name}: {name} does not fit into {precision}",
                hint="--precision fp32",
            )
    write_tensors(weights, tensors)
    ids = probe_tokens(checkpoint)
    expected, against = expected_logits(checkpoint, ids, against=request.against)
    found: Logits = run_target(graph, read_tensors(weights), checkpoint.architecture, ids)
    parity = compare(found, expected, against)
    parity.require("the target", request.limit(precision))
    files = {
        **text_files(checkpoint.folder),
        "model.onnx": NewFile(
            graph,
            {
                "engine": "onnxruntime",
                "graph": "target",
                "min_engine": target_graph.MIN_ENGINE,
            },
        ),
        "weights.safetensors": NewFile(
            weights, {"precision": precision, "parity": parity.record()}
        ),
    }
    fields = _fields(checkpoint, request)
    return {**fields, "version": request.version, "base": None, "adapter": None}, files


def _fields(checkpoint: Checkpoint, request: _Request) -> dict[str, Any]:
    fields = package_fields(
        checkpoint,
        name=request.name,
        family_name=request.family_name,
        anchor_layers=request.anchor_layers,
    )
    fields["made"].update(request.made)
    return fields


def package_fields(
    checkpoint: Checkpoint, *, name: str, family_name: str | None, anchor_layers: int
) -> dict[str, Any]:
    """Return what a package's manifest says of the model, without its files.

    Raises:
        ConfigError: The anchor does not fit the model.
    """
    a = checkpoint.architecture
    if anchor_layers > a.layers or anchor_layers < 0:
        raise ConfigError(
            f"an anchor of {anchor_layers} layers was asked for, "
            f"{checkpoint.folder.name} has {a.layers}"
        )
    backbone = None
    if anchor_layers:
        backbone = backbone_fingerprint(
            checkpoint.parameters, checkpoint.weight, layers=anchor_layers
        )
    return {
        "name": name,
        "family": {
            "name": family_name or name,
            "backbone": backbone,
            "tokenizer": tokenizer_fingerprint(checkpoint.tokenizer),
        },
        "vocab_size": a.vocab_size,
        "context": a.context,
        "bos_id": checkpoint.bos_id,
        "eos_ids": list(checkpoint.eos_ids),
        "shape": {
            "layers": a.layers,
            "kv_heads": a.kv_heads,
            "head_dim": a.head_dim,
            "hidden": a.hidden,
        },
        "made": {
            "from": checkpoint.name,
            "model_type": a.model_type,
            "anchor_layers": anchor_layers,
            **made_with(),
        },
    }


def made_with() -> dict[str, str]:
    """Return the versions that make an export repeatable."""
    return {
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
