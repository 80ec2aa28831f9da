"""Puts one version together in a staging folder that nothing uses yet."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import tempfile
import zipfile
import zlib
from typing import IO, Any

from draftwire.boards.install.archive import MANIFEST, SIGNATURE, Checked, read_members
from draftwire.boards.install.disk import Disk
from draftwire.boards.install.trouble import BUNDLE, InstallError

_MAX_WHEEL_FILES = 50_000
_PIECE = 1 << 18

# $0 is followed, so that the command works from any link. The site folder comes first,
# and the board's own packages (its onnxruntime-gpu, say) stay visible behind it.
_COMMAND = """\
#!/bin/sh
here=$(dirname "$(dirname "$(readlink -f "$0")")")
unset PYTHONHOME
export PYTHONPATH="$here/site" PYTHONNOUSERSITE=1{bytecode}
"""
_START = """\
import sys

sys.path.pop(0)  # this folder
from draftwire.__main__ import main

sys.exit(main())
"""


def start_line(python: str) -> bytes:
    """Return the last line of the command, which starts it with a Python."""
    return os.fsencode(f'exec {shlex.quote(python)} -s "$here/bin/start.py" "$@"\n')


def unpack_version(
    disk: Disk, checked: Checked, staging: str, *, python: str, compiled: bool
) -> None:
    """Unpack a checked bundle into ``staging``, which does not exist; every file is hashed
    again. ``compiled``: whether byte code will be there, or must not be looked for."""
    files = checked.manifest["files"]
    disk.folder(staging + "/site")
    missing = set(files)
    for position, (name, _size, stream) in enumerate(read_members(checked.path)):
        if position < 2:  # manifest and signature: written as they were checked
            while stream.read(_PIECE):
                pass
            continue
        # On the board's own medium: /tmp may be small memory.
        with tempfile.TemporaryFile(dir=str(disk.real(staging))) as file:
            digest = hashlib.sha256()
            for chunk in iter(lambda: stream.read(_PIECE), b""):  # noqa: B023
                digest.update(chunk)
                _keep(file, chunk, name)
            if name not in files or digest.hexdigest() != files[name]["sha256"]:
                raise InstallError(f"{name} changed while it was installed", BUNDLE)
            missing.discard(name)
            file.seek(0)
            if name.endswith(".whl"):
                _unpack_wheel(disk, name, file, staging + "/site")
            else:
                disk.fill(f"{staging}/{name}", file.read())
    if missing:
        raise InstallError(f"{sorted(missing)[0]} is gone from the bundle", BUNDLE)
    disk.fill(f"{staging}/{MANIFEST}", checked.manifest_bytes)
    disk.fill(f"{staging}/{SIGNATURE}", checked.signature)
    bytecode = "" if compiled else " PYTHONDONTWRITEBYTECODE=1"
    command = _COMMAND.format(bytecode=bytecode).encode("ascii") + start_line(python)
    disk.fill(f"{staging}/bin/draftwire", command, 0o755)
    disk.fill(f"{staging}/bin/start.py", _START.encode("ascii"))


def _keep(file: Any, chunk: bytes, name: str) -> None:
    try:
        file.write(chunk)
    except OSError as exc:
        said = f"{name} cannot be unpacked: {exc.strerror}"
        raise InstallError(said, 3, "make room: `df -h` shows what is full") from exc


def _unpack_wheel(disk: Disk, name: str, file: IO[bytes], site: str) -> None:
    """Unpack a wheel as pip would, less its scripts."""
    try:
        with zipfile.ZipFile(file) as wheel:
            entries = wheel.infolist()
            if len(entries) > _MAX_WHEEL_FILES:
                raise InstallError(f"{name} holds too many files", BUNDLE)
            for entry in entries:
                inside = _inside_site(entry.filename)
                if not inside or entry.is_dir():
                    continue
                kind = entry.external_attr >> 16
                if stat.S_IFMT(kind) not in (0, stat.S_IFREG):
                    raise InstallError(
                        f"{name} holds {entry.filename!r}, which is no plain file", BUNDLE
                    )
                mode = 0o755 if kind & 0o100 else 0o644
                disk.fill(f"{site}/{inside}", wheel.read(entry), mode)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as exc:
        raise InstallError(f"{name} is no sound wheel: {exc}", BUNDLE) from exc


def _inside_site(name: str) -> str:
    """Return where a wheel's file goes below the site folder, "" for nowhere."""
    parts = name.rstrip("/").split("/")
    odd = any(part in ("", ".", "..") or "\0" in part for part in parts)
    if odd or "\\" in name or name.startswith("/"):
        raise InstallError(f"a wheel holds the unfit path {name[:80]!r}", BUNDLE)
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
            return ""
        parts = parts[2:]
    return "/".join(parts)
