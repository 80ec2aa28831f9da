"""The onnxruntime backend on the tiny target of the test fixtures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from pieces import assert_ragged

from draftwire.errors import ConfigError, ModelError, RefusedError
from draftwire.packages import NewFile, load_target, write_package
from draftwire.tensors import read_tensors, write_tensors
from draftwire.verifier.backends.base import SlotInput
from draftwire.verifier.backends.loading import Loader
from draftwire.verifier.backends.onnx_target import OnnxTarget, WeightStore

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TINY = FIXTURES / "tiny.target"


@pytest.fixture(scope="module")
def target():
    return OnnxTarget(TINY, slots=6, threads=1)


def whole(target, slot, ids):
    """Logits after every token, read from nothing in one forward."""
    (rows,) = target.forward([SlotInput(slot, 0, np.array(ids), len(ids))])
    return rows


def evolve(folder, name, rank=2, scale=0.5, stem=None):
    """Write a target that changes one matrix of the tiny one, beside a copy of it."""
    base = folder / "tiny.target"
    if not base.exists():
        shutil.copytree(TINY, base)
    loaded = load_target(base)
    weights = read_tensors(base / "weights.safetensors")
    stem = stem or next(n for n in sorted(weights) if "q_proj" in n or "query" in n)
    rng = np.random.default_rng(len(name))
    out, wide = weights[stem].shape
    half = {
        f"{stem}.lora_a": rng.normal(size=(rank, wide)).astype(np.float16),
        f"{stem}.lora_b": rng.normal(size=(out, rank)).astype(np.float16),
    }
    file = folder / "adapter.safetensors"
    write_tensors(file, half, metadata={"scale": str(scale)})
    keys = ("name", "family", "vocab_size", "context", "bos_id", "eos_ids", "shape")
    fields = {key: loaded.raw[key] for key in keys}
    fields.update(
        version=name,
        base={"path": "../tiny.target", "id": loaded.id},
        adapter="adapter.safetensors",
        made={},
    )
    path = folder / f"{name}.target"
    write_package(path, "target", fields, {"adapter.safetensors": NewFile(file)})
    change = (
        scale
        * half[f"{stem}.lora_b"].astype(np.float32)
        @ half[f"{stem}.lora_a"].astype(np.float32)
    )
    return path, stem, weights[stem] + change


def test_a_ragged_batch_equals_single_forwards(target, slots):
    *some, last = slots
    assert_ragged(target, some, lambda ids: whole(target, last, ids), 0, 1e-4)


def test_contexts_far_apart_do_not_share_a_forward(target, slots, monkeypatch):
    monkeypatch.setattr(target, "_padding", 20)
    ids = np.random.default_rng(2).integers(0, target.vocab_size, 60)
    wanted = whole(target, slots[0], ids)
    batch = []
    for slot, start in zip(slots, (50, 3, 48, 5, 20)):
        target.forward([SlotInput(slot, 0, ids[:start], 0)])
        batch.append(SlotInput(slot, start, ids[start : start + 4], 4))
    groups = target.together(list(enumerate(batch)))
    assert [[i for i, _ in g] for g in groups] == [[1, 3], [4], [2, 0]]
    for item, rows in zip(batch, target.forward(batch)):
        assert rows == pytest.approx(wanted[item.start : item.start + 4], abs=1e-4)


def test_slots_run_out_and_come_back_empty(target, slots):
    with pytest.raises(RefusedError, match="all 6 slots"):
        target.allocate()
    whole(target, slots[2], range(20))
    target.release(slots[2])
    assert target.allocate() == slots[2]
    with pytest.raises(ModelError, match="the slot holds 0"):
        target.forward([SlotInput(slots[2], 1, np.array([1]), 1)])


def test_a_context_at_its_end(target, slots):
    ids = np.random.default_rng(3).integers(0, target.vocab_size, target.context)
    target.forward([SlotInput(slots[0], 0, ids[:-3], 0)])
    # the other is wider: padding of the first would stand behind its context
    batch = [SlotInput(slots[0], len(ids) - 3, ids[-3:], 3)]
    batch.append(SlotInput(slots[1], 0, ids[:9], 9))
    rows, _ = target.forward(batch)
    assert rows == pytest.approx(whole(target, slots[2], ids)[-3:], abs=1e-4)
    with pytest.raises(ModelError, match="exceed the context"):
        target.forward([SlotInput(slots[0], len(ids), ids[:1], 1)])


def test_evolved_targets_share_the_unchanged_weights(tmp_path):
    store = WeightStore()
    v2, stem, merged = evolve(tmp_path, "v2")
    v3, _, _ = evolve(tmp_path, "version3")
    base = OnnxTarget(tmp_path / "tiny.target", slots=1, threads=1, store=store)
    second = OnnxTarget(v2, slots=1, threads=1, store=store)
    third = OnnxTarget(v3, slots=1, threads=1, store=store)
    assert (base.version, second.version, third.version)[1:] == ("v2", "version3")
    assert len({base.id, second.id, third.id}) == 3
    for name, weight in base._weights.items():
        assert (second._weights[name] is weight) == (name != stem)
    assert second._weights[stem] == pytest.approx(merged, abs=1e-3)
    ids = list(range(12))
    rows = [whole(t, t.allocate(), ids) for t in (base, second, third)]
    assert abs(rows[0] - rows[1]).max() > 1e-3
    assert abs(rows[1] - rows[2]).max() > 1e-3


def test_versions_beside_one_base_share_its_engine_and_give_the_merged_rows(tmp_path):
    store = WeightStore()
    ids = list(range(12))
    made = {
        name: evolve(tmp_path, name, stem=stem)[0]
        for name, stem in (("v2", None), ("v3", "model.layers.1.mlp.up_proj.weight"))
    }
    base = OnnxTarget(
        tmp_path / "tiny.target", slots=1, threads=1, store=store, beside=True
    )
    before = whole(base, base.allocate(), ids)
    first = base._engine
    for package in made.values():
        own = OnnxTarget(package, slots=1, threads=1)
        version = OnnxTarget(package, slots=1, threads=1, store=store, beside=True)
        assert version._engine is base._engine is not first
        rows = whole(version, version.allocate(), ids)
        assert rows == pytest.approx(whole(own, own.allocate(), ids), abs=1e-4)
        assert abs(rows - before).max() > 1e-3
        base.release(0)
        assert (whole(base, base.allocate(), ids) == before).all()  # to the bit
    exact = OnnxTarget(
        made["v2"], slots=1, threads=1, store=store, beside=True, numerics="exact"
    )
    assert exact._engine is not base._engine
    table, _, _ = evolve(tmp_path, "v4", stem="model.embed_tokens.weight")
    merged = OnnxTarget(table, slots=1, threads=1, store=store, beside=True)
    assert merged._engine is not base._engine  # no linear layer: merged


def test_a_package_for_a_newer_engine_is_refused(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "x.target")
    raw = json.loads((folder / "target.json").read_text())
    files = {}
    for name, entry in raw.pop("files").items():
        keep = {k: v for k, v in entry.items() if k not in ("sha256", "bytes")}
        if name == "model.onnx":
            keep["min_engine"] = "99.0"
        files[name] = NewFile((folder / name).read_bytes(), keep)
    fields = {k: v for k, v in raw.items() if k not in ("format", "id", "exits")}
    write_package(folder, "target", fields, files, replace=True)
    with pytest.raises(ConfigError, match="needs onnxruntime 99.0"):
        OnnxTarget(folder)


def test_the_loader_looks_what_a_path_is(tmp_path):
    assert Loader(slots=3, threads=1)(TINY).slots == 3
    with pytest.raises(ConfigError, match="neither a target package"):
        Loader()(tmp_path)
    with pytest.raises(ConfigError, match="no target at"):
        Loader()(tmp_path / "gone")
    with pytest.raises(ConfigError, match="unknown backend"):
        Loader(backend="cuda")


def test_what_a_slot_shares_is_what_reading_it_would_have_made(target, slots):
    first, second, third = slots[:3]
    ids = [(i * 37) % 251 + 1 for i in range(100)]
    whole(target, first, ids)
    assert target.share(first, second, 60)
    assert not target.share(third, slots[3], 1), "there is nothing to share"
    expected = whole(target, third, [*ids[:60], 7, 8])[60:]
    (rows,) = target.forward([SlotInput(second, 60, np.array([7, 8]), 2)])
    assert np.allclose(rows, expected, atol=1e-5)
    (rows,) = target.forward([SlotInput(first, 60, np.array(ids[60:]), 1)])
    assert np.allclose(rows[0], whole(target, third, ids)[-1], atol=1e-5)
    with pytest.raises(ModelError):  # no more than was shared
        target.forward([SlotInput(second, 63, np.array([1]), 1)])
