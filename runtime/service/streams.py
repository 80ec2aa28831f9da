"""The one session of a service, and the streams of local programs on it.

A session finds its verifier by itself, also the first time, and comes back after every
loss. A :class:`Supervisor` is for what it cannot do: a verifier that refuses for good (a
wrong token, another tokenizer) may be mended by its operator, and a board on a hill should
come back without a visit. Only monotonic time is used, as the clock of a board without a
battery starts in 1970. Streams run a few at once, the others in the order they came.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Mapping

from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ModelError,
    RefusedError,
    TransportError,
)
from draftwire.options import OPTIONS

if TYPE_CHECKING:
    from draftwire.runtime.session import AsyncSession
    from draftwire.runtime.stream import AsyncStream, Chunk

_LOG = logging.getLogger("draftwire.service")
MAX_STREAMS = 4  # at once; they share one draft model
MAX_WAITING = 8  # for their turn
# A prompt on a slow board, beyond a stream's own patience; after that something hangs.
SLACK_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_LOOK_S = 0.25
_BLIP_S = 2.0  # a link that is back within this is not spoken of
_CLOCK_IS_SET = 1_700_000_000  # 2023: no board that runs this has an earlier time

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
        self.due = time.monotonic() + self._silence_s

    async def chunks(self) -> AsyncIterator[Chunk]:
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
    hanging."""

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
        return min(len(self._turns), MAX_STREAMS)

    @property
    def waiting(self) -> int:
        return len(self._turns) - self.running

    @property
    def written(self) -> int:
        """Tokens of all streams, the running ones included."""
        running = (turn.stream for turn in self._turns if turn.stream is not None)
        return self.counts["tokens"] + sum(len(stream.tokens) for stream in running)

    async def _sum(self, turn: Turn) -> None:
        """Add what an ended stream took to ``work``; what was not measured is left out."""
        report = await turn.report()
        names = ("tokens", "rounds", "drafted", "accepted", "target_forwards")
        parts = {name: report.get(name) for name in names}
        for group in ("seconds", "bytes"):
            parts.update({f"{group}_{k}": v for k, v in (report.get(group) or {}).items()})
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
        ``given`` win over the service's own; leaving the context ends it. A BusyError where
        too many wait, or its deadline passed; another DraftwireError where it cannot begin.
        """
        options = {**self._defaults, **given}
        patience = float(options.get("patience_s", OPTIONS["patience_s"].default))
        if self.waiting >= MAX_WAITING:
            what = f"{MAX_WAITING} streams wait already"
            raise BusyError(what, hint="ask again a little later")
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


class Supervisor:
    """Makes a session, and another one when the verifier refused it for good.

    ``make`` gives one that does without a verifier at first; it is told whether the
    verifier has refused before. ``on_change`` gets a sentence whenever the state changes.
    Without a ``session``, ``error`` says why.
    """

    def __init__(
        self,
        make: Callable[[bool], Awaitable[AsyncSession]],
        on_change: Callable[[str], None],
    ) -> None:
        self._make = make
        self._on_change = on_change
        self.session: AsyncSession | None = None
        self.error: DraftwireError | None = None
        self._tries = 0
        self._ever = False
        self._said = ""

    async def run(self) -> None:
        """Keep a session until this is cancelled, or only a change on this board helps."""
        pause = _FIRST_PAUSE_S
        while True:
            self._tries += 1
            try:
                session = await self._make(self.error is not None)
            except DraftwireError as exc:
                self.error = exc
                # A setting that worked before is one that somebody is just changing, and
                # the verifier may get another target: all else is this board's to mend.
                mine = isinstance(exc, ConfigError) and not self._ever
                if (mine or isinstance(exc, ModelError)) and not isinstance(
                    exc, IncompatibleError
                ):
                    raise
                self._say(f"no verifier: {self._words()}")
                # Jitter: a fleet that was refused by one verifier must not return as one.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                continue
            pause = _FIRST_PAUSE_S
            self.session, self.error, self._tries = session, None, 0
            try:
                await self._watch(session)
            finally:
                self.session = None
                try:
                    await session.close()
                except DraftwireError as exc:
                    _LOG.warning("%s", exc)

    async def wait(self, offline: str, patience_s: float) -> AsyncSession:
        """Return the session as soon as a stream may begin on it.

        Guesses (``offline``) may begin before anything is known of the verifier; all else
        needs to know its target, and bears ``patience_s`` without it once the draft is
        loaded.

        Raises:
            TransportError: There is no verifier.
        """
        ends = time.monotonic() + patience_s
        while True:
            session = self.session
            if session is not None and (offline == "draft" or _met(session)):
                return session
            loading = offline == "draft" and session is None and self.error is None
            if time.monotonic() >= ends and not loading:
                raise self.absent()
            await asyncio.sleep(_LOOK_S / 5)

    def absent(self) -> TransportError:
        """Return the error that says why no stream can begin."""
        session = self.session
        found = session.link.error if session is not None else self._words()
        return TransportError(
            f"there is no verifier yet: {found or 'still connecting'}",
            hint="the service goes on trying; `draftwire service status`",
        )

    def state(self) -> dict[str, Any]:
        """Return the link's state for people and programs."""
        link = None if self.session is None else self.session.link
        begins = link is None or (link.state == "reconnecting" and not self._ever)
        return {
            "state": "connecting" if link is None or begins else link.state,
            "attempts": self._tries if link is None else link.attempts,
            "reconnects": 0 if link is None else link.reconnects,
            "down_s": None if link is None else round(link.down_s, 3),
            "error": self._words() if link is None else link.error or None,
        }

    def target(self) -> dict[str, str] | None:
        """Return name and version of the target, as far as they are known."""
        if self.session is None or not _met(self.session):
            return None
        welcome = self.session.welcome
        return {"name": welcome.target, "version": welcome.target_version}

    def _words(self) -> str | None:
        return None if self.error is None else _with_clock(str(self.error))

    async def _watch(self, session: AsyncSession) -> None:
        while True:
            link = session.link
            if link.state == "up":
                self._ever = True
                self._say(f"connected to target {session.welcome.target}")
            elif link.state == "reconnecting":
                what = "link lost, reconnecting" if self._ever else "no verifier"
                if link.down_s >= _BLIP_S or not self._ever:
                    self._say(f"{what}: {_with_clock(link.error)}")
            elif link.state != "asleep":
                _LOG.warning("the verifier refused: %s", link.error)
                self.error = RefusedError(link.error or "the link ended")
                return
            await asyncio.sleep(_LOOK_S)

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            _LOG.warning("%s", sentence)
            self._on_change(sentence)


def _met(session: AsyncSession) -> bool:
    """Tell whether the verifier has ever said what it is, now or in an earlier life."""
    return session.welcome.compatibility != "unknown"


def _with_clock(said: str) -> str:
    if "certificate" in said and time.time() < _CLOCK_IS_SET:
        said += "; the clock of this board is not set yet"
    return said
