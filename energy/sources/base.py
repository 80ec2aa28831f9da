"""What every power source looks like to the meter."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, NamedTuple, Protocol

from draftwire.energy.rails import Accuracy
from draftwire.errors import SensorError

__all__ = [
    "Clock",
    "Finding",
    "PowerSource",
    "Reading",
    "monotonic_ns",
    "read_int",
    "read_text",
]

Clock = Callable[[], int]
monotonic_ns: Clock = time.monotonic_ns


class Reading(NamedTuple):
    """One look at the rails.

    Attributes:
        t_ns: When, in nanoseconds of the monotonic clock: the middle of the read.
        watts: Power of each rail that could be read; a rail that could not is absent.
        joules: Running energy counters of each rail, for sources that count; their
            differences are exact, so the meter prefers them to ``watts``.
    """

    t_ns: int
    watts: dict[str, float]
    joules: dict[str, float] | None = None


class PowerSource(Protocol):
    """A source of power readings.

    Attributes:
        name: Short name for reports, e.g. ``"sysfs-ina3221"``.
        kind: ``"measured"``, or ``"modelled"`` for figures that nobody measured.
        rails: Names as the board prints them.
        scope: What the sum covers when the source itself knows (RAPL: ``"package"``);
            None leaves it to the rail table.
        total: Rails that make ``scope``, when the source knows them.
        accuracy: What is known of each rail; a rail may be missing.
        update_s: How often the sensor renews its value, or None when unknown.
        paced: True when ``read`` itself waits for the next sample.
        notes: Sentences for the report.
    """

    name: str
    kind: str
    rails: tuple[str, ...]
    scope: str | None
    total: tuple[str, ...]
    accuracy: Mapping[str, Accuracy]
    update_s: float | None
    paced: bool
    notes: tuple[str, ...]

    def read(self) -> Reading:
        """Take one sample.

        Raises:
            SensorError: Nothing could be read.
        """

    def close(self) -> None:
        """Give everything back; harmless when called twice."""


@dataclass(frozen=True)
class Finding:
    """Whether a source is there, and how to make it so.

    Attributes:
        source: Name of the source.
        usable: True when ``choose_source`` could take it.
        detail: What was found, or what is missing.
        remedy: One command that would make it readable, or "".
    """

    source: str
    usable: bool
    detail: str
    remedy: str = ""


def read_text(path: Path) -> str | None:
    """Return the stripped text of a small file, or None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """Return the integer in a small file, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text.split()[0])
    except (ValueError, IndexError):
        return None


class SysfsNumber:
    """One sysfs attribute, kept open: a read is one ``pread`` and no path walk."""

    __slots__ = ("fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def read(self) -> int:
        """Return the value.

        Raises:
            OSError: The kernel says no (EIO from a disabled channel, ENODEV, ...).
            ValueError: It is not a number.
        """
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return int(os.pread(self.fd, 64, 0))

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def sensor_error(what: str, path: object, exc: object, hint: str = "") -> SensorError:
    """Build the error for a sensor that cannot be read."""
    default = "run `draftwire energy sources`; inside a container, mount /sys read-only"
    return SensorError(f"cannot read {what} at {path}: {exc}", hint=hint or default)
