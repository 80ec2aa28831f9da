"""Tokens with limits of their own, slow and greedy devices."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest
from verifier_lab import (
    A,
    ArithmeticBackend,
    B,
    closed,
    continuation,
    device,
    get,
    greeted,
    serving,
    shown,
)
from websockets.exceptions import ConnectionClosed

from draftwire.errors import ConfigError
from draftwire.transport.messages import Block, Bye, Open, Opened, Resumed, Welcome
from draftwire.verifier.serving.accounts import (
    AHEAD_S,
    Account,
    Accounts,
    Usage,
    read_accounts,
)
from draftwire.verifier.serving.limits import Limits, prompt_limit


@pytest.fixture
def token_file(tmp_path):
    def write(text):
        path = tmp_path / "tokens"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def test_a_token_file_holds_tokens_and_their_limits(token_file):
    path = token_file(
        f"# who may connect\n\n{A}\n"
        f"{B} name=arm sessions=2 context=64 blocks_per_s=50 bytes_per_s=2e4 # hall 2\n"
        f"{'c' * 20}\n"
    )
    assert read_accounts(path) == (
        Account(A, "default"),
        Account(B, "arm", 2, 64, 50.0, 20000.0),
        Account("c" * 20, "line5"),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        ("short\n", "line 1: .* at least 16"),
        ("name=arm sessions=2\n", "line 1: .* at least 16"),
        (f"{A} session=2\n", "no limit 'session'"),
        (f"{A} {B}\n", "no limit 'bbbb"),
        (f"{A} sessions=0\n", "sessions=0 will not do"),
        (f"{A} sessions=2.5\n", "sessions=2.5 will not do"),
        (f"{A} context=1\n", "context=1"),
        (f"{A} bytes_per_s=nan\n", "bytes_per_s=nan"),
        (f"{A} blocks_per_s=-1\n", "blocks_per_s=-1"),
        (f"{A} blocks_per_s=\n", "blocks_per_s="),
        (f"{A} name=a/b\n", "name=a/b"),
        (f"{A} sessions=1 sessions=2\n", "sessions is there twice"),
        (f"{A}\n{A} name=b\n", "line 2: this token was there before"),
        (f"{A} name=x\n{B} name=x\n", "line 2: the name x is taken"),
        ("\u00e9" * 20, "cannot read"),
    ],
)
def test_a_wrong_line_is_named(token_file, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_accounts(token_file(text))


def test_every_token_of_the_file_opens_the_door_and_no_other():
    accounts = Accounts([Account(A, "a"), Account(B, "b")])
    assert accounts.find([f"Bearer {A}"]).account.name == "a"
    assert accounts.find([f"bearer {B}"]).account.name == "b"
    wrong = [], [f"Bearer {A}x"], [f"Basic {A}"], [f"Bearer {A}"] * 2, [A], ["\ud800"]
    assert all(accounts.find(headers) is None for headers in wrong)


async def test_streams_context_and_connections_of_a_token_are_limited():
    accounts = Accounts([Account(A, "arm", sessions=1, context=20), Account(B, "b")])

    async with serving(accounts=accounts) as service:
        async with device(service, **shown(A)) as one, device(service, **shown(A)) as two:
            assert (await one.greet()).context == 20
            await two.greet()
            answer = await one.open([1] * 20, 5)
            assert (answer.code, answer.fatal) == ("request", False)
            assert isinstance(opened := await one.open([1], 5), Opened)
            answer = await two.open([1], 5)
            assert (answer.code, answer.fatal) == ("limit", False)
            assert "'arm'" in answer.message and answer.hint
            # its own stream it may take over, and somebody else is not concerned
            assert isinstance(await two.resume(opened, 0), Resumed)
            await two.say(Bye())
            assert await two.hear() == Bye(forwards=0)
            assert (await two.generate([4], 6))[0] == continuation([4], 6)
            async with device(service, **shown(B)) as other:
                assert (await other.greet()).context == 256
                assert (await other.generate([4], 6))[0] == continuation([4], 6)
        while service.connections:
            await asyncio.sleep(0.005)
        async with AsyncExitStack() as stack:
            for count in range(5):
                dev = await stack.enter_async_context(device(service, **shown(A)))
                answer = await dev.greet()
                assert isinstance(answer, Welcome) is (count < 4)
            assert (answer.code, answer.fatal) == ("limit", True)
            assert "'arm'" in answer.message
        auth = {"Authorization": f"Bearer {A}"}
        assert (
            'account_requests_running{account="arm"} 0'
            in (await get(service, "/metrics", **auth))[1]
        )


def test_rates_let_bursts_pass_make_the_sender_wait_and_then_refuse():
    usage = Usage(Account(A, "arm", blocks_per_s=10, bytes_per_s=1000))
    waits = [usage.pace(10, 1, now=5.0) for _ in range(25)]
    assert waits[:20] == [0.0] * 20  # two seconds' worth
    assert waits[20:] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert usage.pace(10, 1, now=6.0) == 0.0  # ten more are covered by now
    assert usage.pace(10, 0, now=6.0) == 0.0  # other messages are no blocks
    assert usage.paused_s == pytest.approx(1.5)
    with pytest.raises(Exception, match="'arm' has bytes_per_s=1000") as caught:
        usage.pace(int(1000 * (AHEAD_S + 3)), 0, now=6.0)
    assert caught.value.hint
    free = Usage(Account(A))
    assert [free.pace(1 << 23, 1, now=0.0) for _ in range(50)] == [0.0] * 50


async def test_who_runs_far_ahead_of_its_rate_is_shown_out():
    accounts = Accounts([Account(A, "arm", bytes_per_s=20)])

    async with serving(accounts=accounts) as service:
        async with device(service, **shown(A)) as dev:
            answer = await dev.greet(agent="x" * 1000)
            assert (answer.code, answer.fatal) == ("limit", True)
            assert "bytes_per_s=20" in answer.message
            await closed(dev, 1008)


async def test_a_greedy_neighbour_gets_its_share_and_no_more():
    """Shares are counted in forwards served, over rounds where everybody wants one."""
    backend = ArithmeticBackend(slots=4, context=4096)
    backend.gate = threading.Event()

    scheduler = {"max_tokens": 96, "chunk": 96, "max_batch": 2}
    limits = Limits(block=64)
    async with serving(backend, scheduler=scheduler, limits=limits) as service:

        async def polite(seed):
            async with greeted(service) as dev:
                prompt = [seed]
                text, _ = await dev.generate(prompt, 60, k=4, wrong_every=10**6)
                assert text == continuation(prompt, 60)

        async def greedy():
            async with greeted(service) as dev:
                await dev.open([9], 4000)
                epoch = at = 0
                while not stop.is_set():
                    # wrong on purpose and at once: the most work for the least text
                    await dev.say(Block(epoch, at, (1,) * 64))
                    commit = await dev.hear()
                    at += commit.accepted + 1
                    epoch += 1

        stop = asyncio.Event()
        flood = [asyncio.ensure_future(greedy()) for _ in range(1)]
        calm = [asyncio.ensure_future(polite(seed)) for seed in (1, 2, 3)]
        await asyncio.sleep(0.2)
        backend.gate.set()
        await asyncio.gather(*calm)
        stop.set()
        await asyncio.gather(*flood)
    served = [f for f in backend.sizes if any(rows for *_, rows in f)]
    last = max(i for i, f in enumerate(served) if any(rows == 5 for *_, rows in f))
    share = Counter()
    for forward in served[: last + 1]:
        for _, _, rows in forward:
            share["greedy" if rows == 65 else "polite"] += 1
    # Three polite devices of 12 rounds each: the greedy one may have a quarter of all
    # that was served, and what nobody else wanted at that moment.
    assert share["polite"] == 36
    assert share["greedy"] <= 2 * 12 + 4, share


async def test_a_device_that_reads_nothing_is_cut_off():
    async with serving(limits=Limits(send_s=0.3)) as service:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        raw.setblocking(False)
        async with greeted(service, sock=raw) as dev:
            (connection,) = service.connections
            ours = connection._socket.transport
            ours.set_write_buffer_limits(1024)
            ours = ours.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            dev.socket.transport.pause_reading()
            empty = Open((), "greedy", 0.0, 0, 1.0, 0, 5)  # refused with a sentence
            with suppress(ConnectionClosed):
                for _ in range(300):  # more than all buffers on the way hold
                    await dev.say(empty)
            while service.connections:
                await asyncio.sleep(0.01)
            dev.cut()
        async with greeted(service) as dev:
            assert (await dev.generate([4], 6))[0] == continuation([4], 6)


async def test_half_open_sockets_time_out():
    limits = Limits(hello_s=0.3, ping_s=0.2)
    async with serving(limits=limits) as service:
        port = int(service.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""  # no upgrade came
        writer.close()
        async with greeted(service) as dev:
            opened = await dev.open([1, 2], 9)
            dev.socket.transport.pause_reading()  # answers no ping, as a dead link
            while not len(service.kept):
                await asyncio.sleep(0.01)
            dev.cut()
        while service.connections:
            await asyncio.sleep(0.01)
        async with greeted(service) as dev:
            assert isinstance(await dev.resume(opened, 0), Resumed)


@pytest.mark.parametrize(("streams", "limit"), [(1, 2048), (5, 4096)])
async def test_evidence_that_waits_is_bounded(streams, limit):
    """That of one stream, and that of all of a connection together."""
    backend = ArithmeticBackend(slots=8)
    backend.gate = threading.Event()
    limits = Limits(message_bytes=2048, block=64)
    async with serving(backend, limits=limits) as service, greeted(service) as dev:
        for number in range(streams):
            await dev.say(Open((1, 2), "qs", 1.0, 0, 1.0, 7, 60), number)
            assert isinstance(await dev.hear(), Opened)
        for i in range(max(3, streams)):  # while the model is held
            await dev.say(Block(0, i // streams, (1,), bytes(1000)), i % streams)
        answer = await dev.hear()
        assert (answer.code, answer.fatal) == ("limit", True)
        assert f"the limit is {limit}" in answer.message
        backend.gate.set()


async def test_a_prompt_of_millions_is_not_read():
    async with serving() as service, greeted(service) as dev:
        answer = await dev.open([1] * (prompt_limit(256) + 1), 5)
        assert (answer.code, answer.fatal) == ("protocol", True)


async def test_the_memory_of_a_device_is_stated():
    limits = Limits(message_bytes=1 << 20)
    alone = dataclasses.replace(limits, streams=1).session_bytes(2048)
    assert 6 << 20 < alone < 7 << 20
    # Frames and evidence are of a connection; each further stream adds its text.
    assert limits.session_bytes(2048) == alone + 15 * 44 * 2048

    async with serving(limits=limits) as service:
        page = (await get(service, "/metrics"))[1]
        assert "connection_bytes_limit{model_name=" in page
        assert f" {limits.session_bytes(256)}" in page
