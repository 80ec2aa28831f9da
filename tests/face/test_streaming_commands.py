"""``draftwire generate`` and ``draftwire demo``, with a played session."""

import contextlib
import errno
import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from draftwire import Chunk, Token
from draftwire.cli import _common, main
from draftwire.cli._stream import summary
from draftwire.errors import OutputError
from draftwire.options import CONNECT_GROUPS, STREAM_GROUPS, options_of


def test_text_on_stdout_totals_on_stderr(played, capsys):
    assert main(played.words()) == 0
    captured = capsys.readouterr()
    assert captured.out == " lived in a café.\n"
    assert captured.err == (
        "4 tokens in 2 rounds, 3.00 accepted a block, 0.50 target forwards a token, "
        "2.50 bytes up a drafted token, 8.00 tokens/s (length)\n"
    )


def test_a_measured_run_says_its_joules_below_its_totals(played):
    entry = {"joules": 12.34, "uncertainty": 0.21, "net": 3.0, "net_uncertainty": 0.4}
    entry.update(source="sysfs", scope="module", resolution_only=False, flags=["gaps"])
    entry.update(seconds_by_phase={"draft": 1.0, "wait": 0.5}, coverage=0.9)
    _, joules = summary({**played.report_of(4, "length"), "energy": entry}).splitlines()
    assert joules == (
        "12.34 +- 0.21 J (3.00 +- 0.40 J above idle) in 1.50 s, 90.0 % covered, "
        "scope module, source sysfs [gaps]"
    )
    entry.update(joules=None, why_null="the sensor was gone")
    line = summary({**played.report_of(4, "length"), "energy": entry})
    assert line.endswith("\nno joules: the sensor was gone")


def test_what_is_asked_for_reaches_the_session(played, monkeypatch, tmp_path):
    (tmp_path / "draftwire.toml").write_text('top_k = 50\nscheme = "coupled"\n')
    monkeypatch.setenv("DRAFTWIRE_TEMPERATURE", "0.8")
    words = [*played.words(), "--top-p", "0.9", "--seed", "7", "--block", "6"]
    words += ["--stop", "\n", *"--stop END --max-new-tokens 9 --threads 2".split()]
    words += "--offline draft --patience 3 --deadline 0.8 --tls-ca ca.pem".split()
    words += "--objective latency --pipeline 2 --preempt guess,exits --cut".split()
    assert main([*words, "-q"]) == 0
    asked = {"url": "ws://x:1", "draft": Path("d.draft"), "target": "v1"}
    asked.update(token="secret", threads=2, tls_ca=Path("ca.pem"), offline="draft")
    assert played.where == {**defaults(*CONNECT_GROUPS), **asked}
    asked = {"max_new_tokens": 9, "scheme": "coupled", "temperature": 0.8, "top_k": 50}
    asked.update(top_p=0.9, seed=7, block=6, objective="latency", pipeline=2, cut=True)
    asked.update(preempt="guess,exits", stop=("\n", "END"), offline="draft", explain=None)
    asked.update(patience_s=3.0, deadline_s=0.8)
    assert played.calls == [("Once", {**defaults(*STREAM_GROUPS), **asked})]


def defaults(*groups):
    return {option.name: option.default for option in options_of(*groups)}


def test_a_switch_of_a_file_can_be_turned_off(played, tmp_path):
    (tmp_path / "draftwire.toml").write_text("cut = true\ninsecure = true\n")
    assert main([*played.words(), "-q"]) == 0
    assert played.calls[-1][1]["cut"] and played.where["insecure"]
    assert main([*played.words(), "-q", "--no-cut", "--no-insecure"]) == 0
    assert not played.calls[-1][1]["cut"] and not played.where["insecure"]


