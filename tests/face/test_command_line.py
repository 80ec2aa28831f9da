"""The command line: exit codes, errors, streams, JSON; with a played session."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest

import draftwire
from draftwire import errors
from draftwire.cli import COMMANDS, _common, main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class FakeToken:
    id: int
    kind: str


@dataclass(frozen=True)
class FakeChunk:
    text: str
    tokens: tuple[FakeToken, ...]
    t_s: float = 0.0


def report_of(tokens: int, finish: str) -> dict[str, Any]:
    return {
        "schema": "draftwire.report/1",
        "tokens": tokens,
        "rounds": 2,
        "drafted": 8,
        "accepted": 6,
        "accepted_by_position": [2, 2, 1, 1],
        "target_forwards": 2,
        "finish": finish,
        "bytes": {"up_payload": 20},
        "seconds": {"total": 0.5},
        "energy": {"joules": None},
    }


class FakeSession:
    """Plays three chunks; ``interrupt`` plays Ctrl-C after the first."""

    interrupt = False
    failure: Exception | None = None
    calls: list[tuple[str, dict[str, Any]]] = []
    where: dict[str, Any] = {}

    def __init__(self, url: str, **where: Any) -> None:
        type(self).where = {"url": url, **where}
        self.report: dict[str, Any] | None = None

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def generate(self, prompt: str, **options: Any) -> Iterator[FakeChunk]:
        self.calls.append((prompt, options))
        if self.failure:
            raise self.failure
        return self._chunks()

    def _chunks(self) -> Iterator[FakeChunk]:
        finish = "cancelled"
        try:
            yield FakeChunk(" lived", (FakeToken(1, "accepted"),))
            if self.interrupt:
                raise KeyboardInterrupt
            yield FakeChunk(
                " in a", (FakeToken(2, "accepted"), FakeToken(3, "correction"))
            )
            yield FakeChunk(" café.", (FakeToken(4, "bonus"),))
            finish = "length"
        finally:
            self.report = report_of(4, finish)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSession]:
    """Put a played session behind `draftwire.connect`, and stand in an empty folder."""

    class Played(FakeSession):
        calls: list[tuple[str, dict[str, Any]]] = []

    monkeypatch.setattr(draftwire, "connect", Played)
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("DRAFTWIRE_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "token").write_text("secret\n")
    return Played


GENERATE = ["generate", "Once", "--verifier", "ws://x:1", "--draft", "d.draft"]
GENERATE += ["--target", "v1", "--token-file", "token"]


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "draftwire", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **options.pop("env", {})},
        capture_output=True,
        check=False,
        **options,
    )


# ---- help, version, usage


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    done = python("--help")
    text = done.stdout.decode()
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name}" in text
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "130"):
        assert f"\n  {code}" in text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"draftwire {name}" in capsys.readouterr().out


def test_version() -> None:
    assert python("--version").stdout.decode() == f"draftwire {draftwire.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "name a command", "--help"),
        (["dmeo"], "no command 'dmeo'", "draftwire demo"),
        (["--nonsense"], "--nonsense", "--help"),
        (["generate", "x", "--tem", "1"], "--tem", "draftwire"),
        (["generate", "x", "--block", "none", "--seed", "1"], "--block", "1 to 255"),
        (["generate", "x"], "no verifier", "--verifier"),
        (["generate", "x", "--scheme", "coupled"], "coupled", "--temperature"),
        (["generate", "x", "--scheme", "greedy", "--temperature", "1"], "greedy", ""),
        (["generate", "x", "--scheme", "grady"], "grady", "greedy"),
        (["generate", "x", "--max-new-tokens", "0"], "--max-new-tokens", "1 or more"),
        (["generate", "x", "--seed", "-1"], "seed", ""),
        (["config"], "ACTION", "draftwire config --help"),
        (["config", "show", "--config", "gone.toml"], "gone.toml", ""),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    words: list[str],
    message: str,
    hint: str,
    played: type[FakeSession],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("draftwire: error: ") and message in lines[0]
    assert len(lines) <= 2 and hint in "".join(lines[1:])


# ---- errors


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_gives_its_exit_code(
    name: str, played: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    played.failure = getattr(errors, name)("it broke", hint="mend it")
    assert main(GENERATE) == played.failure.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["draftwire: error: it broke", "hint: mend it"]


def test_a_bug_is_exit_code_1_without_a_traceback(
    played: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    played.failure = ZeroDivisionError("division by zero")
    assert main(GENERATE) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err


@pytest.mark.parametrize("place", [0, 2, len(GENERATE)])
def test_debug_shows_the_traceback(place: int, played: type[FakeSession]) -> None:
    played.failure = errors.ModelError("it broke")
    with pytest.raises(errors.ModelError):
        main([*GENERATE[:place], "--debug", *GENERATE[place:]])


@pytest.mark.parametrize("flag", [["--json"], ["--json", "-"], ["--json="]])
def test_errors_are_json_when_json_is_asked_for(
    flag: list[str], played: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    played.failure = errors.RefusedError("the token is wrong", hint="copy it again")
    assert main([*GENERATE, *flag]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "kind": "RefusedError",
            "message": "the token is wrong",
            "hint": "copy it again",
        }
    }
    assert "the token is wrong" in captured.err


def test_wrong_usage_is_json_too(
    played: type[FakeSession], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "--nonsense", "--json", "out.json"]) == 2
    error = json.loads((tmp_path / "out.json").read_text())["error"]
    assert error["kind"] == "ConfigError" and "--nonsense" in error["message"]
    assert capsys.readouterr().out == ""


def test_an_unwritable_json_file_is_a_clear_error(
    played: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GENERATE, "--json", "no/such/folder/out.json"]) == 2
    assert "no/such/folder/out.json" in capsys.readouterr().err


# ---- generate


def test_text_on_stdout_totals_on_stderr(
    played: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(GENERATE) == 0
    captured = capsys.readouterr()
    assert captured.out == " lived in a café.\n"
    assert captured.err == (
        "4 tokens in 2 rounds, 3.00 accepted a block, 0.50 target forwards a token, "
        "2.50 bytes up a drafted token, 8.00 tokens/s (length)\n"
    )


def test_what_is_asked_for_reaches_the_session(
    played: type[FakeSession], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "draftwire.toml").write_text('top_k = 50\nscheme = "coupled"\n')
    monkeypatch.setenv("DRAFTWIRE_TEMPERATURE", "0.8")
    words = [*GENERATE, "--top-p", "0.9", "--seed", "7", "--block", "6"]
    words += [
        "--stop",
        "\n",
        "--stop",
        "END",
        "--max-new-tokens",
        "9",
        "--threads",
        "2",
    ]
    assert main([*words, "-q"]) == 0
    assert played.where == {
        "url": "ws://x:1",
        "draft": "d.draft",
        "target": "v1",
        "token": "secret",
        "threads": 2,
    }
    assert played.calls == [
        (
            "Once",
            {
                "max_new_tokens": 9,
                "scheme": "coupled",
                "temperature": 0.8,
                "top_k": 50,
                "top_p": 0.9,
                "seed": 7,
                "block": 6,
                "stop": ["\n", "END"],
            },
        )
    ]


def test_json_has_stdout_to_itself(
    played: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GENERATE, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == report_of(4, "length")
    assert " lived in a café." in captured.err
    assert main([*GENERATE, "--json", "-q"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == report_of(4, "length")
    assert captured.err == ""


def test_json_to_a_file_keeps_the_text(
    played: type[FakeSession], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*GENERATE, "--json", "out.json"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["tokens"] == 4
    assert capsys.readouterr().out == " lived in a café.\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "token"]


def test_ctrl_c_ends_with_the_totals_and_130(
    played: type[FakeSession], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    played.interrupt = True
    assert main([*GENERATE, "--json", "out.json"]) == 130
    captured = capsys.readouterr()
    assert captured.out == " lived\n"
    assert "(cancelled)" in captured.err
    assert json.loads((tmp_path / "out.json").read_text())["finish"] == "cancelled"


@pytest.mark.parametrize("dash", [True, False])
def test_the_prompt_comes_from_a_pipe(
    dash: bool, played: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = io.TextIOWrapper(io.BytesIO("Grüße\n".encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", typed)
    words = [w for w in GENERATE if w != "Once"]
    assert main(words + (["-"] if dash else [])) == 0
    assert played.calls[0][0] == "Grüße\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("", "one line"),
        ("two words", "one line"),
        ("\x80", "cannot"),
    ],
)
def test_a_bad_token_file_is_a_clear_error(
    text: str | None,
    message: str,
    played: type[FakeSession],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "token").unlink()
    if text is not None:
        (tmp_path / "token").write_bytes(text.encode("latin-1"))
    assert main(GENERATE) == 2
    err = capsys.readouterr().err
    assert message in err and "token" in err and "secret" not in err


# ---- demo


@pytest.fixture
def demo(
    played: type[FakeSession], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[list[Path]]]:
    """Make the verifier of the demo a played one too; yields what it was given."""
    from draftwire.cli import _local_verifier
    from draftwire.cli import demo as command

    served: list[list[Path]] = []

    @contextmanager
    def local_verifier(targets: list[Path]) -> Iterator[tuple[str, str]]:
        served.append(targets)
        yield "ws://127.0.0.1:4321", "fresh"

    monkeypatch.setattr(_local_verifier, "local_verifier", local_verifier)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    for name in ("reference.draft", "v1.target", "v2.target"):
        (tmp_path / "models" / name).mkdir(parents=True)
    yield served


def test_demo_shows_three_prompts_and_a_table(
    demo: list[list[Path]],
    played: type[FakeSession],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["demo", "--target", "v2", "--json", "out.json"]) == 0
    out = capsys.readouterr().out
    assert demo == [[Path("models/v2.target")]]
    assert played.where["token"] == "fresh" and played.where["target"] == "v2"
    assert len(played.calls) == 3
    for prompt, options in played.calls:
        assert f"{prompt} lived in a café.\n" in out
        assert (options["scheme"], options["seed"]) == ("greedy", 0)
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("prompt "))
    total = lines[header + 5].split()
    assert total == ["all", "12", "6", "3.00", "6", "12", "0.50", "2.50", "8.00"]
    reports = json.loads((tmp_path / "out.json").read_text())
    assert reports == [report_of(4, "length")] * 3


def test_demo_takes_prompts_and_samples_when_it_is_warm(
    demo: list[list[Path]], played: type[FakeSession]
) -> None:
    words = ["demo", "--prompt", "One", "Two", "--prompt", "Three"]
    words += ["--temperature", "0.8", "--seed", "7"]
    assert main(words) == 0
    assert [prompt for prompt, _ in played.calls] == ["One", "Two", "Three"]
    assert {options["scheme"] for _, options in played.calls} == {"coupled"}
    assert {options["seed"] for _, options in played.calls} == {7}


def test_demo_names_the_targets_there_are(
    demo: list[list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--target", "v7"]) == 2
    assert "v1" in capsys.readouterr().err
    assert main(["demo", "--target", "../models/v1"]) == 2
    assert demo == []


def test_demo_without_models_says_where_it_looked(
    demo: list[list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DRAFTWIRE_MODELS", str(tmp_path / "empty"))
    assert main(["demo"]) == 2
    assert "DRAFTWIRE_MODELS" in capsys.readouterr().err


# ---- config, colours, tables


def test_config_show_tells_the_origin(
    played: type[FakeSession], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "draftwire.toml").write_text('target = "v3"')
    monkeypatch.setenv("DRAFTWIRE_BLOCK", "8")
    assert main(["config", "show", "--origin", "--json", "out.json"]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert next(iter(document)) == "schema"
    found = document["settings"]
    assert found["target"] == {"value": "v3", "origin": "draftwire.toml"}
    assert found["block"] == {"value": 8, "origin": "DRAFTWIRE_BLOCK"}
    assert found["verifier"] == {"value": None, "origin": "default"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "terminal", "never", "wanted"),
    [
        ({}, True, False, True),
        ({}, False, False, False),
        ({}, True, True, False),
        ({"NO_COLOR": "1"}, True, False, False),
        ({"NO_COLOR": ""}, True, False, True),
        ({"FORCE_COLOR": "1"}, False, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False, False),
        ({"FORCE_COLOR": "1"}, True, True, False),
        ({"TERM": "dumb"}, True, False, False),
    ],
)
def test_colours_are_for_terminals(
    variables: dict[str, str],
    terminal: bool,
    never: bool,
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    assert _common.wants_colour(stream, never=never) is wanted


def words() -> Any:
    """Return a byte-level tokenizer of the words that the played session says."""
    tokenizers = pytest.importorskip("tokenizers")
    spelt = ["?", "Ġlived", "Ġin", "Ġa", "ĠcafÃ©."]
    vocabulary = {word: number for number, word in enumerate(spelt)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "?"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def test_each_token_has_the_colour_of_how_it_came_about() -> None:
    from draftwire.cli._stream import COLOURS, Painter

    screen = io.StringIO()
    painter = Painter(screen, words(), colour=True)
    for chunk in FakeSession("ws://x").generate("Once"):
        painter.show(chunk)
    green, yellow, cyan = (COLOURS[k] for k in ("accepted", "correction", "bonus"))
    assert screen.getvalue() == (
        f"\x1b[{green}m lived\x1b[0m"
        f"\x1b[{green}m in\x1b[0m\x1b[{yellow}m a\x1b[0m"
        f"\x1b[{cyan}m café.\x1b[0m"
    )


def test_a_stop_string_may_cut_or_hold_back_the_text() -> None:
    from draftwire.cli._stream import Painter

    screen = io.StringIO()
    painter = Painter(screen, words(), colour=True)
    tokens = (FakeToken(1, "accepted"), FakeToken(2, "correction"))
    painter.show(FakeChunk(" liv", tokens))
    painter.show(FakeChunk("ed in", ()))
    shown = screen.getvalue()
    for code in ("\x1b[32m", "\x1b[1;33m", "\x1b[0m"):
        shown = shown.replace(code, "")
    assert shown == " lived in"


def test_a_reader_that_leaves_is_no_error() -> None:
    script = (
        "import sys\nfrom draftwire.cli import main\nimport draftwire.cli.config as c\n"
        "def run(args):\n    raise BrokenPipeError\n"
        "c.run = run\nsys.exit(main(['config', 'show']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
