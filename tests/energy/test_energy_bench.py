"""At the bench: marks into what runs, replay, exporter, traces, other tools' shapes."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from energy_lab import CHOICE, Fake, advance, run, setup, tree, write_recording

from draftwire.energy.account.meter import Meter
from draftwire.energy.files.recording import Recorder
from draftwire.energy.live import record
from draftwire.energy.live.adapters import CARBON, Measurement, ZeusLike, carbon_row
from draftwire.energy.live.marks import ENVIRONMENT, MarkListener, find_listener, mark, send
from draftwire.energy.live.watch import dashboard, serve
from draftwire.energy.rails import load_tables
from draftwire.energy.reports.compare import compare
from draftwire.energy.reports.rows import load_rows
from draftwire.energy.sources.base import monotonic_ns
from draftwire.energy.sources.choose import choose_source, open_meter
from draftwire.errors import ConfigError, OutputError, SensorError
from draftwire.io import align, parse_seconds, quantity, write_text

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


@pytest.fixture
def marks(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    listener = MarkListener()
    yield listener
    listener.close()


def wait_for(marks, count):
    lines = []
    for _ in range(200):
        lines += marks.new()
        if len(lines) >= count:
            break
        threading.Event().wait(0.01)
    return lines


def test_marks_reach_a_recording_that_runs(marks, capsys):
    assert run("mark", "draft", "--drafted", "4") == 0
    assert send(marks.path, "wait", {"emitted": 3}, t_ns=5)
    lines = wait_for(marks, 3)  # the first is the look whether anybody listens
    assert {"t": 5, "phase": "wait", "tokens": {"emitted": 3}} in lines
    assert any(line.get("phase") == "draft" for line in lines)
    with pytest.raises(ConfigError, match="nothing to mark"):
        run("mark")


def test_a_listener_that_is_gone_is_told(marks, monkeypatch):
    marks.close()
    with pytest.raises(ConfigError, match="nothing is being recorded"):
        find_listener()
    monkeypatch.setenv(ENVIRONMENT, marks.path)
    mark("draft")  # the program that is measured goes on


def test_rubbish_on_the_socket_is_counted(marks):
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"{", b"[]", b'{"t": "x"}', b'{"t":1,"tokens":{"a":"b"}}'):
            sock.sendto(data, marks.path)
        sock.sendto(b'{"t": 1, "phase": "draft"}', marks.path)
    lines = wait_for(marks, 1)
    assert [line["phase"] for line in lines] == ["draft"] and marks.bad_lines == 5


def test_an_account_shows_its_phases_to_who_records(tmp_path, capsys):
    """``record -- draftwire ...``: the runtime's own account is all it takes."""
    code = (
        "import time\n"
        "from draftwire.energy.account.account import Account\n"
        "account = Account(None).start('prefill')\n"
        "time.sleep(0.3); account.phase('draft'); time.sleep(0.5)\n"
        "account.count(drafted=4, accepted=3, emitted=4); account.result()\n"
    )
    env = f"import sys; sys.path.insert(0, {SOURCE!r})\n"
    root = tree(tmp_path / "board")
    (root / "sys/class/hwmon/hwmon0/update_interval").write_text("7")
    words = ("--hz", "50", "--root", root, "--", sys.executable, "-c", env + code)
    assert run("record", "--out", tmp_path / "run.jsonl", "--json", *words) == 0
    entry = json.loads(capsys.readouterr().out)
    assert list(entry["seconds_by_phase"])[:3] == ["run", "prefill", "draft"]
    assert entry["seconds_by_phase"]["draft"] == pytest.approx(0.5, abs=0.1)
    assert entry["tokens"] == {"drafted": 4, "accepted": 3, "emitted": 4, "requests": 1}


