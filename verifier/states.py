"""Where a stream stands on the cloud's side, and what may happen there.

Blocks of dead branches are no event: they are dropped in every state.
"""

from __future__ import annotations

import enum

from draftwire.transport.states import Table


class State(enum.Enum):
    """Where a stream stands, in the words of PROTOCOL.md."""

    __hash__ = object.__hash__  # looked up at every event: that of Enum is slow

    READING = "the target has not read all of the text yet"
    WAITING = "for a block that asks for more text"
    JUDGING = "the target runs over drafts"
    OWED = "a correction that the device draws"
    PARKED = "the link is lost"
    ENDED = "the last commit is out"


READING, WAITING, JUDGING, OWED, PARKED, ENDED = State

# ``<`` is received, ``>`` is sent.
TABLE: Table[State] = {
    (READING, "< block"): READING,
    (READING, "text read"): WAITING,
    (READING, "forward"): JUDGING,
    (READING, "link lost"): PARKED,
    (WAITING, "< block"): WAITING,
    (WAITING, "forward"): JUDGING,
    (WAITING, "link lost"): PARKED,
    (JUDGING, "< block"): JUDGING,
    (JUDGING, "> commit"): frozenset({WAITING, OWED, ENDED}),
    (JUDGING, "link lost"): PARKED,
    (OWED, "< block with correction"): frozenset({WAITING, ENDED}),
    (OWED, "link lost"): PARKED,
    (PARKED, "link lost"): PARKED,
    (PARKED, "< resume"): frozenset({READING, WAITING}),
    (ENDED, "< block"): ENDED,
    (ENDED, "link lost"): ENDED,
    (ENDED, "< resume"): ENDED,
}
