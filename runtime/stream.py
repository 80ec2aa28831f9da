"""A stream as its user holds it: chunks to iterate over, text so far, cancel, report."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterator, Union

from draftwire.errors import DraftwireError
from draftwire.runtime.driver import StreamRun, closed
from draftwire.runtime.edge.actions import Emit, Revise, Token
from draftwire.runtime.text import Screen
from draftwire.runtime.tools import Call, Calls

if TYPE_CHECKING:
    from draftwire.runtime.session import SessionBase

_CLOSE_S = 5.0


@dataclass(frozen=True)
class Chunk:
    """A piece of the stream.

    Attributes:
        text: New text; valid UTF-8, possibly empty (a character may need more tokens).
        tokens: The tokens that are new with this piece.
        t_s: Seconds since the generation began.
        finish: Why the stream ended, on the last chunk; else None.
        verified: False for guesses of the draft alone (``offline="draft"``).
        confirmed: How many tokens that were shown as guesses are final now.
        unverified: How many tokens shown so far are still guesses.
        revision: Usually None. Otherwise guesses shown before were wrong: everything
            after the first ``revision`` tokens of the answer is void, and ``kept_text``
            is the whole text up to there.
        kept_text: See ``revision``.
    """

    text: str
    tokens: tuple[Token, ...]
    t_s: float
    finish: str | None = None
    verified: bool = True
    confirmed: int = 0
    unverified: int = 0
    revision: int | None = None
    kept_text: str | None = None


_Item = Union[Chunk, str, BaseException, None]


class StreamBase:
    """What both kinds of streams share; see :class:`Stream`."""

    def __init__(
        self,
        owner: SessionBase[Any],
        screen: Screen,
        explain: Callable[[str], None] | None = None,
    ) -> None:
        self._owner: SessionBase[Any] | None = owner
        self._screen = screen
        self._explain = explain
        self._began_s = owner.now()
        self._over = threading.Event()
        self._report_lock = threading.Lock()
        self._report: dict[str, Any] | None = None
        self._run: StreamRun | None = None
        self.number: int | None = None
        self.finish: str | None = None
        self.error: DraftwireError | None = None
        self.first_token_s: float | None = None
        self.warning = ""
        self.dropped = False  # cancelled, also before it began
        self._next: list[Callable[[], None]] = []  # what waits for its first token
        self.calls: Calls | None = None  # of tools, that the text may be
        self._open()

    @property
    def text(self) -> str:
        """The text so far, guesses included."""
        return self._screen.text

    @property
    def tool_calls(self) -> tuple[Call, ...]:
        """The calls of tools in the text so far, those that are whole."""
        return tuple(self.called[1])

    @property
    def called(self) -> tuple[str, list[Call]]:
        """What of the text so far is said, and the calls of tools in it."""
        calls, text = self.calls, self.text
        if calls is None:
            return text, []
        if calls.spell is not None:  # the text leaves special tokens out
            spelt = calls.spell([token.id for token in self.tokens])
            text = spelt if calls.form.mark in spelt else text
        return calls.read(text)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens so far, guesses included."""
        return tuple(self._screen.tokens)

    @property
    def report(self) -> dict[str, Any] | None:
        """The run report (docs: one run, one report); None while the stream runs."""
        with self._report_lock:
            if self._report is None and self._run is not None:
                owner, run = self._owner, self._run
                assert owner is not None
                self._report = owner.report_of(self, run)
                self._owner = self._run = None  # a report holds on to nothing
            return self._report

    def cancel(self) -> None:
        """End the stream; callable from any thread, at any time, as often as you like."""
        owner = self._owner
        self.dropped = True
        if owner is not None and not self._over.is_set():
            owner.cancel(self)

    # ---- what the driver tells, in its thread

    def then(self, what: Callable[[], None]) -> None:
        """Do ``what`` once there is a token, or the stream is over."""
        self._next.append(what)
        if self.first_token_s is not None or self._over.is_set():
            self._go_on()

    def _go_on(self) -> None:
        for what in self._next:
            what()
        self._next.clear()

    @property
    def stopped(self) -> bool:
        return self._screen.met

    def take(self, action: Emit | Revise) -> str | None:
        """Show text, or take some back; return why the text is to end, if it is."""
        screen, now = self._screen, self._elapsed_s()
        if isinstance(action, Revise):
            at = action.position
            screen.revise(at)
            left, text = screen.unverified, screen.text
            self._put(Chunk("", (), now, unverified=left, revision=at, kept_text=text))
            return None
        final = action.tokens[0].kind != "unverified"
        if final and self.first_token_s is None:
            self.first_token_s = now
            self._go_on()
        piece, fresh = screen.push(action)
        left = screen.unverified
        self._put(Chunk(piece, fresh, now, None, final, action.shown, left))
        return "stop" if final and screen.stopped else None

    def _elapsed_s(self) -> float:
        return 0.0 if self._owner is None else self._owner.now() - self._began_s

    def explain(self, line: str) -> None:
        self._put(line)

    def finished(self, run: StreamRun, error: DraftwireError | None) -> None:
        screen = self._screen
        rest = screen.flush() if error is None else ""
        if run.finish == "length" and screen.stopped:  # with the last token allowed
            run.finish = "stop"
        self.error, self.finish, self._run = error, run.finish, run
        now = self._elapsed_s()
        if self._owner is not None:
            self._owner.ended(self, run)
        self._end(error or Chunk(rest, (), now, run.finish, unverified=screen.unverified))

    def refused(self, error: DraftwireError) -> None:
        """The stream did not begin."""
        self.error, self.finish = error, "error"
        self._end(error)

    def _end(self, last: _Item) -> None:
        self._over.set()
        self._put(last)
        self._put(None)
        self._go_on()

    def _open(self) -> None:
        raise NotImplementedError

    def _put(self, item: _Item) -> None:
        """Hand something to who iterates; called in the driver's thread."""
        raise NotImplementedError

    def _show(self, item: Chunk | str | BaseException) -> Chunk | None:
        """Return the chunk to show, if it is one; in the thread that iterates."""
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, str):
            if self._explain is not None:
                self._explain(item)
            return None
        return item


