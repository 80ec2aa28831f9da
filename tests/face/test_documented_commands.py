"""Every command that README and docs show is one, with flags that it has."""

import importlib
import re
import sys
import types

import pytest
from places import ROOT

from draftwire.cli import COMMANDS, GONE, MOVED, whole_parser
from draftwire.cli.completion import words_of

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "transport" / "PROTOCOL.md"]
    + list((ROOT / "docs").rglob("*.md"))
    + list((ROOT / "examples").rglob("README.md"))
    + list((ROOT / "src").glob("draftwire/cli/**/*.py"))
)
KNOWN = {" ".join(path): words for path, words in words_of(whole_parser())}
FIRST = {name.split()[0] for name in (*COMMANDS, *MOVED, *GONE)}
GLOBAL = {"--help-all", "--debug", "--no-color"}


def shown(page):
    """Return what stands behind ``draftwire`` in code, to its end or its line's."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"`draftwire ([a-z][^`]*)`", text)
    found += re.findall(r"^(?: {4}|sudo |nice .*|\$ )?draftwire ([a-z].*)$", text, re.M)
    return [" ".join(words.split()) for words in found if words.split()[0] in FIRST]


def trouble(words):
    """Return what is wrong with a command that a page shows, or nothing."""
    before = re.split(r" -- |[#|;&>]| {2,}", words)[0].split()
    if before[0] not in COMMANDS:
        return f"there is no `draftwire {before[0]}`"
    name = next((n for n in (" ".join(before[:2]), before[0]) if n in KNOWN), "")
    if any(" ".join(key.split()[:1]) == before[0] and " " in key for key in KNOWN):
        second = before[1] if len(before) > 1 else ""
        if re.fullmatch("[a-z]+", second) and f"{before[0]} {second}" not in KNOWN:
            return f"there is no `draftwire {before[0]} {second}`"
    group = " " not in name and any(key.startswith(f"{name} ") for key in KNOWN)
    flags = {word.split("=")[0].rstrip(",.:)]") for word in before if word[:2] == "--"}
    unknown = (
        set() if group else {f for f in flags if len(f) > 2} - set(KNOWN[name]) - GLOBAL
    )
    return f"`draftwire {name}` has no {sorted(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_can_be_typed(page):
    wrong = [f"{found}: {words}" for words in shown(page) if (found := trouble(words))]
    assert not wrong, "\n".join(wrong)


def test_the_pages_show_many():
    assert sum(len(shown(page)) for page in PAGES) > 150


def test_the_sites_page_has_the_help_of_every_command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "78")
    for name in ("mkdocs", "mkdocs.structure", "mkdocs.structure.files"):  # not in .venv
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(File=None))
    page = importlib.import_module("tools.site").commands()
    heads = re.findall(r"^#+ draftwire (.+)$", page, re.M)
    assert heads == [name for name in KNOWN if name] and "energy record" in heads
    assert page.count("usage: draftwire ") == len(heads)
