"""What stands in a package's manifest, and whether its files are what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Mapping

from draftwire.errors import PackageError
from draftwire.io import parse_json, read_text
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
ANYTHING = re.compile("")
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


_SHAPE = tuple(Shape.__dataclass_fields__)


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


class Fields:
    """An object of a package's manifest; a PackageError names a field that is unfit."""

    def __init__(self, where: str, raw: Any, name: str = "") -> None:
        if not isinstance(raw, dict):
            raise wrong(where, name, "an object")
        self.raw, self._where = raw, where
        self._prefix = f"{name}." if name else ""

    def wrong(self, name: str, wanted: str) -> PackageError:
        """Return the error for a field that is not ``wanted``."""
        return wrong(self._where, self._prefix + name, wanted)

    def whole(self, name: str, low: int, high: int) -> int:
        """Return a whole number."""
        found = self.raw.get(name)
        if type(found) is not int or not low <= found <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return found

    def wholes(self, name: str, high: int, most: int) -> tuple[int, ...]:
        """Return at most ``most`` numbers below ``high``."""
        found = self.raw.get(name)
        if not isinstance(found, list) or len(found) > most:
            raise self.wrong(name, f"a list of at most {most}")
        if not all(type(one) is int and 0 <= one < high for one in found):
            raise self.wrong(name, f"whole numbers below {high}")
        return tuple(found)

    def word(self, name: str, pattern: re.Pattern[str], wanted: str) -> str:
        """Return a text that ``pattern`` matches."""
        found = self.raw.get(name)
        if not isinstance(found, str) or not pattern.match(found):
            raise self.wrong(name, wanted)
        return found


def is_share(value: Any) -> bool:
    """Return whether ``value`` is a number from 0 to 1."""
    return type(value) in (int, float) and 0 <= value <= 1


def read_parallel(where: str, raw: Any, vocab_size: int) -> Parallel | None:
    """Return what a manifest's ``parallel`` says; None where it has none.

    A PackageError where it contradicts itself.
    """
    if raw is None:
        return None
    fields = Fields(where, raw, "parallel")
    block = fields.whole("block", 2, MAX_PARALLEL)
    ids = fields.wholes("mask_ids", vocab_size, block - 1)
    if len(set(ids)) != len(ids) or len(ids) not in (1, block - 1):
        raise fields.wrong("mask_ids", f"one id, or {block - 1} different ones")
    chances = raw.get("acceptance_by_position") or []
    if not isinstance(chances, list) or len(chances) not in (0, block):
        raise fields.wrong("acceptance_by_position", f"{block} chances")
    if not all(map(is_share, chances)):
        raise fields.wrong("acceptance_by_position", "chances from 0 to 1")
    return Parallel(ids, block, tuple(map(float, chances)))


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """Read and check what both kinds of package have in common, every file hashed.

    A PackageError where something is missing, damaged or of an unknown format.
    """
    path = Path(os.path.abspath(path))
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as exc:  # engines take no other names
        what = f"the name of the folder {path} is no UTF-8"
        raise PackageError(what, hint="give the folder another name") from exc
    raw = _read_json(path, kind)
    where = path.name
    fields = Fields(where, raw)
    vocab_size = fields.whole("vocab_size", 2, MAX_VOCAB)
    begins = raw.get("bos_id") is not None
    shape = Fields(where, raw.get("shape"), "shape")
    package = {
        "path": path,
        "id": raw.get("id"),
        "name": fields.word("name", NAME, "a short name"),
        "family": _read_family(Fields(where, raw.get("family"), "family")),
        "vocab_size": vocab_size,
        "context": fields.whole("context", 1, MAX_CONTEXT),
        "bos_id": fields.whole("bos_id", 0, vocab_size - 1) if begins else None,
        "eos_ids": fields.wholes("eos_ids", vocab_size, MAX_FILES),
        "shape": Shape(**{k: shape.whole(k, 1, 1 << 20) for k in _SHAPE}),
        "files": check_files(path, raw.get("files")),
        "raw": raw,
    }
    found = identity(kind, raw)
    if raw.get("id") != found:
        said = f"{where} says its id is {str(raw.get('id'))[:12]}, but its content has "
        raise PackageError(said + found[:12], hint=DAMAGED)
    return package


