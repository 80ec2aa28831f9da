"""Board profiles: ``boards/*.toml`` as checked objects, and the one for a machine.

A profile is matched by the module part of ``/proc/device-tree/compatible``
(``p3767-0003``), because carriers are many and modules are few; then by the model
string; then by the processor architecture, which gives a generic profile that says so.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from draftwire.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "SCHEMA",
    "Match",
    "Profile",
    "find_profile",
    "load_profiles",
    "read_profile",
]

SCHEMA = "draftwire.board/1"
FOLDER = Path(__file__).resolve().parent

_KEYS = {
    "schema", "name", "title", "soc", "arch", "memory_gb", "cuda_sm", "l4t", "match",
    "rails", "sensor", "modes", "notes", "cores", "engines",
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """One board.

    Attributes:
        name: Short name, also the file's name, e.g. ``"jetson-orin-nano"``.
        title: What people call it.
        soc: System on chip, e.g. ``"tegra234"``, or "".
        arch: ``uname -m``.
        compatible: Strings to find in the device tree.
        models: Strings to find in the model name.
        rails: The ``[rails]`` table as it stands; ``energy`` reads it.
        modes: Power modes by name, one entry for each variant of the board.
        raw: The whole file.
    """

    name: str
    title: str
    soc: str
    arch: str
    compatible: tuple[str, ...]
    models: tuple[str, ...]
    rails: Mapping[str, Any]
    modes: tuple[Mapping[str, Any], ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def generic(self) -> bool:
        """True for the profiles of boards that we do not know."""
        return self.name.startswith("generic-")


@dataclass(frozen=True)
class Match:
    """Which profile was chosen, and by what.

    Attributes:
        profile: The profile.
        how: One clause for people: what was found, and where.
    """

    profile: Profile
    how: str


def read_profile(path: Path) -> Profile:
    """Read one profile.

    Raises:
        ConfigError: The file is not a board profile.
    """
    try:
        with open(path, "rb") as file:
            raw = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"cannot read the board profile {path}: {exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    if raw.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is not a board profile ({SCHEMA})")
    unknown = sorted(set(raw) - _KEYS)
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}")
    match = raw.get("match", {})
    try:
        return Profile(
            name=str(raw["name"]),
            title=str(raw["title"]),
            soc=str(raw.get("soc", "")),
            arch=str(raw.get("arch", "")),
            compatible=tuple(str(text) for text in match.get("compatible", ())),
            models=tuple(str(text) for text in match.get("model", ())),
            rails=dict(raw.get("rails", {})),
            modes=tuple(raw.get("modes", ())),
            raw=raw,
        )
    except KeyError as exc:
        raise ConfigError(f"{path}: key {exc} is missing") from exc


def load_profiles(*folders: Path) -> dict[str, Profile]:
    """Read all profiles: ours, then those of ``folders``, which override by name."""
    profiles: dict[str, Profile] = {}
    for folder in (FOLDER, *folders):
        for path in sorted(folder.glob("*.toml")):
            profile = read_profile(path)
            profiles[profile.name] = profile
    return profiles


def find_profile(
    root: Path = Path("/"),
    profiles: Mapping[str, Profile] | None = None,
    *,
    board: str | None = None,
) -> Match:
    """Tell which board this is.

    Args:
        root: Where ``proc`` lies; tests and recorded trees pass their own.
        profiles: All profiles by name; None reads them.
        board: A name that overrides what is found.  None asks ``DRAFTWIRE_BOARD``.

    Raises:
        ConfigError: ``board`` names no profile.
    """
    known = load_profiles() if profiles is None else profiles
    asked = board or os.environ.get("DRAFTWIRE_BOARD")
    if asked and asked != "auto":
        if asked not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(f"no board profile {asked!r}", hint=f"known: {names}")
        return Match(known[asked], "named by the user")
    tree = root / "proc/device-tree"
    for text in _strings(tree / "compatible"):
        for profile in known.values():
            if any(_compatible(pattern, text) for pattern in profile.compatible):
                return Match(profile, f"device tree: compatible {text!r}")
    for text in _strings(tree / "model"):
        for profile in known.values():
            if any(pattern in text for pattern in profile.models):
                return Match(profile, f"device tree: model {text!r}")
    arch = os.uname().machine
    wanted = {"x86_64": "generic-x86", "armv7l": "generic-armv7"}
    name = wanted.get(arch, "generic-aarch64")
    return Match(known[name], f"no known board in the device tree; machine is {arch}")


def _strings(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError:
        return []
    parts = data.decode("utf-8", "replace").split("\0")
    return [part.strip() for part in parts if part.strip()]


def _compatible(pattern: str, text: str) -> bool:
    """Match whole parts only: ``jetson-xavier`` is not ``jetson-xavier-nx``."""
    text = text[: -len("-super")] if text.endswith("-super") else text
    return pattern == text or pattern in text.split(",")[-1].split("+")
