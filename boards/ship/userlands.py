"""Which systems a board comes with: their Python, glibc and C++ library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from draftwire.boards.cores import facts
from draftwire.boards.install.facts import version_tuple
from draftwire.errors import ConfigError


@dataclass(frozen=True)
class Userland:
    """One system."""

    name: str  # what people call it
    python: str  # ``"3.10"``
    glibc: str  # ``"2.35"``
    glibcxx: str  # newest symbol version of its libstdc++, ``"3.4.30"``


def userlands_of(profile: Mapping[str, Any]) -> tuple[Userland, ...]:
    """Return the systems that a board, by its profile's file, is known to run, oldest
    first."""
    l4t, releases = facts()["l4t"], profile.get("l4t")
    found = [l4t[name] for name in releases if name in l4t] if releases else None
    return tuple(Userland(*row) for row in found or facts()["systems"]["known"])


def choose_userland(
    board: str, known: Sequence[Userland], python: str | None, glibc: str | None
) -> Userland:
    """Return the system to make a bundle for: of several that fit, the oldest; a
    ConfigError if the board has no such Python, or several and none was named."""
    pythons = list(dict.fromkeys(u.python for u in known))
    if python is None:
        if len(pythons) != 1:
            raise ConfigError(
                f"{board} comes with several Pythons: {', '.join(pythons)}",
                hint="name the board's with --python (`python3 --version` there)",
            )
        python = pythons[0]
    fitting = [u for u in known if u.python == python]
    if not fitting:
        hint = "; ".join(f"{u.python}: {u.name}" for u in known)
        raise ConfigError(f"{board} is not known to come with Python {python}", hint=hint)
    found = min(fitting, key=lambda u: version_tuple(u.glibc))
    if glibc is None:
        return found
    if not re.match(r"2\.\d{1,3}\Z", glibc):
        raise ConfigError(f"{glibc!r} is no version of glibc", hint="such as 2.35")
    return Userland(f"{found.name}, glibc {glibc}", python, glibc, found.glibcxx)
