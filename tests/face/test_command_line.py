"""The command line: usage, exit codes, errors, settings; with a played session."""

import argparse
import asyncio
import contextlib
import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from places import draftwire as run

import draftwire
from draftwire import errors
from draftwire.cli import COMMANDS, MOVED, main, whole_parser
from draftwire.cli.completion import words_of
from draftwire.io import environment, parse_json, read_token_text, run_async
from draftwire.options import GROUPS, OPTIONS, options_of


@functools.lru_cache(maxsize=None)
def leaves():
    """Return the words of each command that runs, and what may follow."""
    found = {" ".join(path): words for path, words in words_of(whole_parser())}
    return {name: words for name, words in found.items() if "--json" in words}


def test_help_lists_the_commands_and_the_exit_codes():
    done = run("--help")
    text = done.stdout
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name}" in text
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "130"):
        assert f"\n  {code}" in text


@pytest.mark.parametrize("name", sorted({*COMMANDS, *leaves()}))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    assert f"draftwire {name}" in capsys.readouterr().out


def test_version():
    assert run("--version").stdout == f"draftwire {draftwire.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "name a command", "--help"),
        (["dmeo"], "no command 'dmeo'", "did you mean demo?"),
        (["--nonsense"], "--nonsense", "--help"),
        (["generate", "x", "--tem", "1"], "--tem", "draftwire"),
        (["generate", "x", "--block", "none"], "--block", "a whole number, 1 to 255"),
        (["generate", "x"], "no verifier", "--verifier"),
        (["generate", "x", "--scheme", "coupled"], "coupled", "--temperature"),
        (["generate", "x", "--scheme", "greedy", "--temperature", "1"], "greedy", ""),
        (["generate", "x", "--scheme", "grady"], "grady", "greedy"),
        (["generate", "x", "--max-new-tokens", "0"], "--max-new-tokens is 0", "1 to"),
        (["generate", "x", "--seed", "-1"], "seed", ""),
        (["config", "shwo"], "shwo", "did you mean show?"),
        (["boards"], "WHAT", "draftwire boards --help"),
        (["boards", "doctr"], "doctr", "did you mean doctor?"),
        (["boards", "show", "kria-kv26"], "kria-kv26", "mean kria-kv260?"),
        (["demo", "--target", "v11"], "v11", "did you mean v1?"),
        (["demo", "--target", "../models/v1"], "../models/v1", ""),
        (["generate", "x", "--tempreature", "1"], "--temp", "did you mean --temperature?"),
        (["sampling", "table"], "no part of the package now", "python -m studies.sampling"),
        (["config", "show", "--config", "gone.toml"], "gone.toml", ""),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(words, message, hint, played, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("draftwire: error: ") and message in lines[0]
    assert len(lines) <= 2 and hint in "".join(lines[1:])


# ---- errors


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_gives_its_exit_code(name, played, capsys):
    played.failure = getattr(errors, name)("it broke", hint="mend it")
    assert main(played.words()) == played.failure.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["draftwire: error: it broke", "hint: mend it"]


def test_a_bug_is_exit_code_1_without_a_traceback(played, capsys):
    played.failure = ZeroDivisionError("division by zero")
    assert main(played.words()) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("onnx.helper", "'draftwire[export]'"),
        ("ai_edge_litert", "'draftwire[tflite]'"),
        ("nosuch", "nosuch"),
    ],
)
def test_a_library_that_is_missing_is_no_bug_of_ours(
    name, wanted, played, capsys, monkeypatch
):
    lines = ["ai-edge-litert>=2; extra == 'tflite'", 'onnx>=1.16; extra == "export"']
    monkeypatch.setattr("importlib.metadata.requires", lambda package: lines)
    played.failure = ModuleNotFoundError("No module", name=name)
    assert main(played.words()) == 2
    said = capsys.readouterr().err.splitlines()
    what = f"this needs {name.split('.')[0]}, which is not installed"
    assert said == [f"draftwire: error: {what}", f"hint: pip install {wanted}"]


