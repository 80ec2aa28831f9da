"""The parts of the service with a session of sand: what hangs, fails, is refused."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import pytest

from draftwire.errors import (
    ConfigError,
    DraftwireError,
    IncompatibleError,
    ModelError,
    RefusedError,
    TransportError,
)
from draftwire.runtime import service_link
from draftwire.runtime.service_link import Keeper
from draftwire.runtime.service_notify import Notifier
from draftwire.runtime.service_requests import Cancel, Generate, Status, parse_request
from draftwire.runtime.service_worker import Job, Worker


class Sand:
    """A session whose stream is what the test says."""

    def __init__(self, chunks: Callable[[], Iterator[Any]] | None = None) -> None:
        self.link = SimpleNamespace(
            state="up", reconnects=0, attempts=0, down_s=0.0, error=""
        )
        self.welcome = SimpleNamespace(target="sand", target_version="1")
        self.report = {"tokens": 2}
        self.closed = threading.Event()
        self.cancelled = threading.Event()
        self.options: dict[str, Any] = {}
        self._chunks = chunks

    def generate(self, prompt: Any, **options: Any) -> Iterator[Any]:
        self.options = options
        yield from (
            self._chunks() if self._chunks else iter([chunk("a"), chunk("b", "stop")])
        )

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed.set()


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


def kept(make: Callable[[], Any]) -> tuple[Keeper, list[str], list[DraftwireError]]:
    said: list[str] = []
    fatal: list[DraftwireError] = []
    return Keeper(make, said.append, fatal.append), said, fatal


def wait_for(check: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_link, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(service_link, "_LOOK_S", 0.01)


def test_it_connects_for_ever_and_again_after_a_refusal() -> None:
    tries = iter(
        [
            TransportError("gone"),
            RefusedError("wrong token"),
            IncompatibleError("another tokenizer"),
            first := Sand(),
            ConfigError("the token file is being replaced"),
            second := Sand(),
        ]
    )

    def make() -> Any:
        found = next(tries)
        if isinstance(found, DraftwireError):
            raise found
        return found

    keeper, said, fatal = kept(make)
    assert keeper.state()["state"] == "connecting"
    keeper.start()
    assert keeper.wait(60, threading.Event()) is first
    first.link.state, first.link.error = "failed", "token revoked"
    wait_for(first.closed.is_set)
    wait_for(lambda: keeper.session is second)
    wait_for(lambda: said[-1] == "connected to target sand")
    second.link.state = "reconnecting"
    wait_for(lambda: "reconnecting" in said[-1])
    keeper.close()
    assert second.closed.is_set() and not fatal
    assert [s for s in said if "gone" in s or "wrong token" in s]


@pytest.mark.parametrize("error", [ConfigError("no such file"), ModelError("no engine")])
def test_what_only_this_board_can_mend_ends_it(error: DraftwireError) -> None:
    def make() -> Any:
        raise error

    keeper, _, fatal = kept(make)
    keeper.start()
    wait_for(lambda: fatal)
    assert fatal == [error]
    keeper.close()


def test_a_bug_ends_the_service_and_does_not_leave_it_connecting_for_ever() -> None:
    def make() -> Any:
        raise AttributeError("no such thing")

    keeper, _, fatal = kept(make)
    keeper.start()
    wait_for(lambda: fatal)
    assert fatal[0].exit_code == 1 and "AttributeError" in str(fatal[0])
    keeper.close()


def test_a_clock_of_1970_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        raise TransportError("the certificate of wss://x is not trusted: not yet valid")

    monkeypatch.setattr(service_link.time, "time", lambda: 60.0)
    keeper, said, _ = kept(make)
    keeper.start()
    wait_for(lambda: said)
    assert "the clock of this board is not set" in said[0]
    assert "the clock" in keeper.state()["error"]
    keeper.close()


def working(session: Any, **options: Any) -> tuple[Worker, Keeper]:
    keeper, _, _ = kept(lambda: session)
    keeper.start()
    assert keeper.wait(60, threading.Event()) is session
    worker = Worker(keeper, {"block": 2, "temperature": 0.5}, **options)
    worker.start()
    return worker, keeper


def ask(worker: Worker, **options: Any) -> tuple[Job, queue.Queue[dict[str, Any]]]:
    events: queue.Queue[dict[str, Any]] = queue.Queue()

    def send(event: dict[str, Any]) -> bool:
        events.put(event)
        return True

    job = Job(Generate("x", "prompt", options), send)
    worker.submit(job)
    return job, events


def test_defaults_and_the_deadline_counts_from_arrival() -> None:
    session = Sand()
    worker, keeper = working(session)
    _, events = ask(worker, temperature=0.0, deadline_s=50.0)
    got = [events.get(timeout=60) for _ in range(3)]
    assert [e["event"] for e in got] == ["chunk", "chunk", "done"]
    assert got[-1]["finish"] == "stop" and got[-1]["tokens"] == 2
    assert session.options["block"] == 2 and session.options["temperature"] == 0.0
    assert 0 < session.options["deadline_s"] < 50
    worker.close()
    keeper.close()


def test_one_bad_stream_does_not_end_the_service() -> None:
    def broken() -> Iterator[Any]:
        yield chunk("a")
        raise KeyError("a bug")

    session = Sand(broken)
    worker, keeper = working(session)
    for _ in range(2):
        _, events = ask(worker)
        assert events.get(timeout=60)["event"] == "chunk"
        answer = events.get(timeout=60)
        assert answer["event"] == "error" and "this is a bug" in answer["message"]
    assert worker.healthy and worker.counts["failed"] == 2
    worker.close()
    keeper.close()


def test_a_stream_that_hangs_stops_the_watchdogs_pings() -> None:
    held = threading.Event()

    def hang() -> Iterator[Any]:
        yield chunk("a")
        held.wait(60)
        yield chunk("b", "stop")

    worker, keeper = working(Sand(hang), slack_s=0.05)
    assert worker.healthy
    _, events = ask(worker, patience_s=0.05)
    wait_for(lambda: not worker.healthy)
    held.set()
    wait_for(lambda: worker.healthy)
    worker.close()
    keeper.close()
    assert not worker.healthy  # a worker that is gone serves nobody


def test_going_away_refuses_those_that_wait() -> None:
    held = threading.Event()

    def slow() -> Iterator[Any]:
        yield chunk("a")
        held.wait(60)
        yield chunk("b")

    session = Sand(slow)
    worker, keeper = working(session)
    _, running = ask(worker)
    assert running.get(timeout=60)["event"] == "chunk"
    _, waiting = ask(worker)
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert session.cancelled.wait(60)
    held.set()
    closing.join(60)
    assert waiting.get(timeout=60)["message"] == "the service is going away"
    kinds = [running.get(timeout=60) for _ in range(2)]
    assert kinds[-1]["finish"] == "cancelled"
    keeper.close()


def test_requests() -> None:
    assert parse_request(b'{"op": "status", "id": 3}') == Status(3)
    assert parse_request(b'{"op": "cancel", "id": "a"}') == Cancel("a")
    found = parse_request(
        '{"prompt": "ä", "seed": 18446744073709551615, "stop": null}'.encode()
    )
    assert found == Generate(None, "ä", {"seed": 2**64 - 1})


def test_words_for_systemd(tmp_path: Path) -> None:
    quiet = Notifier({})
    quiet.ready()
    assert quiet.watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3.0
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    for odd in ("", "x", "0", "-5"):
        assert Notifier({"WATCHDOG_USEC": odd}).watchdog_s is None
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()
    name = f"\0draftwire-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(60)
        talker = Notifier({"NOTIFY_SOCKET": "@" + name[1:]})
        talker.status("one\ntwo")
        talker.status("one\ntwo")  # said already
        talker.stopping()
        assert manager.recv(99) == b"STATUS=one two"
        assert manager.recv(99) == b"STOPPING=1"
