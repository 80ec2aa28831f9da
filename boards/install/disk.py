"""Everything that the installer does to a disk, inside one root, or only says it would.

Paths are those of the board. With a root they are resolved below it as a ``chroot``
would: an absolute link in an unpacked image must not lead to the workstation's files.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Callable

from draftwire.boards.install.trouble import BOARD, InstallError

_MAX_LINKS = 40


class Disk:
    """Writes below ``root``; ``dry`` tells ``say`` what would be done, and does nothing."""

    def __init__(self, root: Path, *, dry: bool, say: Callable[[str], None]) -> None:
        self.root = root
        self.dry = dry
        self._say = say
        self.foreign = root != Path("/")

    def real(self, path: str, *, follow_last: bool = True) -> Path:
        """Return where an absolute path of the board lies on this machine."""
        todo = [part for part in path.split("/") if part]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part == ".":
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = self.root.joinpath(*done, part)
            if here.is_symlink() and (todo or follow_last):
                links += 1
                if links > _MAX_LINKS:
                    raise InstallError(f"{path} is a circle of links", BOARD)
                target = os.readlink(str(here))
                if target.startswith("/"):
                    done = []
                todo = [p for p in target.split("/") if p] + todo
                continue
            done.append(part)
        return self.root.joinpath(*done)

    def exists(self, path: str) -> bool:
        """Tell whether something is at ``path``, a dangling link included."""
        return os.path.lexists(str(self.real(path, follow_last=False)))

    def read(self, path: str) -> bytes:
        """Return a file's content, empty when it is not there."""
        try:
            return self.real(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return b""

    def link_target(self, path: str) -> str:
        """Return what the link at ``path`` says, or ""."""
        real = self.real(path, follow_last=False)
        return os.readlink(str(real)) if real.is_symlink() else ""

    def children(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; none when there is no folder."""
        real = self.real(path)
        return sorted(os.listdir(str(real))) if real.is_dir() else []

    def free_bytes(self, path: str) -> int:
        """Return the free space where ``path`` is or will be."""
        real = self.real(path)
        while not real.exists():
            real = real.parent
        found = os.statvfs(str(real))
        return found.f_bavail * found.f_frsize

    def folder(self, path: str) -> None:
        """Make a folder and those above it."""
        self._do(lambda: os.makedirs(str(self.real(path)), 0o755, exist_ok=True), path)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file as a whole: a sibling first, then a rename."""
        if self.dry:
            self._say(f"write {path}")
            return
        put = lambda at: _put(at, data, mode, sync=True)  # noqa: E731
        self._do(lambda: self._beside(path, put), path)

    def fill(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file into a folder that nobody uses yet: no rename, no fsync."""

        def act() -> None:
            real = self.real(path, follow_last=False)
            os.makedirs(str(real.parent), 0o755, exist_ok=True)
            _put(str(real), data, mode, sync=False)

        self._do(act, path)

    def link(self, path: str, target: str) -> None:
        """Put a link at ``path``, in one step also where there is one already."""
        if self.dry:
            self._say(f"link {path} -> {target}")
            return
        self._do(lambda: self._beside(path, lambda at: os.symlink(target, at)), path)

    def _beside(self, path: str, make: Callable[[str], None]) -> None:
        """Make a sibling of ``path``, then rename it."""
        real = self.real(path, follow_last=False)
        os.makedirs(str(real.parent), 0o755, exist_ok=True)
        partial = real.with_name(f".{real.name}.partial")
        if os.path.lexists(str(partial)):
            partial.unlink()
        try:
            make(str(partial))
            os.replace(str(partial), str(real))
        except OSError:
            if os.path.lexists(str(partial)):
                partial.unlink()
            raise

    def rename(self, old: str, new: str) -> None:
        """Rename within a folder."""
        source, target = (str(self.real(p, follow_last=False)) for p in (old, new))
        self._do(lambda: os.rename(source, target), new)

    def remove(self, path: str) -> None:
        """Remove a file, a link or a whole folder, if it is there."""
        if not self.exists(path):
            return
        if self.dry:
            self._say(f"remove {path}")
            return
        real = self.real(path, follow_last=False)
        if real.is_dir() and not real.is_symlink():
            self._do(lambda: shutil.rmtree(str(real)), path)
        else:
            self._do(real.unlink, path)

    def remove_if_empty(self, path: str) -> None:
        """Remove a folder that holds nothing."""
        if self.dry or self.children(path) or not self.exists(path):
            return
        self._do(self.real(path).rmdir, path)

    def settle(self) -> None:
        """Wait until what was written is on the medium."""
        if not self.dry:
            os.sync()

    def _do(self, act: Callable[[], object], path: str) -> None:
        if self.dry:
            return
        try:
            act()
        except OSError as exc:
            raise trouble_of(exc, path) from exc


def _put(place: str, data: bytes, mode: int, *, sync: bool) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.chmod(place, mode)


def trouble_of(exc: OSError, path: str = "") -> InstallError:
    """Say what the system refuses; without a ``path`` it may have been read."""
    hints = {
        errno.ENOSPC: "make room: `df -h` shows what is full",
        errno.EDQUOT: "make room: the quota is used up",
        errno.EROFS: "mount it writable for the update (`mount -o remount,rw ...`)",
        errno.EACCES: "run it as root, or give --prefix DIR --no-system",
        errno.EPERM: "run it as root, or give --prefix DIR --no-system",
    }
    why = exc.strerror or exc
    said = f"{path} cannot be written: {why}" if path else f"{exc.filename}: {why}"
    return InstallError(said, BOARD, hints.get(exc.errno or 0, ""))
