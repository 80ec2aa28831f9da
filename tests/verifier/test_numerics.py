"""Exact: the same bits however a position is asked for; close: near ties are counted.

And ``draftwire bench verifier``, which tells the price and tries many devices.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from opens import promised  # noqa: E402  (after importorskip)
from pieces import ask_in_pieces  # noqa: E402  (after importorskip)

from draftwire.bench import numerics  # noqa: E402  (after importorskip)
from draftwire.bench.numerics import CASES, Settings, texts_that_differ  # noqa: E402
from draftwire.cli import main  # noqa: E402
from draftwire.errors import ConfigError  # noqa: E402
from draftwire.sampling import SamplingParams, make_decider  # noqa: E402
from draftwire.transport.messages import Block, Open  # noqa: E402
from draftwire.verifier.backends.base import Form, SlotInput  # noqa: E402
from draftwire.verifier.backends.onnx_target import OnnxTarget  # noqa: E402
from draftwire.verifier.target_session import TargetSession  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny.target"
V1 = ROOT / "models" / "v1.target"


def hf(folder, **options):
    pytest.importorskip("torch")
    from draftwire.verifier.backends.hf_target import HFTarget

    return HFTarget(folder, slots=8, threads=1, **options)


@pytest.fixture(scope="module")
def checkpoint(models):
    return models("llama")


KINDS = [
    "onnx",
    *(
        pytest.param(dtype, marks=pytest.mark.workstation)
        for dtype in ("float32", "bfloat16", "float16")
    ),
]


@pytest.fixture(scope="module")
def targets(request):
    made = {}

    def get(kind, numerics="exact"):
        if (kind, numerics) not in made:
            made[kind, numerics] = (
                OnnxTarget(TINY, slots=8, threads=1, numerics=numerics)
                if kind == "onnx"
                else hf(
                    request.getfixturevalue("checkpoint"), dtype=kind, numerics=numerics
                )
            )
        return made[kind, numerics]

    return get


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_position_has_the_same_bits_however_it_is_asked_for(
    targets, kind, number, monkeypatch
):
    target = targets(kind)
    assert (target.numerics, target.logit_error) == ("exact", 0.0)
    monkeypatch.setattr(target, "form", target.forms[number])
    ids = np.random.default_rng(5).integers(0, target.vocab_size, 80)
    slot = target.allocate()
    (whole,) = target.forward([SlotInput(slot, 0, ids, 80)])
    target.release(slot)
    for seed in range(3):
        assert (ask_in_pieces(target, ids, random.Random(seed)) == whole).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_exit_says_all_of_a_block_or_nothing(targets, kind, monkeypatch):
    target = targets(kind)
    if not target.exits:
        pytest.skip("a target without exits")
    monkeypatch.setattr(target, "form", target.forms[1])
    ids = np.random.default_rng(6).integers(0, target.vocab_size, 24)
    slots, heard = [target.allocate(), target.allocate()], []
    batch = [SlotInput(slots[0], 0, ids, 20), SlotInput(slots[1], 0, ids[:3], 2)]
    rows = target.forward(batch, on_exit=lambda k, rows: heard.append((k, rows)))
    assert [len(r) for r in rows] == [20, 2]
    said = [(i, len(r)) for _, rows in heard for i, r in enumerate(rows) if len(r)]
    assert said == len(target.exits) * [(1, 2)]  # the other one lies in two windows
    for slot in slots:
        target.release(slot)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_differs_when_exact(targets, kind):
    ways = 2 * len(CASES)
    settings = Settings(TINY, texts=ways if kind == "onnx" else 16, tokens=20)
    few = ("k = 3", "batch", "resume", "race")
    found = texts_that_differ(
        targets(kind), settings, tuple(CASES) if kind == "onnx" else few
    )
    assert sum(count.texts for count in found.values()) == settings.texts
    assert {name: c.differ for name, c in found.items() if c.differ} == {}
    assert not any(count.near_ties for count in found.values())


def test_a_backend_whose_bits_depend_on_the_batch_is_caught(targets, monkeypatch):
    """The suite can fail: one wrong bit in what is asked for beside strangers."""
    target = targets("onnx")
    honest = OnnxTarget.run

    def sloppy(self, frame, tell=None):
        rows = honest(self, frame, tell)
        return [r[:, ::-1] for r in rows] if len(frame.items) > 2 else rows

    monkeypatch.setattr(OnnxTarget, "run", sloppy)
    settings = Settings(TINY, texts=16, tokens=20)
    found = texts_that_differ(target, settings, ("batch",))
    assert sum(count.differ for count in found.values()) > 8


def test_403_tokens_read_whole_or_in_blocks_give_one_token():
    target = OnnxTarget(V1, slots=2, threads=1, numerics="exact")
    ids = np.random.default_rng(403).integers(3, 2000, 403)
    slots = [target.allocate() for _ in range(2)]
    for at in range(0, 402, 128):
        target.forward([SlotInput(slots[0], at, ids[at : min(402, at + 128)], 0)])
    for at in range(0, 402, 5):
        n = min(5, 402 - at)
        target.forward([SlotInput(slots[1], at, ids[at : at + n], n)])
    last = [target.forward([SlotInput(s, 402, ids[402:], 1)])[0] for s in slots]
    assert (last[0] == last[1]).all()
    decider = make_decider(SamplingParams("coupled", 1.0, 0, 1.0, 726782), 2048)
    one, other = (decider.decide((), b"", rows, 403).token for rows in last)
    assert one == other


def test_an_engine_that_cannot_be_exact_says_so(monkeypatch):
    honest, noise = OnnxTarget.run, itertools.count()

    def noisy(self, frame, tell=None):
        return [r + np.float32(1e-4) * next(noise) for r in honest(self, frame, tell)]

    monkeypatch.setattr(OnnxTarget, "run", noisy)
    with pytest.raises(ConfigError, match="cannot be exact on this engine") as caught:
        OnnxTarget(TINY, slots=2, threads=1, numerics="exact")
    assert "--numerics close" in caught.value.hint
    assert OnnxTarget(TINY, slots=2, threads=1, numerics="close").logit_error > 1e-4


def test_a_form_that_gives_other_bits_is_passed_over(monkeypatch):
    honest = OnnxTarget.run

    def shaped(self, frame, tell=None):  # as a kernel that minds how many rows there are
        off = np.float32(0 if frame.width == 16 and len(frame.items) == 1 else 1e-5)
        return [r + off * frame.width for r in honest(self, frame, tell)]

    monkeypatch.setattr(OnnxTarget, "run", shaped)
    target = OnnxTarget(TINY, slots=3, threads=1, numerics="exact")
    assert target.form == Form(16, 16, 512, alone=True)


@pytest.mark.workstation
def test_below_float32_exact_is_the_default(checkpoint):
    kinds = {dtype: hf(checkpoint, dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert [t.numerics for t in kinds.values()] == ["close", "exact"]
    assert kinds["float32"].logit_error > 0 == kinds["bfloat16"].logit_error


# ---- near ties


def session(scheme, temperature, error):
    request = Open((1, 2), scheme, temperature, 0, 1.0, 9, 30)
    return TargetSession(request, promised(40), logit_error=error)


@pytest.mark.parametrize(
    ("scheme", "t"), [("greedy", 0.0), ("coupled", 0.7), ("match", 1.0)]
)
def test_near_ties_are_where_the_winner_could_lose(scheme, t):
    """Against every way to be off by the error: a token is near when one of them wins."""
    error, rng = 0.05, np.random.default_rng(3)
    far = session(scheme, t, 0.0)
    near, wanted = session(scheme, t, error), 0
    for step in range(24):
        rows = rng.normal(size=(1, 40)).astype(np.float32)
        for s in (far, near):
            s.receive(Block(0, step, ()))
        work = near.poll()
        assert far.poll() is not None
        before = near.counts.near_ties
        token = near.complete(work, rows)[0].token
        far.complete(far._work, rows)
        decide = make_decider(SamplingParams(scheme, t, 0, 1.0, 9), 40).decide
        beaten = False
        for other in set(range(40)) - {token}:
            moved = rows.copy()
            moved[0, token] -= error
            moved[0, other] += error
            beaten |= decide((), b"", moved, 2 + step).token != token
        wanted += beaten
        if scheme != "match":  # which goes by sums: lifting one token moves all after it
            assert near.counts.near_ties - before == beaten
    assert 0 < near.counts.near_ties < 24
    assert far.counts.near_ties == 0
    assert near.committed() == far.committed()


def test_a_close_target_counts_near_ties(targets):
    target = targets("onnx", "close")
    assert target.logit_error > 0
    prompts = numerics._Prompts(target, random.Random(1))
    job = numerics._job(prompts.of(12), (), target.vocab_size)
    target.logit_error, error = 1.0, target.logit_error
    try:
        greedy = SamplingParams("greedy", 0.0)
        _, near = numerics._write(target, [job], [greedy], 30, None)
    finally:
        target.logit_error = error
    assert 0 < near <= 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["exact", "close"])
def test_numbers_that_are_none_end_one_stream(targets, kind, how, monkeypatch, caplog):
    """A cache that holds NaN: its stream fails with a name, the others go on."""
    target = targets(kind, how)
    prompts = numerics._Prompts(target, random.Random(2))
    greedy = [SamplingParams("greedy", 0.0)] * 4
    jobs = [numerics._job(prompts.of(20), (), target.vocab_size) for _ in range(4)]
    alone = [numerics._write(target, [job], greedy, 24, None) for job in jobs]
    texts = [found[0] for found, _ in alone]
    jobs = [numerics._job(j.prompt, t, target.vocab_size) for j, t in zip(jobs, texts)]
    honest, count = type(target).run, itertools.count()

    def poison(self, frame, tell=None):
        if next(count) == 12:
            slot = max(item.slot for item in frame.items)
            if kind == "onnx":
                self._caches[slot][..., 3, :] = np.nan
            else:
                self._cache.layers[0].values[slot, :, 3] = float("nan")
        return honest(self, frame, tell)

    monkeypatch.setattr(type(target), "run", poison)
    found, near = numerics._write(target, jobs, greedy, 24, CASES["batch"])
    said = [r.message for r in caplog.records if "no numbers" in r.message]
    assert len(said) == 1
    assert f"target {target.name} {target.version} gave" in said[0]
    assert "for position " in said[0]
    # Its device has opened that stream anew. Where "close" writes another text than alone,
    # which a processor's rounding decides, it has counted a near tie.
    assert found == texts or (how == "close" and near + sum(n for _, n in alone) > 0)
    assert [len(text) for text in found] == [24] * 4


def test_the_command_prints_price_and_shares(capsys):
    words = ["bench", "verifier", "--numerics", "--target", str(TINY)]
    words += ["--texts", "30", "--tokens", "12", "--threads", "1"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["targets"]
    assert (row["engine"], row["dtype"]) == ("onnxruntime", "float32")
    assert all(ms["exact"] > 0 < ms["close"] for ms in row["ms"].values())
    assert sum(c["texts"] for c in row["exact"].values()) == 30
    assert sum(c["differ"] for c in row["exact"].values()) == 0
    text = numerics.render(document)
    assert "price" in text and "k = 9, T = 1" in text


# ---- many devices at once

WORDS = ["bench", "verifier", "--target", str(TINY), "--devices", "6", "--tokens", "16"]


def test_many_devices_are_served_alike_in_few_forwards(capsys):
    assert main([*WORDS, "--seconds", "1.5", "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    batched, single = document["runs"]
    for run in (batched, single):
        assert run["errors"] == 0 and run["texts"] > 0 and run["rounds"] > 0
        assert run["share"]["jain"] > 0.9
        assert run["round_ms"]["p50"] <= run["round_ms"]["p99"] <= run["round_ms"]["max"]
    assert single["blocks_per_forward"] == 1.0 < batched["blocks_per_forward"]
    assert batched["forwards_per_token"] < single["forwards_per_token"] < 1


@pytest.mark.parametrize(
    "words", [["--seconds", "0"], ["--acceptance", "2"], ["--devices", "0"]]
)
def test_wrong_flags_are_one_sentence(words, capsys):
    assert main([*WORDS, *words]) == 2
    assert capsys.readouterr().err.startswith("draftwire: error: ")
