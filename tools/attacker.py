"""What hostile clients do to a verifier; a process of its own (:mod:`tools.peace`).

Raw sockets: what is sent here no library would send. Many addresses are played by those
of the loopback network. One line of JSON says what to do, one says what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any, Awaitable, Callable

from draftwire.packages import TargetPackage, load_target
from draftwire.transport.codec import SUBPROTOCOL, Codec
from draftwire.transport.messages import Block, Bye, Hello, Open, Welcome

PATIENCE_S = 20.0
_GONE = (OSError, EOFError, asyncio.TimeoutError)


def frame(opcode: int, payload: bytes = b"", *, last: bool = True) -> bytes:
    """Return a masked websocket frame of up to 125 bytes, or 64 KiB.

    Source: RFC 6455, section 5.2. A mask of zeros changes nothing.
    """
    n = len(payload)
    size = bytes([0x80 | n]) if n < 126 else b"\xfe" + n.to_bytes(2, "big")
    return bytes([opcode | (0x80 if last else 0)]) + size + bytes(4) + payload


class Enemy:
    """Hostile clients, for some seconds, of a verifier on loopback that serves a target,
    with a token that they may show.
    """

    def __init__(self, port: int, token: str, package: TargetPackage, seconds: float):
        self.port, self.token, self.package = port, token, package
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    @property
    def going(self) -> bool:
        """True while the attack lasts."""
        return time.monotonic() < self.end

    async def connect(
        self, number: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect from an address of one's own."""
        address = f"127.0.{2 + number // 200 % 200}.{1 + number % 200}"
        return await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0)),
            PATIENCE_S,
        )

    def request(self, token: str | None = None, path: str = "/") -> bytes:
        """Return an upgrade."""
        return (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
            f"Authorization: Bearer {token or self.token}\r\n\r\n"
        ).encode()

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> bytes:
        """Send a request; return the head of the answer."""
        writer.write(request)
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

    async def greeted(
        self, number: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Codec]:
        """Connect, upgrade and greet."""
        reader, writer = await self.connect(number)
        head = await self.answer(reader, writer, self.request())
        if b" 101 " not in head:
            writer.close()
            raise OSError(head.split(b"\r\n")[0].decode())
        family = self.package.family
        hello = Hello(
            "enemy",
            "",
            bytes.fromhex(family.tokenizer),
            bytes.fromhex(family.backbone or ""),
            self.package.vocab_size,
            capabilities=("resume",),
        )
        writer.write(frame(2, Codec().encode(hello)))
        found = Codec().decode(await self.hear(reader)).message
        if not isinstance(found, Welcome):
            raise OSError(str(found))
        return reader, writer, Codec(found.vocab_size)

    async def hear(self, reader: asyncio.StreamReader) -> bytes:
        """Return the payload of the next binary frame."""
        while True:
            head = await asyncio.wait_for(reader.readexactly(2), PATIENCE_S)
            size = head[1]
            if size > 125:
                wide = await reader.readexactly(2 if size == 126 else 8)
                size = int.from_bytes(wide, "big")
            payload = await reader.readexactly(size)
            if head[0] & 0x0F == 2:
                return payload

    def opening(self, codec: Codec, tokens: int = 64) -> bytes:
        """Return an open of stream 0."""
        prompt = tuple(3 + i % 200 for i in range(tokens))
        return frame(2, codec.encode(Open(prompt, "greedy", 0.0, 0, 1.0, 0, 64)))


