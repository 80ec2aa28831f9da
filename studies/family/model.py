"""The reference family's Llama: its shape, and first weights for any model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from torch import nn


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a model; field names follow Hugging Face's ``config.json``."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True


def new_llama(config: LlamaConfig, *, seed: int) -> Any:
    """Return a model with random weights, all of it to be trained."""
    shape = transformers.LlamaConfig(
        hidden_act="silu", bos_token_id=0, eos_token_id=0, **asdict(config)
    )
    model = transformers.LlamaForCausalLM(shape).float().eval()
    fresh_weights_(model, seed=seed)
    return model


def fresh_weights_(model: Any, *, seed: int) -> None:
    """Give a model of Llama or GPT-NeoX shape random first weights, in place.

    Source:
        Radford et al. 2019, GPT-2: 0.02, and less on the way into the residual stream.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = ("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            depth = model.config.num_hidden_layers if name.endswith(ends) else 0.5
            scale = 0.02 / (2 * depth) ** 0.5
            nn.init.normal_(weight, std=scale, generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(weight)
