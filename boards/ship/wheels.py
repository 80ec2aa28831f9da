"""The wheels for a board, resolved on a workstation for the board's own Python and ABI.

pip does the resolving, told what the board is; its answer is kept with hashes, so that
the second bundle needs no network. Every wheel is then read once more: a tag may say
glibc 2.27 where the code inside wants 2.34.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Mapping, Sequence

from draftwire.boards.install.facts import version_tuple
from draftwire.boards.ship.userlands import Userland
from draftwire.errors import BoardError, ConfigError
from draftwire.io import (
    cache_folder,
    did_you_mean,
    parse_json,
    read_toml,
    scratch_in,
    write_text,
    writing,
)

PINS = Path(__file__).resolve().parents[1] / "install" / "wheels.toml"
ENGINES = ("onnxruntime", "litert")
_PIP_S = 1800
_SYMBOL = re.compile(rb"\b(GLIBC|GLIBCXX)_(\d+(?:\.\d+)+)\b")
_NO_REGISTRY = re.compile(  # pip saw no index at all
    r"(NewConnectionError|Failed to establish a new connection|ProxyError|"
    r"NameResolutionError|ConnectTimeoutError|SSLError|Max retries exceeded)[^\n]*"
)
_OLD_TAGS = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class Wanted:
    """What a bundle needs beside draftwire itself."""

    requirements: tuple[str, ...]  # ``"numpy==2.2.6"`` and so on, sorted
    modules: tuple[str, ...]  # what they are imported as
    system_modules: tuple[str, ...] = ()  # what the board must have itself


@dataclass(frozen=True)
class Resolved:
    """One wheel of the answer."""

    name: str
    version: str
    filename: str
    sha256: str


def default_cache() -> Path:
    """Return the folder where wheels are kept: ``$XDG_CACHE_HOME/draftwire/wheels``."""
    return cache_folder() / "wheels"


def known_wheel(name: str) -> str:
    """Return the name that one of our wheels has (ConfigError: none has it)."""
    found = name.lower().replace("_", "-")
    known = {known for pins in read_toml(PINS)["python"].values() for known in pins}
    if found not in known:
        hint = did_you_mean(found, known, f"there are {', '.join(sorted(known))}")
        raise ConfigError(f"no bundle holds {name}", hint=hint)
    return found


def wanted_wheels(
    arch: str,
    python: str,
    *,
    engines: Sequence[str],
    without: Sequence[str] = (),
    changed: Mapping[str, str] | None = None,
) -> Wanted:
    """Return what a board needs with some of ``ENGINES``, ``without`` what it brings itself
    and with other versions than ours (``changed``); a ConfigError where no wheels are
    known for its Python, or an engine has none there."""
    table = read_toml(PINS)
    special = table.get(arch, {})
    for known, where in (
        (table["python"], ""),
        (special.get("python", table["python"]), f" on {arch}"),
    ):
        if python not in known:
            hint = f"there are some for {', '.join(known)}"
            message = f"no wheels are known for Python {python}{where}"
            raise ConfigError(message, hint=hint)
    pins = {**table["python"][python], **special.get("python", {}).get(python, {})}
    system = [name for name in special.get("system", ()) if name not in (changed or {})]
    imported_as = {d: m for names in table["engine"].values() for d, m in names.items()}
    chosen = []
    for engine in engines:
        there = [name for name in table["engine"].get(engine, {}) if pins.get(name)]
        if not there or engine not in special.get("engines", ENGINES):
            none = f"there is no wheel of {engine} for Python {python} on {arch}"
            hint = "name another with --engine, or bring one with --wheel FILE"
            raise ConfigError(none, hint=hint)
        chosen.append(there[0])
    needed = [name for name in pins if name in chosen or name not in imported_as]
    brought = [name for name in needed if name in system or name in without]
    kept = [name for name in needed if name not in brought]
    versions = {**{name: pins[name] for name in kept}, **(changed or {})}

    def modules(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(imported_as.get(n, n).replace("-", "_") for n in names))

    return Wanted(
        tuple(f"{name}=={versions[name]}" for name in sorted(versions)),
        modules(kept),
        modules(brought),
    )


def platform_tags(arch: str, glibc: str) -> list[str]:
    """Return the platform tags that a system takes, newest first (PEP 600)."""
    minor = version_tuple(glibc)[1]
    oldest = 5 if arch == "x86_64" else 17
    tags = []
    for number in range(minor, oldest - 1, -1):
        tags.append(f"manylinux_2_{number}_{arch}")
        if number in _OLD_TAGS:
            tags.append(f"{_OLD_TAGS[number]}_{arch}")
    return tags


def resolve_wheels(
    wanted: Wanted, userland: Userland, arch: str, *, cache: Path | None = None
) -> list[Resolved]:
    """Ask the package registry which wheels a board would get; download none. BoardError:
    one of them does not exist for this board, or there is no registry."""
    if not wanted.requirements:
        return []
    text = "\n".join([*wanted.requirements, userland.python, userland.glibc, arch])
    folder = cache or default_cache()
    place = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    kept = _read_lock(place)
    if kept is not None:
        return kept
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="draftwire-") as scratch:
        report = Path(scratch) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", f"--report={report}"]
        words += [f"--target={scratch}/none", *_board_flags(userland, arch)]
        system = f"Python {userland.python}, glibc {userland.glibc}, {arch}"
        _pip([*words, *wanted.requirements], f"{userland.name} ({system})")
        items = parse_json(report.read_bytes())["install"]
    found = []
    for item in items:
        info = item["download_info"]
        digest = info.get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise BoardError(
                f"the registry gives no sha256 for {item['metadata']['name']}",
                hint="use another package index",
            )
        name = info["url"].split("#")[0].rsplit("/", 1)[-1].replace("%2B", "+")
        meta = item["metadata"]
        found.append(Resolved(meta["name"], meta["version"], name, digest))
    found.sort(key=lambda wheel: wheel.name.lower())
    write_text(place, json.dumps([asdict(wheel) for wheel in found], indent=1))
    return found


def fetch_wheels(
    resolved: Sequence[Resolved],
    userland: Userland,
    arch: str,
    *,
    cache: Path | None = None,
) -> list[Path]:
    """Return the wheels as files, from the cache or the registry, hashes checked."""
    folder = cache or default_cache()
    missing = [wheel for wheel in resolved if not _has(folder, wheel)]
    if missing:
        with scratch_in(folder) as scratch:
            lock = scratch / "lock.txt"
            rows = (f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in missing)
            lock.write_text("".join(rows))
            words = ["download", "--require-hashes", f"--dest={scratch}"]
            words += [*_board_flags(userland, arch), f"--requirement={lock}"]
            _pip(words, f"{userland.name}, {arch}")
            for path in scratch.glob("*.whl"):
                os.replace(path, folder / path.name)
    paths = []
    for wheel in resolved:
        if not _has(folder, wheel):
            raise BoardError(f"the registry gave another file than {wheel.filename}")
        check_wheel(folder / wheel.filename, userland, arch)
        paths.append(folder / wheel.filename)
    return paths


def check_wheel(path: Path, userland: Userland, arch: str, *, local: bool = False) -> None:
    """Refuse a wheel whose tags, or the symbols that its code wants, do not fit the board;
    ``local`` takes ``linux_ARCH`` too, the tag of wheels that never were on PyPI."""
    pythons, abis, platforms = wheel_tags(path.name)
    digits = userland.python.replace(".", "")
    minor = version_tuple(userland.python)[1]
    stable = any(
        tag.startswith("cp3") and tag[3:].isdigit() and int(tag[3:]) <= minor
        for tag in pythons
    )
    fits = (f"cp{digits}" in pythons and {f"cp{digits}", "none", "abi3"} & abis) or (
        "abi3" in abis and stable
    )
    plain = pythons & {"py3", "py2.py3", f"py{digits}"} and "none" in abis
    allowed = {"any", *platform_tags(arch, userland.glibc)}
    if local:
        allowed.add(f"linux_{arch}")
    if not (fits or plain) or not platforms & allowed:
        raise BoardError(
            f"{path.name} does not fit Python {userland.python}, {arch}, "
            f"glibc {userland.glibc}",
            hint="its name says what it is for",
        )
    needs = _needed_symbols(path)
    for library, has in (("GLIBC", userland.glibc), ("GLIBCXX", userland.glibcxx)):
        if needs.get(library, ()) > version_tuple(has):
            version = ".".join(str(part) for part in needs[library])
            raise BoardError(
                f"{path.name} is tagged as fit, but its code needs "
                f"{library}_{version}, and {userland.name} has {has}",
                hint="take an older version: --require NAME==VERSION",
            )


def wheel_tags(filename: str) -> tuple[set[str], set[str], set[str]]:
    """Return a wheel's Python, ABI and platform tags; a BoardError for another name."""
    parts = filename[: -len(".whl")].split("-") if filename.endswith(".whl") else []
    if len(parts) not in (5, 6):
        raise BoardError(f"{filename} is not the name of a wheel")
    python, abi, platform = (set(part.split(".")) for part in parts[-3:])
    return python, abi, platform


