"""The draft model on each engine: blocks, rewinds and chunks say what single steps say."""

import dataclasses
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from places import FIXTURES, environment

from draftwire.errors import ConfigError, ModelError
from draftwire.io import version_tuple
from draftwire.packages import NewFile, Parallel, load_draft, write_package
from draftwire.runtime.engines import choice as engine_choice
from draftwire.runtime.engines import draft_model
from draftwire.runtime.engines import litert as litert_engine
from draftwire.runtime.engines import onnx as onnx_engine
from draftwire.runtime.engines.draft_model import DraftModel

TINY, CONCAT, LITERT = (
    FIXTURES / f"tiny{kind}.draft" for kind in ("", "_concat", "_litert")
)
NOISE = 1e-4  # float32 sums in another order
HAS_ORT = importlib.util.find_spec("onnxruntime") is not None
HAS_LITERT = any(map(importlib.util.find_spec, ("ai_edge_litert", "tflite_runtime")))
needs_ort = pytest.mark.skipif(not HAS_ORT, reason="needs onnxruntime")
needs_litert = pytest.mark.skipif(
    not HAS_LITERT,
    reason="neither ai-edge-litert nor tflite-runtime (requirements/litert.txt)",
)
ENGINES = [
    pytest.param(TINY, "fp32", marks=needs_ort, id="gqa"),
    pytest.param(CONCAT, "fp32", marks=needs_ort, id="concat"),
    pytest.param(LITERT, "fp32", marks=needs_litert, id="litert"),
    pytest.param(LITERT, "int8", marks=needs_litert, id="litert-int8"),
]
PATHS = [pytest.param(*one.values[:1], marks=one.marks, id=one.id) for one in ENGINES[:3]]


def tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, 264, count).tolist()


@pytest.fixture
def model(request):
    path, precision = request.param
    return DraftModel.load(path, precision=precision)


every_engine = pytest.mark.parametrize(
    "model",
    [pytest.param(one.values, marks=one.marks, id=one.id) for one in ENGINES],
    indirect=True,
)


def one_by_one(model, sequence):
    model.reset()
    rows = [model.forward([token]).copy() for token in sequence]
    model.reset()
    return rows


@every_engine
def test_blocks_of_any_size_give_the_logits_of_single_steps(model):
    sequence = tokens(150)
    expected = one_by_one(model, sequence)
    # Over the end of LiteRT's short cache (32), with filled blocks and whole ones; and all
    # at once, which is more than a chunk.
    for sizes in ((20, 1, 3, 7, 2, 1, 13, 33, 64, 6), (150,)):
        model.reset()
        done = 0
        for size in sizes:
            logits = model.forward(sequence[done : done + size])
            done += size
            assert model.length == done
            np.testing.assert_allclose(logits, expected[done - 1], atol=NOISE)


@every_engine
def test_any_order_of_blocks_steps_and_rewinds(model):
    rng = np.random.default_rng(5)
    sequence = tokens(160)
    expected = one_by_one(model, sequence)
    for _ in range(60):
        if model.length and rng.random() < 0.4:
            model.rewind(int(rng.integers(0, model.length + 1)))
            astray = tokens(min(5, 160 - model.length), seed=1)
            for token in astray:  # another branch, then back
                model.forward([token])
            model.rewind(model.length - len(astray))
        size = min(int(rng.choice([1, 1, 2, 15, 31, 40])), 160 - model.length)
        if size:
            logits = model.forward(sequence[model.length : model.length + size])
            np.testing.assert_allclose(logits, expected[model.length - 1], atol=NOISE)


@needs_ort
@needs_litert
def test_litert_says_the_tokens_of_onnxruntime():
    ours = DraftModel.load(LITERT, precision="fp32")
    theirs = DraftModel.load(TINY, precision="fp32", engine="onnxruntime")
    for seed in range(3):
        prompt = tokens(40, seed)
        ours.reset()
        theirs.reset()
        mine, other = ours.forward(prompt), theirs.forward(prompt)
        for _ in range(100):
            np.testing.assert_allclose(mine, other, atol=NOISE)
            token = [int(other.argmax())]
            mine, other = ours.forward(token), theirs.forward(token)


def parallel(path, masks=(260, 261, 262), block=4, **settings):
    package = dataclasses.replace(load_draft(path), parallel=Parallel(masks, block))
    return DraftModel.load(package, precision="fp32", **settings)


@pytest.mark.parametrize("path", PATHS[:2])
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


@needs_ort
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


@needs_ort
def test_an_engine_that_is_wrong_behind_a_past_says_one_token(monkeypatch):
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lambda: old_engine("1.19.2"))
    model = parallel(TINY)
    assert model.parallel is None and len(model.ahead([1, 2], 4)) == 1
    assert "says 4 at once on onnxruntime 1.20 or newer" in model.warnings[-1]
    assert parallel(CONCAT).parallel == Parallel((260, 261, 262), 4)


