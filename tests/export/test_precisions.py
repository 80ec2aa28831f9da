"""What rounding leaves of a draft, and which file a device gets."""

import numpy as np
import onnx
import pytest

from draftwire.cli import main
from draftwire.errors import ModelError
from draftwire.export.onnx import export_onnx
from draftwire.export.precision import parity
from draftwire.export.precision.gate import gate
from draftwire.export.precision.quantise import PRECISIONS
from draftwire.export.precision.runners import DraftRunner, Reader
from draftwire.export.sources.checkpoint import load_checkpoint
from draftwire.packages import load_draft
from draftwire.runtime.engines.draft_model import DraftModel

IDS = list(range(5, 45))


def drafted(folder, place, **how):
    """Export and load a draft; random weights are the worst case for rounding."""
    return load_draft(
        export_onnx(folder, place / "a.draft", **{"min_agreement": 0.3, **how})
    )


def test_a_draft_in_three_precisions(models, tmp_path, torch_logits):
    folder = models("llama")
    named = {"family_name": "tiny family", "anchor_layers": 1}
    package = drafted(folder, tmp_path, precision=PRECISIONS, **named)
    assert package.family.name == "tiny family"
    assert package.family.backbone is not None
    assert (package.vocab_size, package.context) == (320, 160)
    assert (package.bos_id, package.eos_ids) == (None, (0,))
    assert package.shape.kv_heads == 2
    assert set(package.precisions) == set(PRECISIONS)
    assert package.model_file().precision == "int8"
    assert package.raw["made"]["gate"]["tokens"] > 1000
    expected = torch_logits(folder, IDS)
    architecture = load_checkpoint(folder).architecture
    scale = np.abs(expected).max()
    shares = {"fp32": 1e-4, "int8": 0.1, "int8-split": 0.1, "int8-kv8": 0.1, "int4": 0.8}
    for precision, share in shares.items():
        file = package.model_file(precision)
        assert (file.engine, file.graph) == ("onnxruntime", "gqa")
        near = file.details["parity"]
        if precision == "fp32":
            assert near["tokens"] > 100
        else:
            assert near["tokens"] > 1000 and set(near["by_chunk"]) == {"1", "64"}
        runner = DraftRunner(str(file.path), architecture)
        found = runner.forward(IDS, rows=len(IDS))
        assert np.abs(found - expected).max() < share * scale
    sizes = [package.model_file(p).bytes for p in ("fp32", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.draft"]


def test_a_precision_that_fails_does_not_take_the_others_along(
    models, tmp_path, capsys, monkeypatch
):
    for precision, least in (("int8", 0.3), ("int4", 1.0)):
        monkeypatch.setitem(parity.LIMITS, precision, parity.Limit(None, least))
    out = tmp_path / "a.draft"
    words = ["export", "onnx", str(models("llama")), "--out", str(out)]
    assert main([*words, "--precision", "int8,int4"]) == 0
    assert load_draft(out).precisions == ("int8",)
    assert "int4" in load_draft(out).raw["made"]["refused"]
    assert "int4 was left out: model.int4.onnx picks" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_tied_head_is_stored_once(precision, models, tmp_path):
    package = drafted(models("qwen2"), tmp_path, precision=precision, against="numpy")
    graph = onnx.load(str(package.model_path(precision)), load_external_data=False).graph
    places = {}
    for tensor in graph.initializer:
        if int(np.prod(tensor.dims)) == 320 * 64:  # the embedding, and nothing else
            where = {entry.key: entry.value for entry in tensor.external_data}
            places[tensor.name] = where.get("offset")
    if precision == "fp32":
        assert list(places) == ["embedding"]
    else:
        assert len(places) == 2 and len({*places.values()} - {None}) == 1


@pytest.mark.parametrize("shape", ["gemma2", "gpt_neox", "qwen3", "lfm2"])
def test_a_cache_in_bytes_says_what_a_float_one_says(shape, models, tmp_path, torch_logits):
    folder = models(shape)
    how = {"precision": ["int8", "int8-kv8"], "context": 96, "min_agreement": 0.5}
    package = drafted(folder, tmp_path, **how)
    expected = torch_logits(folder, IDS)[-1]
    found, memory = {}, {}
    for precision in package.precisions:
        model = DraftModel.load(package, precision=precision)
        model.forward(IDS[:30])
        model.forward(list(range(50, 57)))  # rejected
        model.rewind(30)
        for token in IDS[30:]:
            logits = model.forward([token])
        found[precision] = np.abs(logits - expected).max()
        memory[precision] = sum(c.nbytes for c in model._engine.caches.values())
    assert found["int8-kv8"] < found["int8"] + 0.05 * np.abs(expected).max()
    if shape != "lfm2":  # what it convolves stays as it is
        assert memory["int8-kv8"] * 4 == memory["int8"]


@pytest.mark.parametrize("precision", ["int8", "int8-split", "int8-kv8", "int4"])
def test_what_a_rounded_draft_says_does_not_depend_on_the_step(precision, models, tmp_path):
    folder = models("llama_tied_biased")
    package = drafted(folder, tmp_path, precision=precision, min_agreement=0.0)
    path = str(package.model_path(precision))
    runner = DraftRunner(path, load_checkpoint(folder).architecture)
    whole = runner.forward(IDS, rows=len(IDS))
    runner.rewind(0)
    single = np.concatenate([runner.forward([token]) for token in IDS])
    assert np.abs(whole - single).max() < 0.01 * np.abs(whole).max()


class Said(Reader):
    """Gives rows of a table, others where tokens come one by one."""

    def __init__(self, many, single):
        self.many, self.single = many, single

    def forward(self, ids, *, rows=1):
        at, self.length = self.length, self.length + len(ids)
        table = self.single if len(ids) == 1 else self.many
        return table[at : self.length][-rows:]


def test_the_gate_takes_the_worse_way_to_read():
    right = 3 * np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 2]
    single = right.copy()
    single[6] = [0, 9, 0, 0]  # which the second text does not reach
    texts = [[0] * 8, [0] * 4]
    found = gate(Said(right, right), Said(right, single), texts, "the whole")
    assert found.by_chunk == {"64": 1.0, "1": round(11 / 12, 4)}
    assert found.agreement == pytest.approx(11 / 12) and found.kl > 0
    assert (found.tokens, found.max_difference, found.max_logit) == (12, 9.0, 3.0)


def test_an_old_onnxruntime_gets_the_file_that_it_runs(models, tmp_path, monkeypatch):
    import onnxruntime

    from draftwire.runtime.engines.choice import choose_engine

    how = {"precision": ["int8", "int8-split"], "against": "numpy"}
    package = drafted(models("llama"), tmp_path, **how)
    assert choose_engine(package)[1].precision == "int8"
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    with pytest.raises(ModelError, match=r"needs onnxruntime 1\.27 or newer, this is 1.19"):
        export_onnx(models("llama"), tmp_path / "b.draft", precision="int8-kv8")
    assert choose_engine(package)[1].precision == "int8-split"
    assert choose_engine(package, engine="onnxruntime")[1].precision == "int8-split"
    assert choose_engine(package, "int8")[1].precision == "int8"
