"""The service over a real loopback socket, with a target made of arithmetic."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading

import pytest
from certificates import certificate
from verifier_lab import (
    ArithmeticBackend,
    closed,
    continuation,
    device,
    get,
    greeted,
    made,
    serving,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

import draftwire
from draftwire.errors import ConfigError, ModelError, RefusedError
from draftwire.transport.codec import SUBPROTOCOL
from draftwire.transport.messages import Block, Bye, Commit, Error, Finish, Opened, Progress
from draftwire.verifier.serving.accounts import Accounts
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.service import VerifierService, tls_context


async def test_health_names_the_targets():
    backends = ArithmeticBackend("v1"), ArithmeticBackend("v2")
    backends[1].numerics = "close"
    async with serving(*backends, accounts=Accounts.of("secret")) as service:
        assert await get(service, "/healthz") == (200, '{"status": "ok"}\n')
        right = {"Authorization": "Bearer secret"}
        status, body = await get(service, "/healthz", **right)
        assert status == 200
        health = json.loads(body)
        assert (health["status"], health["draftwire"]) == ("ok", draftwire.__version__)
        assert [t["version"] for t in health["targets"]] == ["v1", "v2"]
        assert [t["numerics"] for t in health["targets"]] == ["exact", "close"]
        assert health["targets"][1]["near_ties"] == 0
        status, body = await get(service, "/models/verifier/healthz?x=1", **right)
        assert status == 200 and json.loads(body)["targets"] == health["targets"]
        assert (await get(service, "/models/metrics", **right))[0] == 200
        assert (await get(service, "/healthzz", **right))[0] == 400


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"tokenizer": b"\x01" * 32}, "tokenizer", ["010101", "aaaaaa", "sum v1"]),
        ({"target": "v9"}, "target", ["'v9'", "sum v1, sum v2"]),
    ],
)
async def test_who_does_not_fit_is_refused_with_a_reason(changes, code, words):
    backends = ArithmeticBackend("v1"), ArithmeticBackend("v2")
    if code == "tokenizer":
        backends = backends[:1]
    async with serving(*backends) as service, device(service) as dev:
        answer = await dev.greet(**changes)
        assert isinstance(answer, Error) and answer.fatal
        assert answer.code == code and answer.hint
        for word in words:
            assert word in answer.message
        await closed(dev, 1008)


async def test_what_a_proxy_has_left_out_is_said_in_words():
    async with serving() as service:
        status, body = await get(service, "/x")
        assert status == 400 and "pass Upgrade and Connection" in body
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        status, body = await get(service, "/x", **headers)
        assert status == 400 and "pass Sec-WebSocket-Protocol" in body
        headers["Sec-WebSocket-Protocol"] = "draftwire.v1, chat"
        status, body = await get(service, "/x", **headers)
        assert status == 426 and "offered draftwire.v1, chat:" in body
        assert SUBPROTOCOL in body


@pytest.mark.parametrize(
    ("trusted", "said", "name"),
    [
        ((), "203.0.113.9", r"127\.0\.0\.1:\d+"),
        (("10.0.0.0/8",), "203.0.113.9", r"127\.0\.0\.1:\d+"),
        (("127.0.0.1",), "203.0.113.9", r"203\.0\.113\.9 \(through 127.*\)"),
        (("127.0.0.1",), "6.6.6.6, 203.0.113.9", r"203\.0\.113\.9 \(.*\)"),
        (("127.0.0.0/8", "10.0.0.0/8"), "2001:db8::7, 10.1.2.3", r"2001:db8::7 \(.*\)"),
        (("127.0.0.1",), "6.6.6.6, unknown or worse", r"127\.0\.0\.1 \(through 127.*\)"),
        (("127.0.0.1",), None, r"127\.0\.0\.1 \(through 127.*\)"),
    ],
)
async def test_only_trusted_proxies_name_devices_in_the_log(trusted, said, name, caplog):
    async with serving(accounts=Accounts.of("right"), trusted=trusted) as service:
        headers = {} if said is None else {"X-Forwarded-For": said}
        with pytest.raises(InvalidStatus) as caught:
            async with device(service, additional_headers=headers):
                pass
        assert caught.value.response.status_code == 401
        assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
    (line,) = [r.getMessage() for r in caplog.records if "wrong token" in r.getMessage()]
    assert re.fullmatch(name + ": missing or wrong token", line), line


def test_a_proxy_that_is_no_address_is_refused():
    with pytest.raises(ConfigError, match="no address of a proxy"):
        made(VerifierService, trusted=("proxy.example",))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("\x1b[2Jno \udcff room\n\u202e"), "RuntimeError:  [2Jno   room"),
        (RefusedError("so busy"), "RefusedError: so busy"),
        (ModelError("x" * 5000), "x" * 1000),
    ],
)
async def test_an_error_of_the_engine_is_internal_short_and_printable(error, words):
    backend = ArithmeticBackend()
    async with serving(backend) as service, greeted(service) as dev:

        def forward(batch):
            raise error

        backend.forward = forward
        await dev.open([1, 2, 3], 5)
        answer = await dev.hear()
        assert (answer.code, answer.fatal) == ("internal", False)
        assert words in answer.message and answer.message.isprintable()


async def test_too_many_devices_and_silent_ones_are_shown_out():
    limits = Limits(connections=1, hello_s=1.5, idle_s=1.5)
    async with serving(limits=limits) as service, greeted(service) as first:
        with pytest.raises(InvalidStatus):
            async with device(service):
                pass
        answer = await first.hear()
        assert answer.code == "limit" and "1.5 seconds" in answer.message
        await closed(first, 1008)
        async with device(service) as mute:
            assert "no hello" in (await mute.hear()).message


async def test_a_long_frame_is_cut_off():
    limits = Limits(message_bytes=512)
    async with serving(limits=limits) as service, greeted(service) as dev:
        await dev.socket.send(bytes(600))
        await closed(dev, 1009)


async def test_draining_lets_streams_finish_and_refuses_new_ones():
    async with serving() as service, greeted(service) as idle, greeted(service) as busy:
        await busy.open([3], 4)
        draining = asyncio.ensure_future(service.drain(10))
        assert (await idle.hear()).code == "draining"
        await closed(idle, 1001)
        status, body = await get(service, "/healthz")
        assert status == 503 and json.loads(body)["draining"] is True
        with pytest.raises(InvalidStatus) as caught:
            async with device(service):
                pass
        assert caught.value.response.status_code == 503
        text = continuation([3], 4)
        await busy.say(Block(0, 0, tuple(text)))
        commit = await busy.hear()
        assert commit.finish is Finish.LENGTH
        assert (await busy.hear()).code == "draining"
        await closed(busy, 1001)
        await draining


async def test_draining_does_not_wait_for_ever():
    async with serving() as service, greeted(service) as dev:
        await dev.open([3], 4)
        await service.drain(0.1)
        assert (await dev.hear()).code == "draining"
        await closed(dev, 1001)


# ---- several streams on one connection, and what tells that it works


async def test_a_close_by_the_device_tells_that_it_has_seen_the_end():
    async with serving() as service:
        for cut in (False, True):
            async with greeted(service) as dev:
                assert (await dev.generate([4], 6))[1] is Finish.LENGTH
                if cut:
                    dev.cut()
            while service.connections:
                await asyncio.sleep(0.002)
            assert len(service.kept) == int(cut)


async def test_a_target_that_works_says_so_and_one_that_hangs_does_not():
    backend = ArithmeticBackend(slots=4)
    right, hangs = backend.forward, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(batch):
        if any(item.rows for item in batch):
            while hangs.is_set():
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.04), loop).result()
        return right(batch)

    backend.forward = slow
    limits = Limits(progress_s=0.1)
    async with serving(backend, limits=limits) as service, device(service) as dev:
        assert (await dev.greet()).progress_ms == 100
        await dev.open([1] * 250, 5)  # read in several forwards
        await dev.say(Block(0, 0, ()))
        said = []
        while isinstance(message := await dev.hear(), Progress):
            said.append(message)
        assert isinstance(message, Commit)
        for progress in said:
            assert progress.work >= 1 and progress.activity != "idle"
        hangs.set()
        await dev.say(Block(0, 1, ()))
        await asyncio.sleep(0.5)
        assert dev.frames.empty()
        hangs.clear()
        assert isinstance(await dev.hear(), Commit)
        await dev.say(Block(0, 0, (9,)))  # all of it is text already
        answer = await dev.hear()
        assert answer == Progress("idle", answer.epoch, 2, 0)


async def test_a_slot_that_is_on_its_way_back_is_worth_a_moment():
    """A device that cancels and asks again need not wait as for a full verifier."""
    backend = ArithmeticBackend(slots=1)
    backend.gate = threading.Event()
    async with serving(backend) as service:
        async with greeted(service) as dev, device(service) as other:
            assert isinstance(await dev.open([4], 20, 0), Opened)
            await dev.say(Block(0, 0, (1, 2)), 0)
            await other.greet()
            full = await other.open([5], 20)
            assert (full.code, full.fatal) == ("busy", False) and full.retry_after_ms >= 500
            while not service.registry.all[0].driven._batch:
                await asyncio.sleep(0.001)
            await dev.say(Bye(), 0)
            assert isinstance(await dev.hear(), Bye)
            soon = await dev.open([6], 20, 1)
            assert (soon.code, soon.fatal) == ("busy", False) and soon.retry_after_ms < 500
            backend.gate.set()
            while isinstance(opened := await dev.open([6], 20, 1), Error):
                await asyncio.sleep(0.01)
            assert isinstance(opened, Opened)


# ---- who may connect, and how


async def upgrade(service, context):
    options = {"subprotocols": [SUBPROTOCOL], "compression": None}
    async with connect(service.url, ssl=context, **options) as socket:
        return socket.subprotocol


async def test_another_certificate_holds_for_handshakes_from_then_on(tmp_path):
    cert, key = certificate(tmp_path)
    new, its_key = certificate(tmp_path, "IP:127.0.0.1", "new")
    old_trust = ssl.create_default_context(cafile=str(cert))
    new_trust = ssl.create_default_context(cafile=str(new))
    async with serving(tls=tls_context(cert, key)) as service:
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
        made(VerifierService, **options)


async def test_bytes_that_are_no_http_leave_no_trace(capfd, caplog):
    async with serving() as service:
        port = int(service.url.rpartition(":")[2])
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
    assert "Traceback" not in caplog.text + capfd.readouterr().err
