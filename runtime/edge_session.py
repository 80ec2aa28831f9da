"""One stream on the device's side: drafts and verdicts in, blocks and text out.

No I/O, no model, no clock, no thread. Events are method calls; each returns the actions
to carry out, in order. The same object runs live (:mod:`draftwire.runtime.loop`), under
property tests with any interleaving, and in a simulator.

The sequence is ``prompt + committed + drafted``. Committed tokens are final; drafted ones
are guesses, of which the first ``sent`` are on their way to the verifier. A verdict turns
some drafts into text, and throws the rest away when it contradicts them. Throwing away
drafts that were sent raises the epoch, so that the verifier can tell the dead branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Sequence, Union

from draftwire.errors import ProtocolError
from draftwire.runtime.controller import Controller
from draftwire.sampling import Proposal, Proposer, SamplingParams
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Finish,
    Message,
    Open,
    Opened,
)

__all__ = [
    "Action",
    "Counts",
    "Draft",
    "EdgeSession",
    "Emit",
    "Finished",
    "Send",
    "Token",
]

TokenKind = Literal["accepted", "correction", "bonus"]
_FINISH = {Finish.LENGTH: "length", Finish.STOP: "stop", Finish.BUDGET: "budget"}


@dataclass(frozen=True)
class Token:
    """One final token.

    Attributes:
        id: Token id.
        kind: ``"accepted"`` (drafted here), ``"correction"`` or ``"bonus"`` (the
            verifier's own).
    """

    id: int
    kind: TokenKind


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
    """

    branch: int
    valid: int
    tokens: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Emit:
    """Show ``tokens`` to the user: they are final."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Finished:
    """The stream is over.

    Attributes:
        reason: ``"length" | "stop" | "deadline" | "budget" | "cancelled"``.
    """

    reason: str


Action = Union[Send, Draft, Emit, Finished]


@dataclass
class Counts:
    """Running totals; every ratio is derived from these.

    Attributes:
        rounds: Verdicts received.
        drafted: Drafted tokens that were sent.
        accepted: Those that became text.
        tokens: Tokens of the text after the prompt.
        wasted: Drafted tokens thrown away before they were sent.
        accepted_by_position: ``[i]``: blocks whose draft ``i`` (from 0) was accepted.
        judged_by_position: ``[i]``: blocks whose draft ``i`` was sent and judged.
        queue_s: Seconds of queueing, told by the verifier.
        compute_s: Seconds of forwards, told by the verifier.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    wasted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    judged_by_position: list[int] = field(default_factory=list)
    queue_s: float = 0.0
    compute_s: float = 0.0


class EdgeSession:
    """State machine of one stream.

    Args:
        prompt: Token ids, at least one.
        params: Sampling.
        proposer: Device half of the scheme; used only to pack evidence and to draw
            corrections where the scheme leaves them to the device.
        controller: How far to draft.
        max_new_tokens: At most so many tokens after the prompt.
        context: Longest sequence both models can hold.
        stop_ids: Ids that end the text.
        stream: Number of the stream on its connection.
        max_block: The verifier's limit for one block.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        params: SamplingParams,
        proposer: Proposer,
        controller: Controller,
        max_new_tokens: int,
        context: int,
        stop_ids: Sequence[int] = (),
        stream: int = 1,
        max_block: int = 255,
    ) -> None:
        self._prompt = tuple(prompt)
        self._params = params
        self._proposer = proposer
        self._controller = controller
        self._limit = min(max_new_tokens, context - len(self._prompt))
        self._stop_ids = tuple(stop_ids)
        self._stream = stream
        self._max_block = max_block
        self._committed: list[int] = []
        self._drafted: list[Proposal] = []
        self._sent = 0
        self._epoch = 0
        self._branch = 0
        self._wanted = 0
        self._correction: int | None = None
        self.opened: Opened | None = None
        self.finish: str | None = None
        self.counts = Counts()

    @property
    def done(self) -> bool:
        """True when the stream is over."""
        return self.finish is not None

    @property
    def committed(self) -> tuple[int, ...]:
        """Final ids after the prompt."""
        return tuple(self._committed)

    # ---- events

    def start(self) -> list[Action]:
        """Open the stream and begin to draft."""
        request = Open(
            self._stream,
            self._prompt,
            self._params.scheme,
            self._params.temperature,
            self._params.top_k,
            self._params.top_p,
            self._params.seed,
            self._limit,
            self._stop_ids,
        )
        return [Send(request), *self._draft(0, self._prompt)]

    def drafted(self, branch: int, proposal: Proposal) -> list[Action]:
        """Take in a proposal; it may complete a block."""
        if self.done or branch != self._branch or not self._wanted:
            return []
        self._drafted.append(proposal)
        self._wanted -= 1
        block = self._drafted[self._sent :]
        ends = proposal.token in self._stop_ids  # drafting beyond the end is waste
        if self._wanted and not ends and not self._controller.enough(block):
            return []
        return self._send_block()

    def message(self, message: Message) -> list[Action]:
        """Take in a message of this stream.

        Raises:
            ProtocolError: It contradicts what was said before.
        """
        if isinstance(message, Opened):
            if message.stream == self._stream:
                self.opened = message
            return []
        if self.opened is None:
            return []  # still on its way from an earlier stream of this connection
        if isinstance(message, Commit):
            return [] if self.done else self._commit(message)
        if isinstance(message, Bye):
            return self._end(message.reason or "cancelled")
        raise ProtocolError(f"{type(message).__name__} does not belong to a stream")

    def stop(self, reason: str) -> list[Action]:
        """End the stream from this side: ``"cancelled"``, ``"deadline"``, ``"stop"``."""
        if self.done:
            return []
        return [Send(Bye(reason)), *self._end(reason)]

    # ---- the inside

    def _end(self, reason: str) -> list[Action]:
        self.finish = reason
        self._wanted = 0
        self._branch += 1
        return [Draft(self._branch, 0, (), 0), Finished(reason)]

    def _room(self) -> int:
        """Return how many drafts still make sense.

        The verifier adds one token to what it accepts, so the last one needs no draft.
        """
        left = self._limit - len(self._committed) - 1
        return max(0, left - len(self._drafted))

    def _draft(self, valid: int, tokens: Sequence[int]) -> list[Action]:
        count = min(self._controller.limit(), self._max_block, self._room())
        self._branch += 1
        self._wanted = count
        draft = Draft(self._branch, valid, tuple(tokens), count)
        if count:
            return [draft]
        return [draft, *self._send_block()]  # an empty block asks for the last token

    def _send_block(self) -> list[Action]:
        self._wanted = 0
        fresh = self._drafted[self._sent :]
        block = Block(
            self._epoch,
            len(self._committed) + self._sent,
            tuple(p.token for p in fresh),
            self._proposer.pack(fresh) if fresh else b"",
            correction=self._correction,
        )
        self._correction = None
        self._sent = len(self._drafted)
        self.counts.drafted += len(fresh)
        return [Send(block)]

    def _commit(self, commit: Commit) -> list[Action]:
        accepted = commit.accepted
        if accepted > self._sent or (accepted and commit.epoch != self._epoch):
            raise ProtocolError(
                f"the verifier accepted {accepted} tokens of branch {commit.epoch}, but "
                f"{self._sent} of branch {self._epoch} are out"
            )
        judged = self._sent
        kept = [p.token for p in self._drafted[:accepted]]
        shown = [Token(t, "accepted") for t in kept]
        if commit.token is not None:
            kind: TokenKind = "correction" if accepted < judged else "bonus"
            kept.append(commit.token)
            shown.append(Token(commit.token, kind))
        elif commit.evidence and accepted < judged:
            drawn = self._proposer.correct(
                self._drafted[accepted],
                commit.evidence,
                len(self._prompt) + len(self._committed) + accepted,
            )
            self._correction = drawn
            kept.append(drawn)
            shown.append(Token(drawn, "correction"))
        if len(self._committed) + len(kept) > self._limit:
            raise ProtocolError("the verifier sent more tokens than were asked for")
        self._count(commit, judged, accepted, len(kept))
        actions: list[Action] = [Emit(tuple(shown))] if shown else []
        before = len(self._prompt) + len(self._committed)
        self._committed += kept
        if commit.finish is not Finish.NOT_YET:
            return actions + self._end(_FINISH[commit.finish])
        if not kept:
            raise ProtocolError("the verifier answered a block without a token")
        return actions + self._go_on(before, kept, accepted, judged)

    def _go_on(
        self, before: int, kept: list[int], accepted: int, judged: int
    ) -> list[Action]:
        if accepted < judged:
            self._epoch = (self._epoch + 1) & 0xFF
        self.counts.wasted += max(0, len(self._drafted) - judged)
        self._drafted = []
        self._sent = 0
        return self._draft(before + accepted, kept[accepted:])

    def _count(self, commit: Commit, judged: int, accepted: int, new: int) -> None:
        counts = self.counts
        counts.rounds += 1
        counts.accepted += accepted
        counts.tokens += new
        counts.queue_s += commit.queue_s
        counts.compute_s += commit.compute_s
        self._controller.judged(judged, accepted)
        longer = judged - len(counts.judged_by_position)
        if longer > 0:
            counts.judged_by_position += [0] * longer
            counts.accepted_by_position += [0] * longer
        for i in range(judged):
            counts.judged_by_position[i] += 1
        for i in range(accepted):
            counts.accepted_by_position[i] += 1
