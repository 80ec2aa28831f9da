"""What is fuzzed: bytes in, either a foreseen error or every invariant holds.

``codec``: a frame off the wire. ``target`` and ``edge``: a session and a history, both
read from the bytes. ``http``: what comes before the upgrade, at the devices' address or at
that of ``--admin``. Anything but the errors that a peer's mistake may cause is a bug.
"""

from __future__ import annotations

import asyncio
import functools
import json
import zlib
from pathlib import Path

import numpy as np
from opens import chains_of, promised
from pieces import plain_text
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from world import Reader

from draftwire.errors import ConfigError, ProtocolError
from draftwire.runtime.driver import StreamSpec
from draftwire.runtime.edge.actions import Draft, Finished, Send
from draftwire.runtime.edge.machine import EdgeSession
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import FixedLength
from draftwire.sampling import SCHEMES, SamplingParams, make_proposer
from draftwire.transport.codec import Codec, explain
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Finish,
    Open,
    Opened,
    Progress,
    Provisional,
    Resumed,
)
from draftwire.verifier.registry import Registry
from draftwire.verifier.serving.accounts import Accounts
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.service import Settings, VerifierService
from draftwire.verifier.target_session import TargetSession

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((TESTS / "golden" / "wire_v2.json").read_text())
REFUSED = frozenset(bytes.fromhex(v["hex"]) for v in GOLDEN["refused"])
V = 11  # four bits, with ids outside the vocabulary
SCHEME_NAMES = tuple(SCHEMES)