def test_a_command_that_will_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(record, "PATIENCE_S", 0.1)
    meter = Meter(Fake(monotonic_ns, lambda t: 5.0), CHOICE)
    command = ["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]
    with meter:
        nowhere = Recorder(None, meter.source, meter.projector)
        done = record.record(meter, nowhere, command=command, seconds=1.0)
    assert done.exit_code == -9 and done.entry["joules"] > 0


def test_a_recording_is_a_source(tmp_path):
    path = write_recording(tmp_path / "run.jsonl", [5.0, 5.04] * 60)
    with open_meter(load_tables(), name=f"replay:{path},50") as meter:
        with meter.window() as window:
            threading.Event().wait(0.08)
    assert window.source == "replay:sysfs-ina3221" and window.result.scope == "module"
    for speed in ("fast", "nan", "inf", "-1"):
        with pytest.raises(ConfigError, match=f"replay:x,{speed}"):
            open_meter(load_tables(), name=f"replay:x,{speed}")


def test_a_recording_that_is_played_ends_its_own_recording(tmp_path, capsys):
    path, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_recording(path, [5.0] * 41)
    assert run("record", "--replay", path, "--speed", 10, "--out", out) == 0
    (row,) = load_rows(out, [])
    assert row.coverage == 1.0 and row.energy_j == pytest.approx(5.0 * row.seconds)


def test_another_total_of_a_recording(tmp_path):
    path = tmp_path / "a.jsonl"
    write_recording(path, [5.0] * 41)
    text = path.read_text()
    path.write_text(
        text.replace('"others": []', '"others": [{"scope": "soc", "rails": ["VDD_SOC"]}]')
    )
    soc = load_rows(path, [], scope="soc")[0]
    assert soc.energy_j == load_rows(path, [], rails=["VDD_SOC"])[0].energy_j
    assert (soc.scope, soc.rails) == ("soc", ("VDD_SOC",))
    assert soc.energy_j == pytest.approx(load_rows(path, [])[0].by_rail_j["VDD_SOC"])
    played = choose_source([], name=f"replay:{path}", scope="soc")
    assert played.choice.total.rails == ("VDD_SOC",)
    with pytest.raises(ConfigError, match="no scope 'board'"):
        load_rows(path, [], scope="board")
    report = tmp_path / "r.json"
    report.write_text(
        json.dumps({"schema": "draftwire.report/1", "energy": {"joules": 5.0}})
    )
    with pytest.raises(ConfigError, match="has no samples"):
        load_rows(report, [], window=(0.0, 1.0))


def test_the_exporter_is_scraped():
    now, meter = setup(lambda t: 5.0)
    advance(now, meter, 1.0)
    pages = {}

    def scrape(port):
        advance(now, meter, 3.0)
        base = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{base}/metrics") as answer:
            pages["metrics"] = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{base}/else")

    serve(meter, "127.0.0.1:0", seconds=0.01, board="b", say=lambda t: None, ready=scrape)
    assert 'draftwire_power_watts{source="fake"' in pages["metrics"]
    joules = pages["metrics"].split("\ndraftwire_energy_joules_total{")[1].split()[1]
    assert float(joules) == pytest.approx(10.0, abs=0.5)
    for metric in json.loads(dashboard())["panels"]:
        name = metric["targets"][0]["expr"].replace("increase(", "").split("[")[0]
        assert f"# TYPE {name} " in pages["metrics"], "the dashboard shows what is there"
    with pytest.raises(ConfigError, match="--http nowhere"):
        serve(meter, "nowhere")


def test_a_trace_for_perfetto(tmp_path, capsys):
    phases = [(0.0, "draft"), (1.0, "wait")]
    path = write_recording(tmp_path / "run.jsonl", [5.0] * 40, phases=phases)
    assert run("report", path, "--trace", tmp_path / "t.json") == 0
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    slices = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [("draft", 0.0, 1e6), ("wait", 1e6, 0.95e6)]
    watts = [e["args"]["W"] for e in events if e.get("name") == "module (W)"]
    assert watts == [5.0] * 40


def test_windows_as_zeus_has_them():
    now, meter = setup(lambda t: 5.0 + 0.04 * (int(t * 9) % 2))
    monitor = ZeusLike(meter)
    monitor.begin_window("step")
    with pytest.raises(ConfigError, match="open already"):
        monitor.begin_window("step")
    advance(now, meter, 2.0)
    found = monitor.end_window("step")
    assert found.time == pytest.approx(2.0)
    assert found.total_energy == found.soc_energy["module"] == pytest.approx(10.0, abs=0.1)
    with pytest.raises(ConfigError, match="no window"):
        monitor.end_window("step")
    assert found.gpu_energy == {} and found.cpu_energy is found.dram_energy is None
    row = carbon_row(found.result, g_per_kwh=400.0)
    assert list(row) == CARBON and row["cpu_energy"] is None
    assert row["energy_consumed"] == pytest.approx(found.total_energy / 3.6e6)
    assert row["emissions"] == pytest.approx(row["energy_consumed"] * 0.4)
    package = replace(found.result, scope="package", rails=("a",), by_rail={"a": 3.0})
    assert Measurement(2.0, package).cpu_energy == {0: 3.0}
    assert Measurement(2.0, package).soc_energy == {}
    row = carbon_row(package, g_per_kwh=400.0)
    assert row["cpu_energy"] == row["energy_consumed"] and row["gpu_energy"] is None
    monitor.begin_window("off")
    off = monitor.end_window("off", cancel=True)
    assert off.time == 0.0 and off.result.why_null == "the window was cancelled"
    with pytest.raises(SensorError):
        _ = off.total_energy


def test_co2_only_from_a_stated_factor(tmp_path, capsys):
    path = write_recording(tmp_path / "run.jsonl", [5.0, 5.04] * 60, tokens={"requests": 3})
    run("report", path)
    out = capsys.readouterr().out
    assert "CO2" not in out and "per request (3)" in out
    run("report", path, "--co2", "400")
    assert "at 400 g/kWh, stated" in capsys.readouterr().out


def rows(tmp_path, name, watts, **more):
    return load_rows(write_recording(tmp_path / name, watts, **more), ())


def test_compare_of_unequal_lengths_asks_or_divides(tmp_path):
    short = rows(tmp_path, "a.jsonl", [5.0, 5.04] * 60)
    long = rows(tmp_path, "b.jsonl", [5.0, 5.04] * 120)
    with pytest.raises(ConfigError, match="differ in length"):
        compare(short, long)
    second = compare(short, long, per="second")
    assert not second.real and second.unit == "W"
    short = rows(tmp_path, "a.jsonl", [5.0, 5.04] * 60, tokens={"emitted": 10})
    long = rows(tmp_path, "b.jsonl", [5.0, 5.04] * 120, tokens={"emitted": 30})
    result = compare(short, long)
    assert result.per == "emitted" and result.real and result.difference_j < 0


def test_compare_follows_holes_and_refuses_what_was_stuck(tmp_path):
    watts = [5.0 if i % 9 else 9.0 for i in range(200)]
    whole = rows(tmp_path, "a.jsonl", watts)
    (hole,) = rows(tmp_path, "b.jsonl", [*watts[:60], *[None] * 60, *watts[120:]])
    assert "gaps" in hole.flags and hole.coverage < 0.75
    result = compare(whole, [hole])
    assert not result.real and result.coverage[1] < 0.75
    assert any("gaps" in text for text in result.warnings)
    hole.flags = ["stuck"]
    with pytest.raises(ConfigError, match="stuck"):
        compare(whole, [hole])


def test_the_same_run_twice_never_takes_more(tmp_path):
    for watts in ([5.0, 5.04] * 60, [5.0] * 120):
        same = rows(tmp_path, "a.jsonl", watts)
        assert not compare(same, same).real
        assert not compare(same, same, per="second").real
        alone = compare(same, same * 2)  # a side of one run is known as that run is
        assert alone.a_uncertainty_j == pytest.approx(same[0].uncertainty_j, rel=1e-6)
        assert 0 < alone.b_uncertainty_j <= alone.a_uncertainty_j


def test_unknown_accuracy_cannot_be_held_against_another_sensor(tmp_path):
    (known,) = rows(tmp_path, "a.jsonl", [5.0, 5.04] * 60)
    path = tmp_path / "meter.csv"
    text = "\n".join(f"{i * 0.05:.2f},{5.5 + 0.01 * (i % 2)}" for i in range(120))
    path.write_text(f"time_s,power_W\n{text}\n")
    (unknown,) = load_rows(path, (), scope="module")
    with pytest.raises(ConfigError, match="accuracy of meter-csv is not known"):
        compare([known], [unknown])
    (stated,) = load_rows(path, (), scope="module", meter={"accuracy": "1%"})
    assert compare([known], [stated]).real


def test_pictures_of_unequal_scopes_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    path = write_recording(tmp_path / "a.jsonl", [5.0, 5.04] * 60)
    other = tmp_path / "b.jsonl"
    other.write_text(path.read_text().replace('"module"', '"board"'))
    with pytest.raises(ConfigError, match="scopes differ"):
        run("report", path, other, "--plot", tmp_path / "x.png")
    assert run("report", path, other, path, "--html", tmp_path / "x.html") == 0
    page = (tmp_path / "x.html").read_text()
    assert "Scope module" in page and "Scope board" not in page, "one run is no chart"


def test_a_hole_is_drawn_as_one(tmp_path):
    watts = [*[5.0, 5.04] * 40, *[None] * 40, *[5.0, 5.04] * 40]
    path = write_recording(tmp_path / "run.jsonl", watts)
    run("report", path, "--html", tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "url(#hole)" in page and page.count("<polyline class=trace") >= 4


def test_io(tmp_path):
    assert parse_seconds("500ms") == 0.5 and parse_seconds("5m") == 300.0
    for bad in ("", "5 days", "-1s", "0", "s", "1e400s"):
        with pytest.raises(ConfigError):
            parse_seconds(bad)
    assert align([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"
    assert quantity(1350.4, 13.9) == "1350 +- 14 J"
    assert quantity(0.00234, 0.000012) == "2.340 +- 0.012 mJ"
    assert quantity(None, None) == "-" and quantity(5.0, None) == "5 J"
    write_text(tmp_path / "a", "one")
    with pytest.raises(ConfigError, match="cannot write"):
        write_text(tmp_path / "no" / "a", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(OutputError, match="No space left"):
        write_text(Path("/dev/full"), "three")
