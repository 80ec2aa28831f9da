"""The models that are trained here say what transformers says."""

from __future__ import annotations

import numpy as np
import pytest

for library in ("torch", "transformers", "safetensors", "onnx", "onnxruntime"):
    pytest.importorskip(library)
pytestmark = pytest.mark.workstation

import torch  # noqa: E402

from draftwire.errors import ConfigError, ModelError  # noqa: E402
from draftwire.export.adapter import write_evolved_target  # noqa: E402
from draftwire.export.onnx import export_onnx  # noqa: E402
from draftwire.export.sources.checkpoint import load_checkpoint  # noqa: E402
from draftwire.export.training.base import read_base  # noqa: E402
from draftwire.export.training.draft import make_draft  # noqa: E402
from draftwire.export.training.lora import (  # noqa: E402
    add_lora,
    lora_tensors,
    merge_lora_,
)
from draftwire.export.training.model import load_transformer  # noqa: E402

IDS = list(range(3, 43))
SHAPES = [
    "llama",
    "llama_tied_biased",
    "llama_scaled",
    "llama_linear",
    "mistral",
    "qwen2",
    "gpt_neox",
    "gpt_neox_sequential",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_says_what_transformers_says(models, torch_logits, shape):
    expected = torch_logits(models(shape), IDS)
    model = load_transformer(load_checkpoint(models(shape)))
    with torch.no_grad():
        found = model(torch.tensor([IDS]))[0].numpy()
        step, cache = model.extend(torch.tensor([IDS[:20]]))
        for at in (20, 21):
            step, cache = model.extend(torch.tensor([IDS[at : at + 1]]), cache)
        step, cache = model.extend(torch.tensor([IDS[22:]]), cache)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * scale
    assert np.abs(step[0].numpy() - expected[-1]).max() < 1e-4 * scale
    assert cache[0][0].shape[2] == len(IDS)


@pytest.mark.parametrize("shape", ["llama_scaled", "gpt_neox", "gpt_neox_sequential"])
def test_a_target_package_is_a_base_too(models, tmp_path, shape):
    out = export_onnx(models(shape), tmp_path / "v1.target", role="target", against="numpy")
    base = read_base(out)
    other = load_transformer(load_checkpoint(models(shape)))
    assert base.model.architecture.parallel == other.architecture.parallel
    with torch.no_grad():
        found, expected = (m(torch.tensor([IDS])) for m in (base.model, other))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()  # fp16 weights


def test_an_evolved_package_is_merged(models, tmp_path):
    v1 = export_onnx(
        models("llama"), tmp_path / "v1.target", role="target", against="numpy"
    )
    model = read_base(v1).model
    add_lora(model, rank=2, anchor_layers=1, seed=1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_b"):
                p.normal_(std=0.1)
    tensors = {n: t.numpy() for n, t in lora_tensors(model).items()}
    v2 = write_evolved_target(tensors, 1.0, v1, tmp_path / "v2.target", version="v2")
    with torch.no_grad():
        apart = model(torch.tensor([IDS]))
        merge_lora_(model)
        merged = model(torch.tensor([IDS]))
        packaged = read_base(v2).model(torch.tensor([IDS]))
    assert not [n for n, _ in model.named_parameters() if "lora" in n]
    assert (apart - merged).abs().max() < 1e-4
    assert (apart - packaged).abs().max() < 0.01 * apart.abs().max()
    assert (packaged - read_base(v1).model(torch.tensor([IDS]))).abs().max() > 0.5


def test_biases_survive_a_merge(models):
    model = load_transformer(load_checkpoint(models("gpt_neox")))
    with torch.no_grad():
        before = model(torch.tensor([IDS]))
        add_lora(model, rank=2, anchor_layers=0, seed=1)
        assert torch.equal(model(torch.tensor([IDS])), before), "an adapter begins at 0"
        merge_lora_(model)
        assert torch.equal(model(torch.tensor([IDS])), before)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt_neox"])
def test_a_draft_of_all_layers_is_its_base(models, shape):
    base = load_transformer(load_checkpoint(models(shape)))
    draft = make_draft(base, anchor_layers=1, trained_layers=1)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        assert torch.equal(draft(ids), base(ids))
    trained = {n for n, p in draft.named_parameters() if p.requires_grad}
    assert trained and not [n for n in trained if "layers.0." in n or "embed" in n]
    assert not any(n.startswith(("lm_head", "embed_out")) for n in trained)


def test_what_is_no_base_is_refused(models, tmp_path, model_copy):
    base = load_transformer(load_checkpoint(models("llama")))
    for anchor, trained in ((1, 0), (2, 1), (-1, 1)):
        with pytest.raises(ConfigError, match="does not come out of a base of 2"):
            make_draft(base, anchor_layers=anchor, trained_layers=trained)
    with pytest.raises(ConfigError, match="no model directory"):
        read_base(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no target package"):
        read_base(tmp_path / "nowhere.target")
    folder = model_copy()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        read_base(folder)
