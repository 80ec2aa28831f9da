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
import math
import re
import statistics
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

from draftwire.energy.files import ends_in, open_text
from draftwire.energy.files.recording import Recording
from draftwire.energy.rails import Accuracy, Total, TotalChoice, load_chips
from draftwire.energy.sources.base import Reading, Response
from draftwire.errors import ConfigError
from draftwire.io import parse_json

RAIL = "METER"
_PREFIX = {"": 1.0, "n": 1e-9, **dict.fromkeys("u\u00b5\u03bc", 1e-6), "m": 1e-3, "k": 1e3}
_HINT = "--columns time=NAME:ms,voltage=NAME,current=NAME:mA, or power=NAME:W"
_ELECTRIC = {"power", "voltage", "current"}
Number = Callable[[str], float]


@functools.lru_cache(maxsize=1)
def _words() -> dict[str, Any]:
    """Return the words of ``meters.toml``; units by their text: what of, and its size."""
    from draftwire.io import read_toml

    words = read_toml(Path(__file__).with_suffix(".toml"))
    scaled = {
        prefix + base: (kind, scale)
        for kind, bases in words["units"].items()
        for base in bases
        for prefix, scale in _PREFIX.items()
    }
    times = {text: ("time", float(scale)) for text, scale in words["seconds"].items()}
    return {**words, "units": {**scaled, **times}}


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
    found = {"%": 0.0, "W": 0.0}
    for part in text.replace("\u00b1", "").replace(" ", "").split("+"):
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([num\u00b5k]?W|%)", part)
        if match is None:
            raise ConfigError(f"--accuracy {text!r}", hint="for example 0.5%+2mW")
        unit = match.group(2)
        found[unit[-1]] = float(match.group(1)) * _PREFIX[unit[:-1]]
    return found["%"] / 100, found["W"]


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
    number: Number = float
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
        meter: A name of ``meters.toml``; None tells it by the header.
    """
    for flag, value in (("voltage", voltage), ("interval", interval_s)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{flag} {value:g} is not positive")
    known = load_instruments()
    if meter is not None and meter not in known:
        raise ConfigError(f"no meter {meter!r}", hint=f"there is: {', '.join(known)}")
    with open_text(path) as file:
        table = _open_table(path, file, columns or {})
    found = _columns(path, table, columns or {}, voltage, interval_s)
    one = known[meter] if meter else _recognise(known.values(), table.names)
    needed = ("power",) if "power" in found else ("voltage", "current")
    used = [kind for kind in needed if kind in found]
    _refuse_odd(path, table, {k: found[k] for k in (*used, "time") if k in found})
    told = [found[kind] for kind in ("date", "time") if kind in found]
    times, rows = _row_times(path, table, told, interval_s)
    if times == sorted(times, reverse=True):  # the newest first
        times, rows = times[::-1], rows[::-1]
    times, backs = _onward(times)
    readings: list[Reading] = []
    electric: list[tuple[float, float]] = []
    bad, step_w = len(table.rows) - len(rows), 0.0
    for t_s, row in zip(times, rows):
        try:
            watt, volt, amp, step = _power(row, found, table.number, voltage)
        except (ValueError, IndexError):
            bad += 1
            continue
        if not math.isfinite(watt):
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
    figures = _accuracy(one, accuracy, step_w, electric)
    notes = [f"external meter, file {path.name}"]
    notes += [f"read as {one.title}; accuracy: {figures.source}"] if one else []
    notes += [f"{bad} rows could not be read"] if bad else []
    notes += [
        f"times go back by {back_s:.4g} s at row {row}: a clock that was set, a counter "
        "that went round, or two files in one; taken as one period later"
        for row, back_s in backs[:8]
    ]
    bare = [found[kind].name for kind in used if found[kind].scale is None]
    notes += [f"column {name!r} has no unit: taken as SI" for name in bare]
    steps = [b.t_ns - a.t_ns for a, b in zip(readings, readings[1:])]
    period = (0.0, statistics.median(steps) * 1e-9 if steps else 1.0)
    header = {
        "source": f"meter:{one.name}" if one else "meter-csv",
        "source_kind": "measured",
        "rails": [RAIL],
        "notes": notes,
        "response": vars(Response(period, period, 0.0, "its period")),
    }
    wanted = scope or (one.scope if one else "board-input")
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


def _open_table(path: Path, file: Iterable[str], columns: Mapping[str, str]) -> _Table:
    above: list[str] = []
    lines = filter(None, (line.strip() for line in file))
    for text in lines:
        if "{" in text and ends_in(path, ".json", ".jsonl", ".log", ".txt"):
            return _json_table(text, lines)
        for separator in (";", "\t", ",", None):
            cells = _cells(text, separator)
            if len(cells) > 1 and _is_header(cells, columns):
                rows = [row for line in lines for row in [_cells(line, separator)] if row]
                return _Table(cells, rows, float if separator == "," else _comma, above)
        above.append(text)
        if len(above) > 200:
            break
    seen = next((t for t in above if not t.startswith("#")), above[0] if above else "")
    kinds = {_column(cell)[0] for cell in _cells(seen, ",")}
    lacks = "time" if kinds & _ELECTRIC else "power"
    why = f"no column for {lacks} in: {seen[:100] or 'nothing'}"
    raise ConfigError(f"{path}: {why}", hint=_HINT)


def _is_header(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    if columns and all(_split_unit(name)[0] in cells for name in columns.values()):
        return True
    if any(re.fullmatch(r"[-+]?[\d.,]*\d(e[-+]?\d+)?", cell.lower()) for cell in cells):
        return False
    kinds = {_column(cell)[0] for cell in cells}
    electric = kinds & _ELECTRIC
    return bool(electric and (kinds & {"time", "date"})) or len(electric) > 1


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:  # NUL bytes, or a cell without an end: no table
        return []
    return [cell.strip() for cell in cells]


def _json_table(first: str, lines: Iterator[str]) -> _Table:
    def flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
        for key, inner in value.items():
            if isinstance(inner, dict):
                yield from flat(inner, f"{before}{key}.")
            elif isinstance(inner, (int, float, str)) and not isinstance(inner, bool):
                yield before + key, str(inner)

    def parse(line: str) -> dict[str, str]:
        before, brace, rest = line.partition("{")
        try:
            found = dict(flat(parse_json(brace + rest)))
        except ValueError:
            return {}
        if before.strip():  # a stamp or a topic before the object
            found.setdefault("timestamp", before.strip().split(" /")[0])
        return found

    found = [parse(line) for line in (first, *lines)]
    names = list(found[0])
    return _Table(names, [[row.get(name, "") for name in names] for row in found if row])


def _split_unit(name: str) -> tuple[str, str | None]:
    head, colon, unit = name.rpartition(":")
    return (head, unit) if colon and _unit(unit) else (name, None)


def _unit(text: str) -> tuple[str, float] | None:
    found: tuple[str, float] | None = _words()["units"].get(text.strip().lower())
    return found


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
    plain = names_of.pop("plain")
    if not words or set(words) & set(names_of.pop("other")):
        return "", None, ""
    unit, text = _unit(bracket.group(1)) if bracket else None, ""
    if bracket and unit is None and bracket.group(1) not in plain:
        text = bracket.group(1)
    if unit is None and len(words) > 1:
        unit = _unit(words[-1])
    # A letter alone may name a channel; with a prefix, or in brackets, it is a unit.
    sure = bracket or (len(words) > 1 and len(words[-1]) > 1)
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

    def ask(why: str, hint: str = _HINT) -> ConfigError:
        return ConfigError(f"{path}: {why}", hint=hint)

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
    taken = {several[0].place for several in found.values()}
    for place, name in enumerate(table.names):
        kind, scale, odd = _column(name)
        if kind and place not in taken and kind not in wanted:
            found.setdefault(kind, []).append(_Column(place, name, scale, odd))
    for kind, several in found.items():
        unused = kind in ("time", "date") or (kind == "voltage" and "power" in found)
        if len(several) > 1 and not unused:
            which, hint = kind, f"--columns {kind}=NAME"
            if kind == "voltage" and "current" not in found:
                which, hint = "current", "--columns voltage=NAME,current=NAME:A"
            names = ", ".join(repr(c.name) for c in several)
            raise ask(f"which of {names} is the {which}?", hint)
    one = {kind: several[0] for kind, several in found.items()}
    increment = any("increment" in text.lower() for text in (*table.above, *table.names))
    if not {"time", "date"} & set(one) and interval_s is None and not increment:
        hint = "--columns time=NAME, or --interval MS between rows"
        raise ask(f"no column for time in: {have}", hint)
    if not {"power", "current"} & set(one):
        raise ask(f"no column for power in: {have}")
    if "power" not in one and "voltage" not in one and voltage is None:
        why = f"the column {one['current'].name!r} is a current"
        hint = "--voltage VOLTS of the supply, or --columns voltage=NAME"
        raise ask(f"{why}, and no column is the voltage", hint)
    return one


def _refuse_odd(path: Path, table: _Table, used: Mapping[str, _Column]) -> None:
    """Ask for the unit of a column that states one which cannot be its own."""
    for kind, column in used.items():
        cells = [row[column.place] for row in table.rows[:20] if len(row) > column.place]
        with contextlib.suppress(ValueError):
            if column.odd and [table.number(cell) for cell in cells]:  # no clock, no date
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
    number: Number,
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


# When each row was taken, in whatever way the file says so.

# What an epoch stamp is, by its size: seconds of 2001 and later, and so on.
_EPOCH = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e9, 1.0))
_DAY = re.compile(r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})")
_CLOCK = re.compile(
    r"(?:(\d+):)?(\d+):(\d+(?:[.,:]\d+)?)"
    r"(?:\s*([ap])\.?m\.?)?(?:\s*(?:Z|([+-])(\d\d):?(\d\d)))?",
    re.IGNORECASE,
)


def _row_times(
    path: Path, table: _Table, columns: Sequence[_Column], interval_s: float | None
) -> tuple[list[float], list[list[str]]]:
    """Return seconds of each row that has them, and those rows; ``columns``: of date and
    time. A ConfigError where they can be read in several ways, or in none."""
    if interval_s is None and not columns:
        text = " ".join(table.above).lower()
        number = r"(\d+\.?\d*|\.\d+)(?![.\d])(e[-+]?\d+)?"
        match = re.search(r"increment[^-\d.]{0,12}?" + number, text)
        if match is None or not (step_s := float(match[1] + (match[2] or ""))) > 0:
            why = f"{path} has no time and no increment"
            raise ConfigError(why, hint="give --interval MS")
        interval_s = step_s
    if interval_s is not None:
        return [i * interval_s for i in range(len(table.rows))], table.rows
    places = [column.place for column in columns]
    kept = [row for row in table.rows if len(row) > max(places)]
    texts = [" ".join(row[place] for place in places).strip() for row in kept]
    sample = next((text for text in texts if any(ch.isdigit() for ch in text)), "")
    try:
        table.number(sample)
        convert = _numeric(path, columns[-1], texts, table.number)
    except ValueError:
        convert = _dated(path, columns[-1].name, texts)
    times, good = _each(texts, convert)
    return times, [kept[i] for i in good]


def _onward(times: Sequence[float]) -> tuple[list[float], list[tuple[int, float]]]:
    """Return times that go on where they began anew, and at which rows (from 1) by how
    many seconds they went back; one row alone that is out of order stays so."""
    steps = [b - a for a, b in zip(times, times[1:]) if b > a]
    period = statistics.median(steps) if steps else 0.0
    found: list[float] = []
    backs = []
    shift, last = 0.0, -math.inf
    for place, time_s in enumerate(times):
        then = times[place + 1] if place + 1 < len(times) else math.inf
        if max(time_s, then) + shift < last - 3 * period:
            backs.append((place + 1, last - time_s - shift))
            shift = last + period - time_s
        found.append(time_s + shift)
        last = max(last, found[-1])
    return found, backs


def _each(texts: Sequence[str], convert: Number) -> tuple[list[float], list[int]]:
    """Return what can be converted, and which those are."""
    values, good = [], []
    for i, text in enumerate(texts):
        with contextlib.suppress(ValueError):
            values.append(convert(text))
            good.append(i)
    return values, good


def _numeric(path: Path, column: _Column, texts: Sequence[str], number: Number) -> Number:
    values, _ = _each(texts, number)
    unit_s = column.scale
    scale = next((scale for size, scale in _EPOCH if abs(values[0]) >= size), None)
    # Seconds of an epoch may be a counter of, say, microseconds that has run long.
    if scale is not None and not (scale == 1.0 and unit_s not in (None, 1.0)):
        origin, factor = values[0], scale
        return lambda text: (number(text) - origin) * factor
    if unit_s is not None:
        unit = unit_s
        return lambda text: number(text) * unit
    steps = [b - a for a, b in zip(values, values[1:]) if b > a]
    usual = statistics.median(steps) if steps else 0.0
    if usual >= 5 and all(v == int(v) for v in values[:50]):
        why = f"the column {column.name!r} counts in steps of {usual:g} and has no unit"
        hint = f"--columns time={column.name}:ms (or :us, :s)"
        raise ConfigError(f"{path}: {why}", hint=hint)
    return number


def _dated(path: Path, name: str, texts: Sequence[str]) -> Number:
    """Return what turns dates and clock times into seconds; midnight is followed."""
    days = [m.groups() for m in map(_DAY.match, texts) if m]
    year_first = any(len(a) == 4 for a, _, _ in days)
    dots = any("." in t[:6] for t in texts[:5])
    month_first = any(int(b) > 12 for _, b, _ in days) and not year_first
    day_first = any(int(a) > 12 for a, _, _ in days) or dots
    if len(set(days)) > 1 and not (year_first or month_first or day_first):
        why = f"in the column {name!r} {days[0][0]}/{days[0][1]} may be a day and a month"
        hint = "write the dates as YYYY-MM-DD, or cut the file to one day"
        raise ConfigError(f"{path}: {why}, or a month and a day", hint=hint)
    midnights, last = 0, -1.0

    def convert(text: str) -> float:
        nonlocal midnights, last
        head = _DAY.match(text)
        base = 0.0
        if head:
            a, b, c = (int(part) for part in head.groups())
            if year_first:
                year, month, day = a, b, c
            else:
                month, day = (a, b) if month_first or not day_first else (b, a)
                year = c if c > 99 else 2000 + c
            base = float(datetime(year, month, day).toordinal()) * 86400.0
            text = text[head.end() :].lstrip(" T,")
            if not text:
                return base
        clock = _CLOCK.fullmatch(text)
        if clock is None:
            raise ValueError(text)
        hours, minutes, seconds, half, sign, east_h, east_m = clock.groups()
        hour = int(hours or 0)
        if half:
            hour = hour % 12 + (12 if half.lower() == "p" else 0)
        at = float(hour * 3600 + int(minutes) * 60)
        at += float(seconds.replace(",", ".").replace(":", "."))
        if sign:
            at -= (int(east_h) * 3600 + int(east_m) * 60) * (-1 if sign == "-" else 1)
        if head:
            return base + at
        midnights += last - at > 43200
        last = at
        return at + midnights * 86400.0

    return convert
