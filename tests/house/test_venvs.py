"""What `make` sets up: reused while current, and honest about what it did not find."""

import os
import re
import stat
import subprocess
import sys

from places import ROOT
from tools import venvs


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_python_that_does_not_run_is_not_found(tmp_path):
    shim = executable(tmp_path / "python3.8", "#!/bin/sh\necho not selected; exit 127\n")
    assert venvs.probe(str(shim)) is None
    assert venvs.probe(str(tmp_path / "gone")) is None
    found = venvs.probe(sys.executable)
    assert found is not None and found[0] == sys.version_info[:2]


def test_a_version_is_looked_for_behind_a_broken_shim(tmp_path, monkeypatch):
    executable(tmp_path / "bin" / "python9.9", "#!/bin/sh\nexit 127\n")
    real = tmp_path / "pyenv" / "versions" / "9.9.1" / "bin" / "python9.9"
    executable(real, "#!/bin/sh\necho 9.9 /somewhere/python\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert venvs.find_python((9, 9)) == "/somewhere/python"
    assert venvs.find_python((9, 8)) is None


def test_what_was_installed_is_current_until_its_files_change(tmp_path, monkeypatch):
    for name in ("requirements/lint.txt", "requirements/device.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a==1\n")
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).write_text("")
    ran = []

    def run(command, **_):
        ran.append(command[1:3] + command[-1:])

    monkeypatch.setattr(venvs, "ROOT", str(tmp_path))
    monkeypatch.setattr(venvs, "run", run)
    monkeypatch.setattr(venvs, "probe", lambda command: ((3, 11), command))
    folder, python = tmp_path / "v", ((3, 11), "/somewhere/python")
    folder.mkdir()
    (folder / ".made-with").write_text(repr(python))

    groups = ["lint", "device"]
    venvs.ensure(str(folder), python, groups)
    device, lint = "requirements/device.txt", "requirements/lint.txt"
    assert [words[-1] for words in ran] == [device, ".", lint]
    ran.clear()
    venvs.ensure(str(folder), python, groups)
    assert ran == []
    (tmp_path / "requirements/lint.txt").write_text("a==2\n")
    venvs.ensure(str(folder), python, groups)
    assert [words[-1] for words in ran] == ["requirements/lint.txt"]


def test_every_file_of_tests_is_in_one_part():
    found = []
    for words in venvs.parts():
        ignored = [ROOT / word for word in words if word.endswith(".py")]
        if words[0].endswith(".py"):
            words, ignored = words[:1], []
        for word in words:
            here = ROOT / word
            inside = [here] if here.is_file() else here.rglob("test_*.py")
            found += [] if here in ignored else [p for p in inside if p not in ignored]
    assert sorted(found) == sorted((ROOT / "tests").rglob("test_*.py"))


def test_parts_run_side_by_side_and_one_that_fails_ends_no_other(tmp_path, capsys):
    (tmp_path / "test_good.py").write_text("def test_it(): pass\n")
    (tmp_path / "test_bad.py").write_text("def test_it(): assert not 'seen'\n")
    jobs = [(name, sys.executable, [str(tmp_path / f"test_{name}.py")])
            for name in ("bad", "good")]  # fmt: skip
    results = venvs.side_by_side(jobs)
    assert [row[:2] for row in results] == [("bad", 1), ("good", 0)]
    assert "1 failed" in results[0][2] and "1 passed" in results[1][2]
    assert "== good" in (said := capsys.readouterr().out) and "seen" in said


def test_every_requirement_is_pinned():
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                pinned = r"^[A-Za-z0-9_-]+(\[[a-z]+\])?==[0-9][0-9a-z.]*(; |$)"
                assert re.match(pinned, line), line


def test_the_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
    done = subprocess.run(["make", "help"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for verb in ("demo", "test", "lint"):
        assert f"make {verb} " in done.stdout.decode()


def test_every_room_has_a_budget_of_lines():
    words = [sys.executable, "tools/size.py", "export"]
    said = subprocess.check_output(words, cwd=ROOT).decode()
    lines = said.replace(",", "").replace("the wheel", "wheel").split("\n")
    rows = [words for words in map(str.split, lines) if words[1:] and words[1].isdecimal()]
    found = {words[0]: int(words[1]) for words in rows}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"studies"}
    assert "graphs" in found, "the folders of a room that was named"
    assert found["wheel"] == sum(found[name] for name in (*rooms, "src/draftwire"))
    files = (ROOT / "export" / "graphs").glob("*.py")
    assert found["graphs"] == sum(len(p.read_text().splitlines()) for p in files)
