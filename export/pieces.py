"""What packages are put together from: fields of the manifest, what a draft shares with its
targets as one number, files, large graphs.
"""

from __future__ import annotations

import hashlib
import math
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from draftwire.errors import ConfigError
from draftwire.export.sources.architecture import parallel_of
from draftwire.export.sources.checkpoint import Checkpoint, read_config, read_json
from draftwire.export.sources.head import KEY, packed
from draftwire.packages import NewFile, tokenizer_fingerprint
from draftwire.template import template_files

# A draft's cache takes memory for all of it, so a long trained context is cut.
DRAFT_CONTEXT = 4096
# From here on weights lie beside the graph: onnxruntime maps them instead of copying.
EXTERNAL_BYTES = 64 << 20
PAGE = 4096
_EMBEDDING = re.compile(
    r"(?:model\.embed_tokens|gpt_neox\.embed_in|transformer\.w[tp]e)\.weight\Z"
)
_LAYER = re.compile(r"(?:(?:model|gpt_neox)\.layers|transformer\.h)\.(\d+)\.")


def check_place(place: Path, role: str, *, replace: bool) -> None:
    """Refuse to write where something is, or under another ending; a ConfigError where
    ``place`` is not fit for a package of that role.
    """
    if place.suffix != f".{role}":
        raise ConfigError(
            f"a {role} package is called NAME.{role}, not {place.name}",
            hint=f"--out {place.stem}.{role}",
        )
    check_free(place, replace=replace)


def check_free(place: Path, *, replace: bool) -> None:
    """Refuse to write where something is; a ConfigError where there is."""
    if place.exists() and not replace:
        raise ConfigError(
            f"there is something at {place} already",
            hint="choose another place, or remove it first",
        )


def check_beside(out: Path, base: Path) -> None:
    """Refuse (ConfigError) an evolved target that would not lie beside its base."""
    if out.absolute().parent != base.absolute().parent:
        raise ConfigError(
            f"an evolved target lies beside its base, {out} and {base} do not",
            hint=f"--out {base.parent / out.name}",
        )


def chosen(wanted: str | Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """Return precisions, each once; a ConfigError where there are none, or one is not
    known.
    """
    found = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for precision in found:
        if precision not in known:
            raise ConfigError(
                f"a {what} has no precision {precision!r}",
                hint=f"choose from {', '.join(known)}",
            )
    if not found:
        raise ConfigError(f"0 precisions for a {what} were given")
    return found


def anchor_parameters(names: Iterable[str], layers: int) -> list[str]:
    """Return the parameters of the anchor: embedding and the first ``layers``."""
    return sorted(name for name in names if _layer_of(name) < layers)


def _layer_of(name: str) -> float:
    """Return the layer of a parameter, -1 for the embedding, infinity for what is behind
    all layers.
    """
    match = _LAYER.match(name)
    return int(match[1]) if match else -1 if _EMBEDDING.match(name) else math.inf


def backbone_fingerprint(
    names: Iterable[str], weight: Callable[[str], NDArray[np.float32]], *, layers: int
) -> str:
    """Return the fingerprint, 64 hex digits, of a model's anchor: the embedding and so many
    first layers of the parameters ``names``, each of which ``weight`` gives as float32.

    Draft and targets of a family have it in common, and no evolution may touch it. Names do
    not matter, nor does a file's format: ``transport/PROTOCOL.md`` 4.1 says it to the byte.
    Weights are rounded to float16, so that a checkpoint and its float16 package have the
    same value.
    """
    groups: dict[float, list[str]] = {at: [] for at in range(-1, layers)}
    for name in anchor_parameters(names, layers):
        with np.errstate(over="ignore"):
            values = weight(name).astype("<f2") + np.float16(0)  # one zero, not two
        groups[_layer_of(name)].append(hashlib.sha256(values.tobytes()).hexdigest())
    lines = [f"draftwire.backbone/2 {layers}"]
    for at, digests in groups.items():
        lines += ["embedding" if at < 0 else f"layer {at}", *sorted(digests)]
    packed = "".join(line + "\n" for line in lines)
    return hashlib.sha256(packed.encode("ascii")).hexdigest()


def package_fields(
    checkpoint: Checkpoint, *, name: str, family_name: str | None, anchor_layers: int
) -> dict[str, Any]:
    """Return what a package's manifest says of the model, without its files; a ConfigError
    where the anchor does not fit the model.
    """
    a = checkpoint.architecture
    if not 0 <= anchor_layers <= a.layers:
        raise ConfigError(
            f"an anchor of {anchor_layers} layers was asked for, "
            f"{checkpoint.folder.name} has {a.layers}"
        )
    config = read_json(checkpoint.folder / "config.json")
    if a.said:
        config[KEY] = packed(np.array(a.said), a.vocab_size)
    masks = (config.get("parallel") or {}).get("mask_ids", [])
    # Rows of masks behind the vocabulary belong to the draft alone.
    end = a.vocab_size - len(masks)
    end = end if masks == [*range(end, a.vocab_size)] else a.vocab_size

    def anchor(name: str) -> NDArray[np.float32]:
        found = checkpoint.weight(name)
        return found[:end] if name == a.embedding else found

    backbone = None
    if anchor_layers:
        backbone = backbone_fingerprint(checkpoint.parameters, anchor, layers=anchor_layers)
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
        "shape": {n: getattr(a, n) for n in ("layers", "kv_heads", "head_dim", "hidden")},
        "made": {
            "from": checkpoint.name,
            "model_type": a.model_type,
            "anchor_layers": anchor_layers,
            **({"head_tokens": len(a.said)} if a.said else {}),
            # Without what names places or versions.
            "config": {
                k: v for k, v in config.items() if k[0] != "_" and k[:12] != "transformers"
            },
            **made_with(),
        },
    }


def name_masks(checkpoint: Checkpoint, fields: dict[str, Any]) -> list[int]:
    """Put what a draft's config says of its masks into the fields of its manifest; return
    those of a whole block.
    """
    where, size = checkpoint.folder.name, checkpoint.architecture.vocab_size
    table, masks = parallel_of(where, read_config(checkpoint.folder), size)
    if table is not None:
        fields["parallel"] = table
    return masks


def made_with() -> dict[str, str]:
    """Return the versions that make an export repeatable."""
    return {
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def text_files(folder: Path) -> dict[str, NewFile]:
    """Return a package's files that turn text and messages into tokens."""
    found = {name: NewFile(said) for name, said in template_files(folder).items()}
    return {"tokenizer.json": NewFile(folder / "tokenizer.json"), **found}


def kept_files(package: Any) -> tuple[dict[str, Any], dict[str, NewFile]]:
    """Return the fields and files of a package, to be written once more."""
    anew = ("format", "id", "files", "sha256", "bytes")
    return {k: v for k, v in package.raw.items() if k not in anew}, {
        name: NewFile(f.path, {k: v for k, v in f.details.items() if k not in anew})
        for name, f in package.files.items()
    }


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
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            where = dict(zip(("offset", "length"), places[key], strict=True))
            for name, value in {"location": data.name, **where}.items():
                tensor.external_data.add(key=name, value=str(value))
    path.write_bytes(model.SerializeToString())
