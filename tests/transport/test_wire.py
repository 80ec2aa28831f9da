"""The wire against real sockets and servers that misbehave in every way we know."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_servers import (
    BINARY,
    CLOSE,
    CONT,
    FIN,
    GREETING,
    HANG,
    HELLO,
    PING,
    PONG,
    RST,
    TEXT,
    WELCOME,
    Seen,
    black_hole,
    frame,
    http,
    network,
    said,
    script,
    serving,
    upgrade,
)

from draftwire.errors import (
    BusyError,
    ConfigError,
    IncompatibleError,
    ProtocolError,
    RefusedError,
    TransportError,
    VerifierError,
)
from draftwire.transport.answers import clean, may_pass
from draftwire.transport.client import Connection
from draftwire.transport.codec import MAX_FRAME, Codec
from draftwire.transport.dial import health_url
from draftwire.transport.messages import Block, Bye, Commit, Error
from draftwire.transport.traffic import MASK, wire_size
from draftwire.transport.wire import WebsocketNetwork

BYE = said(Bye("deadline"))


async def outcome(handler, *, timeout_s: float = 10.0, **options):
    """Connect to a server; return the events once it is down."""
    async with serving(handler) as port:
        seen = Seen()
        network(port, **options).connect(HELLO, seen, timeout_s)
        assert seen.log == ""
        await seen.until("D")
        await asyncio.sleep(0.002)
        return seen


async def test_an_answer_to_what_came_with_a_close_is_not_sent():
    last = said(Commit(0, 0, 1), 256) + frame(CLOSE, struct.pack(">H", 1001))

    async with serving(script(*GREETING, last)) as port:
        seen, sizes = Seen(), []
        wire = network(port).connect(HELLO, seen, 10.0)

        def act(letter):
            if letter == "M":
                sizes.append(wire.send(Block(0, 1, (1,))))
                wire.ping()

        seen.act = act
        assert "1001" in str(await seen.until("D"))
        assert (seen.log, sizes) == ("UMD", [0])


def other(**changes: object) -> bytes:
    return said(dataclasses.replace(WELCOME, **changes))


def refuses(code: str, *, fatal: bool = True, message: str = "because") -> bytes:
    return said(Error(code, message, "do this", fatal))


NASTY = "no \x1b[31mred\x1b[0m\r\n\u202e" + "x" * 2000
PLAIN = "Content-Type: text/plain"
HTML = "Content-Type: text/html"
DATES = (
    "Date: Sat, 28 Nov 2026 10:00:00 GMT",
    "Retry-After: Sat, 28 Nov 2026 10:01:30 GMT",
)
# After these alone no other try may succeed.
FINAL = (
    "401, 403, 403 with escapes, an incompatible draft, another tokenizer, another version"
).split(", ")
CHUNKED, ENDLESS = "Transfer-Encoding: chunked", "Content-Length: 99999999999999999999"
PORTAL = [http(200, HTML, body=b"<html>sign in"), HANG]
EVIL = "Location: wss://evil.example/\x1b[2J"
TOMORROW = frame(BINARY, bytes((0x0A, 3, 1, 99, 4, 30 + 2)) + NASTY[:30].encode())
NINE = b"this speaks draftwire.v9"
TOO_LARGE = b"\x82\x7f" + struct.pack(">Q", MAX_FRAME + 1)
IN_PARTS = frame(BINARY, b"x", fin=False), b"\x00\x7f" + struct.pack(">Q", MAX_FRAME)
REFUSES, BROKE = "does not answer as a draftwire verifier", "broke the websocket protocol"
NO_PROTOCOL = "opened a websocket without the subprotocol draftwire.v2"
ANOTHER = "another version of the protocol (426): this speaks draftwire.v9"
# The error's class -> what happens -> words of its sentence.
KINDS = {
    RefusedError: {
        "401": ([http(401)], "refuses the token (401)"),
        "403": ([http(403, PLAIN, body=b"not you")], "(403): not you"),
        "403 with escapes": (
            [http(403, PLAIN, body=NASTY.encode())],
            "(403): no [31mred [0m xxx",
        ),
    },
    BusyError: {
        "408": ([http(408)], "(408)"),
        "425": ([http(425)], "(425)"),
        "429": ([http(429, "retry-after: 7")], "(429)"),
        "500": ([http(500)], "(500)"),
        "502 whose body never ends": (
            [http(502, CHUNKED, body=b"5\r\nhello"), HANG],
            "(502)",
        ),
        "503": ([http(503, *DATES)], "takes no new devices now (503)"),
        "504 of HTTP/1.0": ([http(504, version="1.0"), HANG], "(504)"),
        "an endless body": ([http(504, ENDLESS)], "(504)"),
        "busy": ([upgrade, refuses("busy")], "the verifier says: because"),
        "draining": ([upgrade, refuses("draining")], "because"),
        "limit": ([upgrade, refuses("limit")], "because"),
    },
    TransportError: {
        "404": ([http(404)], "status 404"),
        "407": ([http(407)], "status 407"),
        "a redirect": ([http(307, EVIL)], "redirects (307) to wss://evil.example/"),
        "a captive portal": (PORTAL, "answers with a page (200)"),
        "FIN": ([FIN], "dropped it (the upgrade)"),
        "RST": ([RST], "dropped it (the upgrade)"),
        "101 and FIN": ([upgrade, FIN], "dropped it (the greeting)"),
        "101, close and FIN": (
            [lambda r: upgrade(r) + frame(CLOSE, b"\x03\xe8bye"), FIN],
            "closed the connection (1000: bye)",
        ),
        "an empty close": ([upgrade, frame(CLOSE), FIN], "(1005)"),
        "a close with escapes": (
            [upgrade, frame(CLOSE, struct.pack(">H", 1011) + b"a\x1b[2Jb")],
            "(1011: a [2Jb)",
        ),
        "an error of tomorrow": ([upgrade, TOMORROW], "no [31mred [0m"),
        "FIN in mid-stream": ([*GREETING, BYE, FIN], "is gone"),
        "RST in mid-stream": ([*GREETING, BYE, RST], "is gone"),
    },
    ProtocolError: {
        "another service": ([b"SSH-2.0-x\r\n", HANG], "no HTTP"),
        "TLS": ([b"\x15\x03\x01\x00\x02\x02\x46", HANG], "no HTTP"),
        "endless headers": ([b"HTTP/1.1 101 x\r\n" + b"a: b\r\n" * 9999, HANG], "headers"),
        "a status that is none": ([b"HTTP/1.1 abc\r\n\r\n"], "abc"),
        "a wrong key": ([lambda _: upgrade(b"Sec-WebSocket-Key: x")], REFUSES),
        "no upgrade": ([http(101), HANG], "does not answer as"),
        "no subprotocol": ([lambda r: upgrade(r, None), HANG], NO_PROTOCOL),
        "another subprotocol": ([lambda r: upgrade(r, "x")], "x"),
        "a text frame": ([upgrade, frame(TEXT, b"hi")], "text frame"),
        "a garbage frame": ([upgrade, b"\xff" * 99, HANG], "websocket"),
        "a masked frame": ([upgrade, b"\x82\x81abcdx", HANG], BROKE),
        "an oversize frame": ([upgrade, TOO_LARGE, HANG], BROKE),
        "an oversize message": ([upgrade, *IN_PARTS, HANG], BROKE),
        "an unknown message": ([upgrade, frame(BINARY, b"\x0f")], "kind 15"),
        "an empty message": ([upgrade, frame(BINARY)], ""),
        "no welcome": ([upgrade, BYE], "Bye instead of a welcome"),
        "a vocabulary too large": ([upgrade, other(vocab_size=257)], "a vocabulary of 257"),
        "text in mid-stream": ([*GREETING, BYE, frame(TEXT, b"x")], "text frame"),
    },
    VerifierError: {"internal": ([upgrade, refuses("internal")], "because")},
    ConfigError: {"no such target": ([upgrade, refuses("target")], "because")},
    IncompatibleError: {
        "an incompatible draft": ([upgrade, refuses("tokenizer")], "because"),
        "another version": ([http(426, PLAIN, body=NINE)], ANOTHER),
        "another tokenizer": (
            [upgrade, other(tokenizer=b"u" * 32)],
            "the tokenizer of target 'tiny'",
        ),
    },
}
OUTCOMES = {
    name: (steps, kind, words)
    for kind, cases in KINDS.items()
    for name, (steps, words) in cases.items()
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_is_one_of_our_errors(name) -> None:
    steps, kind, words = OUTCOMES[name]
    seen = asyncio.run(outcome(script(*steps)))
    assert seen.log == ("UMD" if "mid-stream" in name else "D")
    error = seen.found[-1]
    assert type(error) is kind and may_pass(error) is (name not in FINAL)
    sentence = f"{error} {error.hint}"
    assert words in sentence
    assert sentence.isprintable() and len(str(error)) < 500


def test_a_busy_peer_may_say_when() -> None:
    for name, seconds in (("429", 7.0), ("503", 90.0), ("500", None)):
        seen = asyncio.run(outcome(script(*OUTCOMES[name][0])))
        assert seen.found[-1].retry_after_s == seconds


@pytest.mark.parametrize(
    ("steps", "doing"), [([HANG], "the upgrade"), ([upgrade, HANG], "the greeting")]
)
def test_a_silent_peer_is_given_up_in_time(steps, doing) -> None:
    seen = asyncio.run(outcome(script(*steps), timeout_s=0.1))
    assert seen.log == "D" and type(seen.found[0]) is TransportError
    assert f"within 0.1 s ({doing})" in str(seen.found[0])


async def test_a_connection_may_end_at_any_byte_of_the_greeting() -> None:
    whole = upgrade(b"Sec-WebSocket-Key: x") + said(WELCOME)
    for end in (FIN, RST):
        for size in range(0, len(whole), 3):

            def part(request: bytes, size: int = size) -> bytes:
                return (upgrade(request) + said(WELCOME))[:size]

            seen = await outcome(script(part, end))
            assert seen.log == "D" and type(seen.found[0]) is TransportError
            assert may_pass(seen.found[0])


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
async def test_frames_arrive_in_any_pieces(size) -> None:
    stream = said(WELCOME) + BYE + frame(PONG) + frame(BINARY, b"\x0b", fin=False)
    stream += frame(PING, b"?") + frame(CONT, b"")

    async def handler(reader, writer) -> None:
        data = upgrade(await reader.readuntil(b"\r\n\r\n")) + stream
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await asyncio.sleep(0)
        await reader.read()

    async with serving(handler) as port:
        seen = Seen()
        wire = network(port).connect(HELLO, seen, 10)
        await seen.until("M", 2)
        assert seen.log == "UMAM" and seen.found[1:] == [Bye("deadline"), None, Bye()]
        down = wire.meter.total
        assert (down.down_frames, down.down_payload) == (3, len(said(WELCOME)) + 4 - 1)
        wire.close()


async def test_bytes_are_counted_and_pings_answered_both_ways() -> None:
    heard = bytearray()
    handler = script(*GREETING, frame(PING, b"you?"), heard=heard)
    async with serving(handler) as port:
        seen = Seen()
        wire = network(port, token="secret").connect(HELLO, seen, 10)
        assert wire.send(Bye()) == 0  # not yet
        assert wire.ports == (0, 0)
        assert await seen.until("U") == WELCOME
        assert wire.ports[1] == port
        block = Block(0, 3, (1, 2, 3))
        payload = Codec(256).encode(block)
        size = wire.send(block)
        assert size == wire_size(len(payload), secure=False) + MASK
        hello = wire_size(len(Codec().encode(HELLO)), secure=False) + MASK
        assert wire.meter.total.up_wire == hello + size and wire.meter.total.up_frames == 2
        wire.ping()
        for ours in (bytes([0x80 | PONG, 0x84]), bytes([0x80 | PING, 0x80])):
            while ours not in heard:
                await asyncio.sleep(0.001)
        wire.close()
        assert wire.send(block) == 0 and wire.ports == (0, 0)
        wire.ping()
        wire.close()
        while bytes([0x80 | CLOSE, 0x82]) not in heard:
            await asyncio.sleep(0.001)
        assert seen.log == "U"


async def test_a_peer_that_does_not_read_delays_nobody() -> None:
    read = asyncio.Event()
    got = bytearray()

    async def handler(reader, writer) -> None:
        writer.write(upgrade(await reader.readuntil(b"\r\n\r\n")) + said(WELCOME))
        writer.transport.pause_reading()
        await read.wait()
        writer.transport.resume_reading()
        while True:
            got.extend(await reader.readexactly(1))
            got.extend(await reader.read(2**20))

    async with serving(handler) as port:
        seen, block = Seen(), Block(0, 0, (1,), evidence=b"x" * 2**20)
        wire = network(port).connect(HELLO, seen, 10)
        await seen.until("U")
        timers = []
        loop = asyncio.get_running_loop()
        for i in range(16):
            assert wire.send(block) > 2**20
            loop.call_later(0, timers.append, i)
        while len(timers) < 16:
            await asyncio.sleep(0)
        assert seen.log == "U" and not got
        read.set()
        while len(got) < 16 * 2**20:
            await asyncio.sleep(0.001)
        assert seen.log == "U"
        read.clear()
        for _ in range(64):  # four times what anybody may have in the outbox
            assert wire.send(block) > 0
        assert "does not read" in str(await seen.until("D"))


@pytest.mark.parametrize("after", ["look-up", "connecting", "upgrade", "greeting", "up"])
async def test_close_ends_every_phase_in_silence(after) -> None:
    waits = threading.Event()

    def slow(host: str, port: int):
        waits.wait(20)
        return [(socket.AF_INET, ("127.0.0.1", port))]

    steps = {"greeting": [upgrade, HANG], "up": [*GREETING, *[BYE] * 9, FIN]}
    options = {"resolver": slow} if after == "look-up" else {}
    with black_hole() as nowhere:
        async with serving(script(*steps.get(after, [HANG]))) as port:
            seen = Seen()
            where = nowhere if after == "connecting" else port
            wire = network(where, **options).connect(HELLO, seen, 0.05)
            if after == "up":
                seen.act = lambda letter: wire.close()
            await asyncio.sleep(0.02 if after != "up" else 0.1)
            wire.close()
            before = seen.log
            assert before in ("", "U"[: after == "up"])
            waits.set()
            await asyncio.sleep(0.06)
            assert seen.log == before


PIECES = st.sampled_from(
    [upgrade, said(WELCOME), BYE, frame(PONG), frame(PING), frame(TEXT, b"x"), b"\xff\x00"]
    + [
        frame(CLOSE),
        frame(BINARY),
        http(503),
        b"HT",
        said(Commit(0, 1, 2), 256),
        refuses("target"),
    ]
)


@settings(max_examples=80, deadline=None, database=None)
@given(
    greeted=st.booleans(),
    pieces=st.lists(PIECES, max_size=5),
    end=st.sampled_from([FIN, RST]),
    close_at=st.none() | st.integers(0, 3),
)
def test_one_end_and_nothing_after_it(greeted, pieces, end, close_at) -> None:
    async def use() -> None:
        steps = [*(GREETING if greeted else ()), *pieces, end]
        async with serving(script(*steps)) as port:
            seen = Seen()
            wire = network(port).connect(HELLO, seen, 10)
            closed = []

            def act(letter: str) -> None:
                if len(seen.log) - 1 == close_at:
                    wire.close()
                    closed.append(seen.log)

            seen.act = act
            while "D" not in seen.log and not closed:
                await asyncio.sleep(0.001)
            wire.close()
            await asyncio.sleep(0.005)
            pattern = r"(U[MA]*)?" if closed and "D" not in closed[0] else r"(U[MA]*)?D"
            assert re.fullmatch(pattern, seen.log), (seen.log, closed)
            assert not closed or seen.log == closed[0]

    asyncio.run(use())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "ws://verifier.example",
        "ws://127.0.0.1:99999",
        "ws://a..b",
        "ws://127.0.0.1/a b",
        "ws://127.0.0.1/a\r\nHost: b",
        "ws://127.0.0.1/?a\tb",
        "ws://127.0.0.1/#top",
        "ws://[::1]",
    ],
)
def test_what_the_user_can_mend_is_said_at_once(url) -> None:
    token = "two words" if "::1" in url else None
    loop = asyncio.new_event_loop()
    with pytest.raises(ConfigError):
        WebsocketNetwork(loop, url, token=token)
    before = threading.active_count()
    with pytest.raises(ConfigError):
        Connection(url, HELLO, token=token)
    assert threading.active_count() == before
    loop.close()


@pytest.mark.parametrize(
    ("url", "asked", "health"),
    [
        ("ws://127.0.0.1:1", "/", "http://127.0.0.1:1/healthz"),
        ("ws://127.0.0.1:1/", "/", "http://127.0.0.1:1/healthz"),
        ("wss://a.b/x/y?k=1&k=%20", "/x/y?k=1&k=%20", "https://a.b/x/y/healthz?k=1&k=%20"),
        ("ws://127.0.0.1/x/?", "/x/", "http://127.0.0.1/x/healthz"),
        ("ws://127.0.0.1?k=v", "/?k=v", "http://127.0.0.1/healthz?k=v"),
    ],
)
def test_path_and_query_are_the_proxys_business_and_no_message_shows_a_query(
    url, asked, health
) -> None:
    loop = asyncio.new_event_loop()
    network = WebsocketNetwork(loop, url)
    assert network.uri.resource_name == asked
    assert network.where == url.partition("?")[0]
    assert health_url(url) == health
    loop.close()


def test_clean() -> None:
    assert clean("a\x1b]0;x\x07 b\r\n\tc\u202e\u200bd\ud800") == "a ]0;x b c d"
    assert len(clean("x" * 10**6, 50)) == 50 and clean("x" * 10**6, 50).endswith("x…")