@needs_ort
def test_int8_steps_repeat_exactly():
    sequence = tokens(20)
    first, second = (DraftModel.load(TINY, precision="int8") for _ in range(2))
    for a, b in zip(one_by_one(first, sequence), one_by_one(second, sequence)):
        np.testing.assert_array_equal(a, b)


@every_engine
def test_it_says_what_it_is_and_takes_ids_as_any_sequence(model):
    sequence = tokens(5)
    expected = model.forward(sequence).copy()
    for form in (tuple(sequence), np.array(sequence)):
        model.reset()
        np.testing.assert_array_equal(model.forward(form), expected)
    model.reset()
    engine = model.engine.split()[0]
    assert engine in ("onnxruntime", "ai-edge-litert", "tflite-runtime")
    assert (model.precision in ("fp32", "int8"), model.length) == (True, 0)
    assert model.vocab_size == len(model.forward([1])) == 264


@pytest.mark.parametrize("path", PATHS)
def test_a_full_context_is_refused_and_nothing_is_appended(path):
    model = DraftModel.load(path, precision="fp32", max_context=8)
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


@every_engine
def test_a_wrong_use_is_our_bug(model):
    model.forward([1, 2])
    for bad in ([], [264], [-1], [1, 264], [1, -1]):
        with pytest.raises(ValueError):
            model.forward(bad)
    for bad in (-1, 3):
        with pytest.raises(ValueError):
            model.rewind(bad)
    assert model.length == 2


@needs_ort
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


@pytest.mark.parametrize("path", PATHS)
def test_threads_can_be_measured(path):
    assert DraftModel.load(path, threads="auto", max_context=4).threads >= 1
    assert DraftModel.load(path, threads=2).threads == 2


def old_engine(version):
    """The real onnxruntime under another version."""
    import onnxruntime as ort

    fake = SimpleNamespace(**{k: getattr(ort, k) for k in dir(ort) if k[0] != "_"})
    fake.__version__ = version
    return fake


@needs_ort
@pytest.mark.parametrize("version", ["1.16.3", "1.17.3", "1.18.1"])
def test_engines_that_cannot_run_the_graph_are_refused(monkeypatch, version):
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lambda: old_engine(version))
    with pytest.raises(ModelError, match=f"needs onnxruntime .*this is {version}"):
        DraftModel.load(TINY)
    assert DraftModel.load(CONCAT).engine == f"onnxruntime {version}"


@needs_ort
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


def changed(draft, **values):
    package, engine = load_draft(draft), "litert" if draft == LITERT else "onnxruntime"
    file = dataclasses.replace(package.model_file("fp32", engine=engine), **values)
    return dataclasses.replace(package, files={file.path.name: file})


@needs_ort
def test_a_damaged_graph_is_refused(tmp_path):
    broken = tmp_path / "model.fp32.onnx"
    broken.write_bytes(load_draft(TINY).model_path("fp32").read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot load"):
        DraftModel.load(changed(TINY, path=broken))


@needs_litert
def test_a_file_that_is_no_draft_is_refused(tmp_path):
    whole = load_draft(LITERT).model_file("fp32", engine="litert").path.read_bytes()
    contents = [b"", b"TFL" * 100, b"\x20\0\0\0TFL3" + bytes(100)]
    if importlib.util.find_spec("ai_edge_litert"):  # tflite-runtime does not verify
        contents.append(whole[:4000])
    for content in contents:
        broken = tmp_path / "model.fp32.tflite"
        broken.write_bytes(content)
        with pytest.raises(ModelError, match=r"cannot run|is no \.tflite"):
            DraftModel.load(changed(LITERT, path=broken))


@pytest.mark.parametrize("path", PATHS[::2])
def test_a_graph_of_another_shape_or_form_is_refused(path):
    package = load_draft(path)
    for change in ({"layers": 3}, {"layers": 1}, {"kv_heads": 2}, {"head_dim": 8}):
        shape = dataclasses.replace(package.shape, **change)
        with pytest.raises(ModelError, match="its package says"):
            DraftModel.load(dataclasses.replace(package, shape=shape))
    with pytest.raises(ModelError, match="264 logits, its package says 300"):
        DraftModel.load(dataclasses.replace(package, vocab_size=300))
    with pytest.raises(ModelError, match="'tree'"):
        DraftModel.load(changed(path, graph="tree"))
    if path == LITERT:  # whose caches have one size
        with pytest.raises(ModelError, match="cache of 160 tokens, 200 were asked for"):
            DraftModel.load(dataclasses.replace(package, context=200))


@needs_ort
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


VERSIONS = {"1.19.2": (1, 19, 2), "1.20.1+cu12": (1, 20, 1), "1.24.0rc1": (1, 24, 0)}


@pytest.mark.parametrize("text", [*VERSIONS, "1.x", ""])
def test_versions_are_read(text):
    assert version_tuple(text) == {**VERSIONS, "1.x": (1,), "": ()}[text]


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
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    assert done.returncode == 0


@needs_ort
@needs_litert
def test_the_target_s_text_comes_out_whichever_engine_drafts():
    import draftwire
    from draftwire.bench.child import local_verifier

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
