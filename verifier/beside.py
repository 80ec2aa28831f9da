"""A draft beside the target: it drafts on where the device's drafts are late.

When a forward could begin with fewer drafts than are worth a forward here, the rest is
drafted behind them first, as speculation on one machine would, and for as long as the
draft is sure enough: each draft delays the forward, and has to gain more tokens than the
stream makes in that time. Such drafts are judged as the device's are, with the noise of
the same positions: the text is the same. What the device has sent by then is taken where
it reaches further.
"""

from __future__ import annotations

import logging
import threading
import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Callable, Generator, List, Protocol, Sequence

import numpy as np

from draftwire.errors import DraftwireError
from draftwire.verifier.rows import Lookup, Share

log = logging.getLogger("draftwire.verifier")

_MOST = 24  # drafts that a forward is topped up to
_READ = 256  # ids of a text that are read before one forward
# Forwards without a draft, and one is timed anew: it may be dear no more. At first soon,
# since the first ones of a model may be slow, then twice as rarely each time.
_AGAIN, _RARELY = 8, 512
_FIRST = 4  # before anything is known
_MEMORY = 0.995  # of an acceptance, a draft judged
_BINS = 8  # of the draft's own probability
_PRIOR = 6.0  # drafts that a first guess weighs
_KNOWN = 6.0  # forwards that a first guess of that weighs
_PACE = 0.98  # of tokens and seconds, a forward

# Returns what a scheme draws behind the text and a path, of logits ``(vocab,)``.
Own = Callable[[Sequence[int], "np.ndarray"], int]


class Model(Protocol):
    """A draft model with one KV cache; the device's are such."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed ``tokens``; return logits ``(vocab,)`` after the last one."""

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""


class Shares:
    """How often drafts were right: in all, and by how sure the draft was of them."""

    def __init__(self) -> None:
        # What is thought too good is soon known.
        guesses = [0.85, *(((i + 0.5) / _BINS) ** 0.8 for i in range(_BINS))]
        shares = [Share(guess, _PRIOR, _MEMORY) for guess in guesses]
        self.all: Share = shares[0]
        self.by: list[Share] = shares[1:]

    @property
    def mean(self) -> float:
        """Chance of a draft that nothing is known of."""
        return min(0.99, self.all.value)

    def of(self, sure: float) -> Share:
        """Return the share of drafts that have this probability."""
        return self.by[min(int(sure * _BINS), _BINS - 1)]

    def add(self, sure: float | None, right: bool) -> None:
        """Learn of a draft that was judged; None is one of the device's."""
        for share in [self.all] if sure is None else [self.all, self.of(sure)]:
            share.add(right)


class Drafts:
    """Draft models for the streams of one target, one for each that runs."""

    def __init__(
        self,
        make: Callable[[], Model],  # loads one, in the thread of the target's forwards
        vocab_size: int,  # ids that it knows are below this
        context: int,  # tokens that it holds
    ) -> None:
        self._make = make
        self._idle: list[Model] = []
        self.vocab_size, self.context = vocab_size, context
        self.works = True
        self.shares = Shares()  # of the stream before
        self.idle, self.again = 0, _AGAIN  # forwards in a row that no draft was worth

    def take(self) -> Model:
        """Return a model with an empty cache."""
        model = self._idle.pop() if self._idle else self._make()
        model.rewind(0)
        return model

    def give_back(self, model: Model) -> None:
        """Keep ``model`` for the next stream."""
        self._idle.append(model)

    def forward(self, asked: Sequence[tuple[Model, list[int]]]) -> Sequence[np.ndarray]:
        """Feed each its tokens; return the logits after the last of each."""
        return [model.forward(tokens) for model, tokens in asked]

    def failed(self, error: Exception) -> None:
        """Draft no more: the streams go on without."""
        self.works = False
        hint = error.hint if isinstance(error, DraftwireError) else ""
        log.error("the draft beside the target fails, none drafts now: %s %s", error, hint)


Steps = Generator[List[int], np.ndarray, None]


@dataclass(eq=False)
class Drafting:
    """What a stream drafts before a forward, one forward of the draft after another."""

    stream: Beside
    steps: Steps  # yields tokens to feed, and is sent the logits after them
    taken: int = 0  # forwards so far


