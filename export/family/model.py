"""A plain Llama in PyTorch, for training the reference family on two cores.

Parameter names and maths are those of Hugging Face's ``LlamaForCausalLM``, so a state
dict saved here loads there, and ``draftwire export onnx`` reads either.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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


class _Attention(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.head_dim = c.hidden_size // c.num_attention_heads
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, length, heads, self.head_dim).transpose(1, 2)

        q = _rotate(split(self.q_proj(x), self.heads), cos, sin)
        k = _rotate(split(self.k_proj(x), self.kv_heads), cos, sin)
        v = split(self.v_proj(x), self.kv_heads)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class _MLP(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Norm(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.hidden_size))
        self.eps = c.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _Block(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(c)
        self.mlp = _MLP(c)
        self.input_layernorm = _Norm(c)
        self.post_attention_layernorm = _Norm(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Backbone(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(_Block(c) for _ in range(c.num_hidden_layers))
        self.norm = _Norm(c)


class Llama(nn.Module):
    """Decoder-only transformer with rotary positions and a tied head.

    Args:
        config: Its shape.
        seed: Of the initial weights.
    """

    def __init__(self, config: LlamaConfig, *, seed: int = 0) -> None:
        super().__init__()
        if not config.tie_word_embeddings:
            raise ValueError("the reference family ties its head to its embeddings")
        self.config = config
        self.model = _Backbone(config)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                scale = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= (2 * config.num_hidden_layers) ** 0.5
                nn.init.normal_(weight, std=scale, generator=generator)
        dim = config.hidden_size // config.num_attention_heads
        rates = config.rope_theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.outer(
            torch.arange(config.max_position_embeddings, dtype=torch.float64), rates
        )
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def hidden(
        self, ids: Tensor, layers: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the final normalised states and the raw states after ``layers``.

        Args:
            ids: ``(batch, length)`` token ids.
            layers: Layer counts at which to keep the residual stream.

        Returns:
            ``(batch, length, hidden)`` states, and one such tensor per entry of
            ``layers``.
        """
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(ids)
        kept = []
        for number, block in enumerate(self.model.layers, 1):
            x = block(x, cos, sin)
            if number in layers:
                kept.append(x)
        return self.model.norm(x), kept

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``(batch, length, vocab)`` for ``ids`` ``(batch, length)``."""
        return self.hidden(ids)[0] @ self.model.embed_tokens.weight.T


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
