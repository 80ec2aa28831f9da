"""Real proxies between a real device and a real verifier: ``make test-proxies``.

The configurations are those of docs/proxies.md, taken from the document.
"""

import os
import re
import shutil
import socket
import subprocess
import threading
import time

import places
import pytest
from certificates import authority
from places import FIXTURES, ROOT, free_port
from tools.fetch import PATH, runs

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import DraftwireError, TransportError

DOCUMENT = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
CONFIGS = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", DOCUMENT, re.S))
PROMPT = [5, 17, 3, 99, 41]

# Name in the document -> the program, and where devices connect.
KINDS = {
    "nginx-tls.conf": ("nginx", "wss://localhost:{port}/draftwire/"),
    "nginx-ingress.conf": ("nginx", "ws://127.0.0.1:{port}/models/a?site=3"),
    "Caddyfile": ("caddy", "wss://localhost:{port}/draftwire/x?y=1"),
    "haproxy-tls.cfg": ("haproxy", "wss://localhost:{port}/draftwire/"),
    "haproxy-pass.cfg": ("haproxy", "wss://localhost:{port}/any/path"),
}
NGINX = """daemon off; {user} pid nginx.pid; error_log stderr warn; events {{}}
http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy;
fastcgi_temp_path a; uwsgi_temp_path b; scgi_temp_path c; include proxy.conf; }}"""
CADDY = "{\n admin off\n auto_https disable_redirects\n}\n"
# A target that thinks for three seconds once it has been asked `at` times.
THINKING = """
import sys, time
from draftwire.verifier.backends import onnx_target
real, asked = onnx_target.OnnxTarget.forward, 0
def forward(self, *given, **named):
    global asked
    asked += 1
    if asked == {at}:
        time.sleep(3)
    return real(self, *given, **named)
onnx_target.OnnxTarget.forward = forward
from draftwire.cli import main
sys.exit(main(sys.argv[1:]))
"""


def find(name):
    """Return the path of a proxy that runs; Debian keeps two where no user looks."""
    if not runs(name):
        pytest.skip(f"{name} is not installed: make test-proxies fetches it")
    return shutil.which(name, path=PATH)


