"""The doctor: what fails is found in a process of its own, and one command mends it."""

import json
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from fake_boards import BOARDS, build
from odd_servers import FIN, beside, http, script
from places import MODELS, draftwire

from draftwire.bench.child import local_verifier
from draftwire.boards.checks import python as check_python
from draftwire.boards.checks.draft import check_draft
from draftwire.boards.checks.findings import Finding
from draftwire.boards.checks.machine import check_clock, check_memory, check_threads
from draftwire.boards.checks.python import check_imports
from draftwire.boards.child import run_python
from draftwire.boards.detect import detect
from draftwire.boards.doctor import Report, examine
from draftwire.boards.profiles import load_profiles
from draftwire.boards.system import Memory
from draftwire.cli import main
from draftwire.cli.boards.doctor import PROBE, check_verifier, render

PROFILES = load_profiles()


def by_name(findings):
    return {finding.name: finding for finding in findings}


def is_one_command(text):
    """A shell reads it, and it is one line."""
    assert text and "\n" not in text
    return subprocess.run(["sh", "-n", "-c", text], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_the_files_of_every_board_are_examined(tmp_path, name):
    found = detect(build(tmp_path, BOARDS[name]), PROFILES)
    report = examine(found, None)
    assert report.draft is None
    for finding in report.findings:
        assert finding.status in ("ok", "warn", "fail", "skip") and finding.detail
        if finding.status in ("warn", "fail"):
            assert is_one_command(finding.fix), finding
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema"] == "draftwire.doctor/1"
    if BOARDS[name].python == "3.6":  # JetPack 4: its Python is too old for us
        assert report.would_run is False and report.exit_code == 3
        assert "3.8" in by_name(report.findings)["system"].fix
    else:
        assert report.would_run is None and report.exit_code == 0
        assert "none was opened" in render(report)


def throttling(root):
    return by_name(examine(detect(root, PROFILES), None).findings)["throttling"]


def test_a_pi_with_a_weak_supply_is_told(tmp_path):
    found = throttling(build(tmp_path, BOARDS["pi4"]))
    assert found.status == "warn" and "under-voltage" in found.detail
    assert found.fix == "vcgencmd get_throttled"
    flags = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    flags.write_text("50000")  # of the past: no fault of this moment
    found = throttling(tmp_path)
    assert found.status == "ok" and "since boot" in found.detail


def test_heat_and_over_current_are_told(tmp_path):
    root = build(tmp_path, BOARDS["orin-nx"])
    (root / "sys/class/thermal/thermal_zone0/temp").write_text("97000")
    (root / "sys/class/hwmon/hwmon3/curr1_max_alarm").write_text("1")
    (root / "sys/class/hwmon/hwmon0/oc3_event_cnt").write_text("7")
    found = throttling(root)
    assert found.status == "warn"
    assert "97 C" in found.detail and "above its limit" in found.detail


def test_threads_follow_the_cores_that_are_online(tmp_path):
    found = detect(build(tmp_path / "nx", BOARDS["orin-nx"]), PROFILES)
    assert check_threads(found, 4).status == "ok"
    eight = check_threads(found, 8)
    assert eight.status == "warn" and eight.fix == "export DRAFTWIRE_THREADS=4"
    rock = detect(build(tmp_path / "rock", BOARDS["rock-5b"]), PROFILES)
    text = check_threads(rock, 1).detail
    assert "4 online (Cortex-A76)" in text and "taskset -c 4,5,6,7" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert check_threads(detect(empty, PROFILES), 1).status == "skip"


def test_memory_is_held_against_what_the_draft_took(tmp_path):
    found = detect(build(tmp_path, BOARDS["orin-nano-super"]), PROFILES)
    (plenty,) = check_memory(found, needs=70 << 20)
    assert plenty.status == "ok" and "70 MiB" in plenty.detail
    object.__setattr__(found, "memory", Memory(8 << 30, 100 << 20, 0, None, 3))
    little, blocks = check_memory(found, needs=70 << 20, gpu=True)
    assert little.status == "warn" and blocks.status == "warn"
    assert "lfb" in blocks.detail and "compact_memory" in blocks.fix
    (none,) = check_memory(found, needs=170 << 20)
    assert none.status == "fail" and is_one_command(none.fix)
    object.__setattr__(found, "memory", Memory(8 << 30, 4 << 30, 0, 60 << 20, None))
    assert check_memory(found)[0].status == "fail", "a container's limit counts"


def test_a_clock_of_1970_matters_where_a_certificate_does():
    assert check_clock(0.0, secure=False).status == "warn"
    bad = check_clock(86400.0, secure=True)
    assert bad.status == "fail" and "1970" in bad.detail
    assert bad.fix == "sudo timedatectl set-ntp true"
    assert check_clock(1.8e9, secure=True).status == "ok"


def fake_python(folder, script):
    """An interpreter that runs ``script`` before it becomes the real one."""
    path = folder / "python"
    real = shlex.quote(sys.executable)
    path.write_text(f'#!/bin/sh\n{script}\nexec {real} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_an_illegal_instruction_in_numpy_is_found_and_got_round(tmp_path, monkeypatch):
    """As numpy 1.19.5 does on a Jetson Nano: SIGILL unless OpenBLAS is told the core."""
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    script = (
        'case "$*" in *"import numpy"*) '
        '[ "$OPENBLAS_CORETYPE" = ARMV8 ] || kill -ILL $$ ;; esac'
    )
    python = fake_python(tmp_path, script)
    monkeypatch.setattr(check_python, "_ENGINES", check_python._ENGINES[:1])
    findings, environ = check_imports((), python=python)
    numpy = by_name(findings)["numpy"]
    assert numpy.status == "fail" and "OPENBLAS_CORETYPE=ARMV8" in numpy.detail
    assert "OPENBLAS_CORETYPE=ARMV8" in numpy.fix and is_one_command(numpy.fix)
    assert environ == {"OPENBLAS_CORETYPE": "ARMV8"}


def dies(words, said="", number=""):
    """Return a script that ends, or is killed, where the words for Python have these."""
    end = f"kill -{number} $$" if number else f'echo "{said}" >&2; exit 1'
    return f'case "$*" in {words}) {end} ;; esac\n'


LOST = "ModuleNotFoundError: No module named "
NO_LITERT = dies("*litert*|*tflite*", LOST)
OLD_API = "AttributeError: _ARRAY_API not found"
OLD_LIBC = "ImportError: version 'GLIBC_2.34' not found"


@pytest.mark.parametrize(
    ("script", "name", "detail", "fix"),
    [
        (dies("*numpy*", number="ILL"), "numpy", "SIGILL", "numpy"),
        (dies("*numpy*", number="SEGV"), "numpy", "SIGSEGV", "numpy"),
        (
            dies("*websockets*", LOST + "'websockets'"),
            "websockets",
            "not installed",
            "install websockets",
        ),
        (
            dies("*onnxruntime*", LOST) + NO_LITERT,
            "engine",
            "no engine",
            "install tflite-runtime",
        ),
        (
            dies('*"import onnxruntime"*', OLD_API) + NO_LITERT,
            "onnxruntime",
            "numpy 2 is installed",
            "numpy<2",
        ),
        (
            dies("*tokenizers*", OLD_LIBC),
            "tokenizers",
            "newer system",
            "--upgrade tokenizers",
        ),
    ],
)
def test_what_an_import_dies_of(tmp_path, script, name, detail, fix):
    python = fake_python(tmp_path, script + 'case "$*" in *import*) exit 0 ;; esac')
    findings, _ = check_imports(("tflite-runtime",), python=python)
    finding = by_name(findings)[name]
    assert finding.status == "fail" and detail in finding.detail
    assert fix in finding.fix.replace("'", "") and is_one_command(finding.fix)


def draft_script(folder, body):
    """A command that plays the probe: words after python that describe a draft."""
    path = folder / "probe.py"
    about = {"name": "d", "engines": ["onnxruntime", "litert"]}
    path.write_text(
        "import json, os, signal, sys, time\n"
        "words = sys.argv[1:]\n"
        f"about = {about!r}\n"
        "best = {'engine': 'onnxruntime 1.0', 'precision': 'int8', 'threads': 1,\n"
        "        'step_ms': 1.5, 'load_s': 0.25, 'peak_bytes': 1 << 26}\n"
        f"{body}\n"
        "print(json.dumps(about if not words else best))\n"
    )
    return [str(path)]


@pytest.mark.parametrize(
    ("body", "detail", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "SIGILL", 3),
        ("words and os.kill(os.getpid(), signal.SIGKILL)", "memory runs out", 3),
        ("sys.exit('ImportError: gone')", "ImportError: gone", 3),
        (
            "print(json.dumps({'error': {'message': 'it is damaged', 'hint': 'copy it "
            "again', 'exit_code': 5}})); sys.exit(5)",
            "it is damaged (copy it again)",
            5,
        ),
        ("print('[]'); sys.exit(0)", "exit code 0", 3),
    ],
)
def test_a_draft_that_does_not_open_is_a_failure(tmp_path, body, detail, code):
    result = check_draft(draft_script(tmp_path, body), ())
    assert result.best is None
    (finding,) = result.findings
    assert finding.status == "fail" and detail in finding.detail
    assert finding.exit_code == code and is_one_command(finding.fix)


def test_a_second_engine_or_a_provider_that_fails_is_no_failure(tmp_path):
    body = (
        "if 'litert' in words: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "if '--provider' in words:\n"
        "    name = words[words.index('--provider') + 1]\n"
        "    print('no kernel image is available for execution', file=sys.stderr)\n"
        "    best = {'provider': name, 'listed': True, 'ran': name[0] == 'X',\n"
        "            'nodes': {'CPUExecutionProvider': 50}, 'step_ms': 2.0,\n"
        "            'why_not': '' if name[0] == 'X' else 'every node ran on the CPU',\n"
        "            'note': '3 of 50 nodes ran on the CPU' if name[0] == 'X' else ''}\n"
    )
    providers = [f"{name}ExecutionProvider" for name in ("CUDA", "X", "Azure", "CPU")]
    result = check_draft(draft_script(tmp_path, body), providers)
    assert result.best["step_ms"] == 1.5
    found = by_name(result.findings)
    assert list(found) == ["draft", "litert", "CUDA", "X"]
    assert found["draft"].status == "ok" and "1.50 ms a token" in found["draft"].detail
    assert found["litert"].status == "warn" and "SIGSEGV" in found["litert"].detail
    assert found["CUDA"].status == "warn" and "no kernel image" in found["CUDA"].detail
    assert is_one_command(found["CUDA"].fix)
    assert found["X"].status == "warn" and "3 of 50 nodes" in found["X"].detail


def test_a_process_that_hangs_is_stopped(tmp_path):
    child = run_python(["-c", "import time; time.sleep(60)"], timeout_s=0.5)
    assert child.code is None and "no answer" in child.how() and child.seconds < 30
    assert run_python(["-c", ""], python=str(tmp_path / "gone")).code == 127
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})"
    assert run_python(["-c", code]).illegal


