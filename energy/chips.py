"""INA power chips by their data sheets (``chips.toml``): what a reading may be off by.

Limits, not typical values, over 40 K around 25 C and 1.7 V around a supply of 3.3 V,
added up.  An error of the shunt's voltage is the same at any current.  One of the bus
voltage is in proportion to it, so gains, drift, bus offset at this voltage and the
tolerance of the shunt resistor make one relative figure.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple, Tuple

from draftwire.io import read_toml

_KELVIN, _VOLT = 40.0, 1.7
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
        """Return step and offset of power in watts, its relative error, and the source.

        Args:
            ohm: The shunt.
            volt: Of the bus.
            power: Whether the reading is the chip's register of power.
        """
        amp, bus, gain = self.limits(ohm)
        step = self.lsb_uv * 1e-6 / ohm * max(volt, self.power_v if power else 0.0)
        shunt = f"{ohm * 1e3:.3g} mohm, " + ("its own" if self.own_ohm else "taken as 1 %")
        return step, amp * volt, gain + bus / volt, f"TI {self.sheet}; shunt {shunt}"


@functools.lru_cache(maxsize=1)
def load_chips() -> dict[str, Chip]:
    """Return the chips by the names that their drivers give them."""
    raw = read_toml(Path(__file__).with_name("chips.toml"))

    def chip(name: str) -> dict[str, Any]:
        own = dict(raw[name])
        return {**(chip(own.pop("like")) if "like" in own else {}), **own}

    return {name: Chip(**chip(name)) for name in raw}
