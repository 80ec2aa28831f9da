"""One stream on the cloud's side: blocks in, work for the model and verdicts out.

No I/O, no model, no clock: the service feeds messages and logits, and sends what comes
back. The token list is the truth; the KV cache of the slot is only a copy of a prefix of
it, which ``Work.start`` rewinds as needed.

Branches. The device numbers its branches (``epoch``) and raises the number whenever it
throws away drafts that it had sent. After a rejection the verifier expects the next
number, so blocks of the dead branch that are still on their way are recognised and
dropped. After an accepted block the verifier commits one more token (the bonus), which
the device may have guessed already: a block may therefore start inside the committed
text; where it repeats that text it goes on, where it differs its branch is dead
(:class:`~draftwire.verifier.branch.Branch`).

Objectives. ``cost``: the model runs only when the device asks for more text than there
is. ``latency``: a race; the model decodes on without waiting, and every step judges what
drafts have come meanwhile. Each step commits at least one token, so no token is later
than by plain decoding, counted in forwards.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, List, NamedTuple, Sequence, Tuple

import numpy as np

from draftwire.errors import ConfigError, ModelError, ProtocolError
from draftwire.sampling import (
    SCHEMES,
    Decision,
    SamplingParams,
    card_of,
    check_race,
    log_probs,
    make_decider,
    shape_for,
)
from draftwire.sampling.grammar import Compiled
from draftwire.sampling.scheme import ByToken, refuse_evidence
from draftwire.transport.messages import (
    Block,
    Commit,
    Finish,
    Message,
    Open,
    Progress,
    Provisional,
    Resumed,
    Welcome,
)
from draftwire.transport.states import after
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.backends.streaming import Order, Push, Step
from draftwire.verifier.beside import Beside, Drafting
from draftwire.verifier.branch import Branch
from draftwire.verifier.rows import ForwardPrice, Leaves, Lookup, Side
from draftwire.verifier.states import TABLE, State
from draftwire.verifier.tally import StreamCounts

Pairs = List[Tuple[int, float]]  # ids and their log-probabilities
_TELL_EVERY = 32  # drafts that the verifier has need of, where it drafts itself
_HASH_EVERY = 128  # tokens: 0.08 bytes each
_SPAN = 512  # ids of one forward's drafts, forced ones among them
_SURE = 1e4  # a logit that no noise reaches
_PATIENCE_S = 2.0  # of grammars: more than a second and 5 ms a step is refused


@dataclass(frozen=True)
class Work:
    """What the model has to do next for one stream."""

    # position of ``tokens[0]`` in the slot; what the cache holds from there on is void
    start: int
    tokens: np.ndarray  # ``(n,)`` int64 ids to run
    rows: int  # how many of the last logits rows are wanted
    prefill: bool  # true for context that is only read (``rows`` is 0)
    drafted: int = 0  # the last ``drafted`` of ``tokens`` are under judgement
    evidence: bytes = b""  # what the device sent for them
    epoch: int = 0  # branch that they belong to
    found: int = 0  # the last of those are the verifier's own guesses (:class:`Lookup`)
    forced: frozenset[int] = frozenset()  # places among them of those that a grammar forces
    # behind all these, the device's second choices: the place among the drafts that each
    # stands beside, behind those before it, its id, and those of drafts behind it
    sides: tuple[Side, ...] = ()

    @property
    def first(self) -> int:
        """Index in ``tokens`` of the first draft."""
        return len(self.tokens) - sum(len(ids) for _, ids in self.sides) - self.drafted

    def sent(self, count: int) -> int:
        """Return how many of the first ``count`` drafts were sent, and not forced."""
        return count - sum(place < count for place in self.forced)

    @property
    def drafts(self) -> list[int]:
        """The ids under judgement."""
        return [int(t) for t in self.tokens[self.first : self.first + self.drafted]]


class Verdict(NamedTuple):
    """What was decided about a piece of work."""

    decision: Decision  # of the scheme; its token is -1 where none is to be drawn here
    near_ties: int = 0  # at how many of its positions another token was too near to tell
    tail: tuple[int, ...] = ()  # ids that a grammar forces behind all that
    ended: bool = False  # nothing can follow those
    logprobs: Sequence[Pairs] = ()  # of each token decided, where they are wanted
    # the tokens behind that of the decision, where that was a second choice
    beyond: tuple[int, ...] = ()


class TargetSession:
    """State machine of one stream.

    Raises:
        ConfigError: The request cannot be served (prompt too long, scheme unknown...);
            its sentence goes to the device.
    """

    def __init__(
        self,
        request: Open,
        welcome: Welcome,  # what was agreed on with its device
        *,
        logit_error: float = 0.0,  # how far the target's logits may be off, 0: exact
        # guesses what stands behind the drafts, or drafts it, or None
        lookup: Lookup | None = None,
        grammar: Compiled | None = None,  # what the text keeps to, or None
        leaves: int = 0,  # so many second choices of the device's a forward may judge
    ) -> None:
        self._params = params = params_of(request)
        _check(request, params, welcome, grammar is not None)
        vocab_size, context = welcome.vocab_size, welcome.context
        self._decider = make_decider(params, vocab_size)
        first = len(request.prompt) - request.text_before
        self._guide = self._scout = None
        if grammar is not None:
            options: dict[str, Any] = {"start": first, "stop_ids": request.stop_ids}
            options.update(forcing=request.forced, patience_s=_PATIENCE_S)
            self._guide = grammar.guide(vocab_size, **options)
            self._scout = grammar.guide(vocab_size, **options)  # of drafts that wait
        self.costly = grammar is not None  # judgements take long, whatever the vocabulary
        self._shape = shape_for(params, vocab_size, first, self._guide)
        if self._shape is not None:
            self._shape.follow(request.prompt)
        self._scheme = request.scheme
        self.racing = request.objective == "latency"  # the text goes on without being asked
        if self.racing:
            check_race(request.scheme)
        self._vocab_size, self._context = vocab_size, context
        self._target = f"{welcome.target} {welcome.target_version}"
        # One candidate may be that much too high, the other that much too low.
        stretch = max(params.repetition_penalty, 1 / params.repetition_penalty)
        margin = 2 * logit_error * stretch
        self._margin = margin if isinstance(self._decider, ByToken) else 0.0
        self._stops = frozenset(request.stop_ids)
        self._tokens = list(request.prompt)
        self._prompt = len(request.prompt)
        self._end = min(context, self._prompt + request.max_new_tokens)
        self.cached = 0  # how many of the tokens are in the slot for certain
        self.counts = StreamCounts()  # what the stream did so far
        # what has come and waits for judgement
        self.branch = Branch(welcome.max_block, welcome.room)
        self._credit = request.credit
        self._heard = 0  # end of the last block that came
        self._hash = TextHash(request.prompt)
        self._hashed = 0  # tokens at the last hash that was told
        self._work: Work | None = None  # that the model has
        self._known: list[int] = []  # beyond the text, decided by an engine, not asked for
        self._looked = 0  # drafts that it looked at for them
        self._fresh = self._free = False  # it has yet to read the prompt; has just done so
        self._bonus = request.bonus
        # Free words need a scheme that takes tokens from anywhere, and room in a commit.
        has = welcome.capabilities
        free = "further" in has and request.bonus and card_of(request.scheme).any_draft
        self._lookup = lookup if free else None
        self._tells, self._told_wanted = "beside" in has, 0
        self._pace = 1.0  # tokens a forward, lately
        by_token = free and isinstance(self._decider, ByToken) and grammar is None
        self.leaves = Leaves(leaves if by_token and "leaves" in has else 0)
        card = card_of(request.scheme)
        self._trees = "trees" in has and card.any_draft and grammar is None
        self.row_price = 0.0  # what a row of a forward costs, as a share of the forward
        self.widest = 64  # most tokens of a forward of a race, or with second choices
        self._wants = request.logprobs  # pairs for each new token
        self._pairs: list[tuple[int, float]] = []  # of the text so far
        self._hinted: Provisional | None = None
        self._told = self._told_ties = 0  # what the device knows of the counts
        self._tail = 0  # forced ids at the end of the text
        self.finish = Finish.NOT_YET  # why it has ended, if it has
        if self._guide is not None:
            if self._guide.length != request.text_before:
                raise ConfigError("the text of the open does not keep to its grammar")
            path = self._guide.path()
            self._append_forced(path.ids, ended=path.ended)
        # where it stands; :data:`TABLE` says what may happen there
        self.state = State.ENDED if self.finish else self._rest()

    @property
    def _position(self) -> int:
        """Length of the text, without the prompt."""
        return len(self._tokens) - self._prompt

    @property
    def _unread(self) -> int:
        """Tokens before the last that are not in the slot."""
        return len(self._tokens) - 1 - self.cached

    def _rest(self) -> State:
        """Return the state of a stream that nothing is done for."""
        # What a grammar forced last goes with the next forward.
        return State.READING if self._unread > self._tail else State.WAITING

    def _append_forced(self, ids: Sequence[int], *, ended: bool) -> None:
        """Make text of what a grammar forces, as far as there is room."""
        kept = list(ids[: self._end - len(self._tokens)])
        self.counts.emitted += len(kept)
        self.counts.forced += len(kept)
        self._grow(kept)
        self._tail = len(kept)
        self._check_end(ended=ended and len(kept) == len(ids))

    def reuse(self, count: int) -> None:
        """Before the first work: so many ids of the prompt are in the slot already."""
        self.cached = count
        if not self.done:
            self.state = self._rest()

    def begin(self) -> list[Message]:
        """Return what to send at once: the end, where a grammar forces all of the text."""
        return [self._last_word()] if self.finish else []

    def _last_word(self) -> Commit:
        told = self._forwards(), self._digest(), self._ties()
        return Commit(self.epoch, 0, None, self.finish, 0.0, 0.0, b"", *told)

    def _step(self, event: str, to: State | None = None) -> None:
        self.state = after(TABLE, self.state, event, to)

    @property
    def done(self) -> bool:
        """True when the stream has ended."""
        return self.state is State.ENDED

    @property
    def epoch(self) -> int:
        """Branch number of the blocks that would be judged now."""
        return self.branch.epoch

    @property
    def judges(self) -> bool:
        """The model could go over drafts, or the text's last token, now."""
        rests = self.state in (State.READING, State.WAITING) and self._work is None
        return rests and self._asked and self._unread <= max(1, self._tail)

    @property
    def ready(self) -> int:
        """Drafts that wait for judgement."""
        return len(self.branch.waiting(partial=self.racing))

    @property
    def evidence(self) -> int:
        """Bytes of evidence that wait or are under judgement."""
        return self.branch.unjudged + (
            0 if self._work is None else len(self._work.evidence)
        )

    @property
    def pairs(self) -> int:
        """How many log-probabilities are kept for a device that comes back."""
        return len(self._pairs)

    @property
    def tokens(self) -> list[int]:
        """Ids of prompt and text."""
        return list(self._tokens)

    def committed(self, position: int = 0) -> tuple[int, ...]:
        """Return the committed ids from ``position`` (after the prompt) on."""
        return tuple(self._tokens[self._prompt + position :])

    # ---- a lost link

    def detach(self, *, cached: bool, forwards: int = 0) -> None:
        """The link is gone: forget what was on its way, keep the text.

        Work that was handed out is void; ``forwards`` ran for it. ``cached``: the slot
        keeps its KV rows; else the text has to be read again after :meth:`resume`.
        """
        self._step("link lost")
        work, self._work = self._work, None
        self._known = []
        if work is not None and not work.prefill:
            self.counts.forwards += forwards
        self.branch.clear()
        # A correction that the device owes is drawn again: noise belongs to positions,
        # so the same draft meets the same verdict there.
        if not cached:
            self.cached = 0

    def resume(self, position: int, text_hash: bytes = b"") -> Resumed:
        """Go on with a device that holds ``position`` committed tokens.

        ``text_hash`` is that of its prompt and text, or empty.

        Raises:
            ProtocolError: It claims more text than there is, or another one.
            ValueError: The link is not lost.
        """
        if position > self._position:
            raise ProtocolError(
                f"the device holds {position} tokens of a text of {self._position}"
            )
        held = self._tokens[: self._prompt + position]
        if text_hash and text_hash != TextHash(held).digest():
            raise ProtocolError("the device holds another text: the hashes differ")
        self._step("< resume", State.ENDED if self.done else self._rest())
        self.branch.kill()
        self._told = self.counts.forwards
        rest = self.committed(position)
        self._told_ties = ties = self.counts.near_ties
        said = (self.epoch, position, rest, self.finish, self._told)
        pairs = tuple(self._pairs[position * self._wants :])
        return Resumed(*said, self._hash.digest(), ties or None, pairs)

    def progress(self, work: int) -> Progress:
        """Return what to say of a stream without a verdict.

        ``work``: forwards of the target since the stream was heard of last.
        """
        activity = {State.READING: "reading", State.JUDGING: "judging"}
        said = activity.get(self.state, "queued") if work else "idle"
        return Progress(said, self.epoch, self._position, work)

    @property
    def idle(self) -> bool:
        """True while nothing is to be done before the device says more."""
        rests = self.state in (State.WAITING, State.OWED) and self._work is None
        return rests and not self._asked

    @property
    def _asked(self) -> bool:
        """There shall be more text than there is."""
        return max(self._ahead, self.branch.asks) > self._position

    @property
    def _ahead(self) -> int:
        """The target goes on by itself until the text is so long."""
        if not self.racing or self.state is State.OWED:
            return 0
        most = self._end - self._prompt
        return min(most, self._heard + self._credit) if self._credit else most

    # ---- messages in

    def receive(self, block: Block) -> list[Message]:
        """Take in a block; return messages to send at once (rarely any).

        Raises:
            ProtocolError: The block cannot follow what was sent before.
            ConfigError: The stream may not race.
            ValueError: The link is lost.
        """
        if self.done:  # it was on its way
            self._step("< block")
            return []
        branch = self.branch
        if block.race and block.tokens:
            check_race(self._scheme)
        self.racing = block.race
        self._heard = max(self._heard, block.base + len(block.tokens))
        if block.instead:
            self._check_beside(block)
            block = branch.heir(block)
        if branch.behind(block.epoch):
            return []
        branch.turn(block.epoch)
        if self.state is State.OWED:
            return self._take_correction(block)
        if block.correction is not None:
            raise ProtocolError("a correction that was not asked for")
        self._step("< block")
        if block.instead:
            branch.put_beside(block, self._position)
            return []
        self._append(block)
        return self._release((0.0, 0.0), stepped=False)

    def _check_beside(self, block: Block) -> None:
        """Refuse what cannot stand beside a branch (PROTOCOL.md, 4.12)."""
        pair = len(block.instead) == 2
        back, token = block.instead if pair else (1, 0)
        extra = block.evidence or block.leaves or block.more
        rules = (
            (not self._trees, "drafts beside a branch, which this stream has not"),
            (not pair, f"{len(block.instead)} numbers in instead, it takes two"),
            (not 0 < back <= block.base, f"instead is {back} before {block.base}"),
            (
                token >= self._vocab_size,
                f"token id {token} is outside the vocabulary of {self._vocab_size}",
            ),
            (not block.tokens, "instead without a draft"),
            (
                extra or block.correction is not None,
                "instead with evidence, a correction, second choices or more",
            ),
        )
        for wrong, sentence in rules:
            if wrong:
                raise ProtocolError(sentence)

    def _take_correction(self, block: Block) -> list[Message]:
        if block.correction is None:
            raise ProtocolError("the device owes a correction, and sent none")
        path = None
        if self._guide is not None:
            path = self._guide.path((), (block.correction,))
            if not path.valid:
                raise ProtocolError("a correction that the grammar does not allow")
        self._grow((block.correction,))
        self.cached = len(self._tokens) - 1  # the accepted drafts are there already
        self.counts.emitted += 1
        self._tail = 0
        if path is not None:
            self._append_forced(path.ids[1:], ended=path.ended)
        else:
            self._check_end()
        if not self.finish and block.base != self._position:
            raise ProtocolError(f"a correction at the wrong place, base {block.base}")
        self._step("< block with correction", State.ENDED if self.finish else State.WAITING)
        if self.finish:
            return [self._last_word()]
        self._append(block)
        return []

    def _append(self, block: Block) -> None:
        if isinstance(self._decider, ByToken):
            refuse_evidence(self._scheme, block.evidence)
        path, last = None, block.base + len(block.tokens)
        if self._scout is not None and block.tokens:
            judged = [] if self._work is None else self._work.drafts
            before = self.branch.behind_what(block, self.committed(), judged)
            self._scout.follow([*self._tokens[: self._prompt], *before])
            path = self._scout.path((), block.tokens)
            last = block.base + path.free[-1] + 1
        if block.evidence and last >= self._end - self._prompt:
            raise ProtocolError("drafts with evidence beyond the end of the text")
        self.branch.add(block, self._position, path)
        if block.evidence and len(self.branch) > _SPAN:
            raise ProtocolError(f"drafts with evidence that span more than {_SPAN} ids")
        self.branch.settle(self._tokens, self._prompt)

    # ---- work for the model

    def poll(self) -> Work | None:
        """Return what to run next, or None while there is nothing to do.

        One piece of work at a time: the next one comes after :meth:`complete`.
        """
        if self._work is not None or self.state not in (State.READING, State.WAITING):
            return None
        branch, asked = self.branch, self._asked
        if self._unread > max(1, self._tail) or (self._unread > self._tail and not asked):
            tail = self._tokens[self.cached : -1]
            self._work = Work(self.cached, np.array(tail, np.int64), 0, prefill=True)
            return self._work
        if not asked:
            return None
        # What has come meanwhile is judged together.
        unread = len(self._tokens) - self.cached
        most = _SPAN if not self.racing else max(1, self.widest - unread)
        if self._lookup is not None:
            most = min(most, self._lookup.reach(branch.waiting(partial=self.racing)))
        taken = branch.take(partial=self.racing, most=most)
        # The last position of the stream needs no draft beyond it.
        room = self._end - len(self._tokens) - 1
        drafted = taken.tokens[: max(0, room)]
        self._step("forward")
        self._hinted = None
        found: list[int] = []
        price = self.row_price * self._pace  # tokens that a row has to gain
        if self._lookup is not None and len(drafted) < room:
            found = self._lookup.find(drafted, price)[: room - len(drafted)]
        judged = drafted + found
        ids = self._tokens[self.cached :] + judged
        spare = min(self._context - self.cached, self.widest) - len(ids)
        sides = self.leaves.choose(drafted, taken.leaves, taken.sides, price, spare)
        beside = [token for _, ways in sides for token in ways]
        self._work = Work(
            self.cached,
            np.array(ids + beside, np.int64),
            len(judged) + 1 + len(beside),
            prefill=False,
            drafted=len(judged),
            evidence=taken.evidence,
            epoch=branch.epoch,
            found=len(found),
            forced=frozenset(i for i in taken.forced if i < len(drafted)),
            sides=sides,
        )
        return self._work

    def drafting(self, price: ForwardPrice, step_s: float) -> Drafting | None:
        """Return what is to be drafted beside the target before the next forward.

        ``price`` is of the target's forwards, ``step_s`` the seconds that a draft delays
        the streams of the forward by.
        """
        beside = self._lookup
        if not isinstance(beside, Beside) or not self.judges:
            return None
        drafts = self.branch.waiting(partial=self.racing)
        room = self._end - len(self._tokens) - 1
        own = partial(self._proposal, len(self._tokens))
        return beside.plan(drafts, room, own, price.seconds, price.row, step_s)

    def _proposal(self, at: int, path: Sequence[int], row: np.ndarray) -> int:
        """Return what the scheme draws of a draft's logits behind the text and ``path``."""
        return self._own(self._behind(row[: self._vocab_size], path), at + len(path))

    def close(self) -> None:
        """Nobody drafts for it any more."""
        if isinstance(self._lookup, Beside):
            self._lookup.close()

    def judge(self, work: Work, logits: np.ndarray) -> Verdict:
        """Decide about the drafts of ``work``; changes nothing, so in any thread.

        ``logits`` are ``(rows, vocab)`` float32, at least the connection's vocabulary wide.

        Raises:
            ProtocolError: The block's evidence is not valid.
            ModelError: A row of logits says nothing.
        """
        if work.prefill:
            return Verdict(Decision(0, -1))
        rows = self._shaped(work, logits)
        decision = self._decide(work, rows)
        tokens, at = [*work.drafts[: decision.accepted], decision.token], _at(work)
        near_ties = sum(self._near_tie(rows[j], t, at + j) for j, t in enumerate(tokens))
        all_kept = decision.accepted >= work.drafted - work.found
        if all_kept and work.drafted and not self._bonus:
            decision = decision._replace(token=-1)
        pairs: Sequence[Pairs] = ()
        if self._wants:
            tokens = [*work.drafts[: decision.accepted], decision.token]
            pairs = [self._pairs_of(r, t) for r, t in zip(logits, tokens) if t >= 0]
        if self._guide is None:
            return self._beyond(work, logits, Verdict(decision, near_ties, logprobs=pairs))
        kept = work.drafts[: decision.accepted]
        path = self._guide.path(kept)
        if not all_kept or not (path.ids or path.ended):
            if decision.token < 0:
                return Verdict(decision, near_ties, logprobs=pairs)
            path = self._guide.path(kept, (decision.token,))
            return Verdict(decision, near_ties, path.ids[1:], path.ended, pairs)
        # The drafts end where no choice is left, so nobody asks what the target would say.
        return Verdict(decision._replace(token=-1), near_ties, path.ids, path.ended, pairs)

    def _beyond(self, work: Work, logits: np.ndarray, found: Verdict) -> Verdict:
        """Return the verdict with the tokens behind its own, where that is a leaf."""
        place, leaf = found.decision.accepted, found.decision.token
        path, n = work.drafts[:place], work.drafted + 1
        near_ties, pairs, beyond = found.near_ties, [*found.logprobs], []
        for at, ids in work.sides:
            token = leaf if at == place else -1
            for row, draft in enumerate(ids, n):
                if token != draft:
                    break
                path.append(draft)
                raw = logits[row, : self._vocab_size]
                self._check_rows(raw[None], _at(work) + len(path))
                shaped = self._behind(raw, path)
                token = self._own(shaped, _at(work) + len(path))
                near_ties += self._near_tie(shaped, token, _at(work) + len(path))
                beyond.append(token)
                if self._wants:
                    pairs.append(self._pairs_of(raw, token))
            n += len(ids)
        return found._replace(near_ties=near_ties, logprobs=pairs, beyond=tuple(beyond))

    def _pairs_of(self, row: np.ndarray, token: int) -> Pairs:
        """Return the log-probabilities of ``token`` and of the likeliest others."""
        return log_probs(row[: self._vocab_size], token, self._wants - 1)

    def _behind(self, row: np.ndarray, path: Sequence[int]) -> np.ndarray:
        """Return what the scheme is to see of a row behind the text and ``path``."""
        if self._shape is None:
            return row
        rows = np.repeat(row[None], len(path) + 1, axis=0)
        shaped: np.ndarray = self._shape.rows(rows, path)[-1]
        return shaped

    def _shaped(self, work: Work, logits: np.ndarray) -> np.ndarray:
        """Return what the scheme is to see of the target's rows."""
        rows = logits[: work.drafted + 1, : self._vocab_size]
        self._check_rows(rows, _at(work))
        return rows if self._shape is None else self._shape.rows(rows, work.drafts)

    def _check_rows(self, rows: np.ndarray, at: int) -> None:
        """Refuse rows, the first of them for place ``at``, that say nothing."""
        # A distribution needs a largest logit; those of impossible tokens may be -inf.
        for i, top in enumerate(np.maximum.reduce(rows, axis=-1).tolist()):
            if math.isfinite(top):
                continue
            raise ModelError(
                f"target {self._target} gave logits that are no numbers for position "
                f"{at - self._prompt + i} of the text",
                hint="look for a damaged package, or a dtype that is too narrow for it",
            )

    def _decide(self, work: Work, rows: np.ndarray) -> Decision:
        """Ask the scheme about shaped rows."""
        forced = (work.forced,) if work.forced else ()
        return self._decider.decide(work.drafts, work.evidence, rows, _at(work), *forced)

    def _near_tie(self, row: np.ndarray, token: int, at: int) -> bool:
        """Return whether ``token`` would lose at place ``at`` if it were a little lower."""
        if not self._margin:
            return False
        row = row.copy()
        row[token] -= self._margin
        return self._own(row, at) != token

    def _own(self, row: np.ndarray, at: int) -> int:
        """Return the target's own token at place ``at``."""
        return self._decider.decide((), b"", row[None], at).token

    def foresee(
        self, work: Work, logits: np.ndarray, threshold: float
    ) -> Provisional | None:
        """Return what an early exit expects of ``work``; changes nothing.

        ``logits`` are ``(rows, vocab)`` float32 of the exit, ``threshold`` the least top
        probability with which it may speak. None when it is unsure or says nothing new.

        Source:
            Early exits and preemptive drafting, https://arxiv.org/abs/2505.21594.
        """
        if work.prefill:
            return None
        try:
            rows = self._shaped(work, logits).copy()
            sure = _top_probabilities(rows) >= threshold
            for at in np.flatnonzero(~sure[:-1]):  # it has nothing to say of these
                rows[at] = 0
                rows[at, work.drafts[at]] = _SURE
            accepted, token, _ = self._decide(work, rows)
        except ModelError:
            return None
        if self._guide is not None and accepted == work.drafted:
            path = self._guide.path(work.drafts)
            if path.ids or path.ended:
                return None  # the next ids need no hint
        if token < 0 or not sure[accepted]:
            return None
        drafts, sent = work.drafts, work.drafted - work.found
        if not self._stops.isdisjoint(drafts[:accepted]):
            return None  # nothing comes after the end of the text
        if accepted > sent:  # what the device does not know to be judged
            accepted, token = sent, drafts[sent]
        return Provisional(work.epoch, work.sent(accepted), token)

    def hint(self, work: Work, hint: Provisional | None) -> list[Message]:
        """Return what to send of :meth:`foresee`'s answer: nothing late, nothing twice."""
        if hint is None or self._work is not work or hint == self._hinted:
            return []
        self._hinted = hint
        return [hint]

    def complete(self, work: Work, logits: np.ndarray, **times: Any) -> list[Message]:
        """Take in what the model made of ``work``: :meth:`judge` and :meth:`settle`."""
        return self.settle(work, self.judge(work, logits), **times)

    def settle(
        self,
        work: Work,
        verdict: Verdict,
        *,
        queue_s: float = 0.0,  # seconds that the work waited
        compute_s: float = 0.0,  # seconds of its forwards
        forwards: int = 1,  # how many they were
    ) -> list[Message]:
        """Take in the verdict on ``work``; return one commit, or nothing after a prefill.

        Raises:
            ValueError: The work is void, or was completed before.
        """
        if work is not self._work:
            raise ValueError("this work is not under way")
        self._work = None
        self.branch.judged()
        if work.prefill:
            self.cached = work.start + len(work.tokens)
            self._step("text read")
            return []
        decision = verdict.decision
        self.counts.near_ties += verdict.near_ties
        drafted = work.drafts
        kept = drafted[: decision.accepted]
        kept += [token for token in (decision.token, *verdict.beyond) if token >= 0]
        times, before = (queue_s, compute_s), len(self._tokens)
        self.counts.forwards += forwards
        commit = self._commit(work, verdict, kept, times)
        self._learn(work, verdict, self._tokens[before:])
        if self._wants:
            rows = verdict.logprobs[: len(self._tokens) - before]
            pairs = tuple([pair for row in rows for pair in row])
            self._pairs += pairs
            commit = dataclasses.replace(commit, logprobs=pairs)
        return [commit]

    def _commit(
        self, work: Work, verdict: Verdict, kept: list[int], times: tuple[float, float]
    ) -> Commit:
        """Make ``kept`` text, as far as the text goes; return what to say of it."""
        decision, drafted = verdict.decision, work.drafted - work.found
        before, whole = len(self._tokens), len(kept)
        self.counts.drafted += work.sent(drafted)
        stop = next((i + 1 for i, t in enumerate(kept) if t in self._stops), whole)
        kept = kept[: min(stop, self._end - before)]
        right = min(len(kept), decision.accepted)
        held = min(right, drafted)
        accepted = work.sent(held)
        token = kept[held] if len(kept) > held else None
        further = tuple(kept[held + 1 :])
        self.counts.accepted += accepted
        self.counts.emitted += len(kept)
        self.counts.forced += held - accepted
        self._grow(kept)
        # The cache holds what was right, but never the last token of the text: its
        # logits are wanted next.
        self.cached = before + right
        self._tail = 0
        if self._guide is not None and len(kept) == whole:
            self._append_forced(verdict.tail, ended=verdict.ended)
        else:
            self._check_end()
            # What leaves have left in the cache stands at the wrong place: once more.
            self._tail = max(0, len(kept) - right - 1)
        self.cached = min(self.cached, len(self._tokens) - 1)
        owes = bool(decision.evidence) and held == decision.accepted and not self.finish
        ended = State.ENDED if self.finish else State.WAITING
        self._step("> commit", State.OWED if owes else ended)
        if work.epoch == self.epoch and (owes or decision.accepted < drafted):
            self.branch.kill(before - self._prompt + held, -1 if token is None else token)
        self.branch.settle(self._tokens, self._prompt)
        said = (work.epoch, accepted, token, self.finish, *times)
        evidence = decision.evidence if owes else b""
        digest = b"" if owes else self._digest()
        told = self._forwards(), digest, self._ties(), further
        return Commit(*said, evidence, *told, beside=self._beside())

    def _learn(self, work: Work, verdict: Verdict, kept: Sequence[int]) -> None:
        """Note what a forward gave, and what became of words that cost no draft."""
        right, token = verdict.decision[:2]
        self._pace += 0.1 * (len(kept) - self._pace)
        self.leaves.judged(work.drafted - work.found, right, token, work.sides)
        self.counts.leaves += sum(len(ids) for _, ids in work.sides)
        self.counts.leaves_right += len(verdict.beyond)
        if self._lookup is None:
            return
        self._lookup.extend(kept)
        self.counts.wanted, self.counts.spared = self._lookup.wanted, self._lookup.spared
        found = right - (work.drafted - work.found)
        if work.found and found >= 0:
            self.counts.found += work.found
            self.counts.found_right += found
            self._lookup.judged(min(found + 1, work.found), found)

    # ---- an engine that keeps the stream itself

    def order(self) -> Order:
        """Return the stream as such an engine shall keep it, from here on."""
        self._known, self._looked, self._fresh = [], 0, True
        stops = tuple(sorted(self._stops))
        return Order(tuple(self._tokens), self._end, stops, self._params, self._vocab_size)

    def offer(self) -> Push:
        """Return what the stream wants of it now."""
        at = len(self._tokens)
        drafts = self.branch.waiting(partial=self.racing)[: max(0, self._end - at - 1)]
        asks, ahead = self._prompt + self.branch.asks, self._prompt + self._ahead
        if self._known and self._asked:  # what is known does not answer it
            asks = max(asks, at + len(self._known) + 1)
        return Push(self.epoch, at, drafts, asks, ahead)

    def advance(self, step: Step) -> list[Message]:
        """Take in what it has decided; return commits of what was asked for.

        The rest waits.

        Raises:
            ModelError: It accepted what nobody drafted.
        """
        if self.state in (State.ENDED, State.PARKED) or not step.tokens:
            return []  # it was on its way
        # A step that reads a prompt counts when it alone decides what is said next.
        self._free, self._fresh = self._fresh, False
        self.counts.forwards += not self._free
        times = step.queue_s, step.compute_s
        tokens, n = list(step.tokens), step.drafted
        if n and step.epoch != self.epoch and not self._known:
            # Of a branch that was given up meanwhile.
            accepted = min(n, len(tokens) - 1)
            kept, self._known = tokens[: accepted + 1], tokens[accepted + 1 :]
            self._step("forward")
            verdict = Verdict(Decision(accepted, kept[-1]))
            said = self._commit(_judged(step.epoch, n), verdict, kept, times)
            return [said, *self._release((0.0, 0.0), stepped=True)]
        if n and step.epoch == self.epoch:
            before = len(self._known)
            drafts = self.branch.waiting(partial=True)[before : before + n]
            right = tuple(tokens[: min(n, len(tokens) - 1)]) == drafts[: len(tokens) - 1]
            if len(drafts) < n or not right:
                raise ModelError(
                    f"the engine of target {self._target} accepted tokens that were not "
                    "drafted",
                    hint="the versions of engine and draftwire do not go together",
                )
            self._looked = before + n
        self._known += tokens
        return self._release(times, stepped=True)

    def _release(self, times: tuple[float, float], *, stepped: bool) -> list[Message]:
        """Commit what the engine has decided and the device has asked for."""
        said: list[Message] = []
        while self._known and not self.done and self._asked:
            room = self._end - len(self._tokens)  # the last token needs no draft
            known, drafts = self._known, self.branch.waiting(partial=True)[: room - 1]
            right = [a == b for a, b in zip(known, drafts)]
            n = (*right, False).index(False)
            kept = known[: n + 1]
            over = len(kept) >= room or not self._stops.isdisjoint(kept)
            if n == len(known) and not over:
                if stepped and self.racing:
                    n -= 1  # the step knew of no drafts, or of fewer
                elif len(drafts) > n or self._bonus:
                    break
            elif n == len(drafts) and n and not (self._bonus or over):
                kept = known[:n]  # the bonus is for the next block to guess
            looked = self._looked if stepped else min(n + 1, len(drafts))
            drafted = max(n, min(looked, len(drafts)))
            self._known, self._looked = known[len(kept) :], 0
            self.branch.strike(drafted)
            self._step("forward")
            self.counts.forwards += self._free
            self._free = False
            work, verdict = _judged(self.epoch, drafted), Verdict(Decision(n, kept[-1]))
            said.append(self._commit(work, verdict, kept, times))
            times = 0.0, 0.0
        return said

    def _grow(self, tokens: Sequence[int]) -> None:
        """Make ``tokens`` text."""
        self._tokens += tokens
        self._hash.extend(tokens)
        if self._shape is not None:
            self._shape.follow(self._tokens)

    def _digest(self) -> bytes:
        """Return the hash of the text, at the end and now and then, else nothing."""
        if not self.finish and self._position < self._hashed + _HASH_EVERY:
            return b""
        self._hashed = self._position
        return self._hash.digest()

    def _ties(self) -> int | None:
        """Return what a commit says of near ties: None where that is as it was."""
        ties, told = self.counts.near_ties, self._told_ties
        self._told_ties = ties
        return None if ties == told else ties

    def _beside(self) -> tuple[int, ...]:
        """Return what a commit says of the drafting beside the target, now and then."""
        if not self._tells or self._lookup is None:
            return ()
        new = self._lookup.wanted - self._told_wanted
        if not (new >= _TELL_EVERY or (new and self.finish)):
            return ()
        self._told_wanted = self._lookup.wanted
        return self._lookup.wanted, self._lookup.spared

    def _forwards(self) -> int | None:
        """Return what a commit says: None is one more than the device knows of."""
        ran, told = self.counts.forwards, self._told
        self._told = ran
        return None if ran == told + 1 else ran

    def _check_end(self, *, ended: bool = False) -> None:
        if ended or (self._position > 0 and self._tokens[-1] in self._stops):
            self.finish = Finish.STOP
        elif len(self._tokens) >= self._end:
            self.finish = Finish.LENGTH


