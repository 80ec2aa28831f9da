"""The flags of ``draftwire export`` are what its functions take."""

import importlib
import inspect
import signal
import subprocess
import sys
import time

import pytest
from hf_folder import base_folder
from places import environment

from draftwire.cli import main
from draftwire.cli.export import JOBS


@pytest.mark.parametrize("name", JOBS)
def test_each_flag_is_a_parameter_and_each_parameter_a_flag(name):
    job = JOBS[name]
    module, function = job.call.split(":")
    called = getattr(importlib.import_module(module), function)
    given = {flag.strip("!") for flag in job.flags.split()}
    given = {"family_name" if flag == "family" else flag for flag in given}
    (_, *taken) = inspect.signature(called).parameters.values()
    # What programs have beside: who is told of progress, and what is for tests.
    names = {p.name for p in taken} - {"say", "settings", "against", "made", "texts"}
    assert given == names
    if job.settings:
        assert {"settings", "say"} <= {p.name for p in taken}
    needed = {p.name for p in taken if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    assert needed <= {flag.strip("!") for flag in job.flags.split() if "!" in flag}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["draft", "x", "--out", "a.draft", "--data", "t", "--lr", "0"], "--lr"),
        (["draft", "x", "--out", "a.draft"], "--data"),
        (["evolve", "x", "--out", "a", "--data", "t", "--rank", "0"], "--rank"),
        (["exits", "x", "--layers", "1,two"], "--layers"),
        (["onnx", "x", "--out", "a.draft", "--role", "judge"], "--role"),
        (["tune", "x", "--threads", "0"], "no count"),
        (["adapter", "x", "--base", "b", "--out", "o.target"], "--version must be given"),
        (["onnx", "x", "--out", "a.draft", "--checkpoint", "c"], "does not go with onnx"),
    ],
)
def test_a_wrong_flag_is_named(words, sentence, capsys):
    assert main(["export", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["pakage", "x"], "did you mean package?"),
        (["onnx", "x", "--out", "a.draft", "--precison=int8"], "did you mean --precision?"),
        (["onnx", "x", "--out", "a.draft", "--zzz"], "see `draftwire export package"),
    ],
)
def test_what_is_misspelt_gets_the_nearest(words, hint, capsys):
    assert main(["export", *words]) == 2
    assert f"hint: {hint}" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_is_half_made_goes_with_what_ends_it(number, code, tmp_path):
    base_folder(tmp_path / "base")
    out = tmp_path / "out"
    words = ["export", "package", str(tmp_path / "base"), "--out", str(out / "a.draft")]
    line = [sys.executable, "-m", "draftwire", *words]
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE)
    while not list(out.glob("*/*") if out.exists() else []):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == code and not list(out.iterdir())
