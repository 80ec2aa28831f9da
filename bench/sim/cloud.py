"""The verifier in virtual time: sessions, batches, forwards, early exits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Protocol, Sequence

import numpy as np

from draftwire.bench.sim.facts import Exit, Profile
from draftwire.clock import Clock
from draftwire.errors import ConfigError
from draftwire.transport.messages import (
    Block,
    Bye,
    Error,
    Hello,
    Message,
    Open,
    Opened,
    Resume,
    Welcome,
)
from draftwire.verifier.target_session import TargetSession, Work

__all__ = ["Connection", "ForwardCost", "SimVerifier", "TargetModel"]

_CHUNK = 128  # as the real scheduler: tokens of one prompt in one forward
EXIT_THRESHOLD = 0.5  # logits of simulated exits are nearly one-hot, or flat


class TargetModel(Protocol):
    """Logits of one stream's target."""

    def run(self, start: int, tokens: np.ndarray, rows: int) -> np.ndarray:
        """Feed ``tokens`` from position ``start`` on.

        Returns:
            ``(rows, width)`` logits of the last ``rows`` tokens.
        """

    def exit_rows(self, number: int, exit: Exit, end: int, rows: int) -> np.ndarray:
        """Return what early exit ``number`` makes of the last ``rows`` before ``end``."""

    def release(self) -> None:
        """The stream is over."""


class ForwardCost:
    """What a forward of the target takes.

    Args:
        base_s: A forward over few tokens of one session.
        free: So many tokens (drafts and the one before them) cost no more.
        token_s: Each token beyond.
        session_s: Each session beyond the first.
        read_s: Each prompt token that is read.
    """

    def __init__(
        self,
        base_s: float,
        free: int = 17,
        token_s: float = 0.0,
        session_s: float = 0.0,
        read_s: float = 0.0,
    ) -> None:
        self.base_s, self.free, self.token_s = base_s, free, token_s
        self.session_s, self.read_s = session_s, read_s

    @classmethod
    def of(cls, profile: Profile) -> ForwardCost:
        """Return the costs of a profile's cloud."""
        return cls(
            profile.seconds("cloud.forward_ms"),
            int(profile["cloud.free_tokens"]),
            profile.seconds("cloud.forward_ms_per_token"),
            profile.seconds("cloud.forward_ms_per_session"),
            profile.seconds("cloud.read_ms_per_token"),
        )

    def __call__(self, tokens: int, sessions: int = 1) -> float:
        """Return the seconds of a forward that judges.

        Args:
            tokens: Of all sessions together.
            sessions: In the batch.
        """
        over = max(0, tokens - self.free * sessions)
        return self.base_s + self.token_s * over + self.session_s * (sessions - 1)

    def reading(self, tokens: int) -> float:
        """Return the seconds of a forward that reads prompt tokens."""
        return self.base_s + self.read_s * tokens


Send = Callable[[Sequence[Message]], None]


@dataclass
class _Stream:
    """One stream: its session, its model, who holds it, and the work it waits with."""

    id: bytes
    session: TargetSession
    model: TargetModel
    exits: bool
    holder: Connection | None = None
    work: Work | None = None
    since_s: float = 0.0
    read: int = 0  # prompt tokens of the present work that are read
    queue_s: float = 0.0
    compute_s: float = 0.0

    def send(self, messages: Sequence[Message]) -> None:
        """Send to whoever holds the stream; what comes while nobody does is void."""
        if self.holder is not None:
            self.holder.send(messages)


