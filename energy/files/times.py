"""When each row of a meter's file was taken, in whatever way the file says so."""

from __future__ import annotations

import re
import statistics
from datetime import datetime
from pathlib import Path
from typing import Callable, Sequence

from draftwire.errors import ConfigError

__all__ = ["row_times"]

# What an epoch stamp is, by its size: seconds of 2001 and later, and so on.
_EPOCH = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e9, 1.0))


def row_times(
    path: Path,
    rows: Sequence[list[str]],
    columns: Sequence[tuple[int, str, float | None]],
    number: Callable[[str], float],
    interval_s: float | None,
    above: Sequence[str],
) -> tuple[list[float], list[list[str]], int]:
    """Return the seconds of each row that has them, those rows, and how many not.

    Args:
        path: The file, for errors.
        rows: Its rows.
        columns: ``(place, name, seconds of its unit or None)`` of date and time.
        number: Reads a number as this file writes it.
        interval_s: Time between rows, where no column tells.
        above: Lines above the header, which may state an increment.

    Raises:
        ConfigError: The times can be read in more than one way, or in none.
    """
    if interval_s is None and not columns:
        text = " ".join(above).lower()
        match = re.search(r"increment\D{0,12}?([-+\d.]+e?[-+\d]*)", text)
        if match is None:
            raise ConfigError(
                f"{path} has no time and no increment", hint="give --interval MS"
            )
        interval_s = float(match.group(1))
    if interval_s is not None:
        return [i * interval_s for i in range(len(rows))], list(rows), 0
    texts = []
    kept = []
    for row in rows:
        try:
            texts.append(" ".join(row[place] for place, _, _ in columns).strip())
            kept.append(row)
        except IndexError:
            continue
    _, name, scale = columns[-1]
    sample = next((text for text in texts if any(ch.isdigit() for ch in text)), "")
    try:
        number(sample)
        convert = _numeric(path, name, scale, texts, number)
    except ValueError:
        convert = _dated(path, name, texts)
    times, good = [], []
    for text, row in zip(texts, kept):
        try:
            times.append(convert(text))
            good.append(row)
        except ValueError:
            continue
    return times, good, len(rows) - len(good)


def _numeric(
    path: Path,
    name: str,
    unit_s: float | None,
    texts: Sequence[str],
    number: Callable[[str], float],
) -> Callable[[str], float]:
    values = []
    for text in texts:
        try:
            values.append(number(text))
        except ValueError:
            continue
    for size, scale in _EPOCH:
        if abs(values[0]) >= size:
            if scale == 1.0 and unit_s not in (None, 1.0):
                break  # a counter of, say, microseconds that has run long
            origin = values[0]
            return lambda text: (number(text) - origin) * scale
    if unit_s is not None:
        factor = unit_s
        return lambda text: number(text) * factor
    steps = [b - a for a, b in zip(values, values[1:]) if b > a]
    if steps and statistics.median(steps) >= 5 and all(v == int(v) for v in values[:50]):
        raise ConfigError(
            f"{path}: the column {name!r} counts in steps of "
            f"{statistics.median(steps):g} and has no unit",
            hint=f"--columns time={name}:ms (or :us, :s)",
        )
    return number


_DAY = r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})"
_CLOCK = r"(?:(\d+):)?(\d+):(\d+(?:[.,:]\d+)?)"


def _dated(path: Path, name: str, texts: Sequence[str]) -> Callable[[str], float]:
    """Return what turns dates and clock times into seconds; midnight is followed."""
    days = [m.groups() for t in texts for m in [re.match(_DAY, t)] if m]
    year_first = any(len(a) == 4 for a, _, _ in days)
    dots = any("." in t[:6] for t in texts[:5])
    month_first = any(int(b) > 12 for _, b, _ in days) and not year_first
    day_first = any(int(a) > 12 for a, _, _ in days) or dots
    if days and not year_first and not month_first and not day_first and len(set(days)) > 1:
        raise ConfigError(
            f"{path}: in the column {name!r} {days[0][0]}/{days[0][1]} may be a day and a "
            "month, or a month and a day",
            hint="write the dates as YYYY-MM-DD, or cut the file to one day",
        )
    state = {"day": 0, "last": -1.0}

    def convert(text: str) -> float:
        text = text.strip()
        head = re.match(_DAY, text)
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
        zone = re.search(r"(Z|[+-]\d\d:?\d\d)$", text)
        shift = 0.0
        if zone:
            text = text[: zone.start()].strip()
            if zone.group() != "Z":
                digits = zone.group().replace(":", "")
                shift = (int(digits[1:3]) * 3600 + int(digits[3:5]) * 60) * (
                    -1 if digits[0] == "-" else 1
                )
        half = re.search(r"\s*([ap])\.?m\.?$", text, re.IGNORECASE)
        text = text[: half.start()] if half else text
        clock = re.fullmatch(_CLOCK, text.strip())
        if clock is None:
            if head and not text:
                return base
            raise ValueError(text)
        second = clock.group(3).replace(",", ".").replace(":", ".")
        hour = int(clock.group(1) or 0)
        if half:
            hour = hour % 12 + (12 if half.group(1).lower() == "p" else 0)
        at = hour * 3600 + int(clock.group(2)) * 60 + float(second) - shift
        if head:
            return base + at
        if state["last"] - at > 43200:
            state["day"] += 1
        state["last"] = at
        return at + state["day"] * 86400.0

    return convert