def _read_json(path: Path, kind: str) -> dict[str, Any]:
    manifest = path / MANIFESTS[kind]
    if not path.is_dir():
        raise PackageError(f"there is no {kind} package at {path}", hint="check the path")
    other = MANIFESTS["target" if kind == "draft" else "draft"]
    if not manifest.is_file():
        said = f"has no {manifest.name}"
        hint = "`draftwire export package` makes one from a checkpoint"
        if (path / other).is_file():
            said = f"holds {other}"
            hint = f"a folder NAME.{kind} is one; `draftwire export` makes them"
        raise PackageError(f"{path.name} {said}, so it is no {kind} package", hint=hint)
    text = read_text(manifest, MAX_MANIFEST, "a manifest")
    try:
        raw = parse_json(text)
    except ValueError as exc:
        why = f"{path.name}/{manifest.name} is not JSON"
        raise PackageError(why, hint=DAMAGED) from exc
    if not isinstance(raw, dict):
        raise PackageError(f"{path.name}/{manifest.name} is not an object")
    if raw.get("format") != FORMATS[kind]:
        said = f"{path.name} has format {raw.get('format')!r}, this draftwire reads "
        hint = "update draftwire, or export the model again"
        raise PackageError(f"{said}{FORMATS[kind]!r}", hint=hint)
    return raw


def _read_family(fields: Fields) -> Family:
    backbone = None
    if fields.raw.get("backbone") is not None:
        backbone = fields.word("backbone", HEX, "64 hex digits")
    tokenizer = fields.word("tokenizer", HEX, "64 hex digits")
    return Family(fields.word("name", ANYTHING, "a name"), backbone, tokenizer)


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
        if not isinstance(entry, dict):
            raise wrong(where, f"files[{name}]", "an object")
        if not FILE_NAME.match(name) or name in MANIFESTS.values():
            raise PackageError(f"{where} lists a file with the unfit name {name!r}")
        fields = Fields(where, {**dict.fromkeys(_WORDS, ""), **entry}, f"files[{name}]")
        words = {key: fields.word(key, ANYTHING, "a word") for key in _WORDS}
        sha256 = fields.word("sha256", HEX, "64 hex digits")
        size, file = fields.whole("bytes", 0, 1 << 62), path / name
        if not file.is_file():
            raise PackageError(f"{where} lacks its file {name}", hint=DAMAGED)
        if file.stat().st_size != size:
            have = f"{where}/{name} has {file.stat().st_size} bytes, not {size}"
            raise PackageError(have, hint=DAMAGED)
        if not seals.holds(file, sha256):
            raise PackageError(f"{where}/{name} does not match its hash", hint=DAMAGED)
        files[name] = PackageFile(file, sha256, size, details=entry, **words)
    seals.keep()
    for name in filter(lambda name: name.endswith(".onnx"), files):
        for other in data_files(path / name) - {*files, *beside}:  # no hash covers it
            if other != _SUPPLIED or os.path.lexists(path / other):
                unlisted = (
                    f"{where}/{name} reads {other!r}, which the package does not list"
                )
                raise PackageError(unlisted, hint=DAMAGED)
    return files


def identity(kind: str, raw: Mapping[str, Any]) -> str:
    """Return the id of a manifest: what it is made of, not what it is called."""
    base = raw.get("base")
    content = {
        "format": FORMATS[kind],
        "files": [f"{n} {e['sha256']}" for n, e in sorted(raw["files"].items())],
        "family": [raw["family"].get("backbone"), raw["family"]["tokenizer"]],
        "shape": {k: raw["shape"][k] for k in _SHAPE},
        "tokens": [raw.get(k) for k in ("vocab_size", "context", "bos_id", "eos_ids")],
        "base": base["id"] if isinstance(base, dict) and "id" in base else None,
        "adapter": raw.get("adapter"),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def wrong(where: str, field_name: str, wanted: str) -> PackageError:
    """Return the error for a manifest field that is not ``wanted``."""
    return PackageError(f"{where}: {field_name} must be {wanted}", hint=DAMAGED)
