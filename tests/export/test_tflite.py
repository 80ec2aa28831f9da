"""LiteRT drafts say what their origin says, whatever its shape."""

import json

import numpy as np
import pytest
from places import MODELS
from tiny_models import ATTENDING

from draftwire.cli import main
from draftwire.errors import ConfigError, DraftwireError, ModelError
from draftwire.export import tflite as exporter
from draftwire.export.graphs import tflite as tflite_graph
from draftwire.export.graphs.tflite import build_tflite, cache_lengths
from draftwire.export.onnx import export_onnx
from draftwire.export.precision.parity import Probe
from draftwire.export.sources.checkpoint import load_checkpoint
from draftwire.export.sources.weights import CheckpointWeights, PackageWeights
from draftwire.export.tflite import TfliteRunner, check_tflite, export_tflite
from draftwire.packages import load_draft
from draftwire.runtime.engines.draft_model import DraftModel

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 300, 90)]


@pytest.mark.parametrize("shape", ATTENDING)
def test_the_logits_are_those_of_transformers(shape, models, torch_logits):
    folder = models(shape)
    source = CheckpointWeights(load_checkpoint(folder))
    expected = torch_logits(folder, IDS)
    wide = build_tflite(source, "fp32", shortest=32)
    parity = check_tflite(wide, Probe(IDS, expected, "torch"))
    assert parity.max_difference < 1e-4 * max(1.0, parity.max_logit)
    assert parity.agreement == 1.0
    small = build_tflite(source, "int8", shortest=32)
    parity = check_tflite(small, Probe(IDS, expected, "torch"))
    assert parity.max_difference < 0.1 * parity.max_logit
    assert len(small) < 0.8 * len(wide)


@pytest.mark.parametrize(
    ("shape", "precision"),
    [("llama_tied_biased", p) for p in ("fp32", "int8", "int4")]
    + [("gpt_neox", "int8"), ("gemma3", "fp32")],
)
def test_a_package_gives_back_its_weights(shape, precision, models, tmp_path):
    folder = models(shape)
    out = export_onnx(
        folder, tmp_path / "a.draft", precision=precision, min_agreement=0.0,
        against="numpy",
    )  # fmt: skip
    found = PackageWeights(load_draft(out))
    right = CheckpointWeights(load_checkpoint(folder))
    for field in ("tied", "heads", "activation", "parallel", "context", "windows"):
        assert getattr(found.a, field) == getattr(right.a, field)
    step = {"fp32": 1e-7, "int8": 0.02, "int4": 0.2}[precision]
    for i in range(2):
        for kind in ("o", "up", "down"):
            a, b = found.linear(i, kind), right.linear(i, kind)
            assert a.weight.shape == b.weight.shape
            assert np.abs(a.weight - b.weight).max() <= step * np.abs(b.weight).max()
            assert (a.bias is None) == (b.bias is None)
    head = right.table(right.a.head)
    assert np.abs(found.table(found.a.head) - head).max() <= step * np.abs(head).max()


@pytest.mark.parametrize("shape", ["llama", "gpt_neox"])
def test_an_engine_is_added_to_a_package(shape, models, tmp_path):
    how = {"precision": ["fp32", "int8"], "min_agreement": 0.3}
    package = load_draft(export_onnx(models(shape), tmp_path / "a.draft", **how))
    out = export_tflite(package.path, tmp_path / "b.draft", **how)
    found = load_draft(out)
    assert found.id != package.id  # another content is another package
    assert (found.family, found.name) == (package.family, package.name)
    assert found.raw["made"]["engine_added_to"] == package.id
    assert set(found.files) == {*package.files, "model.fp32.tflite", "model.int8.tflite"}
    assert found.precisions == ("int8", "fp32")
    entry = found.model_file("fp32", engine="litert")
    assert entry.details["weights"] == "model.fp32.onnx"
    assert entry.details["parity"]["agreement"] == 1.0
    ours = DraftModel.load(found, precision="fp32", engine="litert")
    theirs = DraftModel.load(found, precision="fp32")
    for model in (ours, theirs):
        model.forward(IDS[:40])
    for token in IDS[40:]:
        expected = theirs.forward([token])
        np.testing.assert_allclose(ours.forward([token]), expected, atol=2e-3)
    first, again = (
        export_tflite(package.path, tmp_path / f"{name}.draft", min_agreement=0.3)
        for name in "cd"
    )
    assert load_draft(first).id == load_draft(again).id


