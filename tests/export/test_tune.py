"""What a board shall run: accepted tokens a second, not tokens; and where that stands."""

import json
import shutil
from pathlib import Path

import pytest
from places import FIXTURES

from draftwire.bench import tune as tuning
from draftwire.bench.tune import Tuning, read_prompts, tune
from draftwire.cli import main
from draftwire.errors import ConfigError, DraftwireError
from draftwire.export.precision.tune import Candidate, choose, write_acceptance, write_hint
from draftwire.packages import load_draft
from draftwire.runtime.engines import choice as engine_choice
from draftwire.runtime.engines.draft_model import DraftModel

TINY = FIXTURES / "tiny.draft"


def line(precision, threads, speed, acceptance=None, joules=None, engine="onnxruntime"):
    return Candidate(engine, precision, threads, speed, acceptance, joules)


def test_a_quick_model_that_is_seldom_right_loses():
    choice = choose(
        [
            line("int4", 1, 900, 0.3, 0.002),
            line("int8", 1, 600, 0.6, 0.003),
            line("fp32", 1, 300, 0.61, 0.006),
        ]
    )
    assert choice.per_second.precision == "int8"
    assert choice.per_second.accepted_per_s == 360
    assert choice.per_joule is not None and choice.per_joule.precision == "int8"
    assert choice.per_joule.accepted_per_joule == pytest.approx(200)
    assert choice.warnings == () and choice.why_no_joules == ""


def test_more_threads_must_be_worth_it():
    two = line("int8", 2, 620, 0.6)
    assert choose([line("int8", 1, 600, 0.6), two]).per_second.threads == 1
    two = line("int8", 2, 700, 0.6, 0.01)
    choice = choose([line("int8", 1, 600, 0.6, 0.005), two])
    assert choice.per_second.threads == 2
    assert choice.per_joule is not None and choice.per_joule.threads == 1


def test_what_was_not_measured_is_null_with_a_reason():
    choice = choose([line("int8", 1, 600, 0.6)], why_no_joules="no power source")
    assert (choice.per_joule, choice.why_no_joules) == (None, "no power source")
    choice = choose([line("int8", 1, 600), line("int4", 1, 700)])
    assert choice.per_second.precision == "int4"
    assert "not measured" in choice.warnings[0]
    assert choice.per_second.record()["accepted_per_s"] is None
    with pytest.raises(ConfigError, match="nothing to choose"):
        choose([])
    with pytest.raises(ConfigError, match="onnxruntime int4 was not measured"):
        choose([line("int8", 1, 600, 0.6), line("int4", 1, 700)])


@pytest.fixture
def draft(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "tiny.draft"))


@pytest.fixture
def times(tmp_path):
    """Times of a board, as ``bench device --json`` writes them; int8 is the quickest."""

    def write(**changes):
        runs = [
            {
                "engine": "onnxruntime",
                "precision": precision,
                "threads": threads,
                "tokens_per_s": speed * (1.4 if threads == 2 else 1),
                "joules_per_token": 0.001 * threads,
                "energy_why_null": None,
            }
            for precision, speed in (("fp32", 100.0), ("int8", 1000.0))
            for threads in (1, 2)
        ]
        document = {
            "schema": "draftwire.bench/1",
            "bench": "device",
            "machine": {"board": "raspberry-pi-5", "date": "2026-01-02"},
            "draft": {"id": load_draft(TINY).id},
            "runs": [*runs, {"engine": "litert", "precision": "int8", "threads": 1,
                             "error": "Killed"}],
            **changes,
        }  # fmt: skip
        file = tmp_path / "times.json"
        file.write_text(json.dumps(document))
        return file

    return write


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the robot and the cube\n\nthe end of the road\n")
    return file


