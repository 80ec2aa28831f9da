"""The rows of a comparison: baselines as published, and ours.

Names, modes and length policies are the simulator's (:mod:`draftwire.bench.sim.schemes`),
so that a live row and a simulated one are the same thing. Here is what a live run needs
beyond that: which sampling scheme a row uses above temperature 0, and which bytes it
carries under greedy decoding.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Sequence

from draftwire.bench.sim.schemes import SCHEMES, Scheme
from draftwire.errors import ConfigError
from draftwire.runtime.mode import Mode

__all__ = ["DEFAULT", "ENTRIES", "Entry", "entries_named"]

_GUESS = frozenset({"guess"})


@dataclass(frozen=True)
class Entry:
    """One row.

    Attributes:
        name: As it was asked for, its block length included.
        scheme: How draft and target work together.
        sampled: Sampling scheme above temperature 0.
        block: Block length that was asked for, or None for the comparison's own.
    """

    name: str
    scheme: Scheme
    sampled: str = "coupled"
    block: int | None = None

    def controller(self, block: int) -> str:
        """Return the length policy's spec, with blocks of ``block`` where it has some."""
        return self.scheme.controller.format(k=self.block or block)

    def carried(self, vocabulary: int) -> int:
        """Return the bytes that a drafted token brings under greedy decoding.

        Args:
            vocabulary: Ids that a dense distribution is over.
        """
        bits = self.scheme.up_bits_per_token
        if bits == "fp16":
            return 2 * vocabulary
        assert isinstance(bits, int)
        return -(-bits // 8)

    def sampling(self, temperature: float, vocabulary: int) -> str:
        """Return the sampling scheme's name on the wire."""
        if temperature > 0:
            return self.sampled
        size = self.carried(vocabulary)
        return f"greedy+{size}" if size else "greedy"

    @property
    def needs_exits(self) -> bool:
        """True when there is nothing to see without early exits; ours do without."""
        return self.scheme.name.startswith("earlyexit")

    @property
    def same_text(self) -> bool:
        """True when seed and target alone decide its text at any temperature."""
        return self.sampled == "coupled"


def _entry(name: str, sampled: str = "coupled", controller: str = "") -> Entry:
    scheme = SCHEMES[name]
    if controller:
        scheme = replace(scheme, controller=controller)
    return Entry(name, scheme, sampled)


def _own(name: str, title: str, controller: str, mode: Mode) -> Entry:
    return Entry(name, Scheme(name, title, controller, mode))


ENTRIES = {
    entry.name: entry
    for entry in (
        _entry("cloud"),
        _entry("colocated"),
        _entry("vanilla", "residual"),
        _entry("await"),
        _entry("flexspec"),
        _own(
            "ahead",
            "stop and wait, the next block drafted meanwhile",
            "fixed:{k}",
            Mode(preempt=_GUESS),
        ),
        _own(
            "ahead2",
            "two blocks in flight, the next one drafted meanwhile",
            "fixed:{k}",
            Mode(pipeline=2, preempt=_GUESS),
        ),
        _entry("earlyexit"),
        _own(
            "earlyexit2",
            "early exits, two blocks in flight",
            "fixed:{k}",
            Mode(pipeline=2, preempt=frozenset({"guess", "exits"})),
        ),
        _entry("qs", "qs"),
        _entry("picospec", "separate"),
        _own(
            "cost",
            "ours, fixed blocks: the product's defaults",
            "fixed:{k}",
            Mode(preempt=_GUESS),
        ),
        _own(
            "latency",
            "ours, race, single tokens: --objective latency --block 1",
            "fixed:1",
            Mode(objective="latency", preempt=_GUESS),
        ),
        _own(
            "latency-auto",
            "ours, race with our controller, without exits",
            "auto",
            Mode(objective="latency", preempt=_GUESS),
        ),
        _entry("ours-cost", controller="auto:cost"),
        _entry("ours-latency", controller="auto"),
    )
}
DEFAULT = (
    "cloud,colocated,vanilla,flexspec,earlyexit,qs,picospec,cost,latency,"
    "ours-cost,ours-latency"
)


def entries_named(text: str) -> list[Entry]:
    """Return the rows of a list such as ``"cloud,await:4,await:8,ours-latency"``.

    ``all`` takes every one; ``NAME:K`` has blocks of K tokens.

    Raises:
        ConfigError: A name is unknown or twice, or a row has no block length.
    """
    if text == "all":
        return list(ENTRIES.values())
    found: list[Entry] = []
    for word in (part.strip() for part in text.split(",")):
        found.append(_one(word))
    names = [entry.name for entry in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"the scheme {name} is asked for twice")
    return found


def _one(word: str) -> Entry:
    name, colon, length = word.partition(":")
    if name not in ENTRIES:
        near = difflib.get_close_matches(name, ENTRIES, n=1)
        raise ConfigError(
            f"no scheme is called {name!r}",
            hint=f"did you mean {near[0]}?" if near else ", ".join(ENTRIES),
        )
    entry = ENTRIES[name]
    if not colon:
        return entry
    if not entry.scheme.tunable:
        raise ConfigError(f"{name} chooses its lengths itself", hint=f"ask for {name}")
    if not length.isdecimal() or not 1 <= int(length) <= 64:
        raise ConfigError(f"{word!r} has no block length", hint="such as await:4, 1 to 64")
    return replace(entry, name=word, block=int(length))


def carried_sizes(
    entries: Sequence[Entry], temperature: float, vocabulary: int
) -> tuple[int, ...]:
    """Return the sizes of evidence that these rows carry under greedy decoding."""
    if temperature > 0:
        return ()
    sizes = {entry.carried(vocabulary) for entry in entries}
    return tuple(sorted(sizes - {0}))
