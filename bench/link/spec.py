"""What a link is like: delay, jitter, rate, loss, queue, outages, as data.

A link has two directions, ``up`` (from the device) and ``down``.  Delays are one-way;
the text form (``draftwire.bench.link.text``) gives round trips, as people do.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Mapping

from draftwire.errors import ConfigError

SCHEMA = "draftwire.link/1"
DIRECTIONS = ("up", "down")
KINDS = ("none", "uniform", "normal", "pareto", "quantiles")
MAX_DELAY_S = 60.0


def _between(what: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ConfigError(
            f"{what} is {value:g}", hint=f"it must lie between {low:g} and {high:g}"
        )


@dataclass(frozen=True)
class Jitter:
    """How the one-way delay varies; it only ever adds to the fixed delay."""

    # ``none``; ``uniform`` in 0..2 spreads; ``normal``, the absolute value of a normal with
    # this deviation; ``pareto`` with this mean and a tail exponent of 3; ``quantiles``, the
    # table below
    kind: str = "none"
    spread_s: float = 0.0  # scale of the first three, seconds
    # of the (Gaussian) draws behind packets that lie `step_s` apart; closer packets are
    # more alike, packets of one instant are the same
    correlation: float = 0.0
    step_s: float = 0.1  # seconds; see `correlation`
    # which directions vary. A published round trip varies ``up`` alone, so that sums of two
    # draws do not narrow it.
    directions: tuple[str, ...] = DIRECTIONS
    # ``(probability, extra seconds)``, rising, from probability 0
    quantiles: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"no jitter {self.kind!r}", hint=f"one of {', '.join(KINDS)}")
        _between("jitter", self.spread_s, 0, MAX_DELAY_S)
        _between("correlation", self.correlation, 0, 0.999999)
        _between("jitter step", self.step_s, 1e-6, 3600)
        if not set(self.directions) <= set(DIRECTIONS):
            raise ConfigError(f"jitter in {self.directions}", hint="up, down or both")
        if self.kind == "quantiles":
            table = self.quantiles
            rising = all(b[0] > a[0] and b[1] >= a[1] for a, b in zip(table, table[1:]))
            if len(table) < 2 or table[0][0] != 0 or table[-1][0] > 1 or not rising:
                raise ConfigError("jitter quantiles must rise from probability 0")
            for _, extra in table:
                _between("a jitter quantile", extra, 0, MAX_DELAY_S)
        elif self.quantiles:
            raise ConfigError("only jitter of kind 'quantiles' has quantiles")


@dataclass(frozen=True)
class Bursts:
    """Loss in bursts: the Gilbert-Elliott model, one step a packet.

    Source:
        The parameters p, r and 1-h of ``loss gemodel`` in tc-netem(8).
    """

    enter: float  # probability to go from good to bad before a packet
    leave: float  # probability to go back
    loss: float = 1.0  # share of packets lost in the bad state

    def __post_init__(self) -> None:
        _between("burst: enter", self.enter, 0, 1)
        _between("burst: leave", self.leave, 1e-9, 1)
        _between("burst: loss", self.loss, 0, 1)

    @property
    def mean_loss(self) -> float:
        """Share of packets lost in the long run."""
        return self.loss * self.enter / (self.enter + self.leave)


@dataclass(frozen=True)
class Outages:
    """When the link is gone, both directions at once."""

    # ``(start_s, length_s)`` each, from the start of the link
    fixed: tuple[tuple[float, float], ...] = ()
    every_s: float | None = None  # mean seconds between random ones (exponential), or None
    length_s: float = 0.0  # mean seconds of a random one (exponential)

    def __post_init__(self) -> None:
        for start, length in self.fixed:
            _between("start of an outage", start, 0, 1e9)
            _between("length of an outage", length, 1e-6, 1e6)
        if self.every_s is not None:
            _between("time between outages", self.every_s, 1e-3, 1e9)
            _between("length of outages", self.length_s, 1e-6, 1e6)

    @property
    def any(self) -> bool:
        """Whether there can be one."""
        return bool(self.fixed) or self.every_s is not None


@dataclass(frozen=True)
class LinkSpec:
    """A link between a device and a verifier.

    Raises:
        ConfigError: A figure is out of range; the sentence names it.
    """

    name: str = "ideal"  # how it was asked for; goes into reports
    delay_up_s: float = 0.0  # one-way delay from the device, seconds, without queueing
    delay_down_s: float = 0.0  # one-way delay to the device
    jitter: Jitter = Jitter()  # what varies on top
    # bits a second from the device, headers included; None: no limit
    up_bit_s: float | None = None
    down_bit_s: float | None = None  # bits a second to the device
    loss: float = 0.0  # share of packets lost, each direction, independently
    bursts: Bursts | None = None  # loss in bursts beside it
    # bytes that wait in front of the slow link before netem drops packets, or the proxy
    # holds the writer back; None leaves that to them
    queue_bytes: int | None = None
    trace_up: str | None = None  # file with the rate from the device; instead of `up_bit_s`
    trace_down: str | None = None  # file with the rate to the device
    outages: Outages = Outages()  # when nothing passes
    seed: int = 0  # of everything random
    source: str = ""  # where the figures come from

    def __post_init__(self) -> None:
        _between("delay up", self.delay_up_s, 0, MAX_DELAY_S)
        _between("delay down", self.delay_down_s, 0, MAX_DELAY_S)
        _between("loss", self.loss, 0, 0.99)
        for direction in DIRECTIONS:
            rate = self.bit_s(direction)
            if rate is not None:
                _between(f"rate {direction}", rate, 100, 1e12)
                if self.trace(direction) is not None:
                    raise ConfigError(
                        f"rate and trace for {direction} exclude each other",
                        hint="a trace is the rate: leave one of them out",
                    )
        if self.queue_bytes is not None and self.queue_bytes < 1500:
            raise ConfigError(
                f"a queue of {self.queue_bytes} bytes holds no packet",
                hint="1500 bytes or more",
            )

    @property
    def rtt_s(self) -> float:
        """Round trip without jitter, queueing and sending time, seconds."""
        return self.delay_up_s + self.delay_down_s

    def delay_s(self, direction: str) -> float:
        """Return the fixed one-way delay of a direction, seconds."""
        return self.delay_up_s if direction == "up" else self.delay_down_s

    def bit_s(self, direction: str) -> float | None:
        """Return the fixed rate of a direction, or None."""
        return self.up_bit_s if direction == "up" else self.down_bit_s

    def trace(self, direction: str) -> str | None:
        """Return the trace file of a direction, or None."""
        return self.trace_up if direction == "up" else self.trace_down

    @classmethod
    def parse(cls, text: str) -> LinkSpec:
        """Return the link that ``text`` describes, such as ``"40ms/10mbit"``.

        Raises:
            ConfigError: It does not; says which part and what would do.
        """
        from draftwire.bench.link.text import parse_link

        return parse_link(text)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a report; `from_dict` reads it."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists, no tuples
        return {"schema": SCHEMA, **document}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LinkSpec:
        """Return the link that `to_dict` gave."""
        values = {key: document[key] for key in document if key != "schema"}
        jitter, outages = values["jitter"], values["outages"]
        jitter = {**jitter, "directions": tuple(jitter["directions"])}
        values["jitter"] = Jitter(**{**jitter, "quantiles": _pairs(jitter["quantiles"])})
        values["outages"] = Outages(**{**outages, "fixed": _pairs(outages["fixed"])})
        values["bursts"] = values["bursts"] and Bursts(**values["bursts"])
        return cls(**values)


def _pairs(rows: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(a), float(b)) for a, b in rows)
