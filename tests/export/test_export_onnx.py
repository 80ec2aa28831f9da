"""Whole exports: what is written, what is refused, and that nothing stays behind."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from draftwire.cli import main
from draftwire.errors import ConfigError, DraftwireError, ModelError
from draftwire.export import onnx as exporter
from draftwire.export.graphs import concat
from draftwire.export.onnx import export_onnx
from draftwire.export.pieces import anchor_parameters
from draftwire.export.precision.runners import DraftRunner
from draftwire.export.sources.checkpoint import load_checkpoint
from draftwire.packages import Parallel, load_draft, load_target
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.tensors import target_weights

IDS = list(range(5, 45))


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, **changes):
    config = {**read_config(folder), **changes}
    config = {k: v for k, v in config.items() if v != "drop"}
    (folder / "config.json").write_text(json.dumps(config))


def drafted(folder, out, **how):
    """Export a draft, compared with the numpy forward, and load it."""
    return load_draft(export_onnx(folder, out, **{"against": "numpy", **how}))


def test_the_id_is_the_same_the_second_time(models, tmp_path):
    first, second = (
        drafted(models("qwen2"), tmp_path / f"{n}.draft", min_agreement=0.3) for n in "ab"
    )
    assert first.id == second.id


def test_a_target_keeps_its_weights_beside_the_graph(models, tmp_path):
    folder = models("qwen2")
    target = load_target(
        export_onnx(folder, tmp_path / "v1.target", role="target", anchor_layers=1)
    )
    draft = load_draft(
        export_onnx(folder, tmp_path / "v1.draft", anchor_layers=1, min_agreement=0.3)
    )
    assert target.version == "v1"
    assert target.family.backbone == draft.family.backbone
    assert target.family.tokenizer == draft.family.tokenizer
    assert target.files["model.onnx"].graph == "target"
    assert target.files["model.onnx"].bytes < 100_000
    weights = target_weights(target)
    checkpoint = load_checkpoint(folder)
    assert weights.keys() == checkpoint.parameters.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, checkpoint.weight(name), atol=1e-3)


def test_large_weights_lie_beside_the_graph(models, tmp_path, monkeypatch):
    monkeypatch.setattr("draftwire.export.pieces.EXTERNAL_BYTES", 1000)
    how = {"precision": ["fp32", "int8"], "min_agreement": 0.3}
    package = drafted(models("llama"), tmp_path / "a.draft", **how)
    assert package.files["model.fp32.onnx.data"].bytes > 100_000
    assert package.model_file("fp32").bytes < 50_000
    shape = load_checkpoint(models("llama")).architecture
    runner = DraftRunner(str(package.model_path("fp32")), shape)
    assert np.isfinite(runner.forward(IDS)).all()


def test_shards_and_bfloat16(model_copy, tmp_path, torch_logits):
    import torch
    from transformers import AutoModelForCausalLM

    source = model_copy("gpt_neox")
    folder = tmp_path / "sharded.hf"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    assert (folder / "model.safetensors.index.json").is_file()
    checkpoint = load_checkpoint(folder)
    head = checkpoint.architecture.head
    assert checkpoint.parameters[head].dtype(head) == "BF16"
    package = drafted(folder, tmp_path / "a.draft", precision="fp32", against="torch")
    parity = package.model_file("fp32").details["parity"]
    assert parity["against"].startswith("transformers")
    assert parity["agreement"] == 1.0
    (shard, *_) = sorted(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match="lacks its shard"):
        load_checkpoint(folder)


NO_ROPE = dict.fromkeys(
    "rope_parameters rope_theta rope_scaling rotary_pct rotary_emb_base "
    "partial_rotary_factor".split(),
    "drop",
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


LINEAR = {"rope_type": "linear", "factor": 2.0}
SPELLINGS = (
    ("llama", {"rope_theta": 500.0, "rope_scaling": LLAMA3},
     {"rope_theta": 500.0, **LLAMA3}, 16),
    ("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
     {"rope_theta": 500.0, **LINEAR}, 16),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500},
     {"rope_theta": 500.0, "partial_rotary_factor": 0.5}, 8),
)  # fmt: skip


@pytest.mark.parametrize(("shape", "old", "new", "dims"), SPELLINGS)
def test_both_spellings_of_rope_are_read(shape, old, new, dims, model_copy):
    folder = model_copy(shape)
    found = []
    for spelling in (old, {"rope_parameters": new}):
        edit(folder, **{**NO_ROPE, **spelling})
        found.append(load_checkpoint(folder).architecture.ropes[0].rates)
    assert len(found[0]) == dims / 2
    np.testing.assert_array_equal(*found)


def test_a_tied_head_may_be_stored_twice(model_copy):
    folder = model_copy("qwen2")
    weights_with(folder, **{"lm_head.weight": np.zeros((320, 64), np.float32)})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.architecture.head == "model.embed_tokens.weight"
    assert "lm_head.weight" not in checkpoint


def test_a_sliding_window_leaves_the_context(model_copy):
    folder = model_copy("mistral")
    edit(folder, sliding_window=64)
    architecture = load_checkpoint(folder).architecture
    assert architecture.context == 160 and architecture.windows == (64, 64)
    edit(folder, sliding_window=64, use_sliding_window=False)
    assert load_checkpoint(folder).architecture.windows == (0, 0)


def test_a_drafter_of_hidden_states_is_refused_with_its_price(model_copy):
    folder = model_copy("llama")
    edit(folder, architectures=["LlamaForCausalLMEagle3"])
    with pytest.raises(ModelError, match=r"384 bytes down for each token"):
        load_checkpoint(folder)
    edit(folder, architectures=["LlamaForCausalLM"], spd_type="mtp")
    with pytest.raises(ModelError, match=r"MTP drafter.* 128 bytes down"):
        load_checkpoint(folder)
    edit(folder, spd_type="drop", dflash_config={"target_layer_ids": [1, 5, 9, 13]})
    with pytest.raises(ModelError, match=r"reads the target's hidden states.* 512 bytes"):
        load_checkpoint(folder)


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_a_parallel_draft_says_what_torch_says_behind_masks(
    model_copy, tmp_path, torch_logits, shape
):
    folder = model_copy(shape)
    edit(folder, spd_type="pard", pard_token=310)
    out = tmp_path / "a.draft"
    words = ["export", "package", str(folder), "--role", "draft", "--out", str(out)]
    assert main([*words, "--precision", "fp32,int8", "-q"]) == 0
    package = load_draft(out)
    assert package.parallel == Parallel((310,), 8)
    assert package.raw["parallel"] == {"mask_ids": [310], "block": 8}
    parity = package.model_file("int8").details["parity"]
    assert 0.5 < parity["masks"] <= 1.0
    model = DraftModel.load(package, precision="fp32")
    text = []
    # Blocks as they are drafted and judged: text, masks behind it, tokens taken back.
    for new, masks, kept in ((12, 7, 12), (1, 7, 9), (4, 3, 13), (8, 7, 14), (1, 1, 15)):
        fresh = [(7 * len(text) + 11 * i) % 300 for i in range(new)]
        text += fresh
        rows = model.ahead(fresh, 1 + masks)
        right = torch_logits(folder, [*text, *[310] * masks])[-1 - masks :]
        np.testing.assert_allclose(rows, right, atol=2e-4)
        assert model.length == len(text)
        right = torch_logits(folder, [*text, 5])[-1]  # what follows reads no mask
        np.testing.assert_allclose(model.forward([5]), right, atol=2e-4)
        del text[kept:]
        model.rewind(len(text))


def test_masks_of_its_own_and_what_is_wrong_with_them(model_copy, tmp_path):
    folder = model_copy("llama")
    settings = {"precision": "fp32", "against": "numpy"}
    table = {"mask_ids": [317, 318, 319], "block": 4}
    table["acceptance_by_position"] = [0.9, 0.8, 0.7, 0.6]
    edit(folder, parallel=table)
    package = drafted(folder, tmp_path / "a.draft", **settings)
    assert package.raw["parallel"] == table
    assert package.parallel.masks(2) == (317, 318)
    target = export_onnx(folder, tmp_path / "a.target", role="target", against="numpy")
    assert "parallel" not in load_target(target).raw
    for change, complaint in (
        ({"mask_ids": [317, 318]}, "one id, or 3 different ones"),
        ({"mask_ids": [317, 318, 320]}, "whole numbers below 320"),
        ({"block": 1}, "from 2 to 32"),
        ({"acceptance_by_position": [0.5]}, "4 chances"),
        ({"acceptance_by_position": [0.5, 0.5, 2, 0.5]}, "from 0 to 1"),
    ):
        edit(folder, parallel={**table, **change})
        with pytest.raises(ModelError, match=complaint):
            export_onnx(folder, tmp_path / "b.draft", **settings)
    edit(folder, parallel="drop", spd_type="pard")
    with pytest.raises(ModelError, match="whole numbers below 320"):
        export_onnx(folder, tmp_path / "b.draft", **settings)
    edit(folder, spd_type="drop", ptd_token_id=300)
    package = drafted(folder, tmp_path / "b.draft", **settings)
    assert package.parallel == Parallel((300,), 8)


def test_masks_that_the_graph_gets_wrong_are_found(model_copy, tmp_path, monkeypatch):
    folder = model_copy("llama")
    edit(folder, pard_token=310)
    forward = DraftRunner.forward

    def wrong(self, ids, *, rows=1):
        logits = forward(self, ids, rows=rows)
        logits[1:] *= 1.0 if ids[-1] != 310 else 0.9
        return logits

    monkeypatch.setattr(DraftRunner, "forward", wrong)
    with pytest.raises(ModelError, match="differs from the checkpoint"):
        export_onnx(folder, tmp_path / "a.draft", precision="fp32", against="numpy")


@pytest.mark.parametrize("shape", ["llama", "gpt_neox", "gpt2", "olmo2"])
def test_an_anchor_has_the_embedding_and_whole_layers(shape, models):
    names = load_checkpoint(models(shape)).parameters
    anchors = [set(anchor_parameters(names, layers)) for layers in (0, 1, 2)]
    assert 1 <= len(anchors[0]) <= 2
    assert len(anchors[2] - anchors[1]) == len(anchors[1] - anchors[0]) >= 8


def test_where_a_prompt_begins(model_copy):
    folder = model_copy("llama")
    assert load_checkpoint(folder).bos_id is None  # whatever config.json names
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    known = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    for single, expected in (([text], None), ([bos, text], 0), ([text, bos], None)):
        raw["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [text, text],
            "special_tokens": {"<|endoftext|>": known},
        }
        (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
        assert load_checkpoint(folder).bos_id == expected


def test_a_place_that_cannot_be_written(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        export_onnx(models("llama"), tmp_path / "file" / "a.draft")


def drop(folder, *names):
    for name in names:
        (folder / name).unlink()


def weights_with(folder, **changes):
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    save_file(tensors, folder / "model.safetensors")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def long_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def as_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def full(value, shape=(96, 64)):
    return np.full(shape, value, np.float32)


BIG = "model.layers.0.mlp.up_proj.weight"
FAULTS = {
    "no config": (lambda f: drop(f, "config.json"), "no config.json"),
    "config cut": (lambda f: (f / "config.json").write_text('{"a": '), "not JSON"),
    "config list": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "no tokenizer": (lambda f: drop(f, "tokenizer.json"), "has no tokenizer.json"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a tokenizer"),
    "no weights": (lambda f: drop(f, "model.safetensors"), "has no model.safetensors"),
    "a pickle": (as_pickle, "never opened"),
    "weights cut": (cut, "is cut short"),
    "header length": (long_header, "claims a header"),
    "a weight lost": (lambda f: weights_with(f, **{BIG: None}), f"lacks the weight {BIG}"),
    "a weight's shape": (lambda f: weights_with(f, **{BIG: full(1, (2, 2))}), "has shape"),
    "whole numbers": (
        lambda f: weights_with(f, **{BIG: full(0).astype(np.int32)}), "stored as I32"),
    "not finite": (lambda f: weights_with(f, **{BIG: full(np.nan)}), "not finite"),
    "a strange weight": (
        lambda f: weights_with(f, **{"model.layers.0.q_norm": full(1, 4)}),
        "does not have"),
    "a bias in one layer": (
        lambda f: weights_with(f, **{BIG[:-6] + "bias": full(1, 96)}),
        "in some layers only"),
    "heads": (lambda f: edit(f, num_attention_heads=3), "do not fit|has shape"),
    "vocabulary": (lambda f: edit(f, vocab_size=400), "has shape"),
    "no layers": (lambda f: edit(f, num_hidden_layers="drop"), "num_hidden_layers"),
    "layers in words": (lambda f: edit(f, num_hidden_layers="two"), "num_hidden_layers"),
    "eps": (lambda f: edit(f, rms_norm_eps=-1), "rms_norm_eps"),
    "eos": (lambda f: edit(f, eos_token_id=99999), "outside of the vocabulary"),
    "an eos of another kind": (lambda f: edit(f, eos_token_id=[{}]), "outside of"),
    "an activation of another kind": (lambda f: edit(f, hidden_act=["silu"]), "of another"),
    "architectures": (lambda f: edit(f, architectures=7), "of another kind"),
    "quantised": (lambda f: edit(f, quantization_config={"bits": 4}), "quantised"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_sentence_and_leaves_nothing(fault, model_copy, tmp_path):
    folder = model_copy("llama")
    change, sentence = FAULTS[fault]
    change(folder)
    out = tmp_path / "out" / "a.draft"
    with pytest.raises(DraftwireError, match=sentence) as caught:
        export_onnx(folder, out, against="numpy")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (2, 5)
    assert list(out.parent.iterdir()) == []


def test_settings_of_a_tokenizer_that_are_no_object(model_copy, tmp_path):
    folder = model_copy("llama")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        export_onnx(folder, tmp_path / "a.draft")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "bloom"},
        {"model_type": None},
        {"hidden_act": "relu"},
        {"rope_parameters": {"rope_type": "odd", "rope_theta": 1e4, "factor": 2.0}},
        {"sliding_window": 8, "layer_types": ["linear_attention", "full_attention"]},
    ],
)
def test_other_architectures_go_to_optimum(changes, model_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(concat, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = model_copy("llama")
    edit(folder, **changes)
    with pytest.raises(ConfigError, match="Optimum.* is not installed") as caught:
        export_onnx(folder, tmp_path / "a.draft")
    assert "--graph concat: optimum-onnx==" in caught.value.hint
    assert "160 MB" in caught.value.hint
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError) as caught:
        export_onnx(folder, tmp_path / "a.target", role="target")
    assert "transformers backend" in caught.value.hint


def test_what_optimum_cannot_do_is_said(model_copy, tmp_path, monkeypatch):
    # This Python as one that has it: the child says what is missing.
    monkeypatch.setattr(concat, "find_spec", lambda name: name)
    with pytest.raises(ModelError, match="Optimum cannot export .*No module named"):
        export_onnx(model_copy("llama"), tmp_path / "a.draft", graph="concat")


@pytest.mark.slow  # makes an environment
def test_an_optimum_that_cannot_be_installed_leaves_nothing_that_looks_made(
    model_copy, tmp_path, monkeypatch
):
    folder, cache = model_copy("llama"), tmp_path / "cache"
    monkeypatch.setattr(concat, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # a real pip, which finds nothing
    with pytest.raises(ConfigError, match="cannot be installed into .*: ERROR: "):
        export_onnx(folder, tmp_path / "a.draft", graph="concat")
    assert not list(cache.glob("**/made"))


@pytest.mark.slow  # installs 160 MB, once
@pytest.mark.parametrize("kind", ["Bloom", "OPT"])
def test_optimum_writes_what_is_not_known_here(kind, tmp_path, tokenizer_file):
    import shutil

    import torch
    import transformers

    torch.manual_seed(0)
    own = {"max_position_embeddings": 256, "word_embed_proj_dim": 64, "ffn_dim": 96}
    config = getattr(transformers, kind + "Config")(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=0,
        **({**own, "pad_token_id": 0} if kind == "OPT" else {}),
    )  # fmt: skip
    folder = tmp_path / "tiny.hf"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copy(tokenizer_file, folder)
    how = {"graph": "concat", "context": 128, "min_agreement": 0.5}
    try:
        out = export_onnx(folder, tmp_path / "a.draft", precision=["fp32", "int8"], **how)
    except ConfigError as exc:
        if "cannot be installed" in str(exc):
            pytest.skip(str(exc))
        raise
    package = load_draft(out)
    assert package.raw["made"]["optimum"]["transformers"].startswith("4.")
    assert package.model_file("fp32").graph == "concat"
    assert package.model_file("fp32").details["parity"]["agreement"] == 1.0
    assert (package.shape.layers, package.shape.kv_heads, package.context) == (2, 4, 128)
    model = DraftModel.load(package, precision="fp32")
    ids = [(7 * i) % 300 for i in range(60)]
    model.forward(ids[:40])
    model.forward(ids[:9])  # rejected
    model.rewind(40)
    found = model.forward(ids[40:])
    with torch.no_grad():
        network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = network(torch.tensor([ids])).logits[0, -1].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_gate_refuses_a_poor_model(models, tmp_path):
    with pytest.raises(ModelError, match="most likely token") as caught:
        export_onnx(
            models("llama"), tmp_path / "a.draft", precision="int4", min_agreement=1.0
        )
    assert "--min-agreement" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_gate_notices_a_wrong_graph(models, tmp_path, monkeypatch):
    right = exporter.gqa_graph.rotation

    def wrong(architecture, rates):
        rates, order = right(architecture, rates)
        return rates * 1.05, order

    monkeypatch.setattr(exporter.gqa_graph, "rotation", wrong)
    with pytest.raises(ModelError):
        export_onnx(models("llama"), tmp_path / "a.draft", precision="fp32")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"precision": "int3"}, "no precision"),
        ({"precision": []}, "0 precisions"),
        ({"role": "target", "out": "a.target", "precision": "int8"}, "no precision"),
        ({"role": "judge"}, "no role"),
        ({"graph": "tree"}, "no graph"),
        ({"out": "a.target"}, "called NAME.draft"),
        ({"anchor_layers": 9}, "anchor of 9"),
        ({"context": 161}, "161 was asked for"),
        ({"name": "a\nb"}, "name must be"),
    ],
)
def test_wrong_arguments(arguments, sentence, models, tmp_path):
    arguments = {"against": "numpy", "min_agreement": 0.0, **arguments}
    out = tmp_path / arguments.pop("out", "a.draft")
    with pytest.raises(DraftwireError, match=sentence):
        export_onnx(models("llama"), out, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command(models, tmp_path, capsys):
    out = tmp_path / "a.draft"
    words = ["export", "onnx", str(models("llama")), "--out", str(out), "--json"]
    assert main([*words, "--precision", "fp32,int8", "--min-agreement", "0.3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["id"] == load_draft(out).id
    assert summary["files"]["model.fp32.onnx"]["parity"]["agreement"] == 1.0
    assert main(words) == 2
    assert "already" in capsys.readouterr().err
    assert main(["export", "onnx", str(tmp_path), "--out", str(out), "--replace"]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert load_draft(out).id == summary["id"]
