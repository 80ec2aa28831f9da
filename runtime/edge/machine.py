"""One stream on the device's side: drafts and verdicts in, blocks and text out.

No I/O, no model, no clock, no thread. Events are method calls; each returns the actions
to carry out, in order. The same object runs live, under generated
histories with any interleaving, and in a simulator: :mod:`draftwire.runtime.driver`.

The sequence is ``prompt + committed + drafts``. Committed tokens are final; drafts are
guesses (:class:`~.lines.Lines`), and what the verifier has been sent of them is in flight
(:class:`~.in_flight.InFlight`). A verdict turns some drafts into text, and throws those
away that contradict it. Throwing away drafts that were sent begins a new branch with a
new epoch, so that the verifier can tell the dead one.

After every event the session asks itself two questions: may a block leave
(``_dispatch``), and what should the drafter do now (``_steer``). What they may do while a
verdict is out is the stream's :class:`~draftwire.runtime.edge.mode.Mode`.

A lost link changes nothing in the text. The session waits (or, ``offline="draft"``, goes
on drafting and shows its guesses as such); with a new link it resumes the stream, or opens
a new one whose prompt is the old prompt and text. Guesses that were shown are then judged
like any other, and a :class:`Revise` says from where on the text changed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Container, Sequence

from draftwire.errors import ProtocolError
from draftwire.runtime.edge.actions import Action, Counts, Emit, Finished, Role, Send, Token
from draftwire.runtime.edge.drafter_view import DrafterView
from draftwire.runtime.edge.in_flight import InFlight, common
from draftwire.runtime.edge.lines import SECOND, Guesses, Line, Lines, drawn
from draftwire.runtime.edge.preemption import Preemption
from draftwire.runtime.edge.rest import Rest
from draftwire.runtime.edge.verdict import read_verdict, tally, told
from draftwire.runtime.greeting import open_of
from draftwire.runtime.pacing.controller import HYBRID, PARALLEL
from draftwire.runtime.pacing.ways import Ceiling
from draftwire.sampling import Proposal, card_of
from draftwire.transport import states
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Finish,
    Message,
    Opened,
    Progress,
    Provisional,
    Resume,
    Resumed,
)
from draftwire.transport.text_hash import TextHash

if TYPE_CHECKING:
    from draftwire.runtime.driver import StreamSpec

_FINISH = {Finish.LENGTH: "length", Finish.STOP: "stop", Finish.BUDGET: "budget"}
_SPAN = 256  # ids of a block with those that are forced in it; the last may bring more
# A race prepares an outcome so much likelier than that its next draft is of use, so deep.
_LIKELIER, _DEEP = 16.0, 8
_SENT = 4.0  # likewise, where one forward makes several drafts of it, and these go up
# On a lane of its own, so much likelier for each part of a step that the lane adds; and
# where that draft is hardly of use, so likely for each part.
_WORTH, _FLOOR = 4.0, 0.1
# Tokens that a leaf should bring: where bytes count, and where only time does; its bytes.
_LEAST, _LEAST_SOON, _LEAF_BYTES = 0.2, 0.002, 4
_SIDE_BYTES = 16  # of a frame with drafts beside the branch, about, before its ids
_REASONS = ("cancelled", "deadline", "stop", "budget", "error")  # of a goodbye


class State(enum.Enum):
    """Where a stream is, in the words of PROTOCOL.md."""

    __hash__ = object.__hash__  # members are looked up at every event: that of Enum is slow

    IDLE = "not begun"
    OPENING = "it drafts, and blocks may leave already"
    DRAFTING = "the verifier owes nothing"
    WAITING = "the verifier owes a verdict"
    LOST = "no link: what is drafted waits, or is shown as guessed"
    RESUMING = "nothing else is sent until the answer"
    DONE = "the text is over"


IDLE, OPENING, DRAFTING, WAITING, LOST, RESUMING, DONE = State
_GOING = frozenset({DRAFTING, WAITING})

# ``<`` is received, ``>`` is sent. A part of a block asks for nothing yet; a verifier that
# races, or streams without drafts, owes a verdict all the time.
TABLE: states.Table[State] = {
    (IDLE, "> open"): OPENING,
    (IDLE, "no link"): LOST,
    (IDLE, "end"): DONE,
    (OPENING, "> block"): OPENING,
    (OPENING, "< opened"): _GOING,
    (OPENING, "< error, > open"): OPENING,
    (OPENING, "link lost"): LOST,
    (OPENING, "end"): DONE,
    (DRAFTING, "> block"): _GOING,
    (DRAFTING, "< commit"): _GOING,
    (DRAFTING, "< error, > open"): OPENING,
    (DRAFTING, "link lost"): LOST,
    (DRAFTING, "end"): DONE,
    (WAITING, "> block"): _GOING,
    (WAITING, "< commit"): _GOING,
    (WAITING, "< error, > open"): OPENING,
    (WAITING, "link lost"): LOST,
    (WAITING, "end"): DONE,
    (LOST, "> open"): OPENING,
    (LOST, "> resume"): RESUMING,
    (LOST, "end"): DONE,
    (RESUMING, "< resumed"): _GOING,
    (RESUMING, "< error stream, > open"): OPENING,
    (RESUMING, "link lost"): LOST,
    (RESUMING, "end"): DONE,
}
_OPEN = {IDLE: "> open", LOST: "> open", RESUMING: "< error stream, > open"}


class _Alone(enum.Enum):
    """Whether the verifier goes on without drafts, and whether it knows."""

    NO = "drafts are wanted"
    ASKED = "none are wanted; the verifier has not been told"
    YES = "the verifier streams by itself"
    ENDING = "drafts are wanted again; the verifier has not been told"


@dataclass
class _Hand:
    """The block in hand: drafts of the main line from index ``start`` on."""

    start: int = 0  # see above
    quota: int | None = None  # the length it shall have; None before it begins
    ready: bool = False  # it may leave


@dataclass
class _Correction:
    """A token that was drawn here, and that the verifier has not built on yet."""

    token: int
    sent: bool = False


def _first(proposals: Sequence[Proposal], most: int) -> Sequence[Proposal]:
    """Return the first ``most`` drafts, each with what is forced behind it."""
    end = taken = 0
    for end, proposal in enumerate(proposals):
        if not proposal.forced:
            if taken == most or end >= _SPAN:
                return proposals[:end]
            taken += 1
    return proposals


class EdgeSession:
    """State machine of one stream.

    Beyond ``spec.draft_context`` the target goes on alone. Its proposer is used only to
    pack evidence and to draw corrections where the scheme leaves them to the device.
    """

    def __init__(self, spec: StreamSpec, lanes: int = 1) -> None:
        mode, rules = spec.mode, spec.grammar
        self._spec, self._mode, self._grammar = spec, mode, rules
        self._prompt = tuple(spec.prompt)
        self._proposer, self._controller = spec.proposer, spec.controller
        self._limit = min(spec.max_new_tokens, spec.context - len(self._prompt))
        self._stop_ids = tuple(spec.stop_ids)
        # Behind the text.
        self._guide = None if rules is None else rules.guide(len(self._prompt))
        self._max_block = self._max_waiting = 255
        self._leaves = self._trees = False
        self._logprobs = spec.logprobs
        self._free = card_of(spec.params.scheme).any_draft  # drafts may come from anywhere
        # Without a bonus the next block of a pipeline need not guess it.
        self._ceiling = Ceiling(mode.max_forwards)
        self._racing = mode.racing
        self._told = mode.racing  # what the verifier believes of that
        self._bonus = self._free or (mode.pipeline == 1 and not mode.racing)
        self._committed: list[int] = []
        self._hash = TextHash(self._prompt)
        self._lines = Lines(3 + lanes)
        self._wire = InFlight(whole=not self._free)
        self._hand = _Hand()
        self._last_limit = 1
        self._alone = _Alone.NO
        # Lanes of the draft model: that of the main line first.
        self._drafters = [DrafterView(self._prompt, number) for number in range(lanes)]
        known = spec.draft_context
        self._draft_context = spec.context if known is None else known
        self._correction: _Correction | None = None
        self._guess_offline = spec.offline == "draft"
        self.held = 0  # ids of the prompt that the verifier is said to have still
        self._origin = 0  # committed tokens that the present stream has in its prompt
        self._forwards = 0  # of the target, for the streams before the present one
        self._ties = 0  # likewise
        self._guesses = Guesses()
        self._rest = Rest()
        self._told_before = 0, 0  # of a draft beside the target, in earlier streams
        self.state = IDLE
        self.has_engine = True
        self.hushed = False  # the board shall wait for news
        self.more = 0  # drafts that the draft's last forward still has
        self.opened: Opened | None = None
        self.finish: str | None = None
        self.counts = Counts()
        self._preemption = Preemption(
            self._lines,
            self._wire,
            self.counts,
            mode.preempt,
            self._completed,
            spec.controller.trust,
        )

    @property
    def done(self) -> bool:
        return self.state is DONE

    @property
    def last_draft(self) -> int:
        """No draft makes sense behind so many ids of the sequence."""
        return min(len(self._prompt) + self._limit - 1, self._draft_context)

    @property
    def committed(self) -> tuple[int, ...]:
        """Final ids after the prompt."""
        return tuple(self._committed)

    @property
    def waiting(self) -> bool:
        """True while the verifier owes an answer."""
        if self.state in (RESUMING, WAITING):
            return True
        owed = self.state is OPENING and (self._in_flight > 0 or self._streams)
        return owed or (self.state in (OPENING, DRAFTING) and not self._drafter.wanted)

    @property
    def _drafter(self) -> DrafterView:
        return self._drafters[0]

    @property
    def drafting(self) -> bool:
        return any(drafter.wanted > 0 for drafter in self._drafters)

    @property
    def ahead(self) -> int:
        """Drafts beyond the text."""
        return len(self._lines.main)

    @property
    def out(self) -> tuple[int, int]:
        """The branch that the verifier has, and how many of its ids are not judged."""
        return self._wire.epoch, len(self._wire.tokens)

    @property
    def unverified(self) -> tuple[int, ...]:
        """Ids that were shown, and are not judged yet."""
        return tuple(self._guesses.ids)

    @property
    def guessed_all(self) -> str | None:
        """Why the text is over, when the draft alone has reached its end; else None."""
        main = self._lines.main
        if main.ends(self._stop_ids) and len(main) <= self._limit - len(self._committed):
            return "stop"
        return None if self._draftable(main) else "length"

    @property
    def _believed_alone(self) -> bool:
        return self._alone in (_Alone.YES, _Alone.ENDING)

    @property
    def _streams(self) -> bool:
        return self._racing or self._believed_alone

    def _enter(self, event: str, to: State) -> None:
        self.state = states.after(TABLE, self.state, event, to)

    def _settle(self, event: str) -> None:
        owed = self._in_flight > 0 or self._streams
        self._enter(event, WAITING if owed else DRAFTING)

    # ---- events

    def start(self) -> list[Action]:
        """Open the stream and begin to draft."""
        self._begin()
        request = self._open()
        forced = self._begin_text()
        if self.done:  # a grammar with one text: nobody is asked
            return forced
        return [request, *forced, *self._go_on()]

    def start_offline(self) -> list[Action]:
        """Begin without a link; :meth:`link_up` opens the stream."""
        self._begin()
        self._enter("no link", LOST)
        forced = self._begin_text()
        return forced if self.done else [*forced, *self._steer()]

    def link_lost(self) -> list[Action]:
        """Stop to wait for verdicts that cannot come."""
        if self.done or self.state is LOST:
            return []
        self._enter("link lost", LOST)
        self._forget_wire(self._wire.epoch)
        fresh = self._guess() if self._guess_offline else []
        return [*fresh, *self._steer()]

    def _guess(self) -> list[Action]:
        """Show what of the drafts is not shown yet, as far as a text may go."""
        room, shown = self._limit - len(self._committed), len(self._guesses.ids)
        return self._guesses.show(self._lines.main.ids[shown:room])

    def link_up(self, *, resume: bool) -> list[Action]:
        """Take the stream up again on a new link; unless ``resume``, as a new one."""
        if self.done:
            return []
        opened = self.opened
        # A correction drawn here may be unknown to the old stream: then open a new one.
        if resume and opened is not None and opened.id and not self._correction:
            self._enter("> resume", RESUMING)
            held = len(self._committed) - self._origin
            request = Send(Resume(opened.id, opened.secret, held, self._hash.digest()))
            return [*self._halt(), request]
        if over := self._over:
            void = self._guesses.settle((), len(self._committed), ())
            return [*void, *self._end(over)]
        self._correction = None
        self.opened = None
        self._origin = len(self._committed)
        self._forwards = self.counts.forwards
        self._ties = self.counts.near_ties
        self._told_before = self.counts.wanted, self.counts.spared
        self._forget_wire(0)
        return [self._open(), *self._go_on()]

    @property
    def _over(self) -> str | None:
        """Why the text is over, where a correction drawn here is its last token and no
        verifier has said so; else None."""
        text = self._committed
        path = None if self._guide is None else self._guide.path()
        ended = path is not None and path.ended and not path.ids
        if ended or (text and text[-1] in self._stop_ids):
            return "stop"
        return "length" if len(text) >= self._limit else None

    def limits(self, max_block: int, max_waiting: int, also: Container[str] = ()) -> None:
        """Note what the verifier bears: tokens of a block, and of all that wait; and what
        it judges too: second choices (``"leaves"``), drafts behind them (``"trees"``)."""
        self._max_block, self._max_waiting = max_block, max_waiting
        self._leaves = "leaves" in also and self._guide is None
        self._trees = "trees" in also and self._guide is None and self._free

    def engine(self, *, mine: bool) -> list[Action]:
        """Draft from now on, or leave the draft model to others."""
        if mine is self.has_engine:
            return []
        self.has_engine = mine
        if self.done or self.state is IDLE:
            return []
        self._hand.quota = None
        return self._go_on()

    def drafted(self, branch: int, proposal: Proposal, lane: int = 0) -> list[Action]:
        """Take in a proposal; it may complete a block."""
        (drafter,) = [view for view in self._drafters if view.lane == lane]
        if self.done or not drafter.takes(branch):
            return []
        drafter.took(proposal)
        self.counts.proposed += 1
        # Drafting beyond the end is waste.
        ends = proposal.last or proposal.token in self._stop_ids
        if self.state is LOST:
            over = ends or not self._draftable(self._lines.main)
            return self._guess() + (drafter.halt() if over else [])
        if self._in_flight:
            self._preemption.drafted()
        if drafter is not self._drafter:
            return self._steer()
        main, hand = self._lines.main, self._hand
        if drafter.line is main and hand.quota is not None:
            block = main.proposals[hand.start :]
            full = drawn(block) >= hand.quota or self._draftable(main) == 0 or ends
            full |= len(block) >= _SPAN
            hand.ready = full or self._enough(block)
            more = drafter.wanted and not (hand.ready or self._mode.batch)
            if more and self._alone is _Alone.NO:
                return []  # one more of a block that is not due: nothing else changes
        return self._go_on()

    def message(self, message: Message) -> list[Action]:
        """Take in a message of this stream; a ProtocolError where it contradicts what was
        said."""
        if self.done:
            return []  # still on its way when the stream ended
        if isinstance(message, Opened):
            if self.state is OPENING:
                self.opened = message
                self.counts.reused = message.reused
                self._settle("< opened")
            return []
        if isinstance(message, Resumed):
            return self._resumed(message) if self.state is RESUMING else []
        if self.state not in _GOING:
            return []  # a hint that was on its way
        if isinstance(message, Commit):
            return self._commit(message)
        if isinstance(message, Provisional):
            return self._provisional(message)
        if isinstance(message, Bye):
            return self._end("cancelled")
        if isinstance(message, Progress):
            return []  # patience is the driver's
        raise ProtocolError(f"{type(message).__name__} does not belong to a stream")

    def stop(self, reason: str) -> list[Action]:
        """End the stream from this side: ``"cancelled"``, ``"deadline"``, ``"stop"``."""
        if self.done:
            return []
        said = reason if reason in _REASONS else "ended"
        rest = self._complete() if reason == "deadline" else []
        return [Send(Bye(said)), *rest, *self._end(reason)]

    def _complete(self) -> list[Action]:
        """Make the text that is there a whole one, in the fewest characters."""
        guide, rules = self._guide, self._grammar
        if guide is None or rules is None:
            return []
        ids = rules.compiled.shortest(guide, self._guesses.ids) or ()
        self.counts.completed = len(ids)
        if self._guesses.ids:  # the draft's alone, and what follows it is no better
            return self._guesses.show(ids)
        return [Emit(tuple(Token(i, "completed") for i in ids))] if ids else []

    def go_on(self) -> list[Action]:
        """Look again what to do, after a hush without news."""
        return [] if self.done or self.state is IDLE else self._go_on()

    # ---- opening and resuming

    def _begin(self) -> None:
        self._controller.begin(self._mode)
        self._aim()

    def _aim(self) -> None:
        """Race or wait, where that is left to the controller."""
        if self._mode.objective != "auto":
            return
        racing = self._controller.races(self._free and self._ceiling.races)
        if racing is self._racing:
            return
        self._racing = racing
        if racing:
            self._alone = _Alone.NO
        elif self._told or self._believed_alone:
            self._alone = _Alone.ENDING

    def _open(self) -> Send:
        self._enter(_OPEN.get(self.state, "< error, > open"), OPENING)
        ids = (*self._prompt, *self._committed)
        held = min(self.held, len(ids) - 1)
        self.held = 0
        self.counts.unsent = held
        self._told = self._racing
        request = open_of(
            self._spec,
            ids,
            max_new_tokens=self._limit - len(self._committed),
            bonus=self._bonus,
            racing=self._racing,
            held=held,
            text=len(self._committed),
        )
        return Send(request)

    def _begin_text(self) -> list[Action]:
        """Make text of what a grammar forces before anything is drawn."""
        if self._guide is None:
            return []
        path = self._guide.path()
        ids = path.ids[: self._limit]
        self.counts.tokens += len(ids)
        shown = self._keep([Token(i, "forced") for i in ids])
        if path.ended and len(ids) == len(path.ids):
            return shown + self._end("stop")
        return shown + (self._end("length") if len(ids) >= self._limit else [])

    def _completed(self, before: Sequence[int], token: int) -> Proposal:
        """Return ``token`` as a proposal, with what a grammar forces behind it."""
        if self._guide is None:
            return Proposal(token)
        path = self._guide.path(before, (token,))
        return Proposal(token, then=path.ids[1:], last=path.ended)

    def _forced_behind(self, tokens: Sequence[Token]) -> list[Token]:
        """Return what a grammar forces behind new text."""
        guide = self._guide
        text = [*self._committed, *(token.id for token in tokens)]
        if guide is None or (text and text[-1] in self._stop_ids):
            return []
        guide.follow([*self._prompt, *text])
        if guide.length < len(text):
            raise ProtocolError(
                "the verifier sent text that the grammar does not allow",
                hint="both sides must take grammars apart alike: compare their versions "
                "of llguidance",
            )
        room = max(0, self._limit - len(text))
        return [Token(i, "forced") for i in guide.path().ids[:room]]

    def _resumed(self, message: Resumed) -> list[Action]:
        held = len(self._committed) - self._origin
        if message.position != held:
            raise ProtocolError(
                f"the verifier resumes at {message.position}, not at {held}"
            )
        if held + len(message.tokens) > self._limit - self._origin:
            raise ProtocolError("the verifier sent more tokens than were asked for")
        self.counts.tokens += len(message.tokens)
        resumed = [Token(t, "resumed") for t in message.tokens]
        self._forced_behind(resumed)
        self.counts.forwards = self._forwards + message.forwards
        actions = self._keep(told(resumed, message.logprobs, self._logprobs))
        self._compare(message.text_hash)
        self.counts.near_ties = self._ties + (message.near_ties or 0)
        self._forget_wire(message.epoch)
        self._settle("< resumed")
        if message.finish is not Finish.NOT_YET:
            return actions + self._end(_FINISH[message.finish])
        return actions + self._go_on()

    def _forget_wire(self, epoch: int) -> None:
        """Nothing is in flight; what the main line holds is one block, ready to go."""
        self._wire.reset(epoch)
        lines = self._lines
        lines.drop_others()
        bare = -1 if self._free else lines.main.bare
        if bare >= 0:  # no verdict replaces it now, and it cannot be sent: no evidence
            lines.main = Line(lines.main.proposals[:bare])
        self._hand = _Hand(0, None, len(lines.main) > 0)
        self._alone = _Alone.NO
        self._told = not self._racing  # what it was told last may have been lost
        self._preemption.reset()

    # ---- verdicts

    def _commit(self, commit: Commit) -> list[Action]:
        before = len(self._committed)
        kept, correction = read_verdict(
            commit, self._wire, self._lines, self._proposer, len(self._prompt) + before
        )
        self._correction = None if correction is None else _Correction(correction)
        if self._guide is not None:
            # An end may cut what is forced behind the last draft.
            while kept and kept[-1].kind == "forced" and before + len(kept) > self._limit:
                kept = kept[:-1]
            kept = [*kept, *self._forced_behind(kept)]
        if before + len(kept) > self._limit:
            raise ProtocolError("the verifier sent more tokens than were asked for")
        new = [token.id for token in kept]
        ran = self.counts.forwards - self._forwards + 1
        ran = ran if commit.forwards is None else commit.forwards
        self.counts.forwards = self._forwards + ran
        self._preemption.compare(new)
        epoch = self._wire.epoch
        tally(self.counts, self._controller, commit, self._wire, new, before)
        actions = self._keep(told(kept, commit.logprobs, self._logprobs))
        if self._wire.epoch != epoch and self._wire.adopted:
            self._adopt(len(self._wire.tokens))
        self._compare(commit.text_hash)
        if commit.near_ties is not None:
            self.counts.near_ties = self._ties + commit.near_ties
        self._rest.passed(before + len(new), len(new))
        if len(commit.beside) == 2:
            counts, (wanted, spared) = self.counts, self._told_before
            counts.wanted, counts.spared = (
                wanted + commit.beside[0],
                spared + commit.beside[1],
            )
            self._rest.told(counts.wanted, counts.spared, len(self._committed))
            counts.rested = self._rest.tokens
        self._ceiling.passed(len(new), ran)
        if not self.done and commit.finish is Finish.NOT_YET:
            self._aim()
        self._settle("< commit")
        if commit.finish is not Finish.NOT_YET:
            return actions + self._end(_FINISH[commit.finish])
        return actions + self._go_on(verdict=True)

    def _adopt(self, count: int) -> None:
        """Drafts that had been sent beside a branch are one now: all but what is text."""
        self.counts.sides_taken += 1
        self.counts.drafted += count
        self._controller.leaving(self._lines.main.proposals[:count])
        self._controller.sent(count)

    def _keep(self, tokens: Sequence[Token]) -> list[Action]:
        """Make ``tokens`` text; tell the user; sort out which drafts live on."""
        before = len(self._committed)
        ids = [token.id for token in tokens]
        self._committed += ids
        self._hash.extend(ids)
        if self._guide is not None:
            self._guide.follow((*self._prompt, *self._committed))
            self.counts.forced += sum([token.kind == "forced" for token in tokens])
        gone = [token.kind != "forced" for token in tokens[self._hand.start :]]
        self._follow(ids, before, sum(gone))
        return self._guesses.settle(tokens, before, self._lines.main.ids)

    def _compare(self, text_hash: bytes) -> None:
        """Hold the text to what the verifier says of its own."""
        if text_hash and text_hash != self._hash.digest():
            raise ProtocolError(
                f"the text is not the verifier's: their hashes differ after "
                f"{len(self._committed)} tokens",
                hint="a fault of the verifier or of memory: nothing after the last text "
                "that agreed can be trusted",
            )

    def _follow(self, ids: Sequence[int], before: int, gone: int) -> None:
        """Bring the lines, the block in hand and the drafter up to the new text."""
        lines, wire = self._lines, self._wire
        for drafter in self._drafters:
            drafter.follow(ids, before)
        replaced = lines.advance(ids)
        main = lines.main
        bare = -1 if self._free else main.bare
        if bare >= 0 and not self._in_flight:
            del main.proposals[bare:]  # they cannot be sent: no evidence
            main.assumed = -1
            replaced = True
        self._preemption.judged()
        if replaced:
            on_wire = common(main.ids, wire.tokens) == len(wire.tokens)
            self._hand = _Hand(len(wire.tokens) if on_wire else 0)
            self.counts.outcomes_used += len(main) > 0
            return
        hand = self._hand
        hand.start = max(0, hand.start - len(ids))
        if hand.quota is not None:
            hand.quota = max(0, hand.quota - gone)
        if hand.start > len(wire.tokens):  # what was sent died unjudged: once more
            self._hand = _Hand(len(wire.tokens), None, True)
        elif len(main) <= hand.start and (hand.ready or not hand.quota):
            self._hand = _Hand(hand.start)

    def _provisional(self, message: Provisional) -> list[Action]:
        """Draft on from what an exit says, until the verdict comes."""
        if self._guesses.ids:
            return []  # what the user has seen is taken back by a verdict alone
        room = self._limit - len(self._committed) - 1
        if known := self._preemption.believe(message, room, self._bonus, self._stop_ids):
            self._hand = _Hand(known)
        return self._go_on()

    # ---- what to do next

    @property
    def _in_flight(self) -> int:
        return self._wire.blocks(len(self._committed))

    def _room(self, line: Line) -> int:
        """Return how many drafts still make sense behind ``line``: the verifier adds one
        token to what it accepts, so the last one needs none."""
        left = self._limit - len(self._committed) - 1 - len(line.proposals)
        return left if left > 0 else 0

    def _draftable(self, line: Line) -> int:
        """Return how many drafts make sense behind ``line`` and fit the draft model."""
        held = len(self._prompt) + len(self._committed) + len(line.proposals)
        return max(0, min(self._room(line), self._draft_context - held))

    def _go_on(self, *, verdict: bool = False) -> list[Action]:
        """Begin a block, send what may leave, keep the drafter at work."""
        if self.state in (LOST, RESUMING):
            return self._steer()
        self._begin_block()
        sent = self._dispatch(verdict)
        if sent:
            self._begin_block()
        if self._sides_go and self.more <= 0:
            blocks = map(self._side, self._lines.others)
            sent += [self._block(block) for block in blocks if block is not None]
        return [*sent, *self._steer()]

    def _begin_block(self) -> None:
        hand, main, mode = self._hand, self._lines.main, self._mode
        if hand.ready:
            return
        if hand.quota is not None:
            if self._draftable(main):
                return
            hand.quota = None  # the draft can hold no more: what is there is the block
            if len(main) > hand.start:
                hand.ready = True
                return
        waits = not self._racing and self._in_flight >= mode.pipeline
        if waits and not mode.preempt & {"guess", "exits"}:
            return
        block = drawn(main.proposals[hand.start :])
        if main.ends(self._stop_ids) or self._room(main) == 0:
            hand.ready = block > 0
            return
        # The most tokens of the block; 0: the target goes on alone.
        idle = self._rest.lasts(len(self._committed)) or not self._draftable(main)
        limit = self._controller.limit() if self.has_engine and not idle else 0
        told = self._believed_alone
        if limit < 1:
            self._alone = _Alone.YES if told else _Alone.ASKED
            return
        self._alone = _Alone.ENDING if told else _Alone.NO
        self._last_limit = limit
        # The bonus that comes with the verdict takes the first of these drafts.
        spare = 1 if waits and self._bonus and mode.pipeline == 1 else 0
        hand.quota = min(limit + spare, self._max_block)
        hand.ready = block >= hand.quota

    def _enough(self, block: Sequence[Proposal]) -> bool:
        """Ask the controller about the drafts of a block; what is forced is none. In a race
        what one forward says leaves together."""
        if self._racing and self.more > 0:
            return False
        if self._guide is not None:
            block = [p for p in block if not p.forced]
        return self._controller.enough(block)

    def _dispatch(self, verdict: bool) -> list[Action]:
        mode, main, wire, hand = self._mode, self._lines.main, self._wire, self._hand
        actions: list[Action] = []
        in_flight = self._in_flight
        if not self._racing and self._alone is _Alone.ASKED:
            if in_flight:
                return []
            self._alone = _Alone.YES
            return [self._send(more=False)]
        if not self._racing and self._alone is _Alone.ENDING:
            self._alone = _Alone.NO
            base = len(self._committed) - self._origin + len(wire.tokens)
            actions.append(self._block(Block(wire.epoch, base, ())))
        full = wire.sent >= self._max_waiting
        held = (in_flight >= mode.pipeline and not self._racing) or full
        if held or (not self._free and main.bare >= 0):
            return actions
        block = main.proposals[hand.start :]
        if block and (self._racing or (verdict and not in_flight)):
            cut = mode.cut and not self._racing
            hand.ready |= cut or self._enough(block)
        if block and hand.ready:
            actions.append(self._send(more=False))  # as far as one block goes
            start = len(wire.tokens)
            self._hand = _Hand(start, None, len(main) > start)
            return actions
        pieces = drawn(main.proposals[len(wire.tokens) :]) if mode.batch else 0
        if hand.quota is not None and 0 < mode.batch <= pieces:
            return [*actions, self._send(more=True)]
        last = not (in_flight or self._racing or len(main) or self._room(main))
        owed = self._correction is not None and not self._correction.sent
        last |= self._racing and not self._told and self._mode.objective == "auto"
        if last or (self._alone is not _Alone.NO and owed):
            actions.append(self._send(more=False))  # asks for a token
        return actions

    def _send(self, *, more: bool) -> Send:
        """Send what the verifier has not got of the main line."""
        wire, main = self._wire, self._lines.main
        given_up: list[int] = []
        if common(main.ids, wire.tokens) < len(wire.tokens):
            given_up = wire.turn()
        n = len(wire.tokens)
        most = min(self._max_waiting - wire.sent, self._max_block)
        fresh = _first(main.proposals[n:], most)
        if not self._free:
            # Nothing goes without its evidence, and nothing at all into a race: which
            # drafts are in time there would depend on what was drawn.
            bare = main.bare
            fresh = [] if self._streams else fresh[: bare - n] if bare >= n else fresh
        known = common([p.token for p in fresh], given_up)
        sent = [p for p in fresh if not p.forced]
        before = len(self._committed)
        new = drawn(fresh[known:])
        self.counts.drafted += new
        if new:
            self._controller.leaving([p for p in fresh[known:] if not p.forced])
            self._controller.sent(new)
        correction = None
        if self._correction is not None and not self._correction.sent:
            correction = self._correction.token
            self._correction.sent = True
        block = Block(
            wire.epoch,
            before - self._origin + n,
            tuple([p.token for p in sent]),
            self._proposer.pack(sent) if sent else b"",
            more=more,
            correction=correction,
            race=self._streams,
            leaves=self._second_choices(sent, n),
        )
        first = min(n, self._hand.start)
        block_so_far = main.proposals[first : n + len(fresh)]
        places = [before + n + i for i, p in enumerate(fresh) if not p.forced]
        for at, p, leaf in zip(places, sent, block.leaves):
            if leaf != p.token:
                wire.leaves[wire.epoch, at] = leaf
        wire.send(fresh, block_so_far, None if more else before + first)
        return self._block(block)

    @property
    def _sides_go(self) -> bool:
        return self._trees and self._racing and self._told

    def _side(self, line: Line) -> Block | None:
        """Return what the verifier has not got of a line that differs from the branch, to
        wait beside that: with it the next branch begins, where the text takes its side."""
        wire, ids, at = self._wire, line.ids, len(self._committed)
        same = common(ids, wire.tokens)
        if same >= min(len(ids), len(wire.tokens)):
            return None
        place = at + same, ids[same]
        behind, known = ids[same + 1 :], len(wire.sides.get(place, ()))
        room = self._max_waiting - sum(map(len, wire.sides.values()))
        fresh = tuple(behind[known : known + self._max_block])
        if not fresh or len(fresh) > room or behind[:known] != wire.sides.get(place, []):
            return None
        # Each of its drafts is worth as much of a token as it is likely to be text.
        costs, chance, worth = self._controller.costs, line.odds, 0.0
        for i, p in enumerate(line.proposals[same + 1 :][: known + len(fresh)]):
            chance *= p.confidence or 0.0
            worth += chance * (i >= known)
        nbytes = _SIDE_BYTES + _LEAF_BYTES * len(fresh)
        if worth < max(_LEAST_SOON, nbytes * costs.byte_s / costs.forward_s):
            return None
        wire.sides[place] = behind[: known + len(fresh)]
        self.counts.sides += len(fresh)
        base = at - self._origin + same + 1 + known
        instead = known + 1, ids[same]
        return Block(wire.epoch, base, fresh, race=self._streams, instead=instead)

    def _second_choices(self, sent: Sequence[Proposal], ahead: int) -> tuple[int, ...]:
        """Return the leaves of a block that may be worth their bytes: by the text that they
        should bring or, where only time counts, by the time that it takes."""
        if not self._leaves or not sent:
            return ()
        counts, costs, seconds = (
            self.counts,
            self._controller.costs,
            self._controller.seconds,
        )
        least = _LEAST
        if self._mode.objective != "cost":
            least = max(_LEAST_SOON, _LEAF_BYTES * costs.byte_s / costs.forward_s)
        right = (counts.right + 4) / (counts.judged + 5)
        chance, found, end = SECOND * (1 - right) * right**ahead, [], 0
        for p in sent:
            if chance * seconds.share < least:
                break
            found.append(p.token if p.runner_up is None else p.runner_up)
            if found[-1] != p.token:
                end = len(found)
                seconds.sent(chance)
                counts.leaves += 1
            chance *= right
        return tuple(found[:end])

    def _block(self, block: Block) -> Send:
        opening = self.state is OPENING
        self._told = block.race
        if not opening:
            self._settle("> block")
        return Send(block)

    def _steer(self) -> list[Action]:
        main, drafters = self._lines.main, self._drafters
        for i, drafter in enumerate(drafters):
            if drafter.line is main:  # what was drafted there goes on there
                drafters[0], drafters[i] = drafter, drafters[0]
        line, count = self._task()
        way = self._controller.way
        actions = self._drafter.order(line, count, self._committed, way)
        if len(drafters) > 1:
            actions += self._prepare()
        return actions

    def _prepare(self) -> list[Action]:
        """Have the lanes that are free draft behind the likeliest other outcomes."""
        lines: list[Line] = []
        limit = _DEEP if self._racing else self._last_limit
        lost = self.state in (LOST, RESUMING)
        going = self.has_engine and self._in_flight > 0 and not lost
        if going and self._controller.rule.spare and not (self.hushed and self._racing):
            main = self._drafter
            costs = self._controller.costs
            above = 0.0
            if main.wanted:
                above = max(_FLOOR, _WORTH * main.line.chance) * costs.lane_part
            lines = self._preemption.outcomes(
                len(self._drafters) - 1,
                limit,
                self._draftable,
                self._stop_ids,
                above=above,
            )
        taken = [drafter.line for drafter in self._drafters[1:]]
        free = [line for line in lines if all(line is not other for other in taken)]
        actions: list[Action] = []
        # A forward takes in what lies between its lanes.
        near = self._drafter.lane
        for drafter in sorted(self._drafters[1:], key=lambda view: abs(view.lane - near)):
            if any(line is drafter.line for line in lines):
                line = drafter.line
            elif free:
                line = free.pop(0)
            else:
                actions += drafter.halt()
                continue
            missing = limit - drawn(line.proposals[line.assumed + 1 :])
            count = min(missing, self._draftable(line))
            role: Role = "beside" if self._drafter.wanted else "alone"
            actions += drafter.order(line, count, self._committed, "", role=role)
        return actions

    def _halt(self) -> list[Action]:
        return [action for drafter in self._drafters for action in drafter.halt()]

    def _task(self) -> tuple[Line, int]:
        main, hand = self._lines.main, self._hand
        if not self.has_engine or self.state is RESUMING:
            return main, 0
        if main.ends(self._stop_ids):
            return main, 0
        if self.state is LOST:
            return main, self._draftable(main) if self._guess_offline else 0
        if self.hushed and self._racing:
            return main, 0
        wanted = hand.quota is not None and not hand.ready
        races = self._racing and "outcomes" in self._mode.preempt
        free = self._in_flight and (races or not wanted) and self._controller.rule.spare
        drafter = self._drafter
        heard = self.more > 0 and drafter.wanted > 0  # its forward says more of its line
        if (
            len(self._drafters) == 1
            and free
            and not (heard and wanted and drafter.line is main)
        ):
            if heard and drafter.line in self._lines.others:
                return drafter.line, drafter.wanted
            limit, above = self._last_limit, 0.0
            if wanted:  # a race goes on, unless its next draft is hardly of use
                several = self._sides_go and self._controller.way in (PARALLEL, HYBRID)
                likelier = _SENT if several else _LIKELIER
                limit, above = _DEEP, likelier * main.chance
            for line in self._preemption.outcomes(
                1, limit, self._draftable, self._stop_ids, above=above
            ):
                missing = limit - drawn(line.proposals[line.assumed + 1 :])
                return line, min(missing, self._draftable(line))
        if wanted and hand.quota is not None:
            missing = hand.quota - drawn(main.proposals[hand.start :])
            if self._mode.hush and self._racing:  # what one forward says, and look again
                missing = min(missing, self._controller.stride)
            return main, min(missing, self._draftable(main))
        return main, 0

    def _end(self, reason: str) -> list[Action]:
        self._enter("end", DONE)
        self.finish = reason
        ends = [action for drafter in self._drafters for action in drafter.end()]
        return [*ends, Finished(reason)]
