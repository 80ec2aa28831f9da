"""jetson-stats (jtop), when the user has it: never required, nothing of it copied.

Both shapes of its API: until 4.1.5 ``power`` was a tuple ``(total, rails)`` with
``cur`` in mW; from 4.2.0 it is a dict with ``rail`` and ``power`` in mW.  The board's
input rail (``VDD_IN``, ``POM_5V_IN``, from 7.2 ``VIN``) is *moved* out of the rails into
the total: a dict names it there, the tuple does not.  A total without a name is a plain
sum, which adds rails twice on AGX Orin, and ``avg`` is a half-weight filter: neither is
used.  A sample carries no sensor time, and the first client sets the pace for all.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Mapping

from draftwire.energy.sources.base import Clock, PowerSource, Reading, Response
from draftwire.errors import SensorError

INTERVAL_S = 0.5  # the maintainer asks to stay at or above this (jetson_stats #414)


class JtopSource(PowerSource):
    """Rails by the jtop service; ``client``: ``ok()``, ``power``, ``close()``."""

    name = "jtop"
    paced = True
    update_s = INTERVAL_S
    # The service reads on its own clock; how long its answer takes nobody has measured.
    response = Response((0.0, INTERVAL_S), (0.0, 0.1), 0.0, "the jtop service's period")
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
        t_ns = self._clock()
        watts = rail_watts(self._client.power)
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
    watts = {}
    for name, values in table.items() if isinstance(table, Mapping) else ():
        number = values.get(key) if isinstance(values, Mapping) else None
        if name != "NC" and isinstance(number, (int, float)):
            watts[str(name)] = number * 1e-3
    whole = total.get(key) if isinstance(total, Mapping) else None
    if not isinstance(total, Mapping) or not isinstance(whole, (int, float)):
        return watts
    if key == "power":
        return {**watts, total["name"]: whole * 1e-3} if total.get("name") else watts
    if abs(whole * 1e-3 - sum(watts.values())) < 5e-4:
        return watts  # a plain sum: these boards have no input rail
    # Undo what the tuple's service did: it cut ``VDD_`` and ``POM_`` off the names,
    # wrote blanks for ``_``, and moved the input rail into a total without a name.
    nano = any(name.startswith(("5V", "POM_5V")) for name in watts)
    prefix, rail = ("POM_", "POM_5V_IN") if nano else ("VDD_", "VDD_IN")
    found = {rail: whole * 1e-3}
    for name, watt in watts.items():
        found[name if "_" in name else prefix + name.replace(" ", "_")] = watt
    return found


def look(root: Path = Path("/")) -> str:
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
        hint = "pip install 'draftwire[jetson]'"
        raise SensorError("the service runs, but Python has no module jtop", hint=hint)
    return "service and module are there; 1 to 2 Hz, coarse"


def _connect() -> Any:
    try:
        module = importlib.import_module("jtop")
    except ImportError as exc:
        hint = "pip install 'draftwire[jetson]'"
        raise SensorError("jtop is not installed", hint=hint) from exc
    client = module.jtop(interval=INTERVAL_S)
    problems = (getattr(module, "JtopException", OSError), OSError)
    try:
        client.start()
    except problems as exc:
        raise SensorError(f"jtop: {exc}", hint="see `draftwire energy sources`") from exc
    return client
