"""State machines as data: a table of transitions, a step in it, and its picture.

``PROTOCOL.md`` shows the pictures between two comments, ``<!-- states: NAME -->`` and
``<!-- end -->``; whoever changes a table writes them anew with :func:`fill`.
"""

from __future__ import annotations

import enum
import re
from typing import FrozenSet, Mapping, Tuple, TypeVar, Union

S = TypeVar("S", bound=enum.Enum)

# (state, event) -> the next state, or those that it may be.
Table = Mapping[Tuple[S, str], Union[S, FrozenSet[S]]]


def after(table: Table[S], state: S, event: str, to: S | None = None) -> S:
    """Return the state that follows ``event``; ``to`` says which, where the table leaves a
    choice.

    A ValueError where the table does not know that.
    """
    found = table.get((state, event))
    if found is None:
        raise ValueError(f"{event!r} cannot happen while {state.name}")
    if not isinstance(found, frozenset):
        if to is None or to is found:
            return found
        found = frozenset({found})
    if to is None:
        (to,) = found
    elif to not in found:
        raise ValueError(f"{event!r} does not lead from {state.name} to {to.name}")
    return to


def diagram(table: Table[S]) -> str:
    """Return a picture of ``table``: a line for each transition, grouped by state."""
    rows = []
    for (state, event), found in table.items():
        states = [found] if not isinstance(found, frozenset) else found
        order = list(type(state))
        names = [s.name for s in sorted(states, key=order.index)]
        rows.append((state.name, event, " or ".join(names)))
    first = max(len(name) for name, _, _ in rows) + 2
    width = max(len(event) for _, event, _ in rows) + 3
    lines, shown = [], ""
    for name, event, following in rows:
        head = "" if name == shown else name
        lines.append(f"{head:{first}}{event + ' ':.<{width}} {following}")
        shown = name
    return "\n".join(lines)


def fill(text: str, name: str, table: Table[S]) -> str:
    """Return ``text`` with the picture of ``table`` between the comments for ``name``.

    Raises:
        ValueError: There is no such place in it, or more than one.
    """
    place = rf"(<!-- states: {re.escape(name)} -->\n).*?(<!-- end -->)"
    picture = f"\\1```\n{diagram(table)}\n```\n\\2"
    filled, count = re.subn(place, picture, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places for the states of {name!r}, not one")
    return filled
