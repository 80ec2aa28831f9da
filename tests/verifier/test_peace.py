"""Peace between clients: what one of them does to the verifier is felt by nobody else."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from contextlib import AsyncExitStack

import pytest
from verifier_lab import (
    A,
    ArithmeticBackend,
    B,
    C,
    continuation,
    device,
    get,
    greeted,
    serving,
    shown,
    two_accounts,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from draftwire.errors import RefusedError
from draftwire.transport.codec import SUBPROTOCOL
from draftwire.transport.messages import Block, Bye, Error, Opened, Welcome
from draftwire.verifier.serving.accounts import WAITS_S, Account, Accounts
from draftwire.verifier.serving.door import Lobby, open_doors
from draftwire.verifier.serving.intake import TURN_BYTES, TURN_FRAMES, Intake, Reader
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.process import Brief


def port_of(service):
    return int(service.url.rpartition(":")[2])


def raw(service, data=b""):
    sock = socket.create_connection(("127.0.0.1", port_of(service)), 10)
    sock.sendall(data)
    return sock


def masked(opcode, payload=b"", fin=True):
    """Return a frame of a client."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=True)


# ---- reading


class Ear(Reader):
    """A reader without a socket: it notes what reaches the parser."""

    def __init__(self, limits):
        self.loop = asyncio.get_running_loop()
        self.got = []
        self.request = object()
        self.paused = False
        self.transport = self
        intake = Intake(limits)
        ours = {"_intake": intake, "account_usage": None, "queued": False}
        for name, value in ours.items():
            setattr(self, name, value)
        self._start(limits)

    def pause_reading(self):
        pass

    resume_reading = abort = is_closing = pause_reading

    def parse(self, data):
        self.got.append(data)


async def test_a_turn_is_few_frames_or_a_part_of_a_large_one():
    ear = Ear(Limits())
    small, large = masked(9, b"x"), masked(2, bytes(3 * TURN_BYTES))
    tail = masked(10, b"")
    stream = small * 20 + large + tail
    for at in range(0, len(stream), 1000):  # however it comes
        ear.data_received(stream[at : at + 1000])
        await asyncio.sleep(0)
    while sum(map(len, ear.got)) < len(stream):
        await asyncio.sleep(0.001)
    assert b"".join(ear.got) == stream
    assert max(map(len, ear.got)) <= TURN_BYTES
    whole = Ear(Limits())
    whole.data_received(stream)
    whole.turn()
    assert whole.got == [small * TURN_FRAMES]


async def test_every_frame_counts_and_what_is_over_the_budget_is_not_read():
    limits = Limits(frames_per_s=100)
    for frame in (masked(9), masked(10), masked(2, b"b"), masked(0, b"", fin=False)):
        ear = Ear(limits)
        ear.data_received(frame * 1000)
        for _ in range(200):
            ear.turn()
        read = sum(map(len, ear.got)) // len(frame)
        assert 50 <= read <= 50 + TURN_FRAMES


@pytest.mark.parametrize("kind", ["bye", "dead epoch", "ping", "text of pongs"])
async def test_a_flood_leaves_the_neighbour_its_rounds(kind):
    """Frames read are counted, not seconds: the flood is held to its budget."""

    limits = Limits(frames_per_s=200)
    async with serving(limits=limits) as service:
        async with greeted(service, ping_interval=None) as flood, greeted(service) as calm:
            assert isinstance(await flood.open([1, 2], 50), Opened)
            frame = {
                "bye": masked(2, flood.codec.encode(Bye(), 7)),
                "dead epoch": masked(2, flood.codec.encode(Block(200, 0, ()))),
                "ping": masked(9),
                "text of pongs": masked(10, b"x" * 100),
            }[kind]
            loop = asyncio.get_running_loop()
            begin = loop.time()
            flood.socket.transport.write(frame * 100_000)
            (reader,) = (
                c._socket
                for c in service.connections
                if c._socket.remote_address == flood.socket.local_address
            )
            for seed in range(5):
                text, _ = await calm.generate([seed + 3], 40, stream=seed % 2)
                assert text == continuation([seed + 3], 40)
            assert isinstance(reader, Reader)
            budget = 200 * (loop.time() - begin) + 100 + 2 * TURN_FRAMES
            assert reader.frames <= budget
            flood.cut()


async def test_a_message_of_endless_fragments_ends():
    async with serving(limits=Limits(frames_per_s=1 << 20)) as service:
        async with greeted(service) as dev:
            dev.socket.transport.write(masked(2, b"", fin=False))
            dev.socket.transport.write(masked(0, b"", fin=False) * 5000)
            with pytest.raises(ConnectionClosed):
                await dev.hear()


