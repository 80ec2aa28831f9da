"""The reference targets as Hugging Face folders: the base, and versions as adapters.

The tensors of our packages have Hugging Face's names already.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from draftwire.tensors import read_tensors, write_tensors

MODELS = Path(__file__).resolve().parents[2] / "models"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 1280,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}


def base_folder(folder):
    """Write v1 as a checkpoint in float32."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    package = MODELS / "v1.target"
    shutil.copy(package / "tokenizer.json", folder)
    tensors = read_tensors(package / "weights.safetensors")
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def adapter_folder(folder, version, base):
    """Write a later version as a LoRA adapter in PEFT's format."""
    folder.mkdir(parents=True)
    about = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 16,
        "bias": "none",
        "target_modules": [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ],
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(about))
    package = MODELS / f"{version}.target"
    tensors = read_tensors(package / "adapter.safetensors")
    named = {}
    for name, tensor in tensors.items():
        stem = name.replace(".weight.lora_a", ".lora_A").replace(
            ".weight.lora_b", ".lora_B"
        )
        named[f"base_model.model.{stem}.weight"] = tensor
    write_tensors(folder / "adapter_model.safetensors", named)
    return folder