@pytest.mark.parametrize("place", [0, 2, 10])
def test_debug_shows_the_traceback(place, played):
    played.failure = errors.ModelError("it broke")
    words = played.words()
    with pytest.raises(errors.ModelError):
        main([*words[:place], "--debug", *words[place:]])


@pytest.mark.parametrize("flag", [["--json"], ["--json", "-"], ["--json="]])
def test_errors_are_json_when_json_is_asked_for(flag, played, capsys):
    played.failure = errors.RefusedError("the token is wrong", hint="copy it again")
    assert main([*played.words(), *flag]) == 4
    captured = capsys.readouterr()
    said = {"kind": "RefusedError", "message": "the token is wrong"}
    assert json.loads(captured.out) == {"error": {**said, "hint": "copy it again"}}
    assert "the token is wrong" in captured.err


def test_wrong_usage_is_json_too(played, tmp_path, capsys):
    assert main(["generate", "x", "--nonsense", "--json", "out.json"]) == 2
    error = json.loads((tmp_path / "out.json").read_text())["error"]
    assert error["kind"] == "ConfigError" and "--nonsense" in error["message"]
    assert capsys.readouterr().out == ""


def test_an_unwritable_json_file_is_a_clear_error(played, capsys):
    assert main([*played.words(), "--json", "no/such/folder/out.json"]) == 2
    assert "no/such/folder/out.json" in capsys.readouterr().err


