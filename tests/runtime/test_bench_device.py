"""``draftwire bench device``: fresh processes, honest gaps."""

import importlib.util
import json
import sys

import pytest
from places import FIXTURES

pytest.importorskip("onnxruntime")

from draftwire.bench import device  # noqa: E402
from draftwire.bench.device import Settings, bench_device  # noqa: E402
from draftwire.cli import main  # noqa: E402
from draftwire.errors import ConfigError  # noqa: E402

TINY, LITERT = FIXTURES / "tiny.draft", FIXTURES / "tiny_litert.draft"
QUICK = ["--rounds", "1", "--spawn", "1", "--threads", "1", "--precisions", "fp32"]


def has_litert():
    names = ("ai_edge_litert", "tflite_runtime")
    return any(importlib.util.find_spec(name) for name in names)


@pytest.mark.parametrize("draft", [TINY, LITERT], ids=["onnxruntime", "litert"])
def test_the_command_measures_every_line_in_a_process_of_its_own(draft, capsys, tmp_path):
    if draft == LITERT and not has_litert():
        pytest.skip("neither ai-edge-litert nor tflite-runtime")
    file = tmp_path / "device.json"
    words = ["bench", "device", "--draft", str(draft), *QUICK, "--json", str(file)]
    assert main(words) == 0
    table = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["bench"] == "device"
    assert document["machine"]["python"] == sys.version.split()[0]
    (run,) = document["runs"]
    assert (run["precision"], run["threads"], run["processes"]) == ("fp32", 1, 1)
    assert run["engine_version"] in table
    assert run["first_token_s"] > run["import_s"] > 0
    assert run["tokens_per_s"] == pytest.approx(1e3 / run["step_ms"])
    several = run["engine"] == "onnxruntime"
    assert run["lanes"] == (4 if several else 1)
    assert ("a forward of 4 sequences takes" in table) is bool(run["lanes_ms"]) is several
    assert run["joules_per_token"] is not None or run["energy_why_null"]
    (other,) = {"onnxruntime", "litert"} - {run["engine"]}
    assert document["left_out"] == [f"{other}: {draft.name} has no file for it"]
    assert document["install"][other]["total_mb"] is None


def test_a_line_that_cannot_run_does_not_end_the_others(monkeypatch):
    def child(code, text):
        wanted = json.loads(text)
        if wanted["threads"] == 2:
            raise ConfigError("a measuring process ended with -9: Killed")
        return json.dumps({"step_ms": 2.0, "rounds": 1, "rounds_undisturbed": 1})

    monkeypatch.setattr(device, "run_child", child)
    document = bench_device(Settings(TINY, threads=(1, 2), precisions=("int8",)))
    one, two = document["runs"]
    assert one["tokens_per_s"] == 500 and one["rss_loaded_mb"] is None
    assert "Killed" in two["error"] and "tokens_per_s" not in two
    assert "Killed" in device.render({**document, "runs": [two]})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engines": ("abacus",)}, "no engine 'abacus'"),
        ({"engines": ("litert",)}, "nothing to measure: litert: tiny.draft has no file"),
        ({"precisions": ("int3",)}, "nothing to measure"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        bench_device(Settings(TINY, **settings))
