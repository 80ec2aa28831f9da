"""onnxruntime-genai stepping the very same weights, as a contestant.

genai feeds an attention mask where our graph takes lengths. The adapter writes a copy
of the graph, in a temporary folder, with two nodes in front that turn one into the
other: every other node and every weight is the package's own.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tools.drafting import STEPS, Contestant

from draftwire.packages import DraftPackage

_FIRST = 1


def open_genai(
    package: DraftPackage, precision: str | None, threads: int
) -> tuple[Contestant | None, str | None]:
    """Return the contestant, or None and the reason why there is none."""
    try:
        import onnx
        import onnxruntime_genai
    except ImportError as exc:
        wanted = "pip install 'draftwire[bench,export]'"
        return None, f"{exc.name} is not installed ({wanted})"
    file = package.model_file(precision)
    if file.graph != "gqa":
        return None, f"{file.path.name} has the form {file.graph!r}, genai needs gqa"
    folder = tempfile.TemporaryDirectory(prefix="draftwire-genai-")
    heads = _write_graph(onnx, file.path, Path(folder.name))
    config = _config(package, heads, threads)
    (Path(folder.name) / "genai_config.json").write_text(
        json.dumps(config), encoding="utf-8"
    )
    try:
        return _Genai(onnxruntime_genai, folder, package.context), None
    except RuntimeError as exc:
        first = (str(exc).strip().splitlines() or ["no message"])[0]
        return None, f"genai {onnxruntime_genai.__version__} refuses: {first}"


def _write_graph(onnx: Any, source: Path, folder: Path) -> int:
    """Write the adapted graph; return the number of attention heads."""
    model = onnx.load(str(source))
    graph = model.graph
    helper, kinds = onnx.helper, onnx.TensorProto
    ours = {"seqlens_k", "total_seq_len", "logits_from"}
    kept = [one for one in graph.input if one.name not in ours]
    has_from = any(one.name == "logits_from" for one in graph.input)
    size = ["B", "total_sequence_length"]
    mask = helper.make_tensor_value_info("attention_mask", kinds.INT64, size)
    del graph.input[:]
    graph.input.extend([*kept, mask])

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    one = constant("genai.one", np.array([1], np.int64))
    axis = constant("genai.axis", np.array(1, np.int64))
    make = helper.make_node
    front = [
        make("ReduceSum", ["attention_mask", one], ["genai.sum"], keepdims=0),
        make("Sub", ["genai.sum", one], ["genai.last"]),
        make("Cast", ["genai.last"], ["seqlens_k"], to=kinds.INT32),
        make("Shape", ["attention_mask"], ["genai.shape"]),
        make("Gather", ["genai.shape", axis], ["genai.total"]),
        make("Cast", ["genai.total"], ["total_seq_len"], to=kinds.INT32),
    ]
    if has_from:  # genai expects the logits of every position
        constant("logits_from", np.array([0], np.int64))
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(folder / "model.onnx"))
    attention = next(n for n in nodes if n.op_type == "GroupQueryAttention")
    return next(int(a.i) for a in attention.attribute if a.name == "num_heads")


def _caches(name: str, place: str) -> dict[str, str]:
    return {f"{name}_{kind}_names": f"{place}.%d.{kind}" for kind in ("key", "value")}


def _config(package: DraftPackage, heads: int, threads: int) -> dict[str, Any]:
    shape = package.shape
    plain = {name: name for name in ("input_ids", "attention_mask")}
    session: dict[str, Any] = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    session |= {"log_severity_level": 3, "provider_options": []}
    end = package.eos_ids[0] if package.eos_ids else 0
    return {
        "model": {
            "type": "llama",
            "bos_token_id": package.bos_id or 0,
            "eos_token_id": end,
            "pad_token_id": end,
            "context_length": package.context,
            "vocab_size": package.vocab_size,
            "decoder": {
                "session_options": session,
                "filename": "model.onnx",
                "head_size": shape.head_dim,
                "hidden_size": shape.hidden,
                "num_attention_heads": heads,
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
                "inputs": {**plain, **_caches("past", "past_key_values")},
                "outputs": {"logits": "logits", **_caches("present", "present")},
            },
        },
        "search": {
            "do_sample": False,
            "num_beams": 1,
            "top_k": 1,
            # No token may end a block: every contestant steps the same count.
            "min_length": package.context,
            "max_length": package.context,
            "past_present_share_buffer": True,
        },
    }


class _Genai:
    name = "onnxruntime-genai"

    def __init__(self, og: Any, folder: Any, context: int) -> None:
        self._folder = folder  # removed when this object goes
        model = og.Model(folder.name)
        params = og.GeneratorParams(model)
        params.set_search_options(min_length=context, max_length=context, do_sample=False)
        self._generator = og.Generator(model, params)
        self.last_token = -1

    def fill(self, context: int) -> None:
        """Make the KV cache hold ``context`` tokens."""
        self._generator.rewind_to(0)
        self._generator.append_tokens([_FIRST] * context)

    def block(self, context: int) -> float:
        """Rewind, feed the first token, and let genai's own loop take the rest."""
        generator = self._generator
        generator.rewind_to(context)
        start = time.perf_counter()
        generator.append_tokens([_FIRST])
        for _ in range(STEPS - 1):
            generator.generate_next_token()
            generator.get_next_tokens()
        generator.generate_next_token()
        seconds = time.perf_counter() - start
        self.last_token = int(generator.get_next_tokens()[0])
        return seconds
