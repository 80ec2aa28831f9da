"""Emulated links between real sockets: bytes, ratios and cleaning up; no wall clock.

A busy machine makes everything later, so delays are checked from below and rates from
above.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from draftwire.bench.link.emulate import choose_method, emulate
from draftwire.bench.link.netem import (
    Namespace,
    NetemLink,
    netem_words,
    why_no_netem,
    why_not_netem,
)
from draftwire.bench.link.probe import Server, exactly
from draftwire.bench.link.spec import LinkSpec
from draftwire.cli import main
from draftwire.errors import BoardError, ConfigError
from draftwire.io import environment

NO_NETEM = why_no_netem()
METHODS = [
    "proxy",
    pytest.param("netem", marks=pytest.mark.skipif(bool(NO_NETEM), reason=NO_NETEM or "-")),
]
WAIT_S = 60


@pytest.fixture(scope="module")
def server():
    server = Server()  # echoes to those who ask for it
    yield server
    server.close()


def connect(port):
    link = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(b"e")
    return link


def ping(link):
    start = time.perf_counter()
    link.sendall(b"x" * 64)
    assert exactly(link, 64) == b"x" * 64
    return time.perf_counter() - start


def there_and_back(link, data):
    """Send everything, end the sending half, and return what came back."""
    sender = threading.Thread(
        target=lambda: (link.sendall(data), link.shutdown(socket.SHUT_WR))
    )
    sender.start()
    got = b""
    while piece := link.recv(65536):
        got += piece
    sender.join()
    return got


@pytest.mark.parametrize("method", METHODS)
def test_delay_rate_and_bytes(server, method):
    spec = LinkSpec.parse("40ms/up=4mbit/down=100mbit")
    with emulate(spec, server.port, method) as link:
        assert link.method == method and link.alive
        with connect(link.url_port) as sock:
            ping(sock)
            trips = [ping(sock) for _ in range(8)]
            assert min(trips) >= 0.97 * 0.040
            data = os.urandom(100_000)
            start = time.perf_counter()
            assert there_and_back(sock, data) == data
            took = time.perf_counter() - start
            assert 8 * len(data) / took <= 1.02 * 4e6
        stats = link.stats()
        assert stats["up"]["bytes"] >= len(data)
    assert not link.alive


@pytest.mark.parametrize("method", METHODS)
def test_loss_delays_and_loses_nothing(server, method):
    with emulate("4ms/20mbit/loss=4%/seed=2", server.port, method, calibrate=False) as link:
        data = os.urandom(120_000)
        with connect(link.url_port) as sock:
            assert there_and_back(sock, data) == data
        up = link.stats()["up"]
        assert up["stalls" if method == "proxy" else "loss"] > 0
    notes = " ".join(link.notes)
    assert ("imitated" in notes) == (method == "proxy")


def test_nothing_passes_in_an_outage(server):
    before = time.monotonic()
    with emulate("2ms/outage=0s+0.9s", server.port, "proxy", calibrate=False) as link:
        with connect(link.url_port) as sock:
            ping(sock)
            assert time.monotonic() - before >= 0.9
        assert link.stats()["up"]["stalls"] > 0


def test_a_trace_holds_back_what_it_must(server, tmp_path):
    path = tmp_path / "slow.csv"
    path.write_text("t_s,mbit_s\n0,0.4\n0.1,0.0\n0.2,0.8\n0.3,0.0\n")
    with emulate(f"trace-up:{path}", server.port, "proxy", calibrate=False) as link:
        data = os.urandom(15_000)
        with connect(link.url_port) as sock:
            start = time.perf_counter()
            assert there_and_back(sock, data) == data
            took = time.perf_counter() - start
        # 120,000 bits over a round of 0.4 s: 300 kbit/s, two rounds' luck at the edges.
        assert 8 * len(data) / 0.3e6 - took <= 0.4


@pytest.mark.parametrize("method", METHODS)
def test_many_connections_and_a_server_that_is_gone(server, method):
    with emulate("2ms", server.port, method, calibrate=False) as link:
        socks = [connect(link.url_port) for _ in range(20)]
        for i, sock in enumerate(socks):
            sock.sendall(b"%4d" % i)
        assert [exactly(sock, 4) for sock in socks] == [b"%4d" % i for i in range(20)]
        for sock in socks:
            sock.close()
    with socket.create_server(("127.0.0.1", 0)) as door:
        gone = door.getsockname()[1]
    with emulate("2ms", gone, method, calibrate=False) as link:
        try:
            with connect(link.url_port) as sock:
                assert sock.recv(10) == b""
        except ConnectionResetError:
            pass


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(what):
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end, "still there"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_link_is_gone(server, number):
    with emulate("2ms", server.port, "proxy", calibrate=False) as link:
        with connect(link.url_port) as sock:
            ping(sock)
            os.kill(link.pid, number)
            wait_for(lambda: not link.alive)
            with pytest.raises(BoardError, match="gone"):
                link.stats()


@pytest.mark.parametrize("method", METHODS)
def test_a_link_ends_with_the_program_that_wanted_it(server, method):
    script = (
        "import sys, time\n"
        "from draftwire.bench.link.emulate import emulate\n"
        f"link = emulate('2ms', {server.port}, {method!r}, calibrate=False)\n"
        "print(link.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(),
        stdout=subprocess.PIPE,
    )
    with process:
        worker = int(process.stdout.readline())
        process.kill()
        wait_for(lambda: gone(worker))


# netem: the words everywhere, the devices as root, the kernel's part where it is


def test_netem_words():
    spec = LinkSpec.parse("80ms/2mbit/loss=1%/queue=64kb")
    assert netem_words(spec, "up", less_s=0.0001) == (
        "netem delay 39900us loss random 1% rate 2000000bit -14 limit 49".split()
    )
    bursty = netem_words(LinkSpec.parse("burst=1%:25%"), "down")
    assert bursty == "netem delay 0us loss gemodel 1% 25% 100% 0% limit 10000".split()
    assert not why_not_netem(spec)
    for text in ("trace:x.csv", "outage=1s+1s", "jitter=5ms"):
        assert why_not_netem(LinkSpec.parse(text))
        with pytest.raises(ConfigError):
            choose_method(LinkSpec.parse(text), "netem")


async def test_the_devices_of_a_netem_link_carry_bytes_and_leave_nothing(server):
    try:
        os.close(Namespace().fd)
    except (BoardError, OSError) as why:
        pytest.skip(str(why))
    loop, data = asyncio.get_running_loop(), os.urandom(200_000)
    link = NetemLink(LinkSpec(), ("127.0.0.1", server.port))
    port = await link.start()

    def carry():
        with connect(port) as sock:
            return there_and_back(sock, data)

    assert await loop.run_in_executor(None, carry) == data
    await link.stop()
    assert "dw-" not in Path("/proc/net/dev").read_text()


# The command


def test_the_command_runs_until_it_is_interrupted(server):
    words = f"--spec 10ms/20mbit --to 127.0.0.1:{server.port} --method proxy".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "draftwire", "bench", "link", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        line = process.stdout.readline()
        assert line.rstrip().endswith("over 10ms/20mbit, by proxy")
        with connect(int(line.split(" ")[0].rpartition(":")[2])) as sock:
            assert ping(sock) >= 0.97 * 0.010
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert "up: " in said and "lateness" in said


def test_the_check_compares_with_the_ideal(capsys):
    words = "check --spec 10ms/8mbit --method proxy --pings 6 --seconds 0.2 --json".split()
    assert main(["bench", "link", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "draftwire.bench.link/1"
    rtt = found["rtt_ms"]
    assert rtt["count"] == 6
    assert rtt["median_ideal"] == pytest.approx(10.232, abs=0.01)
    assert rtt["median_measured"] >= 0.97 * rtt["median_ideal"]
    for way in ("up", "down"):
        bulk = found["bulk"][way]
        assert bulk["mbit_s_ideal"] == pytest.approx(8 * 1448 / 1500, rel=0.01)
        assert bulk["bytes"] > 60_000 and bulk["mbit_s_measured"] > 0
        assert found["loss"][way]["measured"] == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--to", "127.0.0.1:9"], 2, "no --spec"),
        (["--spec", "40ms"], 2, "HOST:PORT"),
        (["--spec", "40ms", "--to", "nowhere"], 2, "no HOST:PORT"),
        (["--spec", "lann", "--to", "127.0.0.1:9"], 2, "did you mean lan"),
        (["--spec", "trace:/none.csv", "--to", "127.0.0.1:9"], 2, "cannot read the trace"),
        (["--spec", "lan", "--to", "h:9", "--listen", "65536"], 2, "'65536' is not"),
        (["--spec", "lan", "--to", "127.0.0.1:9", "--method", "magic"], 2, "no method"),
    ],
)
def test_wrong_words_are_refused_with_advice(words, code, says, capsys):
    assert main(["bench", "link", *words]) == code
    assert says in capsys.readouterr().err


def test_a_port_that_is_taken(server):
    with pytest.raises(BoardError, match="did not start"):
        emulate("lan", server.port, "proxy", listen_port=server.port, calibrate=False)
