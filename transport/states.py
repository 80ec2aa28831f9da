"""State machines as data: a table of transitions, and a step in it.

``PROTOCOL.md`` shows the tables; tests/verifier/test_states.py draws them.
"""

from __future__ import annotations

import enum
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
