"""Folders, links and ``setup.py`` agree, and what is built from them works."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "src" / "draftwire"
PROFILES = list((ROOT / "boards" / "profiles").glob("*.toml"))
OUTSIDE = {"studies"}  # run from a checkout, in no wheel
DATA = {".toml", ".json", ".css", ".js", ".mplstyle"}
BUILT_FROM = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def declared() -> set[str]:
    """Return FOLDERS of setup.py, read and not run."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.dump(node.targets[0]).count("FOLDERS"):
            return set(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no FOLDERS")


def test_folders_links_and_setup_agree():
    links = {p.name: os.readlink(p) for p in FACE.iterdir() if p.is_symlink()}
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")} - OUTSIDE
    assert links == {name: f"../../{name}" for name in declared()}
    assert folders == declared()


def test_nothing_at_the_root_pulls_it_onto_the_path():
    assert not (ROOT / "conftest.py").exists()
    assert not (ROOT / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_name_differs_by_case_alone_or_needs_quoting():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE)
    names = done.stdout.decode().splitlines()
    assert len({name.lower() for name in names}) == len(names)
    assert not [name for name in names if " " in name or '"' in name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy: a build in the tree leaves files behind."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"
    source.mkdir()
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *sorted(declared())):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "."]
    try:  # not imported: that fails once something has imported distutils
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pass  # pip fetches one
    else:
        if int(version.split(".")[0]) >= 64:
            command.append("--no-build-isolation")
    done = subprocess.run([*command, str(source)], cwd=home, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    (built,) = home.glob("draftwire-*-py3-none-any.whl")
    return built


def test_the_wheel_has_every_module_and_no_other_top_level_name(wheel):
    wanted = {
        f"draftwire/{path.relative_to(FACE).as_posix()}"
        for inside in ("*.py", "cli/**/*.py", "packages/*.py")
        for path in FACE.glob(inside)
    }
    for room in declared():
        for path in (ROOT / room).rglob("*.py"):
            wanted.add(f"draftwire/{path.relative_to(ROOT).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wanted == {name for name in names if name.endswith(".py")}
    profiles = {f"draftwire/boards/profiles/{p.name}" for p in PROFILES}
    assert len(profiles) >= 17 and profiles <= names
    for room in ("energy", "transport"):
        data = [p for p in (ROOT / room).rglob("*") if p.suffix in DATA]
        assert {f"draftwire/{p.relative_to(ROOT)}" for p in data} <= names and data
    assert {"draftwire/py.typed", "draftwire/transport/PROTOCOL.md"} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"draftwire"}


def test_the_installed_wheel_runs(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True
    )
    python = tmp_path / "v" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = tmp_path / "v" / "bin" / "draftwire"
    for words in ([str(command)], [str(python), "-m", "draftwire"]):
        asked = [*words, "--version"]
        said = subprocess.check_output(asked, cwd=tmp_path, env=clean).decode()
        assert said == f"draftwire {wheel.name.split('-')[1]}\n"
