"""A device in a few lines, and the verifier's shipped parts on a real engine."""

from __future__ import annotations

import asyncio
import random

from draftwire.clock import LoopClock
from draftwire.transport.codec import Codec
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Hello,
    Open,
    Opened,
    Resume,
    Resumed,
    Welcome,
)
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


class Device:
    """One stream of a device that drafts what it is told to, by PROTOCOL.md 4.2."""

    def __init__(self, verifier, served):
        backend, family = served.backend, served.backend.family
        names = "test", "", bytes.fromhex(family.tokenizer), b"", backend.vocab_size, b""
        self.hello = Hello(*names, family.name, ("resume",))
        welcome = welcome_to(self.hello, served, verifier.limits)
        self.terms = Terms(served, verifier.usage, welcome)
        self.kept, self.codec = verifier.kept, Codec(welcome.vocab_size)
        self.forwards = 0
        self.connect()

    def connect(self):
        self.heard = asyncio.Queue()  # what was on its way is lost
        self.dialogue = Dialogue(self.kept, lambda hello: self.terms, self)
        self.dialogue.take(self.hello, None)
        assert isinstance(self.heard.get_nowait(), Welcome)

    # -- the peer of a dialogue

    def send(self, message, stream=0):
        if not isinstance(message, Welcome):
            message = self.codec.decode(self.codec.encode(message, stream)).message
        self.heard.put_nowait(message)

    def close(self, *_):
        pass

    abort = close

    # -- the device

    def say(self, message):
        self.dialogue.take(self.codec.decode(self.codec.encode(message, 0)).message, 0)

    async def hear(self, kind):
        while True:
            message = await asyncio.wait_for(self.heard.get(), 300)
            assert not isinstance(message, Error), message
            if isinstance(message, kind):
                return message

    async def write(self, request, oracle, k=6, race=False, cut_at=None):
        """Return the text of ``request`` with drafts of ``oracle(text, k)``."""
        self.say(request)
        opened, text = await self.hear(Opened), []
        epoch, ahead, end = 0, [], 0  # drafts that were sent; where the text stands then
        while True:
            if not ahead and (race or end <= len(text)):
                ahead = oracle(text, k) if oracle else []
                if ahead or not race:
                    end = len(text) + max(1, len(ahead))
                    self.say(Block(epoch, len(text), tuple(ahead), race=race))
            commit = await self.hear(Commit)
            held = ahead if commit.epoch == epoch else []
            assert commit.accepted <= len(held)
            new = held[: commit.accepted] + [commit.token] * (commit.token is not None)
            if ahead[: len(new)] == new[: len(ahead)]:
                ahead = ahead[len(new) :]
            else:
                epoch, ahead, end = epoch + 1 & 0xFF, [], 0
            text += new
            self.forwards += 1
            if commit.forwards is not None:
                self.forwards = commit.forwards
            if commit.finish:
                return text
            if cut_at is not None and len(text) >= cut_at:
                cut_at = None
                self.dialogue.lost()
                self.connect()
                self.say(Resume(opened.id, opened.secret, len(text)))
                found = await self.hear(Resumed)
                text += found.tokens
                epoch, ahead, end = found.epoch, [], 0


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
