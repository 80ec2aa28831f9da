"""LoRA adapters as vLLM takes them, and one that changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from draftwire.errors import ModelError
from draftwire.tensors import write_tensors


def rank_of(folder: Path) -> int:
    """Return the rank of an adapter, as vLLM wants it: a power of two from 8 on.

    Raises:
        ModelError: Its configuration is damaged.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the adapter {folder} cannot be read: {error}") from error
    return max(8, 1 << (rank - 1).bit_length())


def empty_adapter(base: Path, folder: Path) -> Path:
    """Write an adapter of zeros for a checkpoint into ``folder``, and return that."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    hidden = int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    wide = heads * int(config.get("head_dim") or hidden // heads)
    about: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_%s.weight"
    zeros = {
        name % "A": np.zeros((1, hidden), np.float32),
        name % "B": np.zeros((wide, 1), np.float32),
    }
    write_tensors(folder / "adapter_model.safetensors", zeros)
    return folder