def test_config_show_tells_the_origin(played, monkeypatch, tmp_path):
    (tmp_path / "draftwire.toml").write_text('target = "v3"')
    monkeypatch.setenv("DRAFTWIRE_BLOCK", "8")
    assert main(["config", "show", "--origin", "--json", "out.json"]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert next(iter(document)) == "schema"
    found = document["settings"]
    assert found["target"] == {"value": "v3", "origin": "draftwire.toml"}
    assert found["block"] == {"value": 8, "origin": "DRAFTWIRE_BLOCK"}
    assert found["verifier"] == {"value": None, "origin": "default"}


def test_a_reader_that_leaves_is_no_error():
    script = (
        "import sys\nfrom draftwire.cli import main\nimport draftwire.cli.config as c\n"
        "def run(args):\n    raise BrokenPipeError\n"
        "c.run = run\nsys.exit(main(['config', 'show']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_under_stdout_is_exit_code_6():
    with open("/dev/full", "wb") as full:
        done = run("config", "options", stdout=full)
    lines = done.stderr.splitlines()
    assert done.returncode == 6 and len(lines) == 2, lines
    assert lines[0] == "draftwire: error: cannot write the output: No space left on device"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_leads_nowhere(closed):
    """As under a supervisor or in cron: no traceback, and no socket takes its number."""
    words = [sys.executable, "-m", "draftwire", "report", "--frame", "-"]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *words],
        env=environment(),
        input=b"zz",
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == (4 if "<" in closed else 2)  # no frame, or no hex digits
    said = "" if "2" in closed else "draftwire: error: "
    assert done.stderr.decode()[:18] == said


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_what_a_locale_cannot_spell_is_escaped(encoding):
    file = os.fsdecode("/etc/…".encode() + b"\xff")
    told = {"PYTHONIOENCODING": encoding}
    done = run("config", DRAFTWIRE_TOKEN_FILE=file, **told)
    assert done.returncode == 0 and done.stderr == ""
    shown = "/etc/\\u2026\\udcff" if encoding[:5] == "ascii" else "/etc/…\\udcff"
    assert shown in done.stdout
    done = run("report", "--frame", "-", said="…", **told)
    assert done.returncode == 2 and "hex digits" in done.stderr


IMPORTED = """\
import os, signal, sys
sys.path.remove(os.path.dirname(__file__))
def press():
    for _ in range({0} // signal.SIGTERM + 1):  # timeout(1) sends it twice
        os.kill(os.getpid(), {0})
        os.getpid()
class Deaf:
    def __del__(self):
        press()
{1}
del sys.modules[__name__]
import {2}
"""
SWALLOWED = """\
try:
    press()
except BaseException:
    raise ImportError("as libraries in C have it")
"""


@pytest.mark.parametrize("pressed", [SWALLOWED, "Deaf()"], ids=["swallowed", "deaf"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("library", ["gettext", "numpy", "onnxruntime"])
def test_a_signal_in_an_import_is_quiet(library, number, pressed, tmp_path):
    """It comes while the first words are read, before a session, and under one."""
    (tmp_path / f"{library}.py").write_text(IMPORTED.format(int(number), pressed, library))
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = run("generate", "Once", "--verifier", "ws://127.0.0.1:1", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


def test_ctrl_c_cancels_what_runs_in_a_loop():
    done = []

    async def work():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(asyncio.CancelledError):  # as `wait_for` may
                await asyncio.sleep(60)
            await asyncio.sleep(60)
        finally:
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run_async(work())
    assert done == ["cleaned up"]


def test_the_first_screen_of_help_has_what_is_used_most():
    text = run("generate", "--help", COLUMNS="80").stdout
    assert len(text.splitlines()) <= 40
    first = "\n".join(text.splitlines()[:26])
    common = [option for option in OPTIONS.values() if option.common]
    assert len(common) <= 11
    for option in common:
        assert f"  {option.flag} " in first, option.flag
    assert "  --json " in first and "--help-all shows" in text
    whole = run("generate", "--help-all", COLUMNS="80").stdout
    for option in options_of(*GROUPS):
        assert (f"  {option.flag} " in whole.replace(",", " ")) is not option.secret


def test_the_commands_are_few_and_all_have_the_flags_of_all():
    assert len(leaves()) <= 30, sorted(leaves())
    for name, words in leaves().items():
        assert {"--json", "--quiet", "--verbose", "--config"} <= set(words), name


@pytest.mark.parametrize("old", sorted(MOVED))
def test_what_a_command_was_called_before_it_still_is(old):
    new = MOVED[old].split()
    name = next(" ".join(new[:n]) for n in (2, 1) if " ".join(new[:n]) in leaves())
    flags = [word for word in new if word.startswith("--")]
    assert set(flags) <= set(leaves()[name])
    with pytest.raises(SystemExit) as caught:
        main([*old.split(), *(["bash"] if "--" in new[-1] else []), "--help"])
    assert caught.value.code == 0


def test_a_shell_completes_commands_flags_and_words():
    script = run("config", "--completion", "bash").stdout
    tries = {
        "dem": "demo",
        "boards doc": "doctor",
        "generate x --temp": "--temperature",
        "bench simulate --hou": "--hours",
        "generate --scheme x --objective lat": "latency",
        "boards doctor --board raspberry-pi-40": "raspberry-pi-400",
    }
    for words, wanted in tries.items():
        asked = ["draftwire", *words.split()]
        line = f"COMP_WORDS=({' '.join(asked)}); COMP_CWORD={len(asked) - 1}"
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{line}; _draftwire; echo ${{COMPREPLY[@]}}"],
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().split() == [wanted], words
    for shell in ("zsh", "fish"):
        assert "temperature" in run("config", "--completion", shell).stdout


def test_the_reference_page_says_what_the_options_say(capsys):
    assert main(["config", "options"]) == 0
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == capsys.readouterr().out, "draftwire config options > docs/options.md"


def test_a_token_is_never_shown(played, monkeypatch, capsys):
    monkeypatch.setenv("DRAFTWIRE_TOKEN", "hidden")
    assert main(["config", "show", "--origin", "--json", "-"]) == 0
    assert main(["config", "show", "--origin"]) == 0
    assert "hidden" not in capsys.readouterr().out
    assert main(played.words()) == 2  # and a token file beside it is one too many
    err = capsys.readouterr().err
    assert "DRAFTWIRE_TOKEN" in err and "--token-file" in err and "hidden" not in err
    monkeypatch.setenv("DRAFTWIRE_TOKEN", "two words hidden")
    assert main(["config", "show"]) == 2
    assert "hidden" not in capsys.readouterr().err.replace("(not shown)", "")


def test_each_flag_says_what_it_takes_and_does():
    def flags(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    yield from flags(child)
            elif action.help != argparse.SUPPRESS:
                yield parser.prog, action

    wrong = [
        (prog, action.dest, action.metavar, action.help)
        for prog, action in flags(whole_parser())
        if not action.help or re.search(r"[() ]", str(action.metavar or ""))
    ]
    assert not wrong


def test_a_token_file_of_another_user_is_no_reason_to_make_one(tmp_path, monkeypatch):
    with pytest.raises(errors.ConfigError, match="No such file") as found:
        read_token_text(tmp_path / "tokens", "make one")
    assert found.value.hint == "make one" and "Errno" not in str(found.value)

    def refuse(path, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(errors.ConfigError, match="tokens: Permission denied") as found:
        read_token_text(Path("tokens"), "make one")
    assert found.value.hint.endswith(f"chown {os.geteuid()} tokens")


@pytest.mark.parametrize("depth, fits", [(200, True), (201, False), (100_000, False)])
def test_one_reader_of_json_counts_how_deep_it_goes(depth, fits):
    text = "[" * depth + "]" * depth
    if fits:
        assert parse_json(text) == parse_json("\ufeff".encode() + text.encode())
        assert parse_json(f'["{2 * text}", {900 * "[],"} 0]')[0] == 2 * text
    else:
        with pytest.raises(ValueError, match="nested more than 200 deep"):
            parse_json(text)


UNREADABLE = {
    "endless": b"[" * 100_000,
    "deep": b'{"a":' * 300 + b"0" + b"}" * 300,
    "cut": b'{"schema": "draftwire.run/1", "te',
    "latin": b'{"schema": "\xe9"}',
    "empty": b"",
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize(
    "words",
    [
        ["report"],
        ["energy", "report"],
        ["energy", "report", "--import"],
        ["generate", "Once", "--verifier", "ws://127.0.0.1:1", "--schema"],
        ["generate", "Once", "--verifier", "ws://127.0.0.1:1", "--energy", "replay:"],
        ["chat", "--verifier", "ws://127.0.0.1:1", "--tools"],
        ["bench", "device", "--tune", str(ROOT / "tests/fixtures/tiny.draft"), "--times"],
        ["bench", "simulate", "--replay"],
        ["bench", "simulate", "--text"],
    ],
    ids=" ".join,
)
def test_a_file_of_unreadable_json_is_a_sentence(words, kind, tmp_path, capsys):
    file = tmp_path / "given.json"
    file.write_bytes(UNREADABLE[kind])
    *words, last = words
    words += [last + str(file)] if last.endswith(":") else [last, str(file)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "bug" not in said and "Traceback" not in said and len(said) < 700


@pytest.mark.parametrize(
    "words",
    [
        ["boards", "detect", "--root"],
        ["boards", "detect", "--profile-dir"],
        ["bench", "simulate", "--replay"],
        ["verifier", "token", "--append", "--out"],
        ["generate", "Once", "--verifier", "ws://127.0.0.1:1", "--draft"],
    ],
    ids=" ".join,
)
def test_a_name_that_no_file_can_have_is_no_bug_of_ours(words, capsys):
    assert main([*words, "x" * 5000]) == 2
    said = capsys.readouterr().err
    assert "File name too long" in said and len(said) < 500


def test_a_medium_that_fails_is_no_bug_of_ours(tmp_path, capsys, monkeypatch):
    def fails(*args, **named):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("draftwire.cli.report.run", fails)
    assert main(["report", str(tmp_path)]) == 2
    assert "the system: Input/output error" in capsys.readouterr().err
