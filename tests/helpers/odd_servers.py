"""Servers on loopback that do exactly what a test says, however wrong it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct

from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from draftwire.transport.codec import SUBPROTOCOL, Codec
from draftwire.transport.messages import Hello, Welcome
from draftwire.transport.wire import WebsocketNetwork

TOKENIZER = b"t" * 32
HELLO = Hello("test/1", "", TOKENIZER, b"", 256)
WELCOME = Welcome("v/1", "tiny", "v1", "f", TOKENIZER, b"", 256, 160, 8)
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

FIN, RST, HANG = "fin", "rst", "hang"  # steps of a script, beside bytes and callables


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A server's frame."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=False)


def said(message: object, vocab_size: int | None = None) -> bytes:
    """The frame of a message."""
    return frame(BINARY, Codec(vocab_size).encode(message))


def http(status: int, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """An answer; no length of the body unless a header says one."""
    lines = [f"HTTP/{version} {status} Whatever", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def upgrade(request: bytes, protocol: str | None = SUBPROTOCOL) -> bytes:
    """The right answer to ``request``."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request).group(1).decode()
    headers = ["Upgrade: websocket", "Connection: Upgrade"]
    headers.append(f"Sec-WebSocket-Accept: {accept_key(key)}")
    if protocol is not None:
        headers.append(f"Sec-WebSocket-Protocol: {protocol}")
    return http(101, *headers)


def network(port: int, **options: object) -> WebsocketNetwork:
    """The way to a port of this machine."""
    loop = asyncio.get_running_loop()
    return WebsocketNetwork(loop, f"ws://127.0.0.1:{port}", **options)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


GREETING = (upgrade, said(WELCOME))


class Seen:
    """Events of a connection: ``log`` holds letters, ``found`` what came with them.

    ``act`` may be set to what is called after each event with its letter.
    """

    def __init__(self) -> None:
        self.log, self.found = "", []
        self.act = lambda letter: None
        self._changed = asyncio.Event()

    def _note(self, letter, what):
        self.log += letter
        self.found.append(what)
        self._changed.set()
        self.act(letter)

    def up(self, welcome):
        self._note("U", welcome)

    def message(self, frame):
        self._note("M", frame.message)

    def alive(self):
        self._note("A", None)

    def down(self, error):
        self._note("D", error)

    async def until(self, letter, count=1):
        """Wait for the event; return what came with it."""
        while self.log.count(letter) < count:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 20)
        return self.found[self.log.rindex(letter)]


@contextlib.asynccontextmanager
async def serving(handler, **options):
    """Serve ``handler(reader, writer)``; gives the port."""
    tasks = []

    async def guarded(reader, writer):
        tasks.append(asyncio.current_task())
        try:
            await handler(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)


async def beside(handler, use):
    """Run ``use(url)``, which waits, in a thread, and serve ``handler`` meanwhile."""
    async with serving(handler) as port:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, use, f"ws://127.0.0.1:{port}")


def script(*steps, heard=None):
    """Make a handler that reads the request, then takes the ``steps`` in turn.

    Args:
        *steps: Bytes to send, a callable that makes them of the request, or how it ends.
        heard: Collects what the client says after its request.
    """

    async def handler(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")

        async def listen():
            while True:
                data = await reader.read(65536)
                if not data:
                    return
                if heard is not None:
                    heard.extend(data)

        listener = asyncio.ensure_future(listen())
        try:
            for step in steps:
                if step == FIN:
                    return
                if step == RST:
                    reset(writer)
                    return
                if step == HANG:
                    await asyncio.wait([listener])
                    return
                writer.write(step(request) if callable(step) else step)
                await writer.drain()
                await asyncio.sleep(0)
            await asyncio.wait([listener])
        finally:
            listener.cancel()

    return handler


@contextlib.contextmanager
def black_hole():
    """A port of loopback that never answers: what listens there has a full backlog."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