class Stream(StreamBase):
    """One text on its way: iterate over its chunks.

    It runs whether or not anybody iterates; leaving an iteration early (``break``,
    Ctrl-C, an exception) cancels it.

    Attributes:
        finish: Why it ended: ``"length"``, ``"stop"``, ``"deadline"``, ``"budget"``,
            ``"cancelled"`` or ``"error"``; None while it runs.
        error: What it failed with, or None.
        number: Its name on the wire; None before it began.
        first_token_s: Seconds until the first final token, or None.
        warning: What its report is to warn of, or "".
    """

    def _open(self) -> None:
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._process = os.getpid()

    def _put(self, item: _Item) -> None:
        self._items.put(item)

    def __iter__(self) -> Iterator[Chunk]:
        """Yield chunks until the stream ends.

        Raises:
            DraftwireError: The stream failed.
        """
        try:
            while True:
                if os.getpid() != self._process and not self._over.is_set():
                    self.refused(closed())  # who would put stayed behind at a fork
                item = self._items.get()
                if item is None:
                    self._items.put(None)  # for who iterates again, or beside us
                    return
                chunk = self._show(item)
                if chunk is not None:
                    yield chunk
        finally:
            # Also on break, Ctrl-C and errors: nothing goes on behind the user's back.
            self.cancel()
            if self._over.wait(_CLOSE_S):
                self.report  # noqa: B018  (what a sensor says now belongs to it)


class AsyncStream(StreamBase):
    """A :class:`Stream` for coroutines: ``async for chunk in stream``."""

    def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[_Item] = asyncio.Queue()

    def _put(self, item: _Item) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # that loop has ended, and with it who would read
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield chunks until the stream ends.

        Raises:
            DraftwireError: The stream failed.
        """
        try:
            while True:
                item = await self._items.get()
                if item is None:
                    self._items.put_nowait(None)  # for who iterates again
                    return
                chunk = self._show(item)
                if chunk is not None:
                    yield chunk
        finally:
            self.cancel()
