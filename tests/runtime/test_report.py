"""Run reports: every key there, null for what was not measured, and read back."""

import json
import os

import numpy as np
import pytest
from live import connect, serving

from draftwire.cli import main
from draftwire.cli._common import write_json
from draftwire.errors import ConfigError, OutputError
from draftwire.runtime.report import check_report, load_reports, plain, summarise

GROUPS = "draft target sampling mode bytes seconds energy link".split()


def full_report(**changes):
    """A report as a run writes it, as far as readers look at it."""
    report = {
        "schema": "draftwire.report/1",
        **dict.fromkeys(GROUPS, {}),
        "prompt_tokens": 5,
        "tokens": 8,
        "token_ids": [4, 8, 15, 16, 23, 42, 7, 1],
        "warnings": [],
        **{"rounds": 4, "drafted": 8, "accepted": 4, "target_forwards": 4},
        "accepted_by_position": [3, 1],
        "judged_by_position": [4, 4],
        "bytes": {"up_payload": 40, "down_payload": 16},
        "seconds": {"total": 2.0},
    }
    return {**report, **changes}


def empty_report():
    counts = dict.fromkeys(("rounds", "drafted", "accepted", "target_forwards"))
    nothing = {"judged_by_position": None, "bytes": {}, "seconds": {}}
    return full_report(tokens=0, token_ids=[], accepted_by_position=[], **counts, **nothing)


def test_a_run_is_a_report_and_invents_no_number():
    """Which keys it has is in ``tests/golden/frozen_v1.json``."""
    with serving() as verifier, connect(verifier, energy="off") as session:
        list(session.generate("the robot", max_new_tokens=6))
        report = session.report
    assert report["tokens"] == len(report["token_ids"]) == 6
    assert report["energy"]["joules"] is None and report["energy"]["why_null"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert check_report(report, "a run") is report


def test_numpy_numbers_and_nan_become_json():
    found = plain({"ids": list(np.arange(3)), "ms": np.float32(2.5), "jitter": np.nan})
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "ids": [0, 1, 2],
        "ms": 2.5,
        "jitter": None,
    }
    with pytest.raises(ValueError, match="cannot hold object"):
        plain([object()])


def test_written_as_a_whole_or_not_at_all(tmp_path, capsys):
    target = tmp_path / "run.json"
    write_json(empty_report(), str(target))
    before = target.read_text()
    with pytest.raises(ValueError):
        write_json({"x": float("nan")}, str(target))
    assert target.read_text() == before
    assert os.listdir(tmp_path) == ["run.json"]
    with pytest.raises(OutputError, match="cannot write"):
        write_json({}, str(tmp_path / "missing" / "run.json"))
    write_json([empty_report()], "-")
    assert json.loads(capsys.readouterr().out)[0]["schema"] == "draftwire.report/1"


def test_ratios_come_from_the_counters():
    summary = summarise("run", full_report())
    assert summary.acceptance == 0.5
    assert summary.accepted_per_block == 1.0
    assert summary.forwards_per_token == 0.5
    assert summary.bytes_per_drafted == 5.0
    assert summary.tokens_per_s == 4.0
    assert summary.joules_per_token is None
    assert summary.by_position == (0.75, 0.25)
    summary = summarise("run", empty_report())
    assert (summary.acceptance, summary.tokens_per_s, summary.by_position) == (None,) * 3


def test_command_reads_files_and_lists(tmp_path, capsys):
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    write_json(full_report(), str(one))
    write_json([full_report(), empty_report()], str(many))
    assert main(["report", str(one), str(many)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["run", "tokens", "rounds", "acceptance"]
    names = [line.split()[0] for line in lines[1:4]]
    assert names == ["one.json", "many.json#1", "many.json#2"]
    assert any(line.startswith("accepted at position") for line in lines)
    assert main(["report", str(one), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"][0]["accepted_per_block"] == 1.0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("3", "not a JSON object"),
        ("[]", "empty list"),
        ('{"schema": "draftwire.bench/1"}', "draftwire.bench/1"),
        ('{"schema": "draftwire.report/1"}', "prompt_tokens"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, capsys, content, complaint):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        load_reports([path])
    assert main(["report", str(path)]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", "3"),
        ("rounds", -1),
        ("bytes", None),
        ("seconds", {"total": "soon"}),
        ("accepted_by_position", [1.5]),
        ("accepted", True),
        pytest.param("drafted", 10**400, id="drafted-huge"),
        ("bytes", {"up_payload": 10**400}),
        ("energy", {"joules": "x"}),
        ("judged_by_position", 0),
        ("preemption", [1]),
    ],
)
def test_a_wrong_value_is_named(key, value):
    report = full_report()
    report[key] = value
    with pytest.raises(ConfigError, match=key):
        check_report(report, "run.json")


def test_plot_says_what_to_install(tmp_path, monkeypatch, capsys):
    import sys

    path = tmp_path / "one.json"
    write_json(full_report(), str(path))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(path), "--plot", str(tmp_path / "x.png")]) == 2
    assert "pip install 'draftwire[plots]'" in capsys.readouterr().err


def test_plot_is_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, target = tmp_path / "one.json", tmp_path / "x.png"
    write_json(full_report(), str(path))
    assert main(["report", str(path), "--plot", str(target)]) == 0
    assert target.read_bytes()[:4] == b"\x89PNG"
    assert main(["report", str(path), "--plot", str(tmp_path / "x.doc")]) == 2
    assert "pictures end in" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "x.png"]
