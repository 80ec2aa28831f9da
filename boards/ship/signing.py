"""Keys for bundles, on the workstation: made and used with ``cryptography``."""

from __future__ import annotations

import base64
import contextlib
import os
from pathlib import Path
from typing import Any, Callable, NamedTuple

from draftwire.boards.install.archive import Key
from draftwire.errors import ConfigError
from draftwire.io import writing

_MISSING = "pip install 'draftwire[ship]'"


class Signer(NamedTuple):
    """Signs for one key."""

    key: Key  # the public half
    sign: Callable[[bytes], bytes]  # returns the 64 bytes of a signature

    def signature_of(self, message: bytes) -> bytes:
        """Return the content of a bundle's ``manifest.sig``."""
        value = base64.b64encode(self.sign(message)).decode("ascii")
        return f"{self.key.text} {value}\n".encode("ascii")


def _public(secret: Any) -> Key:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Key(secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def make_key(path: Path) -> Key:
    """Make a key: the secret half at ``path`` (0600), the public one at ``path.pub``; a
    ConfigError if there is a file already, or no ``cryptography``."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as exc:
        raise ConfigError("making keys needs cryptography", hint=_MISSING) from exc
    secret = Ed25519PrivateKey.generate()
    text = secret.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    key = _public(secret)
    public = path.with_name(path.name + ".pub")
    hint = "boards that trust it would not take bundles signed with another"
    with writing(path), contextlib.ExitStack() as half:
        for place, data, mode in (
            (path, text, 0o600),
            (public, (key.text + "\n").encode("ascii"), 0o644),
        ):
            try:
                descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError as exc:
                raise ConfigError(f"{place} is there already", hint=hint) from exc
            half.callback(place.unlink)  # no half of a pair
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        half.pop_all()
    return key


def load_signer(path: Path) -> Signer:
    """Return the signer for the secret key in ``path``, a PEM file without password; a
    ConfigError if it is no Ed25519 key, or others may read it."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as exc:
        raise ConfigError("signing needs cryptography", hint=_MISSING) from exc
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as exc:
        hint = "`draftwire boards bundle --new-key FILE` makes one"
        raise ConfigError(f"cannot read the key {path}: {exc.strerror}", hint=hint) from exc
    try:
        secret = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        what, hint = f"{path} is no secret key in PEM: {exc}", "FILE.pub is the public half"
        raise ConfigError(what, hint=hint) from exc
    if mode & 0o077:
        what = f"others may read the secret key {path}"
        raise ConfigError(what, hint=f"chmod 600 {path}")
    if not isinstance(secret, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind than Ed25519")
    return Signer(_public(secret), secret.sign)


def public_key(path: Path) -> Key:
    """Return the public half of the key in ``path``."""
    return load_signer(path).key
