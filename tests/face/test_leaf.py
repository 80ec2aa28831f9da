"""Flags that are declared as the lines of their help."""

import argparse
from pathlib import Path

import pytest

from draftwire.cli import Parser
from draftwire.cli._leaf import TYPES, add_flags, flag_lines
from draftwire.errors import ConfigError

LINES = """
[NAME]                  who, 100 % of them
--draft DIR             a folder
--count N =4            how many; it
                        goes on here
--rate X:positive =0.5
--kind {a,b,auto} =auto  which
--wheel FILE...         again and again
--prompt TEXT+ >texts   several
--out FILE >place !     where
--http [PORT]           alone or not
--plain,--bare          a switch
limits:
--most N:whole =0       of all
--words W,W:words =
"""


def parsed(*words):
    parser = Parser(prog="it")
    add_flags(parser, LINES)
    return vars(parser.parse_args(["--out", "o", *words]))


def test_without_flags_the_defaults_hold():
    assert parsed() == {
        "name": None, "draft": None, "count": 4, "rate": 0.5, "kind": "auto", "wheel": [],
        "texts": [], "place": Path("o"), "http": None, "plain": False, "most": 0,
        "words": (),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["me"], "name", "me"),
        (["--draft", "d"], "draft", Path("d")),
        (["--wheel", "a", "--wheel", "b"], "wheel", [Path("a"), Path("b")]),
        (["--prompt", "a", "b", "--prompt", "c"], "texts", ["a", "b", "c"]),
        (["--http"], "http", ""),
        (["--http", ":9"], "http", ":9"),
        (["--bare"], "plain", True),
        (["--words", "a, b"], "words", ("a", "b")),
    ],
)
def test_a_flag_gives_what_its_line_says(words, name, value):
    assert parsed(*words)[name] == value
    assert parsed()["wheel"] == [], "nothing is left of the call before"


@pytest.mark.parametrize(
    "words", [["--count", "0"], ["--kind", "c"], ["--most", "-1"], ["--rate", "x"]]
)
def test_what_a_line_does_not_allow_is_refused(words):
    with pytest.raises(ConfigError):
        parsed(*words)


def test_the_help_is_the_lines():
    parser = argparse.ArgumentParser(prog="it")
    add_flags(parser, LINES)
    shown = " ".join(parser.format_help().split())
    for words in ("who, 100 % of them", "how many; it goes on here (default: 4)"):
        assert words in shown
    for words in ("--rate X default: 0.5", "limits:", "--http [PORT]", "--plain, --bare"):
        assert words in shown
    assert "--words W,W" in shown and "(default: )" not in shown


def test_lines_that_commands_share_are_found_by_name():
    lines = flag_lines(LINES)
    assert list(lines)[:3] == ["[NAME]", "draft", "count"]
    assert lines["count"].endswith("how many; it goes on here")


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_type_reads_or_refuses(name):
    good = {"address": "h:1", "words": "a,b", "counts": "1,2", "path": "p", "share": "1"}
    good["json"] = "{}"
    assert TYPES[name](good.get(name, "1")) is not None
    if name not in ("output", "path", "text", "words"):
        with pytest.raises((ConfigError, ValueError, argparse.ArgumentTypeError)):
            TYPES[name]("none")
