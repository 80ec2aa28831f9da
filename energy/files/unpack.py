"""Opens what people hand over: plain, gzip, xz or bzip2, UTF-8 or UTF-16."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import BinaryIO, cast

from draftwire.errors import ConfigError

__all__ = ["UNPACK_ERRORS", "open_bytes", "open_text", "stem"]

_MAGIC = ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open), (b"BZh", bz2.open))
UNPACK_ERRORS = (OSError, EOFError, lzma.LZMAError)


def open_bytes(path: Path | str) -> BinaryIO:
    """Return the file's bytes, unpacked, as UTF-8 where it was UTF-16.

    Raises:
        ConfigError: It cannot be read, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        opener = next((o for magic, o in _MAGIC if head.startswith(magic)), open)
        opened = cast(BinaryIO, opener(path, "rb"))
        start = opened.read(64)
        opened.seek(0)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start[1:2] == start[3:4] == b"\0":
            with opened:
                whole = opened.read()
            code = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-le"
            return io.BytesIO(whole.decode(code, "replace").encode())
        return opened
    except UNPACK_ERRORS as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc


def open_text(path: Path | str) -> io.TextIOWrapper:
    """Return the file as text; what is not UTF-8 is replaced.

    Raises:
        ConfigError: It cannot be read.
    """
    return io.TextIOWrapper(open_bytes(path), "utf-8-sig", "replace", newline=None)


def stem(path: Path | str) -> str:
    """Return the name in small letters without ``.gz`` and such."""
    name = Path(path).name.lower()
    for end in (".gz", ".xz", ".bz2"):
        name = name[: -len(end)] if name.endswith(end) else name
    return name