async def _flood(enemy: Enemy, make: Callable[[Codec], bytes]) -> dict[str, Any]:
    """Send 1 MB/s of one frame, as far as the verifier reads it."""
    reader, writer, codec = await enemy.greeted()
    writer.write(enemy.opening(codec))

    async def discard() -> None:
        with contextlib.suppress(*_GONE):
            while await reader.read(1 << 16):
                pass

    heard = asyncio.ensure_future(discard())
    one = make(codec)
    burst = one * (20_000 // len(one))
    begun, sent = time.monotonic(), 0
    with contextlib.suppress(OSError):
        while enemy.going and not heard.done():
            due = 1e6 * (time.monotonic() - begun)
            if sent < due and writer.transport.get_write_buffer_size() < 1 << 18:
                writer.write(burst)
                sent += len(burst)
            await asyncio.sleep(0.005)
    sent -= writer.transport.get_write_buffer_size()
    cut = heard.done()
    writer.transport.abort()
    await heard
    return {"mb": round(sent / 1e6, 2), "frames": sent // len(one), "cut": cut}


_REFUSED = Open((), "greedy", 0.0, 0, 1.0, 0, 5)
FLOODS: dict[str, Callable[[Codec], bytes]] = {
    "ping": lambda codec: frame(9),
    "pong": lambda codec: frame(10),
    "bye of no stream": lambda codec: frame(2, codec.encode(Bye(), 7)),
    "block of a dead epoch": lambda codec: frame(2, codec.encode(Block(200, 0, ()))),
    "open that is refused": lambda codec: frame(2, codec.encode(_REFUSED, 9)),
}


async def _silent(enemy: Enemy) -> dict[str, Any]:
    """70 sockets say nothing, 200 send a byte of a request a second; all of one address."""
    dropped = 0

    async def one(number: int) -> None:
        nonlocal dropped
        request = enemy.request()
        while enemy.going:
            try:
                reader, writer = await enemy.connect()
                for i in range(len(request)):
                    if number >= 70:
                        writer.write(request[i : i + 1])
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(reader.read(1), 1.0)
                        raise EOFError  # closed, whatever it says
                    if not enemy.going:
                        break
            except _GONE:
                dropped += 1
                await asyncio.sleep(0.25)
            else:
                writer.close()

    await asyncio.gather(*(one(i) for i in range(270)))
    return {"dropped": dropped}


async def _half_open(enemy: Enemy) -> dict[str, Any]:
    """Greeted connections fall silent: they read nothing, and answer no ping."""
    held, refused = [], 0
    for i in range(80):
        try:
            found = await enemy.greeted(i)
            found[1].write(enemy.opening(found[2]))
            found[1].transport.pause_reading()  # type: ignore[attr-defined]
            held.append(found[1])
        except _GONE:
            refused += 1
    while enemy.going:
        await asyncio.sleep(0.1)
    for writer in held:
        writer.transport.abort()
    return {"held": len(held), "refused": refused}


async def _knocks(enemy: Enemy) -> dict[str, Any]:
    """Connect from one address as fast as it goes, and show wrong tokens."""
    counts: dict[str, int] = {}

    async def one() -> None:
        while enemy.going:
            what = "turned away"
            try:
                reader, writer = await enemy.connect()
                head = await enemy.answer(reader, writer, enemy.request("x" * 20))
                what = head.split()[1].decode()
                writer.close()
            except _GONE:
                await asyncio.sleep(0.001)
            counts[what] = counts.get(what, 0) + 1

    await asyncio.gather(*(one() for _ in range(8)))
    return counts


async def _abandoned(enemy: Enemy) -> dict[str, Any]:
    """1,000 streams are opened, and their links cut, as fast as one address may."""
    opened = 0

    async def one() -> None:
        nonlocal opened
        while opened < 1000:
            try:
                reader, writer, codec = await enemy.greeted()
                writer.write(enemy.opening(codec))
                payload = await enemy.hear(reader)
                opened += payload[0] & 0x0F == 4
                writer.transport.abort()
            except _GONE:
                await asyncio.sleep(0.25)

    await asyncio.gather(*(one() for _ in range(8)))
    return {"opened": opened}


async def _waiting(enemy: Enemy) -> dict[str, Any]:
    """200 devices wait for a place: each comes back when it was told to, with jitter."""
    tries: dict[str, int] = {}

    async def one(number: int) -> None:
        await asyncio.sleep(random.uniform(0, 2))
        while enemy.going:
            pause = 2.0
            what = "cut"
            with contextlib.suppress(*_GONE):
                reader, writer = await enemy.connect(number)
                head = await enemy.answer(reader, writer, enemy.request())
                what = head.split()[1].decode()
                found = re.search(rb"Retry-After: (\d+)", head)
                pause = float(found[1]) if found else pause
                writer.close()
            tries[what] = tries.get(what, 0) + 1
            until = time.monotonic() + pause * random.uniform(1.0, 1.5)
            while enemy.going and time.monotonic() < until:
                await asyncio.sleep(0.2)

    await asyncio.gather(*(one(i) for i in range(200)))
    return tries


async def _descriptors(enemy: Enemy) -> dict[str, Any]:
    """Open sockets until there are no file descriptors left, and hold them."""
    held: list[asyncio.StreamWriter] = []
    while enemy.going:
        with contextlib.suppress(*_GONE):
            held.append((await enemy.connect(len(held)))[1])
        await asyncio.sleep(0.002 if len(held) < 400 else 0.05)
        if len(held) >= 400:  # those that were dropped come again
            held[len(held) % 397].close()
            held.pop(len(held) % 397)
    for writer in held:
        writer.close()
    return {"sockets": len(held)}


ATTACKS: dict[str, Callable[[Enemy], Awaitable[dict[str, Any]]]] = {
    **{
        f"flood: {name}": lambda enemy, make=make: _flood(enemy, make)  # type: ignore[misc]
        for name, make in FLOODS.items()
    },
    "silent and slow sockets": _silent,
    "half-open connections": _half_open,
    "connections with wrong tokens": _knocks,
    "1,000 abandoned streams": _abandoned,
    "200 waiting devices": _waiting,
    "no file descriptors": _descriptors,
}


def main() -> None:
    """Attack as each line of stdin says."""
    for line in sys.stdin:
        wanted = json.loads(line)
        package = load_target(Path(wanted["target"]))
        enemy = Enemy(wanted["port"], wanted["token"], package, wanted["seconds"])

        async def attack(name: str = wanted["attack"], enemy: Enemy = enemy) -> Any:
            return await ATTACKS[name](enemy)

        try:
            found = asyncio.run(attack())
        except _GONE as error:
            found = {"failed": str(error)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
