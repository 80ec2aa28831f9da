"""What of the vllm backend runs without vLLM: the noise in torch, and the load."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from draftwire.errors import ConfigError, ModelError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.tensors import read_tensors
from draftwire.verifier.backends.vllm.engine import empty_adapter, rank_of
from draftwire.verifier.backends.vllm.wish import Chances, Load

pytestmark = pytest.mark.workstation


@pytest.mark.parametrize("vocab", [2, 23, 2048, 5001])
def test_the_race_in_torch_is_ours(vocab):
    """Row by row the winner of draftwire.sampling, whatever the laws in the batch."""
    torch = pytest.importorskip("torch")
    from draftwire.verifier.backends.vllm.noise import winners

    rng = np.random.default_rng(vocab)
    rows = 400
    logits = rng.normal(0, 3, (rows, vocab)).astype(np.float32)
    logits[::7] = np.round(logits[::7])  # ties, also at the edge of top-k
    logits[3, : vocab // 2] = -np.inf
    params = [
        SamplingParams(
            "coupled",
            float(rng.choice([0.3, 0.8, 1.0, 100.0])),
            int(rng.choice([0, 1, 5, 40, vocab])),
            float(rng.choice([1.0, 0.95, 0.5, 1e-6])),
            int(rng.integers(1 << 62)) * 3 % (1 << 64),
            sample=int(rng.choice([0, 1, 2**32 - 1])),
        )
        for _ in range(rows)
    ]
    positions = rng.integers(0, 1 << 20, rows).tolist()
    found = winners(torch.from_numpy(logits).double(), params, positions).tolist()
    for row, p, at, token in zip(logits, params, positions, found):
        known = make_decider(p, vocab).decide((), b"", row[None], at).token
        assert token == known, (p, at)


def loaded(step_s, row_s):
    load, rng = Load(8), random.Random(3)
    for _ in range(400):
        rows = rng.randrange(1, 140)
        load.stepped(rows, step_s + row_s * rows)
    return load


def test_where_few_streams_run_drafts_are_free_and_where_many_do_they_are_not():
    assert Load(8).share([0.1]) == [8], "nothing is known yet"
    load = loaded(0.010, 0.0005)  # a step of 16 rows: 18 ms
    shares = [load.share([0.7] * n)[0] for n in (1, 4, 16, 64, 1000)]
    assert shares == sorted(shares, reverse=True) and shares[0] >= 5 and shares[-1] <= 1
    good, bad, none = load.share([0.95, 0.3, 0.0])
    assert good > bad >= none == 0
    # Whatever is taken, no other number of drafts for all would give 5 % more tokens a
    # second: less is within the error of what is measured.
    for n in (1, 5, 16, 40):
        taken = load.share([0.7] * n)

        def rate(counts):
            tokens = sum((1 - 0.7 ** (k + 1)) / 0.3 for k in counts)
            return tokens / (0.010 + 0.0005 * sum(k + 1 for k in counts))

        assert all(1.05 * rate(taken) >= 0.999 * rate([k] * n) for k in range(9))


def test_steps_that_cost_the_same_whatever_is_in_them():
    assert loaded(0.02, 0.0).share([0.9] * 64) == [8] * 64
    same = Load(6)
    for _ in range(50):
        same.stepped(16, 0.02)
    assert same.share([0.8]) == [6], "all steps were alike: a row is thought to cost 1 %"
    busy, calm = loaded(0.010, 0.0005), loaded(0.010, 0.0005)
    for rows in [16, 40] * 20:
        busy.stepped(rows, 3.0)  # a machine that is busy elsewhere
        calm.stepped(rows, 0.010 + 0.0005 * rows)
    assert busy.price.seconds < 0.3 and calm.share([0.7] * 4) == loaded(0.01, 5e-4).share(
        [0.7] * 4
    )
    assert calm.share([]) == Load(8).share([]) == []
    slow = Load(6, shrink=False)
    for rows in [1, 50, 100] * 9:
        slow.stepped(rows, rows)
    assert slow.share([0.1] * 9) == [6] * 9


def test_what_is_never_tried_is_tried_again():
    chances = Chances()
    assert chances.value == 0.5
    for _ in range(100):
        chances.judged(6, 0)
    assert chances.value < 0.05
    for _ in range(300):
        chances.judged(0, 0)
    assert chances.value > 0.45
    for _ in range(100):
        chances.judged(6, 6)
    assert chances.value > 0.95


def test_an_adapter_that_changes_nothing(tmp_path):
    config = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = empty_adapter(tmp_path, tmp_path)
    tensors = read_tensors(folder / "adapter_model.safetensors")
    shapes = sorted(t.shape for t in tensors.values())
    assert shapes == [(1, 64), (128, 1)] and not any(t.any() for t in tensors.values())
    assert rank_of(folder) == 8
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 20}')
    assert rank_of(folder) == 32
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="cannot be read"):
        rank_of(folder)


@pytest.mark.parametrize("version", [None, "0.31.4", "0.33.0"])
def test_another_vllm_is_refused(monkeypatch, version):
    from draftwire.verifier.backends.vllm import engine

    class Other:
        __version__ = version

    monkeypatch.setitem(sys.modules, "vllm", Other if version else None)
    with pytest.raises(ConfigError, match=version or "needs vllm"):
        engine._import()


def test_nothing_of_vllm_is_loaded_before_it_is_asked_for():
    before = set(sys.modules)
    importlib.import_module("draftwire.verifier.backends.vllm.engine")
    assert not {"vllm", "torch"} & (set(sys.modules) - before)


def test_what_waits_for_an_engine_ends_with_it(monkeypatch, caplog):
    from draftwire.verifier.backends.vllm import engine

    class Sham(engine.VllmEngine):
        """vLLM's place is taken by one that answers nothing."""

        def _arguments(self, settings):
            return {}

        async def _start(self):
            never = lambda *_: asyncio.Event().wait()  # noqa: E731
            core = SimpleNamespace(call_utility_async=never)
            self._llm = SimpleNamespace(shutdown=lambda: None, engine_core=core)
            self._up.set()
            return SimpleNamespace(max_model_len=64)

    monkeypatch.setattr(engine, "_import", lambda: None)
    monkeypatch.setattr(engine, "_TRIES", (0.0,))
    sham = Sham(Path("base"), SimpleNamespace(openai=None), 0)
    run = SimpleNamespace(name="one", end=lambda *_, **__: None)
    until = time.monotonic() + 60
    for deaths in (1, 2):  # what was asked of the first does not hold up the second
        sham.soon(sham.push, run, ())
        while not sham._calls and time.monotonic() < until:
            time.sleep(0.01)
        (asked,) = sham._calls
        sham._up.clear()
        sham.soon(sham.died)
        while not (asked.done() and sham._up.is_set()) and time.monotonic() < until:
            time.sleep(0.01)
        assert asked.cancelled() and sham.deaths == deaths
    sham.soon(sham.push, run, ())
    sham.close()
    sham.join()
    del asked, sham
    gc.collect()
    assert "destroyed" not in caplog.text
