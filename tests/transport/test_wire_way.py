"""The way to a verifier: proxies, TLS, and the connection for callers that wait."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from certificates import certificate as certificate_of
from odd_servers import (
    FIN,
    GREETING,
    HANG,
    HELLO,
    RST,
    WELCOME,
    Seen,
    beside,
    black_hole,
    http,
    network,
    said,
    script,
    serving,
)
from places import free_port

from draftwire.errors import BusyError, ConfigError, DraftwireError, TransportError
from draftwire.transport.answers import may_pass
from draftwire.transport.client import Connection
from draftwire.transport.dial import check_url, find_proxy, tls_context
from draftwire.transport.messages import Bye
from draftwire.transport.wire import WebsocketNetwork

ENVIRONMENT = [f"{kind}_proxy" for kind in "http https all no ws wss".split()]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def attempt(url: str, **options) -> Seen:
    """Connect to ``url``; return the events once it is up or down."""
    seen = Seen()
    network = WebsocketNetwork(asyncio.get_running_loop(), url, **options)
    wire = network.connect(HELLO, seen, 10)
    while not seen.log:
        await asyncio.sleep(0.001)
    wire.close()
    return seen


async def pump(reader, writer) -> None:
    while True:
        data = await reader.read(65536)
        writer.write(data)
        if not data:
            return


def relay(port: int, asked: list):
    """A CONNECT proxy that knows one host, whatever it is called."""

    async def handler(reader, writer) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.0 200 Connection established\r\n\r\n")
        up = asyncio.ensure_future(pump(reader, back))
        try:
            await pump(there, writer)
        finally:
            up.cancel()
            back.close()

    return handler


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """One certificate for ``verifier.test`` and 127.0.0.1, its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    certificate_of(folder, "DNS:verifier.test,IP:127.0.0.1", "c")
    return folder


def of_server(folder) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(folder / "c.pem"), str(folder / "c.key"))
    return context


def trusting(folder) -> ssl.SSLContext:
    return tls_context(ca=folder / "c.pem", cert=None, key=None)


# ---- addresses


async def test_a_name_that_nobody_knows_and_a_resolver_that_hangs() -> None:
    asked = threading.Event()

    def unknown(host: str, port: int):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def hangs(host: str, port: int):
        asked.wait(20)
        return []

    for resolver, words in ((unknown, "cannot be looked up"), (hangs, "name up)")):
        seen = Seen()
        network(1, resolver=resolver).connect(HELLO, seen, 0.2)
        error = await seen.until("D")
        assert words in str(error) and type(error) is TransportError and may_pass(error)
    asked.set()


@pytest.mark.parametrize("url", [None, 3, b"ws://127.0.0.1:1", "ws://", "tower:8765"])
def test_what_is_no_address_is_said(url) -> None:
    with pytest.raises(ConfigError, match="not a verifier's address"):
        check_url(url, insecure=False)


def test_a_file_of_tls_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError) as caught:
        tls_context(ca=tmp_path / "none.pem", cert=None, key=None)
    assert "none.pem" in caught.value.hint


async def test_a_refused_connection_says_where() -> None:
    seen = Seen()
    network(free_port()).connect(HELLO, seen, 10)
    error = await seen.until("D")
    assert "cannot reach a verifier at ws://127.0.0.1" in str(error)
    assert "Connection refused" in str(error) and may_pass(error)


async def test_a_dead_first_address_does_not_keep_from_the_second() -> None:
    with black_hole() as nowhere:
        async with serving(script(*GREETING)) as port:
            addresses = [("127.0.0.1", p) for p in (nowhere, free_port(), port)]
            seen = Seen()
            wire = network(
                9, resolver=lambda h, p: [(socket.AF_INET, a) for a in addresses]
            ).connect(HELLO, seen, 20)
            await seen.until("U")
            assert wire.ports[1] == port
            wire.close()


# ---- proxies


async def test_a_proxy_is_passed_with_its_login_and_without_a_look_up(monkeypatch) -> None:
    asked = []
    async with serving(script(*GREETING)) as port:
        async with serving(relay(port, asked)) as proxy:
            monkeypatch.setenv("http_proxy", f"http://ann:p%40ss@127.0.0.1:{proxy}")
            seen = await attempt("ws://verifier.test:8765/x", insecure=True)
            assert seen.found == [WELCOME]
    (request,) = asked
    assert request.startswith("CONNECT verifier.test:8765 HTTP/1.1\r\nHost: verifier")
    assert "Basic YW5uOnBAc3M=\r\n" in request