def test_rounded_weights_and_the_checkpoints_own(models, tmp_path):
    folder = models("llama")
    package = export_onnx(folder, tmp_path / "a.draft", min_agreement=0.3)
    rounded = export_tflite(
        package, tmp_path / "b.draft", precision="fp32", min_agreement=0.3
    )
    entry = load_draft(rounded).model_file("fp32", engine="litert")
    assert entry.details["weights"] == "model.int8.onnx"
    export_tflite(package, precision="fp32", checkpoint=folder, replace=True)
    entry = load_draft(package).model_file("fp32", engine="litert")
    assert entry.details["weights"] == "llama"
    assert entry.details["parity"]["max_difference"] < 1e-3
    other = models("llama_linear")
    with pytest.raises(ModelError, match="not the checkpoint that a.draft was made"):
        export_tflite(package, tmp_path / "c.draft", checkpoint=other)
    assert not (tmp_path / "c.draft").exists()


def test_a_package_for_litert_alone(model_copy, tmp_path):
    source = model_copy("qwen2")
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    out = export_tflite(
        source, tmp_path / "a.draft", precision="fp32", context=64,
        family_name="tiny", anchor_layers=1, against="numpy",
    )  # fmt: skip
    package = load_draft(out)
    assert (package.context, package.family.name) == (64, "tiny")
    assert package.family.backbone is not None
    assert {"chat_template.jinja", "chat.json"} < package.files.keys()
    assert DraftModel.load(package).engine.startswith("ai-edge-litert")


def test_tokens_that_transformers_reads_otherwise_are_refused(model_copy, tmp_path):
    folder = model_copy("llama")
    # transformers adds this token to the vocabulary, tokenizer.json lacks it.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    config["additional_special_tokens"] = ["brown"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="differently"):
        export_tflite(folder, tmp_path / "a.draft")
    assert [path.name for path in tmp_path.iterdir()] == ["llama.hf"]


def test_masks_of_a_parallel_draft_are_named(model_copy, tmp_path):
    """Or a tied head might draft one."""
    folder = model_copy("llama_tied_biased")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pard_token": 310}))
    out = export_tflite(folder, tmp_path / "a.draft", precision="fp32", against="numpy")
    draft = load_draft(out)
    assert draft.parallel is not None and draft.parallel.mask_ids == (310,)
    model = DraftModel.load(out, engine="litert", precision="fp32")
    assert model.parallel is None and model.mask_ids == (310,)