async def test_answers_to_pings_do_not_pile_up():
    async with serving(limits=Limits(frames_per_s=1 << 20, send_s=60)) as service:
        async with greeted(service, ping_interval=None) as dev:
            (connection,) = service.connections
            dev.socket.transport.pause_reading()
            for _ in range(200):
                dev.socket.transport.write(masked(9, b"x" * 125) * 400)
                await asyncio.sleep(0.002)
            waiting = connection._socket.transport.get_write_buffer_size()
            assert waiting < 1 << 17
            dev.cut()


# ---- the door


async def test_silent_sockets_lock_nobody_out():
    limits = Limits(connections=8, strangers=8, knocks_per_s=1000)
    async with serving(limits=limits) as service, AsyncExitStack() as stack:
        for _ in range(70):
            stack.enter_context(raw(service))
        for _ in range(70):  # upgraded, and then not a word
            await asyncio.sleep(0)
            stack.enter_context(raw(service, upgrade(service)))
        await asyncio.sleep(0.05)
        assert service.lobby.strangers <= 8
        async with greeted(service) as dev:
            assert (await dev.generate([4], 6))[0] == continuation([4], 6)


def upgrade(service, **headers):
    lines = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port_of(service)}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_who_has_most_strangers_loses_its_oldest():
    lobby = Lobby(Limits(strangers=3, knocks_per_s=1000))
    pairs = [socket.socketpair() for _ in range(5)]
    doors = iter([(ours, (host, 1)) for (ours, _), host in zip(pairs, "aabac")])

    class Knocking:
        def take(self):
            return next(doors)

    for _ in pairs:
        lobby.accept(Knocking())
    gone = []
    for _, theirs in pairs:
        theirs.setblocking(False)
        try:
            gone.append(theirs.recv(1) == b"")
        except BlockingIOError:
            gone.append(False)
    assert gone == [True, True, False, False, False]
    for pair in pairs:
        for end in pair:
            end.close()
    lobby.close()


def test_an_address_that_knocks_too_often_waits_and_no_other():
    now = [0.0]
    lobby = Lobby(Limits(knocks_per_s=10), now=lambda: now[0])
    assert [lobby.knock("6.6.6.6") for _ in range(40)] == [0.0] * 40
    assert lobby.knock("6.6.6.6") == pytest.approx(0.1)
    assert lobby.knock("7.7.7.7") == 0.0
    lobby.missed("7.7.7.7")
    for _ in range(3):
        lobby.missed("7.7.7.7")
    assert lobby.knock("7.7.7.7", 0.0) > 0  # four guesses cost what forty knocks do
    now[0] = 10.0
    assert lobby.knock("6.6.6.6") == lobby.knock("7.7.7.7") == 0.0
    # a network of IPv6 is one owner's, and memory has an end
    for i in range(41):
        wait = lobby.knock(f"2001:db8:1:2::{i:x}")
    assert wait > 0
    for i in range(10_000):
        lobby.knock(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(lobby._rates) <= 4096
    lobby.close()


def test_a_fleet_is_asked_back_at_a_pace_and_not_at_once():
    now = [5.0]
    lobby = Lobby(Limits(), now=lambda: now[0])
    places = [lobby.return_s() for _ in range(200)]
    assert places[0] == 2.0 and places == sorted(places)
    assert places[-1] == pytest.approx(2.0 + 199 / 20)
    assert all(b - a == pytest.approx(0.05) for a, b in zip(places, places[1:]))
    assert max(lobby.return_s() for _ in range(10_000)) <= 60.0
    now[0] = 1000.0
    assert lobby.return_s() == 2.0
    lobby.close()


async def test_guesses_of_a_token_are_slowed_and_the_right_one_goes_on_elsewhere():
    limits = Limits(knocks_per_s=5)
    async with serving(accounts=Accounts.of("right"), limits=limits) as service:
        statuses = []
        for i in range(8):
            try:
                answer = await get(service, "/metrics", Authorization=f"Bearer {i}")
                statuses.append(answer[0])
            except OSError:  # turned away at the door
                statuses.append(0)
        assert statuses[:2] == [401, 401] and statuses[-1] in (0, 429)
        assert 401 not in statuses[4:]


async def test_a_full_verifier_says_when_to_come_back():
    limits = Limits(connections=1)
    async with serving(ArithmeticBackend(slots=1), limits=limits) as service:
        async with greeted(service) as first:
            assert isinstance(await first.open([1], 9), Opened)
            busy = await first.open([1], 9, stream=1)
            assert (busy.code, busy.fatal) == ("busy", False)
            assert 2000 <= busy.retry_after_ms <= 60_000
            with pytest.raises(InvalidStatus) as caught:
                async with device(service):
                    pass
            response = caught.value.response
            assert response.status_code == 503
            assert 2 <= int(response.headers["Retry-After"]) <= 61


async def test_descriptors_run_out_and_come_back(caplog):
    limits = Limits(knocks_per_s=1000, strangers=500)
    async with serving(limits=limits) as service, AsyncExitStack() as stack:
        async with greeted(service) as dev:
            assert isinstance(await dev.open([4], 30), Opened)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            clients = []
            for _ in range(60):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                clients.append(sock)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, hard))
            try:
                for sock in clients:
                    sock.connect_ex(("127.0.0.1", port_of(service)))
                await asyncio.sleep(0.2)
                text, _ = await dev.go_on([4], [], 0)
                assert text == continuation([4], 30)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert service.lobby.turned_away > 0
            for sock in clients:
                sock.close()
            async with device(service) as after:
                assert isinstance(await after.greet(), Welcome)
    assert "Traceback" not in caplog.text
    assert not [r for r in caplog.records if r.name == "asyncio"]


