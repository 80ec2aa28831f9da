"""The grid's study: the bound, the published numbers, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from draftwire.bench.sim.facts import find, profiles
from draftwire.bench.sim.schemes import scheme_named, schemes_named
from draftwire.bench.sim.simulate import Plan, simulate
from studies.grid.__main__ import main
from studies.grid.grid import bound_ms, cell_of, geometric_mean, grid, judge
from studies.grid.published import beside_published, check_claims
from studies.grid.show import render

ROOT = Path(__file__).resolve().parents[2]


def plan(profile, scheme="await", **options):
    options.setdefault("streams", 1)
    options.setdefault("tokens", 300)
    return Plan(profile, scheme_named(scheme), **options)


def test_nothing_with_one_stream_of_drafts_beats_the_bound():
    profile = cell_of(find("agx-a100-qwen"), 40, 0.8)
    bound = bound_ms(plan(profile, tokens=150))
    for name in ("await", "picospec", "race", "flexspec", "qs"):
        stream = simulate(plan(profile, name, tokens=150)).streams[0]
        assert (stream.last_s - stream.began_s) * 1e3 / 150 >= bound, name


@pytest.mark.parametrize("name", [n for n in sorted(profiles()) if "picospec" in n])
def test_published_speeds_are_met_within_fifteen_percent(name):
    rows = beside_published(plan(find(name), tokens=350))
    assert [row["scheme"] for row in rows] == ["cloud", "vanilla", "picospec"]
    for row in rows:
        assert abs(row["off_percent"]) < 15, row


def test_claims_say_which_acceptance_would_meet_them():
    rows = check_claims(plan(find("go2"), tokens=40))
    asked, streams = rows
    assert asked["published_ratio"] == streams["published_ratio"] == 0.79
    # The robot is compared with a cloud that streams, or with one that is asked for
    # every token: each needs another acceptance, and neither is published.
    assert 0.1 < asked["acceptance_that_meets_it"] < streams["acceptance_that_meets_it"]


@pytest.mark.parametrize("at_once", [1, 8])
def test_the_grid_compares_and_judges(at_once):
    schemes = schemes_named("cloud,await,race,ours,colocated,hybrid")
    cells = {"boards": ["nano-a100"], "rtts_ms": [40.0, 150.0], "rates": [0.8]}
    one = plan(find("nano-a100"), tokens=60)
    rows = grid(one, schemes, **cells, at_once=at_once)
    assert rows == grid(one, schemes, **cells, at_once=at_once, jobs=2)
    row, far = rows
    assert list(row["ms_per_token"]) == [scheme.name for scheme in schemes]
    assert row["block"]["cloud"] is None and 1 <= row["block"]["await"] <= 16
    assert row["ms_per_token"]["colocated"] == far["ms_per_token"]["colocated"]
    judged = {found["what"]: found for found in judge(rows)}
    ratios = [r["ms_per_token"]["cloud"] / r["ms_per_token"]["ours"] for r in rows]
    cloud = judged["cloud"]
    assert cloud["mean"] == pytest.approx(geometric_mean(ratios))
    assert cloud["least"] == min(ratios) and cloud["least_at"][2] == 150.0
    assert cloud["quicker"] == 0 and judged["await"]["least"] > 1
    assert judged["colocated"]["ours"] == "hybrid"
    shown = render({"title": "a grid", "grid": rows, "judged": list(judged.values())})
    assert "25 / 10, 40" in shown and "over that of" in shown
    assert not judge([{**row, "ms_per_token": {"race": 20.0}}])


def test_forwards_of_few_tokens_bound_schemes_and_bound_alike():
    """A board far ahead of its target: what a forward takes in is the limit."""
    found = {}
    for rows in (4, 128):
        profile = cell_of(find("agx-a100-llama@5.4"), 10, 0.95, 8, rows)
        one = plan(profile, "race", tokens=200)
        stream = simulate(one).streams[0]
        took = (stream.last_s - stream.began_s) * 1e3 / 200
        found[rows] = took, bound_ms(one)
        assert took >= bound_ms(one) and stream.counts.rounds >= 200 / rows
    assert all(few > 1.5 * many for few, many in zip(found[4], found[128]))


def test_tokens_at_once_make_a_slow_board_quick():
    """One forward says eight tokens: what it takes a token is an eighth."""
    slow, quick = (
        simulate(plan(cell_of(find("agx-a100-qwen"), 10.0, 1.0, n), "race")).ms_per_token
        for n in (1, 8)
    )
    assert slow == pytest.approx(24, rel=0.05)
    assert quick < 24 / 8 * 1.5


def test_the_command_shows_a_profile_beside_bound_and_publications(capsys, tmp_path):
    path = tmp_path / "out.json"
    few = ["--tokens", "30", "--json", str(path), "-q"]
    assert main(["--profile", "picospec-qwen-gsm8k", *few]) == 0
    said = capsys.readouterr().out
    for word in ("clairvoyant bound", "published", "off %", "ms/token", "assumed"):
        assert word in said
    found = json.loads(path.read_text())
    assert found["bound_ms_per_token"] < found["published"][0]["tokens_per_s"] * 1e3
    # Another link or another text is not what was published.
    few += ["--scheme", "race", "--link", "30ms"]
    assert main(["--profile", "go2", *few]) == 0
    assert "published" not in json.loads(path.read_text())


def test_the_command_refuses_what_the_grid_decides_itself(capsys):
    for words, sentence in (
        (["--k", "4"], "of its own"),
        (["--scheme", "magic"], "magic"),
        (["--tokens", "0"], "streams of 0 tokens"),
        (["--profile", "nano"], "nano-a100"),
        (["--profile", "nano-a100@fast"], "nano-a100@43x8"),
        (["--profile", "nano-a100@"], "nano-a100@43x8"),
        (["--profile", "nano-a100@10x99"], "no board"),
        (["--objective", "beauty", "--profile", "go2"], "objective"),
        (["--objective", "beauty"], "objective"),
        (["--at-once", "64"], "at once 1 to 32"),
        (["--rows", "1"], "1 rows"),
        (["--acceptance", "0.6,1.2"], "no acceptances"),
        (["--loud"], "--help"),
    ):
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert sentence in said and "python -m studies.grid" in said


def test_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    words = ["--profile", "go2", "--scheme", "cloud,race", "--tokens", "20", "-q"]
    assert main([*words, "--plot", str(path)]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "name", ["controllers", "evolve", "fleet", "grid", "sampling", "versions"]
)
def test_a_study_runs_from_a_checkout(name):
    done = subprocess.run(
        [sys.executable, "-m", f"studies.{name}", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_a_study_without_draftwire_says_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "studies.grid"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 1 and "PYTHONPATH=src" in done.stderr
