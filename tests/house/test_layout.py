"""Folders, links and ``setup.py`` agree; what is built of them works, and costs little."""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from places import ROOT

import draftwire
from draftwire.io import environment

FACE = ROOT / "src" / "draftwire"
PROFILES = list((ROOT / "boards" / "profiles").glob("*.toml"))
OUTSIDE = {"studies"}  # run from a checkout, in no wheel
DATA = {".toml", ".json", ".css", ".js", ".mplstyle"}
BUILT_FROM = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def declared():
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
def wheel(tmp_path_factory):
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


# ---- what every file of the repository keeps to

TEXT = {"", ".md", ".py", ".toml", ".txt", ".in", ".json", ".yml", ".cfg", ".sh"}
# Spelled in halves: this file is read as well.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/tmp/" + r"(train|dev)\b"])
)


def text_files():
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(words, cwd=ROOT, text=True).splitlines():
        path = ROOT / name
        if name.startswith("shared/"):
            continue
        if path.suffix in TEXT and path.is_file() and not path.is_symlink():
            yield path


def test_no_file_names_a_place_on_somebodys_machine():
    found = []
    for path in text_files():
        if path.stat().st_size > 2_000_000:  # a vocabulary, not prose
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_no_two_test_files_share_a_name():
    seen = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        assert path.name not in seen, f"{path} and {seen.get(path.name)}"
        seen[path.name] = path


# ---- what the command and the core may cost

HELP_CPU_S = 0.060
MAX_DEPENDENCIES = 3


def child_cpu_s(words):
    """Return the user and system time of one Python process, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command, nowhere = [sys.executable, *words], subprocess.DEVNULL
    subprocess.run(command, env=environment(), stdout=nowhere, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_little_above_bare_python():
    """Of pairs of runs, the best: a busy machine makes each of them dearer."""
    extra = []
    for _ in range(12):
        bare = child_cpu_s(["-c", "pass"])
        extra.append(child_cpu_s(["-m", "draftwire", "--help"]) - bare)
        if extra[-1] <= HELP_CPU_S:
            return
    raise AssertionError(f"draftwire --help costs {min(extra) * 1e3:.0f} ms")


def test_help_and_config_import_nothing_heavy():
    for words in (["--help"], ["demo", "--help"], ["config", "show"]):
        script = (
            "import sys\n"
            "from draftwire.cli import main\n"
            "try:\n"
            f"    main({words!r})\n"
            "except SystemExit:\n"
            "    pass\n"
            "loaded = {name.split('.')[0] for name in sys.modules}\n"
            "heavy = {'numpy', 'websockets', 'asyncio', 'onnxruntime', 'tokenizers'}\n"
            "sys.exit(' '.join(sorted(loaded & heavy)) or 0)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), capture_output=True
        )
        assert done.returncode == 0, (words, done.stderr.decode())


def test_the_core_depends_on_three_packages_at_most():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.S | re.M)
    assert block is not None
    names = re.findall(r'^\s*"([A-Za-z0-9_-]+)', block.group(1), re.M)
    assert 1 <= len(names) <= MAX_DEPENDENCIES, names
    assert set(names) == {"numpy", "websockets", "tomli"}


def test_the_version_is_said_once_in_two_places():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{draftwire.__version__}"\n' in text
