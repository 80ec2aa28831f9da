"""OpenAI's clients, unmodified, against the service of a board and a real verifier."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec

import pytest
from service_lab import PATIENCE_S, ROOT, eventually, service, verifier

import draftwire
from draftwire.tokenizer import load_tokenizer

MODELS = ROOT / "models"
CLIENTS = ROOT / ".venvs" / "clients" / "bin" / "python"
SCRIPT = ROOT / "tests" / "helpers" / "openai_clients.py"
TOKEN = "a-token"
MESSAGES = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "Once upon a time there was a king"},
]
PROMPT = "Once upon a time there was a king"


class Board:
    """A service with the reference models, and what a session says beside it."""

    def __init__(self, running, url):
        self.running = running
        self.base = running.up()["http"]
        draft = MODELS / "reference.draft"
        tokenizer = load_tokenizer(draft)
        with draftwire.connect(url, draft=draft, energy="off") as session:
            chat = session.chat(MESSAGES, max_new_tokens=24)
            text = session.generate(PROMPT, max_new_tokens=16)
            for stream in (chat, text):
                list(stream)
            word = text.text.split()[2]
            self.expected = {
                "messages": MESSAGES,
                "prompt": PROMPT,
                "chat": chat.text,
                "chat_tokens": len(chat.tokens),
                "text": text.text,
                "ids": tokenizer.encode(PROMPT, bos_id=0),
                "stop": word,
                "grammar": find_spec("llguidance") is not None,
            }


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    (folder / "token").write_text(TOKEN + "\n")
    words = ["--http", "127.0.0.1:0", "--http-token-file", str(folder / "token")]
    words += ["--draft", str(MODELS / "reference.draft")]
    with verifier(target=MODELS / "v1.target") as (_, port):
        with service(folder, port, *words) as running:
            yield Board(running, f"ws://127.0.0.1:{port}")


def clients_python():
    """Return an interpreter that has the clients."""
    named = os.environ.get("DRAFTWIRE_CLIENTS", "")
    if named or list(CLIENTS.parents[1].glob("lib/python3*/site-packages/openai")):
        return named or str(CLIENTS)
    pytest.skip("no environment with OpenAI's clients: `python tools/venvs.py clients`")


# On the boards' Pythons the first is enough: the endpoint is the same.
ELSEWHERE = [
    pytest.param(c, marks=pytest.mark.workstation) for c in ("langchain", "litellm")
]


@pytest.mark.parametrize("client", ["openai", *ELSEWHERE])
def test_a_client_that_knows_nothing_of_draftwire(board, client):
    python = clients_python()
    before = board.running.status()["streams"]["cancelled"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, str(SCRIPT), client, board.base, TOKEN, json.dumps(board.expected)],
        env={**environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    if client == "openai":  # it hung up twice, in the middle of long streams
        streams = board.running.status

        def cancelled():
            found = streams()["streams"]
            return bool(found["cancelled"] >= before + 2 and not found["running"])

        eventually(cancelled, "both are cancelled")


def test_curl(board):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"messages": MESSAGES, "max_tokens": 24})
    words = [curl, "-sS", "-d", body, "-H", f"Authorization: Bearer {TOKEN}"]
    socket = ["--unix-socket", str(board.running.socket)]
    for where in ([board.base], [*socket, "http://localhost/v1"]):
        *more, base = where
        done = subprocess.run(
            [*words, *more, f"{base}/chat/completions"], stdout=subprocess.PIPE, check=True
        )
        said = json.loads(done.stdout)["choices"][0]["message"]["content"]
        assert said == board.expected["chat"]
    stream = json.dumps({"prompt": PROMPT, "max_tokens": 16, "stream": True})
    done = subprocess.run(
        [curl, "-sSN", "-d", stream, *socket, "http://localhost/v1/completions"],
        stdout=subprocess.PIPE,
        check=True,
    )
    lines = [line for line in done.stdout.decode().split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])
    assert text == board.expected["text"]
