"""LiteRT engines for draft packages: the way behind ``export tflite``.

A package's id is a hash over its files, so a package with an engine more is another
package with an id of its own; family and tokenizer, which decide what fits a target,
stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from draftwire.errors import ConfigError, ModelError
from draftwire.export.architecture import UnknownArchitecture
from draftwire.export.checkpoint import Checkpoint, load_checkpoint
from draftwire.export.onnx import DRAFT_CONTEXT, package_fields
from draftwire.export.parity import (
    LIMITS,
    DraftRunner,
    Limit,
    Logits,
    compare,
    expected_logits,
    finite_logits,
    probe_ids,
    probe_tokens,
)
from draftwire.export.tflite_graph import PRECISIONS, build_tflite
from draftwire.export.tflite_parity import check_tflite
from draftwire.export.tflite_source import CheckpointSource, PackageSource, Source
from draftwire.packages import (
    DraftPackage,
    NewFile,
    load_draft,
    tokenizer_fingerprint,
    write_package,
)
from draftwire.template import template_files

__all__ = ["export_tflite"]

_PROBE = 224
# Least agreement of a package's rounded model with the checkpoint that is said to be
# its origin; another model agrees at a few positions only.
_SAME_MODEL = 0.5


@dataclass(frozen=True)
class _Origin:
    """Where weights and right answers come from.

    Attributes:
        exact: The answers are those of these very weights in float32, so that float32
            results must be near them, not only agree.
    """

    source: Source
    ids: list[int]
    expected: Logits
    against: str
    exact: bool
    weights: str


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
    precisions = _precisions(precision)
    package = load_draft(source) if _is_package(source) else None
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
        said = template_files(made.folder).items()
        files = {"tokenizer.json": NewFile(made.tokenizer)}
        files.update({name: NewFile(content) for name, content in said})
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
        fields = {k: v for k, v in package.raw.items() if k not in _WRITTEN}
        files = {name: _kept(file) for name, file in package.files.items()}
    fields["made"] = {**dict(fields.get("made") or {}), **_made_with(package)}
    for one in precisions:
        content = build_tflite(origin.source, one)
        file = f"model.{one}.tflite"
        parity = check_tflite(
            content,
            origin.source.shape.layers,
            origin.ids,
            origin.expected,
            origin.against,
        )
        parity.require(file, _limit(one, origin, min_agreement))
        details = {
            "engine": "litert",
            "precision": one,
            "graph": "static",
            "min_engine": "",
            "weights": origin.weights,
            "parity": parity.record(),
        }
        files[file] = NewFile(content, details)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{place} cannot be written: {exc}") from exc
    write_package(place, "draft", fields, files, replace=replace)
    return place


_WRITTEN = ("format", "id", "files")  # write_package makes these anew


def _is_package(source: Path) -> bool:
    return source.suffix == ".draft" or (source / "draft.json").is_file()


def _kept(file: Any) -> NewFile:
    details = {k: v for k, v in file.details.items() if k not in ("sha256", "bytes")}
    return NewFile(file.path, details)


def _precisions(wanted: str | Sequence[str]) -> list[str]:
    chosen = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for one in chosen:
        if one not in PRECISIONS:
            raise ConfigError(
                f"a LiteRT draft has no precision {one!r}",
                hint=f"choose from {', '.join(PRECISIONS)}",
            )
    if not chosen:
        raise ConfigError("no precision was given")
    return chosen


def _place(
    source: Path, out: str | Path | None, package: DraftPackage | None, *, replace: bool
) -> Path:
    if out is None:
        if package is None:
            raise ConfigError(
                "say where the package shall be written", hint="--out NAME.draft"
            )
        if not replace:
            raise ConfigError(
                f"a package with another engine has another id than {source.name}",
                hint="--out OTHER.draft, or --replace to put it in its place",
            )
        return source
    place = Path(out)
    if place.suffix != ".draft":
        raise ConfigError(
            f"a draft package is called NAME.draft, not {place.name}",
            hint=f"--out {place.stem}.draft",
        )
    if place.exists() and not replace:
        raise ConfigError(
            f"there is something at {place} already",
            hint="choose another place, or remove it first",
        )
    return place


def _limit(precision: str, origin: _Origin, min_agreement: float | None) -> Limit:
    limit = LIMITS[precision]
    if not origin.exact:
        limit = Limit(None, LIMITS["int8"].agreement)
    if min_agreement is None:
        return limit
    return Limit(limit.difference, min_agreement)


def _load(folder: Path, context: int | None) -> Checkpoint:
    try:
        return load_checkpoint(folder, context=context)
    except UnknownArchitecture as exc:
        raise ModelError(
            str(exc), hint="such a draft runs on onnxruntime: draftwire export onnx"
        ) from exc


def _from_checkpoint(checkpoint: Checkpoint, against: str) -> _Origin:
    ids = probe_tokens(checkpoint)
    expected, source = expected_logits(checkpoint, ids, against=against)
    weights = checkpoint.name
    return _Origin(CheckpointSource(checkpoint), ids, expected, source, True, weights)


def _from_package(package: DraftPackage) -> _Origin:
    """Take the weights of the package's widest graph, and what it says with them."""
    source = PackageSource(package)
    limit = min(_PROBE, package.context)
    ids = probe_ids(package.path, package.vocab_size, package.bos_id, limit=limit)
    runner = DraftRunner(str(source.file.path), source.shape)
    rows = [runner.forward([token])[0] for token in ids]
    expected = finite_logits(package.path.name, np.stack(rows))
    exact = source.file.precision == "fp32"
    against = source.file.path.name
    return _Origin(source, ids, expected, against, exact, against)


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


def _made_with(package: DraftPackage | None) -> dict[str, Any]:
    added: dict[str, Any] = {"ai-edge-litert": metadata.version("ai-edge-litert")}
    if package is not None:
        added["engine_added_to"] = package.id
    return added
