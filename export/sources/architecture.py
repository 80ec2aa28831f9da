"""The families that this exporter writes by itself, as one description.

Everything that reads a checkpoint (both graphs, the numpy forward, LiteRT, the training
of drafts) reads an :class:`Architecture`; a family is one entry of ``families.py``.

Source:
    The ``modeling_*.py`` and ``configuration_*.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from draftwire.errors import ConfigError, ModelError, PackageError
from draftwire.export.sources.families import FAMILIES, Family, Names
from draftwire.export.sources.head import read_head
from draftwire.export.sources.rope import Fields, Rope, UnknownArchitecture, read_rope
from draftwire.packages.manifest import read_parallel

__all__ = ["Architecture", "UnknownArchitecture", "parallel_of", "read_architecture"]

Shapes = dict[str, tuple[int, ...]]
_PARD_BLOCK = 8  # tokens that PARD's checkpoints are trained to say at once
_EPS = tuple("rms_norm_eps layer_norm_eps norm_epsilon layer_norm_epsilon norm_eps".split())
_NOT_WRITTEN = (
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "add_cross_attention",
    "use_bidirectional_attention",
    "clip_qkv",
)
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Architecture:
    """What a graph of the model needs to know."""

    model_type: str  # as in ``config.json``
    family: Family  # what that stands for
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab_size: int
    context: int  # positions to serve
    eps: float  # of the norms
    activation: str  # "silu", "gelu" or "gelu_tanh"
    ropes: tuple[Rope, ...]  # the rotations that its layers use
    rope_of: tuple[int, ...]  # for each layer an index into ``ropes``, -1 for none
    # for each layer how many tokens it looks back on, its own included; 0 for all
    windows: tuple[int, ...]
    # for each layer the length of its kernel, where it convolves its last inputs instead of
    # attending; 0 where it attends
    convs: tuple[int, ...]
    tied: bool  # the head is the embedding
    parallel: bool  # attention and MLP read the same residual
    score_scale: float  # of the products of queries and keys
    embedding_scale: float = 1.0  # of the embedding's rows
    residual_scale: float = 1.0  # of what attention and MLP add
    logit_scale: float = 1.0  # of the logits
    score_cap: float = 0.0  # bound of the scores, by ``tanh``; 0 for none
    logit_cap: float = 0.0  # bound of the logits, the same
    positions: int = 0  # rows of a table of positions
    said: tuple[int, ...] = ()  # ids that a draft's head says, sorted; () for all

    @property
    def names(self) -> Names:
        """Where its weights are."""
        return self.family.names

    @property
    def embedding(self) -> str:
        """Name of the embedding."""
        return self.names.embedding + ".weight"

    @property
    def head(self) -> str:
        """Name of the weight of the output head."""
        return self.embedding if self.tied else self.names.head + ".weight"

    def require_attention(self, what: str) -> None:
        """Refuse layers that convolve, for ``what`` cannot have them; an
        UnknownArchitecture where some layer does.
        """
        if any(self.convs):
            raise UnknownArchitecture(
                f"{what} has no short convolutions, and layers of a {self.model_type!r} "
                "model are such",
                hint="as a draft it runs on onnxruntime",
            )

    def layer(self, i: int) -> str:
        """Return the prefix of layer ``i``'s parameters."""
        return self.names.layer.format(i)

    def parameters(self) -> tuple[Shapes, Shapes]:
        """Return the shapes of the needed and of the optional parameters."""
        n, h, f = self.names, self.hidden, self.feed_forward
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        needed: Shapes = dict.fromkeys((self.embedding, self.head), (self.vocab_size, h))
        optional: Shapes = {}
        if n.positions:
            needed[n.positions + ".weight"] = (self.positions, h)
        whole = self.model_type in ("olmo2", "olmo3")  # norms of all heads at once
        around = (n.before_attention, n.after_attention, n.before_mlp, n.after_mlp)
        of_layer = dict.fromkeys(filter(None, around), h)
        of_heads = {}
        if n.q_norm:
            of_heads[n.q_norm] = q if whole else self.head_dim
            of_heads[n.k_norm] = kv if whole else self.head_dim
        widths = (q, kv, kv) if len(n.qkv) == 3 else (q + 2 * kv,)
        attends = {name: (w, h) for name, w in zip(n.qkv, widths, strict=True)}
        attends[n.out] = (h, q)
        mlp = {n.up: (f, h), n.down: (h, f)}
        if n.gate:
            mlp[n.gate] = (2 * f if n.gate == n.up else f, h)
        norms = {n.final: h}
        for i, p in enumerate(map(self.layer, range(self.layers))):
            kernel = self.convs[i]
            heads = {} if kernel else of_heads
            norms |= {p + name: width for name, width in {**of_layer, **heads}.items()}
            convolves = {n.conv_in: (3 * h, h), n.conv_out: (h, h)}
            if kernel:
                needed[f"{p}{n.conv}.weight"] = (h, 1, kernel)
                optional[f"{p}{n.conv}.bias"] = (h,)
            for name, shape in ((convolves if kernel else attends) | mlp).items():
                stored = shape[::-1] if self.family.conv else shape
                needed[p + name + ".weight"] = stored
                optional[p + name + ".bias"] = shape[:1]
        for name, width in norms.items():
            needed[name + ".weight"] = (width,)
            if self.family.norm == "layer":
                needed[name + ".bias"] = (width,)
        return needed, optional


