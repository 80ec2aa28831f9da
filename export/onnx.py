"""From a Hugging Face checkpoint to a package: the way behind ``export package``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from draftwire.errors import ConfigError, ModelError
from draftwire.export import pieces
from draftwire.export.graphs import draft as gqa_graph
from draftwire.export.graphs import target as target_graph
from draftwire.export.precision import gate, parity, quantise
from draftwire.export.precision.runners import DraftRunner, Reader, run_target, threads
from draftwire.export.sources.architecture import UnknownArchitecture
from draftwire.export.sources.checkpoint import Checkpoint, load_checkpoint
from draftwire.export.sources.documents import count_ids
from draftwire.export.sources.head import head_ids
from draftwire.export.sources.inputs import checkpoint_folder
from draftwire.export.sources.tokens import checked
from draftwire.io import scratch_in, version_tuple, writing
from draftwire.packages import NewFile, write_package
from draftwire.tensors import read_tensors, write_tensors
from draftwire.tokenizer import load_tokenizer

TARGET_PRECISIONS = {"fp16": np.float16, "fp32": np.float32}

Files = dict[str, NewFile]
LimitOf = Callable[[str], parity.Limit]


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
    head: int | None = None,
    data: Sequence[str | Path] = (),
    anchor_layers: int = 0,
    min_agreement: float | None = None,
    against: str = "auto",
    made: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Export a checkpoint as a draft or target package; return its folder.

    The result is compared with the checkpoint first; nothing is written when it
    says something else.

    Args:
        model_dir: A Hugging Face directory with safetensors weights, a GGUF file, or
            ``owner/name`` on the hub.
        out: The package, ``NAME.draft`` or ``NAME.target``.
        precision: For a draft any of "fp32", "int8", "int8-split", "int8-kv8", "int4"
            (default int8), of which those that fail the gate are left out and named in the
            manifest; for a target how its weights are stored, "fp16" (default) or
            "fp32".
        role: "draft" or "target".
        graph: How a draft's cache is passed: "concat" for Optimum's graph, which is
            installed into the user's cache folder if it is not there; "auto" for
            the in-place one where the architecture is known here.
        name: The package's name; by default the folder's.
        version: The target's version.
        family_name: For people; by default the name.
        context: Positions to serve; by default the trained ones, for a draft at
            most 4096.
        head: Tokens that a draft's head says: those that end a text or were added to the
            vocabulary, and the most frequent of ``data``; None for all, or for those that
            the checkpoint's config names.
        data: Text like what will be written; without any the first of the vocabulary are
            taken for the most frequent, which is a poor guess.
        anchor_layers: How many first layers draft and targets share; 0 for none.
        min_agreement: Least share of positions with the checkpoint's most likely
            token, in place of the precision's own limit.
        against: "torch", "numpy", or "auto" for transformers where installed.
        made: How the checkpoint came about, for the manifest.
        replace: Put it in the place of an older package.

    Raises:
        ConfigError: An argument is wrong, or ``out`` exists.
        ModelError: The checkpoint is damaged or of an unknown shape, or nothing made
            of it is within its limit.
    """
    out = Path(out)
    if role not in ("draft", "target"):
        raise ConfigError(f"there is no role {role!r}", hint="draft or target")
    if graph not in ("auto", "concat"):
        raise ConfigError(f"there is no graph {graph!r}", hint="auto or concat")
    pieces.check_place(out, role, replace=replace)
    draft = role == "draft"
    if head is not None and not draft:
        raise ConfigError("a target's head says every token", hint="leave --head out")
    if data and head is None:
        raise ConfigError("--data says which tokens a head says", hint="add --head 8192")
    known = quantise.PRECISIONS if draft else tuple(TARGET_PRECISIONS)
    usual = "int8" if draft else "fp16"
    wanted = pieces.chosen(usual if precision is None else precision, known, role)
    if not draft and len(wanted) > 1:
        raise ConfigError(f"{len(wanted)} precisions for a target were given")
    limit = partial(parity.limit_of, min_agreement=min_agreement)
    named, family = name or out.stem, family_name or name or out.stem
    with writing(out), contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_in(out.parent))
        folder = checkpoint_folder(model_dir, scratch)
        pieces.text_files(folder)  # what is wrong with a template is said first
        try:
            if draft and graph == "concat":
                raise UnknownArchitecture("the concat graph is written by Optimum")
            checkpoint = checked(load_checkpoint(folder, context=context), against)
            if draft and context is None:
                checkpoint = checkpoint.cut(pieces.DRAFT_CONTEXT)
            size = checkpoint.architecture.vocab_size
            if not draft:
                checkpoint = checkpoint.having(said=())
            elif head is not None:
                seen = count_ids(folder, data, size) if data else None
                engine, keep = load_tokenizer(folder).engine, checkpoint.eos_ids
                ids = head_ids(head, size, tokenizer=engine, keep=keep, seen=seen)
                checkpoint = checkpoint.having(said=tuple(ids.tolist()))
            fields = pieces.package_fields(
                checkpoint, name=named, family_name=family, anchor_layers=anchor_layers
            )
            fields["made"].update(made or {})
            if draft:
                files = _draft(checkpoint, wanted, limit, against, scratch, fields)
            else:
                fields.update(version=version, base=None, adapter=None)
                files = _target(checkpoint, wanted[0], limit, against, scratch)
        except UnknownArchitecture as why:
            if not draft:
                raise ModelError(
                    str(why),
                    hint="as a target it can be served by the transformers backend",
                ) from why
            if anchor_layers:
                raise ConfigError(
                    "a concat draft shares no anchor layers with a target"
                ) from why
            from draftwire.export.graphs.concat import export_with_optimum

            told = graph == "concat"
            fields, files = export_with_optimum(
                folder, scratch, wanted, limit=limit, context=context, why=why, told=told
            )
            fields["name"], fields["family"]["name"] = named, family
        write_package(out, role, fields, files, replace=replace)
    return out


