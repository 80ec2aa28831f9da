"""The parts of the service with a session of sand: what hangs, fails, is refused."""

import asyncio
import contextlib
import socket
import time
from types import SimpleNamespace

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
from draftwire.runtime.stream import Chunk


class SandStream:
    """A stream whose chunks are what the test says."""

    def __init__(self, chunks):
        self._chunks = chunks(self)
        self.cancelled = asyncio.Event()
        self.report = {"tokens": 2}
        self.tokens = ("a", "b")
        self.finish = None

    def cancel(self):
        self.finish = "cancelled"
        self.cancelled.set()

    async def __aiter__(self):
        async for found in self._chunks:
            self.finish = self.finish or found.finish
            yield found


async def two(stream):
    yield Chunk("a", (), 0.0)
    yield Chunk("b", (), 0.0, finish="stop")


class Sand:
    """A session whose streams are what the test says."""

    def __init__(self, chunks=two, state="up", compatibility="family"):
        counts = {"reconnects": 0, "attempts": 0, "down_s": 0.0}
        self.link = SimpleNamespace(state=state, error="", **counts)
        self.welcome = SimpleNamespace(
            target="sand", target_version="1", compatibility=compatibility
        )
        self.closed = asyncio.Event()
        self.options = {}
        self._chunks = chunks

    def generate(self, prompt, **options):
        self.options = options
        return SandStream(self._chunks)

    async def close(self):
        self.closed.set()


async def until(check):
    while not check():
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def kept(*outcomes):
    """Run a supervisor whose tries to connect come to these, the last again and again."""
    said, greeted, tries = [], [], list(outcomes)

    async def make(again):
        greeted.append(again)
        found = tries.pop(0) if tries[1:] else tries[0]
        if isinstance(found, DraftwireError):
            raise found
        return found

    supervisor = Supervisor(make, said.append)
    task = asyncio.ensure_future(supervisor.run())
    try:
        yield supervisor, said, greeted
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, DraftwireError):
            await task


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(service_link, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(service_link, "_LOOK_S", 0.01)


async def test_it_tries_for_ever_and_again_after_a_refusal():
    first, second = Sand(), Sand()
    outcomes = (
        RefusedError("wrong token"),
        IncompatibleError("another tokenizer"),
        first,
        ConfigError("the token file is being replaced"),
        second,
    )
    async with kept(*outcomes) as (supervisor, said, greeted):
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
    await second.closed.wait()
    assert [s for s in said if "wrong token" in s]
    # A verifier that refused is asked before a model is loaded for it again.
    assert greeted == [False, True, True, True, True]


async def test_a_clock_of_1970_is_named(monkeypatch):
    error = RefusedError("the certificate of wss://x is not trusted: not yet valid")
    monkeypatch.setattr(service_link.time, "time", lambda: 60.0)
    async with kept(error) as (supervisor, said, _):
        await until(lambda: said)
        assert "the clock of this board is not set" in said[0]
        assert "the clock" in supervisor.state()["error"]


async def test_only_guesses_begin_before_anything_is_known_of_the_verifier():
    session = Sand(state="reconnecting", compatibility="unknown")
    async with kept(session) as (supervisor, _, _):
        assert await supervisor.wait("draft", 0) is session
        assert supervisor.state()["state"] == "connecting" and supervisor.target() is None
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(supervisor.wait("wait", 60), 0.05)
        session.link.state, session.welcome.compatibility = "up", "tokenizer"
        assert await supervisor.wait("wait", 60) is session


@contextlib.asynccontextmanager
async def working(session, **options):
    """Give the streams of a service that has this session."""
    async with kept(session) as (supervisor, _, _):
        streams = Streams(supervisor, {"block": 2, "temperature": 0.5}, **options)
        yield streams
        streams.close()


def ask(streams, **options):
    """Ask for a stream; return its task, and a list of its texts and how it ended."""
    events = []

    def begin(session, found):
        return session.generate("prompt", **found)

    async def whole():
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


def over(events):
    return bool(events) and not isinstance(events[-1], str)


async def test_defaults_and_the_deadline_counts_from_arrival():
    session = Sand()
    async with working(session) as streams:
        _, got = ask(streams, temperature=0.0, deadline_s=50.0)
        await until(lambda: over(got))
        assert got == ["a", "b", ("stop", 2)]
        assert streams.counts == {"finished": 1, "failed": 0, "cancelled": 0, "tokens": 2}
        found = session.options
        assert found["block"] == 2 and found["temperature"] == 0.0
        assert 0 < found["deadline_s"] < 50


async def test_one_bad_stream_does_not_end_the_service():
    async def broken(stream):
        yield Chunk("a", (), 0.0)
        raise KeyError("a bug")

    async with working(Sand(broken)) as streams:
        for _ in range(2):
            _, got = ask(streams)
            await until(lambda got=got: over(got))
            assert isinstance(got[-1], KeyError)
        assert streams.healthy and streams.counts["failed"] == 2


async def test_a_stream_that_hangs_stops_the_watchdogs_pings():
    held = asyncio.Event()

    async def hang(stream):
        yield Chunk("a", (), 0.0)
        await held.wait()
        yield Chunk("b", (), 0.0, finish="stop")

    async with working(Sand(hang), slack_s=0.05) as streams:
        assert streams.healthy
        _, got = ask(streams, patience_s=0.05)
        await until(lambda: not streams.healthy)
        held.set()
        await until(lambda: over(got))
        assert streams.healthy


async def test_going_away_refuses_those_that_wait():
    async def endless(stream):
        yield Chunk("a", (), 0.0)
        await stream.cancelled.wait()
        yield Chunk("b", (), 0.0)

    async with working(Sand(endless)) as streams:
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


def test_a_full_or_read_only_state_folder_is_borne(tmp_path):
    (tmp_path / "file").write_text("")
    broken = StateFile(tmp_path / "file")  # a folder that is none: nothing can be written
    broken.started()
    found = broken.document({"tokens": 3})
    assert (found["starts"], found["tokens"], found["kept"]) == (1, 3, False)
    assert found["why_not_kept"]
    folder = tmp_path / "new" / "state"
    StateFile(folder).started()
    for text in ("", "{", "[]", '{"starts": "many"}', '{"starts": -1}', "\xff"):
        (folder / "state.json").write_text(text, encoding="latin-1")
        state = StateFile(folder)
        state.started()
        assert state.document({})["starts"] == 1
    assert StateFile(folder).document({})["starts"] == 1
    assert StateFile(None).document({})["why_not_kept"] == "no state folder"


def test_words_for_systemd(tmp_path):
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
