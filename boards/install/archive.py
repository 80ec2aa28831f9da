"""Reads a bundle: the signature first, then every byte against the signed manifest.

A bundle is a gzipped ustar archive of regular files: ``manifest.json``,
``manifest.sig``, then what the manifest names. This reader knows nothing else, so a
link, a device, a long-name extension or an absolute path is refused by what it is not.

Source:
    POSIX.1-1988 ustar interchange format.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, Iterator, NamedTuple

from draftwire.boards.install.ed25519 import verify_signature
from draftwire.boards.install.trouble import BUNDLE, USAGE, InstallError

SCHEMA = "draftwire.bundle/1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MAX_MANIFEST = 1 << 20  # bytes; read before anything is known to be ours
MAX_SIGNATURE = 1 << 10
MAX_FILES = 4096
_BLOCK = 512
AGAIN = "copy the bundle again"
_CHUNK = 1 << 18
# Said before the manifest, so that the key's signatures on other things mean nothing.
_DOMAIN = b"draftwire.bundle/1 manifest\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}\Z")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}\Z")
_KEY = re.compile(r"ed25519:([A-Za-z0-9+/]{43}=)\Z")


class Key(NamedTuple):
    """A public key."""

    raw: bytes  # 32 bytes

    @property
    def text(self) -> str:
        """The key as people pass it on: ``ed25519:`` and base64."""
        return "ed25519:" + base64.b64encode(self.raw).decode("ascii")


class Checked(NamedTuple):
    """A bundle whose every byte is what its manifest says."""

    path: Path  # the file
    manifest: dict[str, Any]  # the manifest
    manifest_bytes: bytes  # the manifest as it was signed
    signature: bytes  # the content of ``manifest.sig``, empty when unsigned
    key: Key | None  # whose signature it carries, or None


def signed_message(manifest: bytes) -> bytes:
    """Return what is signed for a manifest."""
    return _DOMAIN + manifest


def read_key(text: str) -> Key:
    """Read a public key: the text itself, or a file that holds it."""
    found = _KEY.match(text.strip())
    if not found:
        try:
            words = Path(text).read_text(encoding="ascii").split()
        except (OSError, ValueError) as exc:
            raise InstallError(
                f"{text} is neither a public key (ed25519:...) nor a file with one",
                USAGE,
                "`boards bundle --show-key` prints the public half of a key",
            ) from exc
        found = _KEY.match(words[0]) if words else None
    if not found:
        raise InstallError(f"{text} holds no public key (ed25519:...)", USAGE)
    return Key(base64.b64decode(found.group(1)))


def check_name(name: str) -> None:
    """Refuse a name that could leave its folder: absolute, climbing, hidden, odd
    characters."""
    parts = name.split("/")
    if len(parts) > 8 or not all(_NAME.match(part) for part in parts):
        said = f"the bundle holds a file with the unfit name {name[:80]!r}"
        raise InstallError(said, BUNDLE)


def check_bundle(path: Path, trusted: Key | None, *, unsigned: bool) -> Checked:
    """Check a bundle from the first byte to the last, writing nothing: signed by
    ``trusted``, or taken ``unsigned`` (a signature is checked all the same)."""
    members = read_members(path)
    manifest_bytes = _small(next(members, None), MANIFEST, MAX_MANIFEST)
    signature = _small(next(members, None), SIGNATURE, MAX_SIGNATURE)
    key = _check_signature(manifest_bytes, signature, trusted, unsigned=unsigned)
    manifest = _read_manifest(manifest_bytes)
    files = manifest["files"]
    seen = set()
    for name, size, stream in members:
        if name in seen or name not in files:
            what = "twice" if name in seen else "which its manifest does not name"
            raise InstallError(f"the bundle holds {name} {what}", BUNDLE)
        seen.add(name)
        if size != files[name]["bytes"]:
            said = f"{name} has {size} bytes, the manifest says {files[name]['bytes']}"
            raise InstallError(said, BUNDLE, AGAIN)
        digest = hashlib.sha256()
        for chunk in iter(lambda: stream.read(_CHUNK), b""):  # noqa: B023  used at once
            digest.update(chunk)
        if digest.hexdigest() != files[name]["sha256"]:
            said = f"{name} in the bundle does not have the hash that the manifest says"
            raise InstallError(said, BUNDLE, AGAIN)
    missing = sorted(set(files) - seen)
    if missing:
        raise InstallError(f"the bundle lacks {missing[0]}", BUNDLE, AGAIN)
    return Checked(path, manifest, manifest_bytes, signature, key)


def _check_signature(
    manifest: bytes, signature: bytes, trusted: Key | None, *, unsigned: bool
) -> Key | None:
    if not signature.strip():
        if unsigned:
            return None
        raise InstallError(
            "the bundle is not signed",
            BUNDLE,
            "sign it with `draftwire boards bundle --key FILE`, "
            "or say --allow-unsigned if you trust the way it came",
        )
    try:
        word, value = signature.decode("ascii").split()
        raw = base64.b64decode(value, validate=True)
        found = _KEY.match(word)
    except (ValueError, binascii.Error):
        found = None
    if not found:
        raise InstallError(f"{SIGNATURE} is not a signature", BUNDLE)
    key = Key(base64.b64decode(found.group(1)))
    if trusted is None and not unsigned:
        said = f"no key says whom to trust; this bundle claims to be signed by {key.text}"
        hint = "give the key that you got from its maker: --key ed25519:... or --key FILE"
        raise InstallError(said, USAGE, hint)
    if trusted is not None and trusted != key:
        said = f"the bundle is signed by {key.text}, this board trusts {trusted.text}"
        hint = "get a bundle from the right maker; --replace-key --key KEY changes the "
        raise InstallError(said, BUNDLE, hint + "trust")
    if not verify_signature(key.raw, signed_message(manifest), raw):
        said = "the signature does not fit the manifest: the bundle was changed"
        hint = "copy it again, and if that does not help, ask its maker"
        raise InstallError(said, BUNDLE, hint)
    return key


def _small(member: tuple[str, int, IO[bytes]] | None, name: str, most: int) -> bytes:
    if member is None or member[0] != name:
        said = f"this is no draftwire bundle: {name} is not where it must be"
        raise InstallError(said, BUNDLE)
    if member[1] > most:
        raise InstallError(f"{name} has {member[1]} bytes, at most {most} fit", BUNDLE)
    return member[2].read(member[1])


def _read_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest: Any = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise InstallError(f"{MANIFEST} is not JSON", BUNDLE) from exc
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        said = f"the bundle has format {schema!r}, this installer knows {SCHEMA!r}"
        raise InstallError(said, BUNDLE, "use the install.sh that came with it")
    files = manifest.get("files")
    if not isinstance(files, dict) or not 0 < len(files) <= MAX_FILES:
        raise InstallError(f"{MANIFEST} names no files, or too many", BUNDLE)
    for name, entry in files.items():
        check_name(name)
        told = entry if isinstance(entry, dict) else {}
        kinds = type(told.get("bytes")), type(told.get("sha256"))
        if kinds != (int, str):
            raise InstallError(f"{MANIFEST}: {name} needs bytes and sha256", BUNDLE)
    for field in ("id", "board", "arch", "python", "glibc", "draft"):
        if not _WORD.match(str(manifest.get(field, ""))):
            raise InstallError(f"{MANIFEST}: {field} is missing or unfit", BUNDLE)
    for field in ("modules", "system_modules"):
        words = manifest.get(field)
        if not isinstance(words, list) or not all(_WORD.match(str(w)) for w in words):
            raise InstallError(f"{MANIFEST}: {field} must be a list of names", BUNDLE)
    if not isinstance(manifest.get("installed_bytes"), int):
        raise InstallError(f"{MANIFEST}: installed_bytes is missing", BUNDLE)
    return dict(manifest)


class _Part:
    """The next so many bytes of a stream, as a file."""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream = stream
        self.left = size

    def read(self, most: int = -1) -> bytes:
        wanted = self.left if most < 0 else min(most, self.left)
        try:
            data: bytes = self._stream.read(wanted) if wanted else b""
        except (OSError, EOFError, zlib.error) as exc:
            raise InstallError(f"the bundle is damaged: {exc}", BUNDLE, AGAIN) from exc
        if wanted and not data:
            raise InstallError("the bundle ends too early", BUNDLE, AGAIN)
        self.left -= len(data)
        return data


def read_members(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Yield (name, bytes, stream) of a bundle's files; read each before the next."""
    try:
        with gzip.open(path, "rb") as stream:
            while True:
                header = stream.read(_BLOCK)
                if len(header) == _BLOCK and not header.strip(b"\0"):
                    return
                name, size = _read_header(header)
                part = _Part(stream, size)
                yield name, size, part
                while part.left:
                    part.read(_CHUNK)
                stream.read(-size % _BLOCK)
    except FileNotFoundError as exc:
        raise InstallError(f"there is no bundle at {path}", USAGE) from exc
    except (OSError, EOFError, zlib.error) as exc:
        if getattr(exc, "errno", None):  # not gzip's own: a folder, no right to read it
            raise
        said = f"{path} cannot be read as a bundle: {exc}"
        raise InstallError(said, BUNDLE, AGAIN) from exc


def _read_header(header: bytes) -> tuple[str, int]:
    if len(header) < _BLOCK or header[257:263] != b"ustar\0":
        raise InstallError("the bundle is damaged or no ustar archive", BUNDLE)
    try:
        entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (ValueError, tarfile.HeaderError) as exc:
        raise InstallError(f"the bundle is damaged: {exc}", BUNDLE) from exc
    name, size = entry.name, entry.size
    if not 0 <= size < 1 << 33:
        raise InstallError("the bundle is damaged: a header is unreadable", BUNDLE)
    if header[156:157] != b"0":
        said = f"the bundle holds {name[:80]!r}, which is no plain file (a link, a device "
        raise InstallError(said + "or an extension)", BUNDLE)
    check_name(name)
    return name, size
