"""The base of a family, from a Hugging Face directory or from a target package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.architecture import LLAMA_LIKE, NEOX_LIKE, Architecture
from draftwire.export.sources.checkpoint import load_checkpoint
from draftwire.export.sources.families import FAMILIES
from draftwire.export.sources.rope import Rope
from draftwire.export.training.model import Transformer, biased_modules, load_transformer
from draftwire.packages import TargetPackage, load_target
from draftwire.tensors import target_weights

__all__ = ["Base", "is_package", "read_base", "transformer_of"]


@dataclass(frozen=True)
class Base:
    """A base that can be trained on or distilled.

    Attributes:
        model: Its weights, float32 unless asked otherwise.
        tokenizer: Its ``tokenizer.json``.
        name: For manifests and reports.
        bos_id: What a prompt starts with, or None.
        eos_ids: What ends a text.
        package: The target package that it comes from, or None for a checkpoint.
    """

    model: Transformer
    tokenizer: Path
    name: str
    bos_id: int | None
    eos_ids: tuple[int, ...]
    package: TargetPackage | None = None


def is_package(path: Path) -> bool:
    """Tell whether ``path`` is a target package rather than a checkpoint."""
    return (path / "target.json").is_file()


def read_base(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Base:
    """Read a base model.

    Args:
        path: A Hugging Face directory with safetensors weights and a
            ``tokenizer.json``, or a target package (an evolved one is merged).
        dtype: Of the parameters.

    Raises:
        ConfigError: There is nothing of the kind at ``path``.
        ModelError: It is damaged, or of a shape not known here.
    """
    path = Path(path)
    if is_package(path):
        package = load_target(path)
        whole = package.base or package
        model = transformer_of(package).to(dtype)
        return Base(
            model.eval(),
            whole.path / "tokenizer.json",
            package.name,
            package.bos_id,
            tuple(package.eos_ids),
            package,
        )
    if path.suffix in (".target", ".draft") and not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} is no target package",
            hint="give a Hugging Face directory or a NAME.target",
        )
    checkpoint = load_checkpoint(path)
    if not checkpoint.architecture.plain:
        raise _untrainable(checkpoint.name)
    model = load_transformer(checkpoint, dtype=dtype)
    return Base(
        model, checkpoint.tokenizer, checkpoint.name, checkpoint.bos_id, checkpoint.eos_ids
    )


def transformer_of(package: TargetPackage) -> Transformer:
    """Return a target package as a model in float32, its adapter merged.

    Raises:
        ModelError: Its graph is not one that this exporter writes.
    """
    weights = target_weights(package)
    whole = package.base or package
    graph = onnx.load(str(whole.path / "model.onnx"), load_external_data=False).graph
    architecture = _architecture(package, weights, graph)
    with torch.device("meta"):
        model = Transformer(architecture, biased=biased_modules(weights, architecture))
    tensors = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as exc:
        raise ModelError(f"{package.path.name}: its weights do not fit its graph") from exc
    model.eval()
    return model


def _architecture(
    package: TargetPackage,
    weights: Mapping[str, NDArray[np.float32]],
    graph: onnx.GraphProto,
) -> Architecture:
    """Read the shape off the graph: a package carries no ``config.json``."""
    whole = package.base or package
    made = whole.raw.get("made")
    kind = made.get("model_type") if isinstance(made, dict) else None
    if kind not in LLAMA_LIKE + NEOX_LIKE:
        raise ModelError(
            f"{whole.path.name} says nothing of its shape",
            hint="give the Hugging Face directory that it was exported from",
        )
    neox = kind in NEOX_LIKE
    rates = [numpy_helper.to_array(t) for t in graph.initializer if t.name == "rope_rates"]
    eps = [
        attribute.f
        for node in graph.node
        for attribute in node.attribute
        if attribute.name == "epsilon"
    ]
    inputs = {output: list(n.input) for n in graph.node for output in n.output}
    operators = {n.op_type for n in graph.node}
    shape = whole.shape
    prefix = "gpt_neox.layers.0." if neox else "model.layers.0."
    up = prefix + ("mlp.dense_h_to_4h" if neox else "mlp.up_proj") + ".weight"
    query = prefix + "self_attn.q_proj.weight"
    embedding = "gpt_neox.embed_in.weight" if neox else "model.embed_tokens.weight"
    if not rates or not eps or embedding not in weights or up not in weights:
        raise ModelError(f"the graph of {whole.path.name} is not one of ours")
    heads = shape.hidden // shape.head_dim
    if not neox:
        heads = weights[query].shape[0] // shape.head_dim
    # Packages of older exporters name a norm's output after its weight.
    second = inputs.get(prefix + "post_attention_layernorm") or inputs.get(
        "l0.mlp_normed", [""]
    )
    if any(name.startswith("past_mask.flat.") for name in inputs):
        raise _untrainable(whole.path.name)
    activation = "silu"
    if neox:
        activation = "gelu_tanh" if "FastGelu" in operators else "gelu"
    return Architecture(
        model_type=str(kind),
        family=FAMILIES[str(kind)],
        layers=shape.layers,
        hidden=shape.hidden,
        heads=heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        feed_forward=weights[up].shape[0],
        vocab_size=weights[embedding].shape[0],
        context=package.context,
        eps=float(np.float64(str(np.float32(eps[0])))),
        activation=activation,
        ropes=(Rope(rates[0].astype(np.float64)),),
        rope_of=(0,) * shape.layers,
        windows=(0,) * shape.layers,
        tied=("embed_out.weight" if neox else "lm_head.weight") not in weights,
        parallel=neox and second[0] != "l0.mid",
        score_scale=float(shape.head_dim**-0.5),
    )


def _untrainable(name: str) -> ModelError:
    return ModelError(
        f"{name} is of a shape that drafts cannot be trained for here: Llama, Mistral, "
        "Qwen2 and GPT-NeoX without sliding windows are",
        hint="use an independent draft of its family: draftwire export onnx",
    )
