"""The wheels of a board: which, for what, and whether the registry has them."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from places import ROOT

from draftwire.boards.profiles import load_profiles
from draftwire.boards.ship import wheels
from draftwire.boards.ship.userlands import Userland, choose_userland, userlands_of
from draftwire.boards.ship.wheels import (
    Resolved,
    check_wheel,
    platform_tags,
    resolve_wheels,
    wanted_wheels,
)
from draftwire.errors import BoardError, ConfigError

R35 = Userland("L4T R35", "3.8", "2.31", "3.4.28")
R36 = Userland("L4T R36", "3.10", "2.35", "3.4.30")


def test_our_pins_are_those_that_the_tests_run_with():
    """``make test`` runs the device rooms with what these two files name."""
    tested = {}
    for name in ("device.txt", "litert.txt"):
        for line in (ROOT / "requirements" / name).read_text("utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            pin = Requirement(line)
            for python in ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13"):
                if not pin.marker or pin.marker.evaluate({"python_version": python}):
                    tested[pin.name, python] = str(pin.specifier)[2:]
    table = wheels.read_toml(wheels.PINS)
    for python, pins in table["python"].items():
        for name, version in pins.items():
            if (name, python) in tested:
                assert tested[name, python] == version, (name, python)
        assert {"numpy", "websockets", "onnxruntime", "tokenizers"} <= set(pins)
        assert ("tomli" in pins) == (int(python.split(".")[1]) < 11)


def test_every_board_has_a_system_to_make_bundles_for():
    for name, profile in load_profiles().items():
        known = userlands_of(profile.raw)
        assert known, name
        for userland in known:
            found = choose_userland(name, known, userland.python, None)
            assert found.glibc <= userland.glibc
            engine = "litert" if profile.arch == "armv7l" else "onnxruntime"
            if profile.arch != "armv7l":
                wanted_wheels(profile.arch, found.python, engines=[engine])


def test_the_oldest_system_with_a_python_is_taken():
    known = userlands_of({"l4t": ["R32", "R35"]})
    assert choose_userland("nano", known, None, None).glibc == "2.27"
    assert choose_userland("nano", known, "3.8", "2.31").glibc == "2.31"
    with pytest.raises(ConfigError, match="several Pythons: 3.8, 3.10"):
        choose_userland("orin", userlands_of({"l4t": ["R35", "R36"]}), None, None)
    with pytest.raises(ConfigError, match="not known to come with Python 3.6"):
        choose_userland("nano", known, "3.6", None)


def test_what_a_board_needs():
    wanted = wanted_wheels("aarch64", "3.8", engines=["onnxruntime"])
    assert " ".join(wanted.requirements) == (
        "numpy==1.24.4 onnxruntime==1.19.2 tokenizers==0.20.3 tomli==2.5.0 websockets==13.1"
    )
    assert "onnxruntime" in wanted.modules and wanted.system_modules == ()
    own = wanted_wheels(
        "aarch64", "3.10", engines=[], without=["numpy"], changed={"websockets": "15.0"}
    )
    assert own.requirements == ("tokenizers==0.23.3", "tomli==2.5.0", "websockets==15.0")
    assert own.system_modules == ("numpy",)
    small = wanted_wheels("armv7l", "3.11", engines=["litert"])
    assert "tflite-runtime==2.14.0" in small.requirements
    assert "tflite_runtime" in small.modules and small.system_modules == ("numpy",)
    assert not [r for r in small.requirements if r.startswith(("numpy", "onnx", "ai-"))]
    for arch, python, engine in (
        ("armv7l", "3.11", "onnxruntime"),
        ("aarch64", "3.6", "onnxruntime"),
        ("armv7l", "3.9", "litert"),
        ("armv7l", "3.12", "litert"),
    ):
        with pytest.raises(ConfigError):
            wanted_wheels(arch, python, engines=[engine])


def test_platform_tags_go_down_from_the_boards_glibc():
    tags = platform_tags("aarch64", "2.31")
    assert tags[0] == "manylinux_2_31_aarch64" and tags[-1] == "manylinux2014_aarch64"
    assert "manylinux_2_34_aarch64" not in tags
    assert "manylinux1_x86_64" in platform_tags("x86_64", "2.36")
    assert "manylinux2010_aarch64" not in tags


def wheel(folder, name, code=b""):
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pkg/core.cpython-38.so", code)
        archive.writestr("pkg/__init__.py", b"GLIBC_9.9 in a comment")
    return path


@pytest.mark.parametrize(
    ("name", "userland", "fits"),
    [
        ("a-1-cp38-cp38-manylinux2014_aarch64.whl", R35, True),
        ("a-1-cp38-cp38-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", R35, True),
        ("a-1-cp37-abi3-manylinux_2_28_aarch64.whl", R35, True),
        ("a-1-py3-none-any.whl", R35, True),
        ("a-1-1build-py2.py3-none-any.whl", R35, True),
        ("a-1-cp310-cp310-manylinux_2_35_aarch64.whl", R36, True),
        ("a-1-cp310-cp310-manylinux_2_35_aarch64.whl", R35, False),
        ("a-1-cp38-cp38-manylinux_2_34_aarch64.whl", R35, False),
        ("a-1-cp39-abi3-manylinux2014_aarch64.whl", R35, False),
        ("a-1-cp38-cp38-manylinux2014_x86_64.whl", R35, False),
        ("a-1-cp38-cp38-linux_aarch64.whl", R35, False),
        ("a-1-cp38-cp38-musllinux_1_2_aarch64.whl", R35, False),
        ("a-1-py2-none-any.whl", R35, False),
    ],
)
def test_tags(tmp_path, name, userland, fits):
    path = wheel(tmp_path, name)
    if "linux_aarch64" in name:  # of one's own it may have the plain tag
        check_wheel(path, userland, "aarch64", local=True)
    if fits:
        check_wheel(path, userland, "aarch64")
    else:
        with pytest.raises(BoardError, match="does not fit"):
            check_wheel(path, userland, "aarch64")


@pytest.mark.parametrize(
    ("symbol", "complaint"), [(b"GLIBC_2.34", "GLIBC_2.34"), (b"GLIBCXX_3.4.30", "GLIBCXX")]
)
def test_code_that_wants_more_than_its_tag_says(tmp_path, symbol, complaint):
    """As ai-edge-litert 2.3.0 does: tagged manylinux_2_27, and it needs 2.34."""
    name = "a-1-cp38-cp38-manylinux_2_27_aarch64.whl"
    check_wheel(wheel(tmp_path, name, b"\0GLIBC_2.17\0GLIBC_2.31\0"), R35, "aarch64")
    path = wheel(tmp_path, name, b"\0GLIBC_2.17\0" + symbol + b"\0")
    with pytest.raises(BoardError, match=f"code needs {complaint}"):
        check_wheel(path, R35, "aarch64")


@pytest.mark.parametrize(
    ("stderr", "complaint"),
    [
        ("ERROR: No matching distribution found for numpy==9", "wheel of numpy==9 for L4T"),
        (
            "WARNING: Retrying: NewConnectionError('no route')\n"
            "ERROR: No matching distribution found for numpy==9",
            "registry cannot be reached",
        ),
        ("/usr/bin/python3: No module named pip", "has no pip"),
        ("ERROR: something else", "pip failed: ERROR: something else"),
        (
            "ERROR: Exception:\nTraceback (most recent call last):\n  File ...\n"
            "OSError: [Errno 28] No space left on device: 'a' -> 'b'\n",
            "pip failed: OSError: .* No space left on device",
        ),
    ],
)
def test_pips_complaints_in_our_words(tmp_path, monkeypatch, stderr, complaint):
    done = subprocess.CompletedProcess([], 1, b"", stderr.encode())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    wanted = wanted_wheels("aarch64", "3.10", engines=["onnxruntime"])
    with pytest.raises((BoardError, ConfigError), match=complaint) as found:
        resolve_wheels(wanted, R36, "aarch64", cache=tmp_path)
    assert ("make room" in found.value.hint) == ("No space" in stderr)


def test_the_second_bundle_needs_no_network(tmp_path, monkeypatch):
    calls = []

    def run(command, **_):
        calls.append(command)
        report = next(w for w in command if w.startswith("--report=")).split("=", 1)[1]
        info = {"url": "https://host/x/a-1-py3-none-any.whl#sha256=0"}
        info["archive_info"] = {"hashes": {"sha256": "f" * 64}}
        wheel = {"metadata": {"name": "a", "version": "1"}, "download_info": info}
        Path(report).write_text(json.dumps({"install": [wheel]}))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr("draftwire.boards.ship.wheels.subprocess.run", run)
    wanted = wheels.Wanted(("a==1",), ("a",))
    first = resolve_wheels(wanted, R36, "aarch64", cache=tmp_path)
    assert first == [Resolved("a", "1", "a-1-py3-none-any.whl", "f" * 64)]
    flags = calls[0]
    assert "--no-deps" in flags and "--only-binary=:all:" in flags
    assert "--python-version=3.10" in flags and "--abi=cp310" in flags
    assert resolve_wheels(wanted, R36, "aarch64", cache=tmp_path) == first
    assert len(calls) == 1
    # A file of the cache that was tampered with does not become a path elsewhere.
    (lock,) = tmp_path.glob("*.json")
    lock.write_text(lock.read_text().replace("a-1-py3", "../a-1-py3"))
    resolve_wheels(wanted, R36, "aarch64", cache=tmp_path)
    assert len(calls) == 2


# ---- the real registry


def combinations():
    """Return (board, arch, Python), each pair of system and processor once."""
    found = {}
    for name, profile in sorted(load_profiles().items()):
        for userland in userlands_of(profile.raw):
            if profile.arch == "armv7l" and userland.python != "3.11":
                continue  # no engine has wheels for the others, or numpy is too old
            known = userlands_of(profile.raw)
            taken = choose_userland(name, known, userland.python, None)
            key = (profile.arch, taken.python, taken.glibc)
            found.setdefault(key, (name, profile.arch, taken.python))
    return sorted(found.values())


def resolve_for(board, arch, python):
    if subprocess.call([sys.executable, "-m", "pip", "--version"], stdout=-3, stderr=-3):
        pytest.skip("this Python has no pip: nothing can be resolved")
    report = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"], stdout=-1, check=True
    ).stdout
    if b"--report" not in report:
        pytest.skip("this pip is older than 22.2: it cannot report what it resolves")
    userland = choose_userland(
        board, userlands_of(load_profiles()[board].raw), python, None
    )
    engines = ["litert"] if arch == "armv7l" else ["onnxruntime"]
    wanted = wanted_wheels(arch, userland.python, engines=engines)
    cache = ROOT / "out" / "wheels"  # ignored by git
    try:
        return resolve_wheels(wanted, userland, arch, cache=cache)
    except BoardError as exc:
        if "registry" in str(exc):
            pytest.skip(f"no package registry here: {exc}")
        raise


@pytest.mark.slow
@pytest.mark.parametrize(("board", "arch", "python"), combinations())
def test_the_wheels_of_every_board_exist(board, arch, python):
    found = {wheel.name.lower() for wheel in resolve_for(board, arch, python)}
    assert {"websockets", "tokenizers"} <= found
    assert "numpy" in found or arch == "armv7l"


def test_the_wheels_of_one_board_exist():
    found = {w.name: w for w in resolve_for("jetson-orin-nano", "aarch64", "3.8")}
    assert found["onnxruntime"].version == "1.19.2"
    assert "cp38" in found["numpy"].filename and "aarch64" in found["numpy"].filename
    assert all(len(w.sha256) == 64 for w in found.values())
