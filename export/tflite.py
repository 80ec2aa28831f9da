"""LiteRT engines for draft packages: the way behind ``export package --engine litert``.

A package's id is a hash over its files, so a package with an engine more is another
package with an id of its own; family and tokenizer, which decide what fits a target,
stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from draftwire.errors import ConfigError, ModelError
from draftwire.export.graphs.tflite import PRECISIONS, build_tflite
from draftwire.export.pieces import (
    DRAFT_CONTEXT,
    check_place,
    chosen,
    kept_files,
    package_fields,
    text_files,
)
from draftwire.export.precision.parity import (
    LIMITS,
    MAX_PROBE,
    Limit,
    compare,
    expected_logits,
    finite_logits,
    limit_of,
    probe_ids,
    probe_tokens,
)
from draftwire.export.precision.runners import DraftRunner, Logits
from draftwire.export.precision.tflite_runner import check_tflite
from draftwire.export.sources.architecture import UnknownArchitecture
from draftwire.export.sources.checkpoint import Checkpoint, load_checkpoint
from draftwire.export.sources.weights import CheckpointWeights, PackageWeights, Weights
from draftwire.packages import (
    DraftPackage,
    NewFile,
    load_draft,
    tokenizer_fingerprint,
    write_package,
)

# Least agreement of a package's rounded model with the checkpoint that is said to be
# its origin; another model agrees at a few positions only.
_SAME_MODEL = 0.5


@dataclass(frozen=True)
class _Origin:
    """Where weights and right answers come from."""

    weights: Weights
    ids: list[int]
    expected: Logits
    against: str
    # the answers are those of these very weights in float32, so that float32 results must
    # be near them, not only agree
    exact: bool
    name: str


def export_tflite(
    source: str | Path,
    out: str | Path | None = None,
    *,
    precision: str | Sequence[str] = "int8",
    checkpoint: str | Path | None = None,
    name: str | None = None,
    family_name: str | None = None,
    context: int | None = None,
    anchor_layers: int = 0,
    min_agreement: float | None = None,
    against: str = "auto",
    replace: bool = False,
) -> Path:
    """Give a draft a LiteRT engine: ``model.<precision>.tflite``.

    Each file is compared with its origin first; nothing is written when one says
    something else.

    Args:
        source: A draft package to add to, or a Hugging Face directory.
        out: The package to write; None changes ``source``, which needs ``replace``.
        precision: Any of "fp32" and "int8".
        checkpoint: The checkpoint that the package ``source`` was made from: its
            weights are better than those of a package that holds only rounded ones.
        name: Of a package from a checkpoint; by default the folder's.
        family_name: Of a package from a checkpoint; by default the name.
        context: Positions to serve, of a package from a checkpoint.
        anchor_layers: First layers that draft and targets share, of a package from a
            checkpoint.
        min_agreement: Least share of positions with the origin's most likely token, in
            place of the precision's own limit.
        against: "torch", "numpy", or "auto" for transformers where installed.
        replace: Put it in the place of an older package.

    Returns:
        The package's folder.

    Raises:
        ConfigError: An argument is wrong, or ``out`` exists.
        ModelError: The source is damaged or of an unknown shape, or the result differs
            from it by more than the limit.
        PackageError: The package ``source`` is damaged.
    """
    source = Path(source)
    precisions = chosen(precision, PRECISIONS, "LiteRT draft")
    is_package = source.suffix == ".draft" or (source / "draft.json").is_file()
    package = load_draft(source) if is_package else None
    place = _place(source, out, package, replace=replace)
    if package is None:
        if checkpoint is not None:
            raise ConfigError("--checkpoint goes with a draft package, not with another")
        made = _load(source, context)
        if context is None:
            made = made.cut(DRAFT_CONTEXT)
        origin = _from_checkpoint(made, against)
        fields = package_fields(
            made,
            name=name or place.stem,
            family_name=family_name,
            anchor_layers=anchor_layers,
        )
        files = text_files(made.folder)
    else:
        if any((name, family_name, context, anchor_layers)):
            raise ConfigError(
                "a package keeps its name, family, context and anchor",
                hint="give the checkpoint instead of the package to choose them",
            )
        if checkpoint is None:
            origin = _from_package(package)
        else:
            origin = _from_named_checkpoint(package, Path(checkpoint), against)
        fields, files = kept_files(package)
    added = {"ai-edge-litert": metadata.version("ai-edge-litert")}
    if package is not None:
        added["engine_added_to"] = package.id
    fields["made"] = {**dict(fields.get("made") or {}), **added}
    for one in precisions:
        content = build_tflite(origin.weights, one)
        file = f"model.{one}.tflite"
        parity = check_tflite(content, origin.ids, origin.expected, origin.against)
        parity.require(file, _limit(one, origin, min_agreement))
        details = {
            "engine": "litert",
            "precision": one,
            "graph": "static",
            "min_engine": "",
            "weights": origin.name,
            "parity": parity.record(),
        }
        files[file] = NewFile(content, details)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{place} cannot be written: {exc}") from exc
    write_package(place, "draft", fields, files, replace=replace)
    return place


def _place(
    source: Path, out: str | Path | None, package: DraftPackage | None, *, replace: bool
) -> Path:
    if out is not None:
        check_place(Path(out), "draft", replace=replace)
        return Path(out)
    if package is None:
        raise ConfigError("say where the package shall be written", hint="--out NAME.draft")
    if not replace:
        raise ConfigError(
            f"a package with another engine has another id than {source.name}",
            hint="--out OTHER.draft, or --replace to put it in its place",
        )
    return source


def _limit(precision: str, origin: _Origin, min_agreement: float | None) -> Limit:
    limit = limit_of(precision, min_agreement)
    if origin.exact:
        return limit
    rounded = LIMITS["int8"].agreement
    return Limit(None, rounded if min_agreement is None else min_agreement)


def _load(folder: Path, context: int | None) -> Checkpoint:
    try:
        return load_checkpoint(folder, context=context)
    except UnknownArchitecture as exc:
        raise ModelError(
            str(exc), hint="such a draft runs on onnxruntime: draftwire export package"
        ) from exc


def _from_checkpoint(checkpoint: Checkpoint, against: str) -> _Origin:
    ids = probe_tokens(checkpoint)
    expected, source = expected_logits(checkpoint, ids, against=against)
    weights = CheckpointWeights(checkpoint)
    return _Origin(weights, ids, expected, source, True, checkpoint.name)


def _from_package(package: DraftPackage) -> _Origin:
    """Take the weights of the package's widest graph, and what it says with them."""
    weights = PackageWeights(package)
    limit = min(MAX_PROBE, package.context)
    ids = probe_ids(package.path, package.vocab_size, package.bos_id, limit=limit)
    runner = DraftRunner(weights.file.path, weights.a)
    rows = [runner.forward([token])[0] for token in ids]
    expected = finite_logits(package.path.name, np.stack(rows))
    exact, name = weights.file.precision == "fp32", weights.file.path.name
    return _Origin(weights, ids, expected, name, exact, name)


def _from_named_checkpoint(package: DraftPackage, folder: Path, against: str) -> _Origin:
    checkpoint = _load(folder, None).cut(package.context)
    a, s = checkpoint.architecture, package.shape
    theirs = (a.layers, a.kv_heads, a.head_dim, a.hidden, a.vocab_size, a.context)
    ours = (s.layers, s.kv_heads, s.head_dim, s.hidden, package.vocab_size, package.context)
    tokenizer = tokenizer_fingerprint(checkpoint.tokenizer)
    origin = _from_checkpoint(checkpoint, against)
    if theirs == ours and tokenizer == package.family.tokenizer:
        found = _from_package(package)
        same = compare(found.expected[: len(origin.ids)], origin.expected, "")
        if found.ids == origin.ids and same.agreement >= _SAME_MODEL:
            return origin
    raise ModelError(
        f"{folder.name} is not the checkpoint that {package.path.name} was made from",
        hint="leave --checkpoint out to take the weights from the package itself",
    )
