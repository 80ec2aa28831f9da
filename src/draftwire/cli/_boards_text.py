"""How ``draftwire boards`` writes to a terminal."""

from __future__ import annotations

import textwrap
from typing import Any, Iterable, Sequence

__all__ = ["amount", "labelled", "list_of", "span", "wrapped"]

LABEL = 12
WIDTH = 100


def labelled(label: str, text: str, *, width: int = LABEL) -> str:
    """Return ``label`` and ``text`` in two columns, the text folded in its own."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"{label:<{width}} ",
        subsequent_indent=" " * (width + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrapped(text: str, indent: str = "  ") -> str:
    """Return ``text`` folded, later lines indented."""
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def amount(count: int | None) -> str:
    """Return bytes for people, e.g. ``"7.4 GiB"``."""
    if count is None:
        return "not known"
    value, unit = count / 1024.0, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def span(numbers: Sequence[int]) -> str:
    """Return ``"0-3,6"`` for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"


def list_of(values: Iterable[Any]) -> str:
    """Return the values with commas, or ``"none"``."""
    return ", ".join(str(value) for value in values) or "none"
