"""Which rails make the total, and how exact each of them is.

Summing every rail is wrong by +69 % on a real Xavier NX log and +8 % on a real AGX Orin
log: parts hang below other rails.  The table comes from the board profiles as data; two
votes are taken, one from the board and one from the set of rail names alone.  When they
disagree there is a warning, and when neither knows there is no total: nothing is
guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from draftwire.errors import ConfigError

__all__ = [
    "Accuracy",
    "Estimate",
    "RailTable",
    "Total",
    "TotalChoice",
    "choose_total",
    "load_tables",
]

INA3221_GAIN = 0.0025  # TI INA3221 data sheet: gain error, maximum


@dataclass(frozen=True)
class Accuracy:
    """How exact a rail is, as the data sheet has it, not calibrated.

    Attributes:
        step_w: Smallest change that the sensor can show, watts, or None if unknown.
        offset_w: Largest constant error, watts, or None if unknown.
        gain: Largest relative error, or None if unknown.
        source: Where the figures come from.
    """

    step_w: float | None = None
    offset_w: float | None = None
    gain: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Total:
    """Rails whose sum is the power of a scope (``module``, ``board``, ...)."""

    scope: str
    rails: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """A stated straight line from one scope to a wider one; never a measurement."""

    scope: str
    of: str
    gain: float
    offset_w: float
    source: str


@dataclass(frozen=True)
class RailTable:
    """The rails of one board.

    Attributes:
        board: Name of the profile.
        totals: In order of preference.
        parts: Rails that hang below a rail of a total.
        unused: Rails that belong to no total (carrier, not connected).
        accuracy: By rail name.
        estimates: Straight lines to wider scopes.
        response: How the board's sensor sees a changing power (``lag_s``, ``window_s``,
            ``jitter_s``), for drivers that do not tell; empty when nobody knows.
    """

    board: str
    totals: tuple[Total, ...] = ()
    parts: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    estimates: tuple[Estimate, ...] = ()
    response: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, board: str, raw: Mapping[str, Any]) -> RailTable:
        """Build it from the ``[rails]`` table of a board profile.

        Raises:
            ConfigError: The table has another shape.
        """
        try:
            return cls(
                board=board,
                totals=tuple(
                    Total(str(t["scope"]), tuple(t["rails"]), str(t.get("note", "")))
                    for t in raw.get("total", ())
                ),
                parts=tuple(raw.get("parts", ())),
                unused=tuple(raw.get("unused", ())),
                accuracy={
                    rail: Accuracy(
                        _number(a.get("step_w")),
                        _number(a.get("offset_w")),
                        _number(a.get("gain", INA3221_GAIN)),
                        str(a.get("source", "")),
                    )
                    for rail, a in raw.get("accuracy", {}).items()
                },
                estimates=tuple(
                    Estimate(
                        str(e["scope"]),
                        str(e["of"]),
                        float(e["gain"]),
                        float(e["offset_w"]),
                        str(e["source"]),
                    )
                    for e in raw.get("estimate", ())
                ),
                response=dict(raw.get("response", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(f"rail table of {board}: {exc!r}") from exc

    def known_rails(self) -> set[str]:
        """Return every rail name of the table."""
        names = {rail for total in self.totals for rail in total.rails}
        return names | set(self.parts) | set(self.unused)


@dataclass(frozen=True)
class TotalChoice:
    """What was decided.

    Attributes:
        total: The rails to add up, or None: then ``why_none`` says why.
        others: Other totals of the same board whose rails are all there.
        how: Who decided: ``"user"``, ``"board and rail names"``, ``"board"``, ...
        why_none: One sentence, or "".
        warnings: Sentences for the report.
        table: The table behind the decision, if there is one.
    """

    total: Total | None
    others: tuple[Total, ...] = ()
    how: str = ""
    why_none: str = ""
    warnings: tuple[str, ...] = ()
    table: RailTable | None = None

    @property
    def board(self) -> str | None:
        """Whose table it is, when it is known."""
        return self.table.board if self.table is not None and self.how != "user" else None

    def accuracy(self, rail: str) -> Accuracy:
        """Return what is known of a rail's accuracy."""
        known = {} if self.table is None else self.table.accuracy
        return known.get(rail, Accuracy())


