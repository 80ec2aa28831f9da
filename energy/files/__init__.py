"""Files that hold power: ours, tegrastats logs, and those of meters; plain, gzip, xz or
bzip2, UTF-8 or UTF-16."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
from pathlib import Path
from typing import BinaryIO, Iterator, cast

from draftwire.errors import ConfigError

_MAGIC = ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open), (b"BZh", bz2.open))
_PACKS = ("", ".gz", ".xz", ".bz2")


@contextlib.contextmanager
def open_bytes(path: Path | str) -> Iterator[BinaryIO]:
    """Give a file unpacked, as UTF-8 where it was UTF-16; ConfigError where that fails."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        opener = next((o for magic, o in _MAGIC if head.startswith(magic)), open)
        with cast(BinaryIO, opener(path, "rb")) as opened:
            start = opened.read(64)
            opened.seek(0)
            marked = start[:2] in (b"\xff\xfe", b"\xfe\xff")
            if marked or start[1:2] == start[3:4] == b"\0":
                code = "utf-16" if marked else "utf-16-le"
                yield io.BytesIO(opened.read().decode(code, "replace").encode())
            else:
                yield opened
    except (OSError, EOFError, lzma.LZMAError) as exc:
        why = getattr(exc, "strerror", None) or exc
        hint = "give a log or a file of a meter that is there and may be read"
        raise ConfigError(f"cannot read {path}: {why}", hint=hint) from exc


@contextlib.contextmanager
def open_text(path: Path | str) -> Iterator[io.TextIOWrapper]:
    """Give the file as text; what is not UTF-8 is replaced."""
    with open_bytes(path) as file:
        yield io.TextIOWrapper(file, "utf-8-sig", "replace", newline=None)


def read_head(path: Path | str, size: int) -> bytes:
    """Return the first bytes of a file, unpacked."""
    with open_bytes(path) as file:
        return file.read(size)


def ends_in(path: Path | str, *ends: str) -> bool:
    """Tell whether a file is called so, packed or not."""
    name = Path(path).name.lower()
    return any(name.endswith(end + pack) for end in ends for pack in _PACKS)
