"""What the device's session asks for, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Union

from draftwire.transport.messages import Message

# What a lane drafts: the main line, or what an unlikely verdict would leave, and that with
# the main line's steps only or without.
Role = Literal["main", "beside", "alone"]
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
    """Tell the drafter to make its sequence ``sequence[:valid] + tokens`` and go on,
    whatever it was doing."""

    branch: int  # tag for the proposals; those of older tags are void
    valid: int  # how much of the drafter's present sequence stays
    tokens: tuple[int, ...]  # what follows
    count: int  # how many tokens to propose; 0 only corrects the sequence
    way: str = "autoregressive"  # to draft them: :mod:`draftwire.runtime.pacing.parallel`
    lane: int = 0  # of the draft model
    role: Role = "main"


@dataclass(frozen=True)
class Emit:
    """Show ``tokens``, which are final unless their kind is ``"unverified"``."""

    tokens: tuple[Token, ...]  # in the order of the text
    shown: int = 0  # so many of them were shown as unverified before, and are final now


@dataclass(frozen=True)
class Revise:
    """Unverified tokens that were shown are void."""

    position: int  # of the first void token, counted from the end of the prompt


@dataclass(frozen=True)
class Finished:
    """The stream is over."""

    reason: str  # ``"length" | "stop" | "deadline" | "budget" | "cancelled"``


Action = Union[Send, Draft, Emit, Revise, Finished]


@dataclass
class Counts:
    """Running totals; every ratio is derived from these."""

    rounds: int = 0  # verdicts received
    forwards: int = 0  # of the target, behind the prompt, as the verifier counts them
    drafted: int = 0  # drafted tokens that were sent
    accepted: int = 0  # those that became text
    tokens: int = 0  # tokens of the text after the prompt
    proposed: int = 0  # tokens that the draft model proposed
    preempted: int = 0  # those that it proposed while a verdict was out
    preempted_used: int = 0  # those among them that outlived that verdict
    overtaken: int = 0  # drafts that the verifier committed before it had judged them
    provisional: int = 0  # hints of early exits
    provisional_right: int = 0  # those that the verdict confirmed
    outcomes: int = 0  # lines that were drafted for other outcomes than the expected one
    outcomes_used: int = 0  # verdicts that found such a line ready
    leaves: int = 0  # second choices that were sent with drafts
    leaves_right: int = 0  # those that became text, with one more token behind each
    sides: int = 0  # drafts that were sent beside a branch, behind another id of it
    sides_taken: int = 0  # branches that began with such drafts
    # ``[i]``: blocks whose draft ``i`` (from 0) was accepted
    accepted_by_position: list[int] = field(default_factory=list)
    # ``[i]``: blocks whose draft ``i`` was sent and judged
    judged_by_position: list[int] = field(default_factory=list)
    queue_s: float = 0.0  # seconds of queueing, told by the verifier
    compute_s: float = 0.0  # seconds of forwards, told by the verifier
    near_ties: int = 0  # positions that the target's numerics cannot tell, as it says
    unsent: int = 0  # ids of the prompt that were named instead of sent
    reused: int = 0  # ids of the prompt that the target had read already
    forced: int = 0  # tokens of the text that a grammar left no choice about
    completed: int = 0  # tokens that complete a structure because the deadline came first
    wanted: int = 0  # drafts that the verifier, which drafts itself, had need of
    spared: int = 0  # those of them that this device's drafts have saved it
    rested: int = 0  # tokens that came while the device did not draft, because of that

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
        """Count the verdict on ``judged`` drafts of a block, the first of them number
        ``offset``."""
        longer = offset + judged - len(self.judged_by_position)
        self.judged_by_position += [0] * longer
        self.accepted_by_position += [0] * longer
        for i in range(offset, offset + judged):
            self.judged_by_position[i] += 1
        for i in range(offset, offset + accepted):
            self.accepted_by_position[i] += 1
