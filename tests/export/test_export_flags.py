"""The flags of ``draftwire export`` are what its functions take."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

for library in ("torch", "transformers", "peft", "onnx", "onnxruntime", "ai_edge_litert"):
    pytest.importorskip(library)
pytestmark = pytest.mark.workstation

from draftwire.cli import main  # noqa: E402
from draftwire.cli.export import LEAVES  # noqa: E402


@pytest.mark.parametrize("name", LEAVES)
def test_each_flag_is_a_parameter_and_each_parameter_a_flag(name):
    leaf = LEAVES[name]
    module, function = leaf.call.split(":")
    called = getattr(importlib.import_module(module), function)
    given = {flag.strip("!") for flag in leaf.flags.split()}
    given = {"family_name" if flag == "family" else flag for flag in given}
    (_, *taken) = inspect.signature(called).parameters.values()
    names = {p.name for p in taken}
    if any(p.kind is p.VAR_KEYWORD for p in taken):  # it makes an object of them
        from draftwire.bench.tune import Tuning

        names = {field.name for field in dataclasses.fields(Tuning)} - {"draft"}
    # What programs have beside: who is told of progress, and what is for tests.
    names -= {"say", "settings", "against", "made", "texts"}
    assert given == names
    if leaf.settings:
        assert {"settings", "say"} <= {p.name for p in taken}
    needed = {p.name for p in taken if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    assert needed <= {flag.strip("!") for flag in leaf.flags.split() if "!" in flag}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["draft", "x", "--out", "a.draft", "--data", "t", "--lr", "0"], "--lr"),
        (["draft", "x", "--out", "a.draft"], "--data"),
        (["evolve", "x", "--out", "a", "--data", "t", "--rank", "0"], "--rank"),
        (["exits", "x", "--layers", "1,two"], "--layers"),
        (["onnx", "x", "--out", "a.draft", "--role", "judge"], "--role"),
        (["tune", "x", "--threads", "0"], "--threads"),
    ],
)
def test_a_wrong_flag_is_named(words, sentence, capsys):
    assert main(["export", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["onxn", "x"], "did you mean onnx?"),
        (["onnx", "x", "--out", "a.draft", "--precison=int8"], "did you mean --precision?"),
        (["onnx", "x", "--out", "a.draft", "--zzz"], "see `draftwire export onnx --help`"),
    ],
)
def test_what_is_misspelt_gets_the_nearest(words, hint, capsys):
    assert main(["export", *words]) == 2
    assert f"hint: {hint}" in capsys.readouterr().err


@pytest.mark.parametrize("name", LEAVES)
def test_each_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", name, "--help"])
    assert ended.value.code == 0
    assert LEAVES[name].source[0] in capsys.readouterr().out
