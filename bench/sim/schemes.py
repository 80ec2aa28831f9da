"""Every scheme that the simulator and a comparison can run, in one table."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.runtime.edge.mode import Mode

_GUESS = frozenset({"guess"})
_OURS = frozenset({"lookup", "patience"})
_ALL = _OURS | {"draft", "hush", "leaves"}


@dataclass(frozen=True)
class Scheme:
    """How draft and target work together."""

    name: str  # as it was asked for, its block length included
    title: str  # one line
    controller: str  # spec for the length policy; ``{k}`` stands for the block length
    mode: Mode = Mode(preempt=frozenset())  # how the session hides the network
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
    source: str = ""  # what it is a model of
    sampled: str = "coupled"  # sampling scheme above temperature 0, live
    block: int | None = None  # block length that was asked for by name, or None
    # what else of ours is done for it: ``"lookup"``, ``"patience"``, ``"draft"`` (beside
    # the target, where the device's are late), by the board ``"hush"``, and by both
    # ``"leaves"``
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
            at_once: Tokens of one forward of the draft: a race sends them together.
        """
        return self.controller.format(k=self.block or block, at_once=at_once)

    def evidence_bytes(self, tokens: int, vocabulary: int) -> int:
        """Return the bytes beside the ids of a block of ``tokens``.

        Args:
            tokens: Drafted.
            vocabulary: Ids that a dense distribution is over.
        """
        if self.up_bits_per_token == "fp16":
            return tokens * 2 * vocabulary
        assert isinstance(self.up_bits_per_token, int)
        return (tokens * self.up_bits_per_token + 7) // 8

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
    def needs_exits(self) -> bool:
        """True when there is nothing to see without early exits; ours do without."""
        return self.name.startswith("earlyexit")

    @property
    def same_text(self) -> bool:
        """True when seed and target alone decide its text at any temperature."""
        return self.sampled == "coupled"


_TABLE = (
    Scheme(
        "cloud",
        "the target decodes by itself and streams",
        "off",
        Mode(objective="latency", preempt=frozenset()),
        source="autoregressive decoding in the cloud",
    ),
    Scheme(
        "colocated",
        "draft beside the target in the cloud",
        "fixed:{k}",
        place="cloud",
        source="arXiv 2606.25091; the server hosts both models",
    ),
    Scheme(
        "vanilla",
        "stop and wait, dense fp16 distributions up",
        "fixed:{k}",
        up_bits_per_token="fp16",
        sampled="residual",
        source="the baseline of arXiv 2603.19133",
    ),
    Scheme(
        "await",
        "stop and wait, ids only",
        "fixed:{k}",
        source="the plainest use of our own wire",
    ),
    Scheme(
        "flexspec",
        "stop and wait, length by a ratio of linear functions",
        "flexspec",
        source="arXiv 2601.00644",
    ),
    Scheme(
        "earlyexit",
        "early exits of the target, preemptive drafting",
        "fixed:{k}",
        Mode(preempt=frozenset({"guess", "exits"})),
        source="arXiv 2505.21594",
    ),
    Scheme(
        "qs",
        "stop and wait, quantised sparse distributions up",
        "fixed:{k}",
        # Support of 16 ids and a lattice of 100 at V = 151,936: 294 bits with the id.
        up_bits_per_token=277,
        sampled="qs",
        source="arXiv 2507.00605 and 2510.09942: 16 ids, resolution 100",
    ),
    Scheme(
        "picospec",
        "pipeline, probabilities of the ids up",
        "fixed:{k}",
        Mode(pipeline=2, preempt=_GUESS, cut=True),
        up_bits_per_token=32,
        bonus=False,
        sampled="separate",
        source="arXiv 2603.19133",
    ),
    Scheme(
        "race",
        "the target decodes on, drafts leave one by one",
        "fixed:{at_once}",
        Mode(objective="latency", preempt=_GUESS),
        source="our race without a controller or exits",
    ),
    Scheme(
        "ours-cost",
        "our controller, exits where there are some; forwards for blocks only",
        "auto:cost",
        Mode(objective="cost", pipeline=2, preempt=_GUESS | {"exits"}, cut=True),
        helps=_OURS,
    ),
    Scheme(
        "ours-latency",
        "race with our controller, exits where there are some",
        "auto:latency",
        Mode(objective="latency", preempt=_GUESS | {"exits"}),
        helps=_OURS,
    ),
    Scheme(
        "ours",
        "race with patience, second choices, lookup and prepared outcomes",
        "fixed:{at_once}",
        Mode(objective="latency", preempt=_GUESS | {"outcomes"}),
        helps=_OURS | {"leaves"},
    ),
    Scheme(
        "hybrid",
        "race, and a draft beside the target where the device's drafts are late",
        "fixed:{at_once}",
        Mode(objective="latency", preempt=_GUESS),
        source="ours: verifier serve --draft",
        helps=frozenset({"draft"}),
    ),
    Scheme(
        "pipesd",
        "pieces of two tokens while drafting, verified by two thresholds",
        "pipesd",
        Mode(preempt=_GUESS, batch=2),
        source="arXiv 2605.13319",
    ),
    Scheme(
        "dssd",
        "stop and wait, probabilities up, a distribution down for a wrong draft",
        "fixed:{k}",
        up_bits_per_token=32,
        down_on_rejection="fp16",
        sampled="separate",
        source="DSSD, as arXiv 2609.02514 compares with it",
    ),
    Scheme(
        "asymspec",
        "stop and wait, probabilities up, the 16 likeliest down for a wrong draft",
        "fixed:{k}",
        up_bits_per_token=32,
        down_on_rejection=64,
        sampled="separate",
        source="arXiv 2608.04974, one session: no others fill its waits",
    ),
    Scheme(
        "acespec",
        "the likeliest outcomes of a verdict prepared on the board",
        "fixed:{k}",
        Mode(preempt=_GUESS | {"outcomes"}),
        up_bits_per_token=32,
        source="arXiv 2609.02514, after a summary",
    ),
    Scheme(
        "ssd",
        "in the cloud, the draft on an accelerator of its own prepares outcomes",
        "fixed:{k}",
        Mode(preempt=_GUESS | {"outcomes"}),
        place="cloud",
        source="arXiv 2603.03251",
    ),
    Scheme(
        "ucb",
        "stop and wait, length by upper confidence bounds",
        "ucb",
        source="arXiv 2606.20591, after its abstract",
    ),
    Scheme(
        "auto",
        "the default: streams, races or waits, whatever is measured to be fastest",
        "auto",
        Mode(objective="auto", preempt=_GUESS),
    ),
)
SCHEMES = {scheme.name: scheme for scheme in _TABLE}
DISTRIBUTED = ("await", "flexspec", "earlyexit", "qs", "picospec", "vanilla")

