"""What stands in a package's manifest, and whether its files are what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import AbstractSet, Any, Iterable, Mapping

from draftwire.errors import PackageError
from draftwire.packages.seals import Seals, data_files

MANIFESTS = {"draft": "draft.json", "target": "target.json"}
FORMATS = {"draft": "draftwire.draft/1", "target": "draftwire.target/1"}

MAX_MANIFEST = 1 << 20  # bytes: a manifest is a page of text
MAX_FILES = 64
# What a target's graph names and cannot open: its weights come from the verifier.
_SUPPLIED = "weights.safetensors"
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 24
MAX_PARALLEL = 32  # tokens of one forward

# No separators, no leading dot: such a name cannot leave its folder.
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,127}\Z")
HEX = re.compile(r"[0-9a-f]{64}\Z")
_WORDS = ("engine", "precision", "graph", "min_engine")
DAMAGED = "copy or export the package again"


@dataclass(frozen=True)
class Family:
    """Which models belong together."""

    name: str  # for people
    # fingerprint of the anchor weights that draft and targets share, 64 hex digits, or None
    # when they share none
    backbone: str | None
    tokenizer: str  # fingerprint of the tokenizer, 64 hex digits


@dataclass(frozen=True)
class Shape:
    """What a key/value cache for the model needs to know."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int


@dataclass(frozen=True)
class PackageFile:
    """One file of a package, its content checked."""

    path: Path  # where it lies
    sha256: str  # of its content, 64 hex digits
    bytes: int  # its length
    engine: str = ""  # what runs it ("onnxruntime"), or "" for data
    precision: str = ""  # "fp32", "int8", "int4", ..., or "" for data
    graph: str = ""  # how the cache is passed ("gqa", "concat", "target"), or ""
    min_engine: str = ""  # oldest version of the engine that runs it right, or ""
    # the file's whole entry in the manifest
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Parallel:
    """How a draft says several tokens in one forward (PARD).

    Masks stand behind the text; that at position ``p`` says the token at ``p + 1``, as any
    other token does.
    """

    # rows of its embedding that stand for a mask: one for all, or one for each in order;
    # they may lie behind the connection's vocabulary, and are never proposed
    mask_ids: tuple[int, ...]
    block: int  # tokens of one forward: the text's own last row says one, masks the others
    # the chance of each of them, given that all before it are right; () where not measured
    acceptance: tuple[float, ...] = ()

    def masks(self, count: int) -> tuple[int, ...]:
        """Return ``count`` masks, at most ``block - 1``."""
        ids = self.mask_ids if len(self.mask_ids) > 1 else self.mask_ids * (self.block - 1)
        return ids[:count]


def read_parallel(where: str, raw: Any, vocab_size: int) -> Parallel | None:
    """Return what a manifest's ``parallel`` says; None where it has none.

    A PackageError where it contradicts itself.
    """
    if raw is None:
        return None
    raw = raw if isinstance(raw, dict) else {}
    ids, block = raw.get("mask_ids"), raw.get("block")
    if type(block) is not int or not 2 <= block <= MAX_PARALLEL:
        raise wrong(where, "parallel.block", f"a number between 2 and {MAX_PARALLEL}")
    known = isinstance(ids, list) and all(type(i) is int for i in ids)
    if not known or not all(0 <= i < vocab_size for i in ids):
        raise wrong(where, "parallel.mask_ids", "rows of its embedding")
    if len(set(ids)) != len(ids) or len(ids) not in (1, block - 1):
        raise wrong(where, "parallel.mask_ids", f"one id, or {block - 1} different ones")
    chances = raw.get("acceptance_by_position") or []
    if not isinstance(chances, list) or len(chances) not in (0, block):
        raise wrong(where, "parallel.acceptance_by_position", f"{block} chances")
    if not all(type(c) in (int, float) and 0 <= c <= 1 for c in chances):
        raise wrong(where, "parallel.acceptance_by_position", "chances from 0 to 1")
    return Parallel(tuple(ids), block, tuple(map(float, chances)))


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """Read and check what both kinds of package have in common, every file hashed.

    A PackageError where something is missing, damaged or of an unknown format.
    """
    path = Path(os.path.abspath(path))
    raw = _read_json(path, kind)
    where = path.name

    def whole(name: str, low: int, high: int, data: Mapping[str, Any] = raw) -> int:
        value = data.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(where, name, "a whole number")
        if not low <= value <= high:
            raise wrong(where, name, f"between {low} and {high}")
        return value

    if not isinstance(raw.get("name"), str) or not NAME.match(raw["name"]):
        raise wrong(where, "name", "a short name")
    vocab_size = whole("vocab_size", 2, MAX_VOCAB)
    bos_id = None
    if raw.get("bos_id") is not None:
        bos_id = whole("bos_id", 0, vocab_size - 1)
    eos_ids = raw.get("eos_ids")
    if not isinstance(eos_ids, list) or len(eos_ids) > MAX_FILES:
        raise wrong(where, "eos_ids", "a list of token ids")
    eos = tuple(whole("eos_ids", 0, vocab_size - 1, {"eos_ids": i}) for i in eos_ids)
    sizes = raw.get("shape")
    if not isinstance(sizes, dict):
        raise wrong(where, "shape", "an object")
    shape = Shape(**{k: whole(k, 1, 1 << 20, sizes) for k in Shape.__dataclass_fields__})
    package = {
        "path": path,
        "id": raw.get("id"),
        "name": raw["name"],
        "family": _read_family(where, raw.get("family")),
        "vocab_size": vocab_size,
        "context": whole("context", 1, MAX_CONTEXT),
        "bos_id": bos_id,
        "eos_ids": eos,
        "shape": shape,
        "files": check_files(path, raw.get("files")),
        "raw": raw,
    }
    found = identity(kind, raw)
    if raw.get("id") != found:
        raise PackageError(
            f"{where} says its id is {str(raw.get('id'))[:12]}, "
            f"but its content has {found[:12]}",
            hint=DAMAGED,
        )
    return package


