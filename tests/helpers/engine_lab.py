"""A device in a few lines, and the verifier's shipped parts on a real engine."""

from __future__ import annotations

import asyncio
import random

from draftwire.clock import LoopClock
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Commit, Error, Hello, Open, Resume, Welcome
from draftwire.verifier.dialogue import Dialogue
from draftwire.verifier.greeting import welcome_to
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
    fields = dict(top_k=0, top_p=1.0, seed=seed)
    fields.update(LAWS[law])
    return Open(
        prompt=tuple(prompt),
        max_new_tokens=count,
        stop_ids=(),
        objective="latency" if race else "cost",
        **fields,
    )


class Wire:
    """What a device has sent and not been told of, by PROTOCOL.md 4.2."""

    def __init__(self):
        self.reset(0)

    def reset(self, epoch):
        self.epoch, self.tokens, self.end = epoch, [], 0

    def send(self, drafts, base):
        self.tokens += drafts
        self.end = base + max(1, len(drafts))

    def advance(self, commit):
        """Return what a commit adds to the text."""
        held = self.tokens if commit.epoch == self.epoch else []
        assert commit.accepted <= len(held)
        new = held[: commit.accepted] + [commit.token] * (commit.token is not None)
        if self.tokens[: len(new)] == new[: len(self.tokens)]:
            del self.tokens[: len(new)]
        else:
            self.reset(self.epoch + 1 & 0xFF)
        return new


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


class Device:
    """One stream of a device that drafts what it is told to."""

    def __init__(self, verifier, served):
        self.verifier, self.served = verifier, served
        self.heard = asyncio.Queue()
        self.codec = Codec()
        self.forwards = 0
        self.connect()

    def connect(self):
        backend = self.served.backend
        family = backend.family
        hello = Hello(
            "test",
            "",
            bytes.fromhex(family.tokenizer),
            b"",
            backend.vocab_size,
            b"",
            family.name,
            ("resume",),
        )
        welcome = welcome_to(hello, backend, self.verifier.limits)

        def greet(_):
            return Terms(self.served, self.verifier.usage, welcome)

        device = self

        class Peer:
            @staticmethod
            def send(message, stream=0):
                if not isinstance(message, Welcome):
                    frame = device.codec.encode(message, stream)
                    message = device.codec.decode(frame).message
                device.heard.put_nowait(message)

            close = abort = staticmethod(lambda *_: None)

        self.dialogue = Dialogue(self.verifier.kept, greet, Peer())
        self.dialogue.take(hello, None)
        welcome = self.heard.get_nowait()
        self.codec = Codec(welcome.vocab_size)

    def say(self, message):
        frame = self.codec.encode(message, 0)
        self.dialogue.take(self.codec.decode(frame).message, 0)

    async def hear(self):
        while True:
            message = await asyncio.wait_for(self.heard.get(), 300)
            assert not isinstance(message, Error), message
            if isinstance(message, Commit):
                return message

    async def write(self, request, oracle, k=6, race=False, cut_at=None):
        """Return the text of ``request`` with drafts of ``oracle(text, k)``."""
        wire, text = Wire(), []
        self.say(request)
        opened = await self.heard.get()
        assert not isinstance(opened, Error), opened
        while True:
            if not wire.tokens and (race or wire.end <= len(text)):
                drafts = oracle([*text, *wire.tokens], k) if oracle else []
                if drafts or not race:
                    base = len(text) + len(wire.tokens)
                    wire.send(drafts, base)
                    self.say(Block(wire.epoch, base, tuple(drafts), race=race))
            commit = await self.hear()
            new = wire.advance(commit)
            text += new
            self.forwards += 1
            if commit.forwards is not None:
                self.forwards = commit.forwards
            if commit.finish:
                return text
            if cut_at is not None and len(text) >= cut_at:
                cut_at = None
                self.dialogue.lost()
                while not self.heard.empty():
                    self.heard.get_nowait()
                self.connect()
                self.say(Resume(opened.id, opened.secret, len(text)))
                found = await self.heard.get()
                assert not isinstance(found, Error), found
                text += found.tokens
                wire.reset(found.epoch)


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
