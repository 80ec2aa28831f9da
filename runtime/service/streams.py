"""The streams of local programs: a few at once, the others in the order they came."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Mapping

from draftwire.errors import BusyError, DraftwireError
from draftwire.options import OPTIONS
from draftwire.runtime.service.link import Supervisor

if TYPE_CHECKING:
    from draftwire.runtime.session import AsyncSession
    from draftwire.runtime.stream import AsyncStream, Chunk


MAX_STREAMS = 4  # at once; they share one draft model
MAX_WAITING = 8  # for their turn
# A prompt on a slow board, beyond a stream's own patience; after that something hangs.
SLACK_S = 120.0

Begin = Callable[["AsyncSession", Mapping[str, Any]], "AsyncStream"]


class Turn:
    """A stream that has begun, or waits to; at ``due`` its silence counts as hanging."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self.came_s = time.monotonic()
        self.mine = asyncio.Event()
        self.refused: DraftwireError | None = None
        self.stream: AsyncStream | None = None
        self.due: float | None = None

    def alive(self) -> None:
        """Something happened."""
        self.due = time.monotonic() + self._silence_s

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield its chunks."""
        assert self.stream is not None
        async for chunk in self.stream:
            self.alive()
            yield chunk

    async def report(self) -> dict[str, Any]:
        """Return its run report, once its chunks are over."""
        stream = self.stream
        assert stream is not None
        # What a sensor says now belongs to it, and that may take a moment.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lambda: stream.report) or {}


class Streams:
    """Gives turns; silence of ``slack_s`` beyond a request's own patience counts as
    hanging.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        defaults: Mapping[str, Any],
        *,
        slack_s: float = SLACK_S,
    ) -> None:
        self._supervisor = supervisor
        self._defaults = dict(defaults)
        self._slack_s = slack_s
        self._turns: list[Turn] = []  # in the order they came; the first ones run
        self.counts = {"finished": 0, "failed": 0, "cancelled": 0, "tokens": 0}
        self.work: dict[str, float] = {}
        self._sums: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Streams that have their turn."""
        return min(len(self._turns), MAX_STREAMS)

    @property
    def waiting(self) -> int:
        """Streams that wait for it."""
        return len(self._turns) - self.running

    @property
    def written(self) -> int:
        """Tokens of all streams, the running ones included."""
        running = (turn.stream for turn in self._turns if turn.stream is not None)
        return self.counts["tokens"] + sum(len(stream.tokens) for stream in running)

    async def _sum(self, turn: Turn) -> None:
        """Add what an ended stream took to ``work``; what was not measured is left out."""
        report = await turn.report()
        parts = {f"seconds_{k}": v for k, v in (report.get("seconds") or {}).items()}
        parts.update({f"bytes_{k}": v for k, v in (report.get("bytes") or {}).items()})
        for name in ("tokens", "rounds", "drafted", "accepted", "target_forwards"):
            parts[name] = report.get(name)
        joules = (report.get("energy") or {}).get("joules")
        if joules is not None:
            parts.update(joules=joules, joule_tokens=report.get("tokens"))
        for name, value in parts.items():
            if isinstance(value, (int, float)):
                self.work[name] = round(self.work.get(name, 0) + value, 6)

    @property
    def healthy(self) -> bool:
        """False once a stream has been silent for longer than anything explains."""
        now = time.monotonic()
        return all(turn.due is None or now < turn.due for turn in self._turns)

    @asynccontextmanager
    async def turn(self, begin: Begin, given: Mapping[str, Any]) -> AsyncIterator[Turn]:
        """Wait for a turn and ``begin`` a stream, of a session and its options, of which
        ``given`` win over the service's own; leaving the context ends it.

        Raises:
            BusyError: Too many wait already, or its deadline passed while it waited.
            DraftwireError: There is no verifier, or the stream cannot begin.
        """
        options = {**self._defaults, **given}
        patience = float(options.get("patience_s", OPTIONS["patience_s"].default))
        if self.waiting >= MAX_WAITING:
            raise BusyError(
                f"{MAX_WAITING} streams wait already", hint="ask again a little later"
            )
        turn = Turn(patience + self._slack_s)
        self._turns.append(turn)
        self._advance()
        over = "failed"
        try:
            await self._begin(turn, begin, options, patience)
            yield turn
            assert turn.stream is not None
            cancelled = turn.stream.finish in (None, "cancelled")
            over = "cancelled" if cancelled else "finished"
        except (asyncio.CancelledError, ConnectionError, GeneratorExit):
            over = "cancelled"
            raise
        finally:
            self._turns.remove(turn)
            self._advance()
            self.counts[over] += 1
            if turn.stream is not None:
                turn.stream.cancel()
                self.counts["tokens"] += len(turn.stream.tokens)
                task = asyncio.get_running_loop().create_task(self._sum(turn))
                self._sums.add(task)
                task.add_done_callback(self._sums.discard)

    def close(self) -> None:
        """End the running streams and refuse the waiting ones."""
        for turn in self._turns:
            if turn.stream is not None:
                turn.stream.cancel()
            else:
                turn.refused = BusyError("the service is going away")
                turn.mine.set()

    def _advance(self) -> None:
        for turn in self._turns[:MAX_STREAMS]:
            turn.mine.set()

    async def _begin(
        self, turn: Turn, begin: Begin, options: dict[str, Any], patience: float
    ) -> None:
        deadline = options.get("deadline_s")
        try:
            await asyncio.wait_for(turn.mine.wait(), deadline)
        except asyncio.TimeoutError:
            raise BusyError(
                f"its deadline passed while {MAX_STREAMS} streams before it were written"
            ) from None
        turn.alive()
        ends = None if deadline is None else turn.came_s + float(deadline)
        left = None if ends is None else ends - time.monotonic()
        # Not as the session, which begins without a verifier: guesses are asked for.
        offline = options["offline"] = options.get("offline") or "wait"
        bears = 0.0 if offline == "error" else patience
        try:
            if turn.refused is None:
                session = await asyncio.wait_for(
                    self._supervisor.wait(offline, bears), left
                )
        except asyncio.TimeoutError:
            raise self._supervisor.absent() from None
        if turn.refused is not None:
            raise turn.refused
        if ends is not None:  # the deadline counts from when the request came
            options["deadline_s"] = max(ends - time.monotonic(), 1e-3)
        turn.stream = begin(session, options)