def read_architecture(
    where: str, config: Mapping[str, Any], *, context: int | None = None
) -> Architecture:
    """Return the shape that a ``config.json`` in the spelling of transformers 4 or 5
    describes.

    UnknownArchitecture where it is none of those written here, a ModelError where a field
    is missing or does not fit, a ConfigError where ``context`` is more than the model has.
    """
    try:
        return _architecture(where, config, context)
    except (TypeError, LookupError) as exc:
        why = f"{where}: config.json holds a value of another kind: {exc}"
        raise ModelError(why, hint="copy or download the file again") from exc


def _architecture(
    where: str, config: Mapping[str, Any], context: int | None
) -> Architecture:
    _refuse_hidden_readers(where, config)
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        raise UnknownArchitecture(
            f"{where} is a {kind!r} model; this exporter writes "
            f"{', '.join(FAMILIES)} by itself"
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{where} is quantised already",
            hint="export the checkpoint it was quantised from",
        )
    fields = Fields(where, {**config, **_gpt2_fields(config)} if kind == "gpt2" else config)
    raw = fields.raw
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    one = len(family.names.qkv) == 1 and kind != "phi3"
    kv_heads = heads if one else fields.count("num_key_value_heads", heads)
    head_dim = fields.count("head_dim", hidden // heads)
    if heads % kv_heads or (one and heads * head_dim != hidden):
        raise ModelError(
            f"{where}: {heads} heads, {kv_heads} key/value heads and "
            f"{head_dim} dimensions do not fit a hidden size of {hidden}"
        )
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or family.activation
    gated = bool(family.names.gate)
    if activation not in _ACTIVATIONS or (activation in ("silu", "swish")) > gated:
        raise UnknownArchitecture(f"{where} has the activation {activation!r}")
    layers = fields.count("num_hidden_layers")
    slides = _sliding(fields, family, kind, layers)
    window = fields.count("sliding_window") if any(slides) else 0
    ropes, rope_of, trained = _rotations(fields, family, kind, head_dim, slides)
    for name in _NOT_WRITTEN:  # what would be left out in silence
        if raw.get(name) not in (False, None):
            raise UnknownArchitecture(f"{where} has {name} = {raw[name]!r}")
    scale = head_dim**-0.5
    if raw.get("query_pre_attn_scalar"):
        scale = fields.number("query_pre_attn_scalar") ** -0.5
    if kind == "granite":
        scale = fields.number("attention_multiplier", 1.0)
    embedding_scale = 1.0
    if kind.startswith("gemma"):
        embedding_scale = float(np.float32(hidden**0.5))
    elif kind == "granite":
        embedding_scale = fields.number("embedding_multiplier", 1.0)
    tied = raw.get("tie_embedding", raw.get("tie_word_embeddings"))  # the first of LFM2
    return Architecture(
        model_type=kind,
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=_feed_forward(fields, kind),
        vocab_size=fields.count("vocab_size"),
        context=_context(fields, context, trained),
        eps=fields.number(next((n for n in _EPS if raw.get(n) is not None), _EPS[0])),
        activation=_ACTIVATIONS[activation],
        ropes=ropes,
        rope_of=rope_of,
        windows=tuple(window if slide else 0 for slide in slides),
        tied=(family.tied if tied is None else tied) is True,
        parallel=kind == "gpt_neox" and raw.get("use_parallel_residual", True) is not False,
        score_scale=float(scale),
        embedding_scale=embedding_scale,
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
        score_cap=fields.number("attn_logit_softcapping", 0.0),
        logit_cap=fields.number("final_logit_softcapping", 0.0),
        positions=fields.count("max_position_embeddings"),
        convs=_convolutions(fields, kind, layers),
        said=read_head(where, raw, fields.count("vocab_size")),
    )


def _gpt2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden, inner = config.get("n_embd"), config.get("n_inner")
    return {
        "hidden_size": hidden,
        "num_hidden_layers": config.get("n_layer"),
        "num_attention_heads": config.get("n_head"),
        "max_position_embeddings": config.get("n_positions"),
        "intermediate_size": 4 * (hidden or 0) if inner is None else inner,
        "hidden_act": config.get("activation_function"),
    }


def _feed_forward(fields: Fields, kind: str) -> int:
    if kind != "lfm2":
        return fields.count("intermediate_size")
    raw = fields.raw
    size = fields.count("block_ff_dim" if "block_ff_dim" in raw else "intermediate_size")
    if raw.get("block_auto_adjust_ff_dim", True):
        size = int(2 * size / 3)
        if raw.get("block_ffn_dim_multiplier", 1.0) is not None:
            size = int(fields.number("block_ffn_dim_multiplier", 1.0) * size)
            multiple = fields.count("block_multiple_of", 256)
            size = -(-size // multiple) * multiple
    return size


def _convolutions(fields: Fields, kind: str, layers: int) -> tuple[int, ...]:
    """Return the length of each layer's kernel, 0 for one that attends."""
    if kind != "lfm2":
        return (0,) * layers
    types, attends = fields.raw.get("layer_types"), fields.raw.get("full_attn_idxs")
    if types is None:
        chosen = range(layers) if attends is None else attends
        types = ["full_attention" if i in chosen else "conv" for i in range(layers)]
    if len(types) != layers or not set(types) <= {"conv", "full_attention"}:
        raise UnknownArchitecture(f"{fields.where} has layers of types {types!r}"[:200])
    length = fields.count("conv_L_cache", 3)
    return tuple(length if t == "conv" else 0 for t in types)


def _refuse_hidden_readers(where: str, raw: Mapping[str, Any]) -> None:
    """Refuse drafters that read the target's hidden states, with what that would cost."""
    kinds = raw.get("spd_type"), raw.get("speculators_model_type")
    said = " ".join(map(str, (*(raw.get("architectures") or ()), *kinds))).lower()
    name = next((n for n in ("EAGLE", "DFlash", "Medusa", "MTP") if n.lower() in said), "")
    more = raw.get("eagle_config"), raw.get("dflash_config")
    if not name and more == (None, None):
        return
    hidden, states = raw.get("hidden_size") or 0, 3 if "eagle3" in said else 1
    for settings in filter(None, more):
        for key in ("target_layer_ids", "eagle_aux_hidden_state_layer_ids"):
            states = len(settings.get(key) or ()) or states
    raise ModelError(
        f"{where} is a {name or 'hidden-state'} drafter: it reads the target's hidden "
        f"states, which lie in the cloud: {states * 2 * hidden:,} bytes down for each token"
        " instead of two or three",
        hint="use a model that drafts from tokens alone",
    )


def parallel_of(
    where: str, config: Mapping[str, Any], vocab_size: int
) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a draft manifest's ``parallel``, where ``config.json`` says what masks are,
    and the masks of a whole block.

    It says so in a ``parallel`` of its own, which is that table, or as a PARD checkpoint:
    ``pard_token`` or ``ptd_token_id``, one row for all masks. Those say no block; they are
    trained with eight. A ModelError where its masks are none of its rows.

    Source:
        PARD, https://arxiv.org/abs/2504.18583, and the config of its checkpoints.
    """
    table = config.get("parallel")
    if table is None:
        one = config.get("pard_token", config.get("ptd_token_id"))
        if one is None and str(config.get("spd_type")).lower() != "pard":
            return None, []
        table = {"mask_ids": [one], "block": _PARD_BLOCK}
    try:
        said = read_parallel(where, table, vocab_size)
    except PackageError as exc:
        raise ModelError(str(exc), hint="config.json belongs to another model") from exc
    assert said is not None
    return dict(table), [*said.masks(said.block - 1)]


def _context(fields: Fields, wanted: int | None, bound: int | None) -> int:
    trained = fields.count("max_position_embeddings")
    trained = trained if bound is None else min(trained, bound)
    if wanted is None:
        return trained
    if not 0 < wanted <= trained:
        raise ConfigError(
            f"a context of {wanted} was asked for, {fields.where} has {trained}",
            hint=f"choose 1 to {trained}",
        )
    return wanted


def _sliding(fields: Fields, family: Family, kind: str, layers: int) -> list[bool]:
    """Return which layers look back on a window only."""
    raw = fields.raw
    if raw.get("sliding_window") is None:
        return [False] * layers
    if kind in ("qwen2", "qwen3", "smollm3") and not raw.get("use_sliding_window", False):
        return [False] * layers
    types = raw.get("layer_types")
    if isinstance(types, list):
        if len(types) < layers or not set(types) <= {"sliding_attention", "full_attention"}:
            raise UnknownArchitecture(f"{fields.where} has layers of types {types!r}"[:200])
        return [t == "sliding_attention" for t in types[:layers]]
    if family.every:
        pattern = raw.get("sliding_window_pattern", family.every)
        if isinstance(pattern, str):  # "LLLG"
            return [pattern[i % len(pattern)] == "L" for i in range(layers)]
        every = fields.count("sliding_window_pattern", family.every)
        return [bool((i + 1) % every) for i in range(layers)]
    if kind in ("qwen2", "qwen3"):
        start = raw.get("max_window_layers")
        return [i >= (start or 0) for i in range(layers)]
    return [raw.get("use_sliding_window", True) is not False] * layers


def _rotations(
    fields: Fields, family: Family, kind: str, head_dim: int, slides: list[bool]
) -> tuple[tuple[Rope, ...], tuple[int, ...], int | None]:
    """Return the rotations, each layer's, and how many positions they hold for."""
    layers = len(slides)
    if family.names.positions:
        return (), (-1,) * layers, None
    raw = fields.raw
    nested = raw.get("rope_parameters")
    by_type = isinstance(nested, dict) and "full_attention" in nested
    local: dict[str, Any] | None = None
    values = dict(raw)
    if by_type and isinstance(nested, dict):
        values["rope_parameters"] = nested["full_attention"]
        local = {**raw, "rope_parameters": nested.get("sliding_attention")}
    elif kind == "gemma3_text":
        base = raw.get("rope_local_base_freq", 10000.0)
        local = {**raw, "rope_theta": base, "rope_scaling": None}
    elif kind == "olmo3":  # only layers that see everything are scaled
        local = {**raw, "rope_scaling": None, "rope_parameters": None}
        if isinstance(nested, dict):
            local["rope_theta"] = nested.get("rope_theta", raw.get("rope_theta"))
    first = read_rope(fields.where, values, head_dim, family.partial)
    ropes = [first]
    rope_of = [0] * layers
    if local is not None and any(slides):
        ropes.append(read_rope(fields.where, local, head_dim, family.partial))
        rope_of = [int(slide) for slide in slides]
    if kind == "smollm3":
        given = raw.get("no_rope_layers")
        every = raw.get("no_rope_layer_interval") or 4
        kept = given or [int((i + 1) % every != 0) for i in range(layers)]
        rope_of = [0 if kept[i] else -1 for i in range(layers)]
    if kind == "exaone4" and any(slides):  # those that see everything have none
        rope_of = [0 if slide else -1 for slide in slides]
    bounds = [rope.context for rope in ropes if rope.context is not None]
    return tuple(ropes), tuple(rope_of), min(bounds, default=None)
