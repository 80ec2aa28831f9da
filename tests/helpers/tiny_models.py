"""Tiny random models of the shapes that the exporter writes by itself."""

from __future__ import annotations

import os
import shutil

import pytest

VOCAB = 320  # the tokenizer knows fewer: real checkpoints pad their embedding too

# As transformers spells what is not simply capitalised.
_CLASSES = {"gpt": "GPTNeoX", "gpt2": "GPT2", "smollm3": "SmolLM3"}
_GROUPED = {"num_key_value_heads": 2}


def _rope(kind, theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


SHAPES = {
    "llama": {**_GROUPED, "tie_word_embeddings": False},
    "llama_tied_biased": {
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_scaled": {
        "num_key_value_heads": 1,
        "rope_parameters": _rope(
            "llama3",
            1000.0,
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    },
    "llama_linear": {
        **_GROUPED,
        "head_dim": 32,
        "rope_parameters": _rope("linear", 5000.0, factor=2.0),
    },
    "mistral": {**_GROUPED, "sliding_window": None},
    "qwen2": {**_GROUPED, "tie_word_embeddings": True},
    "gpt_neox": {"use_parallel_residual": True},
    "gpt_neox_sequential": {
        "use_parallel_residual": False,
        "hidden_act": "gelu_new",
        "rope_parameters": _rope("default", partial_rotary_factor=1.0),
    },
}
# Whole families beside the four that drafts are trained for. Windows are short, so that
# a text of 90 tokens leaves them.
_WINDOW = {**_GROUPED, "sliding_window": 16}
_HALF = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=40)
_LONG = {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 100}
_FACTORS = {"short_factor": [1.0 + i / 8 for i in range(12)], "long_factor": [2.0] * 12}
FAMILY_SHAPES = {
    "llama_yarn": {**_GROUPED, "rope_parameters": _YARN},
    "llama_dynamic": {**_GROUPED, "rope_parameters": _rope("dynamic", factor=2.0)},
    "mistral_windowed": {**_GROUPED, "sliding_window": 20},
    "ministral": {**_HALF, "sliding_window": 12, "head_dim": 16},
    "qwen2_windowed": {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_GROUPED, "head_dim": 32, "tie_word_embeddings": True},
    "smollm3": {**_GROUPED, "no_rope_layers": [1, 0], "use_sliding_window": False},
    "gemma": {**_GROUPED, "head_dim": 32},
    "gemma2": {
        **_WINDOW,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {**_HALF, "head_dim": 16, "query_pre_attn_scalar": 24},
    "phi3": {**_GROUPED, "sliding_window": 30},
    "phi3_long": {
        **_GROUPED,
        **_LONG,
        "num_attention_heads": 2,
        "rope_parameters": _rope("longrope", **_LONG, **_FACTORS),
    },
    "olmo2": dict(_GROUPED),
    "olmo3": dict(_HALF),
    "exaone4": {**_HALF, "sliding_window_pattern": 2},
    "granite": {
        **_GROUPED,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "starcoder2": {**_GROUPED, "sliding_window": 40, "use_bias": True},
    "gpt2": {},
    "lfm2": {
        **_GROUPED,
        "layer_types": ["conv", "full_attention"],
        "block_multiple_of": 16,
        "conv_bias": True,
    },
}
SHAPES.update(FAMILY_SHAPES)
# What a target's graph and LiteRT's have.
ATTENDING = [shape for shape in SHAPES if shape != "lfm2"]


def _settings(shape, major):
    """Return a shape's settings as this transformers spells them."""
    settings = dict(SHAPES[shape])
    if major < 5 and "rope_parameters" in settings:
        rope = settings.pop("rope_parameters").copy()
        settings["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            settings["rotary_pct"] = rope.pop("partial_rotary_factor")
        if rope["rope_type"] != "default":
            settings["rope_scaling"] = rope
    return settings


def _seeded(shape):
    import torch
    import transformers

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    family = shape.split("_")[0]
    prefix = _CLASSES.get(family, family.capitalize())
    name = "Gemma3TextConfig" if prefix == "Gemma3" else prefix + "Config"
    config = getattr(transformers, name)(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 160,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
            **_settings(shape, int(transformers.__version__.split(".")[0])),
        }
    )
    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if prefix == "GPT2" else prefix + "ForCausalLM"
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Biases start at 0 and norms at 1: a graph that drops them would pass.
            spread = 0.2 if weight.ndim == 1 else 0.1
            weight.add_(torch.randn_like(weight) * spread)
            if "embed" in name or "lm_head" in name:
                weight.mul_(4)  # logits far apart, as in a trained model
    return model


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the robot takes the red cup to the table and then goes to the door"
    engine.train_from_iterator([text] * 4, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    engine.save(str(file))
    return file


@pytest.fixture(scope="session")
def models(tmp_path_factory, tokenizer_file):
    """Return a function: the folder of a tiny model of some shape, made once."""
    pytest.importorskip("transformers")
    made = {}

    def get(shape):
        if shape not in made:
            folder = tmp_path_factory.mktemp("models") / f"{shape}.hf"
            _seeded(shape).save_pretrained(folder)
            shutil.copy(tokenizer_file, folder)
            made[shape] = folder
        return made[shape]

    return get


@pytest.fixture(scope="session")
def targets(models, tmp_path_factory):
    """Return a function: a target package of some shape in float32, made once."""
    made = {}

    def get(shape):
        from draftwire.export.onnx import export_onnx

        if shape not in made:
            made[shape] = export_onnx(
                models(shape), tmp_path_factory.mktemp("targets") / "v1.target",
                role="target", precision="fp32", anchor_layers=1, against="numpy",
                family_name=shape,
            )  # fmt: skip
        return made[shape]

    return get


@pytest.fixture
def model_copy(models, tmp_path):
    """Return a function: a copy of a tiny model that a test may change."""

    def copy(shape="llama"):
        return shutil.copytree(models(shape), tmp_path / f"{shape}.hf")

    return copy


@pytest.fixture(scope="session")
def torch_logits():
    """Return a function: transformers' own logits ``(T, V)`` for a model folder."""
    loaded = {}

    def run(folder, ids):
        import torch
        from transformers import AutoModelForCausalLM

        if folder not in loaded:
            loaded[folder] = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        with torch.no_grad():
            return loaded[folder](torch.tensor([list(ids)])).logits[0].numpy()

    return run
