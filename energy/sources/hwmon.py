"""Power chips behind sysfs: the rails of Jetson boards, INA boards, Apple's SMC.

``boards.sensors`` finds them.  A rail is its chip, its device and its label: hwmon numbers
move when a driver is bound anew, so each file that is opened again is checked against them.
"""

from __future__ import annotations

import math
from pathlib import Path

from draftwire.boards.sensors import R32, Rail, power_rails
from draftwire.boards.tree import Tree
from draftwire.energy.rails import Accuracy, Chip, load_chips
from draftwire.energy.sources.base import (
    UNKNOWN_RESPONSE,
    Clock,
    PowerSource,
    Reading,
    Response,
    SysfsNumber,
    unique,
)
from draftwire.errors import SensorError


class Channel:
    """One rail, its files kept open."""

    def __init__(self, tree: Tree, rail: Rail) -> None:
        self.rail, self._tree = rail, tree
        self.chip = load_chips().get(rail.driver, Chip())
        self._files = [SysfsNumber(tree.path(name)) for name in rail.files]
        # Of a power in milliwatt; in microwatt, or of millivolt and milliampere.
        self._scale = 1e-3 if rail.driver == R32 else 1e-6

    def read(self) -> float:
        """Return watts; an OSError where the kernel says no, or another rail lies here."""
        if self._files[0].fd < 0 and not self._still_here():
            where = self._tree.root / self.rail.folder
            raise FileNotFoundError(f"{self.rail.name} is no longer at {where}")
        try:
            return math.prod(number.read() for number in self._files) * self._scale
        except (OSError, ValueError):
            self.close()
            raise

    def _still_here(self) -> bool:
        rail, text = self.rail, self._tree.text
        chip = rail.driver in (R32, text(f"{rail.folder}/name"))
        return chip and (not rail.label or text(rail.label) == rail.name)

    def _number(self, name: str) -> int | None:
        return self._tree.number(f"{self.rail.folder}/{name}")

    def accuracy(self) -> Accuracy | None:
        """Return the data sheet's figures for this shunt, when it is known."""
        chip, rail = self.chip, self.rail
        shunts = (f"shunt{rail.channel}_resistor", "shunt_resistor")
        ohms = map(self._number, shunts)
        ohm = chip.own_ohm or next((1e-6 * micro for micro in ohms if micro), 0.0)
        volt = 1e-3 * (self._tree.number(rail.voltage) or 0) if rail.voltage else 0.0
        if not chip.lsb_uv or not ohm or volt <= 0:
            return None
        return Accuracy(*chip.figures(ohm, volt, len(rail.files) == 1))

    @property
    def update_s(self) -> float | None:
        """How often the chip renews its values; None where the driver does not know."""
        return 1e-3 * (self._number("update_interval") or 0) or None

    def response(self) -> Response:
        """Return how late and how blurred its readings are."""
        name, window_s, u = self.rail.driver, self.chip.window_s, self.update_s
        if u is not None and u <= 0.2:
            how = f"update_interval of {name}, {1e3 * u:.3g} ms"
            # Not averaged, a cycle is a shunt and a bus conversion of 1 to 3 channels,
            # and the current is that of its shunt's; averaged, it is all of the cycle.
            single = name == "ina3221" and self._number("samples") == 1
            window = (u / 6, u / 2) if single else (u / 2, u)
            return Response((0.0, 0.002), window, u, how)
        if window_s is not None:
            how = f"default of the {name} driver"
            return Response((0.0, 0.002), (0.95 * window_s, 1.05 * window_s), 0.003, how)
        return UNKNOWN_RESPONSE

    def close(self) -> None:
        for number in self._files:
            number.close()


class HwmonSource(PowerSource):
    """Every rail behind a power chip; a SensorError where none can be read."""

    def __init__(self, root: Path = Path("/"), *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._tree = Tree(root)
        good: list[Channel] = []
        channels = self._find()
        for channel in channels:
            try:
                channel.read()
                good.append(channel)
            except (OSError, ValueError) as exc:
                self.notes += (f"rail {channel.rail.name} left out: {exc}",)
        if not channels:
            raise SensorError("no INA3221 or other power chip with a rail")
        if not good:
            folder = channels[0].rail.folder
            where, real = self._tree.root / folder, self._tree.path(folder).resolve()
            why = f"rails are there, but {where} cannot be read (permission)"
            raise SensorError(why, hint=f"sudo chmod -R a+r {real}")
        self._channels = dict(zip(unique([channel.rail.name for channel in good]), good))
        self.rails = tuple(self._channels)
        self.name = "sysfs-" + "+".join(sorted({channel.rail.driver for channel in good}))
        times = [c.update_s for c in good if c.update_s is not None]
        self.update_s = max(times, default=None)
        responses = [channel.response() for channel in good]
        self.response = max(responses, key=lambda r: (r.unsure_s, r.reach_s))
        figures = {rail: channel.accuracy() for rail, channel in self._channels.items()}
        self.accuracy = {rail: known for rail, known in figures.items() if known}

    def _find(self) -> list[Channel]:
        rails = power_rails(self._tree)
        rails = [rail for rail in rails if rail.driver != R32] or rails
        return [Channel(self._tree, rail) for rail in rails]

    def read(self) -> Reading:
        """Read every rail; one that fails is absent from the reading."""
        try:
            return self.gather({rail: c.read for rail, c in self._channels.items()})
        finally:
            if isinstance(self.problem, FileNotFoundError):
                self._rebind()

    def _rebind(self) -> None:
        """Find the rails again, each by chip, device and label."""
        moved = self._find()
        for name, old in self._channels.items():
            rail = old.rail
            alike = [c for c in moved if c.rail[:2] == rail[:2]]
            # Without a device's name (a tree of files), chip and label must do.
            same = [c for c in alike if c.rail.device == rail.device] or alike
            if same:
                old.close()
                self._channels[name] = same[0]
                moved.remove(same[0])

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
