"""Draft and target packages: folders whose every byte is named by a manifest.

``NAME.draft/`` holds ``draft.json``, ``tokenizer.json`` and one model file for each
precision; ``NAME.target/`` holds ``target.json`` and either a whole target or an
adapter on top of another package.  The id of a package is a hash over its content,
so a frozen draft keeps its id for ever and a changed byte cannot hide.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Iterator, Mapping

from draftwire.errors import ConfigError, PackageError
from draftwire.io import scratch_in, writing
from draftwire.packages.exits import EXITS_FORMAT, Exit, Exits, read_exits
from draftwire.packages.manifest import (
    DAMAGED,
    FILE_NAME,
    FORMATS,
    MANIFESTS,
    NAME,
    Family,
    Fields,
    PackageFile,
    Parallel,
    Shape,
    identity,
    read_manifest,
    read_parallel,
    wrong,
)
from draftwire.packages.seals import file_hash
from draftwire.tokenizer import Tokenizer, load_tokenizer, tokenizer_fingerprint

__all__ = [
    "DraftPackage",
    "Exit",
    "Exits",
    "Family",
    "NewExits",
    "NewFile",
    "PackageFile",
    "Parallel",
    "Shape",
    "TargetPackage",
    "Tokenizer",
    "load_draft",
    "load_target",
    "load_tokenizer",
    "tokenizer_fingerprint",
    "write_package",
]

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class _Package:
    path: Path
    id: str
    name: str
    family: Family
    vocab_size: int
    context: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    shape: Shape
    files: Mapping[str, PackageFile]
    raw: Mapping[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        """The package's own ``tokenizer.json``."""
        return self.path / TOKENIZER_FILE


@dataclass(frozen=True)
class DraftPackage(_Package):
    """A frozen draft on disk, checked."""

    # how it says several tokens in one forward, or None
    parallel: Parallel | None = None

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions there is a model file for, smallest file first."""
        models = [f for f in self.files.values() if f.precision]
        by_size = sorted(models, key=self._size)
        return tuple(dict.fromkeys(f.precision for f in by_size))

    @property
    def hints(self) -> dict[str, dict[str, Any]]:
        """How boards shall run it, by their names; unchecked, what is no object is {}."""
        said = self.raw.get("hints")
        boards = said.get("boards") if isinstance(said, dict) else None
        found = boards.items() if isinstance(boards, dict) else ()
        return {name: hint if isinstance(hint, dict) else {} for name, hint in found}

    def _size(self, model: PackageFile) -> int:
        """Return a model's bytes with those that lie beside its graph."""
        data = self.files.get(model.path.name + ".data")
        return model.bytes + (data.bytes if data else 0)

    def model_file(
        self, precision: str | None = None, *, engine: str = "onnxruntime"
    ) -> PackageFile:
        """Return the model file of ``precision``; by default int8, else the smallest
        (ConfigError: the package has no such file)."""
        found = [f for f in self.files.values() if f.precision and f.engine == engine]
        models = {f.precision: f for f in sorted(found, key=self._size)}
        if precision is None:
            precision = "int8" if "int8" in models else next(iter(models), "")
        if precision not in models:
            raise ConfigError(
                f"{self.path.name} has no {precision or 'model'} file for {engine}, "
                f"it has {', '.join(models) or 'none'}",
                hint="name one of those, or export the model in that precision",
            )
        return models[precision]

    def model_path(self, precision: str | None = None) -> Path:
        """Return where the model file of ``precision`` lies."""
        return self.model_file(precision).path


@dataclass(frozen=True)
class TargetPackage(_Package):
    """A target on disk, checked, with the base that it builds on."""

    version: str = ""  # the verifier's name for this state of the target, e.g. "v2".
    # the package whose graph and weights it uses, or None
    base: TargetPackage | None = None
    # the LoRA file that is merged into the base's weights, or None
    adapter: PackageFile | None = None
    # its early exits, or None; an evolved target does not inherit any
    exits: Exits | None = None

    @property
    def tokenizer_path(self) -> Path:
        """Its own ``tokenizer.json``, or its base's."""
        if TOKENIZER_FILE in self.files or self.base is None:
            return self.path / TOKENIZER_FILE
        return self.base.tokenizer_path


@dataclass(frozen=True)
class NewFile:
    """A file to put into a package."""

    source: Path | bytes  # where it lies now, or its content
    # what the manifest says about it besides hash and length: engine, precision, graph,
    # min_engine, parity
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewExits:
    """Early exits to put into a target package."""

    fields: Mapping[str, Any]  # their section without format, target and files
    files: Mapping[str, NewFile]  # by file name


def load_draft(path: str | Path) -> DraftPackage:
    """Read and check the draft package in a folder.

    The content of every listed file has been compared with its hash, now or since it last
    changed (:mod:`draftwire.packages.seals`). A PackageError where it is missing, damaged,
    incomplete or of an unknown format.
    """
    common = read_manifest(Path(path), "draft")
    said = common["raw"].get("parallel")
    parallel = read_parallel(common["path"].name, said, common["vocab_size"])
    package = DraftPackage(**common, parallel=parallel)
    _needs_tokenizer(common)
    if not package.precisions:
        raise PackageError(f"{package.path.name} lists no model file", hint=DAMAGED)
    return package


