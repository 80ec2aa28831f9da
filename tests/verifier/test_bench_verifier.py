"""``draftwire bench verifier`` on the tiny target: no error, fair shares, few forwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from draftwire.cli import main

TINY = Path(__file__).resolve().parents[1] / "fixtures" / "tiny.target"
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
