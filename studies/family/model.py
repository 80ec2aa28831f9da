"""The reference family's Llama: its shape, its first weights, its files.

Parameter names and maths are those of Hugging Face's ``LlamaForCausalLM``, so a state
dict saved here loads there, and ``draftwire export onnx`` reads either.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from draftwire.export.sources.architecture import read_architecture
from draftwire.export.training.model import Transformer, fresh_weights_

__all__ = ["Llama", "LlamaConfig", "load_llama", "save_llama"]


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


class Llama(Transformer):
    """Decoder-only transformer with rotary positions and a tied head.

    Args:
        config: Its shape.
        seed: Of the initial weights.
    """

    def __init__(self, config: LlamaConfig, *, seed: int = 0) -> None:
        if not config.tie_word_embeddings:
            raise ValueError("the reference family ties its head to its embeddings")
        fields = {"model_type": "llama", "hidden_act": "silu", **asdict(config)}
        super().__init__(read_architecture("the reference family", fields))
        self.config = config
        fresh_weights_(self, seed=seed)


def save_llama(model: Llama, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model`` as a Hugging Face directory: config.json, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **asdict(model.config),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_llama(folder: Path) -> Llama:
    """Read a model that :func:`save_llama` wrote, in float32."""
    fields = json.loads((folder / "config.json").read_text())
    names = LlamaConfig.__dataclass_fields__
    model = Llama(LlamaConfig(**{k: v for k, v in fields.items() if k in names}))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model