def test_json_has_stdout_to_itself(played, capsys):
    assert main([*played.words(), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == played.report_of(4, "length")
    assert " lived in a café." in captured.err
    assert main([*played.words(), "--json", "-q"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == played.report_of(4, "length")
    assert captured.err == ""


def test_json_to_a_file_keeps_the_text(played, capsys, tmp_path):
    assert main([*played.words(), "--json", "out.json"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["tokens"] == 4
    assert capsys.readouterr().out == " lived in a café.\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "token"]


def test_ctrl_c_ends_with_the_totals_and_130(played, capsys, tmp_path):
    played.interrupt = True
    assert main([*played.words(), "--json", "out.json"]) == 130
    captured = capsys.readouterr()
    assert captured.out == " lived\n"
    assert "(cancelled)" in captured.err
    assert json.loads((tmp_path / "out.json").read_text())["finish"] == "cancelled"


def test_a_cache_that_cannot_be_kept_loses_nothing_else(played, capsys, tmp_path):
    played.at_close = OutputError("cannot write the suffix cache x: No space left")
    assert main([*played.words(), "--json", "out.json"]) == OutputError.exit_code == 6
    captured = capsys.readouterr()
    assert captured.out == " lived in a café.\n"
    assert captured.err.splitlines()[-2].endswith("suffix cache x: No space left")
    assert json.loads((tmp_path / "out.json").read_text()) == played.report_of(4, "length")
    assert main([*played.words(), "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["finish"] == "length"


def test_a_report_that_cannot_be_kept_loses_nothing_else(played, capsys, tmp_path):
    """The folder is there when the run begins, and gone when it ends."""
    folder = tmp_path / "folder"
    folder.mkdir()
    played.at_close = OutputError("cannot write the suffix cache")
    whole = played.__exit__

    def vanish(self, *exc):
        folder.rmdir()
        whole(self, *exc)

    played.__exit__ = vanish
    assert main([*played.words(), "--json", "folder/out.json"]) == 6
    captured = capsys.readouterr()
    assert captured.out == " lived in a café.\n" and "4 tokens in 2 rounds" in captured.err
    assert "suffix cache" in captured.err and "folder/out.json" in captured.err


class Full(io.StringIO):
    """A terminal's file on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("full", ["out", "report"])
def test_a_full_disk_is_said_with_its_own_exit_code(full, played, capfd, tmp_path):
    if full == "report":
        assert main([*played.words(), "--json", "/dev/full"]) == 6
        captured = capfd.readouterr()
        assert captured.out == " lived in a café.\n" and "/dev/full" in captured.err
        return
    with contextlib.redirect_stdout(Full()):
        assert main([*played.words(), "--json", "out.json"]) == 6
    assert "No space left" in capfd.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["tokens"] == 4


@pytest.mark.parametrize("dash", [True, False])
def test_the_prompt_comes_from_a_pipe(dash, played, monkeypatch):
    typed = io.TextIOWrapper(io.BytesIO("Grüße\n".encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", typed)
    words = [w for w in played.words() if w != "Once"]
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
def test_a_bad_token_file_is_a_clear_error(text, message, played, tmp_path, capsys):
    (tmp_path / "token").unlink()
    if text is not None:
        (tmp_path / "token").write_bytes(text.encode("latin-1"))
    assert main(played.words()) == 2
    err = capsys.readouterr().err
    assert message in err and "token" in err and "secret" not in err


# ---- demo


@pytest.fixture
def demo(played, monkeypatch, tmp_path):
    """Make the verifier of the demo a played one too; yields what it was given."""
    from draftwire.bench import child

    served = []

    @contextmanager
    def local_verifier(targets, flags):
        served.append(targets)
        yield "ws://127.0.0.1:4321", "fresh"

    monkeypatch.setattr(child, "local_verifier", local_verifier)
    for name in ("reference.draft", "v1.target", "v2.target"):
        (tmp_path / "models" / name).mkdir(parents=True)
    yield served


def test_demo_shows_three_prompts_and_a_table(demo, played, capsys, tmp_path):
    assert main(["demo", "--target", "v2", "--json", "out.json"]) == 0
    out = capsys.readouterr().out
    assert demo == [[Path("models/v2.target")]]
    assert played.where["token"] == "fresh"
    assert len(played.calls) == 3
    for prompt, options in played.calls:
        assert f"{prompt} lived in a café.\n" in out
        assert (options["scheme"], options["seed"]) == (None, 0)
        assert options["max_new_tokens"] == 64
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("prompt "))
    total = lines[header + 5].split()
    assert total == ["all", "12", "6", "3.00", "6", "12", "0.50", "2.50", "8.00"]
    reports = json.loads((tmp_path / "out.json").read_text())
    assert reports == [played.report_of(4, "length")] * 3


def test_demo_without_models_says_where_it_looked(demo, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DRAFTWIRE_MODELS", str(tmp_path / "empty"))
    assert main(["demo"]) == 2
    assert "DRAFTWIRE_MODELS" in capsys.readouterr().err


# ---- colours


class Terminal(io.StringIO):
    def isatty(self):
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
def test_colours_are_for_terminals(variables, terminal, never, wanted, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    assert _common.wants_colour(stream, never=never) is wanted


def words():
    """Return a byte-level tokenizer of the words that the played session says."""
    tokenizers = pytest.importorskip("tokenizers")
    spelt = ["?", "Ġlived", "Ġin", "Ġa", "ĠcafÃ©."]
    vocabulary = {word: number for number, word in enumerate(spelt)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "?"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def test_each_token_has_the_colour_of_how_it_came_about(played):
    from draftwire.cli._stream import COLOURS, Painter

    screen = io.StringIO()
    painter = Painter(screen, words())
    for chunk in iter(played("ws://x").generate("Once")):
        painter.show(chunk)
    green, yellow, cyan = (COLOURS[k] for k in ("accepted", "correction", "bonus"))
    assert screen.getvalue() == (
        f"\x1b[{green}m lived\x1b[0m"
        f"\x1b[{green}m in\x1b[0m\x1b[{yellow}m a\x1b[0m"
        f"\x1b[{cyan}m café.\x1b[0m"
    )


def test_a_stop_string_may_cut_or_hold_back_the_text():
    from draftwire.cli._stream import Painter

    screen = io.StringIO()
    painter = Painter(screen, words())
    tokens = (Token(1, "accepted"), Token(2, "correction"))
    painter.show(Chunk(" liv", tokens, 0.0))
    painter.show(Chunk("ed in", (), 0.0))
    shown = screen.getvalue()
    for code in ("\x1b[32m", "\x1b[1;33m", "\x1b[0m"):
        shown = shown.replace(code, "")
    assert shown == " lived in"