class Bites:
    """Reads choices from bytes; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, n: int) -> int:
        return self.byte() % n

    def raw(self, n: int) -> bytes:
        self.at += n
        return self.data[self.at - n : self.at]

    def ids(self, n: int) -> tuple[int, ...]:
        return tuple(self.below(V) for _ in range(n))


@functools.lru_cache(maxsize=1 << 14)
def logits_after(history: tuple[int, ...]) -> np.ndarray:
    """Return ``(V,)`` logits that depend on the whole history."""
    mixed = zlib.crc32(bytes(history))
    row = np.empty(V, np.float32)
    for i in range(V):
        mixed = (mixed * 1664525 + 1013904223) & 0xFFFFFFFF
        row[i] = (mixed >> 16) / 9362.0  # within 0..7
    return row


def params_of(bites: Bites) -> SamplingParams:
    scheme = SCHEME_NAMES[bites.below(len(SCHEME_NAMES))]
    temperature = (0.0, 1.0, 0.5)[bites.below(3)]
    top_k, top_p = bites.below(4), (1.0, 0.9, 0.3)[bites.below(3)]
    return SamplingParams(scheme, temperature, top_k, top_p, bites.byte())


# ---- codec


def codec(data: bytes) -> None:
    """A frame is refused, or means something that has one encoding."""
    bites = Bites(data)
    vocab = (None, 2, V, 2048, 32000, 151936)[bites.below(6)]
    ends = Codec(vocab, max_ids=4096)
    frame = data[1:]
    lean = Codec(vocab, max_ids=4096, brief=True)
    for piece in frame.split(b"\xff"):  # several frames that lean on each other
        try:
            found = lean.decode(piece)
        except ProtocolError as error:
            assert str(error)
            continue
        assert not isinstance(found.message, Block) or 0 <= found.message.base <= 1 << 24
    explained = explain(frame, vocab)
    assert b"".join(piece.data for piece in explained.pieces) == frame[: _length(explained)]
    try:
        stream, message, _ = ends.decode(frame)
    except ProtocolError as error:
        assert str(error)
        assert explained.error or "the limit is 4096" in str(error)
        return
    assert frame not in REFUSED
    codes = ("code", "reason", "numerics", "compatibility")
    if any(getattr(message, name, "") == "other" for name in codes):
        return  # of tomorrow
    again = ends.encode(message, stream or 0)
    assert ends.decode(again)[:2] == (stream, message)
    assert len(again) <= len(frame), (frame.hex(), again.hex())
    assert ends.encode(ends.decode(again).message, stream or 0) == again
    if isinstance(message, (Provisional, Progress)) and len(again) == len(frame):
        assert again == frame, "two frames for one message"
    assert not explained.error, explained.error


def _length(explained) -> int:
    return sum(len(piece.data) for piece in explained.pieces)


# ---- the cloud's session


class _Cloud:
    """A target session, the cache that its slot would have, and its text so far."""

    def __init__(self, bites: Bites) -> None:
        self.params = params_of(bites)
        self.prompt = bites.ids(1 + bites.below(4))
        self.count = 1 + bites.below(24)
        self.context = 2 + bites.below(40)
        stops = bites.ids(bites.below(3))
        self.max_block = 1 + bites.below(12)
        p = self.params
        request = Open(
            self.prompt,
            p.scheme,
            p.temperature,
            p.top_k,
            p.top_p,
            p.seed,
            self.count,
            stops,
            ("cost", "latency")[bites.below(4) == 3],
            bonus=bites.below(4) != 3,
        )
        has = ("further", "leaves", "trees")
        welcome = promised(V, self.context, self.max_block, capabilities=has)
        self.session = TargetSession(request, welcome, leaves=4)
        self.cache: list[int] = []
        self.text: tuple[int, ...] = ()
        self.work = None

    def step(self, bites: Bites) -> None:
        session, op = self.session, bites.below(16)
        if op < 6:
            self.check(session.receive(self.block(bites)))
        elif op < 11:
            self.poll()
        elif op < 14:
            self.complete()
        else:
            cached = bites.below(2) == 1
            self.work = None
            session.detach(cached=cached)
            if not cached:
                self.cache = []
            held = bites.below(len(self.text) + 1)
            answer = session.resume(held)
            assert answer.tokens == self.text[held:] and answer.finish == session.finish
        self.check([])

    def block(self, bites: Bites) -> Block:
        epoch = (self.session.epoch + (0, 0, 0, 0, 0, 1, 255, 128)[bites.below(8)]) & 0xFF
        base = len(self.text) + (0, 0, 0, 0, 1, 2, 3, -1, -2, 9)[bites.below(10)]
        how = bites.byte()
        tokens = list(bites.ids(how % 8))
        if how & 8:  # right for as long as it can be
            history = [*self.prompt, *self.text]
            for i in range(len(tokens)):
                tokens[i] = int(logits_after(tuple(history)).argmax())
                history.append(tokens[i])
        evidence = bites.raw(bites.below(40)) if how & 16 else b""
        correction = bites.below(V) if how & 32 else None
        more, race = how & 0xC0 == 0xC0, how & 0xC0 == 0x40
        instead = (bites.below(5), bites.below(V + 1)) if how & 0xC0 == 0x80 else ()
        said = tuple(tokens), evidence, more, correction, race, (), instead
        return Block(epoch, max(0, base), *said)

    def poll(self) -> None:
        work = self.session.poll()
        if work is None:
            return
        assert self.work is None, "two pieces of work at a time"
        assert 0 <= work.start <= len(self.cache), "a gap in the cache"
        assert len(work.tokens) >= 1 and 0 <= work.rows <= len(work.tokens)
        if work.start + len(work.tokens) > self.context:  # as `drive` does
            raise ProtocolError("drafts beyond the context")
        assert work.tokens.min() >= 0 and work.tokens.max() < V
        self.cache[work.start :] = work.tokens.tolist()
        if not work.prefill and not work.evidence:
            rows = np.zeros((work.rows, V), np.float32)
            for threshold, most in ((0.0, 1), (1.0, 0)):
                said = self.session.foresee(work, rows, threshold)
                assert len(self.session.hint(work, said)) <= most
        text = [*self.prompt, *self.text][: len(self.cache)]
        assert self.cache[: len(text)] == text, "the cache is not the text"
        self.work = work

    def complete(self) -> None:
        work, self.work = self.work, None
        if work is None:
            return
        rows = [logits_after(tuple(ids)) for ids in chains_of(work, self.cache)]
        logits = np.array(rows).reshape(-1, V)
        self.check(self.session.complete(work, logits))

    def check(self, messages) -> None:
        for message in messages:
            codec_v = Codec(V)
            assert isinstance(message, Commit)
            sent = codec_v.decode(codec_v.encode(message)).message
            assert (sent.accepted, sent.token) == (message.accepted, message.token)
        text = self.session.committed()
        assert text[: len(self.text)] == self.text, "text was taken back"
        assert len(text) <= min(self.count, self.context - len(self.prompt))
        self.text = text
        assert self.session.counts.accepted <= self.session.counts.drafted


def target(data: bytes) -> None:
    """Whatever a device sends, the text is the target's own and the cache is sound."""
    bites = Bites(data)
    try:
        cloud = _Cloud(bites)
    except ConfigError:
        return
    try:
        while bites:
            cloud.step(bites)
    except (ProtocolError, ConfigError):
        pass  # the connection ends here: also a race of a scheme that may not
    if cloud.params.scheme in ("greedy", "coupled"):
        how = cloud.prompt, cloud.params, len(cloud.text), V, 1 << 20
        wanted = plain_text(lambda ids: logits_after(tuple(ids)), *how)
        assert list(cloud.text) == wanted, "not the target's text"


