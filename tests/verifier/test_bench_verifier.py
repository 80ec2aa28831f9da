"""``draftwire bench verifier`` on the tiny target: no error, fair shares, few forwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from draftwire.bench import attacker, peace
from draftwire.bench.verifier import Load
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


def test_a_flood_is_measured_beside_its_quiet(capsys, monkeypatch):
    monkeypatch.setattr(peace, "FLOOD", peace.FLOOD[:2])
    code = main([*WORDS, "--flood", "--seconds", "0.4", "--threads", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code in (0, 1)  # a busy machine is no fault
    assert [row["attack"] for row in document["attacks"]] == list(peace.FLOOD)
    for row in document["attacks"]:
        assert row["quiet"]["rounds_per_s"] > 0 and row["during"]["rounds_per_s"] > 0
        assert row["enemy"]["frames"] > 1000 and row["newcomer"] == "served"
    assert "flood: ping" in peace.render(document)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(attacker.ATTACKS) - set(peace.FLOOD)))
def test_after_an_attack_the_verifier_serves(name, monkeypatch):
    """Each attack of the suite for a moment, as processes."""
    monkeypatch.setattr(peace, "ATTACKS", {name: None, "flood: ping": None})
    load = Load(TINY, seconds=2.0, tokens=16, threads=1)
    document = peace.bench_peace(load, attack=True, devices=4)
    (row,) = (row for row in document["attacks"] if row["attack"] == name)
    assert row["during"]["rounds_per_s"] > 0
    came = "does not take the device" if name == "200 waiting devices" else "served"
    assert came in row["newcomer"]
    assert row.get("log_lines", 0) + document["log_lines"] < 60
    assert document["devices"]["errors"] == 0
    assert "failed" not in row["enemy"]


@pytest.mark.parametrize(
    "words", [["--seconds", "0"], ["--acceptance", "2"], ["--devices", "0"]]
)
def test_wrong_flags_are_one_sentence(words, capsys):
    assert main([*WORDS, *words]) == 2
    assert capsys.readouterr().err.startswith("draftwire: error: ")