def test_the_command_chooses_and_writes(draft, times, prompts, capsys, monkeypatch):
    before = load_draft(draft).id
    words = ["export", "tune", str(draft), "--times", str(times()), "--write", "--json"]
    target = FIXTURES / "tiny.target"
    words += ["--target", str(target), "--prompts", str(prompts), "--tokens", "24"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["board"] == "raspberry-pi-5"
    assert "raspberry-pi-5, 2026-01-02" in found["times"]
    best = found["best_per_second"]
    assert (best["precision"], best["threads"]) == ("int8", 2)
    assert found["best_per_joule"]["threads"] == 1
    assert "litert int8 does not run: Killed" in found["warnings"]
    package = load_draft(draft)  # still a sound package, and the same one
    assert package.id == before
    for precision in ("fp32", "int8"):
        entry = package.model_file(precision).details["acceptance"]
        assert entry["drafted"] >= entry["accepted"] > 0
        assert entry["share"] == entry["accepted"] / entry["drafted"]
        assert (entry["prompts"], entry["target"]["version"]) == (2, "v1")
    # On that board the draft now runs as it was found best; elsewhere as before.
    monkeypatch.setenv("DRAFTWIRE_BOARD", "raspberry-pi-5")
    model = DraftModel.load(draft)
    assert (model.precision, model.threads, model.warnings) == ("int8", 2, ())
    assert DraftModel.load(draft, threads=1).threads == 1
    monkeypatch.setenv("DRAFTWIRE_BOARD", "jetson-nano")
    assert DraftModel.load(draft).threads == 1


@pytest.mark.parametrize(
    ("hint", "why"),
    [
        ({"engine": "onnxruntime", "precision": "int3", "threads": 1}, "no 'int3' model"),
        ({"engine": "onnxruntime", "precision": "int8", "threads": "2"}, "'2' threads"),
        ({}, "no None model"),
        ({"engine": ["onnxruntime"], "precision": {}}, "no {} model"),
    ],
)
def test_a_hint_that_does_not_fit_is_a_warning(draft, monkeypatch, hint, why):
    monkeypatch.setenv("DRAFTWIRE_BOARD", "jetson-nano")
    write_hint(draft, "jetson-nano", hint)
    model = DraftModel.load(draft)
    assert why in model.warnings[0] and model.threads == 1


def test_a_hint_for_an_engine_that_is_not_here(draft, monkeypatch):
    monkeypatch.setenv("DRAFTWIRE_BOARD", "jetson-nano")
    good = {"engine": "onnxruntime", "precision": "int8", "threads": 2}
    write_hint(draft, "jetson-nano", good)
    monkeypatch.setattr(engine_choice, "importable", lambda name: name == "litert")
    hint, why = engine_choice.board_hint(load_draft(draft))
    assert hint is None and "onnxruntime is not installed" in why


def test_a_manifest_that_cannot_be_written_is_left(draft, monkeypatch):
    text = (draft / "draft.json").read_text()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("draftwire.io.os.replace", full)
    with pytest.raises(ConfigError, match="no space left"):
        write_acceptance(draft, {("onnxruntime", "int8"): {"share": 0.5}})
    assert (draft / "draft.json").read_text() == text
    assert not list(draft.glob(".*"))


def test_times_of_another_board_are_called_so(draft, monkeypatch):
    asked = []

    def bench(settings):
        asked.append(settings)
        run = {"engine": "onnxruntime", "precision": "int8", "threads": 1}
        return {
            "machine": {"board": "generic-x86", "date": "2026-01-02"},
            "runs": [{**run, "tokens_per_s": 10.0, "energy_why_null": "no meter"}],
        }

    monkeypatch.setattr(tuning, "bench_device", bench)
    found = tune(Tuning(draft, board="raspberry-pi-5", energy=False))
    assert "not of raspberry-pi-5" in found["warnings"][0]
    assert "not measured" in found["warnings"][1]
    assert (found["best_per_joule"], found["why_no_joules"]) == (None, "no meter")
    # Its profile has four cores and both engines; this draft has files for one.
    assert (asked[0].engines, asked[0].threads) == (["onnxruntime"], (1, 2, 4))
    assert not asked[0].energy
    tune(Tuning(draft, board="raspberry-pi-5", engines=("litert",), precisions=("int8",)))
    assert (asked[1].engines, asked[1].precisions) == (("litert",), ("int8",))
    assert load_draft(draft).raw.get("hints") is None
    assert "a joule: not known (no meter)" in tuning.render(found)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bench": "draft"}, "holds no times"),
        ({"draft": {"id": "0" * 64}}, "is of the draft 000000000000"),
        ({"draft": 7}, "lacks or garbles"),
        ({"machine": {}}, "lacks or garbles 'board'"),
        ({"runs": [{"engine": "x", "precision": "int8", "threads": 1}]}, "tokens_per_s"),
        (
            {"runs": [{"engine": "x", "precision": "i", "threads": 1, "tokens_per_s": -1}]},
            "speed of -1",
        ),
        ({"runs": []}, "no line was measured"),
        ({"machine": {"board": "jetson-nano", "date": "x"}}, "was measured on jetson-nano"),
    ],
)
def test_times_are_checked(draft, times, changes, sentence):
    file = times(**changes)
    with pytest.raises(DraftwireError, match=sentence):
        tune(Tuning(draft, times=file, board="raspberry-pi-5"))


def test_prompts_are_checked(draft, times, prompts, tmp_path):
    with pytest.raises(ConfigError, match="go together"):
        tune(Tuning(draft, prompts=prompts))
    with pytest.raises(ConfigError, match="cannot read"):
        read_prompts(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.write_text("\n \n")
    with pytest.raises(ConfigError, match="no prompt"):
        read_prompts(empty)
    target = FIXTURES / "tiny.target"
    with pytest.raises(ConfigError, match="need a context"):
        tune(Tuning(draft, times=times(), target=target, prompts=prompts, tokens=500))
