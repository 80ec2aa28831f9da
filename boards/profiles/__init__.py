"""Board profiles: one TOML file for each board, checked, and the one for a machine.

A profile is matched by the module part of ``/proc/device-tree/compatible``
(``p3767-0003``), because carriers are many and modules are few; then by the model
string; then by the processor architecture, which gives a generic profile that says so.

Profiles of the user override ours by name and are matched first: those of
``$XDG_CONFIG_HOME/draftwire/boards``, then of the folder that ``DRAFTWIRE_PROFILE_DIR``
names, then of the folders that a command is given.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

from draftwire.boards.cores import architecture
from draftwire.boards.tree import Tree
from draftwire.errors import ConfigError
from draftwire.io import did_you_mean, read_toml

SCHEMA = "draftwire.board/1"
FOLDER = Path(__file__).resolve().parent
BOARD_VARIABLE = "DRAFTWIRE_BOARD"
FOLDER_VARIABLE = "DRAFTWIRE_PROFILE_DIR"

_KINDS: dict[tuple[type, str], str] = {
    (dict, "a table"): "match rails engines notes",
    (list, "a list"): "sensor modes cores variant memory_gb l4t",
    (str, "a text"): "schema name title soc arch cuda_sm extends",
}
_KEYS = {name: kind for kind, names in _KINDS.items() for name in names.split()}


@dataclass(frozen=True)
class Variant:
    """One of the forms that a board is sold in."""

    name: str
    compatible: tuple[str, ...] = ()
    memory_gb: float | None = None
    cores: int = 0  # its processor cores, or 0 where they do not tell


@dataclass(frozen=True)
class Profile:
    """One board; ``raw`` is the whole file."""

    name: str  # also the file's name: ``"jetson-orin-nano"``
    title: str  # what people call it
    soc: str  # system on chip, ``"tegra234"``, or ""
    arch: str  # ``uname -m``
    compatible: tuple[str, ...]  # strings to find in the device tree
    models: tuple[str, ...]  # strings to find in the model name
    dmi: tuple[str, ...]  # product names of firmware, for boards without a device tree
    rails: Mapping[str, Any]  # the ``[rails]`` table as it stands; ``energy`` reads it
    modes: tuple[Mapping[str, Any], ...] = ()  # power modes, an entry for each variant
    variants: tuple[Variant, ...] = ()  # forms that the board is sold in
    prefer: tuple[str, ...] = ("CPUExecutionProvider",)  # worth having here, best first
    quirks: tuple[str, ...] = ()  # sentences that a user of this board should know
    unverified: tuple[str, ...] = ()  # facts of the file that no source was read for
    sources: tuple[str, ...] = ()  # where the other facts come from
    path: Path = Path()  # the file
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def generic(self) -> bool:
        """True for the profiles of boards that we do not know."""
        return self.name.startswith("generic-")

    @property
    def own(self) -> bool:
        """True for a profile of the user."""
        return self.path.parent != FOLDER

    @property
    def jetson(self) -> bool:
        """True for NVIDIA's boards, which have L4T, nvpmodel and a shared memory."""
        return self.soc.startswith("tegra")


@dataclass(frozen=True)
class Match:
    """Which profile was chosen, and by what."""

    profile: Profile  # the profile
    how: str  # one clause for people: what was found, and where


