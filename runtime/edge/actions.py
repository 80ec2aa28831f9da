"""What the device's session asks for, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Union

from draftwire.transport.messages import Message

__all__ = [
    "Action",
    "Counts",
    "Draft",
    "Emit",
    "Finished",
    "Revise",
    "Send",
    "Token",
    "TokenKind",
]

TokenKind = Literal[
    "accepted", "correction", "bonus", "forced", "resumed", "unverified", "completed"
]


@dataclass(frozen=True)
class Token:
    """One token of the text.

    Attributes:
        id: Token id.
        kind: ``"accepted"`` (drafted here), ``"correction"`` or ``"bonus"`` (the
            verifier's own), ``"forced"`` (a grammar left no choice), ``"resumed"``
            (committed while the link was lost), ``"unverified"`` (a guess shown while
            there was no verifier), or ``"completed"`` (nobody's: the shortest way to a
            whole structure, where the deadline came first).
        logprobs: Where they are asked for: its id and the target's log-probability of it,
            then those of the ids that the target found likeliest.
    """

    id: int
    kind: TokenKind
    logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Send:
    """Send ``message`` to the verifier."""

    message: Message


@dataclass(frozen=True)
class Draft:
    """Tell the drafter to make its sequence ``sequence[:valid] + tokens`` and go on.

    Replaces whatever the drafter was doing.

    Attributes:
        branch: Tag for the proposals; those of older tags are void.
        valid: How much of the drafter's present sequence stays.
        tokens: What follows.
        count: How many tokens to propose; 0 only corrects the sequence.
        way: To draft them; see :mod:`draftwire.runtime.pacing.parallel`.
    """

    branch: int
    valid: int
    tokens: tuple[int, ...]
    count: int
    way: str = "autoregressive"


@dataclass(frozen=True)
class Emit:
    """Show ``tokens`` to the user.

    They are final, unless their kind is ``"unverified"``.

    Attributes:
        tokens: In the order of the text.
        shown: So many of them were shown as unverified before, and are final now.
    """

    tokens: tuple[Token, ...]
    shown: int = 0


@dataclass(frozen=True)
class Revise:
    """Unverified tokens that were shown are void.

    Attributes:
        position: Of the first void token, counted from the end of the prompt.
    """

    position: int


@dataclass(frozen=True)
class Finished:
    """The stream is over.

    Attributes:
        reason: ``"length" | "stop" | "deadline" | "budget" | "cancelled"``.
    """

    reason: str


Action = Union[Send, Draft, Emit, Revise, Finished]


@dataclass
class Counts:
    """Running totals; every ratio is derived from these.

    Attributes:
        rounds: Verdicts received.
        forwards: Of the target after the prompt was read, as the verifier counts them.
        drafted: Drafted tokens that were sent.
        accepted: Those that became text.
        tokens: Tokens of the text after the prompt.
        proposed: Tokens that the draft model proposed.
        preempted: Those that it proposed while a verdict was out.
        preempted_used: Those among them that outlived that verdict.
        overtaken: Drafted tokens that the verifier committed by itself before it had
            judged them.
        provisional: Hints of early exits.
        provisional_right: Those that the verdict confirmed.
        outcomes: Lines that were drafted for other outcomes than the expected one.
        outcomes_used: Verdicts that found such a line ready.
        leaves: Second choices that were sent with drafts.
        leaves_right: Those that became text, with one more token behind each.
        accepted_by_position: ``[i]``: blocks whose draft ``i`` (from 0) was accepted.
        judged_by_position: ``[i]``: blocks whose draft ``i`` was sent and judged.
        queue_s: Seconds of queueing, told by the verifier.
        compute_s: Seconds of forwards, told by the verifier.
        unsent: Ids of the prompt that were named instead of sent.
        reused: Ids of the prompt that the target had read already.
        near_ties: Positions that the target's numerics cannot tell, told by the verifier.
        forced: Tokens of the text that a grammar left no choice about.
        wanted: Drafts that the verifier, which drafts itself, had need of.
        spared: Those of them that this device's drafts have saved it.
        rested: Tokens that came while the device did not draft, because of that.
        completed: Tokens that complete a structure because the deadline came first.
    """

    rounds: int = 0
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    proposed: int = 0
    preempted: int = 0
    preempted_used: int = 0
    overtaken: int = 0
    provisional: int = 0
    provisional_right: int = 0
    outcomes: int = 0
    outcomes_used: int = 0
    leaves: int = 0
    leaves_right: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    judged_by_position: list[int] = field(default_factory=list)
    queue_s: float = 0.0
    compute_s: float = 0.0
    near_ties: int = 0
    unsent: int = 0
    reused: int = 0
    forced: int = 0
    completed: int = 0
    wanted: int = 0
    spared: int = 0
    rested: int = 0

    @property
    def wasted(self) -> int:
        """Drafted tokens that were not sent."""
        return max(0, self.proposed - self.drafted)

    @property
    def judged(self) -> int:
        """Drafted tokens that were judged, or overtaken."""
        return sum(self.judged_by_position) + self.overtaken

    @property
    def right(self) -> int:
        """Those of them that were right."""
        return self.accepted + self.overtaken

    def judge(self, offset: int, judged: int, accepted: int) -> None:
        """Count the verdict on a block.

        Args:
            offset: Index in the block of the first token judged now.
            judged: How many are.
            accepted: How many of them became text.
        """
        longer = offset + judged - len(self.judged_by_position)
        self.judged_by_position += [0] * longer
        self.accepted_by_position += [0] * longer
        for i in range(offset, offset + judged):
            self.judged_by_position[i] += 1
        for i in range(offset, offset + accepted):
            self.accepted_by_position[i] += 1
