"""Evolved targets from LoRA adapters."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from draftwire.cli import main
from draftwire.errors import ConfigError, ModelError
from draftwire.export.adapter import package_adapter
from draftwire.export.onnx import export_onnx
from draftwire.packages import load_target
from draftwire.tensors import target_weights, write_tensors

LAST = "model.layers.1.self_attn.q_proj"
FIRST = "model.layers.0.mlp.up_proj"
SHAPES = {LAST: (64, 64), FIRST: (96, 64)}


@pytest.fixture
def base(models, tmp_path):
    how = {"role": "target", "anchor_layers": 1, "against": "numpy"}
    return export_onnx(models("llama"), tmp_path / "v1.target", **how)


def halves(module, rank=3):
    rng = np.random.default_rng(0)
    rows, width = SHAPES[module]
    first = rng.standard_normal((rank, width)).astype(np.float32) * 0.1
    second = rng.standard_normal((rows, rank)).astype(np.float32) * 0.1
    return first, second


@pytest.fixture
def peft(tmp_path):
    """Return a function: a PEFT directory with a change of one module."""

    def make(module=LAST, **config):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        first, second = halves(module)
        prefix = f"base_model.model.{module}."
        save_file(
            {prefix + "lora_A.weight": first, prefix + "lora_B.weight": second},
            folder / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", **config}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 6 / 3**0.5)])
def test_a_peft_adapter_becomes_an_evolved_target(base, peft, tmp_path, rslora, scale):
    folder = peft(use_rslora=rslora)
    out = package_adapter(folder, base, tmp_path / "v2.target", version="v2")
    v1, v2 = load_target(base), load_target(out)
    assert v2.version == "v2"
    assert v2.base is not None and v2.base.id == v1.id
    assert v2.family == v1.family, "the anchor was left alone"
    assert sum(f.bytes for f in v2.files.values()) < 10_000
    before, after = target_weights(v1), target_weights(v2)
    first, second = halves(LAST)
    change = after[LAST + ".weight"] - before[LAST + ".weight"]
    np.testing.assert_allclose(change, scale * second @ first, atol=1e-3)
    for name in before.keys() - {LAST + ".weight"}:
        np.testing.assert_array_equal(before[name], after[name])


def test_an_adapter_of_the_anchor_changes_the_backbone(base, peft, tmp_path):
    out = package_adapter(peft(FIRST), base, tmp_path / "v2.target", version="v2")
    v1, v2 = load_target(base), load_target(out)
    assert v2.family.tokenizer == v1.family.tokenizer
    assert v2.family.backbone != v1.family.backbone


def ours(folder, tensors, scale):
    """Write an adapter as our packages hold it."""
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "adapter.safetensors", tensors, metadata={"scale": scale})
    return folder


def test_an_adapter_of_ours_is_packaged_too(base, tmp_path):
    first, second = halves(LAST)
    tensors = {f"{LAST}.weight.lora_a": first, f"{LAST}.weight.lora_b": second}
    folder, made = ours(tmp_path / "a", tensors, "0.1"), {"steps": 10}
    out = package_adapter(folder, base, tmp_path / "v2.target", version="v2", made=made)
    assert load_target(out).raw["made"]["steps"] == 10
    again = package_adapter(out, base, tmp_path / "v3.target", version="v3")
    assert load_target(again).id == load_target(out).id


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "IA3"}, "IA3 adapter"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q": 2}}, "rank_pattern"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": None}, "lora_alpha = None"),
    ],
)
def test_what_is_more_than_lora_is_refused(base, peft, tmp_path, config, sentence):
    with pytest.raises(ModelError, match=sentence):
        package_adapter(peft(**config), base, tmp_path / "v2.target", version="v2")
    assert not (tmp_path / "v2.target").exists()


def test_what_does_not_fit_is_refused(base, peft, tmp_path):
    out, adapter = tmp_path / "v2.target", tmp_path / "adapter"
    first, second = halves(LAST)
    half = {f"{LAST}.weight.lora_a": first}
    for tensors, sentence in (
        ({}, "changes nothing"),
        ({"no.weight.lora_a": first, "no.weight.lora_b": second}, "the base lacks"),
        (half, "half of a pair"),
        ({**half, f"{LAST}.weight.lora_b": second * 1e9}, "float16"),
    ):
        with pytest.raises(ModelError, match=sentence):
            package_adapter(ours(adapter, tensors, "1.0"), base, out, version="v2")
    (adapter / "adapter.safetensors").unlink()
    folder = peft()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no adapter_model"):
        package_adapter(folder, base, out, version="v2")
    with pytest.raises(ConfigError, match="no adapter at"):
        package_adapter(tmp_path / "nowhere", base, out, version="v2")
    with pytest.raises(ConfigError, match="beside its base"):
        elsewhere = tmp_path / "deep" / "v2.target"
        package_adapter(peft(), base, elsewhere, version="v2")
    with pytest.raises(ConfigError, match=r"called NAME\.target"):
        package_adapter(peft(), base, tmp_path / "v2.draft", version="v2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "v1.target"]


def test_the_command_makes_one(base, peft, tmp_path, capsys):
    words = ["--base", str(base), "--out", str(tmp_path / "v2.target")]
    assert main(["export", "adapter", str(peft()), *words, "--version", "v2"]) == 0
    assert "adapter.safetensors" in capsys.readouterr().out
    assert load_target(tmp_path / "v2.target").version == "v2"
