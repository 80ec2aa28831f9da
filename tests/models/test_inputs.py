"""GGUF files and names on the hub, as what is exported."""

import json
import subprocess
import sys

import gguf
import gguf_files
import numpy as np
import pytest
from places import ROOT

from draftwire.errors import ConfigError, ModelError
from draftwire.export.graphs.reference import reference_logits
from draftwire.export.onnx import export_onnx
from draftwire.export.pieces import backbone_fingerprint
from draftwire.export.sources.checkpoint import load_checkpoint
from draftwire.export.sources.inputs import checkpoint_folder
from draftwire.export.tflite import export_tflite
from draftwire.packages import load_draft

SCRIPT = str(ROOT / "examples" / "fingerprint.py")
HEADS, KV, LAYERS = 4, 2, 2
KINDS = ("F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")


def packed(weight, kind, rng):
    """Return bytes and type; of K kinds, which gguf cannot round to, random bytes."""
    type_ = gguf.GGMLQuantizationType["F32" if weight.ndim == 1 else kind]
    if weight.ndim == 1 or not kind.endswith("_K"):
        return gguf.quants.quantize(weight, type_), type_
    size, place = {"Q4_K": (144, slice(0, 4)), "Q6_K": (210, slice(208, 210))}[kind]
    raw = rng.integers(0, 256, (weight.size // 256, size), np.uint8)
    scale = np.array([0.001, 0.007] if kind == "Q4_K" else [0.0001], "<f2").view(np.uint8)
    raw[:, place] = scale
    return raw.reshape(len(weight), -1), type_


def write(file, kind, *, pre="smollm"):
    """Write a tiny Llama; return its weights as the file rounds them."""
    from tokenizers import pre_tokenizers

    words = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += ["Ġt", "he", "Ġthe", "in", "Ġa"]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a"]
    hidden, inner = (256, 512) if kind.endswith("_K") else (64, 96)
    told = {
        "name": "tiny", "context_length": 128, "embedding_length": hidden,
        "block_count": LAYERS, "feed_forward_length": inner,
        "rope_freq_base": 5000.0, "layer_norm_rms_eps": 1e-5,
        "vocab_size": len(words), "tokenizer_model": "gpt2", "tokenizer_pre": pre,
        "token_list": words, "token_types": [3] + [1] * (len(words) - 1),
        "token_merges": merges, "bos_token_id": 0, "eos_token_id": 0,
        "add_bos_token": False, "chat_template": "{{ messages[0].content }}",
    }  # fmt: skip
    kv = KV * hidden // HEADS
    sizes = {"q_proj": (hidden, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
    sizes.update(o_proj=(hidden, hidden), gate_proj=(inner, hidden))
    sizes.update(up_proj=(inner, hidden), down_proj=(hidden, inner))
    shapes = {"model.embed_tokens": (len(words), hidden), "model.norm": (hidden,)}
    for i in range(LAYERS):
        for name in gguf_files.NAMES:
            size = sizes.get(name.split(".")[-1], (hidden,))
            shapes[f"model.layers.{i}.{name}"] = size
    rng = np.random.default_rng(4)
    weights = {
        f"{name}.weight": packed(
            rng.normal(len(shape) == 1, 0.3, shape).astype(np.float32), kind, rng
        )
        for name, shape in shapes.items()
    }
    gguf_files.write_gguf(file, weights, heads=HEADS, kv=KV, **told)
    return {name: gguf.quants.dequantize(*held) for name, held in weights.items()}


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
    lite = load_draft(export_tflite(file, tmp_path / "lite.draft", min_agreement=0.5))
    assert lite.raw["made"]["from"] == "tiny"
    assert lite.family.tokenizer == package.family.tokenizer
    names = ["lite.draft", "tiny.draft", "tiny.gguf"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


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


@pytest.mark.parametrize("size", [7, 30, 400, 3000, 8000, 100_000])
def test_a_file_that_is_cut_is_said(tmp_path, size):
    write(tmp_path / "a.gguf", "F16")
    data = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(data[:size])
    with pytest.raises(ModelError, match="a.gguf cannot be read as GGUF"):
        checkpoint_folder(tmp_path / "a.gguf", tmp_path)


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
