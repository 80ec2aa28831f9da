"""The parts of the service with a session of sand: what hangs, fails, is refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, AsyncIterator, Awaitable, Callable, Coroutine

import pytest

from draftwire.errors import (
    BusyError,
    ConfigError,
    DraftwireError,
    IncompatibleError,
    RefusedError,
)
from draftwire.runtime.service import streams as service_link
from draftwire.runtime.service.streams import MAX_STREAMS, Streams, Supervisor
from draftwire.runtime.service.system import Notifier, StateFile


class SandStream:
    """A stream whose chunks are what the test says."""

    def __init__(self, chunks: Callable[[SandStream], AsyncIterator[Any]]) -> None:
        self._chunks = chunks(self)
        self.cancelled = asyncio.Event()
        self.report = {"tokens": 2}
        self.tokens = ("a", "b")
        self.finish: str | None = None

    def cancel(self) -> None:
        self.finish = "cancelled"
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for found in self._chunks:
            self.finish = self.finish or found.finish
            yield found


class Sand:
    """A session whose streams are what the test says."""

    def __init__(
        self, chunks: Callable[[SandStream], AsyncIterator[Any]] | None = None
    ) -> None:
        self.link = SimpleNamespace(
            state="up", reconnects=0, attempts=0, down_s=0.0, error=""
        )
        self.welcome = SimpleNamespace(
            target="sand", target_version="1", compatibility="family"
        )
        self.closed = asyncio.Event()
        self.streams: list[SandStream] = []
        self.options: dict[str, Any] = {}
        self._chunks = chunks or two

    def generate(self, prompt: Any, **options: Any) -> SandStream:
        self.options = options
        self.streams.append(SandStream(self._chunks))
        return self.streams[-1]

    async def close(self) -> None:
        self.closed.set()


async def two(stream: SandStream) -> AsyncIterator[Any]:
    yield chunk("a")
    yield chunk("b", "stop")


def chunk(text: str, finish: str | None = None) -> Any:
    return SimpleNamespace(
        text=text,
        tokens=(),
        verified=True,
        t_s=0.0,
        finish=finish,
        revision=None,
        kept_text=None,
    )


Test = Callable[[], Coroutine[Any, Any, None]]


def within(test: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    """Run a test that would otherwise hang for ever when it fails."""
    asyncio.run(asyncio.wait_for(test(*args), 60))


async def until(check: Callable[[], Any]) -> None:
    while not check():
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def kept(
    make: Callable[[bool], Awaitable[Any]],
) -> AsyncIterator[tuple[Supervisor, list[str], asyncio.Task[None]]]:
    said: list[str] = []
    supervisor = Supervisor(make, said.append)
    task = asyncio.ensure_future(supervisor.run())
    try:
        yield supervisor, said, task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, DraftwireError):
            await task


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_link, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(service_link, "_LOOK_S", 0.01)


def raising(*errors: DraftwireError) -> Callable[[bool], Awaitable[Any]]:
    tries = iter(errors)

    async def make(again: bool) -> Any:
        raise next(tries)

    return make


def test_it_tries_for_ever_and_again_after_a_refusal() -> None:
    async def test() -> None:
        first, second = Sand(), Sand()
        tries = iter(
            [
                RefusedError("wrong token"),
                IncompatibleError("another tokenizer"),
                first,
                ConfigError("the token file is being replaced"),
                second,
            ]
        )
        greeted = []

        async def make(again: bool) -> Any:
            greeted.append(again)
            found = next(tries)
            if isinstance(found, DraftwireError):
                raise found
            return found

        async with kept(make) as (supervisor, said, task):
            assert supervisor.state()["state"] == "connecting"
            assert await supervisor.wait("wait", 60) is first
            await until(lambda: said[-1] == "connected to target sand")
            first.link.state, first.link.error = "failed", "token revoked"
            await first.closed.wait()
            await until(lambda: supervisor.session is second)
            await until(lambda: said[-1] == "connected to target sand")
            second.link.state = "reconnecting"
            await asyncio.sleep(0.1)
            assert said[-1] == "connected to target sand", "it may be back at once"
            second.link.down_s = 9.0
            await until(lambda: "link lost, reconnecting" in said[-1])
            assert not task.done()
        await second.closed.wait()
        assert [s for s in said if "wrong token" in s]
        # A verifier that refused is asked before a model is loaded for it again.
        assert greeted == [False, True, True, True, True]

    within(test)


def test_a_clock_of_1970_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RefusedError("the certificate of wss://x is not trusted: not yet valid")
    monkeypatch.setattr(service_link.time, "time", lambda: 60.0)

    async def test() -> None:
        async with kept(raising(error, error)) as (supervisor, said, _):
            await until(lambda: said)
            assert "the clock of this board is not set" in said[0]
            assert "the clock" in supervisor.state()["error"]

    within(test)


def test_only_guesses_begin_before_anything_is_known_of_the_verifier() -> None:
    async def test() -> None:
        session = Sand()
        session.link.state, session.welcome.compatibility = "reconnecting", "unknown"

        async def make(again: bool) -> Any:
            return session

        async with kept(make) as (supervisor, said, _):
            assert await supervisor.wait("draft", 0) is session
            assert (
                supervisor.state()["state"] == "connecting" and supervisor.target() is None
            )
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(supervisor.wait("wait", 60), 0.05)
            session.link.state, session.welcome.compatibility = "up", "tokenizer"
            assert await supervisor.wait("wait", 60) is session

    within(test)


def working(
    session: Any, test: Callable[[Streams], Coroutine[Any, Any, None]], **options: Any
) -> None:
    async def whole() -> None:
        made = session()

        async def make(again: bool) -> Any:
            return made

        async with kept(make) as (supervisor, _, _):
            streams = Streams(supervisor, {"block": 2, "temperature": 0.5}, **options)
            await test(streams)
            streams.close()

    within(whole)


def ask(streams: Streams, **options: Any) -> tuple[Any, list[Any]]:
    """Ask for a stream; return its task, and a list of its texts and how it ended."""
    events: list[Any] = []

    def begin(session: Any, found: Any) -> Any:
        return session.generate("prompt", **found)

    async def whole() -> None:
        try:
            async with streams.turn(begin, options) as turn:
                async for found in turn.chunks():
                    events.append(found.text)
                assert turn.stream is not None
                report = await turn.report()
                events.append((turn.stream.finish, report["tokens"]))
        except Exception as exc:  # noqa: BLE001
            events.append(exc)

    return asyncio.ensure_future(whole()), events


def over(events: list[Any]) -> bool:
    return bool(events) and not isinstance(events[-1], str)


def test_defaults_and_the_deadline_counts_from_arrival() -> None:
    sessions = []

    def session() -> Sand:
        sessions.append(Sand())
        return sessions[0]

    async def test(streams: Streams) -> None:
        _, got = ask(streams, temperature=0.0, deadline_s=50.0)
        await until(lambda: over(got))
        assert got == ["a", "b", ("stop", 2)]
        assert streams.counts == {"finished": 1, "failed": 0, "cancelled": 0, "tokens": 2}
        found = sessions[0].options
        assert found["block"] == 2 and found["temperature"] == 0.0
        assert 0 < found["deadline_s"] < 50

    working(session, test)


def test_one_bad_stream_does_not_end_the_service() -> None:
    async def broken(stream: SandStream) -> AsyncIterator[Any]:
        yield chunk("a")
        raise KeyError("a bug")

    async def test(streams: Streams) -> None:
        for _ in range(2):
            _, got = ask(streams)
            await until(lambda got=got: over(got))
            assert isinstance(got[-1], KeyError)
        assert streams.healthy and streams.counts["failed"] == 2

    working(lambda: Sand(broken), test)


def test_a_stream_that_hangs_stops_the_watchdogs_pings() -> None:
    held: list[asyncio.Event] = []

    async def test(streams: Streams) -> None:
        held.append(asyncio.Event())
        assert streams.healthy
        _, got = ask(streams, patience_s=0.05)
        await until(lambda: not streams.healthy)
        held[0].set()
        await until(lambda: over(got))
        assert streams.healthy

    async def hang(stream: SandStream) -> AsyncIterator[Any]:
        yield chunk("a")
        await held[0].wait()
        yield chunk("b", "stop")

    working(lambda: Sand(hang), test, slack_s=0.05)


async def endless(stream: SandStream) -> AsyncIterator[Any]:
    yield chunk("a")
    await stream.cancelled.wait()
    yield chunk("b")


def test_going_away_refuses_those_that_wait() -> None:
    async def test(streams: Streams) -> None:
        running = []
        for _ in range(MAX_STREAMS):
            running.append(ask(streams)[1])
            await until(lambda: running[-1])
        _, waiting = ask(streams)
        cancelled, late = ask(streams), ask(streams, deadline_s=0.02)
        await until(lambda: streams.waiting == 3)
        assert (streams.running, streams.waiting) == (MAX_STREAMS, 3)
        cancelled[0].cancel()
        await until(lambda: over(late[1]))
        assert cancelled[0].cancelled() and streams.counts["cancelled"] == 1
        assert isinstance(late[1][0], BusyError) and "deadline" in str(late[1][0])
        streams.close()
        await until(lambda: over(waiting) and all(map(over, running)))
        assert str(waiting[0]) == "the service is going away"
        assert [got[-1][0] for got in running] == ["cancelled"] * MAX_STREAMS

    working(lambda: Sand(endless), test)


def test_a_full_or_read_only_state_folder_is_borne(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = StateFile(tmp_path / "file")  # a folder that is none: nothing can be written
    broken.started()
    found = broken.document({"tokens": 3})
    assert (found["starts"], found["tokens"], found["kept"]) == (1, 3, False)
    assert found["why_not_kept"]
    folder = tmp_path / "state"
    folder.mkdir()
    for text in ("", "{", "[]", '{"starts": "many"}', '{"starts": -1}', "\xff"):
        (folder / "state.json").write_text(text, encoding="latin-1")
        state = StateFile(folder)
        state.started()
        assert state.document({})["starts"] == 1
    assert StateFile(folder).document({})["starts"] == 1
    assert StateFile(None).document({})["why_not_kept"] == "no state folder"


def test_words_for_systemd(tmp_path: Path) -> None:
    quiet = Notifier({})
    quiet.say("READY=1")
    assert quiet.watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3.0
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    for odd in ("", "x", "0", "-5"):
        assert Notifier({"WATCHDOG_USEC": odd}).watchdog_s is None
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).say("WATCHDOG=1")
    name = f"\0draftwire-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(60)
        talker = Notifier({"NOTIFY_SOCKET": "@" + name[1:]})
        talker.status("one\ntwo")
        talker.status("one\ntwo")  # said already
        talker.say("STOPPING=1")
        assert manager.recv(99) == b"STATUS=one two"
        assert manager.recv(99) == b"STOPPING=1"
