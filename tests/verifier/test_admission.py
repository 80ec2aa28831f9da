"""Who may connect: wss with and without client certificates, and plain loopback."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from certificates import certificate as certificate_of
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage

from draftwire.errors import ConfigError
from draftwire.transport.codec import SUBPROTOCOL
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.accounts import Accounts
from draftwire.verifier.serving.service import VerifierService, tls_context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return certificate_of(tmp_path_factory.mktemp("tls"))


async def upgrade(service, context):
    async with connect(
        service.url, ssl=context, subprotocols=[SUBPROTOCOL], compression=None
    ) as socket:
        return socket.subprotocol


async def test_another_certificate_holds_for_handshakes_from_then_on(certificate, tmp_path):
    cert, key = certificate
    new, its_key = certificate_of(tmp_path, "IP:127.0.0.1", "new")
    service = VerifierService(Registry(lambda path: None), tls=tls_context(cert, key))
    await service.start()
    old_trust = ssl.create_default_context(cafile=str(cert))
    new_trust = ssl.create_default_context(cafile=str(new))
    try:
        async with connect(
            service.url, ssl=old_trust, subprotocols=[SUBPROTOCOL]
        ) as before:
            service.renew((), tls_context(new, its_key, new))
            with pytest.raises(ssl.SSLCertVerificationError):
                await upgrade(service, old_trust)
            with pytest.raises((OSError, EOFError, InvalidMessage)):
                await upgrade(service, new_trust)  # clients must show one now
            new_trust.load_cert_chain(new, its_key)
            assert await upgrade(service, new_trust) == SUBPROTOCOL
            await (await before.ping())  # who was there is not concerned
    finally:
        await service.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"host": "0.0.0.0"}, "plain ws://"),
        ({"host": "0.0.0.0", "accounts": Accounts.of("x")}, "plain ws://"),
        ({"host": "verifier"}, "plain ws://"),
        ({"host": "::", "insecure": True}, "without a token"),
    ],
)
async def test_plain_or_open_service_off_loopback_is_refused(options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        VerifierService(Registry(lambda path: None), **options)


async def test_bytes_that_are_no_http_leave_no_trace(capfd, caplog):
    service = VerifierService(Registry(lambda path: None))
    await service.start()
    port = int(service.url.rpartition(":")[2])
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
    await service.close()
    assert "Traceback" not in caplog.text + capfd.readouterr().err
