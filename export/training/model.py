"""Llama-, Qwen2- and GPT-NeoX-shaped models in PyTorch, for training.

Parameter names and maths are those of the Hugging Face classes, so a state dict goes
either way; what the model needs to know is the exporter's own description of a shape.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draftwire.export.sources.architecture import Architecture
from draftwire.export.sources.checkpoint import Checkpoint

__all__ = [
    "Block",
    "KeyValues",
    "Transformer",
    "biased_modules",
    "fresh_weights_",
    "load_transformer",
]

KeyValues = list[tuple[Tensor, Tensor]]  # per layer, (batch, kv_heads, length, head_dim)


def _linear(a: Architecture, prefix: str, name: str, biased: frozenset[str]) -> nn.Linear:
    rows, columns = a.parameters()[0][f"{a.layer(0)}{prefix}.{name}.weight"]
    return nn.Linear(columns, rows, bias=f"{prefix}.{name}" in biased)


class _Attention(nn.Module):
    def __init__(self, a: Architecture, biased: frozenset[str]) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = a.heads, a.kv_heads, a.head_dim
        self.neox = a.neox
        if a.neox:
            self.query_key_value = _linear(a, "attention", "query_key_value", biased)
            self.dense = _linear(a, "attention", "dense", biased)
            return
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, _linear(a, "self_attn", name, biased))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, _ = x.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, length, heads, self.head_dim).transpose(1, 2)

        if self.neox:
            # For each head its query, key and value lie side by side.
            fused = self.query_key_value(x).view(batch, length, self.heads, -1)
            q, k, v = (y.transpose(1, 2) for y in fused.chunk(3, -1))
        else:
            q = split(self.q_proj(x), self.heads)
            k = split(self.k_proj(x), self.kv_heads)
            v = split(self.v_proj(x), self.kv_heads)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        keep = (k, v)
        groups = self.heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mask = None
        if past is not None and length > 1:
            seen = k.shape[2]
            mask = torch.ones(length, seen, dtype=torch.bool, device=x.device)
            mask = mask.tril(seen - length)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=past is None)
        y = y.transpose(1, 2).reshape(batch, length, -1)
        return (self.dense if self.neox else self.o_proj)(y), keep


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated = 2 * cos.shape[-1]
    first, second = x[..., :rotated].chunk(2, -1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rotated < x.shape[-1]:
        parts.append(x[..., rotated:])
    return torch.cat([p.to(x.dtype) for p in parts], -1)


class _GatedMLP(nn.Module):
    def __init__(self, a: Architecture, biased: frozenset[str]) -> None:
        super().__init__()
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(self, name, _linear(a, "mlp", name, biased))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class _NeoxMLP(nn.Module):
    def __init__(self, a: Architecture, biased: frozenset[str]) -> None:
        super().__init__()
        self.dense_h_to_4h = _linear(a, "mlp", "dense_h_to_4h", biased)
        self.dense_4h_to_h = _linear(a, "mlp", "dense_4h_to_h", biased)
        self.approximate = "tanh" if a.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense_4h_to_h(
            F.gelu(self.dense_h_to_4h(x), approximate=self.approximate)
        )
        return y


class _RMSNorm(nn.Module):
    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(a.hidden))
        self.eps = a.eps

    def forward(self, x: Tensor) -> Tensor:
        # Autocast leaves activations in bfloat16 and parameters in float32.
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(
            x.dtype
        )


def _norm(a: Architecture) -> nn.Module:
    return nn.LayerNorm(a.hidden, eps=a.eps) if a.neox else _RMSNorm(a)


class Block(nn.Module):
    """One layer: attention and MLP around the residual stream."""

    def __init__(self, a: Architecture, biased: frozenset[str]) -> None:
        super().__init__()
        self._attention = "attention" if a.neox else "self_attn"
        self.parallel = a.parallel
        setattr(self, self._attention, _Attention(a, biased))
        self.mlp = (_NeoxMLP if a.neox else _GatedMLP)(a, biased)
        self.input_layernorm = _norm(a)
        self.post_attention_layernorm = _norm(a)

    def step(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the residual stream after this layer, and its keys and values."""
        attention = getattr(self, self._attention)
        change, keep = attention(self.input_layernorm(x), cos, sin, past)
        if self.parallel:
            return x + change + self.mlp(self.post_attention_layernorm(x)), keep
        x = x + change
        return x + self.mlp(self.post_attention_layernorm(x)), keep

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        return self.step(x, cos, sin)[0]


class _Stack(nn.Module):
    def __init__(self, a: Architecture, biased: frozenset[str]) -> None:
        super().__init__()
        embedding = nn.Embedding(a.vocab_size, a.hidden)
        setattr(self, a.embedding.split(".")[1], embedding)
        self.layers = nn.ModuleList(Block(a, biased) for _ in range(a.layers))
        setattr(self, "final_layer_norm" if a.neox else "norm", _norm(a))


