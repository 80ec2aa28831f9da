"""Tiny random models of the shapes that the exporter writes by itself."""

from __future__ import annotations

import os
import shutil

import pytest

VOCAB = 320  # the tokenizer knows fewer: real checkpoints pad their embedding too

SHAPES = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama_tied_biased": {
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_scaled": {
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "linear",
            "rope_theta": 5000.0,
            "factor": 2.0,
        },
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt_neox": {"use_parallel_residual": True},
    "gpt_neox_sequential": {
        "use_parallel_residual": False,
        "hidden_act": "gelu_new",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
    },
}
_CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "gpt": "GPTNeoX",
}


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
    prefix = _CLASSES[shape.split("_")[0]]
    config = getattr(transformers, prefix + "Config")(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=160,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **_settings(shape, int(transformers.__version__.split(".")[0])),
    )
    torch.manual_seed(0)
    model = getattr(transformers, prefix + "ForCausalLM")(config).eval()
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
