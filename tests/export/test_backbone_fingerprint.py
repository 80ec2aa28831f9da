"""One backbone, one fingerprint: by any names, in any file that holds the same weights."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
from places import ROOT

from draftwire.export.pieces import backbone_fingerprint
from draftwire.tensors import read_tensors

VECTORS = json.loads((ROOT / "tests" / "golden" / "fingerprints_v1.json").read_text())
HIDDEN, HEADS, KV, INNER, WORDS = 16, 4, 2, 24, 40
HEAD = HIDDEN // HEADS
NAMES = {
    "attn_norm": ("input_layernorm", (HIDDEN,)),
    "ffn_norm": ("post_attention_layernorm", (HIDDEN,)),
    "attn_q": ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV * HEAD, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV * HEAD, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    "ffn_gate": ("mlp.gate_proj", (INNER, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (INNER, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, INNER)),
}


def short(values):
    """Return float32 that bfloat16 and float16 hold as well."""
    return (values.astype("<f4").view("<u4") & 0xFFFF0000).view("<f4")


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(3)
    found = {
        "model.embed_tokens.weight": rng.normal(0, 1, (WORDS, HIDDEN)),
        "model.norm.weight": rng.normal(1, 0.1, HIDDEN),
        "lm_head.weight": rng.normal(0, 1, (WORDS, HIDDEN)),
    }
    for i in range(3):
        for theirs, shape in NAMES.values():
            values = rng.uniform(0.1, 1, shape) * rng.choice([-1, 1], shape)
            found[f"model.layers.{i}.{theirs}.weight"] = values
        found[f"model.layers.{i}.self_attn.q_proj.bias"] = rng.uniform(0.1, 1, HIDDEN)
    found["model.layers.0.mlp.up_proj.weight"][0, 0] = -0.0
    return {name: short(values) for name, values in found.items()}


def fingerprint(state, layers=2):
    return backbone_fingerprint(state, state.__getitem__, layers=layers)


def script(layers, *files):
    words = ROOT / "examples" / "fingerprint.py", "backbone", layers, *files
    command = [sys.executable, *map(str, words)]
    return subprocess.check_output(command, text=True).strip()


def save(file, state, kind):
    """Write safetensors, by hand."""
    pack = {
        "F32": lambda x: x.astype("<f4").tobytes(),
        "F16": lambda x: x.astype("<f2").tobytes(),
        "BF16": lambda x: (x.view("<u4") >> 16).astype("<u2").tobytes(),
    }[kind]
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in state.items():
        raw = pack(values)
        entry = {"dtype": kind, "shape": values.shape}
        header[name] = {**entry, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def save_gguf(file, state, kind, architecture):
    """Write GGUF as llama.cpp's converter does."""
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    ours = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    ours["lm_head"] = "output"
    for i in range(3):
        for name, (theirs, _) in NAMES.items():
            ours[f"model.layers.{i}.{theirs}"] = f"blk.{i}.{name}"
    for name, values in state.items():
        theirs, _, form = name.rpartition(".")
        type_ = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        heads = {"q_proj": HEADS, "k_proj": KV}.get(theirs.rpartition(".")[2])
        if heads and architecture == "llama":  # the two of a rotated pair side by side
            rows = values.reshape(heads, 2, HEAD // 2, -1)
            values = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
        data = gguf.quants.quantize(values, type_)
        writer.add_tensor(f"{ours[theirs]}.{form}", data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_every_file_of_the_same_weights_has_one_fingerprint(state, kind, tmp_path):
    expected = fingerprint(state)
    save(tmp_path / "model.safetensors", state, kind)
    assert script(2, tmp_path / "model.safetensors") == expected
    read = read_tensors(tmp_path / "model.safetensors")
    assert fingerprint(read) == expected
    for architecture in ("llama", "qwen2"):
        save_gguf(tmp_path / f"{architecture}.gguf", state, kind, architecture)
        assert script(2, tmp_path / f"{architecture}.gguf") == expected


def test_shards_and_their_order_do_not_matter(state, tmp_path):
    names = sorted(state, reverse=True)
    for part in (0, 1):
        save(tmp_path / f"{part}.safetensors", {n: state[n] for n in names[part::2]}, "F32")
    expected = fingerprint(state)
    assert script(2, tmp_path / "1.safetensors", tmp_path / "0.safetensors") == expected


def test_it_covers_the_anchor_and_nothing_else(state):
    expected = fingerprint(state)
    for name, values in state.items():
        changed = dict(state)
        changed[name] = values.copy()
        changed[name].flat[-1] += 0.5
        inside = name.startswith(("model.embed", "model.layers.0", "model.layers.1"))
        assert (fingerprint(changed) != expected) == inside, name
    swapped = dict(state)
    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    swapped[first], swapped[second] = state[second], state[first]
    assert fingerprint(swapped) != expected
    assert fingerprint(state, 1) != expected != fingerprint(state, 3)


@pytest.mark.parametrize("case", VECTORS["backbones"])
def test_vectors(case):
    read = read_tensors(ROOT / case["file"])
    assert fingerprint(read, case["layers"]) == case["fingerprint"]
