"""TLS from end to end: the certificate is checked, on either side if asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import authority

import draftwire
from draftwire.errors import TransportError

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1", "server", "device")


@pytest.fixture(params=["one-sided", "mutual"])
def verifier(request, certificates):
    words = ["--tls-cert", "server.pem", "--tls-key", "server.key"]
    if request.param == "mutual":
        words += ["--tls-client-ca", "ca.pem"]
    process = subprocess.Popen(
        [sys.executable, "-m", *"draftwire verifier serve --port 0 --target".split()]
        + [str(FIXTURES / "tiny.target"), *words],
        cwd=certificates,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    line = process.stdout.readline()
    url = next(word for word in line.split() if word.startswith("wss://"))
    yield url, request.param == "mutual"
    process.kill()
    process.wait()
    process.stdout.close()


def connect(url, **options):
    return draftwire.connect(url, draft=FIXTURES / "tiny.draft", **options)


def test_only_trusted_ends_talk(verifier, certificates):
    url, mutual = verifier
    ca = certificates / "ca.pem"
    mine = {
        "tls_ca": ca,
        "tls_cert": certificates / "device.pem",
        "tls_key": certificates / "device.key",
    }
    with connect(url, **mine) as session:
        chunks = list(session.generate([1, 2, 3], max_new_tokens=6))
        assert sum(len(c.tokens) for c in chunks) >= 1
    with pytest.raises(TransportError, match="not trusted"):
        connect(url)
    if mutual:
        with pytest.raises(TransportError):
            connect(url, tls_ca=ca)
    with pytest.raises(TransportError):
        connect(url.replace("wss://", "ws://"), timeout_s=3.0)