def draft(jobs: Sequence[Drafting]) -> tuple[int, float]:
    """Draft for several streams, side by side.

    Return the rounds that it took, and the seconds of one draft, loading and reading left
    out; 0 where none could be timed.
    """
    rounds = drafted = 0
    seconds, drafts = 0.0, jobs[0].stream.drafts
    rows: list[np.ndarray | None] = [None] * len(jobs)
    going = list(jobs)
    try:
        while going:
            asked, still = [], []
            begin_s = time.perf_counter()
            for job, row in zip(going, rows):
                try:
                    tokens = next(job.steps) if row is None else job.steps.send(row)
                except StopIteration:
                    continue
                job.taken += 1
                asked.append((job.stream.model, tokens))
                still.append(job)
            going = still
            if going:
                rows = list(drafts.forward(asked))
                rounds += 1
                if all(job.taken > 1 for job in going):
                    drafted += len(going)
                    seconds += time.perf_counter() - begin_s
    except Exception as error:  # noqa: BLE001 - engines raise their own classes
        for job in jobs:
            job.stream.forsake()
        drafts.failed(error)
    for job in jobs:
        job.stream.drafted()
    return rounds, seconds / drafted if drafted else 0.0


class Beside(Lookup):
    """Drafts for one stream; where it has none, the text is looked up."""

    def __init__(self, tokens: Sequence[int], most: int, drafts: Drafts) -> None:
        super().__init__(tokens, most)
        self.drafts = drafts
        self._model: Model | None = None
        self._read: list[int] = []  # what the model's cache holds
        self._sure = 0  # so many of them are text
        self._made: list[int] = []  # behind the text as it was then: the device's, and ours
        self._chances: list[float | None] = []  # the draft's own, of each
        self._length_then = -1
        self._worth = 0  # drafts of the device that the present forward is worth
        self._judged: list[int] = []  # that go into it
        self._gave = False  # what was found last is of the model's
        self._shares = deepcopy(drafts.shares)
        self._tokens = self._seconds = 0.0  # of late
        self._cycle_s = (0.0, 0.0)  # of the present forward, and of a draft
        self._over = self._at_work = False
        self._lock = threading.Lock()  # on the model's way back

    @property
    def model(self) -> Model:
        """Its own, loaded when it is needed; in the thread of the target's forwards."""
        if self._model is None:
            self._model, self._read, self._sure = self.drafts.take(), [], 0
        return self._model

    def plan(
        self,
        waiting: Sequence[int],  # drafts, which stand behind the text
        room: int,  # drafts that a forward may have
        own: Own,  # draws
        forward_s: float,  # of the target, in seconds; 0 before the first
        row: float,  # what a row more costs, as a share of that
        # that a draft delays the streams of a forward by, all together; 0, as if it cost
        # nothing, before one was timed
        step_s: float,
    ) -> Drafting | None:
        """Return what is to be drafted behind the drafts that wait, if anything."""
        self._made, self._chances, self._over = [], [], False
        self._cycle_s = forward_s, step_s
        drafts, n, chance = self.drafts, len(waiting), self._shares.mean
        # Tokens that the stream makes in the time that one more draft takes.
        more_s = step_s + row * forward_s
        price = more_s * self._rate(more_s)
        most, reach = min(_MOST, room), chance
        trial = not forward_s or drafts.idle >= drafts.again
        if trial:
            most, price = min(_FIRST, room), 0.0
        self._worth = 0
        while self._worth < most and reach > price:
            self._worth, reach = self._worth + 1, reach * chance
        if trial:
            drafts.again = min(2 * drafts.again, _RARELY)
        elif self._worth:
            drafts.again = _AGAIN
        drafts.idle = 0 if self._worth else drafts.idle + 1
        if n >= self._worth or not drafts.works:
            return None
        if len(self._text) + most > drafts.context:
            return None
        self._length_then = len(self._text)
        self._at_work = True
        return Drafting(self, self._behind(list(waiting), most, own, price))

    def _rate(self, more_s: float) -> float:
        """Return the tokens that a second gives: of late, and before, the most that drafts
        of ``more_s`` each could give if all were right as often.
        """
        forward_s, chance = self._cycle_s[0], self._shares.mean
        if not forward_s:
            return 0.0
        best = tokens = 0.0
        for n in range(_MOST + 1):
            tokens += chance**n
            best = max(best, tokens / (forward_s + n * more_s))
        known_s = _KNOWN * forward_s
        return (self._tokens + best * known_s) / (self._seconds + known_s)

    def _behind(self, made: list[int], most: int, own: Own, price: float) -> Steps:
        text = [*self._text[self._sure :], *made]
        held = self._read[self._sure :]
        same = 0
        while same < min(len(held), len(text) - 1) and held[same] == text[same]:
            same += 1
        del self._read[self._sure + same :]
        model = self.model
        model.rewind(len(self._read))
        self._sure = min(len(self._read), len(self._text))
        rest = text[same:]
        if max(rest) >= self.drafts.vocab_size:
            return  # a token that the draft cannot read
        self._read += rest[:_READ]
        row = yield rest[:_READ]
        if len(rest) > _READ:  # a prompt, piece by piece: others wait for their forward
            return
        shares = self._shares
        mean, reach = shares.mean, shares.mean ** len(made)
        self._made = made
        chances = self._chances = [None for _ in made]
        while True:
            made.append(own(made, row))
            chances.append(sure := _probability(row, made[-1]))
            reach *= shares.of(sure).value
            if made[-1] >= self.drafts.vocab_size or len(made) >= most:
                return
            if reach * mean <= price:
                return
            self._read += made[-1:]
            row = yield made[-1:]

    def forsake(self) -> None:
        """The model has failed."""
        self._model, self._made = None, []

    def drafted(self) -> None:
        """The drafting is done."""
        with self._lock:
            self._at_work = False
        if self._over:  # the stream has ended meanwhile
            self.close()

    def reach(self, waiting: Sequence[int]) -> int:
        """Return how many of the drafts that wait go into the forward: all but those
        that contradict longer ones made here.
        """
        made = self._made if self._length_then == len(self._text) else []
        same = 0
        while same < min(len(made), len(waiting)) and made[same] == waiting[same]:
            same += 1
        return same if same < len(waiting) < len(made) else len(waiting)

    def find(self, drafts: Sequence[int], price: float = 0.0) -> list[int]:
        """See :class:`Lookup`: what was made, where it goes on from ``drafts``."""
        n = len(drafts)
        made = self._made if self._length_then == len(self._text) else []
        self._gave = len(made) > n and made[:n] == list(drafts)
        spared = n if self._gave else min(n, self._worth)
        self.spared += spared
        self.wanted += spared + (len(made) - n if self._gave else 0)
        self._judged = made if self._gave else list(drafts)
        steps = sum(chance is not None for chance in self._chances)
        forward_s, step_s = self._cycle_s
        self._seconds = _PACE * self._seconds + forward_s + step_s * steps
        self._made, self._worth = [], 0
        return made[n:] if self._gave else super().find(drafts, price)

    def extend(self, ids: Sequence[int]) -> None:
        super().extend(ids)
        if self._cycle_s[0]:  # or it is not known what they took
            self._tokens = _PACE * self._tokens + len(ids)
        chances = self._chances if self._gave else [None] * len(self._judged)
        for draft, token, sure in zip(self._judged, ids, chances):
            self._shares.add(sure, draft == token)
            if draft != token:
                break
        self._judged, self._chances = [], []

    def judged(self, count: int, right: int) -> None:
        if not self._gave:
            super().judged(count, right)

    def close(self) -> None:
        """The stream has ended, or waits for its device."""
        self._over = True
        self.drafts.shares = self._shares
        with self._lock:
            if self._at_work:  # whoever works gives it back
                return
            model, self._model = self._model, None
        if model is not None:
            self.drafts.give_back(model)


def _probability(row: np.ndarray, token: int) -> float:
    """Return how likely the draft thinks ``token``, of its logits."""
    return float(1 / np.exp(np.minimum(row - row[token], 80.0)).sum())
