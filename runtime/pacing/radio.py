"""Readings of the radio, for those who ask: ModemManager (``mmcli``) or ``iw``.

Off unless asked: the readings say who serves the device and how well, and cost a
process each. They go into the run report's ``link.radio``; nothing is decided by them
yet, because the traffic itself tells rate and round trip.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import Any, Callable, Sequence

from draftwire.errors import ConfigError
from draftwire.io import parse_json

__all__ = ["SOURCES", "parse_iw", "parse_mmcli", "read_radio"]

SOURCES = ("mmcli", "iw")
_TIMEOUT_S = 3.0

Runner = Callable[[Sequence[str]], str]


# Of what ``mmcli`` says of each technology: its level, the first that has one.
_LEVELS = (
    *(("5g", "rsrp"), ("lte", "rsrp"), ("umts", "rscp"), ("umts", "rssi")),
    *(("gsm", "rssi"), ("evdo", "rssi"), ("cdma1x", "rssi")),
)


def parse_mmcli(text: str) -> dict[str, Any]:
    """Return the signal in what ``mmcli -m any --signal-get -J`` prints.

    Returns:
        ``signal_dbm`` (RSRP of LTE and 5G, else RSSI) and ``technology``; empty when the
        modem says nothing.
    """
    for technology, key in _LEVELS:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # "--" of no signal
            level = float(parse_json(text)["modem"]["signal"][technology][key])
            return {"signal_dbm": level, "technology": technology}
    return {}


def parse_iw(text: str) -> dict[str, Any]:
    """Return signal and rate in what ``iw dev NAME link`` prints; empty when not linked."""
    found: dict[str, Any] = {}
    if signal := re.search(r"signal:\s*(-?[0-9.]+) dBm", text):
        found = {"signal_dbm": float(signal.group(1)), "technology": "wifi"}
    if rate := re.search(r"tx bitrate:\s*([0-9.]+) MBit/s", text):
        found["tx_mbit_s"] = float(rate.group(1))
    return found


def read_radio(source: str, *, run: Runner | None = None) -> dict[str, Any]:
    """Return one reading.

    Args:
        source: One of :data:`SOURCES`; ``iw:NAME`` names the interface (``wlan0``).
        run: Runs a command and returns what it prints; tests replace it.

    Returns:
        With ``source``; without a signal when the radio says nothing.

    Raises:
        ConfigError: The source is unknown, or its program is missing or fails.
    """
    name, _, device = source.partition(":")
    if name not in SOURCES:
        raise ConfigError(f"no radio source {source!r}", hint="one of mmcli, iw, iw:NAME")
    run = _run if run is None else run
    if name == "mmcli":
        found = parse_mmcli(run(["mmcli", "-m", device or "any", "--signal-get", "-J"]))
    else:
        found = parse_iw(run(["iw", "dev", device or "wlan0", "link"]))
    return {"source": name, **found}


def _run(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            list(words), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ConfigError(f"cannot run {words[0]}: {exc}") from exc
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ConfigError(f"{words[0]} failed: {said[0] if said else done.returncode}")
    return done.stdout.decode("utf-8", "replace")
