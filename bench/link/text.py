"""The text form of a link: ``40ms/10mbit``, ``poor``, ``driving-5g/20mbit/seed=3``.

Parts are separated by ``/`` or ``,``; a file name goes up to the next comma::

    40ms                 round trip          10mbit             rate, both directions
    up=2mbit down=8mbit  rates               delay_up=30ms      one-way delay
    jitter=5ms:uniform   or normal, pareto   correlation=0.6    of jitter 100 ms apart
    loss=1%              each direction      burst=1%:25%:100%  enter, leave, lost in it
    queue=64kb           drop-tail           outage=10s+3s      at 10 s, for 3 s
    outages=30s:2s       random, mean        seed=7
    trace:FILE           rate, both          trace-up:FILE,trace-down:FILE
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from draftwire.bench.link.spec import Bursts, Jitter, LinkSpec, Outages
from draftwire.errors import ConfigError
from draftwire.io import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PRESETS = Path(__file__).resolve().parent / "presets.toml"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SIZES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1024.0**2}
_KEYS = (
    "up", "down", "rtt", "rate", "delay_up", "delay_down", "jitter", "correlation", "loss",
    "burst", "queue", "outage", "outages", "seed",
)  # fmt: skip


@lru_cache(maxsize=None)
def presets() -> dict[str, LinkSpec]:
    """Return the links that have a name, each with its source.

    Raises:
        ConfigError: The installed table is damaged.
    """
    try:
        table = tomllib.loads(_PRESETS.read_text(encoding="utf-8"))
        return {name: _preset(name, row) for name, row in table.items()}
    except (OSError, ValueError, KeyError, TypeError) as exc:
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
    base = LinkSpec()
    if re.fullmatch(r"[a-z][a-z0-9-]*", parts[0]):
        base = _named(parts.pop(0))
    made = _Parts(base)
    for part in parts:
        made.take(part)
    return made.link()


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


class _Parts:
    """Collects the parts of one text."""

    def __init__(self, base: LinkSpec) -> None:
        self._base = base
        self._values: dict[str, Any] = {}
        self._jitter = base.jitter
        self._fixed: list[tuple[float, float]] = []
        self._outages = base.outages

    def link(self) -> LinkSpec:
        outages = self._outages
        if self._fixed:
            outages = replace(outages, fixed=tuple(sorted(self._fixed)))
        return replace(self._base, jitter=self._jitter, outages=outages, **self._values)

    def take(self, part: str) -> None:
        """Read one part; raises ConfigError when it is none."""
        head, _, path = part.partition(":")
        if head in ("trace", "trace-up", "trace-down") and path:
            for direction in ("up", "down"):
                if head in ("trace", f"trace-{direction}"):
                    self._values[f"trace_{direction}"] = path
                    self._values[f"{direction}_bit_s"] = None
            return
        key, equals, value = part.partition("=")
        if not equals:
            value = part
            key = "rate" if value.lower().endswith("bit") else "rtt"
        take = getattr(self, f"_take_{key}", None)
        if take is None:
            known = [f"{name}=" for name in _KEYS]
            hint = did_you_mean(f"{key}=", known, f"parts: {', '.join(known)}")
            raise ConfigError(f"{part!r} is no part of a link", hint=hint)
        try:
            take(value.strip().lower())
        except ConfigError as exc:
            raise ConfigError(f"in {part!r}: {exc}", hint=exc.hint) from exc

    def _take_rtt(self, value: str) -> None:
        half = _unit(value, _TIMES, "a time such as 40ms") / 2
        self._values.update(delay_up_s=half, delay_down_s=half)

    def _take_delay_up(self, value: str) -> None:
        self._values["delay_up_s"] = _unit(value, _TIMES, "a time such as 20ms")

    def _take_delay_down(self, value: str) -> None:
        self._values["delay_down_s"] = _unit(value, _TIMES, "a time such as 20ms")

    def _take_rate(self, value: str) -> None:
        self._take_up(value)
        self._take_down(value)

    def _take_up(self, value: str) -> None:
        self._rate("up", value)

    def _take_down(self, value: str) -> None:
        self._rate("down", value)

    def _rate(self, direction: str, value: str) -> None:
        rate = _unit(value, _RATES, "a rate such as 10mbit")
        self._values[f"{direction}_bit_s"] = rate
        self._values[f"trace_{direction}"] = None

    def _take_jitter(self, value: str) -> None:
        spread, _, kind = value.partition(":")
        self._jitter = Jitter(
            kind or "normal",
            _unit(spread, _TIMES, "a time such as 5ms"),
            self._jitter.correlation,
            self._jitter.step_s,
        )

    def _take_correlation(self, value: str) -> None:
        self._jitter = replace(self._jitter, correlation=_share(value))

    def _take_loss(self, value: str) -> None:
        self._values["loss"] = _share(value)

    def _take_burst(self, value: str) -> None:
        shares = [_share(part) for part in value.split(":")]
        if len(shares) not in (2, 3):
            raise ConfigError("not enter:leave or enter:leave:loss", hint="burst=1%:25%")
        self._values["bursts"] = Bursts(*shares)

    def _take_queue(self, value: str) -> None:
        self._values["queue_bytes"] = int(_unit(value, _SIZES, "a size such as 64kb"))

    def _take_outage(self, value: str) -> None:
        start, plus, length = value.partition("+")
        if not plus:
            raise ConfigError("not start+length", hint="outage=10s+3s")
        times = [_unit(t, _TIMES, "a time such as 3s") for t in (start, length)]
        self._fixed.append((times[0], times[1]))

    def _take_outages(self, value: str) -> None:
        every, colon, length = value.partition(":")
        if not colon:
            raise ConfigError("not every:length", hint="outages=30s:2s")
        self._outages = Outages(
            every_s=_unit(every, _TIMES, "a time such as 30s"),
            length_s=_unit(length, _TIMES, "a time such as 2s"),
        )

    def _take_seed(self, value: str) -> None:
        if not value.isdecimal():
            raise ConfigError(f"{value!r} is no seed", hint="a whole number from 0")
        self._values["seed"] = int(value)


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