@dataclass
class SimVerifier:
    """One target for all streams, one forward at a time.

    Blocks of all streams go together in one forward; prompts are read in pieces, in
    turns with blocks, as the real scheduler does it. A stream whose link is lost waits
    for its device.

    Attributes:
        clock: Where everything happens.
        cost: Of the forwards; None takes the time that they take.
        welcome: What it says to a device that greets it.
        exits: Early exits, asked during forwards that judge.
        max_batch: Most sessions in one forward.
        forwards: Forwards so far, prompts apart.
        busy_s: Seconds of all forwards.
        tokens: Tokens fed in forwards that judge.
    """

    clock: Clock
    cost: ForwardCost | None
    welcome: Welcome
    exits: Sequence[Exit] = ()
    max_batch: int = 64
    forwards: int = 0
    busy_s: float = 0.0
    tokens: int = 0
    _opened: int = 0
    _streams: dict[bytes, _Stream] = field(default_factory=dict)
    _waiting: list[_Stream] = field(default_factory=list)  # in the order of service
    _busy: bool = False
    _prompt_last: bool = False
    _starting: bool = False

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"a batch of {self.max_batch} sessions")

    def attach(self, target: Callable[[], TargetModel], send: Send) -> Connection:
        """Return the verifier's end of a new connection.

        Args:
            target: Gives the model of the next stream that is opened on it.
            send: Puts messages on the way to the device.
        """
        return Connection(self, target, send)

    def close(self) -> None:
        """Let go of every stream."""
        for stream in tuple(self._streams.values()):
            self.drop(stream)

    # ---- streams

    def open(self, request: Open, model: TargetModel) -> _Stream:
        """Return a new stream."""
        welcome = self.welcome
        session = TargetSession(
            request,
            vocab_size=welcome.vocab_size,
            context=welcome.context,
            max_block=welcome.max_block,
        )
        self._opened += 1
        name = self._opened.to_bytes(8, "big")
        stream = _Stream(name, session, model, request.exits and bool(self.exits))
        self._streams[name] = stream
        return stream

    def find(self, name: bytes) -> _Stream | None:
        """Return the stream that a device resumes, its work on old blocks forgotten."""
        stream = self._streams.get(name)
        if stream is not None:
            self._forget(stream)
            stream.session.detach(cached=True)
        return stream

    def drop(self, stream: _Stream) -> None:
        """Forget a stream that has ended."""
        self._forget(stream)
        stream.holder = None
        if self._streams.pop(stream.id, None) is not None:
            stream.model.release()

    def _forget(self, stream: _Stream) -> None:
        if stream in self._waiting:
            self._waiting.remove(stream)
        stream.work = None

    # ---- forwards

    def wake(self, stream: _Stream) -> None:
        """Look whether ``stream`` has work; call it after every message to it."""
        if stream.work is None and not stream.session.done:
            stream.work = stream.session.poll()
            if stream.work is None:
                return
            stream.since_s = self.clock.now()
            stream.read = 0
            stream.queue_s = stream.compute_s = 0.0
            self._waiting.append(stream)
        self._start()

    def _start(self) -> None:
        # What happens at the same moment goes into the same forward.
        if not self._busy and self._waiting and not self._starting:
            self._starting = True
            self.clock.post(self._begin)

    def _begin(self) -> None:
        self._starting = False
        if self._busy or not self._waiting:
            return
        began_s = self.clock.now()
        kinds = {stream.work.prefill for stream in self._waiting if stream.work}
        prompts = not self._prompt_last if len(kinds) == 2 else True in kinds
        self._prompt_last = prompts
        batch = [s for s in self._waiting if s.work and s.work.prefill == prompts]
        batch = batch[: self.max_batch]
        self._waiting = [s for s in self._waiting if s not in batch]
        runs = []
        for stream in batch:
            work, at = stream.work, stream.read
            assert work is not None
            stream.queue_s += began_s - stream.since_s
            part = work.tokens[at : at + _CHUNK] if prompts else work.tokens
            rows = stream.model.run(work.start + at, part, work.rows)
            runs.append((stream, work, part, rows))
        fed = sum(len(part) for _, _, part, _ in runs)
        if self.cost is None:
            seconds = self.clock.now() - began_s
        else:
            seconds = self.cost.reading(fed) if prompts else self.cost(fed, len(runs))
        if not prompts:
            self.forwards += 1
            self.tokens += fed
            for number, exit in enumerate(self.exits):
                at_s = began_s + exit.fraction * seconds
                self.clock.call_at(at_s, self._glimpse, number, exit, runs)
        self._busy = True
        self.busy_s += seconds
        self.clock.call_at(began_s + seconds, self._end, runs, seconds)

    def _glimpse(self, number: int, exit: Exit, runs: Sequence[_Run]) -> None:
        for stream, work, _, _ in runs:
            if stream.work is not work or not stream.exits:
                continue
            end = work.start + len(work.tokens)
            rows = stream.model.exit_rows(number, exit, end, work.rows)
            found = stream.session.glimpse(work, rows, EXIT_THRESHOLD)
            if found:
                stream.send(found)

    def _end(self, runs: Sequence[_Run], seconds: float) -> None:
        self._busy = False
        for stream, work, part, rows in runs:
            if stream.work is not work:  # the stream has ended, or goes on elsewhere
                continue
            stream.compute_s += seconds
            stream.read += len(part)
            if work.prefill and stream.read < len(work.tokens):
                stream.since_s = self.clock.now()
                self._waiting.append(stream)
                continue
            stream.work = None
            messages = stream.session.complete(
                work, rows, queue_s=stream.queue_s, compute_s=stream.compute_s
            )
            if messages:
                stream.send(messages)
            self.wake(stream)
        self._start()


_Run = tuple[_Stream, Work, np.ndarray, np.ndarray]


class Connection:
    """The verifier's end of a connection: greets, and holds one stream at a time.

    Args:
        verifier: Whose.
        target: Gives the model of the next stream.
        send: Puts messages on the way to the device.
    """

    def __init__(
        self, verifier: SimVerifier, target: Callable[[], TargetModel], send: Send
    ) -> None:
        self._verifier = verifier
        self._target = target
        self.send = send
        self._stream: _Stream | None = None

    def receive(self, message: Message) -> None:
        """Take a message of the device in."""
        verifier, stream = self._verifier, self._stream
        if isinstance(message, Block):
            if stream is None:
                return  # of a stream that has ended
            answers = stream.session.receive(message)
            if answers:
                self.send(answers)
        elif isinstance(message, Open):
            self._end_stream()  # whoever opens the next has seen the last one end
            stream = verifier.open(message, self._target())
            self._hold(stream)
            self.send([Opened(message.stream, stream.id, bytes(16))])
        elif isinstance(message, Resume):
            stream = verifier.find(message.session)
            if stream is None:
                self.send([Error("session", "there is no such stream")])
                return
            self._hold(stream)
            self.send([stream.session.resume(message.position)])
        elif isinstance(message, Hello):
            wanted, welcome = message.capabilities, verifier.welcome
            known = tuple(word for word in wanted if word in welcome.capabilities)
            self.send([replace(welcome, capabilities=known)])
            return
        elif isinstance(message, Bye):
            self._end_stream()
            return
        if stream is not None:
            verifier.wake(stream)

    def lost(self) -> None:
        """The connection is over; its stream waits for the device, and does no work."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.holder is self:
            self._verifier.find(stream.id)
            stream.holder = None

    def _hold(self, stream: _Stream) -> None:
        if stream.holder is not None:
            stream.holder._stream = None
        stream.holder, self._stream = self, stream

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._verifier.drop(stream)
