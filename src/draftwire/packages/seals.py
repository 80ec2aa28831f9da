"""Which files of packages have been hashed already, so that a start need not again.

A hash of half a gigabyte is most of a start on a board. A file whose content was right
once is right while size, times, inode and device stay: a change moves its change time,
which nobody but root can set back. ``DRAFTWIRE_VERIFY=1`` hashes all the same.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from pathlib import Path

from draftwire.errors import PackageError
from draftwire.io import cache_folder, parse_json, replacing

_CHUNK = 1 << 20
# A file that was written just now may change again without moving its times.
_SETTLED_S = 3.0
# Which fields of an ONNX message hold messages, down to the entries of a tensor that say
# where its data lies. Source: onnx.proto3, https://github.com/onnx/onnx.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


class Seals:
    """What is known of one package's files; the environment names the cache folder, and
    says whether to trust it."""

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
        self._path = cache_folder() / "verified" / f"{name}.json"
        self._trust = os.environ.get("DRAFTWIRE_VERIFY", "") in ("", "0")
        self._known: dict[str, list[object]] = {}
        self._changed = False
        try:
            found = parse_json(self._path.read_bytes())
            self._known = found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            pass

    def holds(self, file: Path, sha256: str) -> bool:
        """Return whether a file has that hash, by its content or from before (PackageError:
        it cannot be read)."""
        before = _stamp(file, sha256)
        if self._trust and self._known.get(file.name) == before:
            return True
        if file_hash(file) != sha256:
            return False
        settled = time.time() - max(file.stat().st_mtime, file.stat().st_ctime)
        if settled > _SETTLED_S and _stamp(file, sha256) == before:
            self._known[file.name] = before
            self._changed = True
        return True

    def keep(self) -> None:
        """Write down what was learned; a cache that cannot be written is no error."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as scratch:
                scratch.write_text(json.dumps(self._known), encoding="utf-8")
        except OSError:
            pass


def _stamp(file: Path, sha256: str) -> list[object]:
    try:
        s = file.stat()
    except OSError as exc:
        raise PackageError(f"{file} cannot be read: {exc.strerror}") from exc
    return [sha256, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev]


def file_hash(file: Path) -> str:
    """Return the sha256 of a file's content, 64 hex digits."""
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            for chunk in iter(lambda: stream.read(_CHUNK), b""):
                digest.update(chunk)
    except OSError as exc:
        raise PackageError(f"{file} cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()


def data_files(graph: Path) -> set[str]:
    """Return the files that an ONNX graph takes weights from (PackageError: it cannot be
    read)."""
    found: set[str] = set()
    try:
        with open(graph, "rb") as stream, memoryview(
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        ) as data:
            _walk(data, "model", found)
    except OSError as exc:
        raise PackageError(f"{graph} cannot be read: {exc.strerror}") from exc
    except (IndexError, ValueError, RecursionError):
        pass  # no graph, or a damaged one: the engine will say so
    return found


def _walk(data: memoryview, kind: str, found: set[str]) -> None:
    """Collect the locations of external data in a message."""
    inside, at, texts = _INSIDE.get(kind, {}), 0, {1: b"", 2: b""}
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(data, at)
            continue
        size = {1: 8, 5: 4}.get(wire, 0)  # of a group: its fields are looked at as ours
        if wire == 2:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("cut short")
        if number in inside:
            _walk(data[at : at + size], inside[number], found)
        elif kind == "entry" and number in texts:
            texts[number] = bytes(data[at : at + size])
        at += size
    if texts[1] == b"location":
        found.add(texts[2].decode("utf-8", "replace"))


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
