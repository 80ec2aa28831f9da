"""One stream on the cloud's side: blocks in, work for the model and verdicts out.

No I/O, no model, no clock: the service feeds messages and logits, and sends what comes
back. The token list is the truth; the KV cache of the slot is only a copy of a prefix of
it, which ``Work.start`` rewinds as needed.

Branches. The device numbers its branches (``epoch``) and raises the number whenever it
throws away drafts that it had sent. After a rejection the verifier expects the next
number, so blocks of the dead branch that are still on their way are recognised and
dropped. After an accepted block the verifier commits one more token (the bonus), which
the device may have guessed already: a block may therefore start inside the committed
text; where it repeats that text it goes on, where it differs its branch is dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from draftwire.errors import ConfigError, ProtocolError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.transport.messages import Block, Commit, Finish, Message, Open, Resumed

__all__ = ["StreamCounts", "TargetSession", "Work"]


@dataclass(frozen=True)
class Work:
    """What the model has to do next for one stream.

    Attributes:
        start: Position of ``tokens[0]`` in the slot; what the cache holds from there on
            is void.
        tokens: ``(n,)`` int64 ids to run.
        rows: How many of the last logits rows are wanted.
        prefill: True for context that is only read (``rows`` is 0).
        drafted: The last ``drafted`` of ``tokens`` are under judgement.
        evidence: What the device sent for them.
    """

    start: int
    tokens: np.ndarray
    rows: int
    prefill: bool
    drafted: int = 0
    evidence: bytes = b""


@dataclass
class StreamCounts:
    """Running totals of one stream.

    Attributes:
        drafted: Drafted tokens that were judged.
        accepted: Those that were kept.
        discarded: Drafted tokens that arrived on a dead branch.
        forwards: Forwards after the prefill.
        emitted: Tokens committed after the prompt.
    """

    drafted: int = 0
    accepted: int = 0
    discarded: int = 0
    forwards: int = 0
    emitted: int = 0


@dataclass
class _Segment:
    tokens: list[int]
    evidence: bytes


class TargetSession:
    """State machine of one stream.

    Args:
        request: The device's :class:`Open`.
        vocab_size: Of the connection.
        context: Longest sequence of the target.
        max_block: Most drafted tokens that may wait for judgement.

    Raises:
        ConfigError: The request cannot be served (prompt too long, scheme unknown...);
            its sentence goes to the device.
    """

    def __init__(
        self, request: Open, *, vocab_size: int, context: int, max_block: int
    ) -> None:
        if not request.prompt:
            raise ConfigError("the prompt is empty", hint="send at least one token")
        if len(request.prompt) >= context:
            raise ConfigError(
                f"the prompt has {len(request.prompt)} tokens, the target's context is "
                f"{context} and must hold at least one more",
                hint="shorten the prompt",
            )
        if request.max_new_tokens < 1:
            raise ConfigError("max_new_tokens must be at least 1")
        self.params = SamplingParams(
            request.scheme,
            request.temperature,
            request.top_k,
            request.top_p,
            request.seed,
        )
        self._decider = make_decider(self.params, vocab_size)
        self._vocab_size = vocab_size
        self._max_block = max_block
        self._stops = frozenset(request.stop_ids)
        self._tokens = list(request.prompt)
        self._prompt = len(request.prompt)
        self._end = min(context, self._prompt + request.max_new_tokens)
        self._cached = 0
        self._pending: list[_Segment] = []
        self._partial: _Segment | None = None
        self._epoch = 0
        self._busy = False
        self._judging = 0
        self._awaits_correction = False
        self.finish = Finish.NOT_YET
        self.counts = StreamCounts()

    @property
    def done(self) -> bool:
        """True when the stream has ended."""
        return self.finish is not Finish.NOT_YET

    @property
    def epoch(self) -> int:
        """Branch number of the blocks that would be judged now."""
        return self._epoch

    def committed(self, position: int = 0) -> tuple[int, ...]:
        """Return the committed ids from ``position`` (after the prompt) on."""
        return tuple(self._tokens[self._prompt + position :])

    # ---- a lost link

    def detach(self, *, cached: bool) -> None:
        """The link is gone: forget what was on its way, keep the text.

        Work that was handed out must not be completed any more.

        Args:
            cached: True when the slot keeps its KV rows; False when it is given back,
                so that the text has to be read again after :meth:`resume`.
        """
        self._busy = False
        self._judging = 0
        self._drop_pending()
        # A correction that the device owes is drawn again: noise belongs to positions,
        # so the same draft meets the same verdict there.
        self._awaits_correction = False
        if not cached:
            self._cached = 0
        self._cached = min(self._cached, len(self._tokens) - 1)

    def resume(self, position: int) -> Resumed:
        """Go on with a device that holds ``position`` committed tokens.

        Raises:
            ProtocolError: It claims more text than there is.
        """
        if position > len(self._tokens) - self._prompt:
            raise ProtocolError(
                f"the device holds {position} tokens of a text of "
                f"{len(self._tokens) - self._prompt}"
            )
        self._epoch = (self._epoch + 1) & 0xFF
        return Resumed(self._epoch, position, self.committed(position), self.finish)

    # ---- messages in

    def receive(self, block: Block) -> list[Message]:
        """Take in a block.

        Returns:
            Messages to send at once (rarely any).

        Raises:
            ProtocolError: The block cannot follow what was sent before.
        """
        if self.done:
            return []
        ahead = (block.epoch - self._epoch) & 0xFF
        if ahead >= 128:  # serial numbers: behind, so its branch is dead
            self.counts.discarded += len(block.tokens)
            return []
        if ahead:
            self._epoch = block.epoch
            self._drop_pending()
        if self._awaits_correction:
            return self._take_correction(block)
        if block.correction is not None:
            raise ProtocolError("a correction that was not asked for")
        self._append(block)
        return []

    def _take_correction(self, block: Block) -> list[Message]:
        if block.correction is None:
            raise ProtocolError("the device owes a correction, and sent none")
        if block.base != len(self._tokens) - self._prompt + 1:
            raise ProtocolError(f"a correction at the wrong place, base {block.base}")
        self._awaits_correction = False
        self._tokens.append(block.correction)
        self.counts.emitted += 1
        self._check_end()
        if self.done:
            return [Commit(self._epoch, 0, None, self.finish)]
        self._append(block)
        return []

    def _append(self, block: Block) -> None:
        committed = len(self._tokens) - self._prompt
        waiting = self._judging + sum(len(s.tokens) for s in self._pending)
        if self._partial is not None:
            waiting += len(self._partial.tokens)
        expected = committed + waiting
        if block.base > expected:
            raise ProtocolError(
                f"a block at {block.base} leaves a gap: {expected} comes next"
            )
        if waiting and block.base < expected:
            raise ProtocolError(f"a block at {block.base} repeats drafts, not text")
        if block.base < 0:
            raise ProtocolError("a block inside the prompt")
        tokens = list(block.tokens)
        known = committed - block.base if not waiting else 0
        if known > 0:
            if block.evidence:
                raise ProtocolError("a block with evidence must start at the text's end")
            at = self._prompt + block.base
            same = self._tokens[at : at + len(tokens)]
            if tokens[: len(same)] != same:
                self._kill_branch(len(tokens))
                return
            tokens = tokens[len(same) :]
        if waiting + len(tokens) > self._max_block:
            raise ProtocolError(
                f"{waiting + len(tokens)} drafted tokens wait for judgement, "
                f"the limit is {self._max_block}"
            )
        if block.evidence and expected + len(tokens) >= self._end - self._prompt:
            raise ProtocolError("drafts with evidence beyond the end of the text")
        # Evidence of consecutive tokens is the concatenation of their evidence.
        segment = self._partial or _Segment([], b"")
        segment.tokens += tokens
        segment.evidence += block.evidence
        if block.more:
            self._partial = segment
        else:
            self._partial = None
            if segment.tokens or not self._pending:
                self._pending.append(segment)

    def _kill_branch(self, lost: int) -> None:
        self.counts.discarded += lost
        self._drop_pending()
        self._epoch = (self._epoch + 1) & 0xFF

    def _drop_pending(self) -> None:
        for segment in self._pending:
            self.counts.discarded += len(segment.tokens)
        if self._partial is not None:
            self.counts.discarded += len(self._partial.tokens)
        self._pending.clear()
        self._partial = None

    # ---- work for the model

    def poll(self) -> Work | None:
        """Return what to run next, or None while there is nothing to do.

        One piece of work at a time: the next one comes after :meth:`complete`.
        """
        if self.done or self._busy:
            return None
        if self._cached < len(self._tokens) - 1 and not self._awaits_correction:
            tail = self._tokens[self._cached : len(self._tokens) - 1]
            if len(tail) > 1 or not self._pending:
                self._busy = True
                return Work(self._cached, np.array(tail, np.int64), 0, prefill=True)
        if not self._pending or self._awaits_correction:
            return None
        # What has come meanwhile is judged together.
        taken = _Segment([], b"")
        for segment in self._pending:
            taken.tokens += segment.tokens
            taken.evidence += segment.evidence
        self._pending.clear()
        # The last position of the stream needs no draft beyond it.
        room = self._end - len(self._tokens) - 1
        drafted = taken.tokens if taken.evidence else taken.tokens[: max(0, room)]
        self._busy = True
        self._judging = len(taken.tokens)
        tail = self._tokens[self._cached :]
        return Work(
            self._cached,
            np.array(tail + drafted, np.int64),
            len(drafted) + 1,
            prefill=False,
            drafted=len(drafted),
            evidence=taken.evidence,
        )

    def complete(
        self,
        work: Work,
        logits: np.ndarray,
        *,
        queue_s: float = 0.0,
        compute_s: float = 0.0,
    ) -> list[Message]:
        """Take in what the model made of ``work``.

        Args:
            work: From :meth:`poll`.
            logits: ``(rows, vocab)`` float32, at least the connection's vocabulary wide.
            queue_s: Seconds that the work waited.
            compute_s: Seconds of the forward.

        Returns:
            Messages to send: one commit, or nothing after a prefill.

        Raises:
            ProtocolError: The block's evidence is not valid.
        """
        self._busy = False
        self._judging = 0
        if work.prefill:
            self._cached = work.start + len(work.tokens)
            return []
        if self.done:
            return []
        self.counts.forwards += 1
        before = len(self._tokens)
        drafted = [int(t) for t in work.tokens[len(work.tokens) - work.drafted :]]
        decision = self._decider.decide(
            drafted, work.evidence, logits[:, : self._vocab_size], before
        )
        self.counts.drafted += len(drafted)
        kept = drafted[: decision.accepted]
        if decision.token >= 0:
            kept = [*kept, decision.token]
        kept = kept[: self._first_stop(kept)][: self._end - before]
        accepted = min(len(kept), decision.accepted)
        token = kept[accepted] if len(kept) > accepted else None
        self.counts.accepted += accepted
        self.counts.emitted += len(kept)
        self._tokens += kept
        # The cache holds the accepted drafts, but never the token after them.
        self._cached = before + accepted
        self._check_end()
        epoch = self._epoch
        owes = decision.token < 0 and accepted == decision.accepted and not self.done
        self._awaits_correction = owes
        if decision.accepted < len(drafted) or owes:
            self._kill_branch(0)
        elif token is not None:
            self._match_bonus(token)
        return [
            Commit(
                epoch,
                accepted,
                token,
                self.finish,
                queue_s,
                compute_s,
                decision.evidence if owes else b"",
            )
        ]

    def _match_bonus(self, token: int) -> None:
        """Compare the bonus with drafts that arrived while the model ran."""
        segments = [s for s in (*self._pending, self._partial) if s is not None]
        waiting = [s for s in segments if s.tokens]
        if not waiting:
            return
        if waiting[0].tokens[0] == token and not waiting[0].evidence:
            del waiting[0].tokens[0]
        else:
            self._kill_branch(0)

    def _first_stop(self, tokens: Sequence[int]) -> int:
        for i, token in enumerate(tokens):
            if token in self._stops:
                return i + 1
        return len(tokens)

    def _check_end(self) -> None:
        if len(self._tokens) > self._prompt and self._tokens[-1] in self._stops:
            self.finish = Finish.STOP
        elif len(self._tokens) >= self._end:
            self.finish = Finish.LENGTH
