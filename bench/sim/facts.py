"""Timing profiles: numbers with their sources, read from TOML.

A profile says what a device, a cloud and the link between them take. Every number is a
fact: a value, how it was come by (``published``, ``derived`` from published numbers,
``fitted`` to them, or ``assumed``) and its source in words. Tables that come out of a
simulation print what was assumed and fitted beside them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping, TypeVar, get_type_hints

from draftwire.errors import ConfigError
from draftwire.io import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = "draftwire.timing/1"
FOLDER = Path(__file__).resolve().parent.parent / "profiles"
HOW = ("measured", "published", "derived", "fitted", "assumed")

# Fact -> (default or None where the profile must say it, least, most).
_KEYS: Mapping[str, tuple[float | None, float, float]] = {
    "draft.step_ms": (None, 1e-6, 1e5),
    "draft.step_tokens": (16, 1, 1e4),
    "draft.at_once": (1, 1, 32),
    "draft.lanes": (1, 1, 16),
    "draft.lane_part": (0.1, 0, 1),
    "draft.read_ms_per_token": (0.0, 0, 1e5),
    "cloud.forward_ms": (None, 1e-6, 1e5),
    "cloud.free_tokens": (17, 1, 1e4),
    "cloud.most_tokens": (128, 2, 1e4),
    "cloud.forward_ms_per_token": (0.0, 0, 1e5),
    "cloud.forward_ms_per_session": (0.0, 0, 1e5),
    "cloud.read_ms_per_token": (0.0, 0, 1e5),
    "cloud.draft_step_ms": (math.nan, 1e-6, 1e5),
    "link.rtt_ms": (None, 0, 1e5),
    "link.up_mbit_s": (math.inf, 1e-6, 1e6),
    "link.down_mbit_s": (math.inf, 1e-6, 1e6),
    "text.acceptance": (None, 0, 1),
    "text.vocabulary": (None, 4, 2**24),
    "text.prompt_tokens": (64, 1, 1e5),
    "speculation.block": (4, 1, 255),
    "speculation.cut": (1, 0, 1),
    **{
        f"watts.{phase}": (math.nan, 0, 1e4)
        for phase in ("prefill", "draft", "transmit", "verify-wait", "wait", "idle")
    },
}
# Numbers of exits and claims that are shares.
_MOST = {"fraction": 1.0, "agreement": 1.0, "coverage": 1.0, "ratio": 1.0}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Fact:
    """One number of a profile."""

    name: str  # group and key, such as ``"cloud.forward_ms"``
    value: float  # in the unit that the name ends with
    how: str  # one of ``HOW``, or ``"default"`` where the profile says nothing
    source: str  # where it comes from, in words


@dataclass(frozen=True)
class Exit:
    """An early exit of the target."""

    fraction: float  # of the forward that is done when it speaks, 0..1
    agreement: float  # share of its confident tokens that the last layer agrees with
    coverage: float  # share of positions where it is confident
    how: str  # as in :class:`Fact`
    source: str  # as in :class:`Fact`


@dataclass(frozen=True)
class Published:
    """What a publication says that a scheme reached."""

    scheme: str  # our name of the scheme
    tokens_s: float  # tokens a second
    source: str  # where that is printed


@dataclass(frozen=True)
class Claim:
    """A published ratio of latencies."""

    what: str  # in words
    scheme: str  # our name of the scheme that is faster
    # our name of what it is compared with, or ``"request"``: the target alone, asked anew
    # for every token
    against: str
    ratio: float  # its time for a token over the other's
    source: str  # where that is printed


@dataclass(frozen=True)
class Profile:
    """Timings of a device, a cloud and a link."""

    name: str  # also the file's name
    title: str  # one line
    facts: Mapping[str, Fact]  # every number by its name, defaults included
    exits: tuple[Exit, ...] = ()  # early exits of the target, first to last
    published: tuple[Published, ...] = ()  # speeds to compare with
    claims: tuple[Claim, ...] = ()  # ratios to compare with
    notes: tuple[str, ...] = ()  # what else a reader should know, one sentence each

    def __getitem__(self, name: str) -> float:
        """Return the value of a fact; NaN when nobody knows it."""
        return self.facts[name].value

    def seconds(self, name: str) -> float:
        """Return a fact in milliseconds as seconds."""
        return self.facts[name].value / 1e3

    def replaced(self, how: str, source: str, **values: float) -> Profile:
        """Return the profile with other values; ``cloud__forward_ms=30`` names one."""
        facts = dict(self.facts)
        for key, value in values.items():
            name = key.replace("__", ".")
            facts[name] = replace(facts[name], value=float(value), how=how, source=source)
        return replace(self, facts=facts)

    def watts(self) -> dict[str, float]:
        """Return the watts of each phase that the profile knows."""
        found = {n.partition(".")[2]: self[n] for n in _KEYS if n.startswith("watts.")}
        return {phase: watt for phase, watt in found.items() if not math.isnan(watt)}


def _is_number(value: object, low: float, high: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and low <= value <= high  # type: ignore[operator]


def _as_fact(where: str, name: str, raw: object) -> Fact:
    if not isinstance(raw, Mapping) or set(raw) != {"value", "how", "source"}:
        raise ConfigError(
            f"{where}: {name} must be a table of value, how and source",
            hint='such as { value = 25.0, how = "published", source = "..." }',
        )
    value, how, source = raw["value"], raw["how"], raw["source"]
    _, low, high = _KEYS[name]
    if not _is_number(value, low, high):
        raise ConfigError(
            f"{where}: {name} is {value!r}", hint=f"a number from {low:g} to {high:g}"
        )
    if how not in HOW:
        raise ConfigError(f"{where}: {name} is {how!r}", hint=f"one of {', '.join(HOW)}")
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"{where}: {name} has no source")
    return Fact(name, float(value), how, source)


def _whole(where: str, known: Mapping[str, Fact]) -> dict[str, Fact]:
    """Return all facts, defaults for those that are not known."""
    found = {}
    for name, (default, _, _) in _KEYS.items():
        if name in known:
            found[name] = known[name]
        elif default is None:
            raise ConfigError(f"{where} lacks {name}")
        else:
            found[name] = Fact(name, default, "default", "not in the profile")
    return found


def parse_profile(text: str, where: str) -> Profile:
    """Return the profile in ``text``.

    Args:
        text: TOML.
        where: Its file, for messages.

    Raises:
        ConfigError: It is not TOML, or a key is missing, unknown or out of range.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{where} is not TOML: {exc}") from exc
    if raw.pop("schema", None) != SCHEMA:
        raise ConfigError(f"{where} has no schema {SCHEMA!r}")
    name, title = raw.pop("name", ""), raw.pop("title", "")
    notes = raw.pop("notes", [])
    if not (isinstance(name, str) and name and isinstance(title, str)):
        raise ConfigError(f"{where} has no name or title")
    if not (isinstance(notes, list) and all(isinstance(note, str) for note in notes)):
        raise ConfigError(f"{where}: notes must be a list of sentences")
    exits = tuple(_rows(where, raw, "exit", "an exit", Exit))
    published = tuple(_rows(where, raw, "published", "a published result", Published))
    claims = tuple(_rows(where, raw, "claim", "a claim", Claim))
    facts: dict[str, Fact] = {}
    for group in dict.fromkeys(name.partition(".")[0] for name in _KEYS):
        given = raw.pop(group, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}: {group} must be a table")
        for key, one in given.items():
            full = f"{group}.{key}"
            if full not in _KEYS:
                known = [n.partition(".")[2] for n in _KEYS if n.startswith(f"{group}.")]
                raise ConfigError(
                    f"{where} has no {full}", hint=f"known: {', '.join(known)}"
                )
            facts[full] = _as_fact(where, full, one)
    facts = _whole(where, facts)
    if raw:
        raise ConfigError(f"{where} has an unknown key {sorted(raw)[0]!r}")
    return Profile(name, title, facts, exits, published, claims, tuple(notes))


