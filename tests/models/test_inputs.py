"""GGUF files and names on the hub, as what is exported."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from places import ROOT

from draftwire.errors import ConfigError, ModelError
from draftwire.export.graphs.reference import reference_logits
from draftwire.export.onnx import export_onnx
from draftwire.export.pieces import backbone_fingerprint
from draftwire.export.sources.checkpoint import load_checkpoint
from draftwire.export.sources.inputs import checkpoint_folder
from draftwire.packages import load_draft

SCRIPT = str(ROOT / "examples" / "fingerprint.py")
HEADS, KV, LAYERS = 4, 2, 2
KINDS = {
    name: gguf.GGMLQuantizationType[name]
    for name in ("F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
}


def packed(weight, kind, rng):
    """Return a matrix's bytes; of K kinds, which gguf cannot round to, random ones."""
    if not kind.endswith("_K"):
        return gguf.quants.quantize(weight, KINDS[kind])
    count = weight.size // 256
    raw = rng.integers(0, 256, (count, {"Q4_K": 144, "Q6_K": 210}[kind]), np.uint8)
    scale = np.array([0.001, 0.007] if kind == "Q4_K" else [0.0001], "<f2").view(np.uint8)
    raw[:, slice(0, 4) if kind == "Q4_K" else slice(208, 210)] = scale
    return raw.reshape(len(weight), -1)


