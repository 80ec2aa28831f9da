"""The drafting benchmark: fair contestants, one document; speeds are not judged here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tools import drafting as bench  # noqa: E402
from tools.drafting import main  # noqa: E402
from tools.fresh import import_time, memory_over_bare  # noqa: E402

from draftwire.packages import load_draft  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TINY = FIXTURES / "tiny.draft"
QUICK = ["--blocks", "2", "--contexts", "4,32", "--no-genai", "--no-spawn"]


def test_both_loops_draft_the_same_tokens(monkeypatch, capsys):
    monkeypatch.setattr(bench, "preemptions", lambda: 0)
    command = ["--draft", str(TINY), *QUICK, "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "draftwire.bench/1"
    assert [rate["context"] for rate in document["rates"]] == [4, 32]
    for rate in document["rates"]:
        assert rate["same_tokens"]
        assert set(rate["tokens_per_s"]) == {"draftwire", "bare engine"}
        assert rate["ratio_to"]["bare engine"] > 0
        assert (rate["rounds"], rate["rounds_undisturbed"]) == (2, 2)
    assert "--no-genai" in document["why_no_genai"]
    assert document["import"] is None


def test_the_table_names_every_contestant(capsys):
    assert main(["--draft", str(TINY), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "draftwire tok/s" in out
    assert "ratio to bare engine" in out
    assert "WARNING" not in out


def test_disturbed_rounds_are_left_out_and_replaced(monkeypatch):
    class Fixed:
        last_token = 0

        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def fill(self, context):
            pass

        def block(self, context):
            return next(self.seconds)

    def seconds(usual, disturbed):
        yield usual  # the first touch
        while True:
            yield disturbed
            yield usual

    calls = itertools.count()

    def preemptions():  # read before and after a round; every other round is disturbed
        number, after = divmod(next(calls), 2)
        return 2 * number + (after if number % 2 == 0 else 0)

    monkeypatch.setattr(bench, "preemptions", preemptions)
    contestants = [Fixed("a", seconds(2.0, 50.0)), Fixed("b", seconds(1.0, 1.0))]
    rate = bench._measure(contestants, 4, 10)
    assert (rate["rounds"], rate["rounds_undisturbed"]) == (20, 10)
    assert rate["ratio_to"]["b"] == 0.5
    assert rate["tokens_per_s"]["a"] == bench.STEPS / 2.0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--contexts", "150"], "do not fit in the draft's 160 tokens"),
        (["--contexts", "0"], "no count"),
        (["--contexts", "3,x"], "no count"),
        (["--threads", "none"], "no count"),
        (["--precision", "int2"], "int2"),
    ],
)
def test_wrong_flags_are_refused(capsys, flags, complaint):
    assert main(["--draft", str(TINY), *QUICK, *flags]) == 2
    assert complaint in capsys.readouterr().err


def test_a_concat_graph_has_no_bare_loop(capsys):
    draft = str(FIXTURES / "tiny_concat.draft")
    assert main(["--draft", draft, *QUICK]) == 2
    assert "'concat'" in capsys.readouterr().err


def test_fresh_processes_measure_import_and_memory():
    pytest.importorskip("tokenizers")
    assert import_time(1)["cpu_seconds_median"] > 0
    memory = memory_over_bare(load_draft(TINY), "fp32", 1)
    if memory is not None:
        assert memory["over_bare_mb"] < 40
