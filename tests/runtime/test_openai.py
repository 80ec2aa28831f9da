"""The service's endpoint byte by byte: fields, limits, gates, and what goes wrong."""

import asyncio
import json
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from certificates import certificate
from places import FIXTURES, MODELS
from service_lab import PATIENCE_S, eventually, service, verifier

from draftwire.cli import main
from draftwire.runtime.service import http, openai
from draftwire.runtime.service.http import Gate, HttpError, Request, _parse
from draftwire.runtime.service.openai import MAX_CHOICES, read_ask
from draftwire.sampling.grammar.engine import missing

CHAT = {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 4}
TEXT = {"prompt": "Once", "max_tokens": 4}
RESPONSE = {"input": "Once", "max_output_tokens": 4}
PLAIN = {"chat": CHAT, "text": TEXT, "response": RESPONSE}
PATHS = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "response": "/v1/responses",
}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    words = ["--http", "127.0.0.1:0", "--http-origin", "https://panel.local"]
    with verifier() as (_, port), service(folder, port, *words) as running:
        running.up()
        yield running


def connect(board):
    host, port = board.status()["http"][len("http://") : -len("/v1")].split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def exchange(board, data):
    """Send bytes; return all that comes back until the service hangs up."""
    with closing(connect(board)) as sock:
        sock.sendall(data)
        found = b""
        while True:
            piece = sock.recv(65536)
            if not piece:
                return found
            found += piece


def request(path, body=None, *fields, method="POST", host="localhost"):
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(data)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


def ask(board, *args, **more):
    found = exchange(board, request(*args, **more))
    head, _, body = found.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    fields = dict(field.split(": ", 1) for field in lines)
    return int(line.split()[1]), fields, json.loads(body) if body else None


# ---- fields


def read(kind, **fields):
    return read_ask(kind, json.dumps({**PLAIN[kind], **fields}).encode())


