"""The models that are trained here say what transformers says."""

import numpy as np
import pytest
import torch
from tiny_models import ATTENDING, SHAPES

from draftwire.errors import ConfigError, ModelError
from draftwire.export.adapter import package_adapter
from draftwire.export.onnx import export_onnx
from draftwire.export.sources.checkpoint import config_of, load_checkpoint
from draftwire.export.training.base import cut, read_base, save_model
from draftwire.export.training.distil import make_draft
from draftwire.export.training.evolve import add_lora
from draftwire.export.training.measure import extend, logits_of
from draftwire.packages import load_target
from draftwire.packages.exits import torch_stack

IDS = list(range(3, 43))


def said(model):
    with torch.no_grad():
        return logits_of(model, torch.tensor([IDS]))[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_base_says_what_transformers_says(models, targets, torch_logits, shape):
    """From the checkpoint, and from a package of it."""
    expected = torch_logits(models(shape), IDS)
    base = read_base(models(shape))
    scale = np.abs(expected).max()
    assert np.abs(said(base.model) - expected).max() < 1e-4 * scale
    step, cache = extend(base.model, torch.tensor([IDS[:20]]))
    for at in (20, 21):
        step, cache = extend(base.model, torch.tensor([IDS[at : at + 1]]), cache)
    step, cache = extend(base.model, torch.tensor([IDS[22:]]), cache)
    assert np.abs(step[0].numpy() - expected[-1]).max() < 1e-4 * scale
    if shape not in ATTENDING:
        return
    packaged = read_base(targets(shape))
    for field in ("heads", "windows", "rope_of", "tied", "parallel", "score_scale"):
        assert getattr(packaged.architecture, field) == getattr(base.architecture, field)
    assert np.abs(said(packaged.model) - expected).max() < 1e-4 * scale


def test_a_package_that_does_not_say_its_shape_is_refused(targets):
    target = load_target(targets("llama"))
    target.raw["made"].pop("config")
    with pytest.raises(ModelError, match="says nothing of its shape") as caught:
        config_of(target)
    assert "Hugging Face directory" in caught.value.hint


def test_an_evolved_package_is_merged(models, tmp_path):
    v1 = export_onnx(
        models("llama"), tmp_path / "v1.target", role="target", against="numpy"
    )
    base = read_base(v1)
    model = add_lora(base.model, rank=2, anchor_layers=1, seed=1)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all(".layers.1." in n for n in names)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    apart = said(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    v2 = package_adapter(tmp_path / "adapter", v1, tmp_path / "v2.target", version="v2")
    packaged = said(read_base(v2).model)
    assert np.abs(apart - packaged).max() < 0.01 * np.abs(apart).max()
    assert np.abs(packaged - said(read_base(v1).model)).max() > 0.5


@pytest.mark.parametrize("shape", ["gpt_neox", "gemma3", "smollm3"])
def test_an_adapter_begins_at_nothing(models, shape):
    base = read_base(models(shape))
    before = said(base.model)
    model = add_lora(base.model, rank=2, anchor_layers=0, seed=1)
    assert np.array_equal(said(model), before)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_of_all_layers_is_its_base(models, tmp_path, shape):
    base = read_base(models(shape))
    draft = make_draft(base.model, anchor_layers=1, trained_layers=1)
    assert np.array_equal(said(draft), said(base.model))
    trained = {n for n, p in draft.named_parameters() if p.requires_grad}
    assert trained and not [n for n in trained if "layers.0." in n or "embed_" in n]
    save_model(draft, base, tmp_path / "d.hf")
    again = load_checkpoint(tmp_path / "d.hf").architecture
    assert again.windows == base.architecture.windows and again.rope_of == (
        base.architecture.rope_of
    )


@pytest.mark.parametrize("shape", ["gemma3", "smollm3"])
def test_layers_keep_their_kind_when_they_are_cut_out(models, tmp_path, shape):
    base = read_base(models(shape))
    last = cut(base.model, [1])
    assert len(torch_stack(last)[0]) == 1
    save_model(last, base, tmp_path / "d.hf")
    found = load_checkpoint(tmp_path / "d.hf").architecture
    assert found.windows == base.architecture.windows[1:]
    assert (found.rope_of[0] < 0) == (base.architecture.rope_of[1] < 0)


def test_what_is_no_base_is_refused(models, tmp_path, model_copy):
    base = read_base(models("llama"))
    for anchor, trained in ((1, 0), (2, 1), (-1, 1)):
        with pytest.raises(ConfigError, match="does not come out of a base of 2"):
            make_draft(base.model, anchor_layers=anchor, trained_layers=trained)
    with pytest.raises(ConfigError, match="no model directory"):
        read_base(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no target package"):
        read_base(tmp_path / "nowhere.target")
    folder = model_copy()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        read_base(folder)
