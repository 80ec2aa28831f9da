"""The client for C++ control stacks: compiled, and run against a real service."""

import shutil
import subprocess

import pytest
from places import MODELS, ROOT

pytest.importorskip("onnxruntime")

from service_lab import service, verifier  # noqa: E402

COMPILER = shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
PROMPT = 'A "quoted"\n\\path\x01 – käse 😀'


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    program = tmp_path_factory.mktemp("cpp") / "plan"
    words = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    source = ROOT / "examples" / "cpp" / "plan.cpp"
    subprocess.run([COMPILER, *words, "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with verifier(target=MODELS / "v1.target") as (_, port):
        draft = str(MODELS / "reference.draft")
        words = ("--draft", draft, "--http", "127.0.0.1:0")
        with service(folder, port, *words) as found:
            found.up()
            yield found


def run(plan, *words, code=0):
    done = subprocess.run(
        [str(plan), *words], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr.decode()
    return done.stdout.decode()[:-1], done.stderr.decode().strip()


def by_python(running, prompt, **options):
    with running.client() as client:
        events = list(client.generate(prompt, **options))
    return "".join(event["text"] for event in events)


def test_it_gets_what_a_python_client_gets(plan, running):
    for prompt in ("The ship sailed away over the sea until", PROMPT):
        text, said = run(plan, str(running.socket), prompt, "--max-tokens", "40")
        assert text == by_python(running, prompt, max_new_tokens=40), prompt
        assert said in ("length", "stop")


def test_over_tcp_with_a_stop_text(plan, running):
    address = running.status()["http"].split("/")[2]
    words = ("--max-tokens", "80", "--stop", ".")
    text, said = run(plan, address, "They came at last to the palace", *words)
    assert "." not in text and said in ("stop", "length")


def test_it_cancels_by_hanging_up(plan, running):
    words = ("--max-tokens", "400", "--cancel-after", "3")
    text, said = run(plan, str(running.socket), "Once upon a time", *words)
    assert said == "cancelled" and 0 < len(text) < 400
    assert run(plan, str(running.socket), "Once", "--max-tokens", "4")[1] == "length"


def test_what_goes_wrong_is_a_sentence(plan, running, tmp_path):
    _, said = run(plan, str(running.socket), "x", "--max-tokens", "-3", code=4)
    assert "max_tokens" in said
    _, said = run(plan, str(tmp_path / "nothing.sock"), "x", code=4)
    assert "no service listens" in said
