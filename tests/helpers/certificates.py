"""Certificates of tests, which openssl makes; without it the test is skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


def _openssl(folder: Path, words: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the test certificates are made with openssl")
    command = ["openssl", *words.split()]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def certificate(
    folder: Path, names: str = "DNS:localhost,IP:127.0.0.1", stem: str = "cert"
) -> tuple[Path, Path]:
    """Return a certificate that is its own authority, and its key."""
    cert, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    made = f"req -x509 {_KEY} -days 2 -subj /CN={stem} -addext subjectAltName={names}"
    _openssl(folder, f"{made} -keyout {key} -out {cert}")
    return cert, key


def authority(folder: Path, names: str, *stems: str) -> Path:
    """Make ``ca.pem``, and ``STEM.pem`` and ``STEM.key`` that it has signed."""
    _openssl(folder, f"req -x509 {_KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=test")
    (folder / "san").write_text(f"subjectAltName={names}\n")
    for stem in stems:
        _openssl(folder, f"req {_KEY} -keyout {stem}.key -out {stem}.csr -subj /CN={stem}")
        signed = f"x509 -req -in {stem}.csr -CA ca.pem -CAkey ca.key -CAcreateserial"
        _openssl(folder, f"{signed} -out {stem}.pem -days 2 -extfile san")
    return folder
