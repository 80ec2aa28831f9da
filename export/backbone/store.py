"""Trained models back to Hugging Face directories, which the exporter reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from draftwire.errors import ModelError
from draftwire.export.architecture import Architecture
from draftwire.export.backbone.base import Base, is_package
from draftwire.export.backbone.model import Transformer
from draftwire.export.checkpoint import read_config
from draftwire.export.tokens import copy_tokenizer

__all__ = ["save_checkpoint"]

# What says how prompts are made belongs to the model that reads them.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_BY_LAYER = ("layer_types", "no_rope_layers")


def save_checkpoint(model: Transformer, base: Base, source: Path, folder: Path) -> None:
    """Write a model with fewer layers than its base as a Hugging Face directory.

    Args:
        model: What to write.
        base: Where its shape comes from.
        source: The base's folder, a checkpoint or a target package.
        folder: Where to write; replaced.

    Raises:
        ModelError: The shape cannot be said in a ``config.json``.
    """
    layers = model.architecture.layers
    if is_package(source):
        config = _config_of(base, model.architecture)
    else:
        config = read_config(source)
        config["num_hidden_layers"] = layers
        for name in _BY_LAYER:
            if isinstance(config.get(name), list):
                config[name] = config[name][:layers]
        if isinstance(config.get("max_window_layers"), int):
            config["max_window_layers"] = min(config["max_window_layers"], layers)
    for name in ("torch_dtype", "dtype"):
        config.pop(name, None)
    config["torch_dtype"] = "float32"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in _BESIDE:
        origin = base.tokenizer.parent / name
        if origin.is_file():
            shutil.copy(origin, folder / name)
    if is_package(source):
        copy_tokenizer(base.tokenizer, folder / "tokenizer.json", base.bos_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _config_of(base: Base, a: Architecture) -> dict[str, Any]:
    """Spell a package's shape as transformers would."""
    theta = 10000.0
    if len(a.rope_rates) > 1:
        theta = float(a.rope_rates[1]) ** -float(len(a.rope_rates))
        for whole in (round(theta), round(theta, -2)):  # as a config would have it
            if whole and abs(theta - whole) < 1e-3 * whole:
                theta = float(whole)
    plain = theta ** -(np.arange(len(a.rope_rates)) / len(a.rope_rates))
    if not np.allclose(plain, a.rope_rates, rtol=1e-5):
        raise ModelError(
            f"{base.name} scales its rotary positions",
            hint="give the Hugging Face directory that the package was exported from",
        )
    config: dict[str, Any] = {
        "model_type": a.model_type,
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden,
        "intermediate_size": a.feed_forward,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "max_position_embeddings": a.context,
        "rope_theta": theta,
        "tie_word_embeddings": a.tied,
        "bos_token_id": base.bos_id,
        "eos_token_id": list(base.eos_ids) if len(base.eos_ids) != 1 else base.eos_ids[0],
    }
    if a.neox:
        return {
            **config,
            "architectures": ["GPTNeoXForCausalLM"],
            "hidden_act": "gelu_new" if a.activation == "gelu_tanh" else "gelu",
            "layer_norm_eps": a.eps,
            "rotary_pct": a.rotary_dim / a.head_dim,
            "partial_rotary_factor": a.rotary_dim / a.head_dim,
            "use_parallel_residual": a.parallel,
        }
    biased = base.model.biased
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[a.model_type]
    return {
        **config,
        "architectures": [f"{name}ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "rms_norm_eps": a.eps,
        "attention_bias": "self_attn.q_proj" in biased,
        "mlp_bias": "mlp.up_proj" in biased,
        **({"sliding_window": None} if a.model_type == "mistral" else {}),
    }
