"""Keeps a session for as long as the service lives.

A session finds its verifier by itself, also the first time, and comes back after every
loss. This is for what it cannot do: a verifier that refuses for good (a wrong token,
another tokenizer) may be mended by its operator, and a board on a hill should come back
without a visit. Only monotonic time is used, as the clock of a board without a battery
starts in 1970.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Awaitable, Callable

from draftwire.errors import (
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ModelError,
    RefusedError,
    TransportError,
)

if TYPE_CHECKING:
    from draftwire.runtime.session import AsyncSession


_LOG = logging.getLogger("draftwire.service")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_LOOK_S = 0.25
_CLOCK_IS_SET = 1_700_000_000  # 2023: no board that runs this has an earlier time


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
        """Keep a session until this is cancelled.

        Raises:
            DraftwireError: Only a change on this board helps.
        """
        pause = _FIRST_PAUSE_S
        while True:
            self._tries += 1
            try:
                session = await self._make(self.error is not None)
            except DraftwireError as exc:
                self.error = exc
                if self._is_fatal(exc):
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
        """Stay until the session is of no more use."""
        while True:
            link = session.link
            if link.state == "up":
                self._ever = True
                self._say(f"connected to target {session.welcome.target}")
            elif link.state == "reconnecting":
                what = "link lost, reconnecting" if self._ever else "no verifier"
                self._say(f"{what}: {_with_clock(link.error)}")
            else:
                _LOG.warning("the verifier refused: %s", link.error)
                self.error = RefusedError(link.error or "the link ended")
                return
            await asyncio.sleep(_LOOK_S)

    def _is_fatal(self, exc: DraftwireError) -> bool:
        """Tell whether only a change on this board helps."""
        if isinstance(exc, IncompatibleError):
            return False  # the verifier may get another target
        # A setting that worked before is one that somebody is just changing.
        return isinstance(exc, ModelError) or (
            isinstance(exc, ConfigError) and not self._ever
        )

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
