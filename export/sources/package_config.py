"""The ``config.json`` of the model in a package."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from draftwire.errors import ModelError
from draftwire.packages import DraftPackage, TargetPackage

_SPOKEN = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gpt_neox": "GPTNeoX"}


def config_of(package: DraftPackage | TargetPackage) -> dict[str, Any]:
    """Return the config that a package's model was made with.

    The manifest carries it. Packages of older exporters do not: for the shapes that they
    wrote, it is read off the graph. A ModelError where it is an older package of another
    shape.
    """
    whole = getattr(package, "base", None) or package
    made = whole.raw.get("made")
    made = made if isinstance(made, dict) else {}
    if isinstance(made.get("config"), dict):
        return dict(made["config"])
    found = [f for f in whole.files.values() if f.graph in ("gqa", "target")]
    kind = made.get("model_type")
    if kind not in _SPOKEN or not found:
        raise _unknown(whole.path.name)
    graph = onnx.load(str(found[0].path), load_external_data=False).graph
    return _Graph(graph, whole, kind).config()


class _Graph:
    """The graph of an older package."""

    def __init__(self, graph: onnx.GraphProto, package: Any, kind: str) -> None:
        self.package, self.kind, self.neox = package, kind, kind == "gpt_neox"
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = {out: node for node in graph.node for out in node.output if out}
        self.operators = {node.op_type for node in graph.node}

    def config(self) -> dict[str, Any]:
        package, shape = self.package, self.package.shape
        attributes = self.attributes("l0.attended") or {}
        if attributes.get("local_window_size", -1) > 0 or any(
            name.startswith("past_mask.flat.") for name in self.nodes
        ):
            raise _unknown(package.path.name)
        # A target is supplied with the checkpoint's own weights; a draft holds its own.
        up = "gpt_neox.layers.0.mlp.dense_h_to_4h" if self.neox else ""
        up = up or "model.layers.0.mlp.up_proj"
        inner, _ = self.shape_of(up + ".weight") or self.shape_of("l0.up.weight")[::-1]
        heads = attributes.get("num_heads") or shape.hidden // shape.head_dim
        if not attributes and not self.neox:
            query = self.shape_of("model.layers.0.self_attn.q_proj.weight")
            heads = query[0] // shape.head_dim
        rates = self.rates()
        config = {
            "model_type": self.kind,
            "architectures": [_SPOKEN[self.kind] + "ForCausalLM"],
            "vocab_size": package.vocab_size,
            "hidden_size": shape.hidden,
            "intermediate_size": inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": heads,
            "max_position_embeddings": package.context,
            "rope_theta": self.theta(rates),
            "tie_word_embeddings": not any(
                self.shape_of(name)
                for name in ("head.weight", "lm_head.weight", "embed_out.weight")
            ),
            "bos_token_id": package.bos_id,
            "eos_token_id": list(package.eos_ids),
        }
        eps = next(e for n in self.nodes if (e := self.attributes(n).get("epsilon")))
        eps = float(str(np.float32(eps)))  # as a config would have it
        if self.neox:
            middle = self.nodes.get("gpt_neox.layers.0.post_attention_layernorm")
            middle = middle or self.nodes["l0.mlp_normed"]
            return {
                **config,
                "hidden_act": "gelu_new" if "FastGelu" in self.operators else "gelu",
                "layer_norm_eps": eps,
                "rotary_pct": 2 * len(rates) / shape.head_dim,
                "use_parallel_residual": middle.input[0] != "l0.mid",
            }
        p = "model.layers.0."
        return {
            **config,
            "hidden_act": "silu",
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "rms_norm_eps": eps,
            "attention_bias": p + "self_attn.q_proj.bias" in self.tensors,
            "mlp_bias": p + "mlp.up_proj.bias" in self.tensors,
            **({"sliding_window": None} if self.kind == "mistral" else {}),
        }

    def attributes(self, output: str) -> dict[str, Any]:
        node = self.nodes.get(output)
        pairs = node.attribute if node is not None else ()
        return {a.name: onnx.helper.get_attribute_value(a) for a in pairs}

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return a matrix's shape as it multiplies, rounded or not; () for none."""
        for end, turned in (("", 1), ("_quantized", 1), (".q8", -1), (".q4", -1)):
            if name + end in self.tensors:
                return tuple(self.tensors[name + end].dims[:2])[::turned]
        return ()

    def rates(self) -> NDArray[np.float64]:
        """Return radians per position of the pairs that are rotated."""
        if "rope_rates" in self.tensors:
            return np.asarray(numpy_helper.to_array(self.tensors["rope_rates"]), np.float64)
        tables = [numpy_helper.to_array(self.tensors[name]) for name in ("cos", "sin")]
        rates = np.arctan2(*(t[1].astype(np.float64) for t in tables[::-1]))
        return np.asarray(rates[rates != 0], np.float64)  # 0 fills a rotation up

    def theta(self, rates: NDArray[np.float64]) -> float:
        theta, count = 10000.0, len(rates)
        if count > 1:
            theta = float(rates[1]) ** -float(count)
            for whole in (round(theta), round(theta, -2)):  # as a config would have it
                if whole and abs(theta - whole) < 1e-3 * whole:
                    theta = float(whole)
        if not np.allclose(theta ** -(np.arange(count) / count), rates, rtol=1e-5):
            raise ModelError(
                f"{self.package.path.name} scales its rotary positions, and is too old to "
                "say how",
                hint="give the Hugging Face directory that it was exported from",
            )
        return theta


def _unknown(name: str) -> ModelError:
    return ModelError(
        f"{name} says nothing of its shape",
        hint="give the Hugging Face directory that it was exported from",
    )