def test_one_port_for_every_address_of_a_name():
    lobby = Lobby(Limits())
    doors = open_doors("localhost", 0, lobby)
    assert len({door.getsockname()[1] for door in doors}) == 1
    for door in doors:
        door.close()
    lobby.close()


def test_repeated_lines_are_left_out_and_counted():
    brief = Brief()

    def line(text, at):
        record = logging.LogRecord("x", logging.ERROR, "", 0, text, None, None)
        record.created = at
        return brief.filter(record), record.msg

    assert sum(line("out of descriptors", 1.0)[0] for _ in range(5000)) == Brief.LINES
    assert line("something else", 1.0)[0]
    passed, text = line("out of descriptors", 20.0)
    assert passed and text == "out of descriptors (and 4990 lines left out)"


# ---- shares


def test_no_token_takes_what_is_others():
    accounts = Accounts([Account(A, "a"), Account(B, "b"), Account(C, "c", sessions=9)])
    a, b, c = accounts.all
    taken = {a: 0, b: 0, c: 0}

    def may(usage, now=0.0):
        if usage.may_have(16, taken.__getitem__, now):
            taken[usage] += 1
            return True
        return False

    assert sum(may(a) for _ in range(20)) == 14  # alone, all but the last two
    assert may(b) and may(b)
    taken[a] -= 1  # a text ends: its place is not a's again while b waits
    assert not may(a) and may(b)
    taken[a] -= 3
    assert sum(may(b) for _ in range(3)) == 3
    assert sum(may(c) for _ in range(9)) == 9  # what was promised is promised
    only = Accounts([Account(A)]).all[0]
    assert all(only.may_have(4, lambda usage: 3, 0.0) for _ in range(3))


async def test_a_share_of_slots_is_kept_free_for_others_on_the_wire():
    backend = ArithmeticBackend(slots=4)
    async with serving(backend, accounts=two_accounts()) as service:
        async with greeted(service, **shown(A)) as greedy:
            answers = [await greedy.open([1], 20, stream=i) for i in range(4)]
            assert [type(x) for x in answers] == [Opened] * 3 + [Error]
            assert answers[3].code == "busy" and answers[3].retry_after_ms >= 2000
            async with greeted(service, **shown(B)) as other:
                assert (await other.generate([4], 6))[0] == continuation([4], 6)


def test_share_of_who_waited_long_ago_is_free_again():
    a, b = two_accounts().all
    assert b.may_have(8, lambda usage: 0, 0.0)
    for now in (1.0, WAITS_S + 1):
        assert not a.may_have(8, {a: 7, b: 0}.__getitem__, now)
    served = object()
    a.streams_of[served] = 7
    with pytest.raises(RefusedError, match="its share"):
        a.check_share(served, 8, 0.0)