def choose_total(
    rails: Iterable[str],
    tables: Sequence[RailTable],
    *,
    board: str | None = None,
    user_rails: Sequence[str] | None = None,
    scope: str | None = None,
) -> TotalChoice:
    """Decide which rails make the total.

    Args:
        rails: Names as the source has them.
        tables: Rail tables of all known boards.
        board: Name of this board's profile, or None when it is not known.
        user_rails: Rails that the user named; they win.
        scope: Take the total of this scope.

    Raises:
        ConfigError: A rail of ``user_rails`` does not exist.
    """
    names = {name.split("#")[0] for name in rails} - {"NC"}
    voters = [
        table
        for table in tables
        if names <= table.known_rails() and _complete(table, names)
    ]
    by_board = next((t for t in tables if t.board == board), None)
    if user_rails:
        missing = [rail for rail in user_rails if rail not in names]
        if missing:
            raise ConfigError(
                f"no rail {missing[0]!r}",
                hint=f"rails here: {', '.join(sorted(names))}",
            )
        # Naming rails by hand says nothing new of how exact they are.
        known = by_board or _least_exact(voters or tables, user_rails)
        chosen = Total(scope or "user-chosen", tuple(user_rails))
        warnings: list[str] = []
        named = set(user_rails)
        within = [t for t in known.totals if named & set(t.rails)]
        below = sorted(named & set(known.parts))
        if below and within:
            both = ", ".join(below)
            warnings.append(f"{both} hang below a rail that is added as well")
        if len(within) > 1:
            scopes = " and ".join(total.scope for total in within)
            warnings.append(f"these rails are of the scopes {scopes}: one holds the other")
        return TotalChoice(chosen, how="user", warnings=tuple(warnings), table=known)
    if not names:
        return TotalChoice(None, why_none="the source has no power rail at all")

    board_totals = _complete(by_board, names)
    sets = {tuple(sorted(_complete(table, names)[0].rails)) for table in voters}
    name_totals = _complete(voters[0], names) if len(sets) == 1 else ()

    warnings = []
    if board_totals and name_totals:
        how = "board and rail names"
        if set(board_totals[0].rails) != set(name_totals[0].rails):
            warnings.append(
                f"the board {board} makes its total of {_plus(board_totals[0])}, but "
                f"the rail names look like {voters[0].board} "
                f"({_plus(name_totals[0])}); "
                "the board's table was used"
            )
            how = "board, against the rail names"
        table, totals = by_board, board_totals
    elif board_totals:
        table, totals, how = by_board, board_totals, "board"
        if not names <= (by_board.known_rails() if by_board else set()):
            odd = sorted(names - by_board.known_rails()) if by_board else []
            warnings.append(f"rails that the profile of {board} lacks: {', '.join(odd)}")
    elif name_totals:
        table, totals, how = _least_exact(voters, names), name_totals, "rail names"
        if by_board is not None:
            warnings.append(
                f"the rails are not those of {board}; they look like {voters[0].board}"
            )
    else:
        listed = ", ".join(sorted(names))
        lacks = ""
        if by_board is not None and by_board.totals:
            absent = sorted(set(by_board.totals[0].rails) - names)
            lacks = f" ({board} needs {', '.join(absent)})"
        return TotalChoice(
            None,
            why_none=(
                f"no known board makes its total of these rails: {listed}{lacks}; "
                "name them with --rails"
            ),
            table=by_board,
        )
    if scope is not None:
        wanted = [total for total in totals if total.scope == scope]
        if not wanted:
            have = ", ".join(total.scope for total in totals)
            raise ConfigError(f"no scope {scope!r} here", hint=f"there is: {have}")
        totals = (*wanted, *(t for t in totals if t.scope != scope))
    return TotalChoice(
        totals[0], tuple(totals[1:]), how, warnings=tuple(warnings), table=table
    )


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of ours.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """
    from draftwire.boards.profiles import read_toml

    return read_toml(path)


def load_tables(*folders: Path) -> list[RailTable]:
    """Return the rail tables of all board profiles: ours, the user's, and ``folders``.

    Raises:
        ConfigError: A file is not a profile, or its table has another shape.
    """
    from draftwire.boards.profiles import load_profiles

    profiles = load_profiles(*folders).values()
    return [RailTable.from_dict(profile.name, profile.rails) for profile in profiles]


def _least_exact(tables: Sequence[RailTable], rails: Iterable[str]) -> RailTable:
    """Return the first table, with the least exact figures that any has for a rail, and
    with all their names: rails alone do not tell boards of one design apart."""
    accuracy = {}
    for rail in rails:
        known = [t.accuracy[rail] for t in tables if rail in t.accuracy]
        if known:
            accuracy[rail] = max(known, key=lambda a: (a.offset_w or 0.0, a.step_w or 0.0))
    first = tables[0] if tables else RailTable("unknown")
    names = " or ".join(sorted(table.board for table in tables))
    return replace(first, accuracy=accuracy, board=names)


def _complete(table: RailTable | None, names: set[str]) -> tuple[Total, ...]:
    if table is None:
        return ()
    return tuple(total for total in table.totals if set(total.rails) <= names)


def _plus(total: Total) -> str:
    return " + ".join(total.rails)


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
