"""What the public API promises: types that notice slips, twins that are the same."""

import ast
import inspect
import os
import subprocess
import sys

import pytest
from places import ROOT

import draftwire
from draftwire import aio, errors
from draftwire.options import CONNECT_GROUPS, STREAM_GROUPS, options_of
from draftwire.runtime.session import AsyncSession, Session
from draftwire.runtime.stream import AsyncStream, Stream

SLIPS = """\
import draftwire
from draftwire import aio

draftwire.conect("ws://x", draft="d")
draftwire.connect("ws://x", draft="d", tokne="t")
draftwire.connect("ws://x", draft="d", timeout_s="long")
draftwire.DraftwireEror
aio.conect("ws://x", draft="d")


def use(s: draftwire.Session) -> None:
    s.genarate("x")
    s.generate("x", max_new_token=5)
    s.generate("x", temperature="hot")
    s.chat([], max_new_token=5)
    s.chat([], temperature="hot")
    s.chat("x", seed=1.5)
    stream = s.generate("x")
    stream.cancle()
    stream.txt


async def twin() -> None:
    async with aio.connect("ws://x", draft="d") as s:
        s.genarate("x")
        async for chunk in s.generate("x"):
            chunk.test
"""
FINE = """\
import draftwire
from draftwire import aio


def use(s: draftwire.Session) -> str:
    try:
        stream: draftwire.Stream = s.generate("x", max_new_tokens=5, stop=["a"])
        for chunk in stream:
            print(chunk.text, chunk.tokens[0].kind)
        stream.cancel()
        stream = s.chat([{"role": "user", "content": "x"}], seed=1, stop=["a"])
    except draftwire.RefusedError as exc:
        print(exc.hint)
    except draftwire.DraftwireError:
        raise
    return stream.text


async def twin() -> None:
    async with aio.connect("ws://x", draft="d", token="t") as s:
        stream: aio.AsyncStream = s.generate("x", deadline_s=0.5)
        async for chunk in stream:
            print(chunk.text)
        print(s.link.state, stream.report)


with draftwire.connect("ws://x", draft="d", offline="draft") as session:
    use(session)
"""


def mypy(text, folder):
    """Return the lines of ``text`` that ``mypy --strict`` complains of."""
    pytest.importorskip("mypy", reason="mypy is not installed here")
    (folder / "user.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
        + ["--ignore-missing-imports", "--follow-imports=silent"]
        + ["--explicit-package-bases", "--disable-error-code=type-arg"]
        + [f"--cache-dir={folder / 'cache'}", str(folder / "user.py")],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_slips_fail_type_checking_and_good_code_does_not(tmp_path):
    assert mypy(FINE, tmp_path) == []
    found = {int(line.split(":")[1]) for line in mypy(SLIPS, tmp_path)}
    lines = SLIPS.splitlines()
    begin = lines.index('draftwire.conect("ws://x", draft="d")') + 1
    plain = ("def ", "async ", "stream =", "    async with", "        async for")
    wanted = {
        number
        for number, line in enumerate(lines, 1)
        if number >= begin
        and line.strip()
        and not line.startswith(plain)
        and "stream = " not in line
    }
    assert found == wanted


@pytest.mark.parametrize("name", ["conect", "DraftwireEror", "Sesion", "runtimes"])
def test_slips_fail_at_run_time(name):
    with pytest.raises(AttributeError, match=name):
        getattr(draftwire, name)
    with pytest.raises(AttributeError, match=name):
        getattr(aio, name)


def test_all_that_is_promised_is_there():
    for module in (draftwire, aio):
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert set(errors.__all__) <= set(draftwire.__all__)


def public(kind):
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("plain", "twin"), [(Session, AsyncSession), (Stream, AsyncStream)]
)
def test_the_twins_are_the_same(plain, twin):
    """The same names, parameters, defaults and types; one returns what the other awaits."""
    ours, theirs = public(plain), public(twin)
    assert set(ours) == set(theirs)
    for name, found in ours.items():
        other = theirs[name]
        if not callable(found):
            assert type(found) is type(other), name
            continue
        one, two = inspect.signature(found), inspect.signature(other)
        assert list(one.parameters.values()) == list(two.parameters.values()), name
        said = str(two.return_annotation).replace("Async", "")
        assert str(one.return_annotation).replace("Async", "") == said, name
    one, two = inspect.signature(draftwire.connect), inspect.signature(aio.connect)
    assert list(one.parameters.values()) == list(two.parameters.values())


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def options(*groups):
    return {option.name: option.default for option in options_of(*groups)}


@pytest.mark.parametrize("connect", [draftwire.connect, aio.connect])
def test_the_signature_of_connect_is_that_of_the_options(
    connect,
):
    found = defaults(connect)
    assert found.pop("draft") is inspect.Parameter.empty
    assert found.pop("offline") == "wait"  # what "as the session" comes to
    assert found == options(*CONNECT_GROUPS)


@pytest.mark.parametrize("kind", [Session, AsyncSession])
def test_the_signature_of_generate_is_that_of_the_options(kind):
    found = defaults(kind.generate)
    assert found.pop("explain") is None
    assert found == options(*STREAM_GROUPS)


def test_a_chat_has_the_options_of_generate():
    """Its options are a typed dictionary that only type checkers read."""
    source = (ROOT / "runtime" / "options.py").read_text(encoding="utf-8")
    (found,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name == "StreamOptions"
    )
    typed = {
        line.target.id: ast.get_source_segment(source, line.annotation)
        for line in found.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    parameters = inspect.signature(Session.generate).parameters.values()
    wanted = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert typed == wanted
