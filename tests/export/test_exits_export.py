"""Exits of a target: the graph in parts, training, thresholds, packages."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from places import FIXTURES, MODELS

from draftwire.cli import main
from draftwire.errors import ConfigError, ModelError
from draftwire.export.adapter import package_adapter
from draftwire.export.exits.heads import (
    ExitHead,
    Observed,
    Studied,
    calibrate,
    judge,
    observe,
)
from draftwire.export.exits.make import (
    Text,
    default_layers,
    export_exits,
    in_parts,
    whole_graph,
    windows,
)
from draftwire.export.graphs.parts import exit_tensors, head_of, split_target_graph
from draftwire.export.precision.runners import session
from draftwire.export.settings import ExitSettings
from draftwire.export.training.base import model_of
from draftwire.packages import load_target
from draftwire.tensors import read_tensors, target_weights, write_tensors

TINY = FIXTURES / "tiny.target"
QUICK = ExitSettings(rank=4, agreement=0.2, tokens=4096)


def quiet(line):
    pass


def studied(package):
    known = {name: getattr(package, name) for name in ("vocab_size", "context", "bos_id")}
    return Studied(model_of(package), **known)


@pytest.fixture(scope="module")
def texts():
    """Two texts of the tiny target's ids: one repeats itself, one does not."""
    rng = np.random.default_rng(0)
    twice = np.tile(rng.integers(0, 264, 40), 60)
    noise = rng.integers(0, 264, 2400)
    return [Text("twice", twice[:1600], twice), Text("noise", noise[:1600], noise)]


@pytest.fixture
def bare(tmp_path):
    """A copy of the tiny target without its exits."""
    copy = Path(shutil.copytree(TINY, tmp_path / "tiny.target"))
    raw = json.loads((copy / "target.json").read_text())
    for name in raw.pop("exits")["files"]:
        (copy / name).unlink()
    (copy / "target.json").write_text(json.dumps(raw))
    return copy


@pytest.mark.parametrize("shape", ["llama_tied_biased", "gpt_neox", "gpt_neox_sequential"])
@pytest.mark.parametrize(("rows", "past", "steps"), [(1, 0, 7), (3, 19, 4)])
def test_the_parts_of_any_shape_say_what_the_whole_says(targets, shape, rows, past, steps):
    package = load_target(targets(shape))
    graph = whole_graph(package)
    graphs = split_target_graph(graph, [1], rank=4)
    rng = np.random.default_rng(0)
    weights = dict(target_weights(package))
    for name, size in exit_tensors(head_of(graph), 0, 4).items():
        weights[name] = rng.normal(size=size).astype(np.float32)
    whole = session(graph, weights=weights)
    feeds = {
        "input_ids": rng.integers(0, 300, (rows, steps)),
        "past_lens": rng.integers(0, past + 1, rows),
        "rows": np.array([0, rows * steps - 1, 2]),
    }
    for info in whole.get_inputs():
        if info.name.startswith("past."):
            size = (rows, info.shape[1], past, info.shape[3])
            feeds[info.name] = rng.normal(size=size).astype(np.float32)
    found = in_parts([session(one, weights=weights) for one in graphs], feeds)
    for info, result in zip(whole.get_outputs(), whole.run(None, feeds), strict=True):
        assert found[info.name] == pytest.approx(result, abs=1e-5)
    assert found["exit.logits"].shape == found["logits"].shape
    stored = {t.name for g in graphs for t in g.graph.initializer if t.data_location == 1}
    assert stored == set(weights)


@pytest.mark.parametrize("layers", [[], [0], [2], [1, 1]])
def test_there_is_no_exit_outside_the_stack(layers):
    model = onnx.load(str(TINY / "model.onnx"), load_external_data=False)
    with pytest.raises(ValueError, match="exits after layers"):
        split_target_graph(model, layers, rank=4)


def test_a_graph_of_another_make_is_refused():
    model = onnx.load(str(TINY / "part1.onnx"), load_external_data=False)
    with pytest.raises(ModelError, match="cannot be cut into parts"):
        split_target_graph(model, [1], rank=4)


