"""``draftwire service`` as systemd and local programs see it: processes and sockets."""

import contextlib
import grp
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from places import free_port
from service_lab import (
    FIXTURES,
    PATIENCE_S,
    Manager,
    eventually,
    service,
    verifier,
)

from draftwire.cli import main
from draftwire.errors import ConfigError, DraftwireError, TransportError
from draftwire.runtime.service.client import ServiceClient, default_socket
from draftwire.runtime.service.http import MAX_CLIENTS


def text_of(events):
    return "".join(event.get("text", "") for event in events)


def test_a_verifier_that_comes_goes_and_comes_back(tmp_path):
    """The whole life: no verifier, one, killed in mid-stream, another, SIGTERM."""
    manager = Manager(tmp_path)
    port = free_port()  # nobody listens on it yet
    environ = {
        "NOTIFY_SOCKET": str(manager.path),
        "WATCHDOG_USEC": "600000",
        "JOURNAL_STREAM": "8:1",
    }
    with service(tmp_path, port, **environ) as running:
        found = running.status()
        # Ready without a verifier: a board boots before its network.
        eventually(lambda: "READY=1" in manager.heard, "it says that it is ready")
        assert found["link"]["state"] == "connecting" and found["target"] is None
        with running.client() as client:
            with pytest.raises(TransportError, match="no verifier yet"):
                list(client.generate("a", patience_s=0.1))
            with pytest.raises(TransportError, match="no verifier yet"):
                list(client.generate("a", deadline_s=0.1))
            with pytest.raises(TransportError, match="no verifier yet"):
                list(client.generate("a", offline="error"))
        with verifier(port):
            running.up()
            with running.client() as client:
                whole = list(client.generate("Once", max_new_tokens=24))
                assert whole[-1]["finish"] == "length"
                assert whole[-1]["report"]["tokens"] == 24
                assert whole[-1]["report"]["schema"] == "draftwire.report/1"
                half = client.generate("Once", max_new_tokens=4000, patience_s=PATIENCE_S)
                begun = [next(half) for _ in range(3)]
        eventually(lambda: running.status()["link"]["state"] != "up", "the loss is seen")
        with verifier(port):
            found = running.up()
            assert found["link"]["reconnects"] + found["streams"]["finished"] >= 1
            with running.client() as client:
                again = list(client.generate("Once", max_new_tokens=24))
            assert text_of(again) == text_of(whole)
            assert text_of(whole).startswith(text_of(begun)[:1])
            pings = manager.heard.count("WATCHDOG=1")
            eventually(lambda: manager.heard.count("WATCHDOG=1") > pings + 3, "pings")
            assert running.stop() == 0
        assert "STOPPING=1" in manager.heard
        assert any(line.startswith("STATUS=connected to target") for line in manager.heard)
        assert any(line.startswith("STATUS=no verifier") for line in manager.heard)
        assert not running.socket.exists()
        state = json.loads((running.state / "state.json").read_text())
        assert (state["starts"], state["clean_stops"]) == (1, 1)
        assert state["tokens"] >= 48
        assert "<5>draftwire.service: " in (tmp_path / "log").read_text()
    manager.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One verifier and one service for the tests that do not break them."""
    folder = tmp_path_factory.mktemp("service")
    with verifier() as (_, port), service(folder, port, "--block", "2") as running:
        running.up()
        yield running


def test_without_a_verifier_the_draft_answers_alone(tmp_path, capsys):
    """A robot boots in a cellar: text at once, marked; and verified once there is one."""
    port = free_port()
    with service(tmp_path, port, "--offline", "draft", "--patience", "0") as running:
        ask = ["service", "ask", "Once", "--socket", str(running.socket)]
        with running.client() as client:
            # Twice: what was read before is read no more, and may round otherwise.
            events = [list(client.generate("Once", max_new_tokens=8)) for _ in "12"][1]
        assert events[-1]["finish"] == "length" and events[-1]["report"]["tokens"] >= 7
        assert not any(e["verified"] for e in events[:-1] if e["token_ids"])
        assert "draft's alone" in " ".join(events[-1]["report"]["warnings"])
        assert running.status()["target"] is None
        assert main([*ask, "--max-new-tokens", "8"]) == 0
        said = capsys.readouterr()
        assert said.out.strip("\n") == text_of(events) and "draft's alone" in said.err
        # Whoever wants verified text is told that there is none, and why.
        assert main([*ask, "--offline", "wait", "--deadline", "0.1"]) == 4
        assert "no verifier yet" in capsys.readouterr().err
        with verifier(port):
            running.up()
            assert main([*ask, "--max-new-tokens", "8", "--patience", "60"]) == 0
            assert "alone" not in capsys.readouterr().err
            with running.client() as client:
                events = list(client.generate("Once", max_new_tokens=8, patience_s=60))
            assert events[-1]["report"]["target"]["name"] == "tiny"
            assert all(e["verified"] for e in events[:-1])
    with service(tmp_path, port) as second:  # what the verifier said is remembered

        def known():
            return second.status()["target"]

        assert eventually(known, "the target is known")["name"] == "tiny"


def test_streams_run_together_cancel_and_leave(shared):
    def quiet():
        found = shared.status()["streams"]
        return found["running"] == found["waiting"] == 0

    with shared.client() as client:
        alone = list(client.generate("Once", max_new_tokens=40))
    clients = [shared.client() for _ in range(5)]
    streams = [c.generate("Once", max_new_tokens=150) for c in clients[:4]]
    for stream in streams:  # four at once
        next(stream)
    with clients[4] as other:
        # The fifth program waits for its turn, and gets it when one ends.
        answer = []
        waiting = threading.Thread(
            target=lambda: answer.extend(other.generate("Once", max_new_tokens=40))
        )
        waiting.start()
        streams[0].close()  # sends cancel
        waiting.join(PATIENCE_S)
        assert text_of(answer) == text_of(alone)
        assert answer[-1]["report"]["token_ids"] == alone[-1]["report"]["token_ids"]
    for client, stream in zip(clients[1:4], streams[1:4]):
        events = list(stream)
        assert events[-1]["finish"] == "length", events[-1]
        client.close()
    clients[0].close()
    before = shared.status()["streams"]["cancelled"]
    gone = shared.client()
    next(gone.generate("Once", max_new_tokens=8000))
    gone.close()  # without a word, as a crashed program
    eventually(lambda: shared.status()["streams"]["cancelled"] > before, "it is cancelled")
    eventually(quiet, "nothing runs")


def test_limits(shared):
    clients = []

    def come_in():
        client = shared.client()
        with contextlib.suppress(TransportError):  # those of other tests still hang up
            client.status()
            clients.append(client)
            return len(clients) == MAX_CLIENTS
        client.close()
        return False

    try:
        eventually(come_in, "all are in")
        with pytest.raises(TransportError, match="connected already|went away"):
            with shared.client() as one_more:
                one_more.status()
    finally:
        for client in clients:
            client.close()

    def there_is_room():
        with contextlib.suppress(TransportError):  # the last of them still hang up
            return bool(shared.status())

    eventually(there_is_room, "the service takes programs again")


def test_the_commands(shared, capsys):
    where = ["--socket", str(shared.socket)]
    assert main(["service", "status", *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "draftwire.service/1"
    assert found["link"]["state"] == "up" and found["state"]["kept"]
    assert found["draft"]["name"] and found["memory_mib"] > 1
    assert main(["service", "status", *where]) == 0
    assert capsys.readouterr().out.startswith("up: target ")
    with shared.client() as client:
        whole = list(client.generate("Once", max_new_tokens=5))
        other = {
            "pipeline": 2,
            "objective": "latency",
            "controller": "fixed:3",
        }
        assert text_of(list(client.generate("Once", max_new_tokens=5, **other))) == text_of(
            whole
        )
    assert main(["service", "ask", "Once", "--max-new-tokens", "5", *where]) == 0
    assert capsys.readouterr().out.strip("\n")
    assert main(["service", "status", "--socket", str(shared.folder / "other")]) == 4
    said = capsys.readouterr().err
    assert "no service listens" in said and "systemctl" in said


def test_the_socket_is_for_its_group_and_for_one_service(shared, tmp_path, capsys):
    mode = shared.socket.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    words = ["service", "run", "--verifier", "ws://127.0.0.1:1"]
    words += ["--draft", str(FIXTURES / "tiny.draft")]
    assert main([*words, "--socket", str(shared.socket)]) == 2
    assert "runs at" in capsys.readouterr().err
    assert shared.status()["healthy"]
    mine = ["--socket", str(tmp_path / "s")]
    assert main([*words, *mine, "--socket-group", "no-such-group"]) == 2
    assert "no group" in capsys.readouterr().err and not (tmp_path / "s").exists()
    (tmp_path / "s").write_text("a file of somebody's")
    assert main([*words, *mine]) == 2
    assert "is no socket" in capsys.readouterr().err and (tmp_path / "s").exists()


def test_a_service_after_one_that_was_killed(tmp_path):
    group = grp.getgrgid(os.getgid()).gr_name
    with service(tmp_path, 1, "--socket-group", group) as first:
        first.status()
        assert stat.S_IMODE(first.socket.stat().st_mode) == 0o660
        first.process.kill()
        first.process.wait()
        assert first.socket.exists()  # and the next one takes it over
    with service(tmp_path, 1) as second:
        state = second.status()["state"]
        assert (state["starts"], state["clean_stops"]) == (2, 0)
        assert second.stop() == 0


def test_what_cannot_mend_itself_ends_the_service(tmp_path, capsys):
    words = ["service", "run", "--verifier", "ws://127.0.0.1:1"]
    words += ["--socket", str(tmp_path / "s")]
    assert main([*words, "--draft", str(tmp_path / "gone")]) == 5
    good = [*words, "--draft", str(FIXTURES / "tiny.draft")]
    assert main([*good, "--token-file", str(tmp_path / "gone")]) == 2
    assert "token file" in capsys.readouterr().err
    assert main(["service", "run", "--socket", str(tmp_path / "s")]) == 2
    assert "no verifier is set" in capsys.readouterr().err


def test_where_the_socket_is_looked_for(tmp_path):
    assert default_socket({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path(
        "/run/a/draftwire.sock"
    )
    own = default_socket({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert own in (
        tmp_path / "draftwire" / "draftwire.sock",
        Path("/run/draftwire/draftwire.sock"),
    )
    with pytest.raises(TransportError, match="no service listens"):
        ServiceClient(tmp_path / "gone")
    assert issubclass(ConfigError, DraftwireError)