def read_profile(path: Path, bases: Mapping[str, Profile] | None = None) -> Profile:
    """Read one profile, whose ``extends`` may name one of ``bases``; else a ConfigError."""
    raw = read_toml(path)
    if raw.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is not a board profile ({SCHEMA})")
    unknown = sorted(raw.keys() - _KEYS.keys())
    if unknown:
        hint = did_you_mean(unknown[0], _KEYS)
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", hint=hint)
    for name, value in raw.items():
        kind, wanted = _KEYS[name]
        if not isinstance(value, kind):
            raise ConfigError(f"{path}: {name!r} must be {wanted}")
    base = raw.get("extends")
    if base is not None:
        if not bases or base not in bases:
            raise ConfigError(f"{path} extends {base!r}, and there is no such profile")
        raw = {**bases[base].raw, **raw}
    try:
        return _profile(path, raw)
    except KeyError as exc:
        raise ConfigError(f"{path}: key {exc} is missing") from exc
    except (TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{path} has another shape than a board profile: {exc}") from exc


def _profile(path: Path, raw: Mapping[str, Any]) -> Profile:
    match, notes = raw.get("match", {}), raw.get("notes", {})
    engines = raw.get("engines", {})
    return Profile(
        name=raw["name"],
        title=raw["title"],
        soc=raw.get("soc", ""),
        arch=raw.get("arch", ""),
        compatible=_texts(match.get("compatible", [])),
        models=_texts(match.get("model", [])),
        dmi=_texts(match.get("dmi", [])),
        rails=dict(raw.get("rails", {})),
        modes=tuple(dict(mode) for mode in raw.get("modes", ())),
        variants=tuple(
            Variant(
                str(v["name"]),
                _texts(v.get("compatible", [])),
                None if "memory_gb" not in v else float(v["memory_gb"]),
                int(v.get("cores", 0)),
            )
            for v in raw.get("variant", ())
        ),
        prefer=_texts(engines.get("prefer", ["CPUExecutionProvider"])),
        quirks=_texts(notes.get("quirks", [])),
        unverified=_texts(notes.get("unverified", [])),
        sources=_texts(notes.get("sources", [])),
        path=path.resolve(),
        raw=raw,
    )


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{values!r} should be a list of texts")
    return tuple(values)


def user_folders(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Return where the user's own profiles lie, the weaker first."""
    environ = os.environ if environ is None else environ
    folders = []
    home = environ.get("HOME", "")
    base = environ.get("XDG_CONFIG_HOME", "") or (home and os.path.join(home, ".config"))
    if base and (Path(base) / "draftwire" / "boards").is_dir():
        folders.append(Path(base) / "draftwire" / "boards")
    named = environ.get(FOLDER_VARIABLE, "")
    if named:
        if not Path(named).expanduser().is_dir():
            raise ConfigError(f"{FOLDER_VARIABLE} is {named}, and that is no folder")
        folders.append(Path(named).expanduser())
    return folders


def load_profiles(*folders: Path) -> dict[str, Profile]:
    """Read all profiles by name: ours, the user's, then those of ``folders``; a later one
    overrides, and the user's are the first to be matched. ConfigError: a folder is
    missing, or a file is not a board profile."""
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder} with board profiles")
    profiles: dict[str, Profile] = {}
    for folder in (FOLDER, *user_folders(), *folders):
        own: dict[str, Profile] = {}
        # Those that extend another come last; of ours, it may stand beside them.
        found = sorted(folder.glob("*.toml"))
        for path in sorted(found, key=lambda p: "extends" in read_toml(p)):
            profile = read_profile(path, {**profiles, **own})
            own[profile.name] = profile
        profiles = {**own, **{n: p for n, p in profiles.items() if n not in own}}
    return profiles


def find_profile(
    root: Path = Path("/"),
    profiles: Mapping[str, Profile] | None = None,
    *,
    board: str | None = None,
) -> Match:
    """Tell which board this is by the ``proc`` below ``root``; ``board``, or else
    ``DRAFTWIRE_BOARD``, overrides what is found, and is a ConfigError where it names no
    profile. ``jetson-`` and ``raspberry-`` may be left out."""
    known = load_profiles() if profiles is None else profiles
    asked = board or os.environ.get(BOARD_VARIABLE)
    if asked and asked != "auto":
        # The maker's name may be left out: orin-nano, pi-5.
        for name in (asked, f"jetson-{asked}", f"raspberry-{asked}"):
            if name in known:
                return Match(known[name], "named by the user")
        hint = did_you_mean(asked, known, f"known: {', '.join(sorted(known))}")
        raise ConfigError(f"no board profile {asked!r}", hint=hint)
    tree = Tree(root)
    for text in tree.strings("proc/device-tree/compatible"):
        for profile in known.values():
            if any(_compatible(pattern, text) for pattern in profile.compatible):
                return Match(profile, f"device tree: compatible {text!r}")
    for text in tree.strings("proc/device-tree/model"):
        for profile in known.values():
            if any(pattern in text for pattern in profile.models):
                return Match(profile, f"device tree: model {text!r}")
    product = tree.text("sys/class/dmi/id/product_name")
    for profile in known.values():
        if product in profile.dmi:
            return Match(profile, f"firmware: product {product!r}")
    arch = architecture(tree)
    wanted = {"x86_64": "generic-x86", "i686": "generic-x86", "armv7l": "generic-armv7"}
    name = wanted.get(arch, "generic-aarch64")
    model = tree.strings("proc/device-tree/model")
    seen = f", model {model[0]!r}" if model else ""
    how = f"no known board in the device tree{seen}; machine is {arch or 'not known'}"
    return Match(known[name], how)


def _compatible(pattern: str, text: str) -> bool:
    """Match whole parts only: ``jetson-xavier`` is not ``jetson-xavier-nx``."""
    text = text[: -len("-super")] if text.endswith("-super") else text
    return pattern == text or pattern in text.split(",")[-1].split("+")
