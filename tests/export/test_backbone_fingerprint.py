"""One backbone, one fingerprint: by any names, in any file that holds the same weights."""

import json
import struct
import subprocess
import sys

import gguf
import gguf_files
import numpy as np
import pytest
from places import ROOT

from draftwire.export.pieces import backbone_fingerprint
from draftwire.tensors import read_tensors

VECTORS = json.loads((ROOT / "tests" / "golden" / "fingerprints_v1.json").read_text())
HIDDEN, HEADS, KV, INNER, WORDS = 16, 4, 2, 24, 40
HEAD = HIDDEN // HEADS
SHAPES = {"q_proj": (HIDDEN, HIDDEN), "o_proj": (HIDDEN, HIDDEN)}
SHAPES.update(dict.fromkeys(("k_proj", "v_proj"), (KV * HEAD, HIDDEN)))
SHAPES.update(dict.fromkeys(("gate_proj", "up_proj"), (INNER, HIDDEN)))
SHAPES["down_proj"] = (HIDDEN, INNER)


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
        for theirs in gguf_files.NAMES:
            shape = SHAPES.get(theirs.split(".")[-1], (HIDDEN,))
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


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_every_file_of_the_same_weights_has_one_fingerprint(state, kind, tmp_path):
    expected = fingerprint(state)
    save(tmp_path / "model.safetensors", state, kind)
    assert script(2, tmp_path / "model.safetensors") == expected
    read = read_tensors(tmp_path / "model.safetensors")
    assert fingerprint(read) == expected
    packed = {}
    for name, values in state.items():
        type_ = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        packed[name] = gguf.quants.quantize(values, type_), type_
    for architecture in ("llama", "qwen2"):
        file = tmp_path / f"{architecture}.gguf"
        gguf_files.write_gguf(file, packed, heads=HEADS, kv=KV, architecture=architecture)
        assert script(2, file) == expected


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
