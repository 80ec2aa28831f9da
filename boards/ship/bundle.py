"""A bundle: everything that a board needs to run a draft, in one signed archive.

The archive is made of nothing but its inputs: no time, no user, no order of a folder.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import draftwire
from draftwire.boards.install.archive import (
    MANIFEST,
    SCHEMA,
    SIGNATURE,
    check_name,
    signed_message,
)
from draftwire.boards.install.script import installer_script
from draftwire.boards.install.trouble import InstallError
from draftwire.boards.ship.own_wheel import own_wheel
from draftwire.boards.ship.signing import Signer
from draftwire.boards.ship.userlands import Userland
from draftwire.errors import ConfigError
from draftwire.io import write_whole

_FOLDER = Path(__file__).resolve().parents[1] / "install"
_TEMPLATES = "draftwire.service journald@draftwire.conf 60-draftwire.rules handover.sh"
_BLOCK = 512
_MODULE_MIB = 320  # Python, numpy and an engine, loaded
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}\Z")  # as systemd takes it


@dataclass(frozen=True)
class Content:
    """What goes into a bundle; ``settings``: further lines of the configuration."""

    board: str  # name of its profile
    title: str  # what people call it
    arch: str  # ``uname -m``
    userland: Userland  # its system
    draft: Path  # folder of the draft package, already checked
    draft_id: str  # the package's id
    wheels: Sequence[Path]  # wheel files beside draftwire's own
    modules: Sequence[str]  # what is imported to try the result out
    system_modules: Sequence[str] = ()  # what the board must have itself
    verifier: str = ""  # URL for the configuration, or ""
    group: str = "video"  # who may use the service's socket
    memory_mib: int = 0  # most memory of the service; 0 takes one from the draft's size
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _GROUP.match(self.group):
            raise ConfigError(f"{self.group!r} is no group", hint="video or dialout, say")
        if not 0 <= self.memory_mib <= 1 << 24:
            hint = "--memory-mib takes 0 (by the draft's size) to 16777216"
            raise ConfigError(f"{self.memory_mib} MiB is no memory limit", hint=hint)


def bundle_files(content: Content) -> dict[str, bytes]:
    """Return the bundle's files by name, manifest and signature aside."""
    name, wheel = own_wheel()
    files = {"install.sh": installer_script(), f"wheels/{name}": wheel}
    for path in content.wheels:
        files[_member(path)] = _read(path)
    draft_bytes = 0
    for path in sorted(content.draft.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            data = _read(path)
            draft_bytes += len(data)
            files[f"draft/{content.draft.name}/{path.name}"] = data
    memory = content.memory_mib or -(-(_MODULE_MIB + 4 * (draft_bytes >> 20)) // 64) * 64
    for template in _TEMPLATES.split():
        text = _read(_FOLDER / template).decode("ascii")
        text = text.replace("@GROUP@", content.group).replace("@MEMORY@", str(memory))
        files[f"system/{template}"] = text.encode("ascii")
    files["etc/draftwire.toml"] = _config(content).encode("utf-8")
    for name in files:
        try:
            check_name(name)
        except InstallError as exc:
            raise ConfigError(str(exc), hint="rename the file") from exc
    return files


def _member(wheel: Path) -> str:
    """Return a wheel's name in the bundle; with all its tags it may be too long for tar."""
    return "wheels/" + "-".join(wheel.name.split("-")[:2]) + ".whl"


def _config(content: Content) -> str:
    lines = [
        "# draftwire on this board: yours to edit, never overwritten by an update.",
        "# `draftwire config show --origin --config FILE` explains what counts.",
        "# A bearer token goes to the file `token` beside this one (owner root, 0600).",
        "",
    ]
    verifier = content.verifier and f"verifier = {json.dumps(content.verifier)}"
    lines.append(verifier or '# verifier = "wss://HOST:PORT"')
    lines.append(f'draft = "../current/draft/{content.draft.name}"')
    lines += [f"{key} = {json.dumps(value)}" for key, value in content.settings.items()]
    return "\n".join(lines) + "\n"


def bundle_manifest(content: Content, files: Mapping[str, bytes]) -> bytes:
    """Return the manifest of these files, as it is signed."""
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "draftwire": draftwire.__version__,
        "board": content.board,
        "title": content.title,
        "arch": content.arch,
        "python": content.userland.python,
        "glibc": content.userland.glibc,
        "draft": content.draft.name,
        "draft_id": content.draft_id,
        "modules": list(content.modules),
        "system_modules": list(content.system_modules),
        "installed_bytes": sum(_unpacked(name, data) for name, data in files.items()),
        "wheels": {_member(path): path.name for path in content.wheels},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in sorted(files.items())
        },
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    body["id"] = f"{draftwire.__version__}-{digest[:12]}"
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode("utf-8")


def write_bundle(content: Content, out: Path, signer: Signer | None) -> dict[str, Any]:
    """Write a bundle, whole or not at all, signed or not; return its manifest."""
    files = bundle_files(content)
    manifest = bundle_manifest(content, files)
    signature = b"" if signer is None else signer.signature_of(signed_message(manifest))
    members = {MANIFEST: manifest, SIGNATURE: signature, **dict(sorted(files.items()))}
    headers = [_header(name, len(data)) for name, data in members.items()]

    def put(partial: Path) -> None:
        # Wheels are zips already; level 6 for the rest.
        with open(partial, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as out:
            for header, data in zip(headers, members.values()):
                out.write(header)
                out.write(data)
                out.write(b"\0" * (-len(data) % _BLOCK))
            out.write(b"\0" * _BLOCK * 2)

    write_whole(out, put)
    return dict(json.loads(manifest))


def _header(name: str, size: int) -> bytes:
    """Return a ustar header of a plain file of nobody, made at no time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o755 if name == "install.sh" else 0o644
    try:
        return entry.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError as exc:
        raise ConfigError(f"the name {name} is too long for a bundle") from exc


def _unpacked(name: str, data: bytes) -> int:
    if not name.endswith(".whl"):
        return len(data) + _BLOCK * 8
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        return sum(entry.file_size + _BLOCK * 8 for entry in wheel.infolist())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
