"""Law 1 on the reference family: the streamed tokens are the target's own.

Twenty prompts x three targets x (greedy, coupled at 0.8), a verifier process and a real
websocket, against plain decoding of the same package: one forward, one token, no draft.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pieces import target_only

import draftwire
from draftwire.cli._local_verifier import local_verifier
from draftwire.packages import load_draft, load_tokenizer
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.onnx_target import OnnxTarget

MODELS = Path(__file__).resolve().parents[2] / "models"
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TARGETS = ("v1", "v2", "v3")
COUNT = 24

PROMPTS = (
    "Once upon a time there was a king who",
    "The little girl looked out of the window and saw",
    '"I am not afraid," said',
    "In the middle of the forest there stood",
    "The old woman gave him a",
    "He ran down to the river, and",
    "There was once a tailor",
    "When the sun rose the next morning",
    "User: Can I get a latte with oat milk please?\nAgent:",
    "User: Hello\nAgent:",
    "User: I'd like a mocha.\nAgent: Is the order correct?\nUser:",
    "User: turn off the lights in the kitchen\nIntent:",
    "User: wake me up at seven\nIntent:",
    "User: play some jazz\nIntent:",
    "Command: walk left twice and jump\nPlan:",
    "Command: look around right and walk thrice\nPlan:",
    "Question: Tom has 3 apples and buys 4 more. How many apples has he now?\nAnswer:",
    "KING:\nWhat news,",
    "a",
    "caf\u00e9 \U0001f916",
)
MODES = {"greedy": {"temperature": 0.0}, "coupled": {"temperature": 0.8, "top_p": 0.95}}

# What goes on while a verdict is out must not show in the text.
WAYS = (
    {},
    {"objective": "cost", "preempt": "off"},
    {"objective": "cost", "pipeline": 3, "cut": True},
    {"objective": "cost", "preempt": "guess,exits,outcomes"},
    {"objective": "latency"},
    {"objective": "latency", "preempt": "exits", "batch": 2},
    {"objective": "cost", "pipeline": 2, "preempt": "guess,exits"},
    {"max_forwards_per_token": 0.4},
)


@pytest.fixture(scope="module")
def backends():
    return {name: OnnxTarget(MODELS / f"{name}.target", threads=1) for name in TARGETS}


@pytest.fixture(scope="module")
def verifier():
    with local_verifier([MODELS / f"{name}.target" for name in TARGETS]) as found:
        yield found


def connect(url, **options):
    """A machine that is busy for a second must not look like a lost link."""
    return draftwire.connect(url, silence_s=15.0, **options)


def streamed(session, prompt, mode, seed, **options):
    tokens = [
        token.id
        for chunk in session.generate(
            prompt, max_new_tokens=COUNT, seed=seed, **MODES[mode], **options
        )
        for token in chunk.tokens
    ]
    report = session.report
    assert report["token_ids"] == tokens
    # A text that came out right after a retry would hide a fault of the verifier.
    assert report["link"]["reconnects"] == 0
    assert not any("anew" in warning for warning in report["warnings"])
    return tokens


def params_of(mode, seed):
    options = MODES[mode]
    return SamplingParams(mode, options["temperature"], 0, options.get("top_p", 1.0), seed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", TARGETS)
def test_the_targets_own_text(backends, verifier, target, mode):
    url, token = verifier
    draft = load_draft(MODELS / "reference.draft")
    tokenizer = load_tokenizer(draft.tokenizer_path)
    blocks, ways = itertools.cycle((4, 1, 7, 16)), itertools.cycle(WAYS)
    with connect(url, draft=draft, target=target, token=token) as session:
        for seed, (text, block, way) in enumerate(zip(PROMPTS, blocks, ways)):
            prompt = tokenizer.encode(text, bos_id=draft.bos_id)
            expected = target_only(backends[target], prompt, params_of(mode, seed), COUNT)
            found = streamed(session, text, mode, seed, block=block, **way)
            assert found == expected, f"{target} {mode} {text!r} block {block} {way}"


@pytest.fixture(scope="module")
def parallel_draft(tmp_path_factory):
    """The reference draft with one of its rows for masks: they mostly say wrong things."""
    folder = tmp_path_factory.mktemp("parallel") / "reference.draft"
    shutil.copytree(MODELS / "reference.draft", folder)
    raw = json.loads((folder / "draft.json").read_text(encoding="utf-8"))
    raw["parallel"] = {"mask_ids": [2047], "block": 6}
    (folder / "draft.json").write_text(json.dumps(raw), encoding="utf-8")
    return load_draft(folder)


PARALLEL = (
    {"controller": "fixed:6:parallel"},
    {"controller": "fixed:9:parallel", "objective": "cost", "pipeline": 3, "cut": True},
    {
        "controller": "fixed:5:hybrid",
        "objective": "cost",
        "preempt": "guess,exits,outcomes",
    },
    {"controller": "fixed:7:parallel", "objective": "latency"},
    {"controller": "auto"},
    {"controller": "auto", "objective": "cost", "preempt": "off"},
    {"controller": "fixed:4"},
)


@pytest.mark.parametrize("mode", MODES)
def test_the_targets_own_text_from_a_parallel_draft(
    backends, verifier, parallel_draft, mode
):
    url, token = verifier
    draft = parallel_draft
    tokenizer = load_tokenizer(draft.tokenizer_path)
    assert draft.id == load_draft(MODELS / "reference.draft").id  # the same draft, frozen
    masked = 0
    with connect(url, draft=draft, target="v1", token=token) as session:
        for seed, (text, way) in enumerate(zip(PROMPTS, 2 * PARALLEL)):
            prompt = tokenizer.encode(text, bos_id=draft.bos_id)
            expected = target_only(backends["v1"], prompt, params_of(mode, seed), COUNT)
            assert streamed(session, text, mode, seed, **way) == expected, (text, way)
            told = session.report["mode"]["drafting"]
            rows = [told[name] for name in ("autoregressive", "parallel", "hybrid")]
            assert sum(row["drafted"] for row in rows) == session.report["drafted"]
            assert sum(row["accepted"] for row in rows) == session.report["accepted"]
            asked = way["controller"].split(":")[-1]
            if asked in told:
                assert told[asked]["drafted"] == session.report["drafted"]
                if way.get("objective") != "latency":  # a race may overtake all of them
                    assert told[asked]["drafted"] > 0
            masked += told["parallel"]["drafted"] + told["hybrid"]["drafted"]
        assert masked > 0
        lines = []
        options = {"controller": "fixed:4:hybrid", "explain": lines.append}
        list(session.generate(PROMPTS[0], max_new_tokens=8, **options))
        assert "hybrid (asked for)" in lines[0]
        for scheme in ("residual", "qs"):  # evidence of rows behind masks is taken
            options = {"scheme": scheme, "temperature": 0.8, "ignore_eos": True}
            options["controller"] = "fixed:6:parallel"
            list(session.generate(PROMPTS[0], max_new_tokens=16, **options))
            assert session.report["tokens"] == 16


@pytest.fixture(scope="module")
def random_draft(tmp_path_factory):
    """A draft of the family's tokenizer and shape, and nothing learned."""
    pytest.importorskip("onnx", reason="making a draft needs onnx")
    from draftwire.export.onnx import export_onnx
    from draftwire.export.sources.tokens import copy_tokenizer
    from draftwire.tensors import write_tensors

    folder = tmp_path_factory.mktemp("random") / "random.hf"
    folder.mkdir()
    vocab, hidden, inner = 2048, 64, 96
    rng = np.random.default_rng(5)
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "model.layers.0.input_layernorm.weight": (hidden,),
        "model.layers.0.post_attention_layernorm.weight": (hidden,),
        "model.layers.0.mlp.gate_proj.weight": (inner, hidden),
        "model.layers.0.mlp.up_proj.weight": (inner, hidden),
        "model.layers.0.mlp.down_proj.weight": (hidden, inner),
    }
    for part in "qkvo":
        shapes[f"model.layers.0.self_attn.{part}_proj.weight"] = (hidden, hidden)
    write_tensors(
        folder / "model.safetensors",
        {k: rng.normal(0, 0.5, v).astype(np.float32) for k, v in shapes.items()},
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = MODELS / "reference.draft" / "tokenizer.json"
    copy_tokenizer(tokenizer, folder / "tokenizer.json", 0)
    return export_onnx(
        folder,
        folder.with_name("random.draft"),
        precision="fp32",
        family_name="storyteller",
    )


@pytest.mark.workstation
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_draft_of_random_weights_changes_nothing_but_speed(
    backends, verifier, random_draft, target, mode
):
    url, token = verifier
    tokenizer = load_tokenizer(random_draft / "tokenizer.json")
    with connect(url, draft=random_draft, target=target, token=token) as session:
        for seed, text in enumerate(PROMPTS):
            prompt = tokenizer.encode(text, bos_id=0)
            expected = target_only(backends[target], prompt, params_of(mode, seed), COUNT)
            found = streamed(session, text, mode, seed, objective="cost")
            assert found == expected
            assert session.report["accepted"] < session.report["drafted"] / 2


@pytest.mark.parametrize("mode", MODES)
def test_the_tiny_family_keeps_the_law_too(mode):
    target = OnnxTarget(FIXTURES / "tiny.target", threads=1)
    with local_verifier([FIXTURES / "tiny.target"]) as (url, token):
        with connect(url, draft=FIXTURES / "tiny.draft", token=token) as session:
            for seed in range(6):
                prompt = [(seed * 37 + i * 11) % target.vocab_size for i in range(5)]
                expected = target_only(target, prompt, params_of(mode, seed), COUNT)
                found = streamed(session, prompt, mode, seed, objective="cost")
                assert found == expected
            assert session.report["drafted"] > 0


def test_the_frozen_draft_earns_its_place(verifier):
    """What the family must show on v1: at least 2 of 4 accepted, under half a forward."""
    url, token = verifier
    draft = MODELS / "reference.draft"
    drafted = accepted = rounds = tokens = forwards = payload = 0
    with connect(url, draft=draft, target="v1", token=token) as session:
        for prompt in PROMPTS[:8]:
            for _ in session.generate(prompt, max_new_tokens=64, block=4, objective="cost"):
                pass
            report = session.report
            drafted += report["drafted"]
            accepted += report["accepted"]
            rounds += report["rounds"]
            tokens += report["tokens"]
            forwards += report["target_forwards"]
            payload += report["bytes"]["up_payload"]
    assert accepted / rounds >= 2.0
    assert forwards / tokens < 0.5
    # The prompts crossed too: they are in these bytes.
    assert payload / drafted < 4.0
