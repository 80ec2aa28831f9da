"""A Jetson's rails through others, where sysfs cannot be read: tegrastats and jtop.

The second number of a rail of tegrastats is the mean since it started, not a window mean:
it is read only to find restarts.  Powers can be negative.  ``NC`` can come twice.

jtop (jetson-stats), when the user has it: never required, nothing of it copied.  Until
4.1.5 ``power`` was a tuple ``(total, rails)`` with ``cur`` in mW; from 4.2.0 it is a dict
with ``rail`` and ``power``.  The board's input rail (``VDD_IN``, ``POM_5V_IN``, ``VIN``) is
*moved* out of the rails into the total: a dict names it there, the tuple does not.  A total
without a name is a plain sum, which adds rails twice on AGX Orin, and ``avg`` is a
half-weight filter: neither is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from draftwire.energy.sources.base import Clock, PowerSource, Reading, Response
from draftwire.errors import SensorError
from draftwire.io import end_child

SAMPLE_START = re.compile(rb"(?:(\d\d)-(\d\d)-(\d{4}) (\d\d):(\d\d):(\d\d) )?RAM \d+/\d+MB")
_SKIP = re.compile(rb"\b(?:RAM|SWAP|IRAM) \d+/\d+[kMG]?B|CPU \[[^\]]*\]")
_RAIL = re.compile(
    rb"(?<![\w@])([A-Z0-9][A-Z0-9_]*) (-?\d+)(?:mW)?/(-?\d+)(?:mW)?"
    rb"(?:/(-?\d+)(?:mW)?)?(?![\w/.])"
)
_HEAT = re.compile(rb"(?<![\w])([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C")
MAX_SAMPLE = 65536  # bytes; real samples have 200 to 900
JTOP_S = 0.5  # the maintainer asks to stay at or above this (jetson_stats #414)
_INSTALL = "pip install 'draftwire[jetson]'"


class Sample(NamedTuple):
    """One tegrastats sample; powers in the order of the rails."""

    # ``(month, day, year, hour, minute, second)``, local time, or None
    stamp: tuple[int, ...] | None
    rails: tuple[str, ...]  # ``NC`` included
    now_mw: tuple[int, ...]  # power, milliwatt
    mean_mw: tuple[int, ...]  # mean since tegrastats started, truncated
    max_mw: tuple[int, ...] | None  # third field of R39, or None


def parse_sample(text: bytes) -> Sample | None:
    """Parse one sample, or return None when ``text`` does not start with one."""
    start = SAMPLE_START.match(text)
    if start is None:
        return None
    fields = _RAIL.findall(_SKIP.sub(b"", text))
    third = all(f[3] for f in fields) and bool(fields)
    now, mean, most = (tuple(int(f[i]) for f in fields if f[i]) for i in (1, 2, 3))
    stamp = None if start.group(1) is None else tuple(int(part) for part in start.groups())
    return Sample(
        stamp, tuple(f[0].decode() for f in fields), now, mean, most if third else None
    )


def parse_heat(text: bytes) -> dict[str, float]:
    """Return the temperatures of one sample, degrees Celsius, by zone."""
    zones = {name.decode(): float(value) for name, value in _HEAT.findall(text)}
    return {name: heat for name, heat in zones.items() if heat > -200}  # -256: it is off


class LineFeed:
    """Whole lines from a pipe or a port, with the time at which each arrived."""

    def __init__(self, name: str, fd: int, clock: Clock, timeout_s: float) -> None:
        self.name, self.fd, self.clock, self.timeout_s = name, fd, clock, timeout_s
        self._tail, self._arrived, self.ended = b"", 0, False
        self._poll = select.poll()  # select() takes no descriptor from 1024 on
        self._poll.register(fd, select.POLLIN)

    def next_line(self) -> tuple[int, bytes]:
        """Wait for a line; a SensorError when it ended, or nothing came in time."""
        while b"\n" not in self._tail:
            if not self._poll.poll(1e3 * self.timeout_s):
                raise SensorError(f"{self.name} was silent for {self.timeout_s:g} s")
            try:
                chunk = os.read(self.fd, 65536)
            except OSError:  # a port that was pulled out
                chunk = b""
            if not chunk:
                self.ended = True
                raise SensorError(f"{self.name} ended")
            self._arrived = self.clock()
            self._tail = (self._tail + chunk)[-4 * MAX_SAMPLE :]
        line, self._tail = self._tail.split(b"\n", 1)
        return self._arrived, line


class TegrastatsSource(PowerSource):
    """A tegrastats process of our own, for machines where it alone may read the rails.
    Lines are stamped on arrival: the real period is 3 to 7 % longer than the interval."""

    name = "tegrastats"
    paced = True
    # The reading is instant; the line comes when the others have been gathered.
    response = Response((0.0, 0.05), (0.0, 0.01), 0.0, "stamped on arrival of the line")

    def __init__(
        self,
        interval_ms: int = 100,
        *,
        command: Sequence[str] = ("tegrastats",),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock)
        self.update_s = interval_ms * 1e-3
        full, out = [*command, "--interval", str(interval_ms)], subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                full, stdout=out, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as exc:
            hint = "it is on Jetson boards only; see `draftwire energy sources`"
            raise SensorError(f"cannot start {command[0]}: {exc}", hint=hint) from exc
        assert self._process.stdout is not None
        feed, timeout_s = self._process.stdout.fileno(), max(5.0, 0.01 * interval_ms)
        self._feed = LineFeed(self.name, feed, self._clock, timeout_s)
        try:
            self.rails = tuple(self.read().watts)
            if not self.rails:
                hint = "try with sudo; a board without a sensor needs a USB meter"
                why = "tegrastats prints no power rail on this board"
                raise SensorError(why, hint=hint)
        except SensorError:
            self.close()
            raise

    def read(self) -> Reading:
        for _ in range(100):  # warnings and rubbish before a sample are skipped
            t_ns, line = self._feed.next_line()
            start = SAMPLE_START.search(line)
            sample = None if start is None else parse_sample(line[start.start() :])
            if sample is not None:
                pairs = zip(sample.rails, sample.now_mw)
                watts = {rail: mw * 1e-3 for rail, mw in pairs if rail != "NC"}
                return Reading(t_ns, watts)
        raise SensorError("100 lines of tegrastats without a sample")

    def close(self) -> None:
        end_child(self._process, 2.0)
        if self._process.stdout is not None:
            self._process.stdout.close()


def find_tegrastats(root: Path) -> str:
    """Tell where tegrastats is, without starting it; a SensorError if nowhere."""
    path = shutil.which("tegrastats")
    if path is None:
        raise SensorError("no tegrastats in PATH (not a Jetson?)")
    return f"{path}; coarser than sysfs, same numbers"


class JtopSource(PowerSource):
    """Rails by the jtop service; ``client``: ``ok()``, ``power``, ``close()``."""

    name = "jtop"
    paced = True
    update_s = JTOP_S
    # The service reads on its own clock; how long its answer takes nobody has measured.
    response = Response((0.0, JTOP_S), (0.0, 0.1), 0.0, "the jtop service's period")
    notes = ("jtop renews once or twice a second and has no sensor time: coarse",)

    def __init__(self, client: Any = None, *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._client = _connect() if client is None else client
        self.rails = tuple(rail_watts(self._client.power))
        if not self.rails:
            self.close()
            raise SensorError("jtop shows no power rail on this board")

    def read(self) -> Reading:
        if not self._client.ok():
            raise SensorError("the jtop service went away")
        t_ns, watts = self._clock(), rail_watts(self._client.power)
        if not watts:
            raise SensorError("jtop shows no power rail any more")
        return Reading(t_ns, watts)

    def close(self) -> None:
        self._client.close()


def rail_watts(power: Any) -> dict[str, float]:
    """Return watts by rail from either shape; rails without a number are left out."""
    if isinstance(power, Mapping):
        table, key, total = power.get("rail", {}), "power", power.get("tot")
    elif isinstance(power, tuple) and len(power) == 2:
        total, table, key = power[0], power[1], "cur"
    else:
        return {}

    def number(values: Any) -> float | None:
        found = values.get(key) if isinstance(values, Mapping) else None
        return found * 1e-3 if isinstance(found, (int, float)) else None

    items = table.items() if isinstance(table, Mapping) else ()
    read = {str(name): number(values) for name, values in items if name != "NC"}
    watts = {name: watt for name, watt in read.items() if watt is not None}
    whole = number(total)
    if total is None or whole is None:
        return watts
    if key == "power":
        return {**watts, total["name"]: whole} if total.get("name") else watts
    if abs(whole - sum(watts.values())) < 5e-4:
        return watts  # a plain sum: these boards have no input rail
    # Undo what the tuple's service did: it cut ``VDD_`` and ``POM_`` off the names,
    # wrote blanks for ``_``, and moved the input rail into a total without a name.
    nano = any(name.startswith(("5V", "POM_5V")) for name in watts)
    prefix, rail = ("POM_", "POM_5V_IN") if nano else ("VDD_", "VDD_IN")
    full = {n if "_" in n else prefix + n.replace(" ", "_"): w for n, w in watts.items()}
    return {rail: whole, **full}


def find_jtop(root: Path) -> str:
    """Tell what is there without connecting: the first client sets the pace for all."""
    socket = root / "run/jtop.sock"
    try:
        found = importlib.util.find_spec("jtop") is not None
    except (ImportError, ValueError):
        found = False
    if not socket.exists():
        why, hint = "the jtop service does not run here", "sudo systemctl start jtop"
        raise SensorError(f"no /run/jtop.sock: {why}", hint=hint if found else "")
    if not os.access(socket, os.R_OK | os.W_OK):
        hint = 'sudo usermod -aG jtop "$USER"  # log in again'
        raise SensorError("no right to /run/jtop.sock (group jtop)", hint=hint)
    if not found:
        why = "the service runs, but Python has no module jtop"
        raise SensorError(why, hint=_INSTALL)
    return "service and module are there; 1 to 2 Hz, coarse"


def _connect() -> Any:
    try:
        module = importlib.import_module("jtop")
        client = module.jtop(interval=JTOP_S)
    except (ImportError, AttributeError) as exc:
        raise SensorError("jtop is not installed", hint=_INSTALL) from exc
    try:
        client.start()
    except (getattr(module, "JtopException", OSError), OSError) as exc:
        raise SensorError(f"jtop: {exc}", hint="see `draftwire energy sources`") from exc
    return client
