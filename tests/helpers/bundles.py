"""Small bundles, signed by hand, and file systems of boards that are not there."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from draftwire.boards.install import ed25519
from draftwire.boards.install.archive import Key
from draftwire.boards.install.main import run
from draftwire.boards.install.script import installer_script
from draftwire.boards.ship.bundle import Content, write_bundle
from draftwire.boards.ship.own_wheel import zip_bytes
from draftwire.boards.ship.signing import Signer
from draftwire.boards.ship.userlands import Userland

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny.draft"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def _secret(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return scalar, digest[32:]


def _point(factor: int) -> bytes:
    """Return so many times the base point."""
    x, y, z, _ = ed25519._multiply(factor, ed25519._BASE)
    inverse = pow(z, ed25519._P - 2, ed25519._P)
    x, y = x * inverse % ed25519._P, y * inverse % ed25519._P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def public_of(seed: bytes) -> bytes:
    return _point(_secret(seed)[0])


def rfc8032_sign(seed: bytes, message: bytes) -> bytes:
    """Sign as RFC 8032, section 5.1.6, says: for tests, where nothing is secret."""

    def number(data: bytes) -> int:
        return int.from_bytes(hashlib.sha512(data).digest(), "little") % ed25519._ORDER

    scalar, prefix = _secret(seed)
    r = number(prefix + message)
    commitment = _point(r)
    h = number(commitment + public_of(seed) + message)
    return commitment + ((r + h * scalar) % ed25519._ORDER).to_bytes(32, "little")


def signer(seed: bytes = b"m" * 32) -> Signer:
    return Signer(Key(public_of(seed)), lambda message: rfc8032_sign(seed, message))


MAKER = signer()
STRANGER = signer(b"s" * 32)


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """Write a wheel for any Python that holds ``files``."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    path.write_bytes(zip_bytes(files))
    return path


def content(folder: Path, mark: str = "one", **changes: Any) -> Content:
    """Return a small bundle's content; ``mark`` is what its module ``marked`` holds."""
    found: dict[str, Any] = {
        "board": "generic-test",
        "title": "a board of the tests",
        "arch": os.uname().machine,
        "userland": Userland("a test", PYTHON, "2.17", "3.4.19"),
        "draft": TINY,
        "draft_id": "0" * 64,
        "wheels": [
            wheel(folder, "marked", {"marked/__init__.py": f"MARK = {mark!r}\n".encode()})
        ],
        "modules": ("marked",),
        "verifier": "ws://127.0.0.1:1",
    }
    return Content(**{**found, **changes})


def stand_in() -> tuple[str, bytes]:
    """Return a wheel in draftwire's place that is installed and tried in no time."""
    files = {
        "draftwire/__init__.py": b"",
        "draftwire/cli.py": b"def main():\n    import marked\n    print(marked.MARK)\n",
        "draftwire/packages.py": b"import os\n\n\ndef load_draft(folder):\n"
        b"    os.stat(folder + '/draft.json')\n",
    }
    return "draftwire-0.1.0-py3-none-any.whl", zip_bytes(files)


def bundle(
    folder: Path, mark: str = "one", by: Signer | None = MAKER, **changes: Any
) -> Path:
    """Write ``mark.tar.gz`` with a stand-in for draftwire itself, and return it."""
    path = folder / f"{mark}.tar.gz"
    with mock.patch("draftwire.boards.ship.bundle.own_wheel", stand_in):
        write_bundle(content(folder, mark, **changes), path, by)
    return path


def members(path: Path) -> list[tuple[bytes, bytes]]:
    """Return (header, data) of every member of a bundle."""
    raw = gzip.decompress(path.read_bytes())
    found = []
    at = 0
    while raw[at : at + 512].strip(b"\0"):
        header = raw[at : at + 512]
        size = int(header[124:136].strip(b"\0 "), 8)
        found.append((header, raw[at + 512 : at + 512 + size]))
        at += 512 + size + -size % 512
    return found


def header(name: str, size: int, kind: bytes = b"0", link: str = "") -> bytes:
    """Return a ustar header of any kind."""
    block = io.BytesIO()
    for value, width in (
        (name.encode(), 100), (b"0000644", 8), (b"0000000", 8), (b"0000000", 8),
        (b"%011o" % size, 12), (b"%011o" % 0, 12), (b" " * 8, 8), (kind, 1),
        (link.encode(), 100), (b"ustar\x0000", 8), (b"", 247),
    ):  # fmt: skip
        block.write(value.ljust(width, b"\0"))
    made = block.getvalue()
    return made[:148] + b"%06o\0 " % sum(made) + made[156:]


def pack(path: Path, parts: list[tuple[bytes, bytes]]) -> Path:
    """Write members as a bundle, whatever they are."""
    raw = b"".join(h + d + b"\0" * (-len(d) % 512) for h, d in parts)
    path.write_bytes(gzip.compress(raw + b"\0" * 1024))
    return path


def resigned(manifest: dict[str, Any], by: Signer = MAKER) -> list[tuple[bytes, bytes]]:
    """Return manifest and signature members for a manifest of one's own."""
    from draftwire.boards.install.archive import signed_message

    data = json.dumps(manifest).encode()
    sign = by.signature_of(signed_message(data))
    return [
        (header("manifest.json", len(data)), data),
        (header("manifest.sig", len(sign)), sign),
    ]


def install(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``install.sh``, as a person does."""
    path = folder / "install.sh"
    path.write_bytes(installer_script())
    return subprocess.run(
        ["sh", str(path), *(str(w) for w in words)],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def forked(words: list[str], before: Callable[[], None]) -> int:
    """Run the installer in a process of its own after ``before()``; return its code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            before()
            code = run(words)
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] >> 8  # os.waitstatus_to_exitcode is 3.9's


def tree(folder: Path) -> dict[str, str]:
    """Return what is below a folder: files by their hash, links by their target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def fake_root(
    folder: Path,
    *,
    machine: int = 183,
    bits: int = 2,
    python: str = "3.10",
    glibc: str = "2.35",
) -> Path:
    """Make a file system as an unpacked image has it: a Python, a C library, an etc."""
    root = folder / "rootfs"
    elf = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + b"\2\0"
    elf += machine.to_bytes(2, "little")
    libraries = root / "usr/lib/aarch64-linux-gnu"
    libraries.mkdir(parents=True)
    for name in ("usr/bin", "etc/systemd/system", "opt", "var/lib"):
        (root / name).mkdir(parents=True)
    (root / f"usr/bin/python{python}").write_bytes(elf)
    (root / "usr/bin/sh").write_bytes(elf)
    (root / "bin").symlink_to("usr/bin")
    (root / "lib").symlink_to("/usr/lib")  # absolute, as some images have it
    text = f"\0GNU C Library (Ubuntu {glibc}-0) stable release version {glibc}.\n"
    (libraries / "libc.so.6").write_bytes(elf + text.encode())
    return root


def key_argument(by: Signer = MAKER) -> str:
    return "ed25519:" + base64.b64encode(by.key.raw).decode()