def _needed_symbols(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the newest symbol versions that a wheel's shared objects name."""
    newest: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as wheel:
            for entry in wheel.infolist():
                if ".so" in entry.filename.rsplit("/", 1)[-1]:
                    for found in set(_SYMBOL.findall(wheel.read(entry))):
                        library, version = (part.decode("ascii") for part in found)
                        known = newest.get(library, ())
                        newest[library] = max(known, version_tuple(version))
    except (OSError, zipfile.BadZipFile) as exc:
        raise BoardError(f"{path.name} cannot be read as a wheel: {exc}") from exc
    return newest


def _board_flags(userland: Userland, arch: str) -> list[str]:
    digits = userland.python.replace(".", "")
    flags = ["--no-deps", "--only-binary=:all:", "--implementation=cp"]
    flags += [f"--python-version={userland.python}"]
    flags += [f"--abi={abi}" for abi in (f"cp{digits}", "abi3", "none")]
    return flags + [f"--platform={tag}" for tag in platform_tags(arch, userland.glibc)]


def _pip(words: Sequence[str], whom: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", *words[1:]]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PIP_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BoardError(f"pip cannot be run: {exc}") from exc
    if done.returncode == 0:
        return
    said = done.stderr.decode("utf-8", "replace")
    if "No module named pip" in said:
        raise ConfigError(
            "this Python has no pip, which resolves the board's wheels",
            hint="python3 -m ensurepip, or use a virtual environment",
        )
    # An exception of pip's own says at the end of its traceback what it is.
    errors = re.findall(r"^ERROR:(?! Exception:$).*", said, re.M)
    missing = re.search(r"No matching distribution found for (\S+)", said)
    if missing:
        if trouble := _NO_REGISTRY.search(said):
            raise BoardError(f"the package registry cannot be reached: {trouble[0][:120]}")
        hint = "name another version with --require NAME==VERSION, bring a wheel with "
        hint += "--wheel FILE, or leave it to the board with --without NAME"
        raise BoardError(f"there is no wheel of {missing.group(1)} for {whom}", hint=hint)
    last = (errors or said.strip().splitlines() or ["it said nothing"])[-1]
    full = "No space left" in last or "quota" in last
    hint = "make room, also in /tmp" if full else "is the package registry reachable?"
    raise BoardError(f"pip failed: {last[:300]}", hint=hint)


def _has(folder: Path, wheel: Resolved) -> bool:
    path = folder / wheel.filename
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256


def _read_lock(path: Path) -> list[Resolved] | None:
    try:
        found = [Resolved(**entry) for entry in parse_json(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None
    # A name from a file becomes a path: only a wheel's own name may.
    return found if all(re.match(r"[\w.+-]+\.whl\Z", w.filename) for w in found) else None