def _needs_tokenizer(common: Mapping[str, Any]) -> None:
    if TOKENIZER_FILE not in common["files"]:
        why = f"{common['path'].name} has no {TOKENIZER_FILE}"
        raise PackageError(why, hint=DAMAGED)


def load_target(path: str | Path) -> TargetPackage:
    """Read and check a target package, and its base when it has one (PackageError: it or
    its base is missing, damaged or of an unknown format)."""
    return _load_target(Path(path), depth=0)


def _load_target(path: Path, *, depth: int) -> TargetPackage:
    common = read_manifest(path, "target")
    where, raw, files = common["path"].name, common["raw"], common["files"]
    version = Fields(where, raw).word("version", NAME, "a short word")
    adapter = raw.get("adapter")
    if adapter is not None and adapter not in files:
        raise wrong(where, "adapter", "one of its files")
    exits = read_exits(common["path"], raw, layers=common["shape"].layers)
    link = raw.get("base")
    if (link is None) != (adapter is None):
        both = f"{where} must name both a base and an adapter, or neither"
        raise PackageError(both, hint=DAMAGED)
    if link is None:
        _needs_tokenizer(common)
        return TargetPackage(**common, version=version, exits=exits)
    if depth:
        raise PackageError(
            f"{where} is the base of another target but has a base itself",
            hint="an evolved target must name a whole target as its base",
        )
    base = _load_base(common["path"], link)
    if base.family.tokenizer != common["family"].tokenizer:
        raise PackageError(f"{where} and its base differ in tokenizer", hint=DAMAGED)
    if (base.vocab_size, base.shape) != (common["vocab_size"], common["shape"]):
        raise PackageError(f"{where} and its base differ in shape", hint=DAMAGED)
    return TargetPackage(
        **common, version=version, base=base, adapter=files[adapter], exits=exits
    )


def _load_base(path: Path, link: Any) -> TargetPackage:
    where = path.name
    if not isinstance(link, dict) or not isinstance(link.get("path"), str):
        raise wrong(where, "base", "an object with path and id")
    parts = PurePosixPath(link["path"]).parts
    inside = parts[1:] if parts[:1] == ("..",) else ()
    if len(inside) != 1 or not FILE_NAME.match(inside[0]):
        raise wrong(where, "base", 'a sibling folder such as "../v1.target"')
    folder = path.parent / inside[0]
    if not folder.is_dir():
        raise PackageError(
            f"{where} builds on {inside[0]}, which is not beside it",
            hint=f"copy {inside[0]} to {path.parent}",
        )
    base = _load_target(folder, depth=1)
    if base.id != link.get("id"):
        raise PackageError(
            f"{where} builds on another state of {inside[0]} "
            f"(id {str(link.get('id'))[:12]}, found {base.id[:12]})",
            hint="put the base it was made from beside it, or make the adapter again",
        )
    return base


def write_package(
    folder: str | Path,
    kind: str,
    fields: Mapping[str, Any],
    files: Mapping[str, NewFile],
    *,
    exits: NewExits | None = None,
    replace: bool = False,
) -> str:
    """Write ``NAME.draft`` or ``NAME.target`` as a whole or not at all; return its id.

    ``fields`` are the manifest without format, id and files; ``exits`` leave the id as it
    is; ``replace`` takes the place of an older package of that ``kind``. A ConfigError
    where there is something already, a PackageError where the result would not load.
    """
    folder = Path(os.path.abspath(folder))
    with _replacing(folder, kind, replace=replace) as scratch:
        entries = _store(scratch, files)
        raw = {"format": FORMATS[kind], "id": "", **fields, "files": entries}
        raw["id"] = identity(kind, raw)
        if exits is not None:
            raw["exits"] = {
                "format": EXITS_FORMAT,
                "target": raw["id"],
                **exits.fields,
                "files": _store(scratch, exits.files),
            }
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        (scratch / MANIFESTS[kind]).write_text(text, encoding="utf-8")
        # The scratch folder is a sibling, so a base beside it is found from there.
        (load_draft if kind == "draft" else load_target)(scratch)
    return str(raw["id"])


def _store(scratch: Path, files: Mapping[str, NewFile]) -> dict[str, Any]:
    """Put files into a package that is being written; return their entries."""
    entries = {}
    for name, new in files.items():
        place = scratch / name
        if not FILE_NAME.match(name) or place.exists():
            raise PackageError(f"{name!r} is no fit name for a package file")
        if isinstance(new.source, bytes):
            place.write_bytes(new.source)
        else:
            shutil.copyfile(new.source, place)
        found = {"sha256": file_hash(place), "bytes": place.stat().st_size}
        entries[name] = {**found, **new.details}
    return entries


@contextmanager
def _replacing(folder: Path, kind: str, *, replace: bool) -> Iterator[Path]:
    old = None
    if folder.exists():
        if not replace or not (folder / MANIFESTS[kind]).is_file():
            hint = "choose another place, or remove it first"
            raise ConfigError(f"there is something at {folder} already", hint=hint)
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    try:
        with writing(folder), scratch_in(folder.parent) as scratch:
            yield scratch
            if old is not None:
                os.rename(folder, old)
            os.rename(scratch, folder)
    finally:
        if old is not None and old.exists() and not folder.exists():
            os.rename(old, folder)
        if old is not None and folder.exists():
            shutil.rmtree(old, ignore_errors=True)
