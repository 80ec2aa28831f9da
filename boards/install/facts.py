"""What the installer must know of a board: processor, Python, C library."""

from __future__ import annotations

import os
import re
from typing import Any, Mapping, NamedTuple

from draftwire.boards.install.disk import Disk
from draftwire.boards.install.trouble import BOARD, USAGE, InstallError

# e_machine of an ELF header -> what `uname -m` says.
_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l", 3: "i686", 243: "riscv64"}
_BOARDS = {"aarch64": "generic-aarch64", "armv7l": "generic-armv7", "x86_64": "generic-x86"}
_PYTHON_FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/python/bin")
_GLIBC = re.compile(rb"GNU C Library [^\n]*?version (\d+\.\d+)")


class Facts(NamedTuple):
    """A board's facts, of the running system or of an unpacked one."""

    python: str  # path of the Python asked for, or ""
    arch: str  # what that Python is built for, or ""
    glibc: str  # version of the C library, or ""
    pythons: tuple[str, ...]  # versions found, for the message
    named: str = ""  # where it was said to be


def find_facts(disk: Disk, python: str, named: str | None) -> Facts:
    """Look at the board: its Python (``named``, or one of a version), processor, glibc."""
    candidates = [named] if named else [f"{f}/python{python}" for f in _PYTHON_FOLDERS]
    for path in candidates:
        if path.startswith("/") and disk.real(path).is_file():
            return Facts(path, elf_machine(disk, path), glibc_of(disk), ())
    arch = elf_machine(disk, "/bin/sh")
    return Facts("", arch, glibc_of(disk), tuple(pythons_of(disk)), named or "")


def need_fitting(facts: Facts, manifest: Mapping[str, Any]) -> None:
    """Refuse a bundle that is made for another board."""
    arch, python, glibc = (manifest[name] for name in ("arch", "python", "glibc"))
    if facts.arch and facts.arch != arch:
        said = f"the bundle is for {arch}, this system is {facts.arch}"
        hint = "no bundle is made for that; pip install 'draftwire[board]' may do"
        if other := _BOARDS.get(facts.arch):
            hint = f"make one with --board {other}, or the board's own name: "
            hint += "draftwire boards detect --all"
        raise InstallError(said, BOARD, hint)
    if not facts.python:
        if facts.named:
            said = f"there is no Python at {facts.named}"
            raise InstallError(said, USAGE, "name its program: --python /PATH/python3")
        said = f"the bundle is for Python {python}, found here: "
        said += ", ".join(facts.pythons) or "none"
        hint = f"make one for it: draftwire boards bundle --board {manifest['board']} "
        hint += "--python ...; or name one that is elsewhere: --python PATH"
        raise InstallError(said, BOARD, hint)
    if facts.glibc and version_tuple(facts.glibc) < version_tuple(glibc):
        said = f"the bundle needs glibc {glibc} or newer, this system has {facts.glibc}"
        raise InstallError(said, BOARD, f"make one with --glibc {facts.glibc}")


def version_tuple(text: str) -> tuple[int, ...]:
    """Return ``(2, 35)`` for ``"2.35"``."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def elf_machine(disk: Disk, path: str) -> str:
    """Return what a program is built for, or ""."""
    try:
        with open(str(disk.real(path)), "rb") as file:
            header = file.read(20)
    except OSError:
        return ""
    if header[:4] != b"\x7fELF" or len(header) < 20:
        return ""
    machine = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return _MACHINES.get(machine, f"ELF machine {machine}")


def glibc_of(disk: Disk) -> str:
    """Return the version of the C library, or ""."""
    if not disk.foreign:
        try:
            words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        except (ValueError, OSError):
            words = []
        if len(words) == 2:
            return words[1]
    tops = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
    subs = [f"{top}/{n}" for top in tops for n in disk.children(top) if "-linux-" in n]
    for folder in (*subs, *tops):
        real = disk.real(folder + "/libc.so.6")
        try:
            found = re.match(rb"libc-(\d+\.\d+)\.so", real.name.encode())
            found = found or _GLIBC.search(real.read_bytes())
        except OSError:
            continue
        if found:
            return found.group(1).decode("ascii")
    return ""


def pythons_of(disk: Disk) -> list[str]:
    """Return the versions of Python that are there, e.g. ``["3.10"]``."""
    names = [name for folder in _PYTHON_FOLDERS for name in disk.children(folder)]
    found = (re.match(r"python(3\.\d+)\Z", name) for name in names)
    return sorted({match.group(1) for match in found if match}, key=version_tuple)
