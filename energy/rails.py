"""Which rails make the total, and how exact each of them is.

Summing every rail is wrong by +69 % on a real Xavier NX log: parts hang below other rails.
The table comes from the board profiles as data; two votes are taken, one from the board
and one from the set of rail names alone.  When they disagree there is a warning, and when
neither knows there is no total: nothing is guessed.

INA power chips are known by their data sheets (``boards/chips.toml``): limits, not typical
values, added up.  An error of the shunt's voltage is the same at any current.  One of the
bus voltage is in proportion to it, so gains, drift, bus offset at this voltage and the
tolerance of the shunt resistor make one relative figure.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence, Tuple

from draftwire.errors import ConfigError

_KELVIN, _VOLT = 40.0, 1.7  # around 25 C and a supply of 3.3 V
SHUNT = 0.01  # of a resistor whose tolerance nobody states
Offset = Tuple[float, float, float]


class Chip(NamedTuple):
    """One chip; the fields are those of ``chips.toml``."""

    sheet: str = ""
    lsb_uv: float = 0.0
    shunt_uv: Offset = (0.0, 0.0, 0.0)
    bus_mv: Offset = (0.0, 0.0, 0.0)
    gain: float = 0.0
    drift: float = 0.0
    power_v: float = 0.0
    own_ohm: float = 0.0
    window_s: float | None = None
    label: str = ""
    bus: int | None = None

    def limits(self, ohm: float) -> tuple[float, float, float]:
        """Return the largest error of current (A), of voltage (V), and relative."""
        shunt, bus = (
            at + kelvin * _KELVIN + volt * _VOLT
            for at, kelvin, volt in (self.shunt_uv, self.bus_mv)
        )
        tolerance = 0.0 if self.own_ohm else SHUNT
        gain = 2 * (self.gain + self.drift * _KELVIN) + tolerance
        return shunt * 1e-6 / ohm, bus * 1e-3, gain

    def figures(
        self, ohm: float, volt: float, power: bool = False
    ) -> tuple[float, float, float, str]:
        """Return step and offset of power in watts, its relative error, and the source, at
        a shunt and a bus voltage; ``power``: the chip's register of power is read."""
        amp, bus, gain = self.limits(ohm)
        step = self.lsb_uv * 1e-6 / ohm * max(volt, self.power_v if power else 0.0)
        shunt = f"{ohm * 1e3:.3g} mohm, " + ("its own" if self.own_ohm else "taken as 1 %")
        return step, amp * volt, gain + bus / volt, f"TI {self.sheet}; shunt {shunt}"


@functools.lru_cache(maxsize=1)
def load_chips() -> dict[str, Chip]:
    """Return the chips by the names that their drivers give them."""
    from draftwire.boards.sensors import chips

    return {name: Chip(**one) for name, one in chips().items()}


