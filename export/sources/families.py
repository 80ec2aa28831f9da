"""Where each family keeps its weights, and what sets it apart beside its sizes.

Source:
    The ``modeling_*.py`` and ``configuration_*.py`` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Names:
    """Where a family keeps its weights; "" for what it does not have."""

    embedding: str = "model.embed_tokens"
    positions: str = ""
    layer: str = "model.layers.{}."  # prefix of a layer, with ``{}`` for its number
    final: str = "model.norm"
    head: str = "lm_head"
    before_attention: str = "input_layernorm"  # norm of what attention reads
    after_attention: str = ""  # norm of what attention gives
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str = ""
    # three projections, or one that holds all
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = ""
    k_norm: str = ""
    out: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    # of the MLP; gate and up in one where ``gate`` is the same name
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    # of a layer that convolves instead of attending: B, C and x in one
    conv_in: str = "conv.in_proj"
    conv: str = "conv.conv"  # its kernel, one for each channel
    conv_out: str = "conv.out_proj"  # its output


@dataclass(frozen=True)
class Family:
    """What a ``model_type`` stands for beside its sizes."""

    names: Names = Names()
    norm: str = "rms"  # "rms" or "layer" (with a bias)
    norm_shift: float = 0.0  # added to a norm's weight
    interleaved: bool = False  # the one projection holds q, k, v head by head
    conv: bool = False  # weights of linear layers are stored as ``(in, out)``
    activation: str = "silu"  # where the config names none
    partial: float = 1.0  # rotated share of a head, where the config names none
    tied: bool = False  # whether the head is the embedding, where the config says nothing
    every: int = 0  # layers until one that slides no window; 0 where all slide alike


_HEAD_NORMS = Names(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
_SANDWICH = Names(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_GEMMA = Family(norm_shift=1.0, activation="gelu_pytorch_tanh", tied=True)
_AFTER = replace(
    _HEAD_NORMS,
    before_attention="",
    after_attention="post_attention_layernorm",
    before_mlp="",
    after_mlp="post_feedforward_layernorm",
)
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(),
    "smollm3": Family(tied=True),
    "granite": Family(),
    "qwen3": Family(_HEAD_NORMS),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, names=_SANDWICH, every=2),
    "gemma3_text": replace(
        _GEMMA,
        names=replace(_SANDWICH, q_norm=_HEAD_NORMS.q_norm, k_norm=_HEAD_NORMS.k_norm),
        every=6,
    ),
    "phi3": Family(
        Names(qkv=("self_attn.qkv_proj",), gate="mlp.gate_up_proj", up="mlp.gate_up_proj")
    ),
    "olmo2": Family(_AFTER),
    "olmo3": Family(_AFTER, every=4),
    "exaone4": Family(_AFTER, every=4),
    "lfm2": Family(
        Names(
            final="model.embedding_norm",
            before_attention="operator_norm",
            before_mlp="ffn_norm",
            q_norm="self_attn.q_layernorm",
            k_norm="self_attn.k_layernorm",
            out="self_attn.out_proj",
            gate="feed_forward.w1",
            up="feed_forward.w3",
            down="feed_forward.w2",
        ),
        tied=True,
    ),
    "starcoder2": Family(
        Names(gate="", up="mlp.c_fc", down="mlp.c_proj"),
        norm="layer",
        activation="gelu_pytorch_tanh",
        tied=True,
    ),
    "gpt_neox": Family(
        Names(
            embedding="gpt_neox.embed_in",
            layer="gpt_neox.layers.{}.",
            final="gpt_neox.final_layer_norm",
            head="embed_out",
            qkv=("attention.query_key_value",),
            out="attention.dense",
            gate="",
            up="mlp.dense_h_to_4h",
            down="mlp.dense_4h_to_h",
        ),
        norm="layer",
        interleaved=True,
        activation="gelu",
        partial=0.25,
    ),
    "gpt2": Family(
        Names(
            embedding="transformer.wte",
            positions="transformer.wpe",
            layer="transformer.h.{}.",
            final="transformer.ln_f",
            before_attention="ln_1",
            before_mlp="ln_2",
            qkv=("attn.c_attn",),
            out="attn.c_proj",
            gate="",
            up="mlp.c_fc",
            down="mlp.c_proj",
        ),
        norm="layer",
        conv=True,
        activation="gelu_new",
        tied=True,
    ),
}