class Transformer(nn.Module):
    """A decoder-only model of a shape that the exporter knows.

    Args:
        architecture: Its shape.
        biased: Linear maps with a bias, as in ``self_attn.q_proj``.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, architecture: Architecture, *, biased: Iterable[str] = ()) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.biased = frozenset(biased)
        self._stack_name = a.embedding.split(".")[0]
        setattr(self, self._stack_name, _Stack(a, self.biased))
        if not a.tied:
            head = nn.Linear(a.hidden, a.vocab_size, bias=False)
            setattr(self, a.head.split(".")[0], head)
        self._rope: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def stack(self) -> nn.Module:
        """Embedding, layers and last norm."""
        found: nn.Module = getattr(self, self._stack_name)
        return found

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding."""
        found: nn.Embedding = getattr(self.stack, self.architecture.embedding.split(".")[1])
        return found

    @property
    def layers(self) -> list[Block]:
        """The layers, first to last."""
        return list(self.stack.layers)

    @property
    def final_norm(self) -> nn.Module:
        """The norm in front of the head."""
        name = "final_layer_norm" if self.architecture.neox else "norm"
        found: nn.Module = getattr(self.stack, name)
        return found

    @property
    def head_weight(self) -> Tensor:
        """``(vocab, hidden)`` weight of the output head, tied or not."""
        if self.architecture.tied:
            return self.embedding.weight
        found: Tensor = getattr(self, self.architecture.head.split(".")[0]).weight
        return found

    def rope(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Return ``(length, rotary_dim / 2)`` cosines and sines from ``start`` on."""
        device = self.embedding.weight.device
        found = self._rope.get(str(device))
        if found is None or found[0].shape[0] < start + length:
            rates = torch.from_numpy(self.architecture.rope_rates)
            size = min(self.architecture.context, max(1024, 2 * (start + length)))
            places = torch.arange(max(size, start + length), dtype=torch.float64)
            angles = torch.outer(places, rates)
            found = angles.cos().float().to(device), angles.sin().float().to(device)
            self._rope[str(device)] = found
        return found[0][start : start + length], found[1][start : start + length]

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
        cos, sin = self.rope(0, ids.shape[1])
        x = self.embedding(ids)
        kept = []
        for number, block in enumerate(self.layers, 1):
            x = block(x, cos, sin)
            if number in layers:
                kept.append(x)
        return self.final_norm(x), kept

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's logits ``(..., vocab)`` for final states ``(..., hidden)``."""
        return states @ self.head_weight.to(states.dtype).T

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``(batch, length, vocab)`` for ``ids`` ``(batch, length)``."""
        return self.logits(self.hidden(ids)[0])

    def extend(
        self, ids: Tensor, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Return the logits after the last of ``ids`` and the cache with all of them.

        Args:
            ids: ``(batch, length)`` tokens that follow those in the cache.
            past: The cache so far.

        Returns:
            ``(batch, vocab)`` logits, and the keys and values of each layer.
        """
        start = past[0][0].shape[2] if past else 0
        cos, sin = self.rope(start, ids.shape[1])
        x = self.embedding(ids)
        cache = []
        for number, block in enumerate(self.layers):
            x, keep = block.step(x, cos, sin, past[number] if past else None)
            cache.append(keep)
        return self.logits(self.final_norm(x[:, -1])), cache


def fresh_weights_(model: Transformer, *, seed: int) -> None:
    """Give ``model`` random first weights, in place.

    Args:
        model: Any.
        seed: Of the weights.

    Source:
        Radford et al. 2019, GPT-2: 0.02, and less on the way into the residual stream.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = ("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = 0.02
            if name.endswith(ends):
                scale /= (2 * model.architecture.layers) ** 0.5
            nn.init.normal_(weight, std=scale, generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(weight)


def biased_modules(names: Iterable[str], architecture: Architecture) -> frozenset[str]:
    """Return the linear maps of a layer that have a bias in a checkpoint."""
    prefix = architecture.layer(0)
    optional = architecture.parameters()[1]
    return frozenset(
        name[len(prefix) : -len(".bias")]
        for name in names
        if name in optional and name.startswith(prefix)
    )


def load_transformer(
    checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32
) -> Transformer:
    """Return a checkpoint as a model, one tensor at a time.

    Args:
        checkpoint: A checked Hugging Face directory.
        dtype: Of the parameters.

    Raises:
        ModelError: A parameter is not finite.
    """
    a = checkpoint.architecture
    with torch.device("meta"):
        model = Transformer(a, biased=biased_modules(checkpoint.parameters, a))
    weights = {
        name: torch.from_numpy(checkpoint.weight(name)).to(dtype)
        for name in checkpoint.parameters
    }
    model.load_state_dict(weights, strict=True, assign=True)
    model.eval()
    return model
