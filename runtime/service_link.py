"""Keeps a session to the verifier alive for ever, whatever the network does.

A session reconnects by itself; this makes the first one, and a new one when a verifier
refused for good (a wrong token, another tokenizer): the operator may mend that side, and
a board on a hill should come back without a visit. Only monotonic time is used, as the
clock of a board without a battery starts in 1970.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any, Callable

from draftwire.errors import (
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ModelError,
    RefusedError,
)

__all__ = ["Keeper"]

_LOG = logging.getLogger("draftwire.service")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_REFUSED_PAUSE_S = 60.0
_LOOK_S = 0.5
_CLOCK_IS_SET = 1_700_000_000  # 2023: no board that runs this has an earlier time


class Keeper:
    """Makes sessions and keeps one.

    Args:
        make: Makes a connected session; called again after a failure.
        on_change: Called with a sentence whenever the state changes, in this thread.
        on_fatal: Called with an error that trying again cannot mend.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        on_change: Callable[[str], None],
        on_fatal: Callable[[DraftwireError], None],
    ) -> None:
        self._make = make
        self._on_change = on_change
        self._on_fatal = on_fatal
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._session: Any = None
        self._error: DraftwireError | None = None
        self._tries = 0
        self._ever = False
        self._said = ""
        self._thread = threading.Thread(
            target=self._run, name="draftwire-keeper", daemon=True
        )

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def close(self) -> None:
        """End the session and the thread."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=15)

    @property
    def session(self) -> Any:
        """The session, or None while there is none."""
        return self._session

    @property
    def error(self) -> DraftwireError | None:
        """Why there is no session."""
        return self._error

    def wait(self, seconds: float, stopped: threading.Event) -> Any:
        """Return the session, waiting for it at most so long; None when there is none."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._session is None and not self._closed.is_set():
                left = end - time.monotonic()
                if left <= 0 or stopped.is_set():
                    break
                self._changed.wait(min(left, _LOOK_S))
            return self._session

    def state(self) -> dict[str, Any]:
        """Return the link's state for people and programs."""
        session = self._session
        if session is None:
            return {
                "state": "connecting",
                "attempts": self._tries,
                "reconnects": 0,
                "down_s": None,
                "error": self._words(),
            }
        link = session.link
        return {
            "state": link.state,
            "attempts": link.attempts,
            "reconnects": link.reconnects,
            "down_s": round(link.down_s, 3),
            "error": link.error or None,
        }

    def _words(self) -> str | None:
        if self._error is None:
            return None
        said = str(self._error)
        if "certificate" in said and time.time() < _CLOCK_IS_SET:
            said += "; the clock of this board is not set yet"
        return said

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as exc:  # noqa: BLE001  a thread must not die unheard
            _LOG.exception("the link's thread failed: this is a bug")
            self._on_fatal(DraftwireError(f"this is a bug: {type(exc).__name__}: {exc}"))

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._closed.is_set():
            self._tries += 1
            try:
                session = self._make()
            except DraftwireError as exc:
                self._error = exc
                if self._is_fatal(exc):
                    self._on_fatal(exc)
                    return
                self._say(f"no verifier: {self._words()}")
                refused = isinstance(exc, (RefusedError, IncompatibleError, ConfigError))
                longest = _REFUSED_PAUSE_S if refused else _LONGEST_PAUSE_S
                # Jitter: a fleet that lost one verifier must not return as one.
                if self._closed.wait(pause * random.uniform(0.5, 1.0)):
                    return
                pause = min(pause * 2, longest)
                continue
            pause = _FIRST_PAUSE_S
            self._ever, self._tries = True, 0
            with self._changed:
                self._session, self._error = session, None
                self._changed.notify_all()
            self._watch(session)

    def _watch(self, session: Any) -> None:
        """Stay until the session is of no more use, and close it."""
        while not self._closed.wait(_LOOK_S):
            link = session.link
            if link.state == "up":
                target = session.welcome.target
                self._say(f"connected to target {target}")
            elif link.state == "reconnecting":
                self._say(f"link lost, reconnecting: {link.error}")
            else:
                _LOG.warning("the verifier refused: %s", link.error)
                self._error = RefusedError(link.error or "the link ended")
                break
        with self._changed:
            self._session = None
        session.close()

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