@dataclass(frozen=True)
class Accuracy:
    """How exact a rail is, as the data sheet has it, not calibrated; None: not known."""

    step_w: float | None = None  # smallest change that the sensor can show, watts
    offset_w: float | None = None  # largest constant error, watts
    gain: float | None = None  # largest relative error
    source: str = ""  # where the figures come from


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
    """The rails of one board."""

    board: str  # name of the profile
    totals: tuple[Total, ...] = ()  # in order of preference
    parts: tuple[str, ...] = ()  # rails that hang below a rail of a total
    unused: tuple[str, ...] = ()  # rails that belong to no total (carrier, not connected)
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)  # by rail name
    estimates: tuple[Estimate, ...] = ()  # straight lines to wider scopes
    # how the board's sensor sees a changing power (``lag_s``, ``window_s``, ``jitter_s``),
    # for drivers that do not tell; empty when nobody knows
    response: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, board: str, raw: Mapping[str, Any]) -> RailTable:
        """Build it from the ``[rails]`` table of a board profile, else a ConfigError."""
        try:
            return cls(
                board,
                tuple(
                    Total(str(t["scope"]), tuple(t["rails"]), str(t.get("note", "")))
                    for t in raw.get("total", ())
                ),
                tuple(raw.get("parts", ())),
                tuple(raw.get("unused", ())),
                {rail: _accuracy(f) for rail, f in raw.get("accuracy", {}).items()},
                tuple(Estimate(**line) for line in raw.get("estimate", ())),
                dict(raw.get("response", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(f"rail table of {board}: {exc!r}") from exc

    def known_rails(self) -> set[str]:
        """Return every rail name of the table."""
        names = {rail for total in self.totals for rail in total.rails}
        return names | set(self.parts) | set(self.unused)

    def complete(self, names: set[str]) -> tuple[Total, ...]:
        """Return the totals whose rails are all among the names."""
        return tuple(total for total in self.totals if set(total.rails) <= names)


@dataclass(frozen=True)
class TotalChoice:
    """What was decided."""

    total: Total | None  # the rails to add up, or None: then ``why_none`` says why
    # other totals of the same board whose rails are all there
    others: tuple[Total, ...] = ()
    how: str = ""  # who decided: ``"user"``, ``"board and rail names"``, ``"board"``, ..
    why_none: str = ""  # one sentence, or ""
    warnings: tuple[str, ...] = ()  # sentences for the report
    table: RailTable | None = None  # the table behind the decision, if there is one

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
    """Decide which rails make the total: those of the user, of the board, or of their
    names.

    A ConfigError where a rail of ``user_rails`` does not exist.
    """
    every = [name for name in rails if name.split("#")[0] != "NC"]
    names = {name.split("#")[0] for name in every}
    listed = ", ".join(sorted(every))
    voters = [t for t in tables if names <= t.known_rails() and t.complete(names)]
    ours = next((t for t in tables if t.board == board), None)
    if user_rails:
        missing = [rail for rail in user_rails if rail not in every]
        if missing:
            raise ConfigError(f"no rail {missing[0]!r}", hint=f"rails here: {listed}")
        # Naming rails by hand says nothing new of how exact they are.
        known = ours or _least_exact(voters or tables, user_rails)
        chosen = Total(scope or "user-chosen", tuple(user_rails))
        told = (*_overlaps(known, set(user_rails)), *_namesakes(every, user_rails))
        return TotalChoice(chosen, how="user", warnings=told, table=known)
    if not names:
        return TotalChoice(None, why_none="the source has no power rail at all")

    by_board = () if ours is None else ours.complete({*names, *every})
    sets = {tuple(sorted(voter.complete(names)[0].rails)) for voter in voters}
    by_name = voters[0].complete(names) if len(sets) == 1 else ()
    warning = ""
    if ours is not None and by_board:
        table, totals, how = ours, by_board, "board and rail names" if by_name else "board"
        odd = sorted(names - ours.known_rails())
        if by_name and set(by_board[0].rails) != set(by_name[0].rails):
            how = "board, against the rail names"
            mine, theirs = (" + ".join(t[0].rails) for t in (by_board, by_name))
            warning = (
                f"the board {board} makes its total of {mine}, but the rail names look "
                f"like {voters[0].board} ({theirs}); the board's table was used"
            )
        elif odd and not by_name:
            warning = f"rails that the profile of {board} lacks: {', '.join(odd)}"
    elif by_name:
        table, totals, how = _least_exact(voters, names), by_name, "rail names"
        if ours is not None:
            likely = voters[0].board
            warning = f"the rails are not those of {board}; they look like {likely}"
    else:
        why = f"no known board makes its total of these rails: {listed}"
        if ours is not None and ours.totals:
            absent = sorted(set(ours.totals[0].rails) - names)
            why += f" ({board} needs {', '.join(absent)})"
        return TotalChoice(None, why_none=f"{why}; name them with --rails", table=ours)
    if scope is not None:
        if scope not in [total.scope for total in totals]:
            have = ", ".join(total.scope for total in totals)
            raise ConfigError(f"no scope {scope!r} here", hint=f"there is: {have}")
        totals = tuple(sorted(totals, key=lambda total: total.scope != scope))
    warnings = (*((warning,) if warning else ()), *_namesakes(every, totals[0].rails))
    return TotalChoice(totals[0], totals[1:], how, warnings=warnings, table=table)


def _overlaps(known: RailTable, named: set[str]) -> Iterator[str]:
    """Say where rails that a user adds up hold each other."""
    within = [t for t in known.totals if named & set(t.rails)]
    below = sorted(named & set(known.parts))
    if below and within:
        yield f"{', '.join(below)} hang below a rail that is added as well"
    if len(within) > 1:
        scopes = " and ".join(total.scope for total in within)
        yield f"these rails are of the scopes {scopes}: one holds the other"


def _namesakes(every: Sequence[str], added: Sequence[str]) -> Iterator[str]:
    """Say which rails of one name with a rail that is added are left out."""
    for rail in every:
        if "#" in rail and rail.split("#")[0] in added and rail not in added:
            yield f"there is a {rail} as well, and it is not added"


def load_tables(*folders: Path) -> list[RailTable]:
    """Return the rail tables of all board profiles: ours, the user's, those of
    ``folders``."""
    from draftwire.boards.profiles import load_profiles

    profiles = load_profiles(*folders).values()
    return [RailTable.from_dict(profile.name, profile.rails) for profile in profiles]


def _accuracy(figures: Mapping[str, Any]) -> Accuracy:
    """Fill in what a step of an INA3221 at 5 V or more leaves open."""
    chip, found = load_chips()["ina3221"], dict(figures)
    ohm = chip.lsb_uv * 5e-6 / found.get("step_w", math.nan)
    _, offset_w, gain, _ = chip.figures(ohm, 5.0)
    if ohm == ohm:
        found = {"offset_w": offset_w, "gain": gain, **found}
    return Accuracy(**found)


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
