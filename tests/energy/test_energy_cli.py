"""``draftwire energy``, from the words on the command line to the files it writes."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from energy_lab import run, tree, write_recording

from draftwire.cli import energy as command
from draftwire.cli import main
from draftwire.energy.files.recording import read_recording
from draftwire.energy.live.pulse import PATTERN_S, find_offset
from draftwire.energy.live.record import Recorded
from draftwire.energy.reports.compare import compare
from draftwire.energy.reports.rows import Row, analyse, load_rows
from draftwire.energy.reports.sweep import Point, pareto, set_mode
from draftwire.energy.reports.sweep import sweep as run_modes
from draftwire.energy.reports.text import as_table
from draftwire.errors import BoardError, ConfigError, OutputError, SensorError


@pytest.fixture
def recording(tmp_path):
    watts = [(4.0 if i < 101 else 9.0) + 0.04 * ((i - (i > 100)) % 2) for i in range(201)]
    known = {"phases": [(0.0, "prefill"), (5.0, "draft")]}
    known["tokens"] = {"drafted": 40, "accepted": 20, "emitted": 25}
    return write_recording(tmp_path / "run.jsonl", watts, **known)


def test_sources(tmp_path, capsys):
    assert run("sources", "--root", tmp_path) == 3
    out = capsys.readouterr().out
    assert "chosen   none" in out and "no   rapl" in out
    assert run("sources", "--root", tree(tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["board"]["name"] == "jetson-orin-nano"
    assert found["chosen"] == "sysfs-ina3221"
    assert found["total"] == {"scope": "module", "rails": ["VDD_IN"]}
    assert found["total_by"] == "board and rail names"
    assert run("sources", "--root", tmp_path) == 0
    assert "scope module" in capsys.readouterr().out


def test_record_a_command_with_marks(tmp_path, capsys):
    out = tmp_path / "run.jsonl"
    root = str(Path(command.__file__).resolve().parents[2])
    code = (
        f"import sys, time; sys.path.insert(0, {root!r})\n"
        "from draftwire import energy\n"
        "energy.mark('draft'); time.sleep(0.3)\n"
        "energy.mark('wait'); time.sleep(0.2)\n"
        "energy.mark(drafted=4, accepted=3, emitted=4)\n"
    )
    where = ("--hz", "5", "--root", tree(tmp_path / "board"))
    words = ("--out", out, "--json", *where, "--", sys.executable, "-c", code)
    assert run("record", *words) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["joules"] > 0 and set(entry["by_phase"]) == {"run", "draft", "wait"}
    assert "known to" in entry["why_null_by_phase"]["wait"], "300 ms, an unknown sensor"
    assert entry["tokens"] == {"drafted": 4, "accepted": 3, "emitted": 4}
    assert entry["context"]["start"]["power_mode"] == "25W"
    again, _ = analyse(read_recording(out))
    assert again["joules"] == pytest.approx(entry["joules"], rel=0.02)
    seconds = [found["seconds_by_phase"]["draft"] for found in (again, entry)]
    assert seconds[0] == pytest.approx(seconds[1], abs=1e-3)
    with pytest.raises(ConfigError, match="exists"):
        run("record", "--out", out, "--for", "1s", *where)


def test_record_survives_a_full_disk(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    where = ("--hz", "5", "--root", tree(tmp_path))
    assert run("record", "--out", "/dev/full", "--force", "--for", "300ms", *where) == 6
    captured = capsys.readouterr()
    assert "ends early: the disk is full" in captured.err
    assert " J in " in captured.out and "0 samples in" in captured.out


def test_record_returns_the_code_of_the_command(tmp_path, capsys):
    words = ("record", "--out", tmp_path / "a.jsonl", "--root")
    fails = ("--", sys.executable, "-c", "raise SystemExit(7)")
    assert run(*words, tree(tmp_path / "board"), *fails) == 7
    with pytest.raises(SensorError, match="no power source"):
        run(*words, tmp_path / "empty", *fails)


def test_a_program_that_is_not_there_is_said_before_anything_is_measured(tmp_path):
    words = ("record", "--baseline", "1h", "--root", tree(tmp_path / "board"), "--out")
    with pytest.raises(ConfigError, match="no program 'nosuch'"):
        run(*words, tmp_path / "a.jsonl", "--", "nosuch", "words")
    assert not (tmp_path / "a.jsonl").exists()
    with pytest.raises(ConfigError, match="cannot write .*: No such file") as found:
        run("record", *words[3:], tmp_path / "gone" / "a.jsonl", "--", "true")
    assert found.value.hint and "Errno" not in str(found.value)


def test_a_cut_recording_is_still_worth_something(tmp_path):
    path = write_recording(tmp_path / "run.jsonl", [5.0, 5.04] * 50, close=False)
    path.write_bytes(path.read_bytes()[:-20] + b"\xff\xfe")
    (row,) = load_rows(path, ())
    assert row.energy_j == pytest.approx(5.02 * 4.9, rel=0.01)
    assert "not closed" in row.flags


ODD = ["\x1b[31mx", [1], {"a": {"b": 1}}, 10**400, float("inf")]


def damaged(document):
    """Yield a document with one value after the other that is none of ours."""
    for key, value in document.items():
        yield from ({**document, key: odd} for odd in ODD)
        for inner in damaged(value) if isinstance(value, dict) else ():
            yield {**document, key: inner}


def test_damaged_files_are_told_and_never_a_bug(tmp_path):
    watts = [5.0, 5.04] * 5
    known = {"phases": [(0.0, "draft")], "tokens": {"emitted": 4}}
    path = write_recording(tmp_path / "run.jsonl", watts, **known)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    entry, _ = analyse(read_recording(path))
    entry.update(by_scope={"board": 9.0}, net=1.0, baseline_w=2.0, flags=["late"])
    look = {"heat_c": {"cpu": 50.0}, "power_mode": "15W"}
    entry["context"] = {"start": look, "end": look}
    lines[0].update(command=["x"], notes=["y"], update_s=0.1, baseline_w=1.0, parts=["a"])
    lines[-1]["result"] = entry
    report = {"schema": "draftwire.report/1", "tokens": 4, "drafted": 2, "accepted": 1}
    report.update(mode={"objective": "cost"}, seconds={"total": 1.0}, energy=entry)
    kept = [[found] for found in damaged(report)]
    for number in (0, 1, -3, -2, -1):
        for found in damaged(lines[number]):
            kept.append([*lines[:number], found, *(lines[number:][1:])])
    told = 0
    for document in kept:
        path.write_text("".join(json.dumps(line) + "\n" for line in document))
        try:
            rows = load_rows(path, ())
        except ConfigError:
            told += 1
        else:
            as_table(rows)
            json.dumps([row.to_dict() for row in rows], allow_nan=False)
    assert told > 300  # values of keys that nobody reads do no harm


def test_a_file_has_no_say_over_the_terminal(tmp_path, capsys):
    phases = [(0.0, "\x1b[31mx"), (2.0, "y")]
    path = write_recording(tmp_path / "run.jsonl", [5.0, 5.04] * 50, phases=phases)
    assert run("report", path) == 0
    out = capsys.readouterr().out
    assert "[31mx" in out and "\x1b" not in out


def test_one_sample_is_no_energy(tmp_path):
    with pytest.raises(ConfigError, match="holds a moment"):
        load_rows(write_recording(tmp_path / "run.jsonl", [5.0]), ())


def test_report_formats(recording, tmp_path, capsys):
    assert run("report", recording, "--battery-wh", "50") == 0
    table = capsys.readouterr().out
    assert "65.1 +- " in table and "per emitted token" in table and "100 %" in table
    assert "per 1,000 emitted tokens" in table and "tokens/J" in table
    assert run("report", recording, "--format", "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["phase_draft_j"]) == pytest.approx(45.1, rel=0.01)
    assert float(row["j_per_emitted"]) == pytest.approx(65.1 / 25, rel=0.01)
    assert row["net_j"] == ""
    assert run("report", recording, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["scope"] == "module" and row["power_mode"] == "15W"
    assert run("report", recording, "--format", "prometheus") == 0
    text = capsys.readouterr().out
    pattern = r"^(# (HELP|TYPE) \w+ .+|\w+\{(\w+=\"[^\"]*\",?)+\} -?[\d.e+-]+)$"
    assert all(re.match(pattern, line) for line in text.splitlines())
    assert 'draftwire_energy_phase_joules{file="run.jsonl"' in text
    with pytest.raises(ConfigError, match="Parquet is binary"):
        run("report", recording, "--format", "parquet")


def test_report_parquet(recording, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "a.parquet"
    assert run("report", recording, "--format", "parquet", "--out", out) == 0
    (row,) = parquet.read_table(out).to_pylist()
    assert row["energy_j"] == pytest.approx(65.1, rel=0.01) and row["net_j"] is None


def test_report_pictures(recording, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.png", "a.svg"):
        assert run("report", recording, "--plot", tmp_path / name) == 0
        assert (tmp_path / name).stat().st_size > 5000
    assert run("report", recording, recording, "--plot", tmp_path / "b.png") == 0
    with pytest.raises(ConfigError, match=r"\.png"):
        run("report", recording, "--plot", tmp_path / "a.bmp")


def test_report_html_is_self_contained(recording, tmp_path, capsys):
    assert run("report", recording, "--html", tmp_path / "a.html") == 0
    text = (tmp_path / "a.html").read_text()
    assert "<svg" in text and "prefill" in text and "65." in text
    assert not re.search(r"(src|href)=|https?://|@import", text)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_report_of_run_reports(tmp_path, capsys):
    report = {"schema": "draftwire.report/1", "tokens": 20, "drafted": 30, "accepted": 15}
    report.update(seconds={"total": 4.0}, mode={"objective": "energy"})
    known = {"source": "sysfs-ina3221", "scope": "module", "uncertainty": 0.8}
    known["by_phase"] = {"draft": 15.0, "wait": 5.0}
    report["energy"] = {"joules": 20.0, **known, "why_null": None}
    null = {**report, "energy": {"joules": None, "why_null": "no sensor"}}
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([report, null]))
    assert run("report", path, "--json") == 3
    first, second = json.loads(capsys.readouterr().out)["rows"]
    assert first["per_token_j"] == {"drafted": 0.5, "accepted": 20 / 15, "emitted": 1.0}
    assert second["energy_j"] is None and second["why_null"] == "no sensor"
    with pytest.raises(ConfigError, match="is ours already"):
        run("report", "--import", path)
    for text in ("{}", "[]", ""):
        path.write_text(text)
        for words in ((path,), ("--import", path)):
            with pytest.raises(ConfigError, match="no run report"):
                run("report", *words)


@pytest.mark.parametrize(
    "words", "--out a --html a --plot a.png --trace a --format=csv".split(" --")
)
def test_an_examination_writes_no_files(words, capsys):
    words = f"--{words.lstrip('-')}".split()
    if "--plot" in words:  # without it the flag itself is refused
        pytest.importorskip("matplotlib")
    assert main(["energy", "report", "--import", "meter.csv", *words]) == 2
    assert "does not go with --import" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-5"])
@pytest.mark.parametrize(
    "flag",
    "report:--interval report:--duration report:--voltage report:--battery-wh "
    "report:--co2 watch:--hz watch:--speed".split(),
)
def test_a_flag_that_is_no_number_is_named(flag, value, capsys):
    leaf, name = flag.split(":")
    files = ["a.csv"] if leaf == "report" else []
    assert main(["energy", leaf, *files, f"{name}={value}"]) == 2
    assert name in capsys.readouterr().err


def test_times_that_are_none_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("voltage_V,current_A\n" + "5.0,0.8\n" * 9)
    with pytest.raises(ConfigError, match="--interval inf is not positive"):
        load_rows(path, (), interval_s=float("inf"))
    path.write_text(log_of("VDD_IN"))
    with pytest.raises(ConfigError, match="must be positive"):
        load_rows(path, (), duration_s=float("nan"))


def log_of(rail):
    """Write 21 stamped samples of 5 W."""
    text = "01-02-2026 03:00:{:02d} RAM 1/2MB CPU [1%@729] tj@50C {} 5000mW/5000mW"
    return "\n".join(text.format(n, rail) for n in range(21))


def test_import_tells_what_it_found(tmp_path, capsys):
    log = tmp_path / "tegrastats.log"
    log.write_text(log_of("VDD_IN"))
    assert run("import", log) == 0
    out = capsys.readouterr().out
    assert "21 samples" in out and "100.0 +- " in out and "running mean" in out
    assert run("import", log, "--window", "5:15", "--json") == 0
    assert json.loads(capsys.readouterr().out)["energy_j"] == pytest.approx(50.0)
    log.write_text(log_of("VDD_FOO"))
    assert run("import", log) == 3
    assert "--rails" in capsys.readouterr().out
    assert run("import", log, "--rails", "VDD_FOO") == 0
    capsys.readouterr()
    log.write_text("A_A current(1)=1.0A\nA_V volt(2)=5.0V\n" * 3)
    run("import", log, "--interval", "1000")
    out = capsys.readouterr().out
    assert out.startswith("pmic-log: 3 samples, ") and "running mean" not in out


def meter_file(path, edges, *, shift, rate=100.0, length=14.0):
    """A meter that starts ``shift`` seconds before our zero; idle 3 W, busy 9 W."""
    rows = ["Time(s),Voltage(V),Current(mA)"]
    for i in range(int(length * rate)):
        t = i / rate
        busy = sum(edge <= t - shift for edge in edges) % 2
        rows.append(f"{t:.3f},5.000,{(9.0 if busy else 3.0) / 5 * 1000:.1f}")
    path.write_text("\n".join(rows))
    return path


def pulse_edges(begin):
    edges = [begin]
    for length in PATTERN_S:
        edges.append(edges[-1] + length)
    return edges


def test_import_a_meter_and_align_it(tmp_path, capsys):
    edges = pulse_edges(1.0)
    log = meter_file(tmp_path / "meter.csv", edges, shift=2.37)
    phases = [(7.0, "draft"), (8.0, "wait")]
    path = write_recording(tmp_path / "run.jsonl", [4.0] * 180, phases=phases)
    with open(path, "a") as file:
        for i, edge in enumerate(edges):
            mark = "pulse off" if i % 2 else "pulse on"
            file.write(json.dumps({"t": int(edge * 1e9), "mark": mark}) + "\n")
    assert run("import", log, "--align", path, "--json") == 0
    captured = capsys.readouterr()
    assert "clock + -2.37" in captured.err
    row = json.loads(captured.out)
    assert row["scope"] == "board-input"
    assert row["by_phase_j"]["draft"] == pytest.approx(3.0, rel=0.05)
    write_recording(path, [4.0] * 10)
    with pytest.raises(ConfigError, match="no load pulse"):
        run("import", log, "--align", path)


def test_a_meter_that_does_not_show_the_pulse():
    samples = [(i * 0.01, 5.0 + (i * 37 % 11) * 0.01) for i in range(1000)]
    with pytest.raises(ConfigError, match="no load pulse"):
        find_offset(samples, pulse_edges(0.0))


def row(joules, half, **rest):
    known = {"source": "sysfs", "scope": "module", "kind": "measured"}
    known["terms"] = {"offset": 0.1, "gain": 0.05, "sampling": (half or 0) / 2}
    return Row("run", "run", joules, half, **{**known, **rest})


def test_compare_one_run_each():
    same = compare([row(100.0, 2.0)], [row(101.0, 2.0)])
    assert not same.real and "no difference" in same.verdict
    other = compare([row(100.0, 2.0)], [row(110.0, 2.0)])
    assert other.real and "more" in other.verdict
    assert other.ratio == pytest.approx(1.1)
    assert any("one run" in text for text in other.warnings)


def test_compare_shares_what_one_sensor_shares():
    terms = {"offset": 5.0, "gain": 1.0, "sampling": 0.5}
    a = [row(100.0, 10.0, terms=terms)]
    one = compare(a, [row(104.0, 10.0, terms=terms)])
    assert one.real, "the same offset on both sides cancels"
    two = compare(a, [row(104.0, 10.0, terms=terms, source="meter")])
    assert not two.real and any("sources differ" in text for text in two.warnings)


def test_compare_runs_decides_by_their_spread():
    a = [row(j, 0.2) for j in (100.0, 106.0, 94.0)]
    b = [row(j, 0.2) for j in (103.0, 109.0, 97.0)]
    assert not compare(a, b).real
    a, b = ([row(j, 0.2) for j in side] for side in ((100.0, 100.1), (103.0, 103.1)))
    assert compare(a, b).real


def test_compare_refuses_what_cannot_be_compared():
    with pytest.raises(ConfigError, match="scopes differ"):
        compare([row(1.0, 0.1)], [row(1.0, 0.1, scope="board")])
    with pytest.raises(ConfigError, match="no sensor"):
        compare([row(None, None, why_null="no sensor")], [row(1.0, 0.1)])


def test_compare_command(recording, tmp_path, capsys):
    other = write_recording(tmp_path / "b.jsonl", [8.0, 8.04] * 100)
    assert run("compare", recording, f"{other},{other}", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["real"] is True and result["runs"] == [1, 2]


def test_watch_a_replay(recording, capsys):
    words = ("--replay", recording, "--speed", "50", "--for", "600ms")
    assert run("watch", *words) == 0
    captured = capsys.readouterr()
    assert "total, module" in captured.out and "VDD_SOC" in captured.out
    assert run("watch", *words, "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["source"] == "replay:sysfs-ina3221" and first["scope"] == "module"


def test_watch_keeps_to_a_small_terminal(recording, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "4")
    assert run("watch", "--replay", recording, "--speed", "8") == 0
    shown = capsys.readouterr().out.split("\x1b[3F\x1b[J")[-1].splitlines()
    assert len(shown) == 3 and max(map(len, shown)) == 20


def test_watch_renews_a_file_for_prometheus_and_outlives_a_full_disk(tmp_path, capsys):
    words = ("watch", "--root", tree(tmp_path), "--hz", "5", "--for", "1s", "--prom")
    assert run(*words, tmp_path / "metrics") == 0
    metrics = (tmp_path / "metrics").read_text()
    assert "draftwire_power_watts{" in metrics and 'board="jetson-orin-nano"' in metrics
    capsys.readouterr()
    with pytest.raises(OutputError, match="No space left"):
        run(*words, "/dev/full")
    captured = capsys.readouterr()
    assert captured.err.count("No space left") == 1 and len(captured.out.splitlines()) > 1


def test_sweep_sets_modes_only_with_consent(tmp_path, capsys):
    root = tree(tmp_path)
    status = root / "var/lib/nvpmodel/status"
    setter = tmp_path / "set"
    setter.write_text(f"#!/bin/sh\necho pmode:000$1 > {status}\n")
    setter.chmod(0o755)
    sweep = ("sweep", "--hz", "5", "--root", root, "--modes", "15W,25W", "--repeats", "1")
    python = ("--", sys.executable, "-c")
    slow = ("--settle", "1ms", *python, "import time; time.sleep(0.2)")
    assert run(*sweep, "--set", f"{setter} {{id}}", "--yes", "--json", *slow) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [p["mode"] for p in points] == ["15W", "25W"]
    assert all(p["energy_j"] > 0 and p["per"] == "run" for p in points)
    status.write_text("pmode:0001")
    assert run(*sweep, *slow) == 3, "nobody here to set the first mode; the second is run"
    captured = capsys.readouterr()
    assert "15W: nobody here" in captured.err and "25W" in captured.out
    out = tmp_path / "kept.json"
    once = tmp_path / "once"
    code = (
        f"import os,sys; sys.exit(os.path.exists('{once}') or open('{once}','w').close())"
    )
    with pytest.raises(OutputError, match="No space left"):
        run(*sweep, "--set", f"{setter} {{id}}", "--yes", "--out", "/dev/full", *slow)
    captured = capsys.readouterr()
    assert "Pareto" in captured.out, "what was measured is shown"
    assert captured.err.count("No space left") == 1
    status.write_text("pmode:0001")
    fails = ("--settle", "1ms", "--out", out, *python, code)
    turned = [word.replace("15W,25W", "25W,15W") for word in map(str, sweep)]
    assert run(*turned, "--set", f"{setter} {{id}}", "--yes", *fails) == 3
    first, second = json.loads(out.read_text())["points"]
    assert first["runs"] and not second["runs"] and "ended with 1" in second["error"]
    assert status.read_text() == "pmode:0001\n", "the board is back in its mode"


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "end"])
def test_sweep_brings_the_board_back_and_keeps_its_runs(how, tmp_path):
    root, out, again = tree(tmp_path), tmp_path / "kept.json", tmp_path / "again"
    status = root / "var/lib/nvpmodel/status"
    status.write_text("pmode:0001\n")
    setter = tmp_path / "set"
    setter.write_text(f"#!/bin/sh\nsleep 0.2\necho pmode:000$1 > {status}\n")
    setter.chmod(0o755)
    once, wait = tmp_path / "once", 0.2 if how == "end" else 3
    code = f"[ -e {once} ] && touch {again} && exec sleep {wait}; touch {once}; sleep 0.3"
    words = ["sweep", "--root", root, "--modes", "15W", "--repeats", "2", "--hz", "5"]
    words += ["--set", f"{setter} {{id}}", "--yes", "--settle", "0s", "--out", out]
    line = [sys.executable, "-m", "draftwire", "energy", *words, "--", "sh", "-c", code]
    child = subprocess.Popen(list(map(str, line)), start_new_session=True)
    while how != "end" and not again.exists():
        assert child.poll() is None
        time.sleep(0.02)
    if how != "end":
        assert status.read_text() == "pmode:0000\n"
        child.send_signal(getattr(signal, how))
    assert child.wait(120) == (0 if how == "end" else 130)
    assert status.read_text() == "pmode:0001\n", "the board is back in its mode"
    (point,) = json.loads(out.read_text())["points"]
    assert len(point["runs"]) == (2 if how == "end" else 1) and point["energy_j"] > 0
    assert point["error"] == ("" if how == "end" else "interrupted")


def test_sweep_brings_the_board_back_when_it_breaks():
    did: list[object] = []

    def run_one(mode: str, number: int) -> Recorded:
        if number:
            raise RuntimeError("a fault")
        entry = {"joules": 2.0, "uncertainty": 0.1, "seconds_by_phase": {"run": 1.0}}
        return Recorded(entry, 0, False, "")

    with pytest.raises(RuntimeError, match="a fault"):
        run_modes(
            ["15W", "25W"],
            enter=lambda mode: did.append(mode),
            run=run_one,
            done=lambda points: did.append(len(points[0].runs)),
            leave=lambda: did.append("back"),
        )
    assert did == ["15W", 1, "back"], "the run that was done is kept, then the mode"


def test_sweep_notices_a_mode_that_did_not_change():
    with pytest.raises(BoardError, match="in power mode 15W, not 25W"):
        set_mode("25W", 1, template="true", present=lambda: "15W", agree=lambda text: None)
    how = {"template": "true", "present": lambda: None, "agree": lambda text: None}
    assert "the user says so" in set_mode("25W", 1, **how)


def test_pareto():
    points = [
        Point("fast", 10.0, 0.1, 1.0, "run"),
        Point("middle", 7.0, 0.1, 2.0, "run"),
        Point("bad", 8.0, 0.1, 3.0, "run"),
        Point("null", None, None, 0.5, "run"),
    ]
    pareto(points)
    assert [p.mode for p in points if p.pareto] == ["fast", "middle"]
    points[2].uncertainty_j = 2.0
    pareto(points)
    assert points[2].pareto, "thriftier by less than both know: nothing is dominated"
