"""Every scheme that the simulator and a comparison can run, in one table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.io import did_you_mean
from draftwire.runtime.edge.mode import Mode

_OURS = frozenset({"lookup", "patience"})
_MINE = _OURS | {"leaves", "trees"}
_ALL = _MINE | {"draft"}


@dataclass(frozen=True)
class Scheme:
    """How draft and target work together."""

    name: str  # as it was asked for, its block length included
    controller: str  # spec for the length policy; ``{k}`` stands for the block length
    mode: Mode = Mode.of(preempt="off")  # how the session hides the network
    # ``"device"``, or ``"cloud"`` where the draft runs beside the target and only text
    # crosses the network
    place: str = "device"
    # evidence that a drafted token carries beside its id, bits; ``"fp16"`` is a dense fp16
    # distribution over the vocabulary
    up_bits_per_token: int | str = 0
    # bytes that a verdict carries where a draft was rejected; ``"fp16"`` as above
    down_on_rejection: int | str = 0
    # the target draws one more token after a block that is accepted whole
    bonus: bool = True
    sampled: str = "coupled"  # sampling scheme above temperature 0, live
    block: int | None = None  # block length that was asked for by name, or None
    # what else of ours is done for it: ``"lookup"``, ``"patience"``, ``"draft"`` (beside
    # the target, where the device's are late), and by the board too ``"leaves"`` and
    # ``"trees"``
    helps: frozenset[str] = frozenset()

    @property
    def has_blocks(self) -> bool:
        """True when its blocks have a length."""
        return "{k}" in self.controller

    @property
    def tunable(self) -> bool:
        """True when it has a block length to choose."""
        return self.has_blocks and self.block is None

    def policy(self, block: int, at_once: int = 1) -> str:
        """Return the length policy's spec.

        Args:
            block: Length of blocks, where it has some and none was asked for by name.
            at_once: Tokens of one forward of the draft: a race sends them together, and
                fixed lengths are said so.
        """
        spec = self.controller.format(k=self.block or block, at_once=at_once)
        return f"{spec}:parallel" if at_once > 1 and spec.startswith("fixed:") else spec

    def evidence_bytes(self, tokens: int, vocabulary: int) -> int:
        """Return the bytes beside the ids of a block of ``tokens``.

        Args:
            tokens: Drafted.
            vocabulary: Ids that a dense distribution is over.
        """
        bits = self.up_bits_per_token
        return (
            2 * vocabulary * tokens if isinstance(bits, str) else (tokens * bits + 7) // 8
        )

    def rejection_bytes(self, vocabulary: int) -> int:
        """Return the bytes beside a verdict that rejects a draft."""
        found = self.down_on_rejection
        return 2 * vocabulary if isinstance(found, str) else found

    def sampling(self, temperature: float, vocabulary: int) -> str:
        """Return the sampling scheme's name on the wire of a live run."""
        if temperature > 0:
            return self.sampled
        size = self.evidence_bytes(1, vocabulary)
        return f"greedy+{size}" if size else "greedy"

    @property
    def cloud_drafts(self) -> bool:
        """True when a draft model runs beside the target."""
        return self.place == "cloud" or "draft" in self.helps

    @property
    def same_text(self) -> bool:
        """True when seed and target alone decide its text at any temperature."""
        return self.sampled == "coupled"


_K, _RACE = "fixed:{k}", "fixed:{at_once}"
# The ids' probabilities go up.
_SENT: dict[str, Any] = {"up_bits_per_token": 32, "sampled": "separate"}
# 16 ids on a lattice of 100 at V = 151,936: 294 bits with the id.
_LATTICE: dict[str, Any] = {"up_bits_per_token": 277, "sampled": "qs"}
_LATENCY = Mode.of("latency")


def _table(*schemes: Scheme) -> dict[str, Scheme]:
    return {scheme.name: scheme for scheme in schemes}