def test_the_gate_notices_wrong_angles(models, tmp_path, monkeypatch):
    right = tflite_graph.rotation_table
    monkeypatch.setattr(
        tflite_graph, "rotation_table", lambda rope, rows: right(rope, rows)[::-1].copy()
    )
    with pytest.raises(ModelError, match=r"model.fp32.tflite"):
        export_tflite(models("llama"), tmp_path / "a.draft", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_the_gate_notices_a_mask_that_lets_the_future_in(models, monkeypatch, torch_logits):
    """Every signature is under the gate, also those that a short text never needs."""
    folder = models("llama")
    source = CheckpointWeights(load_checkpoint(folder))
    content = build_tflite(source, "fp32", shortest=32)
    step = TfliteRunner.step

    def leaky(self, token, signature):
        if signature == self.steps[-1]:
            self.length += 1
            logits = step(self, token, signature)
            self.length -= 1
            return logits
        return step(self, token, signature)

    monkeypatch.setattr(TfliteRunner, "step", leaky)
    parity = check_tflite(content, Probe(IDS, torch_logits(folder, IDS), "torch"))
    assert parity.max_difference > 1e-2


@pytest.mark.parametrize(
    "lengths", [[160], [256], [256, 400], [256, 1280], [256, 1024, 4096]]
)
def test_short_texts_have_a_short_cache(lengths):
    assert cache_lengths(lengths[-1]) == lengths


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"precision": []}, "0 precisions"),
        ({"out": "a.target"}, "called NAME.draft"),
        ({"out": None}, "say where"),
        ({"checkpoint": "."}, "goes with a draft package"),
        ({"anchor_layers": 9}, "anchor of 9"),
        ({"context": 161}, "161 was asked for"),
        ({"source": "nowhere"}, "no model directory"),
        ({"source": "nowhere.draft"}, "no draft package"),
    ],
)
def test_wrong_arguments(arguments, sentence, models, tmp_path):
    arguments = {"source": models("llama"), "out": "a.draft", **arguments}
    out, source = arguments.pop("out"), arguments.pop("source")
    if source in ("nowhere", "nowhere.draft"):
        source = tmp_path / source
    with pytest.raises(DraftwireError, match=sentence):
        export_tflite(source, out and tmp_path / out, against="numpy", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_package_keeps_what_it_is(models, tmp_path):
    package = export_onnx(models("llama"), tmp_path / "a.draft", min_agreement=0.3)
    with pytest.raises(ConfigError, match="another id"):
        export_tflite(package)
    with pytest.raises(ConfigError, match="already"):
        export_tflite(package, package)
    with pytest.raises(ConfigError, match="keeps its name"):
        export_tflite(package, tmp_path / "b.draft", context=64)
    assert [p.name for p in tmp_path.iterdir()] == ["a.draft"]


def test_a_model_that_is_too_large(models, monkeypatch):
    from draftwire.export.graphs import tflite_builder

    monkeypatch.setattr(tflite_builder, "GRAPH_LIMIT", 1000)
    with pytest.raises(ModelError, match="2 GB"):
        build_tflite(CheckpointWeights(load_checkpoint(models("llama"))), "fp32")


def test_the_command(models, tmp_path, capsys):
    package = export_onnx(models("llama"), tmp_path / "a.draft", precision="fp32")
    words = ["export", "tflite", str(package), "--precision", "fp32", "--json"]
    assert main(words) == 2
    assert "--replace" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b.draft")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["id"] == load_draft(tmp_path / "b.draft").id
    assert summary["files"]["model.fp32.tflite"]["parity"]["agreement"] == 1.0


def test_without_litert_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if "litert" in n else real(n, *a)
    )
    assert main(["export", "tflite", str(tmp_path / "a.draft")]) == 2
    assert "draftwire[export]" in capsys.readouterr().err
    assert exporter.PRECISIONS == ("fp32", "int8")


@pytest.mark.parametrize("shape", ["qwen3", "mistral_windowed", "gpt_neox", "olmo2"])
def test_the_weights_of_a_package_are_as_good(shape, models, tmp_path, torch_logits):
    folder = models(shape)
    package = export_onnx(folder, tmp_path / "a.draft", precision="fp32", against="numpy")
    content = build_tflite(PackageWeights(load_draft(package)), "fp32", shortest=32)
    parity = check_tflite(content, Probe(IDS, torch_logits(folder, IDS), "torch"))
    assert parity.max_difference < 1e-4 * max(1.0, parity.max_logit)


def test_the_reference_draft_gets_an_engine(tmp_path):
    """A package whose weights are rounded in the form of older exporters."""
    out = export_tflite(MODELS / "reference.draft", tmp_path / "r.draft")
    found = load_draft(out)
    parity = found.model_file("int8", engine="litert").details["parity"]
    assert parity["agreement"] > 0.95
