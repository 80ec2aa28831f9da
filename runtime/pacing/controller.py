"""Decides how far to draft.

The interface that every policy shares, and the plainest ones: a fixed number of tokens, or
none. The others live in modules of their own: ``auto`` (ours), ``baselines`` (published
rules).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.length_rule import Costs
from draftwire.runtime.pacing.trust import Seconds, Trust
from draftwire.sampling import Proposal

__all__ = [
    "AUTOREGRESSIVE",
    "DRAFTING",
    "HYBRID",
    "PARALLEL",
    "PUBLISHED",
    "Controller",
    "FixedLength",
    "Off",
    "Round",
    "make_controller",
]

# Ways to draft a block; :mod:`~draftwire.runtime.pacing.parallel` tells them apart.
DRAFTING = AUTOREGRESSIVE, PARALLEL, HYBRID = "autoregressive", "parallel", "hybrid"

PUBLISHED = ("flexspec", "pipesd", "qsv", "ucb")


@dataclass(frozen=True)
class Round:
    """What one commit taught about the costs."""

    t_s: float  # when it came, seconds of the caller's clock
    tokens: int  # new tokens of the text
    drafted: int  # drafted tokens that it judged; 0 when it answers no block
    accepted: int  # those that became text
    wait_s: float | None = None  # from the sending of the block that it answers, or None
    # ``wait_s`` without the verifier's own time; None where the block may have waited
    # behind another, so that nobody can tell
    network_s: float | None = None
    queue_s: float = 0.0  # seconds of queueing, told by the verifier
    compute_s: float = 0.0  # seconds of the forward, told by the verifier
    up_bytes: int = 0  # on the wire, of the blocks that it answers
    rtt_s: float | None = None  # smoothed round trip of the link, or None while unknown
    # goodput up, bytes a second, or None while nothing tells it
    up_bytes_s: float | None = None
    in_flight: int = 0  # blocks that are still out after it
    late: bool = False  # what goes up piles up somewhere: a ping is overdue


class Controller:
    """A policy for the length of draft blocks: four tokens each, unless it says otherwise.

    One of your own overrides what it needs; the rest learns what rounds cost.

    Attributes:
        way: In which the block in hand is drafted.
        chooses: Its blocks may have any length that pays best.
        waits: It is a rule for stop-and-wait: the objective ``auto`` does not race.
        rival: Text for a unit of cost, where blocks are drafted another way.
        stride: Drafts after which a race looks whether to go on.
    """

    name = "policy"
    way = AUTOREGRESSIVE
    chooses = waits = False
    rival = 0.0
    stride = 255

    @cached_property
    def costs(self) -> Costs:
        """What rounds cost."""
        return Costs()

    @cached_property
    def trust(self) -> Trust:
        """How far early exits are believed."""
        return Trust()

    @cached_property
    def seconds(self) -> Seconds:
        """What second choices bring."""
        return Seconds()

    @property
    def spare(self) -> bool:
        """Whether drafts may be made that are hardly of use."""
        return True

    @property
    def rule(self) -> Controller:
        """The length rule itself, where something stands in front of it."""
        return self

    def begin(self, mode: Mode) -> None:
        """A stream begins; what was learned of earlier ones is kept."""

    def limit(self) -> int:
        """Return the most tokens of the next block.

        0 while nothing is in flight is "off": draft nothing, and let the verifier
        stream. 0 while blocks are out, or in a race, is "not now". Either way it is
        asked again after every commit.
        """
        return 4

    def races(self, may: bool) -> bool:
        """Return whether the target shall decode on without waiting for blocks.

        Asked with the objective ``auto`` alone, before the stream and at each verdict.

        Args:
            may: Scheme and ceiling of forwards allow it.
        """
        return may and not self.waits

    def resolution(self) -> int:
        """Return the lattice resolution for ``qs``; 0 leaves it to the scheme."""
        return 0

    def enough(self, block: Sequence[Proposal]) -> bool:
        """Return True when ``block`` should leave as it is, short of the limit."""
        return False

    def leaving(self, block: Sequence[Proposal]) -> None:
        """These are the drafts that :meth:`sent` will count."""

    def sent(self, drafted: int) -> None:
        """A block of so many tokens has left."""

    def judged(self, drafted: int, accepted: int) -> None:
        """Learn from a verdict."""

    def overtaken(self, count: int) -> None:
        """Learn that so many drafts were right, and came too late to be judged."""

    def measured(self, round: Round) -> None:
        """Learn what a commit cost; called after :meth:`judged`."""
        self.costs.measured(round)

    def drafted_in(self, seconds: float) -> None:
        """Learn what one drafted token took."""
        self.costs.drafted_in(seconds)

    def forwarded(self, read: int, masks: int, seconds: float) -> None:
        """Learn what a forward took that gave a draft: of so many tokens, and masks."""
        self.drafted_in(seconds)

    def power(self, watts: Mapping[str, float | None]) -> None:
        """Learn the mean watts of each phase so far; called where a source is open."""
        self.costs.power(watts)

    def explain(self) -> str:
        """Return one line: why the last block ended; "" while there is none."""
        return f"limit {self.limit()}"

    # ---- blocks that are drafted another way (:mod:`~draftwire.runtime.pacing.parallel`)

    def worth(self, text: float, drafting_s: float, drafted: int) -> float:
        """Return the text for a unit of cost of rounds with so many drafts."""
        costs = self.costs
        other_s = drafted * (costs.token_s - costs.draft_s)
        return text / (costs.wait_s + drafting_s + other_s)

    def alone(self) -> float:
        """Return the text for a unit of cost of blocks as this rule drafts them, or 0."""
        return 0.0

    def judged_elsewhere(self, drafted: int, accepted: int) -> None:
        """Note a verdict on a block that was drafted another way."""

    def masks_in(self, seconds: float, one_s: float) -> None:
        """Learn what a forward with masks took, and one without should take."""
        self.drafted_in(one_s)


class FixedLength(Controller):
    """Every block has the same length (``fixed:K``), and may be drafted one way alone.

    Args:
        length: Tokens per block, at least 1.
        way: One of :data:`DRAFTING`, for a draft that has a choice; "" leaves it.
    """

    def __init__(self, length: int, way: str = "") -> None:
        if not 1 <= length <= 255:
            raise ConfigError(f"a block of {length} tokens is outside 1..255")
        if way and way not in DRAFTING:
            raise ConfigError(
                f"there is no way of drafting {way!r}", hint="one of " + ", ".join(DRAFTING)
            )
        self.name = f"fixed:{length}" + (f":{way}" if way else "")
        self.way_asked = way
        self._length = length

    def limit(self) -> int:
        return self._length


class Off(Controller):
    """Nothing is drafted (``off``): the verifier streams by itself."""

    name = "off"

    def limit(self) -> int:
        return 0

    def explain(self) -> str:
        return "off: as asked"


def make_controller(
    spec: str,
    *,
    max_watts: float | None = None,
    max_joules_per_token: float | None = None,
) -> Controller:
    """Return the policy that ``spec`` names, e.g. ``"fixed:4"`` or ``"auto:energy"``.

    Args:
        spec: ``auto``, ``auto:latency``, ``auto:cost``, ``auto:energy``, ``fixed:K``,
            ``fixed:K:parallel`` (or another of :data:`DRAFTING`), ``off``, or one of
            :data:`PUBLISHED`; ``pipesd:R1:R2`` has other thresholds.
        max_watts: Mean watts over any ten seconds; of ``flexspec``, of a round. Others
            keep no budget.
        max_joules_per_token: Joules for each token of text, likewise.

    Raises:
        ConfigError: Unknown policy or bad number.
    """
    name, _, value = spec.partition(":")
    if name == "auto":
        from draftwire.runtime.pacing.auto import Auto
        from draftwire.runtime.pacing.governor import Governor

        return Auto(value or "latency", Governor(max_watts, max_joules_per_token))
    from draftwire.runtime.pacing.baselines import FlexSpec, PipeSd, Qsv, Ucb

    if spec == "flexspec":
        return FlexSpec((1, 8), max_watts, max_joules_per_token)
    if max_watts is not None or max_joules_per_token is not None:
        raise ConfigError(
            f"controller {spec!r} keeps no budget of power",
            hint="use auto, or leave the budget out",
        )
    length, _, way = value.partition(":")
    if name == "fixed" and length.isdigit():
        return FixedLength(int(length), way)
    if name == "pipesd":
        two = value.split(":") if value else []
        if len(two) in (0, 2) and all(t.replace(".", "", 1).isdigit() for t in two):
            return PipeSd(*map(float, two))
    plain: dict[str, type[Controller]] = {"off": Off, "qsv": Qsv, "ucb": Ucb}
    if spec in plain:
        return plain[spec]()
    raise ConfigError(
        f"unknown controller {spec!r}",
        hint="auto, auto:energy, auto:cost, fixed:K (e.g. fixed:4), off, or one of "
        + ", ".join(PUBLISHED),
    )
