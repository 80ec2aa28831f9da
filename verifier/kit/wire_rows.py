"""Rows: connections, frames and greetings (PROTOCOL.md, sections 1 to 4.1, 5 and 7)."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Callable
from urllib.parse import urlsplit, urlunsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from draftwire.io import parse_json
from draftwire.transport.bits import varint
from draftwire.transport.codec import MAX_FRAME, MAX_STREAM, SUBPROTOCOL, Codec
from draftwire.transport.dial import web
from draftwire.transport.messages import Block, Bye, Commit, Error, Opened, Welcome
from draftwire.verifier.kit.peer import Kit, Peer
from draftwire.verifier.kit.rows import (
    Failed,
    NotTested,
    Table,
    about,
    expect,
    must_be,
    needs,
)

ROWS = Table()
N = 12  # tokens of a text


# ---- 1 connection


@ROWS.row("1", "subprotocol")
async def _(kit: Kit) -> None:
    async with kit.peer(subprotocols=["chat", SUBPROTOCOL]) as peer:
        found = peer.socket.subprotocol
        expect(found == SUBPROTOCOL, f"the subprotocol is {found!r}")
    for offered in (["chat"], ["draftwire.v1"]):
        try:
            async with kit.peer(subprotocols=offered):
                raise Failed(f"it upgrades a device that offers {offered}")
        except InvalidStatus as error:
            answer = error.response
            expect(answer.status_code == 426, f"HTTP {answer.status_code}, not 426")
            kind = answer.headers.get("Content-Type", "nothing")
            expect(kind.startswith("text/plain"), f"{kind} with 426, not text/plain")
            expect(answer.body, "no sentence with 426")


@ROWS.row("1", "any path and query")
async def _(kit: Kit) -> None:
    url = urlsplit(kit.url)
    other = urlunsplit((*url[:2], "/a/path", "of=the+kit", ""))
    try:
        async with kit.peer(other) as peer:
            must_be(Welcome, await peer.greet())
    except InvalidHandshake as error:
        raise Failed(f"not served at {other}: {error}") from None


@ROWS.row("1", "no extensions")
async def _(kit: Kit) -> None:
    async with kit.peer(compression="deflate") as peer:
        headers = peer.socket.response.headers
        expect("Sec-WebSocket-Extensions" not in headers, "it takes permessage-deflate")


@ROWS.row("1", "token")
async def _(kit: Kit) -> None:
    if kit.token is None:
        raise NotTested("no token was given: loopback without one")
    for token in (None, "wrong" + kit.token, kit.token[:-1]):
        try:
            async with kit.peer(additional_headers=kit.headers(token)):
                raise Failed("it lets a wrong token in")
        except InvalidStatus as error:
            status = error.response.status_code
            expect(status == 401, f"HTTP {status} for a wrong token, not 401")


@ROWS.row("1", "health without a token")
async def _(kit: Kit) -> None:
    expect("status" in await _health(kit, None), "it says no status")
    found = set(await _health(kit, kit.token))
    expect({"status", "draftwire", "targets"} <= found, f"it says {sorted(found)}")


async def _health(kit: Kit, token: str | None) -> dict[str, Any]:
    def fetch() -> tuple[int, bytes]:
        url = urlsplit(kit.url)
        where = urlunsplit(
            (url.scheme.replace("ws", "http"), url.netloc, "healthz", "", "")
        )
        request = urllib.request.Request(where, headers=kit.headers(token))
        try:
            with web(url.hostname or "", kit.tls).open(request, timeout=10) as answer:
                return int(answer.status), answer.read(1 << 20)
        except urllib.error.HTTPError as error:
            return error.code, b"{}"

    status, body = await asyncio.get_running_loop().run_in_executor(None, fetch)
    expect(status == 200, f"/healthz answers {status}")
    try:
        return dict(parse_json(body))
    except (ValueError, TypeError):
        raise Failed("/healthz answers without JSON") from None


@ROWS.greeted("1", "text frame")
async def _(kit: Kit, peer: Peer) -> None:
    await peer.send("hello")
    await peer.refused("protocol", close=1002)


# ---- 2, 3 numbers and frames: each ends the connection


def _filled(codec: Codec, word: int) -> bytes:
    """Return a block of one token whose bits are those of ``word``."""
    return b"\x05\x00\x00\x01" + word.to_bytes((codec.bits + 7) // 8, "little")


def _outside(codec: Codec) -> bytes:
    if codec.vocab_size == 1 << codec.bits:
        return b"\x05\x00\x80\x00\x00"
    return _filled(codec, (1 << codec.bits) - 1)


def _spare(codec: Codec) -> bytes:
    return _filled(codec, 1 << codec.bits) if codec.bits % 8 else b"\x05\x00\x80\x00\x00"


_INVALID: tuple[tuple[str, str, tuple[bytes | Callable[[Codec], bytes], ...]], ...] = (
    ("2", "numbers", (b"\x05\x00\x80\x00\x00", b"\x05\x00" + b"\xff" * 10 + b"\x01\x00")),
    ("2", "ids outside the vocabulary, spare bits", (_outside, _spare)),
    ("3", "frames of no kind", (b"", b"\x00", b"\x0d", b"\x0e\x00", b"\x0f\x10")),
    ("3", "frames cut short", (b"\5", b"\5\0\0\5\0", b"\3\3", b"\x0b\2\x7f")),
    ("3", "flags that nobody has named", (b"\x1b", b"\x2a\x03\x01\x01", b"\x13")),
    ("3", "stream numbers", (b"\xc5\x02\x00\x00\x00", b"\xc5\xff\xff\x7f\x00\x00\x00")),
    ("3", "fields twice or too long", (b"\x0b\2\1\0\2\1\0", b"\x0b\2\2\0\0")),
    ("3", "fields that must be understood", (b"\x0b" + varint(1999) + b"\x00",)),
    (
        "3",
        "messages of the other way",
        (lambda codec: codec.encode(Commit(0, 0, 1)), lambda codec: codec.encode(Opened())),
    ),
)


async def _invalid(kit: Kit, frames: tuple[Any, ...]) -> None:
    for made in frames:
        async with kit.greeted() as peer:
            frame = made(peer.codec) if callable(made) else made
            await peer.open(kit.request(N))
            await peer.send(frame)
            with about(frame.hex() or "an empty frame"):
                await peer.refused("protocol", close=1002)


for section, name, frames in _INVALID:
    ROWS.row(section, name, frames)(_invalid)


@ROWS.row("3", "fields that may be skipped")
async def _(kit: Kit) -> None:
    unknown = varint(1998) + b"\x02xx"
    async with kit.peer() as peer:
        await peer.send(Codec().encode(kit.hello) + unknown)
        must_be(Welcome, await peer.hear(None))
    async with kit.greeted() as peer:
        await peer.send(peer.codec.encode(kit.request(N)) + unknown)
        must_be(Opened, await peer.hear())


# ---- 4 greetings


@ROWS.row("4", "hello comes first, and once")
async def _(kit: Kit) -> None:
    async with kit.peer() as peer:
        await peer.say(Bye())
        await peer.refused("protocol", close=1002)
    async with kit.greeted() as peer:
        await peer.say(kit.hello)
        await peer.refused("protocol", close=1002)


@ROWS.greeted("4", "welcome")
async def _(kit: Kit, peer: Peer) -> str:
    found = peer.welcome
    expect(found.tokenizer == kit.hello.tokenizer, "another tokenizer than the hello's")
    expect(found.vocab_size <= kit.hello.vocab_size, "a larger vocabulary than ours")
    expect(found.context >= 2, f"a context of {found.context}")
    expect(found.max_block >= 1, f"blocks of {found.max_block}")
    expect(found.room >= found.max_block, "less may wait than a block holds")
    expect("greedy" in found.schemes, "no scheme 'greedy'")
    named = found.noise or "coupled" not in found.schemes
    expect(named, "scheme 'coupled', and no noise profile of ours")
    expect(all(i < found.vocab_size for i in found.eos_ids), "an end id too large")
    expect(found.streams >= 1, "no streams")
    return (
        f"{found.target} {found.target_version}, vocabulary {found.vocab_size}, context "
        f"{found.context}, schemes {' '.join(found.schemes)}, numerics {found.numerics}"
    )


@ROWS.row("8", "capabilities and noise are negotiated")
async def _(kit: Kit) -> None:
    for offered in ((), ("teleport",), ("resume", "teleport")):
        async with kit.greeted(capabilities=offered, noise=("philox", "brown")) as peer:
            found = peer.welcome.capabilities
            expect(set(found) <= {*offered} - {"teleport"}, f"{found} for {offered}")
            noise = peer.welcome.noise
            expect({*noise} <= {"philox"}, f"noise {noise}; philox and brown were offered")


@ROWS.row("4.1", "smaller vocabulary, other backbone")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        size = peer.welcome.vocab_size - 1
    async with kit.greeted(vocab_size=size) as peer:
        found = peer.welcome.vocab_size
        expect(found == size, f"a vocabulary of {found} for a device with {size}")
    async with kit.greeted(backbone=b"\x5a" * 32) as peer:
        compatible = peer.welcome.compatibility
        expect(compatible == "tokenizer", f"compatibility {compatible!r}")


@ROWS.row("5", "error tokenizer", "tokenizer", {"tokenizer": b"\x5a" * 32})
@ROWS.row("5", "error target", "target", {"target": "no-such-target"})
async def _refuses(kit: Kit, code: str, changes: dict[str, Any]) -> None:
    async with kit.peer() as peer:
        await peer.say(replace(kit.hello, **changes))
        await peer.refused(code, close=1008)


# ---- 5 errors of streams, 7 limits


@ROWS.greeted("5", "error request")
async def _(kit: Kit, peer: Peer) -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"scheme": "no-such-scheme"},
        {"prompt": (1,) * peer.welcome.context},
        {"prompt": ()},
        {"max_new_tokens": 0},
        {"scheme": "greedy", "temperature": -1.0},
        {"scheme": "greedy", "temperature": 1.0},
        {"scheme": "coupled", "temperature": 0.0},
        {"scheme": "coupled", "temperature": 101.0},
        {"scheme": "coupled", "temperature": 1.0, "top_p": 0.0},
        {"scheme": "coupled", "temperature": 1.0, "noise": "brown"},
    )
    await peer.refuses({str(c)[:80]: kit.request(N, **c) for c in wrong})
    await peer.open(kit.request(N), 1)  # connection and number have stayed usable


@ROWS.greeted("7", "more streams than it says")
async def _(kit: Kit, peer: Peer) -> str:
    most = peer.welcome.streams
    needs(most <= min(64, MAX_STREAM), f"{most} streams are allowed")
    for number in range(most):
        await peer.say(kit.request(N), number)
        answer = await peer.hear(number)
        if isinstance(answer, Error):
            expect(answer.code in ("busy", "limit"), f"error {answer.code!r}")
            raise NotTested(f"it had no room for {number + 1} streams")
    await peer.say(kit.request(N), most)
    await peer.refused("limit", most)
    return f"{most} streams"


@ROWS.greeted("7", "blocks above max_block")
async def _(kit: Kit, peer: Peer) -> None:
    most = peer.welcome.max_block
    needs(most < 255, "blocks of 255 are allowed")
    stream = await peer.open(kit.request(N))
    await stream.send(Block(0, 0, (0,) * (most + 1)))
    await peer.refused("protocol limit", close=0)


@ROWS.greeted("7", "more waiting drafts than max_waiting")
async def _(kit: Kit, peer: Peer) -> None:
    most, base = peer.welcome.room, 0
    stream = await peer.open(kit.request(most + 8))
    while base <= most:  # one block in pieces: nothing of it is judged
        count = min(peer.block, most + 1 - base)
        await stream.send(Block(0, base, (0,) * count, more=True))
        base += count
    await peer.refused("protocol limit")


@ROWS.greeted("7", "frame too long")
async def _(kit: Kit, peer: Peer) -> None:
    await peer.send(bytes(MAX_FRAME + 1))
    try:
        answer = await asyncio.wait_for(peer.socket.recv(), kit.patience_s)
    except ConnectionClosed as error:
        code = error.rcvd.code if error.rcvd else 1009
        expect(code in (1002, 1008, 1009), f"close code {code}")
    except asyncio.TimeoutError:
        raise Failed("it takes a frame above 8 MiB") from None
    else:
        found = peer.codec.decode(answer).message
        expect(isinstance(found, Error) and found.fatal, "no fatal error")


@ROWS.row("5", "error busy")
async def _(kit: Kit) -> str:
    needs(kit.exhaust, "takes every slot: only with --exhaust")
    async with AsyncExitStack() as stack:
        held: list[tuple[Peer, int]] = []
        for _ in range(64):
            peer = await stack.enter_async_context(kit.greeted())
            for number in range(min(peer.welcome.streams, 16)):
                await peer.say(kit.request(N), number)
                answer = await peer.hear(number)
                if not isinstance(answer, Error):
                    held.append((peer, number))
                    continue
                expect(answer.code in ("busy", "limit"), f"error {answer.code!r}")
                first, its = held[0]
                await first.say(Bye(), its)
                for _ in range(200):
                    await peer.say(kit.request(N), number)
                    if isinstance(await peer.hear(number), Opened):
                        return f"after {len(held)} streams"
                    await asyncio.sleep(0.02)
                raise Failed("still busy after a stream has ended")
    raise NotTested(f"{len(held)} streams, and not busy")


@ROWS.row("5", "errors draining, internal and version")
async def _(kit: Kit) -> None:
    raise NotTested("cannot be provoked from outside")
