"""Files of USB power meters: FNIRSI loggers, and any table with a time and a power.

The meter has a clock of its own: ``energy.pulse`` finds the shift by a load pulse.
Columns are known by name and unit; separators are comma, semicolon, tab or blanks.
"""

from __future__ import annotations

import csv
import re
from datetime import datetime
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from draftwire.energy.rails import Accuracy
from draftwire.energy.sources.base import Reading
from draftwire.energy.sources.replay import RecordingEnded
from draftwire.errors import ConfigError

__all__ = ["MeterCsvSource"]

RAIL = "METER"
_SCALE = {"m": 1e-3, "u": 1e-6, "\u00b5": 1e-6, "k": 1e3, "": 1.0}
_NAMES = {
    "time": (
        "timestamp",
        "time",
        "t",
        "seconds",
        "elapsed",
        "datetime",
        "date",
        "uptime",
    ),
    "power": ("power", "watt", "watts", "p", "pwr"),
    "voltage": ("voltage", "volt", "volts", "v", "vbus", "u"),
    "current": ("current", "ampere", "amps", "amp", "a", "i", "ibus"),
}
_UNIT = {"power": "w", "voltage": "v", "current": "a"}


class MeterCsvSource:
    """Readings of an external meter.

    Args:
        path: The meter's file.
        columns: Names of the columns to take, for ``time``, ``power``, ``voltage`` and
            ``current``, when their names say too little.
        offset_s: Added to the meter's time, so that it agrees with our clock.
        scope: What the meter stands before: ``"wall"`` or ``"board"``.

    Raises:
        ConfigError: The file has no time, or neither power nor voltage and current.
    """

    name = "meter-csv"
    kind = "measured"
    paced = True
    rails: tuple[str, ...] = (RAIL,)
    total: tuple[str, ...] = (RAIL,)
    update_s: float | None = None

    def __init__(
        self,
        path: Path,
        *,
        columns: Mapping[str, str] | None = None,
        offset_s: float = 0.0,
        scope: str = "board-input",
    ) -> None:
        self.path = path
        self.scope: str | None = scope
        self.accuracy: Mapping[str, Accuracy] = {}
        self.bad_rows = 0
        self.notes: tuple[str, ...] = (f"external meter, file {path.name}",)
        self._offset_ns = round(offset_s * 1e9)
        self._columns = columns or {}
        self._step_w: float | None = None
        self._rows = self._read()
        self._ahead: Reading | None = next(self._rows, None)
        if self._ahead is None:
            raise ConfigError(f"{path} holds no reading")
        if self._step_w is not None:
            self.accuracy = {RAIL: Accuracy(self._step_w, source="digits of the file")}

    def read(self) -> Reading:
        """Return the next reading.

        Raises:
            RecordingEnded: That was the last one.
        """
        reading = self._ahead
        if reading is None:
            raise RecordingEnded(f"{self.path} ended")
        self._ahead = next(self._rows, None)
        return reading

    def close(self) -> None:
        """Close the file."""
        self._rows.close()  # type: ignore[attr-defined]

    def _read(self) -> Iterator[Reading]:
        try:
            with open(self.path, encoding="utf-8-sig", errors="replace", newline="") as f:
                rows = _rows(f)
                places, scales = _header(next(rows, []), self._columns, self.path)
                last = None
                for row in rows:
                    try:
                        t_s, watt = _values(row, places, scales)
                    except (ValueError, IndexError):
                        self.bad_rows += 1
                        continue
                    t_ns = round(t_s * 1e9) + self._offset_ns
                    if last is not None and t_ns <= last:
                        self.bad_rows += t_ns < last
                        continue
                    last = t_ns
                    if self._step_w is None:
                        self._step_w = _step(row, places, scales)
                    yield Reading(t_ns, {RAIL: watt})
        except OSError as exc:
            raise ConfigError(f"cannot read {self.path}: {exc}") from exc


def _rows(file: Iterator[str]) -> Iterator[list[str]]:
    """Split lines by whatever separates them; comments and blank lines are dropped."""
    separator: str | None = None
    for line in file:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if separator is None:
            counts = {sep: line.count(sep) for sep in (",", ";", "\t")}
            best = max(counts, key=lambda sep: counts[sep])
            separator = best if counts[best] else " "
        if separator == " ":
            yield line.split()
        else:
            yield [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]


def _header(
    names: Sequence[str], wanted: Mapping[str, str], path: Path
) -> tuple[dict[str, int], dict[str, float]]:
    places: dict[str, int] = {}
    scales: dict[str, float] = {}
    for kind in _NAMES:
        if kind in wanted:
            if wanted[kind] not in names:
                raise ConfigError(f"{path} has no column {wanted[kind]!r}")
            places[kind] = list(names).index(wanted[kind])
            scales[kind] = _column(names[places[kind]])[1]
            continue
        for place, name in enumerate(names):
            word, scale = _column(name)
            if word == kind and kind not in places:
                places[kind], scales[kind] = place, scale
    power = "power" in places or ("voltage" in places and "current" in places)
    if "time" not in places or not power:
        have = ", ".join(names) or "nothing"
        lacks = "power" if "time" in places else "time"
        raise ConfigError(
            f"{path}: no column for {lacks} in: {have}",
            hint="--columns time=NAME,power=NAME or time=,voltage=,current=",
        )
    return places, scales


def _column(name: str) -> tuple[str, float]:
    """Return what a column holds, and the factor to SI, from ``Voltage(mV)`` and
    such."""
    parts = [p for p in re.split(r"[^a-z\u00b5]+", name.strip().lower()) if p]
    if not parts:
        return "", 1.0
    for kind, words in _NAMES.items():
        if parts[0] not in words and not (len(parts) == 1 and parts[0] in words):
            continue
        unit = parts[-1] if len(parts) > 1 else ""
        if kind == "time":
            scale = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
            return kind, scale.get(unit, 1.0)
        si = _UNIT[kind]
        if unit.endswith(si) and unit[:-1] in _SCALE:
            return kind, _SCALE[unit[:-1]]
        return kind, 1.0
    return "", 1.0


def _values(
    row: Sequence[str], places: Mapping[str, int], scales: Mapping[str, float]
) -> tuple[float, float]:
    t_s = _time(row[places["time"]]) * scales["time"]
    if "power" in places:
        return t_s, float(row[places["power"]]) * scales["power"]
    volt = float(row[places["voltage"]]) * scales["voltage"]
    return t_s, volt * float(row[places["current"]]) * scales["current"]


def _step(
    row: Sequence[str], places: Mapping[str, int], scales: Mapping[str, float]
) -> float:
    """Return what one unit of the last digit is worth, watts."""

    def last_digit(kind: str) -> float:
        text = row[places[kind]]
        digits = len(text.partition(".")[2]) if "e" not in text.lower() else 6
        return 10.0**-digits * scales[kind]

    if "power" in places:
        return last_digit("power")
    volt = abs(float(row[places["voltage"]]) * scales["voltage"])
    amp = abs(float(row[places["current"]]) * scales["current"])
    return last_digit("current") * volt + last_digit("voltage") * amp


def _time(text: str) -> float:
    """Return seconds from a number, ``hh:mm:ss.s`` or an ISO date."""
    try:
        return float(text)
    except ValueError:
        pass
    if re.fullmatch(r"(\d+:)?\d+:\d+(\.\d+)?", text):
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + float(part)
        return seconds
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
