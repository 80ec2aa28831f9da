"""Energy: every joule with its source, its scope and its uncertainty (docs/energy.md).

For other people's code: ``with energy.measure("grasp") as m: ...``.  For a runtime that
accounts for itself::

    try:
        meter = energy.open_meter(energy.load_tables(), board="jetson-orin-nano")
        meter.start()
        account = energy.Account(meter)
    except SensorError as exc:
        account = energy.Account(None, why=str(exc))
    account.start("prefill")
    account.phase("draft")                      # on every change
    account.count(drafted=4, accepted=3, emitted=4)
    report["energy"] = account.result()         # the "energy" key of the run report

What was not measured is None with a reason, never 0.  This package imports none of the
others but ``boards``, whose profiles have the rail tables.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    name: home
    for home, names in (
        ("account.account", "Account Budget ModelSource"),
        ("account.integral", "EnergyResult"),
        ("account.meter", "Meter measure"),
        ("files.logs", "import_tegrastats"),
        ("live.adapters", "ZeusLike carbon_row"),
        ("live.marks", "mark"),
        ("rails", "RailTable load_tables"),
        ("sources.choose", "choose_source find_sources open_meter"),
    )
    for name in names.split()
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use: nothing of this package costs a command that does not need
    it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"draftwire.energy.{home}"), name)
    globals()[name] = value
    return value
