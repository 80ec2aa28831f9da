"""``python -m tools.peace`` on the tiny target: floods and attacks beside their quiet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tools import attacker, peace
from tools.peace import main

from draftwire.bench.verifier import Load

TINY = Path(__file__).resolve().parents[1] / "fixtures" / "tiny.target"
WORDS = ["--target", str(TINY), "--tokens", "16"]


def test_a_flood_is_measured_beside_its_quiet(capsys, monkeypatch):
    monkeypatch.setattr(peace, "FLOOD", peace.FLOOD[:2])
    code = main([*WORDS, "--seconds", "0.4", "--threads", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [row["attack"] for row in document["attacks"]] == list(peace.FLOOD)
    for row in document["attacks"]:
        assert row["quiet"]["rounds_per_s"] > 0 and row["during"]["rounds_per_s"] > 0
        assert row["enemy"]["frames"] > 1000 and row["newcomer"] == "served"
    text = peace.render(document)
    assert "flood: ping" in text and ("times its quiet worst: " in text)
    for row in document["attacks"]:
        row.update(share=0.8, times_worst=2.9)
    assert "times its quiet worst: met" in peace.render(document)
    document["attacks"][1].update(share=0.79)
    assert f"not met by {peace.FLOOD[1]}" in peace.render(document)


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