def test_what_the_models_find_out_is_named_too(board):
    """What reading alone cannot know: vocabulary, template, grammars."""
    tool = {"type": "function", "function": {"name": "go", "parameters": {}}}
    bad = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}
    named = [{"role": "user", "content": "Once", "name": "bob"}]
    wrong = {"type": "function", "function": {"name": "go", "parameters": {"type": "x"}}}
    for kind, change, param in (
        ("text", {"prompt": [99999]}, "prompt"),
        ("text", {"logit_bias": {"99999": 1}}, "logit_bias"),
        ("text", {"response_format": {"type": "regex", "regex": "("}}, "response_format"),
        ("chat", {"messages": named}, "messages"),
        ("chat", {"response_format": bad}, "response_format"),
        ("chat", {"draftwire": {"schema": {"type": "x"}}}, "draftwire.schema"),
        ("chat", {"tools": [wrong], "tool_choice": "required"}, "tools"),
        ("chat", {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ("response", {"text": {"format": {"type": "regex", "regex": "("}}}, "text.format"),
    ):
        status, _, found = ask(board, PATHS[kind], {**PLAIN[kind], **change})
        assert (status, found["error"]["param"]) == (400, param), found
    # Tools that may not be called are none, also for a draft that shows no tools.
    for choice in ("none", "auto"):
        body = {**CHAT, "tools": [tool], "tool_choice": choice}
        able = choice == "none" or missing() is None  # a call has a grammar
        assert ask(board, PATHS["chat"], body)[0] == (200 if able else 400)


@pytest.mark.parametrize("kind", ["chat", "text", "response"])
def test_every_field_that_is_not_there_yet_is_refused_by_name(kind):
    table = openai._FIELDS[kind][0]
    harmless = {
        "tools": [],
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "store": False,
        "truncation": "disabled",
        "text": {"format": {"type": "text"}},
    }
    for name in table:
        with pytest.raises(HttpError) as caught:
            read(kind, **{name: "something"})
        assert (caught.value.status, caught.value.param) == (400, name)
        for value in (None, harmless.get(name)):
            read(kind, **{name: value})


# Of each kind: what is wrong, what is said of it, and its name where that is another one.
WRONG = [
    ("chat", {"messages": []}, "no messages"),
    ("chat", {"messages": "hi"}, "must be a list"),
    ("chat", {"messages": None}, "is missing"),
    ("chat", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "king", "content": "x"}]}, "'king'"),
    ("chat", {"messages": [{"role": "user"}]}, "content must be text"),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "content[0] is no part of type text",
    ),
    ("chat", {"temprature": 1}, "no field 'temprature'"),
    ("chat", {"temperature": True}, "temperature is True"),
    ("chat", {"seed": 2**64}, "seed is"),
    ("chat", {"seed": 1.5}, "seed is 1.5"),
    ("chat", {"logit_bias": {"x": 1}}, "logit_bias is"),
    ("chat", {"logit_bias": {"1": 101}}, "logit_bias is"),
    ("chat", {"logprobs": 3}, "true or false"),
    ("chat", {"top_logprobs": 3}, "logprobs: true"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "is 21", "top_logprobs"),
    ("text", {"logprobs": True}, "logprobs is True"),
    ("text", {"top_logprobs": 3}, "no field"),
    ("response", {"top_logprobs": 3}, "include"),
    ("response", {"include": ["file"]}, '"file" is not supported'),
    ("response", {"include": "file"}, "must be a list"),
    ("chat", {"n": 0}, "n is 0"),
    ("chat", {"n": MAX_CHOICES + 1}, "n is"),
    ("chat", {"n": True}, "n is true"),
    ("chat", {"max_tokens": 0}, "max_tokens is 0"),
    ("chat", {"max_completion_tokens": 1e99}, "is 1e+99"),
    ("chat", {"stream": "yes"}, "true or false"),
    ("chat", {"stream_options": {"x": 1}}, "no 'x'", "stream_options.x"),
    ("chat", {"model": 5}, "model is 5"),
    ("chat", {"draftwire": 5}, "an object"),
    ("chat", {"draftwire": {"dead": 1}}, "no option 'dead'", "draftwire.dead"),
    ("chat", {"draftwire": {"report": 1}}, "true or false", "draftwire.report"),
    (
        "chat",
        {"stream_options": {"include_usage": 1}},
        "true or false",
        "stream_options.include_usage",
    ),
    ("response", {"text": {"verbosity": "low"}}, "no 'verbosity'", "text.verbosity"),
    ("chat", {"chat_template_kwargs": []}, "an object"),
    ("text", {"prompt": ""}, "is empty"),
    ("text", {"prompt": []}, "is empty"),
    ("text", {"prompt": {}}, "neither text nor"),
    ("text", {"prompt": [[1], ["a"]]}, "neither text nor"),
    ("text", {"prompt": ["a"] * 9}, "at most 8 answers"),
    ("text", {"prompt": ["a"] * 3, "n": 3}, "at most 8 answers", "prompt"),
    ("text", {"best_of": 2}, "not supported"),
    ("response", {"input": [{"type": "reasoning"}]}, "input[0].type"),
    ("response", {"instructions": 5}, "must be text"),
    ("response", {"max_tokens": 5}, "no field"),
    ("response", {"stop": "x"}, "no field"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]} {case[1]}"[:60])
def test_a_wrong_field_is_named(case):
    kind, change, words, *named = case
    with pytest.raises(HttpError) as caught:
        read(kind, **change)
    error = caught.value.document()["error"]
    assert (caught.value.status, error["param"]) == (400, *(named or [*change][-1:]))
    assert words in error["message"], error
    assert error["type"] == "invalid_request_error"


