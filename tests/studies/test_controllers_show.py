"""What the auto controller is worth in virtual time: margins here, tables in the bench."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftwire.bench.sim.facts import find
from draftwire.bench.sim.texts import Synthetic, parse_luck
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import make_controller
from studies.controllers.__main__ import main
from studies.controllers.policies import MODES, POLICIES, run_policy
from studies.controllers.tables import Settings, bench_controllers, one_step, render
from studies.grid.bound import clairvoyant_s

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DRAFTWIRE_SHARED", ROOT.parent / "shared")) / "data"
TRACES = sorted((SHARED / "channel").glob("*.csv"))
BOARD = "agx-a100-qwen"
TEXTS = Synthetic(parse_luck("0.8"), seed=3)


def speed(policy, mode, link, tokens=220, streams=1, texts=TEXTS):
    return run_policy(
        policy, BOARD, mode, link, texts, streams=streams, tokens=tokens
    ).tokens_s


@pytest.mark.skipif(not TRACES, reason="the channel traces are not here")
def test_a_race_on_a_moving_link():
    link = f"80ms,trace:{TRACES[2 % len(TRACES)]}"
    auto = speed("auto", "race", link)
    assert auto >= 0.93 * max(speed("oracle", "race", link), speed("off", "race", link))
    assert all(auto >= 0.99 * speed(policy, "race", link) for policy in POLICIES[1:])


def test_no_policy_beats_the_exact_bound():
    profile = find(BOARD)
    bound = clairvoyant_s(
        TEXTS.text(0, 220).right,
        draft_s=profile.seconds("draft.step_ms"),
        forward_s=lambda n: profile.seconds("cloud.forward_ms"),
        up_s=0.04,
        down_s=0.04,
    )
    auto = speed("auto", "race", "80ms")
    assert 0.83 * 220 / bound <= auto <= 1.02 * 220 / bound


@pytest.mark.parametrize(
    "what,first,then", [("rtt_ms", 20, 150), ("acceptance", 0.85, 0.45)]
)
def test_a_step_is_followed_in_fifteen_rounds(what, first, then):
    found = [one_step(what, first, then, seed) for seed in (1, 2)]
    assert all(share is not None and share >= 0.93 for share in found), found
    assert sum(share or 0 for share in found) / len(found) >= 0.95


def test_energy_saves_joules_and_stays_nearly_as_fast():
    runs = [
        run_policy(policy, BOARD, "ahead", "80ms/20mbit", TEXTS, streams=2, tokens=250)
        for policy in ("auto", "auto:energy")
    ]
    assert runs[1].joules_per_token <= 0.85 * runs[0].joules_per_token
    assert runs[1].tokens_s >= runs[0].tokens_s / 1.25


@pytest.mark.parametrize(
    "mode,watts", [("race", 22.0), ("ahead", 30.0), ("pipeline", 40.0), ("default", 22.0)]
)
def test_no_window_of_a_stream_exceeds_its_watts(monkeypatch, mode, watts):
    """As by default it prepares outcomes: drafts that no block asks for."""
    monkeypatch.setitem(MODES, "default", Mode.of("auto", preempt="guess,exits,outcomes"))
    controller = make_controller("auto", max_watts=watts)
    run = run_policy(controller, BOARD, mode, "80ms/20mbit", TEXTS, tokens=300)
    assert run.worst_watts <= watts
    free = run_policy("auto", BOARD, mode, "80ms/20mbit", TEXTS, tokens=300)
    assert free.worst_watts > watts, "the budget binds"


@pytest.mark.slow
@pytest.mark.skipif(not TRACES, reason="the channel traces are not here")
def test_every_trace_and_every_mode():
    document = bench_controllers(Settings(TRACES, tokens=300, streams=2))
    races = [row for row in document["traces"] if row["mode"] == "race"]
    assert sum(row["of_best"] for row in races) / len(races) >= 0.93
    for row in document["traces"]:
        assert row["to_next"] >= 0.995, row
        assert row["of_oracle"] <= 1.001, row
    assert all(row["of_optimum"] >= 0.95 for row in document["steps"])
    assert all(
        row["worst_window_watts"] <= (row["max_watts"] or 99) for row in document["budgets"]
    )
    assert render(document).count("\n") > 30


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "traces"
    folder.mkdir()
    words = ["--traces", str(folder)]
    assert main(words) == 2
    assert "no trace" in capsys.readouterr().err
    (folder / "steady.csv").write_text("t_s,mbit_s\n0.0,5.0\n1.0,5.0\n")
    out = tmp_path / "out.json"
    few = ["--tokens", "40", "--streams", "1", "--modes", "race", "--json", str(out)]
    assert main([*words, *few, "--modes", "magic"]) == 2
    assert "magic" in capsys.readouterr().err