def _judged(epoch: int, drafted: int) -> Work:
    """Return what an engine has judged by itself."""
    return Work(0, np.zeros(0, np.int64), 0, False, drafted, epoch=epoch)


def _at(work: Work) -> int:
    """Return the place of the first draft in the text."""
    return work.start + work.first


def _check(request: Open, params: SamplingParams, welcome: Welcome, grammar: bool) -> None:
    """Refuse an open that this target cannot serve, or that does not go together."""
    size, context = len(request.prompt), welcome.context
    noises, schemes = welcome.noise, welcome.schemes
    capabilities = welcome.capabilities
    rules = (
        (not size, "the prompt is empty", "send at least one token"),
        (
            size >= context,
            f"the prompt has {size} tokens, the target's context is {context} and must "
            "hold at least one more",
            "shorten the prompt",
        ),
        (request.max_new_tokens < 1, "max_new_tokens must be at least 1", ""),
        (
            request.scheme == "coupled" and request.noise not in noises,
            f"the noise profile {request.noise[:40]!r} was not agreed on",
            "one of the welcome's: " + (", ".join(noises) or "it has none"),
        ),
        (
            request.scheme not in schemes and request.scheme in SCHEMES,
            f"this target cannot do scheme {request.scheme!r}",
            "it can do " + ", ".join(schemes),
        ),
        (
            request.text_before > size,
            f"{request.text_before} ids of a context of {size} are text",
            "",
        ),
        (
            request.logprobs and "logprobs" not in capabilities,
            "the open asks for log-probabilities without the capability logprobs",
            "name it in the hello",
        ),
        (
            request.logprobs and card_of(params.scheme).own_corrections,
            f"no log-probabilities with scheme {params.scheme!r}: the device draws what "
            "follows a rejection",
            "use scheme coupled",
        ),
        (
            request.logprobs and grammar and request.forced,
            "no log-probabilities of ids that a grammar forces: nobody judges them",
            "open with forced = 0",
        ),
        (
            params.processed and "processors" not in capabilities,
            "the open asks for min_p, penalties, bias or bad words without the capability "
            "processors",
            "name it in the hello",
        ),
    )
    for wrong, sentence, hint in rules:
        if wrong:
            raise ConfigError(sentence, hint=hint)


def params_of(request: Open) -> SamplingParams:
    """Return the sampling that ``request`` asks for.

    Raises:
        ConfigError: A value is out of range.
    """
    names = (field.name for field in dataclasses.fields(SamplingParams))
    return SamplingParams(**{name: getattr(request, name) for name in names})


def _top_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the top probability of each row, ``(rows,)``."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    found: np.ndarray = 1.0 / np.exp(rows).sum(axis=-1)
    return found
