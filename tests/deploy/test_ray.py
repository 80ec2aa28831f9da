"""Two replicas under Ray Serve, real devices, one replica killed: ``make test-ray``."""

import os
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from places import FIXTURES, ROOT

pytest.importorskip("ray")

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.errors import ConfigError, DraftwireError

DRAFT, TARGET = FIXTURES / "tiny.draft", FIXTURES / "tiny.target"
PORT = 18431
URL = f"ws://127.0.0.1:{PORT}"
PROMPTS = [[5, 17, 3 + i] for i in range(6)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    sys.path.insert(0, str(ROOT))
    # It would write a token into the home folder.
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import ray
    from deploy.ray_serve import app
    from ray import serve

    from draftwire.verifier.serving.accounts import make_token_line, write_token_file

    tokens = tmp_path_factory.mktemp("ray") / "tokens"
    line = make_token_line()
    write_token_file(tokens, line)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    settings = {"target": str(TARGET), "token_file": str(tokens), "num_cpus": "0.4"}
    serve.run(app({**settings, "threads": "1"}), name="draftwire")
    yield serve, tokens, line.split()[0]
    serve.shutdown()
    ray.shutdown()
    sys.path.remove(str(ROOT))


def texts(session):
    found = []
    for number, prompt in enumerate(PROMPTS):
        options = {"temperature": 0.8 * (number % 2), "seed": number}
        chunks = session.generate(prompt, max_new_tokens=40, patience_s=120.0, **options)
        found.append([token.id for chunk in chunks for token in chunk.tokens])
    return found


@pytest.fixture(scope="module")
def expected():
    alone = VerifierProcess([TARGET], flags=["--threads", "1"])
    alone.start()
    with draftwire.connect(alone.url, draft=str(DRAFT)) as session:
        found = texts(session)
    alone.kill()
    return found


def replicas():
    """Return the process of each replica."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
        if words.startswith("ray::ServeReplica:draftwire:verifier"):
            found.add(int(folder.name))
    return found


@pytest.mark.timeout(600)
def test_texts_are_the_targets_while_a_replica_is_killed(deployment, expected):
    _, tokens, _ = deployment
    before = replicas()
    assert len(before) == 2
    wrong, reconnects = [], []

    def device():
        with draftwire.connect(
            URL, draft=str(DRAFT), token=tokens.read_text().split()[0]
        ) as session:
            for _ in range(3):
                try:
                    found = texts(session)
                except DraftwireError as error:
                    found = [str(error)]
                if found != expected:
                    wrong.append(found)
            reconnects.append(session.link.reconnects)

    threads = [threading.Thread(target=device) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(3.0)
    os.kill(min(before), signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert not wrong and len(reconnects) == 4
    print(f"4 devices, {4 * 3 * len(PROMPTS)} texts, links that came back: {reconnects}")
    deadline = time.monotonic() + 120
    while len(replicas()) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(replicas()) == 2  # Ray has started another one


@pytest.mark.timeout(300)
async def test_a_session_that_comes_back_finds_its_stream(deployment):
    from websockets.asyncio.client import connect

    from draftwire.packages import load_draft
    from draftwire.runtime.greeting import hello_of
    from draftwire.transport.codec import SUBPROTOCOL, Codec
    from draftwire.transport.dial import SESSION_HEADER
    from draftwire.transport.messages import Open, Opened, Resume, Resumed, Welcome

    _, _, token = deployment
    hello = hello_of(load_draft(DRAFT), "")

    async def said(session, message):
        headers = {"Authorization": f"Bearer {token}", SESSION_HEADER: session}
        async with connect(
            URL, subprotocols=[SUBPROTOCOL], additional_headers=headers, compression=None
        ) as socket:
            await socket.send(Codec().encode(hello))
            welcome = Codec().decode(await socket.recv()).message
            assert isinstance(welcome, Welcome)
            codec = Codec(welcome.vocab_size)
            await socket.send(codec.encode(message))
            answer = codec.decode(await socket.recv()).message
            socket.transport.abort()  # as a lost link
            return answer

    for number in range(6):
        session = f"{number * 0x2468ACE1 + 7:016x}"[-16:]
        request = Open((5, 17, 3), "greedy", 0.0, 0, 1.0, 0, 30, ())
        opened = await said(session, request)
        assert isinstance(opened, Opened)
        assert opened.id.hex()[:8] == session[:8]
        answer = await said(session, Resume(opened.id, opened.secret, 0))
        assert isinstance(answer, Resumed), answer


def test_who_has_no_token_is_refused(deployment):
    with pytest.raises(DraftwireError, match="refuses"):
        with draftwire.connect(URL, draft=str(DRAFT)) as session:
            texts(session)
    health = f"http://127.0.0.1:{PORT}/healthz"
    with urllib.request.urlopen(health, timeout=30) as answer:
        assert b'"ok"' in answer.read()


def test_settings_that_make_no_sense_are_refused():
    sys.path.insert(0, str(ROOT))
    from deploy.ray_serve import app

    for args, what in (
        ({}, "no target"),
        ({"target": "a"}, "without a token"),
        ({"target": "a", "open": "yes", "speed": "9"}, "unknown: speed"),
        ({"target": "a", "open": "yes", "replicas": "many"}, "replicas=many is no number"),
        ({"target": "a", "open": "yes", "threads": ""}, "threads= is no number"),
        ({"target": "a", "open": "yes", "num_gpus": "one"}, "num_gpus=one is no number"),
    ):
        with pytest.raises(ConfigError, match=what):
            app(args)