def _rows(where: str, raw: dict[str, Any], key: str, what: str, cls: type[_T]) -> list[_T]:
    """Return the list of tables ``key`` as objects: numbers of their range, and words."""
    found = raw.pop(key, [])
    if not isinstance(found, list) or not all(isinstance(x, Mapping) for x in found):
        raise ConfigError(f"{where}: {key} must be a list of tables")
    fields = get_type_hints(cls)
    rows = []
    for one in found:
        if set(one) != set(fields):
            raise ConfigError(f"{where}: {what} needs {', '.join(fields)}, and no more")
        for name, value in one.items():
            if fields[name] is str:
                fits = isinstance(value, str) and bool(value)
                fits &= name != "how" or value in HOW
            else:
                fits = _is_number(value, 0, _MOST.get(name, math.inf))
            if not fits:
                raise ConfigError(f"{where}: {name} of {what} is {value!r}")
        rows.append(cls(**{n: fields[n](v) for n, v in one.items()}))
    return rows


def measured(name: str, title: str, values: Mapping[str, tuple[float, str]]) -> Profile:
    """Return a profile of measured facts; the others have their defaults.

    Args:
        name: Of the profile.
        title: One line.
        values: Value and source of facts, by name; all that a profile must say.
    """
    facts = {}
    for full, (value, source) in values.items():
        _, low, high = _KEYS[full]
        facts[full] = Fact(full, min(max(value, low), high), "measured", source)
    return Profile(name, title, _whole(name, facts))


@lru_cache(maxsize=1)
def profiles() -> dict[str, Profile]:
    """Return the profiles that come with draftwire, by name."""
    paths = sorted(FOLDER.glob("*.toml"))
    found = (parse_profile(p.read_text(encoding="utf-8"), p.name) for p in paths)
    return {profile.name: profile for profile in found}


def find(name: str) -> Profile:
    """Return a profile by its name, or from a file whose name ends in ``.toml``.

    ``NAME@12`` has another board: a forward of the draft takes 12 ms there. One of
    ``NAME@43x8`` says eight tokens at once.

    Raises:
        ConfigError: There is none, or the file is damaged.
    """
    name, asked, board = name.partition("@")
    if asked:
        step_ms, _, at_once = board.partition("x")
        try:
            facts = {"draft.step_ms": float(step_ms), "draft.at_once": int(at_once or 1)}
        except ValueError:
            facts = {"draft.step_ms": math.nan}
        if not all(_is_number(value, *_KEYS[key][1:]) for key, value in facts.items()):
            raise ConfigError(
                f"{board!r} is no board",
                hint="such as nano-a100@5.4, or nano-a100@43x8 for eight tokens at once",
            )
        return find(name).replaced("assumed", "asked for", **facts)
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the profile {name}: {exc}") from exc
        return parse_profile(text, name)
    table = profiles()
    if name in table:
        return table[name]
    hint = did_you_mean(name, table, f"there are {', '.join(table)}")
    raise ConfigError(f"no timing profile is called {name!r}", hint=hint)
