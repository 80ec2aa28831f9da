"""Files of meters: any table or JSON lines with a time and a power.

Columns are told by name and unit; separators are comma, semicolon, tab or blanks, and
the decimal sign may be a comma.  Times are numbers with a unit, epoch stamps (by their
size), clock times (over midnight too), ISO or regional dates, or a date and a time in
two columns.  What the file leaves open is asked for, by the name of the column.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

from draftwire.energy.chips import load_chips
from draftwire.energy.files.recording import Recording
from draftwire.energy.files.times import row_times
from draftwire.energy.files.unpack import open_text, stem
from draftwire.energy.rails import Accuracy, Total, TotalChoice
from draftwire.energy.sources.base import Reading, Response
from draftwire.errors import ConfigError

RAIL = "METER"
_PREFIX = {"": 1.0, "n": 1e-9, **dict.fromkeys("u\u00b5\u03bc", 1e-6), "m": 1e-3, "k": 1e3}
_HINT = "--columns time=NAME:ms,voltage=NAME,current=NAME:mA, or power=NAME:W"


@functools.lru_cache(maxsize=1)
def _words() -> dict[str, Any]:
    from draftwire.io import read_toml

    return read_toml(Path(__file__).with_name("instruments.toml"))


@dataclass(frozen=True)
class Instrument:
    """A kind of meter and what its maker says of it."""

    name: str
    title: str
    words: tuple[str, ...]
    gain: float = 0.0
    source: str = ""
    offset_a: float = 0.0
    offset_v: float = 0.0
    offset_w: float = 0.0
    scope: str = "board-input"
    unread: str = ""  # what of it no text of the maker was found for
    kind: str = ""  # whose figure: the maker's data sheet, quoted, measured, assumed
    url: str = ""

    @property
    def provenance(self) -> str:
        """Where the figures come from, and which nobody verified."""
        open_ = f" (unverified: {self.unread}; give --accuracy)" if self.unread else ""
        return f"{self.kind}: {self.source}{open_}"


def load_instruments() -> dict[str, Instrument]:
    """Return the meters that are known, by name."""
    found = {}
    for entry in _words()["instrument"]:
        one = {**entry, "words": tuple(entry["words"])}
        chip, ohm = load_chips().get(one.pop("chip", "")), one.pop("ohm", 0.0)
        if chip is not None:
            one["offset_a"], one["offset_v"], one["gain"] = chip.limits(ohm)
            one["source"] = chip.figures(ohm, 5.0)[-1]
        found[one["name"]] = Instrument(**one)
    return found


def parse_accuracy(text: str) -> tuple[float, float]:
    """Parse ``0.5%``, ``0.5%+2mW``, ``20mW`` into (relative, watts); else a ConfigError."""
    gain = offset = 0.0
    for part in text.replace("\u00b1", "").replace(" ", "").split("+"):
        match = re.fullmatch(r"([\d.]+)(%|[num\u00b5k]?W)", part)
        if match is None:
            raise ConfigError(f"--accuracy {text!r}", hint="for example 0.5%+2mW")
        if match.group(2) == "%":
            gain = float(match.group(1)) / 100
        else:
            offset = float(match.group(1)) * _PREFIX[match.group(2)[:-1]]
    return gain, offset


class _Column(NamedTuple):
    place: int
    name: str
    scale: float | None  # None: the file states no unit
    odd: str = ""  # a unit that is none of its kind


@dataclass
class _Table:
    """Rows of texts under names, and what stood above them."""

    names: list[str]
    rows: list[list[str]]
    comma: bool = False
    above: list[str] = field(default_factory=list)


def read_meter(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    voltage: float | None = None,
    interval_s: float | None = None,
    meter: str | None = None,
    accuracy: str | None = None,
    scope: str | None = None,
) -> Recording:
    """Read a meter's file whole; a ConfigError, which names the column, where the file
    leaves something open.

    Args:
        columns: ``NAME`` or ``NAME:unit`` for ``time``, ``date``, ``power``,
            ``voltage``, ``current``, where the names say too little.
        voltage: Of the supply, for meters that tell the current alone.
        interval_s: Time between rows, for files without a time.
        meter: A name of ``instruments.toml``; None tells it by the header.
    """
    if voltage is not None and not voltage > 0:
        raise ConfigError(f"--voltage {voltage:g} is not positive")
    known = load_instruments()
    if meter is not None and meter not in known:
        raise ConfigError(f"no meter {meter!r}", hint=f"there is: {', '.join(known)}")
    with open_text(path) as file:
        table = _open_table(path, file, columns or {})
    found = _columns(path, table, columns or {}, voltage, interval_s)
    number = _comma if table.comma else float
    instrument = known[meter] if meter else _recognise(known.values(), table.names)
    told = [found[kind] for kind in ("date", "time") if kind in found]
    needed = ("power",) if "power" in found else ("voltage", "current")
    _refuse_odd(path, table, {k: found[k] for k in (*needed, "time") if k in found}, number)
    times, kept, bad = row_times(
        path, table.rows, [c[:3] for c in told], number, interval_s, table.above
    )
    readings: list[Reading] = []
    electric: list[tuple[float, float]] = []
    step_w = 0.0
    for t_s, row in zip(times, kept):
        try:
            watt, volt, amp, step = _power(row, found, number, voltage)
        except (ValueError, IndexError):
            bad += 1
            continue
        t_ns = round(t_s * 1e9)
        if readings and t_ns <= readings[-1].t_ns:
            bad += t_ns < readings[-1].t_ns
            continue
        readings.append(Reading(t_ns, {RAIL: watt}))
        electric.append((volt, amp))
        step_w = max(step_w, step) if len(readings) < 100 else step_w
    if not readings:
        raise ConfigError(f"{path} holds no reading", hint=_HINT)
    figures = _accuracy(instrument, accuracy, step_w, electric)
    notes = [f"external meter, file {path.name}"]
    if instrument is not None:
        notes.append(f"read as {instrument.title}; accuracy: {figures.source}")
    if bad:
        notes.append(f"{bad} rows could not be read")
    for column in (found[kind] for kind in needed if kind in found):
        if column.scale is None:
            notes.append(f"column {column.name!r} has no unit: taken as SI")
    steps = [b.t_ns - a.t_ns for a, b in zip(readings, readings[1:])]
    period_s = statistics.median(steps) * 1e-9 if steps else 1.0
    header = {
        "source": f"meter:{instrument.name}" if instrument else "meter-csv",
        "source_kind": "measured",
        "rails": [RAIL],
        "notes": notes,
        "response": vars(Response((0.0, period_s), (0.0, period_s), 0.0, "its period")),
    }
    wanted = scope or (instrument.scope if instrument else "board-input")
    choice = TotalChoice(Total(wanted, (RAIL,)), how="the meter")
    recording = Recording(str(path), header, choice, {RAIL: figures}, readings)
    recording.complete, recording.end_ns = True, readings[-1].t_ns
    return recording


def _recognise(known: Iterable[Instrument], names: Sequence[str]) -> Instrument | None:
    text = " ".join(names).lower()
    parts = set(re.split(r"[\s,;()\[\]]+", text)) | set(re.split(r"[^a-z0-9]+", text))
    return next((one for one in known if one.words and set(one.words) <= parts), None)


def _accuracy(
    one: Instrument | None,
    stated: str | None,
    step_w: float,
    electric: Sequence[tuple[float, float]],
) -> Accuracy:
    if stated is not None:
        gain, offset_w = parse_accuracy(stated)
        return Accuracy(step_w, offset_w, gain, f"{stated}, as the user states")
    if one is None:
        return Accuracy(step_w, source="digits of the file")
    volt, amp = (statistics.median(values) for values in zip(*electric))
    if volt != volt:  # power alone: the usual 5 V
        volt, amp = 5.0, 0.0
    offset_w = one.offset_w + (one.offset_a * abs(volt) + one.offset_v * abs(amp))
    return Accuracy(step_w, offset_w, one.gain, one.provenance)


def _open_table(path: Path, file: Any, columns: Mapping[str, str]) -> _Table:
    above: list[str] = []
    lines = filter(None, (line.strip() for line in file))
    for text in lines:
        if "{" in text and stem(path).endswith((".json", ".jsonl", ".log", ".txt")):
            return _json_table(text, lines)
        for separator in (";", "\t", ",", None):
            cells = _cells(text, separator)
            if len(cells) > 1 and _is_header(cells, columns):
                rows = [row for line in lines for row in [_cells(line, separator)] if row]
                return _Table(cells, rows, separator != ",", above)
        above.append(text)
        if len(above) > 200:
            break
    seen = next((t for t in above if not t.startswith("#")), above[0] if above else "")
    kinds = {_column(cell)[0] for cell in _cells(seen, ",")}
    lacks = "time" if kinds & {"power", "voltage", "current"} else "power"
    why = f"no column for {lacks} in: {seen[:100] or 'nothing'}"
    raise ConfigError(f"{path}: {why}", hint=_HINT)


def _is_header(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    if columns and all(_split_unit(name)[0] in cells for name in columns.values()):
        return True
    if any(re.fullmatch(r"[-+]?[\d.,]*\d(e[-+]?\d+)?", cell.lower()) for cell in cells):
        return False
    kinds = {_column(cell)[0] for cell in cells}
    electric = kinds & {"power", "voltage", "current"}
    return bool(electric and (kinds & {"time", "date"})) or len(electric) > 1


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:  # NUL bytes, or a cell without an end: no table
        return []
    return [cell.strip() for cell in cells]


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            found.update(_flat(inner, f"{before}{key}."))
        elif isinstance(inner, (int, float, str)) and not isinstance(inner, bool):
            found[before + key] = str(inner)
    return found


def _json_table(first: str, lines: Iterator[str]) -> _Table:
    def parse(line: str) -> dict[str, str] | None:
        before, brace, rest = line.partition("{")
        try:
            value = json.loads(brace + rest)
        except ValueError:
            return None
        found = _flat(value)
        if before.strip():  # a stamp or a topic before the object
            found.setdefault("timestamp", before.strip().split(" /")[0])
        return found

    names = list(parse(first) or {})
    found = [values for line in (first, *lines) for values in [parse(line)] if values]
    return _Table(names, [[values.get(name, "") for name in names] for values in found])


def _split_unit(name: str) -> tuple[str, str | None]:
    head, colon, unit = name.rpartition(":")
    return (head, unit) if colon and _unit(unit) else (name, None)


def _unit(text: str) -> tuple[str, float] | None:
    low = text.strip().lower()
    if low in _words()["seconds"]:
        return "time", float(_words()["seconds"][low])
    for kind, bases in _words()["units"].items():
        for base in bases:
            if low.endswith(base) and low[: -len(base)] in _PREFIX:
                return str(kind), _PREFIX[low[: -len(base)]]
    return None


def _column(name: str) -> tuple[str, float | None, str]:
    """Return what a column holds, its factor to SI, and a unit that cannot be its own."""
    low = name.strip().lower().lstrip("#").split(".")[-1]
    channel = re.fullmatch(r"(ch\d+)\s*([vaw])?", low.strip())
    bracket = re.search(r"[(\[]\s*([^)\]]+?)\s*[)\]]", low)
    if channel:
        return (*(_unit(channel.group(2) or "") or ("", None)), "")
    bare = re.sub(r"[(\[][^)\]]*[)\]]", " ", low)
    words = [w for w in re.split(r"[^a-z0-9+\-\u00b5\u03bc]+", bare) if w]
    names_of = dict(_words()["names"])
    if not words or set(words) & set(names_of.pop("other")):
        return "", None, ""
    unit, text = _unit(bracket.group(1)) if bracket else None, ""
    if bracket and unit is None and bracket.group(1) not in names_of["plain"]:
        text = bracket.group(1)
    if unit is None and len(words) > 1:
        unit = _unit(words[-1])
    # A letter alone may name a channel; with a prefix, or in brackets, it is a unit.
    sure = bracket or (len(words) > 1 and len(words[-1]) > 1)
    del names_of["plain"]
    for kind, names in names_of.items():
        timely = kind in ("time", "date")
        if set(words) & set(names) and (not timely or words[0] in names):
            if unit and unit[0] == kind:
                return kind, unit[1], ""
            if unit and timely and unit[0] != "time":
                continue
            if unit and sure:
                text = bracket.group(1) if bracket else words[-1]
            return kind, None, text
    return (*unit, "") if unit and bracket else ("", None, "")


def _columns(
    path: Path,
    table: _Table,
    wanted: Mapping[str, str],
    voltage: float | None,
    interval_s: float | None,
) -> dict[str, _Column]:
    """Return the column of each kind; what is missing or open is asked for."""
    have = ", ".join(table.names)
    found: dict[str, list[_Column]] = {}
    for kind, text in wanted.items():
        name, unit = _split_unit(text)
        if kind not in _words()["names"] or kind in ("other", "plain"):
            raise ConfigError(f"--columns {kind}=: no such thing", hint=_HINT)
        if name not in table.names:
            raise ConfigError(f"{path} has no column {name!r}", hint=f"it has: {have}")
        told = _unit(unit) if unit else None
        _, scale, odd = ("", told[1], "") if told else _column(name)
        found[kind] = [_Column(table.names.index(name), name, scale, odd)]
    taken = {c[0].place for c in found.values()}
    for place, name in enumerate(table.names):
        kind, scale, odd = _column(name)
        if kind and place not in taken and kind not in wanted:
            found.setdefault(kind, []).append(_Column(place, name, scale, odd))
    for kind, several in found.items():
        unused = kind in ("time", "date") or (kind == "voltage" and "power" in found)
        if len(several) > 1 and not unused:
            names = ", ".join(repr(c.name) for c in several)
            ask, hint = kind, f"--columns {kind}=NAME"
            if kind == "voltage" and "current" not in found:
                ask, hint = "current", "--columns voltage=NAME,current=NAME:A"
            raise ConfigError(f"{path}: which of {names} is the {ask}?", hint=hint)
    one = {kind: several[0] for kind, several in found.items()}
    increment = any("increment" in text.lower() for text in (*table.above, *table.names))
    if not {"time", "date"} & set(one) and interval_s is None and not increment:
        hint = "--columns time=NAME, or --interval MS between rows"
        raise ConfigError(f"{path}: no column for time in: {have}", hint=hint)
    if not {"power", "current"} & set(one):
        raise ConfigError(f"{path}: no column for power in: {have}", hint=_HINT)
    if "power" not in one and "voltage" not in one and voltage is None:
        why = (
            f"the column {one['current'].name!r} is a current, and no column is the voltage"
        )
        hint = "--voltage VOLTS of the supply, or --columns voltage=NAME"
        raise ConfigError(f"{path}: {why}", hint=hint)
    return one


def _refuse_odd(
    path: Path, table: _Table, used: Mapping[str, _Column], number: Callable[[str], float]
) -> None:
    """Ask for the unit of a column that states one which cannot be its own."""
    for kind, column in used.items():
        cells = [row[column.place] for row in table.rows[:20] if len(row) > column.place]
        with contextlib.suppress(ValueError):
            if column.odd and [number(cell) for cell in cells]:  # not a clock or a date
                unit = {"power": "W", "voltage": "V", "current": "A", "time": "s"}[kind]
                why = f"{column.odd!r} of the column {column.name!r} is no unit of {kind}"
                hint = f"--columns '{kind}={column.name}:{unit}'"
                raise ConfigError(f"{path}: {why}", hint=hint)


def _comma(text: str) -> float:
    """Read ``1.234,5`` and ``1,5`` as well as ``1.5``."""
    if "," in text:
        text = text.replace(".", "") if text.rfind(",") > text.rfind(".") else text
        text = text.replace(",", ".", 1) if text.count(",") == 1 else text.replace(",", "")
    return float(text)


def _power(
    row: Sequence[str],
    found: Mapping[str, _Column],
    number: Callable[[str], float],
    voltage: float | None,
) -> tuple[float, float, float, float]:
    """Return watts, volts, amperes, and what the last digit is worth in watts."""

    def value(kind: str) -> tuple[float, float]:
        column = found[kind]
        text, scale = row[column.place], column.scale or 1.0
        mark = "," if "," in text and "." not in text else "."
        places = len(text.partition(mark)[2]) if "e" not in text.lower() else 6
        return number(text) * scale, 10.0**-places * scale

    if "power" in found:
        watt, step = value("power")
        return watt, float("nan"), float("nan"), step
    amp, step_a = value("current")
    volt, step_v = (voltage, 0.0) if voltage is not None else value("voltage")
    return volt * amp, volt, amp, step_a * abs(volt) + step_v * abs(amp)
