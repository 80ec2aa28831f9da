"""A device in a few lines, and the verifier's shipped parts on a real engine."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

from draftwire.clock import LoopClock
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Hello, Open, Welcome
from draftwire.verifier.dialogue import Dialogue
from draftwire.verifier.greeting import welcome_to
from draftwire.verifier.kit.peer import Kit, Peer
from draftwire.verifier.registry import Served
from draftwire.verifier.scheduler import Feeder
from draftwire.verifier.serving.accounts import Account, Usage
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.streams import KeptStreams, Terms

LAWS = {
    "greedy": dict(scheme="greedy", temperature=0.0),
    "coupled": dict(scheme="coupled", temperature=0.8),
    "top-k/p": dict(scheme="coupled", temperature=0.8, top_k=40, top_p=0.95),
}


def request_of(prompt, law, count, seed, race=False):
    fields = {"top_k": 0, "top_p": 1.0, **LAWS[law], "seed": seed, "stop_ids": ()}
    objective = "latency" if race else "cost"
    return Open(tuple(prompt), max_new_tokens=count, objective=objective, **fields)


class Verifier:
    """The shipped streams, dialogues and codec, without a socket."""

    def __init__(self, *backends):
        clock = LoopClock(asyncio.get_running_loop())
        self.served = {
            b.version: Served(b, Feeder(b, clock), frozenset()) for b in backends
        }
        self.limits = Limits(streams=64)
        self.kept = KeptStreams(self.limits, clock.now)
        self.usage = Usage(Account("", "everyone"))

    def attach(self, served):
        return Device(self, served)


class Socket:
    """A websocket's place, in memory: a dialogue is at its other end."""

    def __init__(self, kept, terms):
        self.codec, self.frames = Codec(), asyncio.Queue()
        ends = dict.fromkeys(("close", "abort"), lambda *_: None)
        peer = SimpleNamespace(send=self.put, **ends)
        self.dialogue = Dialogue(kept, lambda hello: terms, peer)
        self.transport = SimpleNamespace(abort=self.dialogue.lost)

    def put(self, message, stream=0):
        self.frames.put_nowait(self.codec.encode(message, stream))
        if isinstance(message, Welcome):
            self.codec = Codec.of(message)

    async def send(self, data):
        frame = self.codec.decode(data)
        self.dialogue.take(frame.message, frame.stream)

    async def recv(self):
        return await self.frames.get()


class Device:
    """The kit's device, without a socket: it drafts what it is told to."""

    def __init__(self, verifier, served):
        backend, family = served.backend, served.backend.family
        names = "test", "", bytes.fromhex(family.tokenizer), b"", backend.vocab_size, b""
        hello = Hello(*names, family.name, ("resume",))
        welcome = welcome_to(hello, served, verifier.limits)
        self.terms = Terms(served, verifier.usage, welcome)
        self.kept, self.kit = verifier.kept, Kit("", hello, patience_s=300.0)
        self.forwards = 0

    async def connect(self):
        peer = Peer(Socket(self.kept, self.terms), self.kit)
        assert isinstance(await peer.greet(), Welcome)
        return peer

    async def write(self, request, oracle, k=6, race=False, cut_at=None):
        """Return the text of ``request`` with drafts of ``oracle(text, k)``."""
        peer = await self.connect()
        stream, end = await peer.open(request), 0  # where the text stands with its drafts
        while not stream.finish:
            at, epoch = len(stream.text), stream.epoch
            if not stream.ahead and (race or end <= at):
                drafts = oracle(stream.text, k) if oracle else []
                if drafts or not race:
                    end = at + max(1, len(drafts))
                    await stream.draft(drafts, race=race)
            await stream.commit()
            end = end if stream.epoch == epoch else 0
            if cut_at is not None and len(stream.text) >= cut_at and not stream.finish:
                cut_at, end = None, 0
                peer.cut()
                stream = await (await self.connect()).resume(stream)
        self.forwards = stream.forwards
        assert not self.kit.broken, self.kit.broken
        return stream.text


def oracle_of(text, kind, seed, vocab_size):
    """Return a drafter that knows the text, and errs as its kind says."""
    rng = random.Random(seed)

    def draft(so_far, k):
        found = text[len(so_far) : len(so_far) + k]
        if kind == "wrong":
            return [(t + 1) % vocab_size for t in found]
        if kind == "80 %":
            return [t if rng.random() < 0.8 else (t + 1) % vocab_size for t in found]
        return found

    return None if kind == "absent" else draft


async def together(jobs, most=16):
    """Await ``jobs``, so many at once."""
    gate = asyncio.Semaphore(most)

    async def one(job):
        async with gate:
            return await job

    return await asyncio.gather(*map(one, jobs))
