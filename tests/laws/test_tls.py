"""TLS from end to end: the certificate is checked, on either side if asked for."""

from __future__ import annotations

import types

import pytest
from certificates import authority
from live import connect, serving

from draftwire.errors import TransportError


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1", "server", "device")


@pytest.mark.parametrize("mutual", [False, True])
def test_only_trusted_ends_talk(certificates, mutual):
    at = {name: str(certificates / name) for name in ("server.pem", "server.key", "ca.pem")}
    flags = ["--tls-cert", at["server.pem"], "--tls-key", at["server.key"]]
    flags += ["--tls-client-ca", at["ca.pem"]] if mutual else []
    ca = certificates / "ca.pem"
    mine = {
        "tls_ca": ca,
        "tls_cert": certificates / "device.pem",
        "tls_key": certificates / "device.key",
    }
    with serving(flags=flags) as plain:
        safe = types.SimpleNamespace(url=plain.url.replace("ws://", "wss://"))
        with connect(safe, **mine) as session:
            chunks = list(session.generate([1, 2, 3], max_new_tokens=6))
            assert sum(len(c.tokens) for c in chunks) >= 1
        with pytest.raises(TransportError, match="not trusted"):
            connect(safe)
        if mutual:
            with pytest.raises(TransportError):
                connect(safe, tls_ca=ca)
        with pytest.raises(TransportError):
            connect(plain, timeout_s=3.0)