def test_fields_mean_what_they_mean():
    assert read("chat", max_completion_tokens=9).options["max_new_tokens"] == 9
    given = {"min_p": 0.1, "presence_penalty": -1, "repetition_penalty": 1.1}
    given.update(frequency_penalty=0.5, ignore_eos=True, bad_words=["x"])
    found = read("text", logit_bias={"5": -100, "7": 1}, **given).options
    assert {**given, "bad_words": ("x",)}.items() <= found.items()
    assert found["logit_bias"] == ((5, -100.0), (7, 1.0)) and "logprobs" not in found
    assert read("chat", logprobs=True, top_logprobs=2).options["logprobs"] == 2
    assert read("chat", logprobs=True).options["logprobs"] == 0
    assert not read("chat", logprobs=False, top_logprobs=0).logprobs
    assert read("text", logprobs=0).logprobs
    asks = {"include": ["message.output_text.logprobs"], "top_logprobs": 4}
    assert read("response", **asks).options["logprobs"] == 4
    assert read("chat", seed=-1).options["seed"] == 2**64 - 1
    assert read("chat", stop="x").options["stop"] == ("x",)
    assert read("chat", stop=None, temperature=None).options == {"max_new_tokens": 4}
    found = read("chat", draftwire={"deadline_s": 0.5, "objective": "latency"})
    assert found.options["deadline_s"] == 0.5 and found.options["objective"] == "latency"
    assert read("text", prompt=[1, 2]).prompts == [[1, 2]]
    assert read("text", prompt=[[1, 2], [3]]).prompts == [[1, 2], [3]]
    assert read("text", prompt=["a", "b"]).prompts == ["a", "b"]
    (messages,) = read(
        "chat",
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
        ],
    ).prompts
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "a\nb"
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    (messages,) = read("response", instructions="Be brief.").prompts
    assert [m["content"] for m in messages] == ["Be brief.", "Once"]


def test_offline_guesses_and_what_they_become_are_marked():
    """What a piece of text carries when the draft was on its own."""
    from draftwire.runtime.stream import Chunk

    form = openai.Answer(read("chat"), "m")
    guess = Chunk("a", (), 0.1, verified=False, unverified=1)
    ((_, data),) = form.piece(0, guess)
    said = data["choices"][0]["draftwire"]
    assert (said["verified"], said["unverified"]) == (False, 1) and "revision" not in said
    ((_, data),) = form.piece(0, Chunk("", (), 0.2, revision=0, kept_text=""))
    assert data["choices"][0]["draftwire"]["revision"] == 0
    # Nothing measured is null, also when one of several was measured.
    done = [openai.Done("x", "stop", {"energy": {"joules": j}}) for j in (1.5, None)]
    assert openai.usage_of(done)["draftwire"]["joules"] is None
    assert openai.usage_of(done[:1])["draftwire"]["joules"] == 1.5


# ---- the wire