def unpacked(data, kind):
    """Return what bytes stand for, by the layouts of ggml-common.h and ggml-quants.c."""
    if kind == "F16":
        return np.asarray(data).view("<f2").astype(np.float32)
    sizes = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q4_K": 144, "Q6_K": 210}
    blocks = np.asarray(data).view(np.uint8).reshape(-1, sizes[kind])
    half = [blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2)]
    if kind == "Q8_0":
        values = half[0] * blocks[:, 2:].view(np.int8)
    elif kind == "Q4_0":
        values = half[0] * (halves(blocks[:, 2:]) - 8.0)
    elif kind == "Q4_1":
        values = half[0] * halves(blocks[:, 4:]) + half[1]
    elif kind == "Q4_K":
        s = blocks[:, 4:16]
        parts = []
        for j in range(8):  # scale and minimum of 32 values: 6 bits each
            if j < 4:
                scale, least = s[:, j] & 63, s[:, j + 4] & 63
            else:
                scale = s[:, j + 4] & 15 | s[:, j - 4] >> 6 << 4
                least = s[:, j + 4] >> 4 | s[:, j] >> 6 << 4
            nibbles = blocks[:, 16 + j // 2 * 32 :][:, :32] >> 4 * (j % 2) & 15
            parts.append(half[0] * scale[:, None] * nibbles - half[1] * least[:, None])
        values = np.concatenate(parts, 1)
    else:
        d, parts = blocks[:, 208:].copy().view("<f2").astype(np.float32), []
        scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
        for j in range(8):  # 32 values: 4 low bits and 2 high ones
            low = blocks[:, j // 4 * 64 + j % 2 * 32 :][:, :32] >> j // 2 % 2 * 4 & 15
            high = blocks[:, 128 + j // 4 * 32 :][:, :32] >> j % 4 * 2 & 3
            each = np.repeat(scales[:, 2 * j : 2 * j + 2], 16, 1)
            parts.append(d * each * ((low | high << 4) - 32.0))
        values = np.concatenate(parts, 1)
    return np.asarray(values, np.float32).reshape(len(data), -1)


def halves(data):
    """Return the low numbers of 4 bits of a block's bytes, then the high ones."""
    return np.concatenate([data & 15, data >> 4], 1).astype(np.float32)


def paired(weight, heads):
    """Rows of q or k as GGUF has them: the two of a rotated pair side by side."""
    rows = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write(file, kind, *, pre="smollm"):
    """Write a tiny Llama; return its weights as the file rounds them."""
    from tokenizers import pre_tokenizers

    words = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += ["Ġt", "he", "Ġthe", "in", "Ġa"]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a"]
    hidden, inner = (256, 512) if kind.endswith("_K") else (64, 96)
    writer = gguf.GGUFWriter(str(file), "llama")
    told = {
        "name": "tiny", "context_length": 128, "embedding_length": hidden,
        "block_count": LAYERS, "feed_forward_length": inner, "head_count": HEADS,
        "head_count_kv": KV, "rope_freq_base": 5000.0, "layer_norm_rms_eps": 1e-5,
        "vocab_size": len(words), "tokenizer_model": "gpt2", "tokenizer_pre": pre,
        "token_list": words, "token_types": [3] + [1] * (len(words) - 1),
        "token_merges": merges, "bos_token_id": 0, "eos_token_id": 0,
        "add_bos_token": False, "chat_template": "{{ messages[0].content }}",
    }  # fmt: skip
    for name, value in told.items():
        getattr(writer, f"add_{name}")(value)
    rng = np.random.default_rng(4)
    shapes = {
        "token_embd": ("model.embed_tokens", (len(words), hidden)),
        "output_norm": ("model.norm", (hidden,)),
    }
    kv = KV * hidden // HEADS
    for i in range(LAYERS):
        for ours, theirs, shape in (
            ("attn_norm", "input_layernorm", (hidden,)),
            ("ffn_norm", "post_attention_layernorm", (hidden,)),
            ("attn_q", "self_attn.q_proj", (hidden, hidden)),
            ("attn_k", "self_attn.k_proj", (kv, hidden)),
            ("attn_v", "self_attn.v_proj", (kv, hidden)),
            ("attn_output", "self_attn.o_proj", (hidden, hidden)),
            ("ffn_gate", "mlp.gate_proj", (inner, hidden)),
            ("ffn_up", "mlp.up_proj", (inner, hidden)),
            ("ffn_down", "mlp.down_proj", (hidden, inner)),
        ):
            shapes[f"blk.{i}.{ours}"] = (f"model.layers.{i}.{theirs}", shape)
    rounded = {}
    for name, (theirs, shape) in shapes.items():
        weight = rng.normal(1 if len(shape) == 1 else 0, 0.3, shape).astype(np.float32)
        plain = len(shape) == 1
        type_ = gguf.GGMLQuantizationType.F32 if plain else KINDS[kind]
        heads = {"attn_q": HEADS, "attn_k": KV}.get(name.split(".")[-1])
        stored = paired(weight, heads) if heads else weight
        data = stored if plain else packed(stored, kind, rng)
        writer.add_tensor(name + ".weight", data, raw_dtype=type_)
        back = stored if plain else unpacked(data, kind)
        if heads:
            pairs = back.reshape(heads, -1, 2, hidden)
            back = pairs.swapaxes(1, 2).reshape(shape)
        rounded[theirs + ".weight"] = back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_is_the_model_it_holds(kind, tmp_path):
    file = tmp_path / "tiny.gguf"
    weights = write(file, kind)
    folder = checkpoint_folder(file, tmp_path / "scratch")
    checkpoint = load_checkpoint(folder)
    assert checkpoint.parameters.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(checkpoint.weight(name), weight, atol=1e-6)
    script = [sys.executable, SCRIPT, "backbone", "2", str(file)]
    found = subprocess.run(script, stdout=subprocess.PIPE, check=True).stdout.decode()
    parameters = checkpoint.parameters
    assert backbone_fingerprint(parameters, checkpoint.weight, layers=2) == found.strip()
    a = checkpoint.architecture
    assert (a.context, a.kv_heads, a.tied, checkpoint.bos_id) == (128, 2, True, None)
    assert (folder / "chat_template.jinja").read_text().startswith("{{ messages")
    assert np.isfinite(reference_logits(checkpoint, [5, 6, 7])).all()


def test_a_gguf_file_becomes_a_draft_in_one_command(tmp_path):
    file = tmp_path / "tiny.gguf"
    write(file, "Q8_0")
    out = export_onnx(
        file, tmp_path / "tiny.draft", precision=["fp32", "int8"], min_agreement=0.5
    )
    package = load_draft(out)
    assert package.raw["made"]["from"] == "tiny"
    assert {"chat_template.jinja", "tokenizer_config.json"} < package.files.keys()
    assert package.model_file("fp32").details["parity"]["agreement"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.draft", "tiny.gguf"]


def test_words_are_cut_as_the_file_says(tmp_path):
    pieces = {}
    for pre in ("smollm", "llama-bpe", "qwen2", "gpt-2"):
        (tmp_path / pre).mkdir()
        write(tmp_path / pre / "tiny.gguf", "F16", pre=pre)
        folder = checkpoint_folder(tmp_path / pre / "tiny.gguf", tmp_path / pre)
        raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        pieces[pre] = json.dumps(raw["pre_tokenizer"])
    assert "Digits" in pieces["smollm"] and "{1,3}" in pieces["llama-bpe"]
    assert "Split" in pieces["qwen2"] and "Split" not in pieces["gpt-2"]
    write(tmp_path / "odd.gguf", "F16", pre="never-heard-of")
    with pytest.raises(ModelError, match="cuts words as 'never-heard-of'"):
        checkpoint_folder(tmp_path / "odd.gguf", tmp_path / "scratch")


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no file"):
        checkpoint_folder(tmp_path / "missing.gguf", tmp_path)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but no more than this")
    with pytest.raises(ModelError, match=r"bad\.gguf cannot be read"):
        checkpoint_folder(tmp_path / "bad.gguf", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the hub does not give it"):
        checkpoint_folder("nobody/nothing", tmp_path)
