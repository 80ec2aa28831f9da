"""A verifier over real loopback sockets with a target made of arithmetic, by hand."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import fields, replace

import numpy as np
import pytest
from cached_target import CachedTarget
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from draftwire.clock import LoopClock
from draftwire.errors import ModelError
from draftwire.packages import Family
from draftwire.transport.codec import SUBPROTOCOL
from draftwire.transport.messages import (
    Block,
    Commit,
    Hello,
    Open,
    Opened,
    Resume,
    Welcome,
)
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.executor import ThreadExecutor
from draftwire.verifier.kit.peer import Kit, Peer
from draftwire.verifier.registry import Registry
from draftwire.verifier.scheduler import Scheduler
from draftwire.verifier.serving.accounts import Account, Accounts
from draftwire.verifier.serving.service import Settings, VerifierService

VOCAB = 50
A, B, C = "a" * 20, "b" * 20, "c" * 20  # tokens
FAMILY = Family("arithmetic", "b" * 64, "a" * 64)


def next_token(history):
    return (sum((i + 1) * t for i, t in enumerate(history)) * 7 + 3) % VOCAB


def continuation(prompt, n):
    text = list(prompt)
    for _ in range(n):
        text.append(next_token(text))
    return text[len(prompt) :]


class ArithmeticBackend(CachedTarget):
    """Its next token follows from the slot's whole content, so a lost one shows."""

    name, eos_ids, leaves = "sum", (49,), False
    begin = 0, 0  # tokens, and the sum of each times its place

    def __init__(self, version="v1", slots=4, context=256, family=FAMILY):
        super().__init__(VOCAB, slots, context)
        self.id = version.encode().hex().rjust(64, "0")
        self.version, self.family = version, family
        self.broken = False
        self.gate = None  # a threading.Event that holds forwards back
        self.sizes = []  # of every forward: (slot, tokens, rows) of its inputs
        self.before = self._strain

    def _strain(self, batch):
        if self.broken:
            raise RuntimeError("out of order")
        if self.gate is not None:
            self.gate.wait(10)
        self.sizes.append([(item.slot, len(item), item.rows) for item in batch])

    def _fold(self, state, token):
        return state[0] + 1, state[1] + (state[0] + 1) * int(token)

    def _logits(self, state):
        row = np.zeros(VOCAB, np.float32)
        row[(state[1] * 7 + 3) % VOCAB] = 1
        return row


def live(backend, **options):
    """Return a scheduler on a worker thread and the running loop."""
    clock = LoopClock(asyncio.get_running_loop())
    return Scheduler(backend, ThreadExecutor(backend, clock), clock, **options)


def ask(scheduler, item, **options):
    """Submit ``item``; return a future of the answer, with its request."""
    future = asyncio.get_running_loop().create_future()

    def done(answer):
        raised = isinstance(answer, Exception)
        (future.set_exception if raised else future.set_result)(answer)

    future.request = scheduler.submit(item, done=done, **options)
    return future


def made(kind, **options):
    """Return a service without targets; options are those of all its parts."""
    names = {one.name for one in fields(Settings)} & {*options}
    given = {name: options.pop(name) for name in names}
    settings = Settings(**{name: x for name, x in given.items() if x is not None})
    registry = options.pop("registry", None) or Registry(lambda path: None)
    return kind(registry, settings, **options)


@asynccontextmanager
async def serving(*backends, kind=VerifierService, scheduler=None, **options):
    registry = Registry(lambda path: None, scheduler=scheduler)
    for backend in backends or (ArithmeticBackend(),):
        registry.add(backend)
    service = made(kind, registry=registry, **options)
    await service.start()
    try:
        yield service
    finally:
        await service.close()


HELLO = Hello(
    agent="test",
    target="",
    tokenizer=b"\xaa" * 32,
    backbone=b"\xbb" * 32,
    vocab_size=VOCAB,
    family="arithmetic",
    capabilities=("teleport", "resume"),
)