# What each is stands in docs/benchmarks.md.
SCHEMES = _table(
    Scheme("cloud", "off", Mode.of("latency", preempt="off")),
    Scheme("colocated", _K, place="cloud"),  # arXiv 2606.25091
    # The baseline of arXiv 2603.19133.
    Scheme("vanilla", _K, up_bits_per_token="fp16", sampled="residual"),
    Scheme("await", _K),
    Scheme("flexspec", "flexspec"),  # arXiv 2601.00644
    Scheme("earlyexit", _K, Mode.of(preempt="guess,exits")),  # arXiv 2505.21594
    Scheme("qs", _K, **_LATTICE),  # arXiv 2507.00605, 2510.09942
    Scheme("picospec", _K, Mode.of(pipeline=2, cut=True), bonus=False, **_SENT),
    Scheme("race", _RACE, _LATENCY),
    Scheme(
        "ours-cost",
        "auto:cost",
        Mode.of(pipeline=2, preempt="guess,exits", cut=True),
        helps=_OURS,
    ),
    Scheme("ours-latency", "auto", Mode.of("latency", preempt="guess,exits"), helps=_OURS),
    Scheme("ours", _RACE, Mode.of("latency", preempt="guess,exits,outcomes"), helps=_MINE),
    # Where the target has no exits.
    Scheme(
        "ours-no-exits", _RACE, Mode.of("latency", preempt="guess,outcomes"), helps=_MINE
    ),
    Scheme("hybrid", _RACE, _LATENCY, helps=frozenset({"draft"})),
    Scheme("pipesd", "pipesd", Mode.of(batch=2)),  # arXiv 2605.13319
    # As arXiv 2609.02514 compares with it.
    Scheme("dssd", _K, down_on_rejection="fp16", **_SENT),
    # arXiv 2608.04974; with --gateway other sessions fill its waits.
    Scheme("asymspec", _K, down_on_rejection=64, **_SENT),
    # arXiv 2609.02514, after a summary.
    Scheme("acespec", _K, Mode.of(preempt="guess,outcomes"), up_bits_per_token=32),
    Scheme("ssd", _K, Mode.of(preempt="guess,outcomes"), place="cloud"),  # arXiv 2603.03251
    Scheme("ucb", "ucb"),  # arXiv 2606.20591, after its abstract
    # as by default
    Scheme("auto", "auto", Mode.of("auto", preempt="guess,exits,outcomes"), helps=_MINE),
)
# The rows that a comparison can have: those, and single steps of the way to ours.
ROWS = {
    **{name: scheme for name, scheme in SCHEMES.items() if name != "race"},
    **_table(
        Scheme("ahead", _K, Mode.of()),
        Scheme("ahead2", _K, Mode.of(pipeline=2)),
        Scheme("earlyexit2", _K, Mode.of(pipeline=2, preempt="guess,exits")),
        Scheme("cost", _K, Mode.of()),
        Scheme("latency", "fixed:1", _LATENCY),
        Scheme("latency-auto", "auto", _LATENCY),
        Scheme("qsv", "qsv", **_LATTICE),  # arXiv 2507.00605
    ),
}
DEFAULT_ROWS = (
    "cloud,colocated,vanilla,flexspec,earlyexit,qs,picospec,cost,latency,"
    "ours-cost,ours-latency"
)


def scheme_named(word: str, table: Mapping[str, Scheme] = SCHEMES) -> Scheme:
    """Return a scheme; ``NAME:K`` has blocks of K tokens, ``NAME+WORD`` a help of ours.

    Raises:
        ConfigError: There is none of that name, or it has no block length.
    """
    whole, *helps = word.split("+")
    name, colon, length = whole.partition(":")
    if name not in table:
        hint = did_you_mean(name, table, f"there are {', '.join(table)}")
        raise ConfigError(f"no scheme is called {name!r}", hint=hint)
    scheme = table[name]
    if not _ALL.issuperset(helps):
        raise ConfigError(f"{word!r}: there is no such help", hint=", ".join(sorted(_ALL)))
    if helps:
        scheme = replace(scheme, name=word, helps=scheme.helps.union(helps))
    if not colon:
        return scheme
    if not scheme.has_blocks:
        raise ConfigError(f"{name} chooses its lengths itself", hint=f"ask for {name}")
    if not length.isdecimal() or not 1 <= int(length) <= 64:
        raise ConfigError(f"{word!r} has no block length", hint="such as await:4, 1 to 64")
    return replace(scheme, name=word, block=int(length))


def schemes_named(text: str, table: Mapping[str, Scheme] = SCHEMES) -> Sequence[Scheme]:
    """Return the schemes of a list such as ``"cloud,await:4,await:8"``; ``all`` is all.

    Raises:
        ConfigError: There is none, or one is unknown, lacks a block length or comes twice.
    """
    if text == "all":
        return list(table.values())
    words = [part.strip() for part in text.split(",") if part.strip()]
    if not words:
        raise ConfigError(
            "no scheme is named", hint=f"there are {', '.join(table)}, or all"
        )
    for word in words:
        if words.count(word) > 1:
            raise ConfigError(f"the scheme {word} is asked for twice")
    return [scheme_named(word, table) for word in words]


def carried_sizes(
    schemes: Sequence[Scheme], temperature: float, vocabulary: int
) -> tuple[int, ...]:
    """Return the sizes of evidence that these carry under greedy decoding, live."""
    if temperature > 0:
        return ()
    sizes = {scheme.evidence_bytes(1, vocabulary) for scheme in schemes}
    return tuple(sorted(sizes - {0}))
