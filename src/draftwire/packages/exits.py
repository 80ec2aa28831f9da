"""Early exits of a target: what a manifest says about them, read and checked.

An exit sits between two layers and guesses the target's verdict while the upper layers
still run.  It never changes what a target says, so its files stand in a section of their
own, ``exits``, outside the package's id; readers that know nothing of it skip it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from draftwire.errors import ModelError, PackageError
from draftwire.io import parse_json
from draftwire.packages.manifest import (
    DAMAGED,
    Fields,
    PackageFile,
    check_files,
    is_share,
    wrong,
)

EXITS_FORMAT = "draftwire.exits/1"
EXITS_FILE = "exits.safetensors"
MAX_EXITS = 16
_SHARES = ("threshold", "agreement", "measured", "speaks")


@dataclass(frozen=True)
class Exit:
    """One early exit of a target."""

    layer: int  # after how many layers it sits
    threshold: float  # least probability of its most likely token for it to speak
    # share of the positions where it speaks at which it names the target's own most likely
    # token: what ``threshold`` was calibrated for
    agreement: float
    # the same share on text that the calibration has not seen, or None
    measured: float | None = None
    # share of the positions of that text at which it speaks, or None
    speaks: float | None = None


@dataclass(frozen=True)
class ExitPart:
    """Some neighbouring layers of a target as a graph of their own."""

    file: PackageFile  # the graph
    first: int  # its first layer, from 0
    last: int  # the layer behind its last one
    weights: tuple[str, ...]  # names of the tensors to supply


@dataclass(frozen=True)
class Exits:
    """The exits of a target package."""

    exits: tuple[Exit, ...]  # from the lowest up
    tensors: PackageFile  # their weights
    parts: tuple[ExitPart, ...]  # the target in parts, one more than there are exits
    rank: int  # of their residuals


def read_exits(path: Path, raw: Mapping[str, Any], *, layers: int) -> Exits | None:
    """Read and check the section ``exits`` of a target's manifest ``raw``.

    None where there are none, or of a format that is not known here; a PackageError where
    they are damaged, incomplete, or another target's.
    """
    section = raw.get("exits")
    if section is None:
        return None
    where = path.name
    fields = Fields(where, section, "exits")
    if section.get("format") != EXITS_FORMAT:
        return None
    if section.get("target") != raw.get("id"):
        hint = "make them again: draftwire export exits"
        raise PackageError(f"the exits of {where} were made for another target", hint=hint)
    files = check_files(path, section.get("files"), raw["files"])
    exits = _exits(where, section.get("exits"), layers)
    if EXITS_FILE not in files:
        raise PackageError(f"{where} has exits but no {EXITS_FILE}", hint=DAMAGED)
    rank = fields.whole("rank", 1, 1 << 20)
    bounds = [0, *(exit.layer for exit in exits), layers]
    parts = section.get("parts")
    if not isinstance(parts, list) or len(parts) != len(exits) + 1:
        raise fields.wrong("parts", "one part more than there are exits")
    found = []
    for part, first, last in zip(parts, bounds, bounds[1:]):
        names = part.get("weights") if isinstance(part, dict) else None
        words: list[Any] = names if isinstance(names, list) else [None]
        known = all(isinstance(name, str) for name in words)
        if not known or part.get("file") not in files:
            raise fields.wrong("parts", "files with names of weights")
        found.append(ExitPart(files[part["file"]], first, last, tuple(words)))
    return Exits(exits, files[EXITS_FILE], tuple(found), rank)


def exits_of_header(
    where: str, metadata: Mapping[str, str], *, layers: int
) -> tuple[tuple[Exit, ...], int]:
    """Return the exits, and their residuals' rank, that the header of a safetensors file
    names.

    A PackageError, of ``where``, where it does not say what it must.
    """
    if metadata.get("format") != EXITS_FORMAT:
        raise PackageError(
            f"{where} has format {metadata.get('format')!r}, "
            f"this draftwire reads {EXITS_FORMAT!r}",
            hint="make the exits again: draftwire export exits",
        )
    try:
        content = parse_json(metadata.get("exits", ""))
        rank = int(metadata.get("rank", ""))
    except ValueError as exc:
        raise PackageError(f"{where} says nothing of its exits", hint=DAMAGED) from exc
    return _exits(where, content, layers), rank


def _exits(where: str, raw: Any, layers: int) -> tuple[Exit, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_EXITS:
        raise wrong(where, "exits", f"a list of 1 to {MAX_EXITS}")
    found: list[Exit] = []
    for entry in raw:
        fields = Fields(where, entry, "exits")
        layer = fields.whole("layer", found[-1].layer + 1 if found else 1, layers - 1)
        given = {key: entry.get(key) for key in _SHARES}
        if not all(map(is_share, [v for v in given.values() if v is not None])):
            raise fields.wrong("threshold", "a number from 0 to 1, as the other shares are")
        if given["threshold"] is None or given["agreement"] is None:
            raise fields.wrong("threshold", "given, and the agreement too")
        found.append(Exit(layer, **{k: v and float(v) for k, v in given.items()}))
    return tuple(found)


def torch_stack(model: Any) -> tuple[Any, Any, Any]:
    """Return the layers, last norm and head of a causal language model of transformers.

    A ModelError where they are not where such models have them.
    """
    stack = getattr(model, "base_model", None)
    stack = getattr(stack, "language_model", stack)
    layers = getattr(stack, "layers", None) or getattr(stack, "h", None)
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "embedding_norm")
    norm = next((getattr(stack, n) for n in names if hasattr(stack, n)), None)
    head = model.get_output_embeddings()
    if layers is None or norm is None or head is None:
        raise ModelError(
            f"the layers, last norm or head of a {model.config.model_type} model are not "
            "where they are looked for"
        )
    return layers, norm, head


def torch_places(model: Any) -> tuple[Any, Any, Any]:
    """Find where exits go in a causal language model; as :func:`torch_stack` (ModelError:
    there is no place for one, or its logits are more than its head's product)."""
    layers, norm, head = torch_stack(model)
    config = model.config.get_text_config()
    scaled = [
        key
        for key in ("final_logit_softcapping", "logits_scaling", "logit_scale")
        if getattr(config, key, None) not in (None, 1, 1.0)
    ]
    if scaled or len(layers) < 2:
        why = f"uses {scaled[0]}" if scaled else "has one layer"
        raise ModelError(
            f"exits cannot be put into this {config.model_type} model: it {why}"
        )
    return layers, norm, head
