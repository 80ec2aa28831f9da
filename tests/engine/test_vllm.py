"""The vllm backend on a real vLLM: texts with drafts are the engine's own, whatever comes.

`make test-vllm` sets it up and runs this; nothing here is part of `make test`.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import hf_folder
import numpy as np
import pytest
from engine_lab import LAWS, Verifier, oracle_of, request_of, together
from places import MODELS, ROOT

from draftwire.errors import ConfigError, ModelError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.vllm.engine import VllmLoader

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

SMALL = bool(os.environ.get("DRAFTWIRE_TESTS_SMALL"))  # where each step takes long
PROMPTS, COUNT, SLOTS = (4, 24, 4) if SMALL else (20, 64, 16)
KINDS = ("right", "80 %", "wrong", "absent")


def prompts(vocab_size, n=PROMPTS):
    rng = np.random.default_rng(5)
    return [rng.integers(1, vocab_size, 4 + 3 * i).tolist() for i in range(n)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    base = hf_folder.base_folder(root / "v1")
    return [
        base,
        *(hf_folder.adapter_folder(root / v, v, base) for v in ("v2", "v3")),
    ]


@pytest.fixture(scope="module")
def target(folders):
    args = {"additional_config": {"draftwire_shrink": False}}
    if SMALL:  # and five blocks for texts that want six
        args.update(num_gpu_blocks_override=6, max_num_batched_tokens=128)
    context = 128 if SMALL else None
    target = VllmLoader(slots=SLOTS, context=context, engine_args=args)(folders[0])
    assert target.engine.runner == f"V{1 + int(os.environ['VLLM_USE_V2_MODEL_RUNNER'])}"
    yield target
    target.close()
    target.engine.join()


@pytest.fixture(scope="module")
def versions(folders):
    """Base and two adapters on one engine with a third of the memory that is wanted."""
    load = VllmLoader(
        slots=16,
        context=512,
        targets=folders,
        engine_args={"num_gpu_blocks_override": 24},
    )
    found = [load(folder) for folder in folders]
    yield found
    for each in found:
        each.close()
    found[0].engine.join()


@pytest.fixture(scope="module")
def alone(target):
    """Every text of every law without drafts, one stream at a time in greedy decoding."""

    async def write():
        verifier = Verifier(target)
        served = verifier.served[target.version]
        found = []
        for law in LAWS:
            jobs = [
                verifier.attach(served).write(
                    request_of(prompt, law, COUNT, i, race=True), None, race=True
                )
                for i, prompt in enumerate(prompts(target.vocab_size))
            ]
            found += await together(jobs, most=1 if law == "greedy" else SLOTS)
        keys = [(law, i) for law in LAWS for i in range(PROMPTS)]
        return dict(zip(keys, found))

    return asyncio.run(write())


def test_texts_are_those_of_our_own_engine(target, alone):
    """The same weights on onnxruntime, with our own sampling: the noise is the same."""
    from draftwire.verifier.backends.onnx_target import OnnxTarget

    onnx = OnnxTarget(MODELS / "v1.target", slots=1, threads=1)
    differ = []
    for (law, i), text in alone.items():
        request = request_of([1], law, 1, i)
        params = SamplingParams(
            request.scheme,
            request.temperature,
            request.top_k,
            request.top_p,
            request.seed,
        )
        decider = make_decider(params, onnx.vocab_size)
        prompt = prompts(target.vocab_size)[i]
        slot, ids = onnx.allocate(), [*prompt, *text[:-1]]
        (rows,) = onnx.forward([SlotInput(slot, 0, np.array(ids), len(text))])
        onnx.release(slot)
        for j, token in enumerate(text):
            at = len(prompt) + j
            if decider.decide((), b"", rows[j][None], at).token != token:
                differ.append((law, i, j))
                break
    # The package's weights are halves, the folder's floats of them: sums differ in bits.
    assert len(differ) <= 1, differ


def test_greedy_texts_are_those_of_a_client_without_draftwire(target, alone):
    """An ordinary request to the same engine, which knows nothing of us."""
    from vllm import SamplingParams as Sampling

    engine = target.engine

    async def one(number, prompt):
        sampling = Sampling(temperature=0, max_tokens=COUNT, ignore_eos=True)
        last = None
        async for output in engine._llm.generate(
            {"prompt_token_ids": prompt}, sampling, f"plain-{number}"
        ):
            last = output
        return list(last.outputs[0].token_ids)

    async def every():
        jobs = (one(i, p) for i, p in enumerate(prompts(target.vocab_size)))
        return await asyncio.gather(*jobs)

    found = engine._do(every())
    assert found == [alone["greedy", i] for i in range(PROMPTS)]


@pytest.mark.parametrize("race", [False, True], ids=["cost", "race"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("law", LAWS)
def test_texts_with_drafts_are_the_engines_own(target, alone, law, kind, race):
    async def write():
        verifier = Verifier(target)
        served = verifier.served[target.version]
        devices, jobs = [], []
        for i, prompt in enumerate(prompts(target.vocab_size)):
            device = verifier.attach(served)
            oracle = oracle_of(alone[law, i], kind, i, target.vocab_size)
            request = request_of(prompt, law, COUNT, i, race)
            devices.append(device)
            jobs.append(device.write(request, oracle, race=race))
        return await together(jobs, SLOTS), sum(d.forwards for d in devices)

    texts, forwards = asyncio.run(write())
    assert texts == [alone[law, i] for i in range(PROMPTS)]
    print(f"{law}, {kind}, {'race' if race else 'cost'}: {forwards} forwards")
    plain = PROMPTS * COUNT
    if kind in ("wrong", "absent"):
        assert forwards <= plain
    elif not race:
        assert forwards < {"right": 0.3, "80 %": 0.5}[kind] * plain


def test_links_that_are_lost_lose_nothing(target, alone):
    async def write():
        verifier = Verifier(target)
        served = verifier.served[target.version]
        jobs = []
        for i, prompt in enumerate(prompts(target.vocab_size)):
            law = ("greedy", "coupled", "top-k/p")[i % 3]
            oracle = oracle_of(alone[law, i], "80 %", i, target.vocab_size)
            request = request_of(prompt, law, COUNT, i, i % 2 == 1)
            jobs.append(
                verifier.attach(served).write(
                    request, oracle, race=i % 2 == 1, cut_at=5 + 2 * i
                )
            )
        texts = await together(jobs)
        assert verifier.kept.resumed == PROMPTS
        assert not served.scheduler.streams
        return texts

    texts = asyncio.run(write())
    for i, text in enumerate(texts):
        assert text == alone["greedy coupled top-k/p".split()[i % 3], i], i


async def write_versions(versions, n, kind, texts, count=COUNT):
    """Write ``n`` texts on each version, mixed, all at once."""
    verifier = Verifier(*versions)
    jobs, keys = [], []
    for i, prompt in enumerate(prompts(versions[0].vocab_size, n)):
        for target in versions:
            law = ("greedy", "coupled")[i % 2]
            key = target.version, i
            oracle = None
            if texts:
                oracle = oracle_of(texts[key], kind, i, target.vocab_size)
            device = verifier.attach(verifier.served[target.version])
            request = request_of(prompt, law, count, i)
            keys.append(key)
            jobs.append(device.write(request, oracle))
    return dict(zip(keys, await together(jobs, most=16 if texts else 1)))


@pytest.fixture(scope="module")
def versions_alone(versions):
    return asyncio.run(write_versions(versions, 5, "absent", {}, 96))


def test_versions_are_adapters_of_one_engine(versions_alone, alone):
    for i in range(5):
        texts = [tuple(versions_alone[v, i]) for v in ("v1", "v2", "v3")]
        assert len(set(texts)) == 3, "three versions say three things"
        # The base beside adapters is the base alone.
        known = alone["greedy" if i % 2 == 0 else "coupled", i]
        assert list(texts[0][:COUNT]) == known


def test_versions_side_by_side_with_little_memory(versions, versions_alone):
    """Preempted streams read their text again; each version keeps to its own."""
    for kind in ("right", "80 %"):
        texts = asyncio.run(write_versions(versions, 5, kind, versions_alone, 96))
        assert texts == versions_alone


def test_an_engine_that_dies_is_started_again(versions, versions_alone):
    engine = versions[0].engine

    async def write():
        job = asyncio.ensure_future(write_versions(versions, 5, "80 %", versions_alone, 96))
        await asyncio.sleep(0.3)
        for process in engine._llm.engine_core.resources.engine_manager.processes:
            os.kill(process.pid, signal.SIGKILL)
        return await job

    assert asyncio.run(write()) == versions_alone
    assert engine.deaths == 1


def test_what_does_not_fit_is_said(folders, target):
    with pytest.raises(ConfigError, match="without room for the adapter"):
        from draftwire.verifier.backends.vllm.engine import VllmTarget

        VllmTarget(folders[1], target.engine)
    with pytest.raises(ModelError, match="no checkpoint folder"):
        VllmLoader()(ROOT / "docs")
    with pytest.raises(ModelError, match="does not start"):
        VllmLoader(context=10**6)(folders[0])
    with pytest.raises(ConfigError, match="without adapters only"):
        VllmLoader(targets=folders, openai=("127.0.0.1", 1))(folders[0])


@pytest.fixture(scope="module")
def openai_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def with_bos(folders, tmp_path_factory):
    """The base with a tokenizer that puts a first token before plain text."""
    from tokenizers import Tokenizer, processors

    folder = tmp_path_factory.mktemp("bos") / folders[0].name
    shutil.copytree(folders[0], folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = words.id_to_token(0)
    words.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, 0)]
    )
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def served(with_bos, openai_port):
    command = [sys.executable, "-m", "draftwire", "verifier", "serve", "--port", "0"]
    command += ["--backend", "vllm", "--target", str(with_bos)]
    command += ["--openai", f"127.0.0.1:{openai_port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    yield re.search(r"ws://\S+", line)[0]
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def test_the_conformance_kit_passes(served):
    command = [sys.executable, "-m", "draftwire", "verifier", "check", served, "--quick"]
    found = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True)
    document = json.loads(found.stdout)
    failed = [r for r in document["rows"] if r["result"] not in ("conforms", "not tested")]
    assert found.returncode == 0 and not failed, failed


def test_openais_clients_ask_the_same_engine(served, openai_port, target, alone, with_bos):
    """The real client: its greedy text is the engine's own, beside devices and alone."""
    from openai import BadRequestError, OpenAI
    from transformers import AutoTokenizer

    client = OpenAI(base_url=f"http://127.0.0.1:{openai_port}/v1", api_key="none")
    (model,) = client.models.list().data
    assert model.id == target.name

    def write(i):
        answer = client.completions.create(
            model=model.id,
            prompt=prompts(target.vocab_size)[i],
            max_tokens=COUNT,
            temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        return answer.choices[0].token_ids

    command = [sys.executable, "-m", "draftwire", "generate", "Once upon a time"]
    command += ["--verifier", served, "--draft", str(MODELS / "reference.draft")]
    command += ["--max-new-tokens", "200", "--temperature", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as device:
        texts = [write(i) for i in range(4)]
        report = json.loads(device.communicate()[0])
    assert texts == [alone["greedy", i] for i in range(4)]
    assert report["tokens"] > 0 and report["accepted"] > 0
    words = [
        part.choices[0].text
        for part in client.completions.create(
            model=model.id, prompt="Once upon a time", max_tokens=20, stream=True
        )
    ]
    assert len(words) > 5 and "".join(words).strip()
    # Plain text gets a first token where the folder's tokenizer has one, as in any vLLM.
    known = AutoTokenizer.from_pretrained(with_bos)("Once upon a time").input_ids
    told = client.completions.create(
        model=model.id,
        prompt="Once upon a time",
        max_tokens=1,
        extra_body={"return_token_ids": True},
    )
    assert told.choices[0].prompt_token_ids == known and known[0] == 0
    with pytest.raises(BadRequestError):
        client.completions.create(model=model.id, prompt="a", max_tokens=10**6)


def test_a_device_writes_with_the_reference_draft(served, target):
    command = [sys.executable, "-m", "draftwire", "generate", "Once upon a time"]
    command += ["--verifier", served, "--draft", str(MODELS / "reference.draft")]
    command += ["--max-new-tokens", "60", "--temperature", "0", "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(found.stdout)
    prompt_tokens = report["prompt_tokens"]
    assert report["tokens"] == 60 and prompt_tokens > 0
    assert report["target_forwards"] < 50 and report["accepted"] > 10
