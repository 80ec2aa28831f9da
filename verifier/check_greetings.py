"""Conformance: connections, frames and greetings (PROTOCOL.md, sections 1 to 4.1)."""

from __future__ import annotations

import asyncio
import urllib.error
from dataclasses import replace
from typing import Callable
from urllib.parse import urlsplit

from websockets.exceptions import InvalidHandshake, InvalidStatus

from draftwire.transport.bits import varint
from draftwire.transport.codec import Codec
from draftwire.transport.dial import health_url, web
from draftwire.transport.messages import (
    Bye,
    Error,
    Welcome,
)
from draftwire.verifier.conformance import Failed, Kit, Skipped, Table, expect

__all__ = ["CHECKS"]

CHECKS = Table()
N = 12  # tokens of a text
QUIET_S = 0.25  # whoever judges half a block does so within this time


# ---- 1 connection


@CHECKS.check("1", "subprotocol")
async def _(kit: Kit) -> None:
    async with kit.peer() as peer:
        found = peer.socket.subprotocol
        expect(found == "draftwire.v2", f"the subprotocol is {found!r}")
    try:
        async with kit.peer(subprotocols=["chat"]) as peer:
            expect(peer.socket.subprotocol is None, "it agrees to speak 'chat'")
            answer = await peer.greet()
            expect(isinstance(answer, Error), "it greets without the subprotocol")
    except InvalidHandshake:
        pass


@CHECKS.check("1", "no extensions")
async def _(kit: Kit) -> None:
    async with kit.peer(compression="deflate") as peer:
        headers = peer.socket.response.headers
        expect("Sec-WebSocket-Extensions" not in headers, "it takes permessage-deflate")


@CHECKS.check("1", "token")
async def _(kit: Kit) -> None:
    if kit.token is None:
        raise Skipped("no token was given: loopback without one")
    for token in (None, "wrong" + kit.token, kit.token[:-1]):
        try:
            async with kit.peer(additional_headers=kit.headers(token)):
                raise Failed("it lets a wrong token in")
        except InvalidStatus as error:
            status = error.response.status_code
            expect(status == 401, f"HTTP {status} for a wrong token, not 401")


