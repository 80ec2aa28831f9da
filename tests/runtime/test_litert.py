"""Drafts on LiteRT say what they say on onnxruntime, and keep their cache in place."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from draftwire.errors import ConfigError, ModelError
from draftwire.packages import NewFile, load_draft, write_package
from draftwire.runtime.engines import choice as engine_choice
from draftwire.runtime.engines import litert as litert_engine
from draftwire.runtime.engines.draft_model import DraftModel

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
TINY = FIXTURES / "tiny.draft"
LITERT = FIXTURES / "tiny_litert.draft"
NOISE = 1e-4  # float32 sums in another order


def installed(*modules: str) -> bool:
    return any(importlib.util.find_spec(name) for name in modules)


needs_litert = pytest.mark.skipif(
    not installed("ai_edge_litert", "tflite_runtime"),
    reason="neither ai-edge-litert nor tflite-runtime (requirements/litert.txt)",
)
needs_both = pytest.mark.skipif(
    not (installed("ai_edge_litert", "tflite_runtime") and installed("onnxruntime")),
    reason="needs onnxruntime and LiteRT to compare them",
)


def tokens(count: int, seed: int = 0) -> list:
    return np.random.default_rng(seed).integers(0, 264, count).tolist()


def greedy(model, prompt, count):
    logits = model.forward(prompt)
    found = []
    for _ in range(count):
        found.append(int(logits.argmax()))
        logits = model.forward([found[-1]])
    return found


@pytest.fixture(params=["fp32", "int8"])
def model(request):
    return DraftModel.load(LITERT, precision=request.param)


def one_by_one(model, sequence):
    model.reset()
    rows = [model.forward([token]).copy() for token in sequence]
    model.reset()
    return rows


@needs_both
def test_the_same_tokens_as_onnxruntime():
    ours = DraftModel.load(LITERT, precision="fp32")
    theirs = DraftModel.load(TINY, precision="fp32", engine="onnxruntime")
    for seed in range(3):
        prompt = tokens(40, seed)
        ours.reset()
        theirs.reset()
        np.testing.assert_allclose(ours.forward(prompt), theirs.forward(prompt), atol=NOISE)
        assert greedy(ours, [7], 100) == greedy(theirs, [7], 100)


@needs_litert
def test_blocks_of_any_size_give_the_logits_of_single_steps(model):
    sequence = tokens(150)
    expected = one_by_one(model, sequence)
    done = 0
    # Over the end of the short cache (32), with filled blocks and whole ones.
    for size in (20, 1, 3, 7, 2, 1, 13, 33, 64, 6):
        logits = model.forward(sequence[done : done + size])
        done += size
        np.testing.assert_allclose(logits, expected[done - 1], atol=NOISE)
    assert model.length == 150


@needs_litert
def test_any_order_of_blocks_steps_and_rewinds(model):
    rng = np.random.default_rng(5)
    sequence = tokens(160)
    expected = one_by_one(model, sequence)
    for _ in range(60):
        if model.length and rng.random() < 0.4:
            model.rewind(int(rng.integers(0, model.length + 1)))
        size = int(rng.choice([1, 1, 2, 15, 31, 40]))
        size = min(size, 160 - model.length)
        if not size:
            continue
        logits = model.forward(sequence[model.length : model.length + size])
        np.testing.assert_allclose(logits, expected[model.length - 1], atol=NOISE)


@needs_litert
def test_the_cache_is_the_interpreters_own_memory():
    engine = DraftModel.load(LITERT)._engine
    assert engine.in_place and engine.warnings == ()
    for one in (*engine._steps, engine._prefill):
        for cache in one.caches:
            assert not cache.flags.owndata


@needs_litert
@pytest.mark.parametrize("reason", ["hidden", "moved"])
def test_an_interpreter_that_hides_or_moves_its_tensors_is_copied_from(monkeypatch, reason):
    sequence = tokens(50)
    expected = one_by_one(DraftModel.load(LITERT, precision="fp32"), sequence)

    def refuse(*_):
        if reason == "hidden":
            raise AttributeError("no such attribute: tensor")
        return False

    place = "_in_place" if reason == "hidden" else "_caches_stay"
    monkeypatch.setattr(litert_engine, place, refuse)
    model = DraftModel.load(LITERT, precision="fp32")
    assert not model._engine.in_place
    assert "copies the KV cache" in model.warnings[0]
    for i, token in enumerate(sequence):
        np.testing.assert_allclose(model.forward([token]), expected[i], atol=NOISE)
    model.rewind(10)
    np.testing.assert_allclose(model.forward(sequence[10:]), expected[-1], atol=NOISE)


@needs_litert
def test_it_says_what_it_is():
    model = DraftModel.load(LITERT, threads=2)
    assert model.engine.split()[0] in ("ai-edge-litert", "tflite-runtime")
    assert (model.precision, model.threads, model.multi_token) == ("int8", 2, True)
    assert DraftModel.load(LITERT, threads="auto", max_context=4).threads >= 1


@needs_litert
def test_a_full_context_is_refused():
    model = DraftModel.load(LITERT)
    model.forward(tokens(160))
    with pytest.raises(ConfigError, match="context is full"):
        model.forward([1])


def changed(**values):
    package = load_draft(LITERT)
    file = dataclasses.replace(package.model_file("fp32", engine="litert"), **values)
    return dataclasses.replace(package, files={file.path.name: file})


@needs_litert
def test_a_file_that_is_no_draft_is_refused(tmp_path):
    whole = load_draft(LITERT).model_file("fp32", engine="litert").path.read_bytes()
    contents = [b"", b"TFL" * 100, b"\x20\0\0\0TFL3" + bytes(100)]
    if installed("ai_edge_litert"):  # tflite-runtime does not verify what it opens
        contents.append(whole[:4000])
    for content in contents:
        broken = tmp_path / "model.fp32.tflite"
        broken.write_bytes(content)
        with pytest.raises(ModelError, match=r"cannot run|is no \.tflite"):
            DraftModel.load(changed(path=broken))
    with pytest.raises(ModelError, match="'tree'"):
        DraftModel.load(changed(graph="tree"))


@needs_litert
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layers": 3}, "4 cache inputs, its package says 3 layers"),
        ({"kv_heads": 2}, r"\(1, 16\), its package says \(2, 16\)"),
        ({"head_dim": 8}, r"its package says \(1, 8\)"),
    ],
)
def test_a_file_of_another_shape_is_refused(change, complaint):
    package = load_draft(LITERT)
    shape = dataclasses.replace(package.shape, **change)
    with pytest.raises(ModelError, match=complaint):
        DraftModel.load(dataclasses.replace(package, shape=shape))
    package = dataclasses.replace(package, vocab_size=300)
    with pytest.raises(ModelError, match="264 logits, its package says 300"):
        DraftModel.load(package)
    package = dataclasses.replace(load_draft(LITERT), context=200)
    with pytest.raises(ModelError, match="cache of 160 tokens, 200 were asked for"):
        DraftModel.load(package)


@pytest.fixture
def both(tmp_path):
    """A package that has a file for each engine; int8 for LiteRT alone."""
    onnx, tflite = load_draft(TINY), load_draft(LITERT)
    files = {"tokenizer.json": NewFile(onnx.tokenizer_path)}
    for package, name in (
        (onnx, "model.fp32.onnx"),
        (tflite, "model.fp32.tflite"),
        (tflite, "model.int8.tflite"),
    ):
        entry = dict(package.files[name].details)
        del entry["sha256"], entry["bytes"]
        files[name] = NewFile(package.files[name].path, entry)
    fields = {k: v for k, v in onnx.raw.items() if k not in ("format", "id", "files")}
    write_package(tmp_path / "both.draft", "draft", fields, files)
    return load_draft(tmp_path / "both.draft")


@pytest.mark.parametrize(
    ("missing", "precision", "engine", "expected"),
    [
        ((), None, None, ("onnxruntime", "fp32")),
        ((), "int8", None, ("litert", "int8")),
        ((), None, "litert", ("litert", "int8")),
        (("onnxruntime",), None, None, ("litert", "int8")),
        (("onnxruntime",), "fp32", None, ("litert", "fp32")),
        (("litert",), "fp32", None, ("onnxruntime", "fp32")),
    ],
)
def test_the_engine_is_what_is_installed_and_has_a_file(
    both, monkeypatch, missing, precision, engine, expected
):
    monkeypatch.setattr(engine_choice, "importable", lambda name: name not in missing)
    name, file = engine_choice.choose_engine(both, precision, engine)
    assert (name, file.precision) == expected
    assert file.engine == name


def test_no_engine_says_what_to_install(both, monkeypatch):
    for module in ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", None)
    with pytest.raises(
        ConfigError, match="onnxruntime or litert.* not installed"
    ) as caught:
        DraftModel.load(both)
    assert "draftwire[ort]" in caught.value.hint
    assert "draftwire[tflite]" in caught.value.hint
    with pytest.raises(ConfigError, match="needs LiteRT") as caught:
        DraftModel.load(both, engine="litert")
    assert "draftwire[tflite]" in caught.value.hint
    with pytest.raises(ConfigError, match="int3"):
        DraftModel.load(both, precision="int3")


def test_the_runtime_imports_no_engine():
    code = (
        "import sys, draftwire.runtime.engines.draft_model\n"
        "import draftwire.runtime.engines.litert\n"
        "bad = {'onnxruntime', 'ai_edge_litert', 'tflite_runtime'} & set(sys.modules)\n"
        "sys.exit(' '.join(bad) or 0)"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=path, check=False)
    assert done.returncode == 0


@needs_both
def test_the_target_s_text_comes_out_whichever_engine_drafts():
    import draftwire
    from draftwire.cli._local_verifier import local_verifier

    found = {}
    with local_verifier([FIXTURES / "tiny.target"]) as (url, token):
        for draft in (TINY, LITERT):
            with draftwire.connect(url, draft=draft, token=token) as session:
                list(session.generate("the robot and", max_new_tokens=40))
                found[draft.name] = session.report
    ours, theirs = found["tiny_litert.draft"], found["tiny.draft"]
    assert ours["token_ids"] == theirs["token_ids"]
    assert ours["draft"]["engine"].split()[0] in ("ai-edge-litert", "tflite-runtime")
    assert ours["accepted"] > 0 and ours["warnings"] == theirs["warnings"]
