"""The shapes this exporter writes by itself, as one description."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError

__all__ = ["Architecture", "UnknownArchitecture", "read_architecture"]

LLAMA_LIKE = ("llama", "mistral", "qwen2")
NEOX_LIKE = ("gpt_neox",)
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class UnknownArchitecture(ModelError):
    """The model is of a shape that this exporter does not write by itself."""


@dataclass(frozen=True)
class Architecture:
    """What a graph of the model needs to know.

    Attributes:
        model_type: As in ``config.json``.
        neox: GPT-NeoX shape; else Llama shape.
        context: Positions to serve.
        eps: Of the norms.
        activation: "silu", "gelu" or "gelu_tanh".
        rope_rates: ``(rotary_dim / 2,)`` radians per position.
        tied: The head is the embedding.
        parallel: Attention and MLP read the same residual (GPT-NeoX).
    """

    model_type: str
    neox: bool
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab_size: int
    context: int
    eps: float
    activation: str
    rope_rates: NDArray[np.float64]
    tied: bool
    parallel: bool

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated."""
        return 2 * len(self.rope_rates)

    @property
    def embedding(self) -> str:
        """Name of the embedding."""
        return "gpt_neox.embed_in.weight" if self.neox else "model.embed_tokens.weight"

    @property
    def head(self) -> str:
        """Name of the weight of the output head."""
        if self.tied:
            return self.embedding
        return "embed_out.weight" if self.neox else "lm_head.weight"

    @property
    def tied_head(self) -> str:
        """Name under which a tied head may be stored a second time, or ""."""
        if not self.tied:
            return ""
        return "embed_out.weight" if self.neox else "lm_head.weight"

    def layer(self, i: int) -> str:
        """Return the prefix of layer ``i``'s parameters."""
        return f"gpt_neox.layers.{i}." if self.neox else f"model.layers.{i}."

    def parameters(
        self,
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Return the shapes of the needed and of the optional parameters."""
        h, f, q = self.hidden, self.feed_forward, self.heads * self.head_dim
        kv = self.kv_heads * self.head_dim
        needed: dict[str, tuple[int, ...]] = {self.embedding: (self.vocab_size, h)}
        optional: dict[str, tuple[int, ...]] = {}
        if not self.tied:
            needed[self.head] = (self.vocab_size, h)
        final = "gpt_neox.final_layer_norm" if self.neox else "model.norm"
        norms = [final]
        for i in range(self.layers):
            p = self.layer(i)
            norms += [p + "input_layernorm", p + "post_attention_layernorm"]
            if self.neox:
                linear = {
                    "attention.query_key_value": (3 * q, h),
                    "attention.dense": (h, q),
                    "mlp.dense_h_to_4h": (f, h),
                    "mlp.dense_4h_to_h": (h, f),
                }
            else:
                linear = {
                    "self_attn.q_proj": (q, h),
                    "self_attn.k_proj": (kv, h),
                    "self_attn.v_proj": (kv, h),
                    "self_attn.o_proj": (h, q),
                    "mlp.gate_proj": (f, h),
                    "mlp.up_proj": (f, h),
                    "mlp.down_proj": (h, f),
                }
            for name, shape in linear.items():
                needed[p + name + ".weight"] = shape
                optional[p + name + ".bias"] = shape[:1]
        for name in norms:
            needed[name + ".weight"] = (h,)
            if self.neox:
                needed[name + ".bias"] = (h,)
        return needed, optional


def read_architecture(
    where: str, config: Mapping[str, Any], *, context: int | None = None
) -> Architecture:
    """Return the shape that a ``config.json`` describes.

    Args:
        where: The model's name, for messages.
        config: Its content, in the spelling of transformers 4 or 5.
        context: Positions to serve, at most what the model was trained for.

    Raises:
        UnknownArchitecture: The shape is none of those written here.
        ModelError: A field is missing or does not fit the others.
        ConfigError: ``context`` is more than the model has.
    """
    kind = config.get("model_type")
    if kind not in LLAMA_LIKE + NEOX_LIKE:
        raise UnknownArchitecture(
            f"{where} is a {kind!r} model; this exporter writes "
            f"{', '.join(LLAMA_LIKE + NEOX_LIKE)} by itself",
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{where} is quantised already",
            hint="export the checkpoint it was quantised from",
        )
    fields = _Fields(where, config)
    neox = kind in NEOX_LIKE
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    kv_heads = heads if neox else fields.count("num_key_value_heads", heads)
    head_dim = fields.count("head_dim", hidden // heads)
    if heads % kv_heads or (neox and heads * head_dim != hidden):
        raise ModelError(
            f"{where}: {heads} heads, {kv_heads} key/value heads and "
            f"{head_dim} dimensions do not fit a hidden size of {hidden}"
        )
    activation = str(config.get("hidden_act", "gelu" if neox else "silu"))
    if activation not in _ACTIVATIONS or (activation in ("silu", "swish")) == neox:
        raise UnknownArchitecture(f"{where} has the activation {activation!r}")
    return Architecture(
        model_type=str(kind),
        neox=neox,
        layers=fields.count("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=fields.count("intermediate_size"),
        vocab_size=fields.count("vocab_size"),
        context=_context(fields, context),
        eps=fields.number("layer_norm_eps" if neox else "rms_norm_eps"),
        activation=_ACTIVATIONS[activation],
        rope_rates=_rope_rates(fields, head_dim, partial=0.25 if neox else 1.0),
        tied=config.get("tie_word_embeddings", False) is True,
        parallel=neox and config.get("use_parallel_residual", True) is not False,
    )


class _Fields:
    """Typed access to a config with messages that name the model."""

    def __init__(self, where: str, raw: Mapping[str, Any]) -> None:
        self.where, self.raw = where, raw

    def count(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelError(f"{self.where}: config.json has {name} = {value!r}")
        if not 0 < value <= 1 << 31:
            raise ModelError(f"{self.where}: config.json has {name} = {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelError(f"{self.where}: config.json has {name} = {value!r}")
        if not 0 < value < math.inf:
            raise ModelError(f"{self.where}: config.json has {name} = {value!r}")
        return float(value)


def _context(fields: _Fields, wanted: int | None) -> int:
    trained = fields.count("max_position_embeddings")
    window = fields.raw.get("sliding_window")
    if fields.raw.get("use_sliding_window", True) and window is not None:
        # Within its window such a model attends to everything, as the graphs do.
        trained = min(trained, fields.count("sliding_window"))
    if wanted is None:
        return trained
    if not 0 < wanted <= trained:
        raise ConfigError(
            f"a context of {wanted} was asked for, {fields.where} has {trained}",
            hint=f"choose 1 to {trained}",
        )
    return wanted


def _rope_rates(fields: _Fields, head_dim: int, *, partial: float) -> NDArray[np.float64]:
    """Return radians per position for each rotated pair.

    Source:
        Su et al. 2021, RoFormer, s. 3.4.2; the "linear" and "llama3" changes as in
        transformers, modeling_rope_utils.py.
    """
    raw = fields.raw
    # transformers 5 keeps everything in rope_parameters, 4 in three fields.
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        if raw.get(name) is not None:
            if not isinstance(raw[name], dict):
                raise ModelError(f"{fields.where}: config.json has an odd {name}")
            rope.update(raw[name])
    flat = {
        "rope_theta": raw.get("rope_theta", raw.get("rotary_emb_base", 10000.0)),
        "partial_rotary_factor": raw.get(
            "partial_rotary_factor", raw.get("rotary_pct", partial)
        ),
        **rope,
    }
    values = _Fields(fields.where, flat)
    rotary = int(head_dim * values.number("partial_rotary_factor"))
    if rotary % 2 or not 0 < rotary <= head_dim:
        raise ModelError(f"{fields.where} rotates {rotary} of {head_dim} dimensions")
    powers = np.arange(0, rotary, 2, dtype=np.float64) / rotary
    rates = values.number("rope_theta") ** -powers
    kind = flat.get("rope_type", flat.get("type", "default"))
    if kind == "default":
        return rates
    if kind == "linear":
        return rates / values.number("factor")
    if kind == "llama3":
        return _llama3(rates, values)
    raise UnknownArchitecture(
        f"{fields.where} scales its rotary positions by {kind!r}; "
        "default, linear and llama3 are known here"
    )


def _llama3(rates: NDArray[np.float64], values: _Fields) -> NDArray[np.float64]:
    factor = values.number("factor")
    low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
    if high <= low:
        raise ModelError(f"{values.where}: high_freq_factor is not above the low one")
    turns = values.number("original_max_position_embeddings") * rates / (2 * np.pi)
    # 0 keeps long wavelengths slowed by the factor, 1 leaves short ones alone.
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return rates * (share + (1.0 - share) / factor)
