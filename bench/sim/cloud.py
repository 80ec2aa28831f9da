"""The verifier in virtual time: sessions, batches, forwards, early exits."""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

import numpy as np

from draftwire.bench.sim.events import Loop
from draftwire.bench.sim.facts import Exit, Profile
from draftwire.errors import ConfigError
from draftwire.transport.messages import Message
from draftwire.verifier.target_session import TargetSession, Work

__all__ = ["ForwardCost", "SimStream", "SimVerifier", "TargetModel"]

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


class SimStream:
    """One stream on the verifier: its session, its model, and the work it waits with.

    Args:
        session: The state machine.
        model: Its logits.
        send: Puts messages on the way to its device.
    """

    def __init__(
        self,
        session: TargetSession,
        model: TargetModel,
        send: Callable[[Sequence[Message]], None],
    ) -> None:
        self.session = session
        self.model = model
        self.send = send
        self.work: Work | None = None
        self.since_s = 0.0
        self.read = 0  # prompt tokens of the present work that are read
        self.queue_s = self.compute_s = 0.0


class SimVerifier:
    """One target for all streams, one forward at a time.

    Blocks of all streams go together in one forward; prompts are read in pieces, in
    turns with blocks, as the real scheduler does it.

    Args:
        loop: The clock.
        cost: Of the forwards.
        exits: Early exits, asked during forwards that judge.
        max_batch: Most sessions in one forward.
        context: Longest sequence.

    Attributes:
        forwards: Forwards so far, prompts apart.
        busy_s: Seconds of all forwards.
        tokens: Tokens fed in forwards that judge.
    """

    def __init__(
        self,
        loop: Loop,
        cost: ForwardCost,
        *,
        exits: Sequence[Exit] = (),
        max_batch: int = 64,
        context: int = 1 << 20,
    ) -> None:
        if max_batch < 1:
            raise ConfigError(f"a batch of {max_batch} sessions")
        self._loop = loop
        self._cost = cost
        self._exits = tuple(exits)
        self._max_batch = max_batch
        self.context = context
        self._waiting: list[SimStream] = []  # in the order of service
        self._busy = False
        self._prompt_last = False
        self._starting = False
        self.forwards = 0
        self.busy_s = 0.0
        self.tokens = 0

    def wake(self, stream: SimStream) -> None:
        """Look whether ``stream`` has work; call it after every message to it."""
        if stream.work is None and not stream.session.done:
            stream.work = stream.session.poll()
            if stream.work is None:
                return
            stream.since_s = self._loop.now_s
            stream.read = 0
            stream.queue_s = stream.compute_s = 0.0
            self._waiting.append(stream)
        self._start()

    def drop(self, stream: SimStream) -> None:
        """Forget what waits of a stream that has ended."""
        if stream in self._waiting:
            self._waiting.remove(stream)
        stream.work = None
        stream.model.release()

    def _start(self) -> None:
        # What happens at the same moment goes into the same forward.
        if not self._busy and self._waiting and not self._starting:
            self._starting = True
            self._loop.after(0.0, self._begin)

    def _begin(self) -> None:
        self._starting = False
        if self._busy or not self._waiting:
            return
        kinds = {stream.work.prefill for stream in self._waiting if stream.work}
        prompts = not self._prompt_last if len(kinds) == 2 else True in kinds
        self._prompt_last = prompts
        batch = [s for s in self._waiting if s.work and s.work.prefill == prompts]
        batch = batch[: self._max_batch]
        self._waiting = [s for s in self._waiting if s not in batch]
        works = [(s, s.work) for s in batch if s.work is not None]
        for stream, _ in works:
            stream.queue_s += self._loop.now_s - stream.since_s
        if prompts:
            fed = sum(min(_CHUNK, len(w.tokens) - s.read) for s, w in works)
            seconds = self._cost.reading(fed)
        else:
            fed = sum(len(w.tokens) for _, w in works)
            seconds = self._cost(fed, len(works))
            self.forwards += 1
            self.tokens += fed
            for number, exit in enumerate(self._exits):
                at = exit.fraction * seconds
                self._loop.after(at, self._glimpse, number, exit, works)
        self._busy = True
        self.busy_s += seconds
        self._loop.after(seconds, self._end, works, seconds)

    def _glimpse(
        self, number: int, exit: Exit, works: Sequence[tuple[SimStream, Work]]
    ) -> None:
        for stream, work in works:
            if stream.work is not work:
                continue
            end = work.start + len(work.tokens)
            rows = stream.model.exit_rows(number, exit, end, work.rows)
            found = stream.session.glimpse(work, rows, EXIT_THRESHOLD)
            if found:
                stream.send(found)

    def _end(self, works: Sequence[tuple[SimStream, Work]], seconds: float) -> None:
        self._busy = False
        for stream, work in works:
            if stream.work is not work:  # the stream has ended meanwhile
                continue
            stream.compute_s += seconds
            if work.prefill:
                at = stream.read
                part = work.tokens[at : at + _CHUNK]
                stream.model.run(work.start + at, part, 0)
                stream.read += min(_CHUNK, len(work.tokens) - stream.read)
                if stream.read < len(work.tokens):
                    stream.since_s = self._loop.now_s
                    self._waiting.append(stream)
                    continue
                rows = _NO_ROWS
            else:
                rows = stream.model.run(work.start, work.tokens, work.rows)
            stream.work = None
            messages = stream.session.complete(
                work, rows, queue_s=stream.queue_s, compute_s=stream.compute_s
            )
            if messages:
                stream.send(messages)
            self.wake(stream)
        self._start()


_NO_ROWS = np.zeros((0, 1), np.float32)
