"""``draftwire bench compare``: live over a link, on played texts and on real models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from draftwire.bench.compare import run as compare_module
from draftwire.bench.compare.server import PacedVerifier
from draftwire.cli import main
from draftwire.errors import TransportError
from draftwire.io import environment

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DRAFT, TARGET = FIXTURES / "tiny.draft", FIXTURES / "tiny.target"
MODELS = ["--draft", str(DRAFT), "--target", str(TARGET)]
PROFILE = """
schema = "draftwire.timing/1"
name = "quick"
title = "a test's own"
[draft]
step_ms = { value = 1.0, how = "assumed", source = "a test" }
[cloud]
forward_ms = { value = 4.0, how = "assumed", source = "a test" }
draft_step_ms = { value = 0.2, how = "assumed", source = "a test" }
[link]
rtt_ms = { value = 4.0, how = "assumed", source = "a test" }
[text]
acceptance = { value = 0.7, how = "assumed", source = "a test" }
vocabulary = { value = 500, how = "assumed", source = "a test" }
prompt_tokens = { value = 12, how = "assumed", source = "a test" }
[[exit]]
fraction = 0.5
agreement = 0.9
coverage = 0.8
how = "assumed"
source = "a test"
[watts]
draft = { value = 6.0, how = "assumed", source = "a test" }
prefill = { value = 6.0, how = "assumed", source = "a test" }
verify-wait = { value = 2.0, how = "assumed", source = "a test" }
wait = { value = 2.0, how = "assumed", source = "a test" }
"""


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text(PROFILE)
    return ["--profile", str(path), "--acceptance", "0.7", "--texts", "1"]


def run(words, capsys):
    code = main(["bench", "compare", "-q", *MODELS, *words, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def test_rows_take_turns_and_write_one_text(profile, capsys):
    schemes = "cloud,colocated,vanilla:2,earlyexit:3,picospec:2,latency,ours-cost,ours"
    words = [*profile, "--tokens", "12", "--repeats", "2", "--scheme", schemes]
    code, document, _ = run([*words, "--link", "4ms", "--method", "proxy"], capsys)
    assert code == 0 and document["different"] == []
    names = schemes.split(",")
    runs = document["runs"]
    assert [r["bench"]["scheme"] for r in runs] == names * 2  # A B C A B C
    assert [r["bench"]["repeat"] for r in runs] == [0] * 8 + [1] * 8
    assert len({tuple(r["token_ids"]) for r in runs}) == 1
    assert all(r["tokens"] == 12 and r["finish"] == "length" for r in runs)
    rows = {row["scheme"]: row for row in document["rows"]}
    assert rows["cloud"]["ratio"] == 1.0 and rows["cloud"]["forwards_per_token"] == 1.0
    assert rows["latency"]["forwards_per_token"] <= 1.0
    # A verifier that judges second choices is ours alone.
    for told in runs:
        assert (told["leaves"]["sent"] > 0) is (told["bench"]["scheme"] == "ours")
    # 500 half floats beside each drafted token: carried, not reckoned.
    vanilla = [r for r in runs if r["bench"]["scheme"] == "vanilla:2"]
    assert all(r["bytes"]["up_payload"] >= 1000 * r["drafted"] > 0 for r in vanilla)
    for row in rows.values():
        assert row["joules_source"] == "model:quick" and row["joules_per_token"] > 0
        assert row["forward_ms"] >= 4.0 and row["up_wire_per_token"] > 0
        assert len(row["ms_per_token_each"]) == 2
    # The draft's time counts where it takes the server's.
    near = [r["seconds"] for r in runs if r["bench"]["scheme"] == "colocated"]
    busy = sum(s["verify"] + s["draft"] for s in near)
    assert rows["colocated"]["capacity_tokens_s"] == pytest.approx(24 / busy)
    assert document["links"][0]["draft_forwards"] > 0


def test_real_models_sampling_over_a_link(capsys):
    words = ["--temperature", "0.8", "--top-k", "20", "--tokens", "10", "--repeats", "1"]
    words += ["--scheme", "cloud,vanilla,qs,picospec,latency", "--prompt", "Once upon"]
    code, document, _ = run([*words, "--link", "2ms", "--method", "proxy"], capsys)
    assert code == 0 and document["compared"] == 2  # the others draw texts of their own
    used = {r["bench"]["scheme"]: r["sampling"]["scheme"] for r in document["runs"]}
    assert used == {
        "cloud": "coupled",
        "vanilla": "residual",
        "qs": "qs",
        "picospec": "separate",
        "latency": "coupled",
    }
    cloud, *_, latency = document["runs"]
    assert cloud["token_ids"] == latency["token_ids"]
    assert all(row["joules_per_token"] is None for row in document["rows"])
    assert all(row["joules_why_null"] for row in document["rows"])


def test_no_verifier_helps_a_row_that_has_no_use_for_it(capsys):
    words = ["--tokens", "20", "--repeats", "1", "--prompt", "Once upon", "--link", "2ms"]
    words += ["--scheme", "cloud,cloud+lookup", "--method", "proxy"]
    code, document, _ = run(words, capsys)
    cloud, looking = (row["forwards_per_token"] for row in document["rows"])
    assert code == 0 and looking < cloud == 1.0  # the text repeats a word


def test_simulated_rows_have_the_same_columns(profile, capsys, tmp_path):
    trace = tmp_path / "up_and_down.csv"
    trace.write_text("t_s,mbit_s\n0,2\n1,0.1\n2,2\n")
    words = [*profile, "--simulate", "--tokens", "40", "--link", "10ms"]
    words += ["--trace", str(trace)]
    words += ["--scheme", "cloud,await,colocated,ours-latency", "--k", "best"]
    code, document, _ = run(words, capsys)
    assert code == 0 and document["simulated"] and document["compared"] == 8
    assert [row["scheme"] for row in document["rows"][:2]] == ["cloud", "await"]
    for row in document["rows"]:
        assert row["ms_per_token"] > 0 and row["capacity_tokens_s"] > 0
        assert row["ratio"] == 1.0 if row["scheme"] == "cloud" else row["ratio"] > 0
    assert main(["bench", "compare", "-q", *MODELS, *words, "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| scheme | 10ms | 40ms/up_and_down |")
    assert main(["bench", "compare", "-q", *MODELS, *words]) == 0
    assert "law 1: 8 texts" in capsys.readouterr().out


def test_a_broken_law_is_an_error_exit(profile, capsys, monkeypatch):
    right = compare_module.run_simulated

    def broken(*args):
        found = right(*args)
        found.reports[-1]["token_ids"][5] += 1
        return found

    monkeypatch.setattr(compare_module, "run_simulated", broken)
    words = [*profile, "--simulate", "--tokens", "20", "--scheme", "cloud,await"]
    code, document, said = run([*words, "--link", "10ms"], capsys)
    assert code == 1
    assert document["different"] == [
        "prompt 1: await over 10ms, repeat 1 differs from cloud over 10ms, repeat 1 "
        "from token 6 on"
    ]
    assert "draftwire: error: law 1: prompt 1" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--scheme", "cloud,picospeck"], "no scheme is called 'picospeck'"),
        (["--scheme", "cloud,cloud"], "the scheme cloud is asked for twice"),
        (["--scheme", ","], "no scheme is named"),
        (["--simulate", "--seed", "-1"], "seed is -1"),
        (["--scheme", "latency:4"], "latency chooses its lengths itself"),
        (["--scheme", "await:0"], "'await:0' has no block length"),
        (["--link", "fast"], "fast"),
        (["--link", "10ms", "--link", "10ms"], "a link is asked for twice"),
        (["--trace", "no.csv"], "there is no trace at no.csv"),
        (["--profile", "nano-b100"], "no timing profile is called 'nano-b100'"),
        (["--profile", "nano-a100@10x8", "--acceptance", "1"], "is simulated, not played"),
        (["--acceptance", "0.8"], "take no time of their own"),
        (["--acceptance", "2", "--profile", "nano-a100"], "'2'"),
        (["--acceptance", "0.8", "--text", "x.json"], "exclude each other"),
        (["--acceptance", "1", "--profile", "go2", "--temperature", "1"], "greedy"),
        (["--acceptance", "1", "--profile", "go2", "--prompt", "a"], "of their own"),
        (["--simulate", "--prompt", "a"], "of their own"),
        (["--repeats", "0"], "repeats is 0"),
        (["--tokens", "0"], "tokens is 0"),
        (["--k", "many"], "--k 'many' is no block length"),
        (["--k", "best"], "known beforehand"),
        (["--target", "v9"], "there is no target 'v9'"),
        (["--method", "pigeon"], "no method 'pigeon'"),
        (["--temperature", "-1"], "temperature: '-1' is not a number, 0 to"),
    ],
)
def test_wrong_input_is_one_sentence(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "compare", "-q", "--scheme", "cloud", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("draftwire: error: ") and sentence in said


def test_rows_that_cannot_run_are_named(profile, capsys, tmp_path):
    text = PROFILE[: PROFILE.index("[[exit]]")] + PROFILE[PROFILE.index("[watts]") :]
    (tmp_path / "plain.toml").write_text(text)
    words = ["--profile", str(tmp_path / "plain.toml"), "--acceptance", "0.7", "--simulate"]
    words += ["--link", "10ms", "--tokens", "10"]
    _, document, _ = run([*words, "--scheme", "cloud,earlyexit"], capsys)
    assert document["left_out"] == [
        {"scheme": "earlyexit", "why": "the profile has no early exits"}
    ]
    assert document["schemes"] == ["cloud"]
    assert main(["bench", "compare", "-q", *words, "--scheme", "earlyexit"]) == 2
    assert "no row can be run" in capsys.readouterr().err
    words = ["--simulate", "--link", "10ms", "--tokens", "4", "--scheme", "cloud,hybrid"]
    _, document, _ = run(words, capsys)  # the models that were asked for, in virtual time
    assert document["text"] == "tiny draft, target tiny"
    assert [row["scheme"] for row in document["left_out"]] == ["hybrid"]


def test_the_paced_verifier_ends_with_its_owner_and_says_why_it_does_not_start(tmp_path):
    with pytest.raises(TransportError, match="did not start"):
        PacedVerifier(tmp_path / "none.target")
    with PacedVerifier(TARGET) as verifier:
        process = verifier.process
        assert verifier.port > 0 and process.poll() is None
    assert process.returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "draftwire.bench.compare.server"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1  # nobody said what to serve