# ---- the device's session


def edge(data: bytes) -> None:
    """Whatever a verifier sends, each token comes once and guesses are marked."""
    bites = Bites(data)
    params = params_of(bites)
    try:
        proposer = make_proposer(params, V)
    except ConfigError:
        return
    prompt = bites.ids(1 + bites.below(3))
    count, context = 1 + bites.below(20), 8 + bites.below(20)
    spec = StreamSpec(
        prompt=prompt,
        params=params,
        proposer=proposer,
        controller=FixedLength(1 + bites.below(6)),
        max_new_tokens=count,
        context=context,
        vocab_size=V,
        account=None,
        stop_ids=bites.ids(bites.below(3)),
        offline=("wait", "draft")[bites.below(2)],
        mode=Mode.of(
            ("cost", "latency")[bites.below(4) == 3],
            1 + bites.below(3),
            ("off", "guess", "guess,exits", "guess,exits,outcomes")[bites.below(4)],
            cut=bites.below(2) == 1,
            batch=bites.below(3),
        ),
    )
    session = EdgeSession(spec)
    limits = 1 + bites.below(8), 1 + bites.below(8)
    session.limits(*limits, ("leaves", "trees")[: bites.below(3)])
    world = _Device(session, proposer, prompt, min(count, context - len(prompt)))
    try:
        world.act(session.start_offline() if bites.below(4) == 0 else session.start())
        while bites:
            world.step(bites)
    except ProtocolError:
        pass  # the connection ends here


class _Device:
    def __init__(self, session, proposer, prompt, limit) -> None:
        self.session, self.proposer, self.prompt = session, proposer, prompt
        self.limit = limit
        self.user = Reader()
        self.sequence: list[int] = []
        self.branch = self.todo = 0

    def step(self, bites: Bites) -> None:
        session, op = self.session, bites.below(16)
        if op < 7:
            if self.todo:
                row = logits_after(tuple(self.sequence))
                proposal = self.proposer.propose(row, len(self.sequence))
                if bites.below(2):
                    sure = bites.below(256) / 255
                    proposal = proposal._replace(confidence=sure, runner_up=1)
                self.todo -= 1
                self.sequence.append(proposal.token)
                self.act(session.drafted(self.branch, proposal))
        elif op < 14:
            self.act(session.message(self.message(bites)))
        elif op == 14:
            if bites.below(3):
                self.act(session.link_lost())
            else:
                resume = bites.below(2) == 1
                if resume:  # nobody resumes what is not lost
                    self.act(session.link_lost())
                self.act(session.link_up(resume=resume))
        elif bites.below(4) == 0:
            self.act(session.stop("cancelled"))

    def message(self, bites: Bites):
        kind = bites.below(8)
        if kind == 0:
            return Opened(b"s" * 8 * bites.below(2), b"t" * 16)
        if kind == 1:
            held = len(self.user.shown) + (0, 0, 0, 1)[bites.below(4)]
            tokens = bites.ids(bites.below(5))
            return Resumed(bites.byte(), held, tokens, Finish(bites.below(4)))
        if kind == 3:
            return Provisional(bites.below(3), bites.below(5), bites.below(V))
        if kind == 2:
            return (Bye("budget"), Error("busy", "x"), Opened(), Bye())[bites.below(4)]
        how = bites.byte()
        token = bites.below(V) if how & 3 else None
        finish = Finish(how >> 6) if how & 0x20 else Finish.NOT_YET
        evidence = bites.raw(bites.below(30)) if how & 8 else b""
        epoch = bites.below(3) if how & 4 else 0
        return Commit(epoch, bites.below(5), token, finish, 0.0, 0.0, evidence)

    def act(self, actions) -> None:
        for action in actions:
            if isinstance(action, Send):
                frame = Codec(V).encode(action.message)
                assert Codec(V).decode(frame).message == action.message
            elif isinstance(action, Draft):
                self.branch, self.todo = action.branch, action.count
                assert action.valid <= max(len(self.sequence), 0) or not action.count
                self.sequence = [*self.sequence[: action.valid], *action.tokens]
            elif isinstance(action, Finished):
                assert not self.user.over
                self.user.over = True
            else:
                self.user.take(action)
        shown, guessed = self.user.shown, self.user.guessed
        assert tuple(shown) == self.session.committed
        assert len(shown) + len(guessed) <= max(self.limit, 0)