def asked(url, draft=None, **changes):
    options = {"token_file": None, "target": "", "ca": None, "insecure": False}
    return check_verifier(url, draft, **{**options, **changes})


def test_this_machine_the_reference_draft_and_a_real_verifier(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    with local_verifier([MODELS / "v1.target"]) as (url, token):
        (tmp_path / "token").write_text(token)
        words = ["--verifier", url, "--token-file", "token", "--json", "out.json"]
        done = draftwire("boards", "doctor", *words, folder=tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
        document = json.loads((tmp_path / "out.json").read_text())
        assert document["would_run"] is True
        found = {finding["name"]: finding for finding in document["findings"]}
        assert found["draft"]["status"] == "ok" and "a token" in found["draft"]["detail"]
        assert found["verifier"]["status"] == "ok" and "v1" in found["verifier"]["detail"]
        assert found["handshake"]["status"] == "ok"
        (run, *_) = document["draft"]["runs"]
        assert run["step_ms"] > 0 and run["peak_bytes"] > 1 << 20
        assert "A draft would run here." in done.stdout
        draft = MODELS / "reference.draft"
        _, greeting = asked(url, draft)
        assert greeting.status == "fail" and "--token-file" in greeting.fix
        assert greeting.exit_code == 4
        answer = asked(url, draft, token_file=tmp_path / "token", target="v9")
        assert answer[-1].status == "fail" and "v9" in answer[-1].detail


def test_a_damaged_draft_ends_with_its_own_code(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    copy = tmp_path / "mine.draft"
    shutil.copytree(MODELS / "reference.draft", copy)
    model = copy / "model.int8.onnx"
    data = bytearray(model.read_bytes())
    data[1000] ^= 1
    model.write_bytes(data)
    result = check_draft([*PROBE, str(copy)], ())
    (finding,) = result.findings
    assert finding.status == "fail" and finding.exit_code == 5
    assert is_one_command(finding.fix)
    report = Report(detect(build(tmp_path / "r", BOARDS["pi5"]), PROFILES), (finding,))
    assert report.exit_code == 5 and "would not run here: draft" in render(report)


HEALTH = {"status": "ok", "targets": [{"name": "t", "version": "v1"}]}
WELL = json.dumps(HEALTH).encode()
DRAINING = json.dumps({**HEALTH, "status": "draining"}).encode()


@pytest.mark.parametrize(
    ("body", "date", "name", "status", "detail"),
    [
        (b"<html>", None, "verifier", "fail", "no draftwire verifier"),
        (b"[]", None, "verifier", "fail", "no draftwire verifier"),
        (WELL, None, "verifier", "ok", "t v1"),
        (DRAINING, None, "verifier", "warn", "draining"),
        (WELL, "Thu, 01 Jan 1970 00:00:00 GMT", "clock", "warn", "ahead of"),
        (WELL, "soon", "verifier", "ok", "t v1"),
    ],
)
async def test_what_may_answer_in_a_verifiers_place(body, date, name, status, detail):
    headers = [f"Date: {date}"] if date else []
    answer = script(http(200, *headers, body=body), FIN)
    finding = by_name(await beside(answer, asked))[name]
    assert finding.status == status and detail in finding.detail
    if status != "ok":
        assert is_one_command(finding.fix)


def test_nobody_answers(tmp_path, capsys):
    (finding,) = asked("ws://127.0.0.1:9")
    assert finding.status == "fail" and finding.exit_code == 4
    assert "draftwire verifier serve" in finding.fix
    root = build(tmp_path, BOARDS["pi5"])
    words = ["boards", "doctor", "--root", str(root), "--verifier", "ws://127.0.0.1:9"]
    assert main(words) == 0, "another machine's files say nothing of this one's network"
    assert "verifier" not in capsys.readouterr().out


def test_the_text_is_for_people(tmp_path, monkeypatch):
    found = detect(build(tmp_path, BOARDS["pi4"]), PROFILES)
    fix = "sudo " + "x" * 200
    report = examine(found, None).plus([Finding("thing", "fail", "is broken", fix)])
    text = render(report, colour=True)
    assert "\x1b[31mfail\x1b[0m thing" in text and f"fix: {fix}\n" in text + "\n"
    quiet = render(report, quiet=True)
    assert "ok   " not in quiet and "would not run here: thing. 1 warning." in quiet