# ---- browsers, names, secrets


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/x/healthz?y"])
async def test_pages_of_others_and_rebound_names_are_refused(path):
    origins, names = ("https://lab.example",), ("verifier.example",)
    async with serving(origins=origins, names=names) as service:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example"},
            {"Host": "localhost.evil.example"},
            {"Host": "127.0.0.1.evil.example"},
            {"Host": "a b"},
            {"Host": ""},
        ):
            status, body = await get(service, path, **headers)
            assert status == 403, headers
            assert "evil" in body or "null" in body or "name" in body
        for headers in (
            {"Origin": "https://lab.example"},
            {"Host": "verifier.example:443"},
            {"Host": "Verifier.Example."},
            {"Host": "localhost:1"},
            {"Host": "[::1]:8765"},
            {"Host": "192.168.0.7"},
        ):
            status, _ = await get(service, path, **headers)
            assert status == (400 if path == "/" else 200), headers
        with pytest.raises(InvalidStatus) as caught:
            async with device(service, origin="https://evil.example"):
                pass
        assert caught.value.response.status_code == 403


async def test_names_and_numbers_need_a_token_or_the_address_for_them():
    admin = ("127.0.0.1", 0)
    async with serving(accounts=Accounts.of("right"), admin=admin) as service:
        assert (await get(service, "/healthz")) == (200, '{"status": "ok"}\n')
        assert (await get(service, "/metrics"))[0] == 401

        class Inside:
            url = service.admin_url

        assert '"sum"' in (await get(Inside, "/healthz"))[1]
        assert "draftwire:connections" in (await get(Inside, "/metrics"))[1]
        assert (await get(Inside, "/"))[0] == 404
        assert (await get(Inside, "/metrics", Host="evil.example"))[0] == 403
        with pytest.raises(InvalidStatus):
            Inside.url = service.admin_url.replace("http", "ws")
            async with device(Inside, **shown("right")):
                pass


async def test_new_tokens_are_taken_and_revoked_ones_lose_their_streams():
    accounts = Accounts([Account(A, "a"), Account(B, "b", sessions=1)])

    async with serving(accounts=accounts) as service:
        async with device(service, **shown(A)) as one, device(
            service, **shown(A)
        ) as lost, device(service, **shown(B)) as two:
            for dev in (one, lost, two):
                await dev.greet()
            assert isinstance(await one.open([1], 20), Opened)
            await lost.open([1], 20)
            lost.cut()
            while not len(service.kept):
                await asyncio.sleep(0.005)
            service.renew([Account(B, "b", sessions=2), Account(C, "c")], None)
            answer = await one.hear()
            assert answer.fatal and "not valid any more" in answer.message
            assert not len(service.kept)
            assert service.accounts.all[0].streams == 0
            for stream in (0, 1):  # another limit holds at once
                assert isinstance(await two.open([1], 9, stream=stream), Opened)
        with pytest.raises(InvalidStatus):
            async with device(service, **shown(A)):
                pass
        async with device(service, **shown(C)) as new:
            assert isinstance(await new.greet(), Welcome)


# ---- many at once


def test_a_thousand_abandoned_streams_leave_nothing_behind():
    """Opened, and the link cut: what is kept is bounded, and the time of it too."""
    limits = Limits(parked=40, parked_bytes=1 << 20, knocks_per_s=1 << 20, resume_s=0.5)

    async def test():
        async with serving(ArithmeticBackend(slots=8), limits=limits) as service:
            kept, most = service.kept, 0

            async def one(worker):
                nonlocal most
                for number in range(125):
                    async with greeted(service) as dev:
                        answer = await dev.open([worker, number % 40, 3], 20)
                        assert isinstance(answer, Opened) or answer.code == "busy"
                        most = max(most, len(kept))
                        dev.cut()

            await asyncio.gather(*(one(worker) for worker in range(8)))
            assert kept.opened > 900
            while service.connections or len(kept):
                await asyncio.sleep(0.05)
            (served,) = service.registry.targets
            assert most <= limits.parked and not kept._known
            assert served.tally.slots == kept.slots(served) + kept.prefixes.slots(served)
            assert service.accounts.all[0].streams == 0
            async with greeted(service) as dev:
                assert (await dev.generate([4], 6))[0] == continuation([4], 6)

    asyncio.run(asyncio.wait_for(test(), 240))


# ---- HTTP fuzzed


async def test_headers_that_come_twice_are_no_reason_to_fail():
    """A library that gives one value of a header raises where there are two."""

    async with serving(accounts=Accounts.of("right")) as service:
        twice = [("X-Session-Id", "a" * 16), ("X-Session-Id", "b" * 16)]
        headers = [("Authorization", "Bearer right"), *twice]
        async with greeted(service, additional_headers=headers) as dev:
            assert (await dev.generate([4], 6))[0] == continuation([4], 6)