class _Caller:
    """A socket whose request the parser of websockets has read."""

    remote_address = ("127.0.0.1", 9)

    def __init__(self, protocol: ServerProtocol, request: Request) -> None:
        self.respond, self.request = protocol.reject, request


@functools.lru_cache(maxsize=None)
def _doors() -> tuple[asyncio.AbstractEventLoop, VerifierService]:
    limits = Limits(knocks_per_s=1 << 20)
    settings = Settings(limits=limits, trusted=("127.0.0.1",))
    registry = Registry(lambda path: None)
    service = VerifierService(registry, settings, accounts=Accounts.of("right"))
    return asyncio.new_event_loop(), service


def http(data: bytes) -> None:
    """A request: first byte, at which address; then what a socket brings."""
    loop, service = _doors()
    admin, data = bool(data[:1]) and data[0] & 1 == 1, data[1:]
    protocol = ServerProtocol(max_size=None)
    protocol.receive_data(data)
    found = [e for e in protocol.events_received() if isinstance(e, Request)]
    if not found:
        assert protocol.handshake_exc is not None or b"\r\n\r\n" not in data
        return

    async def ask() -> Response | None:
        caller = _Caller(protocol, found[0])
        answer = service._administer if admin else service._before_upgrade
        return answer(caller, found[0])

    response = loop.run_until_complete(ask())
    shown = found[0].headers.get_all("Authorization")
    right = len(shown) == 1 and shown[0].lower().split() == ["bearer", "right"]
    right = right or (len(shown) == 1 and shown[0].split()[1:] == ["right"])
    hosts = found[0].headers.get_all("Host")
    if response is None:  # the upgrade goes on
        assert right and not admin and not found[0].headers.get_all("Origin")
        assert not any("evil" in host for host in hosts)
        return
    body = bytes(response.body)
    assert 200 <= response.status_code < 600 and response.status_code != 500
    secret = b"draftwire:" in body or b'"targets"' in body
    assert not secret or right or admin
    assert not secret or not any("evil" in host for host in hosts)
    text = body.decode() + "".join(response.headers.values())
    assert all(c.isprintable() or c == "\n" for c in text)


TARGETS = {"codec": codec, "target": target, "edge": edge, "http": http}


def seeds(name: str) -> list[bytes]:
    """Return the corpus of a target; the codec's are the golden vectors."""
    found = json.loads((TESTS / "fuzz" / "corpus.json").read_text())[name]
    known = [bytes.fromhex(text) for text in found]
    if name == "codec":
        vectors = [*GOLDEN["frames"], *GOLDEN["refused"]]
        known += [b"\x03" + bytes.fromhex(v["hex"]) for v in vectors]
    return known