def _read_json(path: Path, kind: str) -> dict[str, Any]:
    manifest = path / MANIFESTS[kind]
    if not path.is_dir():
        raise PackageError(f"there is no {kind} package at {path}", hint="check the path")
    other = MANIFESTS["target" if kind == "draft" else "draft"]
    if not manifest.is_file():
        if (path / other).is_file():
            raise PackageError(
                f"{path.name} holds {other}, so it is no {kind} package",
                hint=f"a folder NAME.{kind} is one; `draftwire export` makes them",
            )
        raise PackageError(
            f"{path.name} has no {manifest.name}, so it is no {kind} package",
            hint="`draftwire export package` makes one from a checkpoint",
        )
    try:
        with open(manifest, "rb") as stream:
            text = stream.read(MAX_MANIFEST + 1)
        if len(text) > MAX_MANIFEST:
            raise PackageError(f"{path.name}/{manifest.name} is too long")
        raw = json.loads(text.decode("utf-8"))
    except OSError as exc:
        raise PackageError(f"{manifest} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise PackageError(
            f"{path.name}/{manifest.name} is not JSON", hint=DAMAGED
        ) from exc
    if not isinstance(raw, dict):
        raise PackageError(f"{path.name}/{manifest.name} is not an object")
    if raw.get("format") != FORMATS[kind]:
        raise PackageError(
            f"{path.name} has format {raw.get('format')!r}, "
            f"this draftwire reads {FORMATS[kind]!r}",
            hint="update draftwire, or export the model again",
        )
    return raw


def _read_family(where: str, raw: Any) -> Family:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise wrong(where, "family", "an object with a name")
    for key in ("backbone", "tokenizer"):
        value = raw.get(key)
        if key == "backbone" and value is None:
            continue
        if not isinstance(value, str) or not HEX.match(value):
            raise wrong(where, f"family.{key}", "64 hex digits")
    return Family(raw["name"], raw.get("backbone"), raw["tokenizer"])


def check_files(path: Path, raw: Any, beside: Iterable[str] = ()) -> dict[str, PackageFile]:
    """Check a manifest's table of files against the folder, content included.

    ``raw`` has by name ``sha256``, ``bytes`` and details; ``beside`` are names that another
    table lists. A PackageError where the table is unfit, or a file is missing or changed.
    """
    where = path.name
    if not isinstance(raw, dict) or not 0 < len(raw) <= MAX_FILES:
        raise wrong(where, "files", f"an object of 1 to {MAX_FILES} entries")
    files = {}
    seals = Seals(path)
    for name, entry in raw.items():
        if not FILE_NAME.match(name) or name in MANIFESTS.values():
            raise PackageError(f"{where} lists a file with the unfit name {name!r}")
        if not isinstance(entry, dict):
            raise wrong(where, f"files[{name}]", "an object")
        words = {k: entry.get(k, "") for k in _WORDS}
        sha256, size = entry.get("sha256"), entry.get("bytes")
        if not all(isinstance(w, str) for w in words.values()) or not isinstance(size, int):
            raise wrong(where, f"files[{name}]", "words and a length")
        if not isinstance(sha256, str) or not HEX.match(sha256):
            raise wrong(where, f"files[{name}].sha256", "64 hex digits")
        file = path / name
        if not file.is_file():
            raise PackageError(f"{where} lacks its file {name}", hint=DAMAGED)
        if file.stat().st_size != size:
            raise PackageError(
                f"{where}/{name} has {file.stat().st_size} bytes, not {size}",
                hint=DAMAGED,
            )
        if not seals.holds(file, sha256):
            raise PackageError(f"{where}/{name} does not match its hash", hint=DAMAGED)
        files[name] = PackageFile(file, sha256, size, details=entry, **words)
    seals.keep()
    _nothing_unnamed(path, files, {*files, *beside})
    return files


def _nothing_unnamed(
    path: Path, files: Mapping[str, PackageFile], named: AbstractSet[str]
) -> None:
    """Refuse a graph that reads weights which no hash covers."""
    for name, file in files.items():
        if not name.endswith(".onnx"):
            continue
        for other in data_files(file.path) - named:
            if other == _SUPPLIED and not os.path.lexists(path / other):
                continue
            raise PackageError(
                f"{path.name}/{name} reads {other!r}, which the package does not list",
                hint=DAMAGED,
            )


def identity(kind: str, raw: Mapping[str, Any]) -> str:
    """Return the id of a manifest: what it is made of, not what it is called."""
    base = raw.get("base")
    content = {
        "format": FORMATS[kind],
        "files": [f"{n} {e['sha256']}" for n, e in sorted(raw["files"].items())],
        "family": [raw["family"].get("backbone"), raw["family"]["tokenizer"]],
        "shape": {k: raw["shape"][k] for k in Shape.__dataclass_fields__},
        "tokens": [
            raw["vocab_size"],
            raw["context"],
            raw.get("bos_id"),
            raw["eos_ids"],
        ],
        "base": base["id"] if isinstance(base, dict) and "id" in base else None,
        "adapter": raw.get("adapter"),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def wrong(where: str, field_name: str, wanted: str) -> PackageError:
    """Return the error for a manifest field that is not ``wanted``."""
    return PackageError(f"{where}: {field_name} must be {wanted}", hint=DAMAGED)
