"""Which systems a board comes with: their Python, glibc and C++ library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from draftwire.boards.install.facts import version_tuple
from draftwire.errors import ConfigError


@dataclass(frozen=True)
class Userland:
    """One system."""

    name: str  # what people call it
    python: str  # ``"3.10"``
    glibc: str  # ``"2.35"``
    glibcxx: str  # newest symbol version of its libstdc++, ``"3.4.30"``


# L4T releases, from NVIDIA's tables; glibc and libstdc++ from the distributions.
_L4T = {
    "R32": Userland("L4T R32, Ubuntu 18.04 with its python3.8", "3.8", "2.27", "3.4.25"),
    "R35": Userland("L4T R35, Ubuntu 20.04", "3.8", "2.31", "3.4.28"),
    "R36": Userland("L4T R36, Ubuntu 22.04", "3.10", "2.35", "3.4.30"),
    "R38": Userland("L4T R38, Ubuntu 24.04", "3.12", "2.39", "3.4.33"),
    "R39": Userland("L4T R39, Ubuntu 24.04", "3.12", "2.39", "3.4.33"),
}
_GENERAL = (
    Userland("Ubuntu 20.04", "3.8", "2.31", "3.4.28"),
    Userland("Debian or Raspberry Pi OS bullseye", "3.9", "2.31", "3.4.28"),
    Userland("Ubuntu 22.04", "3.10", "2.35", "3.4.30"),
    Userland("Debian or Raspberry Pi OS bookworm", "3.11", "2.36", "3.4.30"),
    Userland("Ubuntu 24.04", "3.12", "2.39", "3.4.33"),
    Userland("Debian or Raspberry Pi OS trixie", "3.13", "2.41", "3.4.33"),
)


def userlands_of(profile: Mapping[str, Any]) -> tuple[Userland, ...]:
    """Return the systems that a board is known to run, oldest first.

    Args:
        profile: The board's profile as it stands in its file.
    """
    releases = profile.get("l4t")
    if not releases:
        return _GENERAL
    return tuple(_L4T[name] for name in releases if name in _L4T)


def choose_userland(
    board: str, known: Sequence[Userland], python: str | None, glibc: str | None
) -> Userland:
    """Return the system to make a bundle for: of several that fit, the oldest.

    Raises:
        ConfigError: The board has no such Python, or several and none was named.
    """
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
        raise ConfigError(
            f"{board} is not known to come with Python {python}",
            hint="; ".join(f"{u.python}: {u.name}" for u in known),
        )
    found = min(fitting, key=lambda u: version_tuple(u.glibc))
    if glibc is None:
        return found
    return Userland(f"{found.name}, glibc {glibc}", python, glibc, found.glibcxx)