def _draft(
    checkpoint: Checkpoint,
    precisions: Sequence[str],
    limit: LimitOf,
    against: str,
    scratch: Path,
    fields: dict[str, Any],
) -> Files:
    """Return a draft's files, and put what there is to say of them into ``fields``."""
    a, folder = checkpoint.architecture, checkpoint.folder
    masks = pieces.name_masks(checkpoint, fields)
    probe = parity.probe(checkpoint, against, masks)
    whole = scratch / "whole.onnx"
    pieces.save_model(gqa_graph.build_gqa_graph(checkpoint), whole)

    def read(path: Path) -> DraftRunner:
        return DraftRunner(path, a, threads=threads(path))

    return gated(whole, read, probe, precisions, limit, folder, fields, masks)


def gated(
    whole: Path,
    read: Callable[[Path], Reader],
    probe: parity.Probe,
    precisions: Sequence[str],
    limit: LimitOf,
    folder: Path,
    fields: dict[str, Any],
    masks: Sequence[int] = (),
) -> Files:
    """Return a draft's files, those of its models that pass the gate, and put what there
    is to say of them into ``fields``, its manifest.

    ``whole`` is the float32 graph of the checkpoint in ``folder``, ``read`` opens a graph
    with a cache. A ModelError where that says something else, or no precision reaches its
    limit.
    """
    context, made, reader = fields["context"], fields["made"], read(whole)
    rows = [parity.check_steps(reader, probe.ids)]
    rows += parity.mask_rows(reader, probe.ids, masks, context)
    near = parity.compare(np.concatenate(rows), probe.logits, probe.against)
    near.require("the graph", parity.LIMITS["fp32"])
    files, texts = pieces.text_files(folder), None
    refused: dict[str, str] = {}
    for precision in precisions:
        path = whole.with_name(f"model.{precision}.onnx")
        needs = quantise.MIN_ENGINE[precision]
        found, here = near, onnxruntime.__version__
        if version_tuple(here) < version_tuple(needs):
            refused[precision] = (
                f"{path.name} needs onnxruntime {needs} or newer, this is {here}"
            )
            continue
        if precision != "fp32" and texts is None:
            tokenizer = load_tokenizer(folder)
            texts = gate.own_texts(
                reader,
                partial(tokenizer.encode, bos_id=fields["bos_id"]),
                vocab_size=min(fields["vocab_size"], tokenizer.vocab_size),
                context=context,
                calibrate=bool({"int4", "int8-kv8"} & {*precisions}),
            )
            made["gate"] = texts.record()
        model = onnx.load(str(whole))
        try:
            if precision == "fp32" or texts is None:
                pieces.save_model(model, path)
            else:
                four = precision == "int4"
                moments = gate.moments_of(whole, reader, texts.calibrate) if four else None
                model = quantise.quantise(model, precision, moments)
                if precision == "int8-kv8":
                    ranges = gate.cache_ranges(reader, texts.calibrate)
                    quantise.shrink_cache(model, ranges)
                pieces.save_model(model, path)
                against = "its float32 graph"
                found = gate.gate(reader, read(path), texts.judge, against, masks, context)
            found.require(path.name, limit(precision))
        except ModelError as exc:
            refused[precision] = str(exc)
            continue
        details = {
            "engine": "onnxruntime",
            "precision": precision,
            "graph": "gqa" if isinstance(reader, DraftRunner) else "concat",
            "min_engine": needs,
            "parity": found.record(),
        }
        files[path.name] = NewFile(path, details)
        data = path.with_name(path.name + ".data")
        if data.exists():
            files[data.name] = NewFile(data, {"of": path.name})
    if len(refused) == len(precisions):
        raise ModelError(
            "; ".join(refused.values()),
            hint="choose a wider precision, or lower the limit with --min-agreement",
        )
    made.update({"refused": refused} if refused else {})
    return files


def _target(
    checkpoint: Checkpoint, precision: str, limit: LimitOf, against: str, scratch: Path
) -> Files:
    graph = target_graph.build_target_graph(checkpoint)
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
    probe = parity.probe(checkpoint, against)
    found = run_target(graph, read_tensors(weights), checkpoint.architecture, probe.ids)
    near = parity.compare(found, probe.logits, probe.against)
    near.require("the target", limit(precision))
    details = {"engine": "onnxruntime", "graph": "target"}
    details["min_engine"] = target_graph.MIN_ENGINE
    stored = {"precision": precision, "parity": near.record()}
    return {
        **pieces.text_files(checkpoint.folder),
        "model.onnx": NewFile(graph.SerializeToString(), details),
        "weights.safetensors": NewFile(weights, stored),
    }