# The rows that a comparison can have: those, and single steps of the way to ours.
_STEPS = (
    Scheme(
        "ahead",
        "stop and wait, the next block drafted meanwhile",
        "fixed:{k}",
        Mode(preempt=_GUESS),
    ),
    Scheme(
        "ahead2",
        "two blocks in flight, the next one drafted meanwhile",
        "fixed:{k}",
        Mode(pipeline=2, preempt=_GUESS),
    ),
    Scheme(
        "earlyexit2",
        "early exits, two blocks in flight",
        "fixed:{k}",
        Mode(pipeline=2, preempt=frozenset({"guess", "exits"})),
    ),
    Scheme(
        "cost",
        "ours, fixed blocks: the product's defaults",
        "fixed:{k}",
        Mode(preempt=_GUESS),
    ),
    Scheme(
        "latency",
        "ours, race, single tokens: --objective latency --block 1",
        "fixed:1",
        Mode(objective="latency", preempt=_GUESS),
    ),
    Scheme(
        "latency-auto",
        "ours, race with our controller, without exits",
        "auto",
        Mode(objective="latency", preempt=_GUESS),
    ),
    Scheme(
        "qsv",
        "qs, its lengths and resolutions chosen by the published throughput model",
        "qsv",
        up_bits_per_token=277,
        sampled="qs",
        source="arXiv 2507.00605, on the bits that were sent",
    ),
)
ROWS = {
    **{name: scheme for name, scheme in SCHEMES.items() if name != "race"},
    **{scheme.name: scheme for scheme in _STEPS},
    "ours-latency": replace(SCHEMES["ours-latency"], controller="auto"),
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
        near = difflib.get_close_matches(name, table, n=1)
        raise ConfigError(
            f"no scheme is called {name!r}",
            hint=f"did you mean {near[0]}?" if near else f"there are {', '.join(table)}",
        )
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
        ConfigError: One is unknown, has no block length, or is asked for twice.
    """
    if text == "all":
        return list(table.values())
    words = [part.strip() for part in text.split(",") if part.strip()]
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