async def test_tls_goes_through_a_proxy_end_to_end(certificate, monkeypatch) -> None:
    asked = []
    async with serving(script(*GREETING), ssl=of_server(certificate)) as port:
        async with serving(relay(port, asked)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy}")
            options = {"tls": trusting(certificate), "token": "secret"}
            seen = await attempt("wss://verifier.test", **options)
            assert seen.found == [WELCOME]
            assert asked[0].startswith("CONNECT verifier.test:443 ")
            assert "secret" not in asked[0]
            seen = await attempt("wss://other.test", **options)
            (error,) = seen.found
            assert "not trusted" in str(error) and f"127.0.0.1:{proxy}" in str(error)


@pytest.mark.parametrize(
    ("steps", "kind", "words"),
    [
        ([http(407)], TransportError, "wants a login (407)"),
        ([http(403)], TransportError, "does not let us through to verifier.test:80 (403)"),
        ([http(503, "Retry-After: 3")], BusyError, "(503)"),
        ([http(302, "Location: http://login.example")], TransportError, "(302)"),
        ([b"hello\r\n"], TransportError, "no HTTP"),
        ([FIN], TransportError, "closed the connection"),
        ([RST], TransportError, ""),
        ([http(200, body=b"too much")], TransportError, "speaks before"),
        ([http(200), FIN], TransportError, "dropped it (the upgrade)"),
        ([http(200), HANG], TransportError, "within"),
    ],
)
async def test_what_fails_on_the_way_names_the_proxy(steps, kind, words) -> None:
    async with serving(script(*steps)) as proxy:
        seen = Seen()
        url = f"http://ann:hidden@127.0.0.1:{proxy}"
        loop = asyncio.get_running_loop()
        WebsocketNetwork(
            loop, "ws://verifier.test", insecure=True, proxy=url, token="secret"
        ).connect(HELLO, seen, 0.2 if HANG in steps else 10)
        error = await seen.until("D")
        assert isinstance(error, kind) and may_pass(error) and words in str(error)
        assert f"the proxy http://127.0.0.1:{proxy}" in str(error)
        assert "hidden" not in f"{error}{error.hint}"


def test_a_proxy_that_is_not_there_and_one_that_we_do_not_speak_to(monkeypatch) -> None:
    dead = free_port()
    for url, words in (
        (
            f"http://ann:hidden@127.0.0.1:{dead}",
            f"cannot reach the proxy http://127.0.0.1:{dead}",
        ),
        ("socks5h://ann:hidden@127.0.0.1:1080", "the proxy socks5h://127.0.0.1:1080"),
        ("https://127.0.0.1:3128", "the proxy https://127.0.0.1:3128"),
        ("http://[", "the proxy's address is none"),
    ):
        monkeypatch.setenv("all_proxy", url)
        (error,) = asyncio.run(attempt("wss://verifier.test")).found
        assert type(error) is TransportError and words in str(error) and may_pass(error)
        assert error.hint and "hidden" not in f"{error}{error.hint}"
    with pytest.raises(ConfigError, match="not of a kind"):
        find_proxy("socks5://127.0.0.1", "verifier.test", 1, secure=True)


