"""Decides how far to draft.

The interface that every policy shares, and the plainest one: a fixed number of tokens.
"""

from __future__ import annotations

from typing import Mapping, Protocol, Sequence

from draftwire.errors import ConfigError
from draftwire.sampling import Proposal

__all__ = ["Controller", "FixedLength", "make_controller"]


class Controller(Protocol):
    """A policy for the length of draft blocks."""

    name: str

    def limit(self) -> int:
        """Return the most tokens of the next block."""

    def enough(self, block: Sequence[Proposal]) -> bool:
        """Return True when ``block`` should leave as it is, short of the limit."""

    def judged(self, drafted: int, accepted: int) -> None:
        """Learn from a verdict."""

    def power(self, watts: Mapping[str, float | None]) -> None:
        """Learn the mean watts of each phase so far; called where a source is open."""


class FixedLength:
    """Every block has the same length (``fixed:K``).

    Args:
        length: Tokens per block, at least 1.
    """

    def __init__(self, length: int) -> None:
        if not 1 <= length <= 255:
            raise ConfigError(f"a block of {length} tokens is outside 1..255")
        self.name = f"fixed:{length}"
        self._length = length

    def limit(self) -> int:
        """Return the fixed length."""
        return self._length

    def enough(self, block: Sequence[Proposal]) -> bool:
        """Never stop early."""
        return False

    def judged(self, drafted: int, accepted: int) -> None:
        """Learn nothing."""

    def power(self, watts: Mapping[str, float | None]) -> None:
        """Learn nothing."""


def make_controller(spec: str) -> Controller:
    """Return the policy that ``spec`` names, e.g. ``"fixed:4"``.

    Raises:
        ConfigError: Unknown policy or bad number.
    """
    name, _, value = spec.partition(":")
    if name == "fixed" and value.isdigit():
        return FixedLength(int(value))
    raise ConfigError(f"unknown controller {spec!r}", hint="use fixed:K, e.g. fixed:4")