def test_exits_are_added_and_the_id_stays(bare, texts):
    before = load_target(bare)
    lines = []
    out = export_exits(bare, texts=texts, settings=QUICK, say=lines.append)
    after = load_target(out)
    assert out == bare and before.exits is None
    assert after.id == before.id and after.files.keys() == before.files.keys()
    (found,) = after.exits.exits
    assert found.layer == 1 and found.agreement == 0.2 and after.exits.rank == 4
    assert any("step" in line for line in lines)
    tensors = read_tensors(after.exits.tensors.path)
    assert {n: t.shape for n, t in tensors.items()} == {
        "exit.0.norm.weight": (32,),
        "exit.0.down.weight": (4, 32),
        "exit.0.up.weight": (32, 4),
    }
    assert np.abs(tensors["exit.0.up.weight"]).max() > 0  # it has learned something
    with pytest.raises(ConfigError, match="has exits already"):
        export_exits(bare, texts=texts, settings=QUICK, say=quiet)


def test_the_same_seed_gives_the_same_exits(bare, texts, tmp_path):
    first, again = (
        export_exits(bare, texts=texts, settings=QUICK, out=tmp_path / name, say=quiet)
        for name in ("a.target", "b.target")
    )
    for file in sorted(p.name for p in first.iterdir()):
        assert (first / file).read_bytes() == (again / file).read_bytes(), file


def test_another_targets_exits_are_calibrated_anew(bare, texts):
    export_exits(
        bare, texts=texts[::-1], reuse=TINY, settings=ExitSettings(agreement=0.2), say=quiet
    )
    ours, theirs = load_target(bare).exits, load_target(TINY).exits
    assert ours.tensors.sha256 == theirs.tensors.sha256 and ours.rank == 8
    assert ours.exits[0].threshold != theirs.exits[0].threshold
    raw = load_target(bare).raw["exits"]["made"]
    assert raw["reused"] == "tiny" and raw["tokens"] == 0


def test_an_evolved_target_beside_its_base_gets_its_own(bare, texts):
    rng = np.random.default_rng(3)
    name = "model.layers.1.self_attn.o_proj.weight"
    halves = {
        name + ".lora_a": rng.normal(size=(2, 32)).astype(np.float32),
        name + ".lora_b": rng.normal(size=(32, 2)).astype(np.float32),
    }
    adapter = bare.parent / "adapter.safetensors"
    write_tensors(adapter, halves, metadata={"scale": "0.3"})
    v2 = package_adapter(bare.parent, bare, bare.parent / "v2.target", version="v2")
    export_exits(bare, texts=texts, settings=QUICK, say=quiet)
    assert load_target(v2).exits is None  # not inherited, and the base's id is the same
    export_exits(v2, texts=texts, settings=QUICK, say=quiet)
    own, base = load_target(v2).exits, load_target(bare).exits
    assert own.tensors.sha256 != base.tensors.sha256
    with pytest.raises(ConfigError, match="beside its base"):
        export_exits(v2, out=bare.parent / "deep" / "v2.target", settings=QUICK)


def test_the_target_writes_its_own_text(bare):
    model = studied(load_target(bare))
    first, again = model.sample(4, 20, 7), model.sample(4, 20, 7)
    assert (first == again).all() and first.shape == (4, 20)
    assert (first[:, 0] == load_target(bare).bos_id).all()
    assert len(np.unique(first)) > 5 and (model.sample(4, 20, 8) != first).any()


# ---- thresholds


def observed(sure, right):
    return Observed(np.array(sure, np.float32), np.array(right, bool))


def test_a_threshold_is_the_lowest_that_keeps_the_agreement():
    one = observed([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 1, 0, 0])
    assert calibrate([one], 0.75) == pytest.approx(0.6, abs=1e-4)
    assert calibrate([one], 0.9) == pytest.approx(0.7, abs=1e-4)
    assert judge([one], calibrate([one], 0.9)) == (1.0, pytest.approx(0.6))
    assert calibrate([observed([0.9, 0.8], [0, 0])], 0.5) is None
    assert judge([one], 0.95) == (None, 0.0)


def test_each_kind_of_text_counts_the_same():
    easy = observed(np.linspace(0.5, 1, 1000), np.ones(1000))
    hard = observed(np.linspace(0.5, 1, 10), np.zeros(10))
    assert judge([easy, hard], 0.5) == (0.5, 1.0)
    threshold = calibrate([easy, hard], 0.6)
    assert threshold is None or judge([easy, hard], threshold)[0] >= 0.6


def test_a_calibrated_exit_keeps_its_word_on_other_text():
    rng = np.random.default_rng(0)

    def text(n):
        sure = rng.random(n)
        return observed(sure, rng.random(n) < sure)

    for wanted in (0.7, 0.9):
        threshold = calibrate([text(20_000), text(5_000)], wanted)
        found, _ = judge([text(20_000), text(20_000)], threshold)
        assert abs(found - wanted) < 0.02