async def test_this_machine_is_never_reached_through_a_proxy(monkeypatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy")

    async with serving(script(*GREETING)) as port:
        for host in ("127.0.0.1", "localhost"):
            assert (await attempt(f"ws://{host}:{port}", token="t")).found == [WELCOME]
    assert find_proxy("http://p:1", "::1", 1, secure=False) is None


def test_which_proxy_is_taken(monkeypatch) -> None:
    def taken(host: str, secure: bool) -> str:
        return str(find_proxy("auto", host, 443, secure=secure))

    assert taken("verifier.test", True) == "None"
    monkeypatch.setenv("all_proxy", "http://all:1")
    monkeypatch.setenv("http_proxy", "http://plain:2")
    assert taken("verifier.test", True) == "the proxy http://all:1"
    assert taken("verifier.test", False) == "the proxy http://plain:2"
    monkeypatch.setenv("https_proxy", "http://[::2]:3")
    monkeypatch.setenv("no_proxy", "near.test,.in.test")
    assert taken("verifier.test", True) == "the proxy http://[::2]:3"
    assert taken("near.test", True) == taken("a.in.test", True) == "None"
    assert find_proxy("off", "verifier.test", 1, secure=True) is None


# ---- TLS


async def test_a_certificate_is_checked_and_the_flag_named(certificate) -> None:
    async with serving(script(*GREETING), ssl=of_server(certificate)) as port:
        url = f"wss://127.0.0.1:{port}"
        assert (await attempt(url, tls=trusting(certificate))).found == [WELCOME]
        (error,) = (await attempt(url)).found
        assert "is not trusted" in str(error) and "--tls-ca" in error.hint
        assert may_pass(error)
        (error,) = (await attempt(url.replace("wss:", "ws:"))).found
        assert "wss://" in error.hint or "dropped it" in str(error)

    async def plain(reader, writer) -> None:
        await reader.read(100)
        writer.write(http(400))
        await reader.read()

    async with serving(plain) as port:
        (error,) = (await attempt(f"wss://127.0.0.1:{port}")).found
        assert "no TLS with" in str(error) and error.hint


async def test_a_handshake_that_hangs_is_given_up_in_time() -> None:
    async with serving(script(HANG)) as port:
        seen, loop = Seen(), asyncio.get_running_loop()
        WebsocketNetwork(loop, f"wss://127.0.0.1:{port}").connect(HELLO, seen, 0.1)
        assert "within 0.1 s (TLS)" in str(await seen.until("D"))


async def test_a_connection_may_end_at_any_byte_of_tls(certificate) -> None:
    context = trusting(certificate)
    async with serving(script(*GREETING), ssl=of_server(certificate)) as port:
        whole, size = False, 0
        while not whole:

            async def cut(reader, writer, left=size) -> None:  # FIN after so much
                there, back = await asyncio.open_connection("127.0.0.1", port)
                up = asyncio.ensure_future(pump(reader, back))
                try:
                    while left:
                        data = await there.read(left)
                        writer.write(data)
                        left -= len(data)
                finally:
                    up.cancel()
                    back.close()

            async with serving(cut) as relayed:
                seen = Seen()
                wire = WebsocketNetwork(
                    asyncio.get_running_loop(), f"wss://127.0.0.1:{relayed}", tls=context
                ).connect(HELLO, seen, 10)
                while not seen.log:
                    await asyncio.sleep(0.001)
                whole = seen.log.startswith("U")  # the end may have come by now as well
                if whole:
                    wire.close()
                    continue
                (error,) = seen.found
                assert type(error) is TransportError and may_pass(error)
                size += 37
        assert size > 700


# ---- for callers that wait


def loops() -> list:
    return [t for t in threading.enumerate() if t.name == "draftwire-connection"]


async def test_a_connection_waits_sends_and_leaves_no_thread() -> None:
    def use(url: str) -> None:
        connection = Connection(url, HELLO)
        assert connection.welcome == WELCOME and connection.url == url
        assert connection.receive(20) == Bye("stop")
        assert connection.receive(0.01) is None
        connection.send(Bye("deadline"))
        assert (connection.traffic.up_frames, connection.traffic.down_frames) == (2, 2)
        assert connection.ports[1] == int(url.rpartition(":")[2])
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(connection.receive)
            connection.close()
            with pytest.raises(DraftwireError, match="is closed"):
                waiting.result(20)
        assert connection.ports == (0, 0)
        connection.close()
        with pytest.raises(TransportError):
            connection.send(Bye())
        with pytest.raises(TransportError):
            connection.receive()

    await beside(script(*GREETING, said(Bye("stop"))), use)
    assert not loops()


async def test_a_lost_connection_says_so_to_everybody_and_its_thread_ends() -> None:
    def use(url: str) -> None:
        connection = Connection(url, HELLO)
        assert connection.receive(20) == Bye()
        for _ in range(2):
            with pytest.raises(TransportError, match="is gone"):
                connection.receive(20)
        connection._thread.join(20)
        with pytest.raises(TransportError, match="is gone"):
            connection.send(Bye())
        assert not loops()
        connection.close()

    await beside(script(*GREETING, said(Bye()), FIN), use)
    with pytest.raises(TransportError, match="refuses the token"):
        await beside(script(http(401)), lambda url: Connection(url, HELLO))
    with pytest.raises(TransportError, match="no answer"):
        await beside(script(HANG), lambda url: Connection(url, HELLO, timeout=0.1))
    assert not loops()
