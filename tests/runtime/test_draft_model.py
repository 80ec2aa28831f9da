"""The draft model: blocks, rewinds and chunks give what single steps give."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")

from draftwire.errors import ConfigError, ModelError  # noqa: E402
from draftwire.io import version_tuple  # noqa: E402
from draftwire.packages import Parallel, load_draft  # noqa: E402
from draftwire.runtime.engines import draft_model  # noqa: E402
from draftwire.runtime.engines import onnx as onnx_engine  # noqa: E402
from draftwire.runtime.engines.draft_model import DraftModel  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TINY = FIXTURES / "tiny.draft"
CONCAT = FIXTURES / "tiny_concat.draft"
NOISE = 1e-4  # float32 sums in another order


def tokens(count: int, seed: int = 0) -> list:
    return np.random.default_rng(seed).integers(0, 264, count).tolist()


@pytest.fixture(params=[TINY, CONCAT], ids=["gqa", "concat"])
def model(request):
    return DraftModel.load(request.param, precision="fp32")


def one_by_one(model, sequence):
    model.reset()
    rows = [model.forward([token]).copy() for token in sequence]
    model.reset()
    return rows


def test_blocks_give_the_logits_of_single_steps(model):
    sequence = tokens(150)
    expected = one_by_one(model, sequence)
    done = 0
    for size in (40, 1, 3, 7, 2, 1, 16, 17, 60, 3):
        logits = model.forward(sequence[done : done + size])
        done += size
        assert model.length == done
        np.testing.assert_allclose(logits, expected[done - 1], atol=NOISE)


def test_a_prompt_longer_than_a_chunk(model):
    sequence = tokens(150)
    expected = one_by_one(model, sequence)
    np.testing.assert_allclose(model.forward(sequence), expected[-1], atol=NOISE)


def test_a_rewind_forgets_what_came_after(model):
    sequence = tokens(60)
    expected = one_by_one(model, sequence)
    for kept in (0, 1, 30, 59):
        model.reset()
        model.forward(sequence[:30])
        for token in tokens(30, seed=1):  # another branch, then back
            model.forward([token])
        model.rewind(min(kept, 30))
        rest = sequence[min(kept, 30) :]
        np.testing.assert_allclose(model.forward(rest), expected[-1], atol=NOISE)
        assert model.length == 60


def parallel(path, masks=(260, 261, 262), block=4, **settings):
    package = dataclasses.replace(load_draft(path), parallel=Parallel(masks, block))
    return DraftModel.load(package, precision="fp32", **settings)


@pytest.mark.parametrize("path", [TINY, CONCAT], ids=["gqa", "concat"])
def test_rows_behind_masks_are_those_of_single_steps(path):
    model, plain = parallel(path), DraftModel.load(path, precision="fp32")
    if model.parallel is None:
        pytest.skip(model.warnings[-1])
    sequence = tokens(140)
    for base, new, count in ((0, 9, 4), (9, 1, 4), (10, 4, 2), (10, 1, 9), (0, 135, 4)):
        model.rewind(min(base, model.length))
        model.forward(sequence[model.length : base] or [1])
        model.rewind(base)
        rows = model.ahead(sequence[base : base + new], count).copy()
        masks = [260, 261, 262][: count - 1]
        right = one_by_one(plain, [*sequence[: base + new], *masks])[base + new - 1 :]
        np.testing.assert_allclose(rows, right, atol=NOISE)
        assert model.length == base + new


def test_masks_keep_to_the_context():
    model = parallel(TINY, max_context=12)
    if model.parallel is None:
        pytest.skip(model.warnings[-1])
    assert [len(model.ahead(tokens(n), 4)) for n in (8, 2, 1, 1)] == [4, 3, 2, 1]
    with pytest.raises(ConfigError, match="context is full"):
        model.ahead([1], 4)
    model.rewind(3)
    with pytest.raises(ValueError):
        model.ahead([264], 4)
    with pytest.raises(ValueError):
        model.ahead([], 4)
    assert model.length == 3


def test_an_engine_that_is_wrong_behind_a_past_says_one_token(monkeypatch):
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lambda: old_engine("1.19.2"))
    model = parallel(TINY)
    assert model.parallel is None and len(model.ahead([1, 2], 4)) == 1
    assert "says 4 at once on onnxruntime 1.20 or newer" in model.warnings[-1]
    assert parallel(CONCAT).parallel == Parallel((260, 261, 262), 4)


def test_int8_steps_repeat_exactly():
    sequence = tokens(20)
    first, second = (DraftModel.load(TINY, precision="int8") for _ in range(2))
    for a, b in zip(one_by_one(first, sequence), one_by_one(second, sequence)):
        np.testing.assert_array_equal(a, b)


def test_ids_may_come_as_any_sequence(model):
    sequence = tokens(5)
    expected = model.forward(sequence).copy()
    for form in (tuple(sequence), np.array(sequence)):
        model.reset()
        np.testing.assert_array_equal(model.forward(form), expected)


def test_it_says_what_it_is(model):
    assert model.engine == f"onnxruntime {ort.__version__}"
    assert (model.precision, model.vocab_size, model.length) == ("fp32", 264, 0)


def test_a_full_context_is_refused_and_nothing_is_appended():
    model = DraftModel.load(TINY, precision="fp32", max_context=8)
    model.forward(tokens(7))
    with pytest.raises(ConfigError, match="7 tokens held and 2 more asked, room for 8"):
        model.forward([1, 2])
    assert model.length == 7
    model.forward([1])
    with pytest.raises(ConfigError, match="context is full"):
        model.forward([1])
    model.rewind(3)
    model.forward([1, 2])
    assert model.length == 5


def test_a_wrong_use_is_our_bug(model):
    model.forward([1, 2])
    for bad in ([], [264], [-1], [1, 264], [1, -1]):
        with pytest.raises(ValueError):
            model.forward(bad)
    for bad in (-1, 3):
        with pytest.raises(ValueError):
            model.rewind(bad)
    assert model.length == 2


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"precision": "int3"}, "int3"),
        ({"engine": "abacus"}, "no engine 'abacus'"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": "many"}, "threads is 'many'"),
        ({"max_context": 161}, "161 tokens was asked, the draft has 160"),
        ({"max_context": 0}, "0 tokens was asked"),
    ],
)
def test_a_wrong_setting_is_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DraftModel.load(TINY, **settings)


def test_threads_can_be_measured():
    assert DraftModel.load(TINY, threads="auto", max_context=4).threads >= 1
    assert DraftModel.load(TINY, threads=2).threads == 2


def old_engine(version):
    """The real onnxruntime under another version."""
    fake = SimpleNamespace(**{k: getattr(ort, k) for k in dir(ort) if k[0] != "_"})
    fake.__version__ = version
    return fake


@pytest.mark.parametrize("version", ["1.16.3", "1.17.3", "1.18.1"])
def test_engines_that_cannot_run_the_graph_are_refused(monkeypatch, version):
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lambda: old_engine(version))
    with pytest.raises(ModelError, match=f"needs onnxruntime .*this is {version}"):
        DraftModel.load(TINY)
    assert DraftModel.load(CONCAT).engine == f"onnxruntime {version}"


@pytest.mark.parametrize(
    ("version", "right"), [("1.19.2", False), ("1.20.0", True), ("1.31.1", True)]
)
def test_several_tokens_at_once_only_where_the_engine_is_right(monkeypatch, version, right):
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lambda: old_engine(version))
    model = DraftModel.load(TINY, precision="fp32")
    assert model.multi_token is right
    if not right:
        steps = []
        step = model._engine.step
        model._engine.step = lambda token, past: steps.append(past) or step(token, past)
        sequence = tokens(20)
        model.forward(sequence[:10])
        assert steps == []  # without a past a block is right everywhere
        model.forward(sequence[10:13])
        assert steps == [10, 11, 12]


def test_a_missing_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxruntime") as caught:
        DraftModel.load(TINY)
    assert "draftwire[ort]" in caught.value.hint


def test_a_damaged_graph_is_refused(tmp_path):
    package = load_draft(TINY)
    broken = tmp_path / "model.fp32.onnx"
    broken.write_bytes(package.model_path("fp32").read_bytes()[:5000])
    file = dataclasses.replace(package.model_file("fp32"), path=broken)
    package = dataclasses.replace(package, files={file.path.name: file})
    with pytest.raises(ModelError, match="cannot load"):
        DraftModel.load(package)


@pytest.mark.parametrize(
    "change", [{"layers": 3}, {"layers": 1}, {"kv_heads": 2}, {"head_dim": 8}]
)
def test_a_graph_of_another_shape_is_refused(change):
    package = load_draft(TINY)
    shape = dataclasses.replace(package.shape, **change)
    with pytest.raises(ModelError, match="its package says"):
        DraftModel.load(dataclasses.replace(package, shape=shape))


def test_another_vocabulary_is_refused():
    package = dataclasses.replace(load_draft(TINY), vocab_size=300)
    with pytest.raises(ModelError, match="264 logits, its package says 300"):
        DraftModel.load(package)


def test_an_unknown_form_of_graph_is_refused():
    package = load_draft(TINY)
    file = dataclasses.replace(package.model_file("fp32"), graph="tree")
    package = dataclasses.replace(package, files={file.path.name: file})
    with pytest.raises(ModelError, match="'tree'"):
        DraftModel.load(package)


@pytest.mark.parametrize("logits", [[0.0, np.nan], [np.inf, 1.0], [0.0, 0.0]])
def test_logits_that_are_no_numbers_are_found_at_load(monkeypatch, logits):
    class Broken:
        name, multi_token = "broken 1.0", True

        def step(self, token, past):
            return np.array(logits, np.float32)

    monkeypatch.setattr(onnx_engine, "open_engine", lambda *_, **__: Broken())
    with pytest.raises(ModelError, match="not usable numbers"):
        DraftModel.load(TINY)


def test_measuring_threads_prefers_one_without_a_clear_gain(monkeypatch):
    times = {1: 1.0, 2: 0.9, 4: 0.5}
    monkeypatch.setattr(draft_model, "_median_step_s", lambda engine, _: times[engine])
    monkeypatch.setattr(draft_model.os, "sched_getaffinity", lambda _: range(2))
    assert draft_model._measure_threads(lambda count: count, 100)[0] == 1
    monkeypatch.setattr(draft_model.os, "sched_getaffinity", lambda _: range(4))
    assert draft_model._measure_threads(lambda count: count, 100)[0] == 4


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1.19.2", (1, 19, 2)),
        ("1.20.1+cu12", (1, 20, 1)),
        ("1.24.0rc1", (1, 24, 0)),
        ("1.x", (1,)),
        ("", ()),
    ],
)
def test_versions_are_read(text, numbers):
    assert version_tuple(text) == numbers
