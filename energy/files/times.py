"""When each row of a meter's file was taken, in whatever way the file says so."""

from __future__ import annotations

import re
import statistics
from datetime import datetime
from pathlib import Path
from typing import Callable, Sequence

from draftwire.errors import ConfigError

# What an epoch stamp is, by its size: seconds of 2001 and later, and so on.
_EPOCH = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e9, 1.0))
Number = Callable[[str], float]


def row_times(
    path: Path,
    rows: Sequence[list[str]],
    columns: Sequence[tuple[int, str, float | None]],
    number: Number,
    interval_s: float | None,
    above: Sequence[str],
) -> tuple[list[float], list[list[str]], int]:
    """Return seconds of each row that has them, those rows, and how many have none;
    ``columns``: (place, name, seconds of its unit or None) of date and time. A
    ConfigError where they can be read in several ways, or in none."""
    if interval_s is None and not columns:
        text = " ".join(above).lower()
        match = re.search(r"increment\D{0,12}?([-+\d.]+e?[-+\d]*)", text)
        if match is None:
            why = f"{path} has no time and no increment"
            raise ConfigError(why, hint="give --interval MS")
        interval_s = float(match.group(1))
    if interval_s is not None:
        return [i * interval_s for i in range(len(rows))], list(rows), 0
    places = [place for place, _, _ in columns]
    kept = [row for row in rows if len(row) > max(places)]
    texts = [" ".join(row[place] for place in places).strip() for row in kept]
    _, name, scale = columns[-1]
    sample = next((text for text in texts if any(ch.isdigit() for ch in text)), "")
    try:
        number(sample)
        convert = _numeric(path, name, scale, texts, number)
    except ValueError:
        convert = _dated(path, name, texts)
    times, good = _each(texts, convert)
    return times, [kept[i] for i in good], len(rows) - len(good)


def _each(texts: Sequence[str], convert: Number) -> tuple[list[float], list[int]]:
    """Return what can be converted, and which those are."""
    values, good = [], []
    for i, text in enumerate(texts):
        try:
            values.append(convert(text))
            good.append(i)
        except ValueError:
            continue
    return values, good


def _numeric(
    path: Path, name: str, unit_s: float | None, texts: Sequence[str], number: Number
) -> Number:
    values, _ = _each(texts, number)
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
        why = f"the column {name!r} counts in steps of {usual:g} and has no unit"
        raise ConfigError(f"{path}: {why}", hint=f"--columns time={name}:ms (or :us, :s)")
    return number


_DAY = re.compile(r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})")
_CLOCK = re.compile(
    r"(?:(\d+):)?(\d+):(\d+(?:[.,:]\d+)?)"
    r"(?:\s*([ap])\.?m\.?)?(?:\s*(?:Z|([+-])(\d\d):?(\d\d)))?",
    re.IGNORECASE,
)


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
        text = text.strip()
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
