"""The table of schemes, from the command line, on models of a few kilobytes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from draftwire.bench.acceptance import measure  # noqa: E402
from draftwire.errors import ConfigError  # noqa: E402
from draftwire.runtime.engines.draft_model import DraftModel  # noqa: E402
from draftwire.sampling import SCHEMES, SamplingParams, card_of  # noqa: E402
from draftwire.verifier.backends.loading import Loader  # noqa: E402
from studies.sampling.__main__ import main  # noqa: E402
from studies.sampling.table import Settings  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PACKAGES = ["--draft", str(FIXTURES / "tiny.draft")]
PACKAGES += ["--target", str(FIXTURES / "tiny.target")]
QUICK = [*PACKAGES, "--tokens", "12", "--prompts", "3", "--block", "3"]


def table(*words):
    return main([*QUICK, *words])


def test_every_scheme_has_a_row_and_the_numbers_add_up(tmp_path, capsys):
    assert table("--json", str(tmp_path / "table.json")) == 0
    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["schema"] == "draftwire.sampling_table/1"
    assert [row["scheme"] for row in document["rows"]] == list(SCHEMES)
    for row in document["rows"]:
        assert row["scheme"] in shown
        assert row["drafted"] == 3 * row["rounds"]
        assert row["emitted"] == row["accepted"] + row["rounds"]
        assert row["acceptance"] == row["accepted"] / row["drafted"]
        assert row["exact"] == (row["loss"] == "") != (row["scheme"] == "argmax")
        overhead = 8 * row["rounds"] + 3 * 9 / 8 * row["rounds"]
        assert row["up_bytes"] + row["down_bytes"] >= row["evidence_bytes"]
        assert row["up_bytes"] <= row["evidence_bytes"] + overhead
    rows = {row["scheme"]: row for row in document["rows"]}
    up = {name: row["up_bytes"] / row["drafted"] for name, row in rows.items()}
    assert up["coupled"] < up["separate"] < up["qs"] < up["residual"]
    assert rows["residual"]["evidence_bytes"] == 2 * 264 * rows["residual"]["drafted"]
    assert rows["coupled"]["evidence_bytes"] == 0
    assert "LOSSY" in shown and "the text is the greedy one" in shown


def test_speed_has_a_row_for_each_vocabulary_and_case(tmp_path, capsys):
    words = ["--speed", "--vocab", "64,500", "--json", str(tmp_path / "s.json")]
    assert main(words) == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["schema"] == "draftwire.sampling_speed/1"
    assert {row["vocabulary"] for row in document["rows"]} == {64, 500}
    assert all(row["decide_ms"] > 0 for row in document["rows"])
    assert "coupled, philox noise" in capsys.readouterr().out
    assert main(["--speed", "--vocab", "1"]) == 2


def test_a_scheme_that_cannot_is_left_out_with_its_reason(capsys):
    assert table("--top-k", "0", "--schemes", "separate,separate-lossy") == 0
    shown = capsys.readouterr().out
    assert "separate: left out" in shown and "corrections would be biased" in shown
    assert "separate-lossy' approximates" in shown


def test_prompts_come_from_a_text(tmp_path, capsys):
    words = "the robot and the cube at the end of the road " * 60
    (tmp_path / "held_out.txt").write_text(words)
    options = ["--schemes", "coupled", "--prompt-tokens", "8"]
    assert table(*options, "--text", str(tmp_path / "held_out.txt"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == "held_out.txt" and document["prompts"] == 3
    (tmp_path / "short.txt").write_text("the")
    assert table(*options, "--text", str(tmp_path / "short.txt")) == 2
    assert "holds no prompt of 8 tokens" in capsys.readouterr().err
    assert table(*options, "--text", str(tmp_path / "missing.txt")) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--schemes", "nonsense"], "unknown sampling scheme"),
        (["--temperature", "0"], "must be above 0"),
        (["--block", "0"], "outside 1..255"),
        (["--tokens", "5000"], "need a context of"),
        (["--draft", "nowhere.draft"], "nowhere.draft"),
    ],
)
def test_wrong_flags_say_what_is_wrong(words, complaint, capsys):
    assert table(*words) in (2, 5)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["greedy", "coupled", "match"])
def test_one_token_more_than_accepted_comes_with_each_block(scheme):
    draft = DraftModel.load(FIXTURES / "tiny.draft")
    target = Loader(slots=1, threads=1)(FIXTURES / "tiny.target")
    params = SamplingParams(scheme, 0.0 if scheme == "greedy" else 0.8, 40, seed=4)
    for block in (1, 5):
        count = measure(draft, target, [5, 9, 11], params, block=block, tokens=20)
        assert count.emitted == count.accepted + count.rounds
        assert math.ceil(count.emitted / (block + 1)) <= count.rounds
    assert card_of(scheme).any_draft


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="prompts must be 1"):
        Settings(prompts=0)
