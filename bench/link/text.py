"""The text form of a link: ``40ms/10mbit``, ``poor``, ``driving-5g/20mbit/seed=3``.

Parts are separated by ``/`` or ``,``; a file name goes up to the next comma::

    40ms                 round trip          10mbit             rate, both directions
    up=2mbit down=8mbit  rates               delay_up=30ms      one-way delay
    jitter=5ms:uniform   or normal, pareto   correlation=0.6    of jitter 100 ms apart
    loss=1%              each direction      burst=1%:25%:100%  enter, leave, lost in it
    queue=64kb           that may wait       outage=10s+3s      at 10 s, for 3 s
    outages=30s:2s       random, mean        seed=7
    trace:FILE           rate, both          trace-up:FILE,trace-down:FILE
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Iterable

from draftwire.bench.link.spec import DIRECTIONS, Bursts, Jitter, LinkSpec
from draftwire.errors import ConfigError
from draftwire.io import did_you_mean, read_toml

_PRESETS = Path(__file__).resolve().parent / "presets.toml"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SIZES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1024.0**2}
_Take = Callable[[str, LinkSpec], Dict[str, Any]]


@lru_cache(maxsize=None)
def presets() -> dict[str, LinkSpec]:
    """Return the links that have a name, each with its source.

    Raises:
        ConfigError: The installed table is damaged.
    """
    try:
        return {name: _preset(name, row) for name, row in read_toml(_PRESETS).items()}
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"cannot read the named links {_PRESETS}: {exc}") from exc


def _preset(name: str, row: dict[str, Any]) -> LinkSpec:
    if "spec" in row:
        link = _parse(str(row["spec"]))
        return replace(link, name=name, source=str(row["source"]))
    table = [(float(p), float(ms) / 1e3) for p, ms in row["rtt_ms"]]
    base = table[0][1]
    return LinkSpec(
        name=name,
        delay_up_s=base / 2,
        delay_down_s=base / 2,
        jitter=Jitter(
            "quantiles",
            correlation=float(row.get("correlation", 0.0)),
            step_s=float(row.get("step_ms", 100.0)) / 1e3,
            directions=("up",),
            quantiles=tuple((p, at - base) for p, at in table),
        ),
        # The published share is of round trips: each direction has half of it.
        loss=float(row.get("loss_percent", 0.0)) / 200,
        source=str(row["source"]),
    )


def parse_link(text: str) -> LinkSpec:
    """Return the link that ``text`` describes.

    Raises:
        ConfigError: A part is unknown or out of range; names the part.
    """
    link = _parse(text.strip())
    return replace(link, name=text.strip())


def _parse(text: str) -> LinkSpec:
    parts = _parts(text)
    if not parts:
        raise ConfigError("an empty link", hint="such as 40ms/10mbit, poor, or ideal")
    link = LinkSpec()
    if re.fullmatch(r"[a-z][a-z0-9-]*", parts[0]):
        link = _named(parts.pop(0))
    for part in parts:
        link = replace(link, **_changes(link, part))
    return link


def _parts(text: str) -> list[str]:
    """Split at ``/`` and ``,``; the slashes of a file name are its own."""
    parts: list[str] = []
    for piece in text.split(","):
        found = re.search(r"(?:^|/)(trace(?:-up|-down)?:.*)$", piece)
        head = piece[: found.start()] if found else piece
        parts += [part.strip() for part in head.split("/") if part.strip()]
        if found:
            parts.append(found.group(1).strip())
    return parts


def _named(name: str) -> LinkSpec:
    if name == "ideal":
        return LinkSpec()
    table = presets()
    if name in table:
        return table[name]
    known = [*table, "ideal"]
    hint = did_you_mean(name, known, f"there are {', '.join(known)}")
    raise ConfigError(f"no link is called {name!r}", hint=hint)


def _changes(link: LinkSpec, part: str) -> dict[str, Any]:
    """Return what one part makes of the link before it."""
    head, _, path = part.partition(":")
    if head in ("trace", "trace-up", "trace-down") and path:
        ways = [way for way in DIRECTIONS if head in ("trace", f"trace-{way}")]
        return {**_each("{}_bit_s", ways, None), **_each("trace_{}", ways, path)}
    key, equals, value = part.partition("=")
    if not equals:
        value = part
        key = "rate" if value.lower().endswith("bit") else "rtt"
    if key not in _KEYS:
        known = [f"{name}=" for name in _KEYS]
        hint = did_you_mean(f"{key}=", known, f"parts: {', '.join(known)}")
        raise ConfigError(f"{part!r} is no part of a link", hint=hint)
    try:
        return _KEYS[key](value.strip().lower(), link)
    except ConfigError as exc:
        raise ConfigError(f"in {part!r}: {exc}", hint=exc.hint) from exc


def _each(name: str, ways: Iterable[str], value: Any) -> dict[str, Any]:
    return {name.format(way): value for way in ways}


def _time(value: str, example: str = "40ms") -> float:
    return _unit(value, _TIMES, f"a time such as {example}")


def _rate(*ways: str) -> _Take:
    def take(value: str, _: LinkSpec) -> dict[str, Any]:
        rate = _unit(value, _RATES, "a rate such as 10mbit")
        return {**_each("{}_bit_s", ways, rate), **_each("trace_{}", ways, None)}

    return take


def _jitter(value: str, link: LinkSpec) -> dict[str, Any]:
    spread, _, kind = value.partition(":")
    before, spread_s = link.jitter, _time(spread, "5ms")
    made = Jitter(kind or "normal", spread_s, before.correlation, before.step_s)
    return {"jitter": made}


def _burst(value: str, _: LinkSpec) -> dict[str, Any]:
    shares = [_share(part) for part in value.split(":")]
    if len(shares) not in (2, 3):
        raise ConfigError("not enter:leave or enter:leave:loss", hint="burst=1%:25%")
    return {"bursts": Bursts(*shares)}


def _outage(value: str, link: LinkSpec) -> dict[str, Any]:
    found = _two_times(value, "start+length", "outage=10s+3s")
    fixed = tuple(sorted((*link.outages.fixed, found)))
    return {"outages": replace(link.outages, fixed=fixed)}


def _outages(value: str, link: LinkSpec) -> dict[str, Any]:
    every_s, length_s = _two_times(value, "every:length", "outages=30s:2s")
    return {"outages": replace(link.outages, every_s=every_s, length_s=length_s)}


def _two_times(value: str, form: str, example: str) -> tuple[float, float]:
    first, mark, second = value.partition("+" if "+" in form else ":")
    if not mark:
        raise ConfigError(f"not {form}", hint=example)
    return _time(first, "30s"), _time(second, "2s")


def _seed(value: str, _: LinkSpec) -> dict[str, Any]:
    if not value.isdecimal():
        raise ConfigError(f"{value!r} is no seed", hint="a whole number from 0")
    return {"seed": int(value)}


_KEYS: dict[str, _Take] = {
    "up": _rate("up"),
    "down": _rate("down"),
    "rtt": lambda value, _: _each("delay_{}_s", DIRECTIONS, _time(value) / 2),
    "rate": _rate(*DIRECTIONS),
    "delay_up": lambda value, _: {"delay_up_s": _time(value)},
    "delay_down": lambda value, _: {"delay_down_s": _time(value)},
    "jitter": _jitter,
    "correlation": lambda v, link: {"jitter": replace(link.jitter, correlation=_share(v))},
    "loss": lambda value, _: {"loss": _share(value)},
    "burst": _burst,
    "queue": lambda v, _: {"queue_bytes": int(_unit(v, _SIZES, "a size such as 64kb"))},
    "outage": _outage,
    "outages": _outages,
    "seed": _seed,
}


def _unit(value: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(_NUMBER + r"([a-z]*)", value.strip())
    if found is None or found.group(2) not in units:
        raise ConfigError(f"{value!r} is not {wanted}", hint=f"units: {', '.join(units)}")
    return float(found.group(1)) * units[found.group(2)]


def _share(value: str) -> float:
    found = re.fullmatch(_NUMBER + r"(%?)", value.strip())
    if found is None:
        raise ConfigError(f"{value!r} is no share", hint="such as 1% or 0.01")
    return float(found.group(1)) / (100 if found.group(2) else 1)