def test_whole_answers_on_one_connection(board):
    body = json.dumps(CHAT).encode()
    head = f"POST {PATHS['chat']} HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"
    asked = (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    with closing(connect(board)) as sock, sock.makefile("rb") as file:
        sock.sendall(asked * 3)  # the second and third wait in the buffers
        for _ in range(3):
            assert b" 200 " in file.readline()
            lines = [line.decode().lower() for line in iter(file.readline, b"\r\n")]
            (size,) = (int(line.split()[1]) for line in lines if "content-length" in line)
            assert json.loads(file.read(size))["object"] == "chat.completion"


def test_a_body_in_chunks_and_one_that_waits(board):
    body = json.dumps(TEXT).encode()
    pieces = b"".join(b"%x;ext\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\nA: b\r\n\r\n"
    assert exchange(board, chunked).startswith(b"HTTP/1.1 200 ")
    with closing(connect(board)) as sock:
        sock.sendall(
            head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert sock.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(99).startswith(b"HTTP/1.1 200 ")
    old = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n" % len(body)
    found = exchange(board, old + b"Host: localhost\r\n\r\n" + body)
    assert b" 200 " in found and b"Connection: close" in found
    stream = json.dumps({**TEXT, "stream": True}).encode()
    old = b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    found = exchange(board, old % len(stream) + stream)
    assert b"chunked" not in found and found.endswith(b"data: [DONE]\n\n")
    with closing(socket.socket(socket.AF_UNIX)) as sock, sock.makefile("rb") as file:
        sock.settimeout(PATIENCE_S)  # as docs/service.md has it: no field but the length
        sock.connect(str(board.socket))
        head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
        sock.sendall(head % len(stream) + stream)
        assert file.read().endswith(b"data: [DONE]\n\n")


HOST = b"Host: localhost\r\n"
GET, POST = b"GET /status HTTP/1.1\r\n" + HOST, b"POST /x HTTP/1.1\r\n" + HOST
CODED, CLOSE = b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n", 400),
        (b"GET /status HTTP/2\r\n", 400),
        (b"GET http://x/status HTTP/1.1\r\n", 400),
        (b"GET /status HTTP/1.1\r\n", 400),  # no Host
        (GET + HOST, 400),
        (GET + b" folded: x\r\n", 400),
        (GET + b"A : x\r\n", 400),
        (GET + b"A: \x01\r\n", 400),
        (GET + b"Content-Length: -1\r\n", 400),
        (GET + b"Content-Length: 1, 1\r\n", 400),
        (GET + b"Transfer-Encoding: gzip\r\n", 400),
        (GET + b"Content-Length: 1\r\n" + CODED, 400),
        (POST + CODED + b"\r\n-1", 400),
        (POST + CODED + b"\r\n2\r\nabc\r\n0\r\n", 400),
        (POST + CODED + b"\r\n" + b"x" * 40_000, 400),
        (POST + b"Content-Length: 99999999\r\n", 413),
        (POST + CODED + b"\r\nfffffff", 413),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n", 431),
        (GET.replace(b"localhost", b"evil.example"), 421),
        (GET.replace(b"localhost", b"localhost.evil.example"), 421),
        (GET + b"Origin: http://x\r\n", 403),
        (GET + b"Origin: null\r\n", 403),
        (GET.replace(b"status", b"nowhere") + CLOSE, 404),
        (GET.replace(b"status", b"v1/models/x") + CLOSE, 404),
        (GET.replace(b"GET", b"PUT") + CLOSE, 405),
        (GET.replace(b"status", b"v1/completions") + CLOSE, 405),
        (GET.replace(b"GET /status", b"DELETE /v1/completions") + CLOSE, 405),
    ],
)
def test_what_is_no_request_is_told_so(board, data, status):
    found = exchange(board, data + b"\r\n")
    assert found.startswith(b"HTTP/1.1 %d " % status), found[:200]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert board.status()["healthy"]


def test_bytes_at_random_end_nothing(board):
    import random

    seeded = random.Random(7)
    good = request(PATHS["text"], TEXT, method="POST")
    for _ in range(200):
        data = bytearray(good)
        for _ in range(seeded.randint(1, 6)):
            data[seeded.randrange(len(data))] = seeded.randrange(256)
        try:
            _parse(bytes(data).partition(b"\r\n\r\n")[0])
        except HttpError as exc:
            assert 400 <= exc.status < 500
        try:
            read_ask("text", bytes(data).partition(b"\r\n\r\n")[2])
        except HttpError as exc:
            assert exc.status == 400
    assert ask(board, "/status", method="GET")[0] == 200


def test_a_page_that_may_ask_and_one_that_may_not(board):
    mine = "Origin: https://panel.local"
    status, fields, _ = ask(board, PATHS["text"], TEXT, mine)
    assert status == 200
    assert fields["Access-Control-Allow-Origin"] == "https://panel.local"
    status, fields, body = ask(
        board,
        PATHS["chat"],
        None,
        mine,
        "Access-Control-Request-Headers: authorization, x-stainless-os",
        method="OPTIONS",
    )
    assert (status, body) == (204, None)
    assert "x-stainless-os" in fields["Access-Control-Allow-Headers"]
    status, _, body = ask(board, PATHS["text"], TEXT, "Origin: https://panel.local.evil")
    assert status == 403 and "--http-origin" in body["error"]["hint"]


def test_the_gate():
    def come(gate, **fields):
        try:
            gate.check(Request("GET", "/", fields, True))
        except HttpError as exc:
            return exc.status
        return 200

    gate = Gate("secret", hosts=("localhost",))
    right = {"authorization": "Bearer secret"}
    for host, status in {
        "localhost": 200,
        "LOCALHOST:80": 200,
        "192.168.1.7:8080": 200,
        "[::1]:8080": 200,
        "": 421,
        "evil.example": 421,
        "localhost evil": 421,
        "localhost:port": 421,
        "127.0.0.1.evil.example": 421,
    }.items():
        assert come(gate, host=host, **right) == status, host
    for words in (
        "",
        "secret",
        "Basic secret",
        "Bearer secre",
        "Bearer secret2",
        "Bearer ",
    ):
        assert come(gate, host="localhost", authorization=words) == 401
    assert come(gate, host="localhost") == 401
    assert come(gate, host="localhost", authorization="bearer  secret") == 200
    assert come(Gate(origins=("*",)), origin="https://any") == 200


def test_hanging_up_cancels_running_and_waiting_streams(board):
    long = {"prompt": "Once", "max_tokens": 10_000, "stream": True}
    before = board.status()["streams"]["cancelled"]
    socks = [connect(board) for _ in range(6)]
    for sock in socks:
        sock.sendall(request(PATHS["text"], {**long, "n": 2}))
    assert socks[0].recv(20).startswith(b"HTTP/1.1 200")
    eventually(lambda: board.status()["streams"]["waiting"] == 8, "8 wait")
    # What comes now is told to come again.
    status, fields, body = ask(board, PATHS["text"], TEXT)
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert int(fields["Retry-After"]) >= 1
    for sock in socks:
        sock.close()

    def quiet():
        found = board.status()["streams"]
        return (
            found["running"] == found["waiting"] == 0 and found["cancelled"] >= before + 8
        )

    eventually(quiet, "all are cancelled")


def test_a_client_that_does_not_read_hinders_nobody(board):
    with closing(connect(board)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {"prompt": "Once", "max_tokens": 3000, "stream": True}
        sock.sendall(request(PATHS["text"], body))
        # It fills its buffers; the stream ends by itself, and the others are served.
        assert ask(board, PATHS["text"], TEXT)[0] == 200
        eventually(lambda: not board.status()["streams"]["running"], "it is over")


async def test_slow_clients_are_let_go(monkeypatch):
    for name in ("HEAD_S", "BODY_S", "IDLE_S", "WRITE_S"):
        monkeypatch.setattr(http, name, 0.3 if name == "IDLE_S" else 0.1)
    ended = []

    async def answer(asked, reply):
        try:
            while True:
                await reply.event("x" * 65536)
                await asyncio.sleep(0)
        except ConnectionError as exc:
            ended.append(exc)
            raise

    server = http.HttpServer(answer)
    listening = await server.listen(Gate(), host="127.0.0.1", port=0)
    port = listening.sockets[0].getsockname()[1]
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    for data, found in ((head, b"408"), (head + b"\r\nhalf", b"408"), (b"", b"")):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        assert found in (await reader.read()).partition(b"\r\n")[0]
        writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # and reads nothing
    while not ended or server.clients:
        await asyncio.sleep(0.01)
    writer.close()
    server.shut()
    await server.close()


def test_without_a_verifier_it_says_when_to_come_again(tmp_path):
    with service(tmp_path, 1, "--http", "127.0.0.1:0", "--patience", "0.1") as board:
        for kind, body in PLAIN.items():
            status, fields, found = ask(board, PATHS[kind], body)
            assert status == 503 and fields["Retry-After"]
            assert "no verifier yet" in found["error"]["message"]
        alone = {**CHAT, "draftwire": {"offline": "draft", "patience_s": 0.0}}
        status, _, found = ask(board, PATHS["chat"], alone)
        assert status == 200 and found["choices"][0]["message"]["content"]
        assert "alone" in " ".join(found["choices"][0]["draftwire"]["warnings"])
        names = [m["id"] for m in ask(board, "/v1/models", method="GET")[2]["data"]]
        assert names == ["tiny", "draftwire"]


def test_a_stream_that_fails_says_so_in_the_stream(tmp_path):
    words = ["--http", "127.0.0.1:0", "--silence", "1"]
    words += ["--draft", str(MODELS / "reference.draft")]
    body = {"prompt": "Once upon a time there was a king", "max_tokens": 1200}
    body.update(stream=True, draftwire={"patience_s": 0.5})
    with verifier(target=MODELS / "v1.target") as (process, port):
        with service(tmp_path, port, *words) as board, closing(connect(board)) as sock:
            board.up()
            sock.sendall(request(PATHS["text"], body))
            assert sock.recv(12) == b"HTTP/1.1 200"
            process.kill()
            end = sock.makefile("rb").read()
    assert b'data: {"error":{"message":' in end and b"[DONE]" not in end, end[-300:]
    form = openai.Response(read("response"), "m")
    before = [*form.begin()][-1][1]["sequence_number"]
    ((name, data),) = form.failed(HttpError(503, "gone", code="x").document())
    assert name == data["type"] == "error" and data["sequence_number"] == before + 1
    assert (data["message"], data["code"], data["param"]) == ("gone", "x", None)


def test_addresses(tmp_path, capsys):
    words = ["service", "--verifier", "ws://127.0.0.1:1"]  # which is `run`
    words += ["--draft", str(FIXTURES / "tiny.draft")]
    words += ["--socket", str(tmp_path / "s")]
    for address, complaint in {
        "8080": "http is '8080'",
        "localhost:port": "http is 'localhost:port'",
        "127.0.0.1:99999": "http is",
        "0.0.0.0:0": "without a token",
        "192.0.2.1:80": "without a token",
        "127.0.0.1.evil.example:80": "without a token",
    }.items():
        assert main([*words, "--http", address]) == 2
        assert complaint in capsys.readouterr().err
    (tmp_path / "token").write_text("two words")
    for file, complaint in (("gone", "cannot read"), ("token", "one token")):
        told = ["--http", "0.0.0.0:0", "--http-token-file", str(tmp_path / file)]
        assert main([*words, *told]) == 2
        said = capsys.readouterr().err
        assert complaint in said and "your choice" in said
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main([*words, "--http", f"127.0.0.1:{port}"]) == 2
        assert "cannot be listened on" in capsys.readouterr().err


def test_the_local_socket_by_its_other_name(tmp_path):
    (tmp_path / "run").mkdir()
    with service(tmp_path, 1, "--http", f"unix:{tmp_path / 'run' / 'draftwire.sock'}") as b:
        assert b.status()["http"] is None


# ---- https


def test_the_address_speaks_https_with_a_certificate(tmp_path):
    cert, key = certificate(tmp_path, "IP:127.0.0.1")
    doors = ["--http", "127.0.0.1:0", "--http-cert", str(cert), "--http-key", str(key)]
    with verifier() as (_, port), service(tmp_path, port, *doors) as running:
        base = running.up()["http"]
        assert base.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        body = json.dumps({**CHAT, "stream": True}).encode()
        for _ in range(2):
            sent = urllib.request.Request(f"{base}/chat/completions", body)
            with urllib.request.urlopen(sent, timeout=PATIENCE_S, context=trusting) as got:
                assert got.read().rstrip().endswith(b"data: [DONE]")
        wrong = urllib.request.Request(f"{base}/chat/completions", b"{}")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(wrong, timeout=PATIENCE_S, context=trusting)
        assert caught.value.code == 400
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{base}/models", timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--http-key", "k"], "key without a certificate"),
        (["--http-cert", "no.pem"], "certificate no.pem does not load"),
    ],
)
def test_a_certificate_that_is_none_is_said(words, says, capsys):
    common = ["--verifier", "ws://127.0.0.1:1", "--http", "127.0.0.1:0"]
    draft = str(FIXTURES / "tiny.draft")
    assert main(["service", "run", *common, "--draft", draft, *words]) == 2
    assert says in capsys.readouterr().err