@CHECKS.check("1", "health without a token")
async def _(kit: Kit) -> None:
    def fetch() -> int:
        url = health_url(kit.url)
        try:
            host = urlsplit(url).hostname or ""
            with web(host, kit.tls).open(url, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    status = await asyncio.get_running_loop().run_in_executor(None, fetch)
    expect(status == 200, f"/healthz answers {status}")


@CHECKS.check("1", "text frame")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        await peer.send("hello")
        await peer.refused("protocol", close=1002)


# ---- 2, 3 numbers and frames


@CHECKS.check("2", "longer varint than needed")
async def _(kit: Kit) -> None:
    await _invalid(kit, lambda codec: b"\x05\x00\x80\x00\x00")


@CHECKS.check("2", "varint above 2^64")
async def _(kit: Kit) -> None:
    await _invalid(kit, lambda codec: b"\x05\x00" + b"\xff" * 10 + b"\x01\x00")


@CHECKS.check("2", "id outside the vocabulary")
async def _(kit: Kit) -> None:
    def frame(codec: Codec) -> bytes:
        if codec.vocab_size == 1 << codec.bits:
            raise Skipped("every id of that many bits is in the vocabulary")
        all_ones = (1 << codec.bits) - 1
        size = (codec.bits + 7) // 8
        return b"\x05\x00\x00\x01" + all_ones.to_bytes(size, "little")

    await _invalid(kit, frame)


@CHECKS.check("2", "spare bits")
async def _(kit: Kit) -> None:
    def frame(codec: Codec) -> bytes:
        if codec.bits % 8 == 0:
            raise Skipped("an id leaves no spare bits")
        size = (codec.bits + 7) // 8
        return b"\x05\x00\x00\x01" + (1 << codec.bits).to_bytes(size, "little")

    await _invalid(kit, frame)


@CHECKS.check("3", "frames of no kind")
async def _(kit: Kit) -> None:
    for frame in (b"", b"\x00", b"\x0f", b"\xfb"):
        await _invalid(kit, lambda codec, frame=frame: frame)  # type: ignore[misc]


@CHECKS.check("3", "frames cut short")
async def _(kit: Kit) -> None:
    for frame in (b"\x05", b"\x05\x00\x00\x05\x00", b"\x03\x03", b"\x0b\x02\x7f"):
        await _invalid(kit, lambda codec, frame=frame: frame)  # type: ignore[misc]


@CHECKS.check("3.1", "unknown field")
async def _(kit: Kit) -> None:
    hello = Codec().encode(kit.hello)
    async with kit.peer() as peer:
        await peer.send(hello + varint(999 << 1) + b"\x02xx")
        answer = await peer.hear()
        expect(isinstance(answer, Welcome), "it does not skip an unknown field")
    async with kit.peer() as peer:
        await peer.send(hello + varint(999 << 1 | 1) + b"\x02xx")
        await peer.refused("protocol", close=1002)


async def _invalid(kit: Kit, frame: Callable[[Codec], bytes]) -> None:
    async with kit.greeted() as peer:
        await peer.open(N)
        await peer.send(frame(peer.codec))
        await peer.refused("protocol", close=1002)


# ---- 4 greetings


@CHECKS.check("4", "hello comes first")
async def _(kit: Kit) -> None:
    async with kit.peer() as peer:
        await peer.say(Bye())
        await peer.refused("protocol", close=1002)


@CHECKS.check("4", "welcome")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        found = peer.welcome
        assert found is not None
        expect(found.version == 1, f"version {found.version}")
        expect(found.tokenizer == kit.hello.tokenizer, "another tokenizer than the hello's")
        expect(found.vocab_size <= kit.hello.vocab_size, "a larger vocabulary than ours")
        expect(found.context >= 2, f"a context of {found.context}")
        expect(found.max_block >= 1, f"blocks of {found.max_block}")
        expect("greedy" in found.schemes, "no scheme 'greedy'")
        expect(all(i < found.vocab_size for i in found.eos_ids), "an end id too large")
        expect(found.compatibility in ("family", "tokenizer"), found.compatibility)


@CHECKS.check("4", "capabilities")
async def _(kit: Kit) -> None:
    for offered in ((), ("teleport",)):
        async with kit.greeted(capabilities=offered) as peer:
            assert peer.welcome is not None
            found = peer.welcome.capabilities
            expect(not found, f"capabilities {' '.join(found)} that were not offered")


@CHECKS.check("4.1", "smaller vocabulary")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        assert peer.welcome is not None
        size = peer.welcome.vocab_size - 1
    async with kit.greeted(vocab_size=size) as peer:
        assert peer.welcome is not None
        found = peer.welcome.vocab_size
        expect(found == size, f"a vocabulary of {found} for a device with {size}")


@CHECKS.check("4.1", "other backbone")
async def _(kit: Kit) -> None:
    async with kit.greeted(backbone=b"\x5a" * 32) as peer:
        assert peer.welcome is not None
        found = peer.welcome.compatibility
        expect(found == "tokenizer", f"compatibility {found!r}")


@CHECKS.check("5", "error version")
async def _(kit: Kit) -> None:
    async with kit.peer() as peer:
        await peer.say(replace(kit.hello, versions=(200, 201)))
        await peer.refused("version", close=1002)


@CHECKS.check("5", "error tokenizer")
async def _(kit: Kit) -> None:
    async with kit.peer() as peer:
        await peer.say(replace(kit.hello, tokenizer=b"\x5a" * 32))
        await peer.refused("tokenizer", close=1008)


@CHECKS.check("5", "error target")
async def _(kit: Kit) -> None:
    async with kit.peer() as peer:
        await peer.say(replace(kit.hello, target="no-such-target"))
        await peer.refused("target", close=1008)