class Device(Peer):
    """A hand-driven device end: the kit's, held to nothing."""

    def __init__(self, socket):
        super().__init__(socket, Kit("", HELLO))
        # websockets 13 drops frames that nobody awaits when the close comes, so read on.
        self.frames = asyncio.Queue()
        self.reader = asyncio.ensure_future(self.read())

    async def read(self):
        try:
            async for frame in self.socket:
                self.frames.put_nowait(frame)
        except ConnectionClosed:
            pass
        self.frames.put_nowait(None)

    async def hear(self, number=None):
        """Return the next message of whatever stream."""
        frame = await asyncio.wait_for(self.frames.get(), 10)
        if frame is None:
            await self.socket.recv()  # raises what ended the connection
        self.heard = self.codec.decode(frame)
        return self.heard.message

    async def open(self, prompt, n, stream=0, stops=()):
        await self.say(Open(tuple(prompt), "greedy", 0.0, 0, 1.0, 0, n, stops), stream)
        return await self.hear()

    async def resume(self, opened, position, secret=None):
        await self.say(Resume(opened.id, secret or opened.secret, position))
        return await self.hear()

    async def generate(self, prompt, n, k=3, wrong_every=3, stream=0):
        """Draft the right text with a wrong token now and then; return what comes."""
        assert isinstance(await self.open(prompt, n, stream), Opened)
        return await self.go_on(prompt, [], 0, k, wrong_every, stream=stream)

    async def go_on(self, prompt, text, epoch, k=3, wrong_every=3, rounds=10**6, stream=0):
        """Draft from ``text`` on; return the text and why it ended, if it did."""
        text, drafted = list(text), 0
        for _ in range(rounds):
            guess = continuation(list(prompt) + text, k)
            for i in range(k):
                drafted += 1
                if drafted % wrong_every == 0:
                    guess[i] = (guess[i] + 1) % VOCAB
            await self.say(Block(epoch, len(text), tuple(guess)), stream)
            commit = await self.hear()
            assert self.heard.stream == stream
            assert isinstance(commit, Commit), commit
            assert commit.epoch == epoch
            text += guess[: commit.accepted]
            text += [] if commit.token is None else [commit.token]
            epoch += commit.accepted < len(guess)
            if commit.finish:
                return text, commit.finish
        return text, epoch


@asynccontextmanager
async def device(service, **options):
    options.setdefault("subprotocols", [SUBPROTOCOL])
    async with connect(service.url, compression=None, **options) as socket:
        yield Device(socket)


@asynccontextmanager
async def greeted(service, **options):
    """A device that has said hello, and was welcome."""
    async with device(service, **options) as dev:
        assert isinstance(await dev.greet(), Welcome)
        yield dev


def run(test):
    return asyncio.run(asyncio.wait_for(test(), 300))


def shown(token):
    """Return how a device shows a token."""
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


def two_accounts():
    return Accounts([Account(A, "a"), Account(B, "b")])


async def closed(dev, code):
    with pytest.raises(ConnectionClosed) as caught:
        await dev.hear()
    assert caught.value.rcvd.code == code


async def get(service, path, **headers):
    url = service.url.replace("ws://", "http://") + path

    def fetch():
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.get_running_loop().run_in_executor(None, fetch)


def of_a_chain(target, slot, start, ids):
    (rows,) = target.forward([SlotInput(slot, start, np.array(ids), 1)])
    return rows[0]


def assert_leaves(target, vocab_size, off):
    """Assert that rows of leaves, and of branches of them, are those of plain texts, and
    that nothing of them is left."""
    rng = np.random.default_rng(5)
    a, b = target.allocate(), target.allocate()
    text, drafts, leaves, stranger = (
        rng.integers(0, vocab_size, n).tolist() for n in (9, 4, 19, 6)
    )
    target.forward([SlotInput(a, 0, np.array(text), 0)])
    # One longer than the windows of tests/helpers/tiny_models.py.
    behind, chains = (1, *[2] * 16, 4, 4), (0, *range(16), 0, 1)
    branched = SlotInput(a, 9, np.array(drafts + leaves), 23, behind, chains)
    rows, other = target.forward([branched, SlotInput(b, 0, np.array(stranger), 1)])
    plain = [of_a_chain(target, a, 9, drafts[: i + 1]) for i in range(4)]
    plain += [
        of_a_chain(target, a, 9, drafts[:n] + leaves[i - chain : i + 1])
        for i, (n, chain) in enumerate(zip(behind, chains))
    ]
    assert rows == pytest.approx(np.stack(plain), abs=off)
    assert other[0] == pytest.approx(of_a_chain(target, b, 0, stranger), abs=off)
    target.forward([branched])
    more = of_a_chain(target, a, 13, [3])
    assert more == pytest.approx(of_a_chain(target, a, 9, [*drafts, 3]), abs=off)
    for wrong in ((0,) * 5, (0, 1, *chains[2:]), (0, 2, *chains[2:]), (0, -1, *chains[2:])):
        with pytest.raises(ModelError, match="chains|a leaf behind"):
            target.forward([replace(branched, chains=wrong)])
