"""Files of a machine below a root: this one's ``/``, an unpacked image, or a fake.

Links are followed inside the root: ``/etc/nvpmodel.conf`` of an unpacked image points
to an absolute path, which must not lead to the machine that looks at the image.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from pathlib import Path, PurePosixPath

from draftwire.boards.install.disk import Disk
from draftwire.boards.install.trouble import InstallError

_LARGEST = 1 << 20  # no file that we read is longer; a fake root may hold anything


class Tree:
    """Files below a root: ``/``, or where another machine's lie."""

    def __init__(self, root: Path | str = "/") -> None:
        self.root = Path(root).resolve()
        self.disk = Disk(self.root, dry=True, say=lambda text: None)

    @property
    def host(self) -> bool:
        """True for the machine that this runs on."""
        return self.root == Path("/")

    def path(self, name: str) -> Path:
        """Return where ``name`` lies, links followed inside the root."""
        if self.host:
            return self.root / name.lstrip("/")
        try:
            return self.disk.real(name)
        except InstallError:  # a circle of links: no such file
            return self.root / ".no-such-file"

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def data(self, name: str) -> bytes | None:
        """Return a file's bytes, or None when it cannot be read."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read(_LARGEST)
        except OSError:
            return None

    def text(self, name: str) -> str | None:
        """Return a file's text without white space around it, or None."""
        data = self.data(name)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def number(self, name: str) -> int | None:
        """Return the whole number in a file, or None when there is none."""
        try:
            return int(self.text(name) or "")
        except ValueError:
            return None

    def strings(self, name: str) -> list[str]:
        """Return the NUL-separated strings of a device tree property."""
        data = self.data(name) or b""
        parts = data.decode("utf-8", "replace").split("\0")
        return [part.strip() for part in parts if part.strip()]

    def names(self, folder: str) -> list[str]:
        """Return what a folder holds, numbers in their order; empty without one."""
        try:
            return sorted(os.listdir(self.path(folder)), key=_natural)
        except OSError:
            return []

    def find(self, pattern: str) -> list[str]:
        """Return the names below the root that match, ``*`` within one part each."""
        found = [""]
        for part in PurePosixPath(pattern).parts:
            if "*" not in part and "[" not in part:
                found = [f"{name}/{part}" if name else part for name in found]
                continue
            found = [
                f"{name}/{entry}" if name else entry
                for name in found
                for entry in self.names(name)
                if fnmatch.fnmatchcase(entry, part)
            ]
        return [name for name in found if self.exists(name)]

    def why_unreadable(self, name: str) -> str:
        """Return why a file cannot be read, or "": it is tried, for a sensor's file may
        exist and fail."""
        try:
            with open(self.path(name), "rb") as file:
                file.read(64)
        except OSError as exc:
            if exc.errno in (errno.EACCES, errno.EPERM):
                return "permission"
            return exc.strerror or str(exc)
        return ""


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return (stem, int(digits) if digits else -1)
