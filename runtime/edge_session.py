"""One stream on the device's side: drafts and verdicts in, blocks and text out.

No I/O, no model, no clock, no thread. Events are method calls; each returns the actions
to carry out, in order. The same object runs live (:mod:`draftwire.runtime.loop`), under
property tests with any interleaving, and in a simulator.

The sequence is ``prompt + committed + drafted``. Committed tokens are final; drafted ones
are guesses, of which the first ``sent`` are on their way to the verifier. A verdict turns
some drafts into text, and throws the rest away when it contradicts them. Throwing away
drafts that were sent raises the epoch, so that the verifier can tell the dead branch.

A lost link changes nothing in the text. The session waits (or, ``offline="draft"``, goes
on drafting and shows its guesses as such); with a new link it resumes the stream, or opens
a new one whose prompt is the old prompt and text. Guesses that were shown are then judged
like any other, and a :class:`Revise` says from where on the text changed.
"""

from __future__ import annotations

from typing import Sequence

from draftwire.errors import ProtocolError
from draftwire.runtime.actions import (
    Action,
    Counts,
    Draft,
    Emit,
    Finished,
    Revise,
    Send,
    Token,
)
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
    Resume,
    Resumed,
)

__all__ = ["EdgeSession"]

_FINISH = {Finish.LENGTH: "length", Finish.STOP: "stop", Finish.BUDGET: "budget"}


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
        guess_offline: Go on with the draft alone while the link is lost.
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
        guess_offline: bool = False,
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
        self._guess_offline = guess_offline
        self._attached = False
        self._resuming = False
        self._owed = False  # a correction was drawn here, and not acknowledged yet
        self._origin = 0  # committed tokens that the present stream has in its prompt
        self._shown = 0  # drafted tokens that the user has seen as unverified
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

    @property
    def waiting(self) -> bool:
        """True while the verifier owes an answer."""
        return self._attached and (self._sent > 0 or self._resuming or not self._wanted)

    @property
    def unverified(self) -> tuple[int, ...]:
        """Ids that were shown, and are not judged yet."""
        return tuple(p.token for p in self._drafted[: self._shown])

    # ---- events

    def start(self) -> list[Action]:
        """Open the stream and begin to draft."""
        self._attached = True
        return [self._open(), *self._draft(0, self._prompt)]

    def start_offline(self) -> list[Action]:
        """Begin without a link; :meth:`link_up` opens the stream."""
        count = self._room() if self._guess_offline else 0
        self._branch += 1
        self._wanted = count
        return [Draft(self._branch, 0, self._prompt, count)]

    def link_lost(self) -> list[Action]:
        """Stop to wait for verdicts that cannot come."""
        self._attached = self._resuming = False
        if self.done:
            return []
        self._sent = 0
        fresh: list[Action] = []
        if self._guess_offline:
            fresh = self._show(self._drafted[self._shown :])
        self._branch += 1
        guess = self._guess_offline and not self.guessed_all
        self._wanted = self._room() if guess else 0
        length = len(self._prompt) + len(self._committed) + len(self._drafted)
        return [*fresh, Draft(self._branch, length, (), self._wanted)]

    def link_up(self, *, resume: bool) -> list[Action]:
        """Take the stream up again on a new link.

        Args:
            resume: Ask the verifier for the old stream; otherwise open a new one.
        """
        if self.done:
            return []
        self._attached = True
        opened = self.opened
        # A correction drawn here may be unknown to the old stream: then open a new one.
        if resume and opened is not None and opened.session and not self._owed:
            self._resuming = True
            held = len(self._committed) - self._origin
            request = Send(Resume(opened.session, opened.secret, held))
            return [*self._halt(), request]
        self._resuming = False
        self._correction = None
        self._owed = False
        self.opened = None
        self._origin = len(self._committed)
        self._epoch = 0
        return [*self._halt(), self._open(), *self._continue()]

    def drafted(self, branch: int, proposal: Proposal) -> list[Action]:
        """Take in a proposal; it may complete a block."""
        if self.done or branch != self._branch or not self._wanted:
            return []
        self._drafted.append(proposal)
        self._wanted -= 1
        ends = proposal.token in self._stop_ids  # drafting beyond the end is waste
        if not self._attached:
            return self._show([proposal]) + (self._halt() if ends else [])
        block = self._drafted[self._sent :]
        if self._wanted and not ends and not self._controller.enough(block):
            return []
        return [*self._halt(), *self._send_block()]

    @property
    def guessed_all(self) -> bool:
        """True when the draft alone has reached the end of the text."""
        guesses = self._drafted
        ended = bool(guesses) and guesses[-1].token in self._stop_ids
        return ended or self._room() == 0

    def message(self, message: Message) -> list[Action]:
        """Take in a message of this stream.

        Raises:
            ProtocolError: It contradicts what was said before.
        """
        if self.done:
            return []  # still on its way when the stream ended
        if isinstance(message, Opened):
            if message.stream == self._stream:
                self.opened = message
            return []
        if isinstance(message, Resumed):
            return self._resumed(message) if self._resuming else []
        if self.opened is None or self._resuming:
            return []  # still on its way from an earlier stream of this connection
        if isinstance(message, Commit):
            return self._commit(message)
        if isinstance(message, Bye):
            return self._end(message.reason or "cancelled")
        raise ProtocolError(f"{type(message).__name__} does not belong to a stream")

    def stop(self, reason: str) -> list[Action]:
        """End the stream from this side: ``"cancelled"``, ``"deadline"``, ``"stop"``."""
        if self.done:
            return []
        return [Send(Bye(reason)), *self._end(reason)]

    # ---- the inside

    def _open(self) -> Send:
        return Send(
            Open(
                self._stream,
                (*self._prompt, *self._committed),
                self._params.scheme,
                self._params.temperature,
                self._params.top_k,
                self._params.top_p,
                self._params.seed,
                self._limit - len(self._committed),
                self._stop_ids,
            )
        )

    def _resumed(self, message: Resumed) -> list[Action]:
        held = len(self._committed) - self._origin
        if message.position != held:
            raise ProtocolError(
                f"the verifier resumes at {message.position}, not at {held}"
            )
        if held + len(message.tokens) > self._limit - self._origin:
            raise ProtocolError("the verifier sent more tokens than were asked for")
        self._resuming = False
        self._epoch = message.epoch
        self.counts.tokens += len(message.tokens)
        kept = list(message.tokens)
        guessed = [p.token for p in self._drafted[: len(kept)]]
        same = 0
        while same < len(guessed) and guessed[same] == kept[same]:
            same += 1
        tokens = [Token(t, "resumed") for t in kept]
        rest = self._drafted[len(kept) :] if same == len(kept) else []
        actions = self._keep(tokens, rest)
        if message.finish is not Finish.NOT_YET:
            return actions + self._end(_FINISH[message.finish])
        if same == len(kept):
            return actions + self._continue()
        valid = len(self._prompt) + len(self._committed) - len(kept) + same
        return actions + self._draft(valid, kept[same:])

    def _halt(self) -> list[Action]:
        """Stop the drafter, if it is at work."""
        if not self._wanted:
            return []
        self._wanted = 0
        self._branch += 1
        length = len(self._prompt) + len(self._committed) + len(self._drafted)
        return [Draft(self._branch, length, (), 0)]

    def _continue(self) -> list[Action]:
        """Go on with the drafts at hand, or draft some."""
        if self._drafted:
            return self._send_block()
        return self._draft(len(self._prompt) + len(self._committed), ())

    def _show(self, proposals: Sequence[Proposal]) -> list[Action]:
        self._shown += len(proposals)
        tokens = tuple(Token(p.token, "unverified") for p in proposals)
        return [Emit(tokens)] if tokens else []

    def _keep(self, tokens: Sequence[Token], rest: list[Proposal]) -> list[Action]:
        """Make ``tokens`` text and ``rest`` the drafts after it; tell the user."""
        before = len(self._committed)
        shown = [p.token for p in self._drafted[: self._shown]]
        same = 0
        while same < min(len(shown), len(tokens)) and shown[same] == tokens[same].id:
            same += 1
        actions: list[Action] = []
        void = len(shown) > same if same < len(tokens) else len(shown) > same + len(rest)
        if void:
            actions.append(Revise(before + same))
        if tokens:
            actions.append(Emit(tuple(tokens), same))
        self._committed += [t.id for t in tokens]
        self._drafted = rest
        self._sent = 0
        self._shown = 0 if void else max(0, len(shown) - len(tokens))
        return actions

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
        """Send what was drafted and not sent yet, as far as one block goes."""
        self._wanted = 0
        fresh = self._drafted[self._sent : self._sent + self._max_block]
        block = Block(
            self._epoch,
            len(self._committed) - self._origin + self._sent,
            tuple(p.token for p in fresh),
            self._proposer.pack(fresh) if fresh else b"",
            correction=self._correction,
        )
        self._correction = None
        self._sent += len(fresh)
        self.counts.drafted += len(fresh)
        return [Send(block)]

    def _commit(self, commit: Commit) -> list[Action]:
        accepted, judged = commit.accepted, self._sent
        self._owed = False
        if accepted > judged or (accepted and commit.epoch != self._epoch):
            raise ProtocolError(
                f"the verifier accepted {accepted} tokens of branch {commit.epoch}, but "
                f"{judged} of branch {self._epoch} are out"
            )
        kept = [Token(p.token, "accepted") for p in self._drafted[:accepted]]
        if commit.token is not None:
            kept.append(
                Token(commit.token, "bonus" if accepted == judged else "correction")
            )
        elif commit.evidence and accepted < judged:
            self._owed = True
            self._correction = self._proposer.correct(
                self._drafted[accepted],
                commit.evidence,
                len(self._prompt) + len(self._committed) + accepted,
            )
            kept.append(Token(self._correction, "correction"))
        if len(self._committed) + len(kept) > self._limit:
            raise ProtocolError("the verifier sent more tokens than were asked for")
        if not kept and commit.finish is Finish.NOT_YET:
            raise ProtocolError("the verifier answered a block without a token")
        self._count(commit, judged, accepted, len(kept))
        # Guesses beyond an accepted block live on if the bonus is the first of them.
        rest = self._drafted[accepted:] if accepted == judged else []
        extra = [t.id for t in kept[accepted:]]
        if rest and extra:
            rest = rest[1:] if rest[0].token == extra[0] else []
        guessed_right = bool(rest) or (
            bool(extra)
            and accepted == judged < len(self._drafted)
            and self._drafted[accepted].token == extra[0]
        )
        if not guessed_right:
            self.counts.wasted += len(self._drafted) - judged
        if accepted < judged:
            self._epoch = (self._epoch + 1) & 0xFF
        before = len(self._prompt) + len(self._committed)
        actions = self._keep(kept, rest)
        if commit.finish is not Finish.NOT_YET:
            return actions + self._end(_FINISH[commit.finish])
        if rest:
            return actions + self._send_block()
        if guessed_right:
            return actions + self._draft(before + len(kept), ())
        return actions + self._draft(before + accepted, extra)

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
