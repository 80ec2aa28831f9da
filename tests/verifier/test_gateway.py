"""Many verifiers behind one address: whose a stream is, and that none is lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from websockets.exceptions import InvalidStatus

from draftwire.errors import ConfigError
from draftwire.transport.dial import SESSION_HEADER, key_of
from draftwire.transport.messages import (
    Block,
    Error,
    Finish,
    Open,
    Opened,
    Resumed,
    Welcome,
)
from draftwire.verifier.gateway.fleet import Fleet, Ring
from draftwire.verifier.gateway.relay import Gateway
from draftwire.verifier.serving.accounts import Account, Accounts
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.metrics import METRICS

PROMPT = [1, 2, 3]
NAMES = [f"ws://10.0.0.{i}:8765" for i in range(10)]


# ---- the ring


def test_each_verifier_gets_its_share_of_the_keys():
    ring = Ring(NAMES)
    shares = Counter(ring.owner(i.to_bytes(4, "big")) for i in range(20_000))
    assert len(shares) == 10
    assert max(shares.values()) < 1.35 * 2000
    assert min(shares.values()) > 0.65 * 2000


@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.integers(0, 40), min_size=2, max_size=12), st.binary(min_size=4, max_size=4)
)
def test_only_the_keys_of_a_verifier_that_goes_move_and_to_the_next_in_order(which, key):
    names = [f"ws://v{i}:1" for i in sorted(which)]
    ring = Ring(names)
    order = list(ring.order(key))
    assert sorted(order) == sorted(names)
    assert Ring(reversed(names)).owner(key) == order[0]
    for gone in names:
        left = [name for name in names if name != gone]
        assert list(Ring(left).order(key)) == [name for name in order if name != gone]
    assert ring.owner(ring.key_for(names[0])) == names[0]


def test_a_session_id_names_a_key_or_none():
    assert key_of(["0123456789abcdef"]) == bytes.fromhex("01234567")
    for odd in (None, "", "0123", "xyzw0123", "01 34567", "+1234567", "é" * 8):
        assert key_of([odd] if odd else []) == b""
    assert key_of(["0123456789abcdef"] * 2) == b""


# ---- over sockets


@asynccontextmanager
async def fleet(*backends, limits=None, file=None, accounts=None, **options):
    """Verifiers with these targets, and a gateway before them."""
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(
                serving(backend, limits=limits, accounts=accounts)
            )
            for backend in backends
        ]
        if file is not None:
            file.write_text("\n".join(s.url for s in services))
        urls = [] if file is not None else [s.url for s in services]
        gateway = await stack.enter_async_context(before(urls, file, accounts, **options))
        yield gateway, services


@asynccontextmanager
async def before(urls, file=None, accounts=None, health_s=0.1, **options):
    ways = Fleet(urls, file=file, health_s=health_s)
    gateway = made(Gateway, fleet=ways, accounts=accounts, **options)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close()


def opened_at(services):
    return [service.kept.opened for service in services]


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


async def test_texts_and_welcome_are_those_of_a_verifier():
    async with fleet(*(ArithmeticBackend() for _ in range(3))) as (gateway, services):
        async with device(services[0]) as direct, device(gateway) as dev:
            assert await dev.greet() == await direct.greet()
            for stream in (0, 2, 3, 16383):
                found = await dev.generate(PROMPT, 20, stream=stream)
                assert found == (continuation(PROMPT, 20), Finish.LENGTH)
        # All of them at home: what a conversation has left there is of use.
        assert sorted(opened_at(services)) == [0, 0, 4]


async def test_devices_spread_and_no_verifier_has_much_more_than_its_share():
    backends = [ArithmeticBackend(slots=40) for _ in range(4)]
    async with fleet(*backends) as (gateway, services), AsyncExitStack() as stack:
        for _ in range(40):
            dev = await stack.enter_async_context(device(gateway))
            assert isinstance(await dev.greet(), Welcome)
        found = [replica.connections for replica in gateway.fleet.replicas.values()]
        assert sum(found) == 40
        assert max(found) <= 14  # 1.25 times ten, and the one that is counted in
    # Those that have gone are not counted any more.
    assert not any(replica.connections for replica in gateway.fleet.replicas.values())


async def test_a_stream_is_found_through_another_gateway_without_any_state():
    backends = [ArithmeticBackend() for _ in range(5)]
    async with fleet(*backends) as (gateway, services):
        urls = [service.url for service in services]
        async with greeted(gateway) as dev:
            opened = await dev.open(PROMPT, 20)
            text, epoch = await dev.go_on(PROMPT, [], 0, rounds=2)
            dev.cut()
        async with before(list(reversed(urls))) as other, greeted(other) as dev:
            resumed = await dev.resume(opened, len(text))
            assert isinstance(resumed, Resumed)
            found = await dev.go_on(PROMPT, text, resumed.epoch)
            assert found == (continuation(PROMPT, 20), Finish.LENGTH)
        assert sum(service.kept.resumed for service in services) == 1


async def test_the_id_of_a_stream_begins_with_the_session_that_the_device_names():
    async with serving() as service:
        headers = {SESSION_HEADER: "00112233445566ff"}
        async with greeted(service, additional_headers=headers) as dev:
            first = await dev.open(PROMPT, 20)
            second = await dev.open(PROMPT, 20, stream=1)
            assert first.id[:4] == second.id[:4] == bytes.fromhex("00112233")
            assert first.id != second.id


async def test_a_stream_that_finds_home_full_is_opened_elsewhere_and_resumed_there():
    backends = [ArithmeticBackend(slots=1) for _ in range(3)]
    async with fleet(*backends) as (gateway, services):
        async with greeted(gateway) as dev:
            ids = [await dev.open(PROMPT, 20, stream=n) for n in range(3)]
            assert all(isinstance(found, Opened) for found in ids)
            assert opened_at(services) == [1, 1, 1]
            assert gateway.spilled == 2
            # Now they are all full: the device is told, and when to come back.
            refused = await dev.open(PROMPT, 20, stream=3)
            assert (refused.code, refused.fatal) == ("busy", False)
            assert refused.retry_after_ms > 0
            texts = []
            for n in range(3):
                texts.append(await dev.go_on(PROMPT, [], 0, rounds=n + 1, stream=n))
            dev.cut()
        async with greeted(gateway) as dev:
            for (text, _), opened in zip(texts, ids):
                resumed = await dev.resume(opened, len(text))
                assert isinstance(resumed, Resumed), resumed
                found, finish = await dev.go_on(PROMPT, text, resumed.epoch)
                assert (found, finish) == (continuation(PROMPT, 20), Finish.LENGTH)
        assert [service.kept.resumed for service in services] == [1, 1, 1]


async def test_blocks_sent_before_the_answer_go_along_when_a_stream_goes_elsewhere():
    backends = [ArithmeticBackend(slots=1) for _ in range(2)]
    async with fleet(*backends) as (gateway, services), greeted(gateway) as dev:
        await dev.open(PROMPT, 20)  # home is full now
        for stream in range(1, 3):
            right = continuation(PROMPT, 5)
            asked = Open(tuple(PROMPT), "greedy", 0.0, 0, 1.0, 0, 20, ())
            await dev.say(asked, stream)
            await dev.say(Block(0, 0, tuple(right[:3])), stream)
            answer = await dev.hear()
            if stream == 1:
                assert isinstance(answer, Opened)
                commit = await dev.hear()
                assert (commit.accepted, commit.token) == (3, right[3])
            else:
                assert isinstance(answer, Error)


@pytest.mark.parametrize("how", ["killed", "drained"])
async def test_a_verifier_that_goes_costs_a_resume_and_no_token(how):
    backends = [ArithmeticBackend() for _ in range(3)]
    async with fleet(*backends) as (gateway, services):
        async with greeted(gateway) as dev:
            opened = await dev.open(PROMPT, 30)
            text, _ = await dev.go_on(PROMPT, [], 0, rounds=2)
            home = services[opened_at(services).index(1)]
            if how == "killed":
                for connection in tuple(home.connections):
                    connection.abort()
                for server in home._servers:
                    server.close()
            else:
                await home.drain(0.2)
            await closed(dev, 1001)
        async with greeted(gateway) as dev:
            refused = await dev.resume(opened, len(text))
            assert (refused.code, refused.fatal) == ("stream", False)
            # As a device does: the rest, with prompt and text as the prompt.
            rest, finish = await dev.generate(PROMPT + text, 30 - len(text))
            assert text + rest == continuation(PROMPT, 30)
        assert opened_at(services).count(1) == 2


async def test_a_verifier_that_drains_gets_no_stream_and_finishes_those_it_has():
    backends = [ArithmeticBackend() for _ in range(2)]
    async with fleet(*backends) as (gateway, services), greeted(gateway) as dev:
        await dev.open(PROMPT, 20)
        text, epoch = await dev.go_on(PROMPT, [], 0, rounds=2)
        home = services[opened_at(services).index(1)]
        draining = asyncio.ensure_future(home.drain(10))
        await asyncio.sleep(0.05)
        # A new stream of this very connection: elsewhere.
        assert await dev.generate(PROMPT, 20, stream=1) == (
            continuation(PROMPT, 20),
            Finish.LENGTH,
        )
        found, finish = await dev.go_on(PROMPT, text, epoch)
        assert (found, finish) == (continuation(PROMPT, 20), Finish.LENGTH)
        await draining
        await closed(dev, 1001)  # to find another home
        assert opened_at(services) == [1, 1]


async def test_verifiers_come_and_go_with_the_file(tmp_path):
    file = tmp_path / "verifiers"

    async with fleet(ArithmeticBackend(), file=file) as (gateway, services):
        async with serving(ArithmeticBackend()) as second:
            file.write_text(f"{services[0].url} drain  # replaced\n\n{second.url}\n")
            await until(lambda: len(gateway.fleet.replicas) == 2)
            for _ in range(4):
                async with greeted(gateway) as dev:
                    await dev.generate(PROMPT, 5)
            assert (services[0].kept.opened, second.kept.opened) == (0, 4)
            file.write_text(f"{second.url} forever")  # a slip: what was there holds
            await asyncio.sleep(0.3)
            assert len(gateway.fleet.replicas) == 2


async def test_without_a_verifier_devices_are_asked_to_come_back():
    async with fleet(ArithmeticBackend()) as (gateway, services):
        for server in services[0]._servers:
            server.close()
        await until(lambda: "down" in {r.state for r in gateway.fleet.replicas.values()})
        with pytest.raises(InvalidStatus) as caught:
            async with device(gateway):
                pass
        response = caught.value.response
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        status, body = await get(gateway, "/healthz")
        assert (status, json.loads(body)["status"]) == (503, "no target")


async def test_tokens_and_refusals_are_the_verifiers():
    token = "t" * 32
    accounts = Accounts([Account(token)])

    backends = [ArithmeticBackend() for _ in range(2)]
    async with fleet(*backends, accounts=accounts) as (gateway, services):
        with pytest.raises(InvalidStatus) as caught:
            async with device(gateway):
                pass
        assert caught.value.response.status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        async with device(gateway, additional_headers=headers) as dev:
            refused = await dev.greet(tokenizer=b"\xcc" * 32)
            assert (refused.code, refused.fatal) == ("tokenizer", True)
            await closed(dev, 1008)
        async with greeted(gateway, additional_headers=headers) as dev:
            assert (await dev.generate(PROMPT, 5))[0] == continuation(PROMPT, 5)
        status, body = await get(gateway, "/metrics", **headers)
        assert status == 200
        for name in METRICS:
            if name.startswith("gateway_"):
                assert f"# TYPE draftwire:{name} " in body
        streams = 'draftwire:gateway_verifier_streams_total{verifier="ws://127.0.0.1'
        assert body.count(streams) == 2


async def test_a_target_that_only_some_verifiers_have_is_found():
    backends = ArithmeticBackend("v1"), ArithmeticBackend("v2")
    async with fleet(*backends) as (gateway, _):
        for version in ("v1", "v2", "v1", "v2"):
            async with device(gateway) as dev:
                welcome = await dev.greet(target=version)
                assert welcome.target_version == version


async def test_what_is_no_frame_is_refused_as_a_verifier_refuses_it():
    async with fleet(ArithmeticBackend()) as (gateway, _):
        async with greeted(gateway) as dev:
            await dev.socket.send(b"\xc5\xff\xff\xff")  # no stream number
            assert (await dev.hear()).code == "protocol"
            await closed(dev, 1002)
        async with device(gateway) as dev:
            await dev.socket.send("text")
            assert (await dev.hear()).code == "protocol"


def test_a_gateway_wants_verifiers_and_their_addresses(tmp_path):
    with pytest.raises(ConfigError, match="needs verifiers"):
        Fleet()
    with pytest.raises(ConfigError, match="not a verifier's address"):
        Fleet(["http://a"])
    with pytest.raises(ConfigError, match="in the clear"):
        Fleet(["ws://10.0.0.1:8765"])
    with pytest.raises(ConfigError, match="cannot read"):
        Fleet(file=tmp_path / "none")


async def test_one_device_too_many_is_asked_to_come_back():
    limits = Limits(connections=1)
    async with fleet(ArithmeticBackend(), limits=Limits()) as (_, services):
        async with before([services[0].url], limits=limits) as gateway:
            async with greeted(gateway):
                with pytest.raises(InvalidStatus) as caught:
                    async with device(gateway):
                        pass
                assert caught.value.response.status_code == 503