def test_what_calibrates_does_not_measure(texts):
    calibrating, measuring = windows(texts, 100, 0), windows(texts, 100, 1)
    for text, one, other in zip(texts, calibrating, measuring, strict=True):
        joined = np.concatenate([one.reshape(-1), other.reshape(-1)])
        assert (joined == text.held_out[: len(joined)]).all()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_reference_targets_exits_keep_their_word(version):
    """On text that the target writes here and now, which nothing was calibrated on."""
    package = load_target(MODELS / f"{version}.target")
    exits, model = package.exits, studied(package)
    size = exits.tensors.bytes + sum(part.file.bytes for part in exits.parts)
    assert size < 3_000_000 and [e.layer for e in exits.exits] == [2, 4]
    tensors = read_tensors(exits.tensors.path)
    heads = []
    for k, found in enumerate(exits.exits):
        assert abs(found.measured - found.agreement) <= 0.03
        head = ExitHead(model, exits.rank)
        for name, weight in head.named_parameters():
            weight.data = torch.from_numpy(tensors[f"exit.{k}.{name}"])
        heads.append(head)
    ids = model.sample(12, 96, seed=99)
    for found, said in zip(exits.exits, observe(model, [2, 4], heads, ids), strict=True):
        agreement, speaks = judge([said], found.threshold)
        # 1,152 positions of one kind of text: the share is some points off by chance
        assert agreement > found.agreement - 0.08 and speaks > 0.1


# ---- what is wrong


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": (2,)}, "exits after layers 2 of 2"),
        ({"layers": (0,)}, "exits after layers 0 of 2"),
        ({"rank": 33}, "rank of 33 is outside 1..32"),
        ({"agreement": 1.0}, "agreement of 1.0"),
        ({"tokens": 5}, "5 tokens teach"),
        ({"rank": 4, "agreement": 0.999, "tokens": 4096}, "no exit agrees"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bare, texts, settings, sentence):
    with pytest.raises((ConfigError, ModelError), match=sentence):
        export_exits(bare, texts=texts, settings=ExitSettings(**settings), say=quiet)
    assert load_target(bare).exits is None
    assert sorted(p.name for p in bare.parent.iterdir()) == ["tiny.target"]


def test_files_that_do_not_fit_are_refused(bare, tmp_path):
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("the robot\n")
    binary.write_bytes(b"\xff\xfe\xfd" * 4000)
    quick = {"settings": QUICK, "say": quiet}
    for sentence, how in (
        ("too short", {"data": [short], **quick}),
        ("need as many of --held-out", {"data": [short], "held_out": [short] * 2, **quick}),
        ("goes with --data", {"held_out": [short], **quick}),
        ("cannot be read", {"data": [tmp_path / "none.txt"], **quick}),
        ("not UTF-8", {"data": [binary], **quick}),
        ("no exits to take over", {"reuse": bare}),
        ("do not give them", {"reuse": TINY, **quick}),
        (r"called NAME\.target", {"out": tmp_path / "a.exits", **quick}),
    ):
        with pytest.raises(ConfigError, match=sentence):
            export_exits(bare, **how)


def test_default_layers_are_thirds():
    assert default_layers(6) == (2, 4) and default_layers(32) == (11, 21)
    assert default_layers(2) == (1,) and default_layers(3) == (1, 2)
    with pytest.raises(ModelError, match="no room"):
        default_layers(1)


def test_the_command_reads_files_and_says_what_it_made(bare, tmp_path, capsys):
    rng = np.random.default_rng(0)
    words = ["the robot", "the cube", "a road", "and the end", "of the"]
    lines = [" ".join(rng.choice(words, 9)) for _ in range(600)]
    data = tmp_path / "data.txt"
    data.write_text("\n".join(lines))
    flags = ["--rank", "4", "--tokens", "2048", "--agreement", "0.1", "--layers", "1"]
    assert main(["export", "exits", str(bare), "--data", str(data), *flags, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["exits"][0]["layer"] == 1 and "step" in captured.err
    assert list(report["exits"][0]["by_text"]) == ["data"]
    assert main(["export", "exits", str(bare), "--layers", "one"]) == 2
    assert "such as 2,4" in capsys.readouterr().err