class Proxy:
    """One proxy process with a configuration of the document.

    Args:
        kind: Its name there.
        folder: For its files; has the certificates.
        backend: Port of the verifier.
        changes: What stands in the configuration -> what shall stand there.
    """

    def __init__(self, kind, folder, backend, **changes):
        program, url = KINDS[kind]
        self.program = find(program)
        self.port = free_port()
        self.url = url.format(port=self.port)
        text = CONFIGS[kind]
        changes = changes.get("changes", {})
        fill = {"127.0.0.1:8765": f"127.0.0.1:{backend}"}
        listen = {
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "listen 80": f"listen 127.0.0.1:{self.port}",
            "bind :443": f"bind 127.0.0.1:{self.port}",
            ".example:443": f".example:{self.port}",
        }
        fill.update({a: b for a, b in listen.items() if a in text})
        assert len(fill) == 2, kind  # it listens somewhere
        for old in ("verifier.example", "/etc/ssl/"):
            if old in text:
                fill[old] = {"/": f"{folder}/", "v": "localhost"}[old[0]]
        for old, new in {**changes, **fill}.items():
            assert old in text, (kind, old)
            text = text.replace(old, new)
        self.folder = folder / f"{kind}-{self.port}"
        self.folder.mkdir()
        (self.folder / "proxy.conf").write_text(
            ("" if program != "caddy" else CADDY) + text
        )
        words = {
            "nginx": ["-p", str(self.folder), "-c", "nginx.conf", "-e", "stderr"],
            "caddy": ["run", "--config", "proxy.conf", "--adapter", "caddyfile"],
            "haproxy": ["-db", "-f", "proxy.conf"],
        }[program]
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(NGINX.format(user=user))
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [self.program, *words],
                cwd=self.folder,
                env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)},
                stdout=log,
                stderr=log,
            )
        self.wait()

    def wait(self):
        for _ in range(500):
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Verifier(VerifierProcess):
    """The verifier's process, with its log in a file; maybe with one that thinks."""

    def __init__(self, log, *flags, thinks_at=None):
        words = ["-v", *map(str, flags)]
        super().__init__([FIXTURES / "tiny.target"], flags=words, log=log)
        if thinks_at is not None:
            self._words[1:3] = ["-c", THINKING.format(at=thinks_at)]
        self.log = log

    @property
    def alive(self):
        return self._process is not None and self._process.poll() is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a test authority and a certificate for ``localhost``."""
    here = authority(tmp_path_factory.mktemp("proxies"), "DNS:localhost", "verifier")
    both = (here / "verifier.pem").read_text() + (here / "verifier.key").read_text()
    (here / "verifier.both.pem").write_text(both)
    return here


@pytest.fixture(scope="module")
def verifiers(folder):
    """Return a function that gives the verifier with such flags; started once."""
    running = {}

    def get(*flags, **options):
        key = (flags, *options.values())
        if key not in running:
            running[key] = Verifier(folder / f"log{len(running)}", *flags, **options)
        if not running[key].alive:
            running[key].start()
        return running[key]

    yield get
    for verifier in running.values():
        verifier.kill()


@pytest.fixture
def through(folder, verifiers):
    """Return a function that puts a proxy in front of a verifier."""
    proxies = []

    def start(kind, *flags, changes=None, **options):
        find(KINDS[kind][0])  # before a verifier is started
        flags = ("--trusted-proxy", "127.0.0.1", *flags)
        if kind == "haproxy-pass.cfg":
            files = folder / "verifier.pem", folder / "verifier.key"
            flags += ("--tls-cert", files[0], "--tls-key", files[1])
        verifier = verifiers(*flags, **options)
        proxy = Proxy(kind, folder, verifier.port, changes=changes or {})
        proxy.verifier = verifier
        proxies.append(proxy)
        return proxy

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture(scope="module")
def expected(verifiers):
    """Return the text without any proxy."""
    verifier = verifiers("--trusted-proxy", "127.0.0.1")
    with draftwire.connect(
        f"ws://127.0.0.1:{verifier.port}", draft=FIXTURES / "tiny.draft"
    ) as session:
        return texts(session)


def texts(session, tokens=60):
    return [
        [
            token.id
            for chunk in session.generate(
                PROMPT, max_new_tokens=tokens, temperature=heat, seed=3
            )
            for token in chunk.tokens
        ]
        for heat in (0.0, 0.9)
    ]


def connect(proxy, folder, **options):
    if proxy.url.startswith("wss:"):
        options["tls_ca"] = folder / "ca.pem"
    options.setdefault("silence_s", 15)
    return draftwire.connect(proxy.url, draft=FIXTURES / "tiny.draft", **options)


def refusal(proxy, folder, **options):
    with pytest.raises(DraftwireError) as caught:
        connect(proxy, folder, **options).close()
    return caught.value, f"{caught.value} ({caught.value.hint})"


def test_the_document_has_every_configuration():
    assert set(CONFIGS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_the_same_through_it(kind, through, folder, expected):
    proxy = through(kind)
    with connect(proxy, folder) as session:
        assert texts(session) == expected
        assert session.link.reconnects == 0
    words = ["check", "--health", proxy.url, "--ca", folder / "ca.pem"]
    done = places.draftwire("verifier", *words)
    assert done.returncode == 0 and "tiny" in done.stdout, done.stderr
    if kind in ("nginx-tls.conf", "Caddyfile", "haproxy-tls.cfg"):
        # The proxy's own address says nothing; what it heard of the device is another.
        assert re.search(r"127\.0\.0\.1 \(through ", proxy.verifier.log.read_text())


@pytest.mark.parametrize("kind", ["nginx-ingress.conf", "Caddyfile", "haproxy-tls.cfg"])
def test_a_verifier_that_restarts_behind_it(kind, through, folder, expected):
    proxy = through(kind)
    answers = set()
    with connect(proxy, folder) as session:
        found = []
        for chunk in session.generate(PROMPT, max_new_tokens=60, seed=3, patience_s=120):
            found += [token.id for token in chunk.tokens]
            if len(found) > 10 and not answers:
                proxy.verifier.kill()
                for _ in range(1000):
                    answers |= set(re.findall(r"\((50[234])\)", session.link.error))
                    if answers:
                        break
                    time.sleep(0.02)
                proxy.verifier.start()
        assert found == expected[0]
        assert session.link.reconnects >= 1
    assert answers <= {"502", "503"} and answers


IMPATIENT = {
    "nginx-ingress.conf": {"proxy_read_timeout 60s": "proxy_read_timeout 2s"},
    "haproxy-tls.cfg": {"timeout tunnel  1h": "timeout tunnel  2s"},
}


@pytest.mark.parametrize("kind", IMPATIENT)
@pytest.mark.parametrize("ping_s", [0.5, 20])
def test_a_target_that_thinks_for_longer_than_the_proxy_waits(
    kind, ping_s, through, folder, expected
):
    """The verifier's pings keep the link alive, or else the waiting device's."""
    flags = "--ping-seconds", str(ping_s)
    proxy = through(kind, *flags, changes=IMPATIENT[kind], thinks_at=8)
    with connect(proxy, folder) as session:
        stream = session.generate(PROMPT, max_new_tokens=60, seed=3, patience_s=120)
        assert [token.id for chunk in stream for token in chunk.tokens] == expected[0]
        assert session.link.reconnects == 0
    proxy.verifier.kill()  # it thinks once in its life


INGRESS = "nginx-ingress.conf"
OFFER = "proxy_set_header Host $host;"  # something else may stand beside it


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("listen 80;", "listen 80; client_max_body_size 1;"),  # a byte
        (OFFER, OFFER + 'proxy_set_header Sec-WebSocket-Protocol "chat,   $offer, x";'),
        ("proxy_buffering off;", "proxy_buffering on;"),
    ],
    ids=["a limit on bodies", "others are offered too", "buffering"],
)
def test_what_does_no_harm(old, new, through, folder, expected):
    new = new.replace("$offer", "$http_sec_websocket_protocol")
    proxy = through(INGRESS, changes={old: new})
    with connect(proxy, folder) as session:
        assert texts(session) == expected
        long = session.generate(list(range(1, 120)), max_new_tokens=4)
        assert sum(len(chunk.tokens) for chunk in long) == 4


NOT_PASSED = [
    (INGRESS, {"location /models/a": "location /models/b"}, "status 404"),
    (
        INGRESS,
        {"proxy_set_header Upgrade $http_upgrade;": ""},
        "400: nothing here but a websocket; a proxy must pass Upgrade and Connection",
    ),
    (
        INGRESS,
        {OFFER: OFFER + 'proxy_set_header Sec-WebSocket-Protocol "";'},
        "a proxy must pass Sec-WebSocket-Protocol",
    ),
    (
        INGRESS,
        {OFFER: OFFER + "proxy_hide_header Sec-WebSocket-Protocol;"},
        "a proxy on the way drops Sec-WebSocket-Protocol: docs/proxies.md",
    ),
    (
        INGRESS,
        {"listen 80;": "listen 80; large_client_header_buffers 2 1k;"},
        "400 (is there another service on this port? or a proxy that passes no "
        "websockets, or no heads of this length?)",
    ),
    (INGRESS, {"max_fails=0": "down"}, "takes no new devices now (502)"),
    ("haproxy-tls.cfg", {"check inter 1s fall 1 rise 1": "disabled"}, "now (503)"),
    ("haproxy-pass.cfg", {"-i verifier": "-i other.verifier"}, "instead of speaking TLS"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), NOT_PASSED)
def test_what_it_does_not_pass_is_said_in_a_sentence(kind, changes, words, through, folder):
    proxy = through(kind, changes=changes)
    token = "t" * 1500 if "heads of this length" in words else None
    error, sentence = refusal(proxy, folder, token=token)
    assert isinstance(error, TransportError)
    sentence = sentence.replace(proxy.url.partition("?")[0], "it")
    assert words in sentence, sentence
    assert "site=3" not in sentence  # a query may be a secret


def test_an_idle_session_outlives_the_proxys_patience(through, folder, expected):
    """Between streams nothing is owed: what was cut comes back before it is needed."""
    proxy = through(INGRESS, changes=IMPATIENT[INGRESS])
    with connect(proxy, folder) as session:
        lost = threading.Event()
        for _ in range(400):
            if session.link.reconnects:
                lost.set()
                break
            time.sleep(0.02)
        assert lost.is_set() and texts(session) == expected
