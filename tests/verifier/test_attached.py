"""Servers that may not be touched: texts are theirs, whatever is drafted or goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import random
import shlex
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from http_engine import HttpEngine
from pieces import assert_of_the_likeliest
from verifier_lab import serving

from draftwire.cli import main
from draftwire.clock import LoopClock
from draftwire.errors import BusyError, ConfigError, IncompatibleError, ModelError
from draftwire.reference import target_path
from draftwire.sampling import NOISES, SamplingParams
from draftwire.transport.messages import Hello
from draftwire.verifier.backends.attached import AttachedLoader, AttachedTarget, Engine
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.onnx_target import OnnxTarget
from draftwire.verifier.backends.streaming import Order, Push
from draftwire.verifier.kit.checks import CHECKS, prepare
from draftwire.verifier.kit.peer import Kit
from draftwire.verifier.kit.rows import run_rows

VOCAB = 300
PROMPT = [5, 9, 200, 7]


@pytest.fixture
def server(request):
    engine = HttpEngine(**getattr(request, "param", {}))
    yield engine
    engine.close()


def attach(folder, server, **options):
    return AttachedTarget(folder, Engine(server.url, patience_s=5.0), **options)


def generate(target, params, drafts_of, n=30, prompt=PROMPT, asks=4):
    """Drive one stream through the contract; return its text, and steps."""

    async def drive():
        clock = LoopClock(asyncio.get_running_loop())
        steps, ended = asyncio.Queue(), asyncio.get_running_loop().create_future()
        order = Order(tuple(prompt), len(prompt) + n, (), params, VOCAB)
        stream = target.open(
            order, clock, steps.put_nowait, lambda e, again: ended.set_result(e)
        )
        text, count = list(prompt), 0
        while len(text) < order.end:
            got = asyncio.ensure_future(steps.get())
            await asyncio.wait([got, ended], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                got.cancel()
                raise ended.result()
            step = got.result()
            text += step.tokens
            count += 1
            if not step.tokens:
                continue  # a piece of the prompt
            assert len(step.tokens) <= step.drafted + 1
            drafts = drafts_of(text)
            stream.push(Push(0, len(text), tuple(drafts), len(text) + len(drafts), 0))
            if not drafts:
                stream.push(Push(0, len(text), (), len(text) + 1, 0))
        stream.close()
        return text[len(prompt) :], count

    return asyncio.run(asyncio.wait_for(drive(), 60))


@pytest.mark.parametrize(
    "server",
    [{"kind": "vllm", "processor": True}, {"kind": "llamacpp"}, {"kind": "sglang"}],
    indirect=True,
)
def test_greedy_texts_are_the_servers_own_and_cost_fewer_questions(folder, server):
    target = attach(folder, server)
    assert target.vocab_size == VOCAB and target.context == 256
    assert target.eos_ids == (1,)
    wanted = server.model.text(PROMPT, SamplingParams(), 30)
    rng = random.Random(1)

    def right(text):
        return wanted[len(text) - len(PROMPT) :][:5]

    def mixed(text):
        return [t if rng.random() < 0.8 else rng.randrange(VOCAB) for t in right(text)]

    for drafts, most in ((right, 7), (mixed, 25), (lambda text: [3, 3], 30)):
        found, steps = generate(target, SamplingParams(), drafts)
        assert found == wanted
        assert steps <= most
    assert generate(target, SamplingParams(), lambda text: [])[0] == wanted
    target.close()


@pytest.mark.parametrize("server", [{"processor": True}], indirect=True)
@pytest.mark.parametrize("top", [(0, 1.0), (40, 0.9)])
def test_coupled_texts_are_those_of_the_seed_where_the_processor_is(folder, server, top):
    target = attach(folder, server)
    assert target.schemes == ("greedy", "argmax", "coupled")
    params = SamplingParams("coupled", 0.8, *top, seed=2**63 + 5, sample=3)
    wanted = server.model.text(PROMPT, params, 30)
    found, steps = generate(
        target, params, lambda text: wanted[len(text) - len(PROMPT) :][:4]
    )
    assert found == wanted and steps <= 8
    assert generate(target, params, lambda text: [7])[0] == wanted


@pytest.mark.parametrize(
    "server", [{"kind": kind, "seeded": True} for kind in ("vllm", "sglang")], indirect=True
)
def test_a_stock_servers_own_seeds_are_a_noise_that_devices_can_draw(folder, server):
    target = attach(folder, server)
    noise = f"murmur3/{server.kind}"
    assert target.noises == (noise,) and "coupled" in target.schemes
    for top in ((0, 1.0), (0, 0.9), (40, 1.0 if server.kind == "sglang" else 0.9)):
        params = SamplingParams("coupled", 0.8, *top, seed=2**63 + 5, noise=noise)
        wanted = server.model.text(PROMPT, params, 30)  # our own coupled sampling
        found, steps = generate(
            target, params, lambda text, t=wanted: t[len(text) - len(PROMPT) :][:4]
        )
        assert found == wanted and steps <= 8
        assert generate(target, params, lambda text: [7])[0] == wanted
    if server.kind == "sglang":
        both = SamplingParams("coupled", 0.8, 40, 0.9, seed=7, noise=noise)
        with pytest.raises(ConfigError, match="top_p before top_k"):
            generate(target, both, lambda text: [])


@pytest.mark.parametrize(
    "server",
    [{"kind": kind, "seeded": True, "context": 512} for kind in ("vllm", "sglang")],
    indirect=True,
)
async def test_the_kit_takes_the_noise_that_a_stock_server_has(folder, server):
    target = attach(folder, server)
    async with serving(target) as service:
        hello = Hello("kit", "", bytes.fromhex(target.family.tokenizer), b"", VOCAB)
        kit = Kit(service.url, dataclasses.replace(hello, noise=NOISES), long=24)
        await prepare(kit)
        assert kit.noise == f"murmur3/{server.kind}"
        plain = kit.request(24)
        own = server.model.text(list(plain.prompt), SamplingParams(), 24)
        assert await kit.want(plain) == own
        rows = [
            row for row in CHECKS if row.section in ("6", "8", "4.2") or "wel" in row.name
        ]
        found = {r.name: r for r in await run_rows(kit, rows)}
        assert not [r for r in found.values() if r.result == "fails"]
        coupled = f"coupled, {kit.noise}: drafts change nothing"
        assert found[coupled].result == "conforms"
        drawn = "match: drafts change nothing"  # with coins of its own
        assert "coins of its own" in found[drawn].detail
        # A device that knows only ours gets greedy texts, and is told of coupled ones.
        kit.hello = dataclasses.replace(hello, noise=("philox",))
        async with kit.greeted() as peer:
            assert "coupled" not in peer.welcome.schemes
            await (await peer.open(kit.request(4))).fill(4)
            await peer.say(kit.coupled(4, noise="philox"), 1)
            await peer.refused("request", 1)


@pytest.mark.parametrize(
    ("server", "more"),
    [
        ({"kind": "vllm", "seeded": True}, ["--explain-seed", str(2**63 + 5)]),
        ({"kind": "vllm", "seeded": True}, ["--explain-seed", "7", "--top-k", "9"]),
        (
            {"kind": "sglang", "seeded": True},
            ["--explain-seed", "7", "--top-p", "0.9", "--noise", "murmur3/sglang"],
        ),
    ],
    indirect=["server"],
)
def test_explain_seed_says_what_a_stock_server_gives_to_curl(server, more, capsys):
    whole = OnnxTarget(target_path("v1"), slots=1)
    slot = whole.allocate()

    class Model:
        def rows_after(self, ids):
            return whole.forward([SlotInput(slot, 0, np.array(ids), 1)])[0][-1]

    server.model = Model()
    words = ["verifier", "check", server.url, "--tokens", "6", *more]
    assert main([*words, "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    asked = shlex.split(said["curl"])
    assert asked[0] == "curl"
    request = urllib.request.Request(asked[1], asked[-1].encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    got = (
        found[0]["output_ids"] if "sglang" in more[-1] else found["choices"][0]["token_ids"]
    )
    assert got == [row["id"] for row in said["tokens"]]
    assert main(words) == 0
    assert said["curl"] in capsys.readouterr().out


def test_explain_seed_refuses_what_sglang_cuts_in_another_order(capsys):
    words = ["verifier", "check", "--explain-seed", "7", "--noise", "murmur3/sglang"]
    assert main([*words, "--top-k", "4", "--top-p", "0.5"]) == ConfigError.exit_code
    assert "top_p before top_k" in capsys.readouterr().err


@pytest.mark.parametrize("server", [{"kind": "sglang"}], indirect=True)
def test_a_server_that_does_not_follow_its_seeds_is_not_coupled(folder, server):
    target = attach(folder, server)
    assert target.noises == ("philox",) and "coupled" not in target.schemes


def test_without_the_processor_the_server_draws_itself_and_the_law_is_its_own(
    folder, server
):
    target = attach(folder, server)
    assert target.schemes == ("greedy", "argmax", "match")
    params = SamplingParams("match", 1.0, 4, 1.0, seed=1)
    drawn = [generate(target, params, lambda text: [], n=1)[0][0] for _ in range(200)]
    assert_of_the_likeliest(server.model.rows_after(PROMPT), drawn)
    with pytest.raises(ConfigError, match="cannot do coupled"):
        generate(target, SamplingParams("coupled", 0.8), lambda text: [])


def test_a_long_prompt_is_read_in_pieces_that_grow_and_each_is_a_sign_of_life(folder):
    server = HttpEngine(context=4096)
    target = attach(folder, server)
    prompt = [5 + i % 200 for i in range(2000)]
    server.asked.clear()
    text, _ = generate(target, SamplingParams(), lambda text: [], n=2, prompt=prompt)
    assert text == server.model.text(prompt, SamplingParams(), 2)
    read = [len(body["prompt"][0]) for body in server.asked]
    assert read[0] == 256 and read == sorted(read) and read[-2:] == [2000, 2001]
    assert 4 <= len(read) <= 9
    target.close()
    server.close()


def test_each_stream_has_a_salt_of_its_own_and_the_key_goes_along(folder, server, tmp_path):
    key = tmp_path / "key"
    key.write_text("sesame\n")
    loader = AttachedLoader(server.url + "/v1", engine_key=key)
    target = loader(folder)
    assert server.headers["Authorization"] == "Bearer sesame"
    server.asked.clear()
    for _ in range(2):
        generate(target, SamplingParams(), lambda text: [], n=4)
    salts = {body["cache_salt"] for body in server.asked}
    assert len(salts) == 2 and all(len(salt) == 32 for salt in salts)
    key.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read .*key"):
        loader(folder)


def test_a_server_without_room_is_asked_again_and_one_that_refuses_is_not(folder, server):
    target = attach(folder, server)
    wanted = server.model.text(PROMPT, SamplingParams(), 10)
    server.plans.extend([429, 503, "cut", 0.2, 502])
    assert generate(target, SamplingParams(), lambda text: [], n=10)[0] == wanted
    server.plans.append(400)
    with pytest.raises(ModelError, match="answers 400"):
        generate(target, SamplingParams(), lambda text: [], n=10)
    target._engine.patience_s = 0.3
    server.plans.extend([503] * 50)
    with pytest.raises(BusyError, match="answers 503"):
        generate(target, SamplingParams(), lambda text: [], n=10)
    server.plans.clear()
    target._engine.timeout_s = 0.1
    server.plans.extend([1.0] * 9)
    with pytest.raises(BusyError, match="timed out"):
        generate(target, SamplingParams(), lambda text: [], n=10)


def test_what_is_no_such_server_is_refused_at_the_start(folder, server, tmp_path, capsys):
    server.broken = True
    with pytest.raises(IncompatibleError, match="another text"):
        attach(folder, server)
    server.broken = False
    with pytest.raises(ConfigError, match="no model 'x'"):
        attach(folder, server, model="x")
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        attach(tmp_path, server)
    server.complete = lambda path, body: (200, {"choices": [{"index": 0, "text": "hi"}]})
    with pytest.raises(ModelError, match="token ids"):
        attach(folder, server)
    with pytest.raises(ConfigError, match="server's address"):
        Engine("ws://127.0.0.1:1")
    with pytest.raises(ConfigError, match="in the clear"):
        Engine("http://10.0.0.1:8000", key="secret")
    assert main(["verifier", "serve", "--backend", "openai"]) == ConfigError.exit_code
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize("server", [{"processor": True}], indirect=True)
def test_the_tool_tries_a_server(folder, server, capsys):
    from tools.engine import FLAGS, render, study

    from studies.command import start

    words = ["--engine", server.url, "--target", str(folder), "--texts", "1"]
    assert start("tools.engine", "", FLAGS, study, render, [*words, "--tokens", "12"]) == 0
    table = capsys.readouterr().out
    assert table.count("| 0 |") == 3  # each scheme: none differs


# ---- SGLang's shapes, as read in its sources: what it is asked, and what it answers


ROOT = Path(__file__).resolve().parents[2]
# Names of fields as of SGLang 0.5.23, and one answer of each kind, put together by hand.
SEEN = json.loads((ROOT / "tests/fixtures/sglang_0_5_23.json").read_text("utf-8"))
DECODER = ROOT / ".venvs" / "sglang" / "sglang" / "api" / "v1" / "api_types.py"
NOISE = "murmur3/sglang"
ASKED = [
    SamplingParams(),
    SamplingParams("match", 1.0, 40, 0.9),
    SamplingParams("coupled", 0.8, seed=2**63 + 5, noise=NOISE),
    SamplingParams("coupled", 0.8, 40, seed=2**64 - 1, noise=NOISE),
    SamplingParams("coupled", 0.8, 0, 0.9, seed=7, noise=NOISE),
]


@pytest.fixture
def asked(folder):
    """Everything that the adapter asks: at the start, and for each scheme."""
    engine = HttpEngine("sglang", seeded=True)
    target = AttachedTarget(folder, Engine(engine.url, patience_s=5.0))
    assert target.noises == (NOISE,)
    for params in ASKED:
        target.winners([[5, 9], [5, 9, 200]], params, "ab" * 16)
    yield engine.asked, engine, target
    target.close()
    engine.close()


def test_every_field_is_one_that_sglang_has(asked):
    bodies, engine, target = asked
    assert len(bodies) > 20
    for body in bodies:
        assert body.keys() <= set(SEEN["generate"]["fields"])
        sampling = body["sampling_params"]
        assert sampling.keys() <= set(SEEN["generate"]["sampling_params"])
        # With a seed it always sorts: a text does not depend on who else is in the batch.
        if "sampling_seed" in sampling:
            assert 1 <= sampling["top_k"] <= 300
            assert -(2**63) <= sampling["sampling_seed"] < 2**63
    # A draw without a seed of ours has a fresh one: SGLang's own default is 42 for all.
    drawn = SamplingParams("match", 1.0)
    seeds = {target._how(drawn)["sampling_seed"], target._how(drawn)["sampling_seed"]}
    assert len(seeds) == 2 and 42 not in seeds


def test_recorded_answers_are_understood(asked):
    _, engine, target = asked
    engine.complete = lambda path, body: (200, [SEEN["answer"]] * len(body["input_ids"]))
    assert target.winners([[5], [5, 9]], ASKED[0], "") == [259, 259]
    engine.complete = lambda path, body: (400, SEEN["refusal"])
    with pytest.raises(ModelError, match="invalid_request_error"):
        target.winners([[5]], ASKED[0], "")
    (card,) = SEEN["models"]["data"]
    assert card["owned_by"] == engine.kind and card["max_model_len"] == target.context


@pytest.mark.slow
@pytest.mark.skipif(not DECODER.is_file(), reason="no decoder of SGLang: make test-engines")
def test_sglangs_own_decoder_takes_every_request(asked, monkeypatch):
    monkeypatch.syspath_prepend(str(DECODER.parents[3]))  # msgspec
    spec = importlib.util.spec_from_file_location("sglang_api_types", DECODER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for body in asked[0]:
        took = module.GenerateRequest.from_json_value(body)
        assert took.input_ids == body["input_ids"] and took.cache_salt == body["cache_salt"]
        for name, value in body["sampling_params"].items():
            assert getattr(took.sampling_params, name) == value, name
    wrong = {**asked[0][0], "sampling_params": {"sampling_sed": 1}}
    with pytest.raises(module.JsonContractError, match="unknown field"):
        module.GenerateRequest.from_json_value(wrong)
