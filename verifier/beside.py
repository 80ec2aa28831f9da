"""A draft beside the target: it drafts on where the device's drafts are late.

When a forward could begin with fewer drafts than are worth a forward here, the rest is
drafted behind them first, as speculation on one machine would. Such drafts are judged as
the device's are, with the noise of the same positions: the text is the same. What the
device has sent by then is taken where it reaches further.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Callable, NamedTuple, Sequence

import numpy as np

from draftwire.errors import DraftwireError
from draftwire.verifier.lookup import Lookup

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # `typing.Protocol` costs start-up time and checks nothing here

__all__ = ["Beside", "Drafting", "Drafts", "Model"]

log = logging.getLogger("draftwire.verifier")

_MOST = 16  # drafts that a forward is topped up to
_READ = 256  # ids of a text that are read before one forward
_AGAIN = 500  # forwards without a draft, and a draft is timed anew: it may be dear no more
_FIRST = 4  # before anything is known
_MEMORY = 0.995  # of the acceptance, a draft judged
_PRIOR = 6.0  # drafts that the first guess at it weighs

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


class Drafting(NamedTuple):
    """What is to be drafted before a forward.

    Attributes:
        steps: Forwards of the draft that it takes.
        run: Does it, in the thread of the target's forwards; returns the seconds of a
            draft, loading and reading left out, or 0 where none could be timed.
    """

    steps: int
    run: Callable[[], float]


class Drafts:
    """Draft models for the streams of one target, one for each that runs.

    Args:
        make: Loads one; called in the thread of the target's forwards.
        vocab_size: Ids that it knows are below this.
        context: Tokens that it holds.
    """

    def __init__(self, make: Callable[[], Model], vocab_size: int, context: int) -> None:
        self._make = make
        self._idle: list[Model] = []
        self.vocab_size, self.context = vocab_size, context
        self.works = True
        self.chance = 0.7  # that a draft is right, in the stream before
        self.idle = 0  # forwards in a row that no draft was worth

    def take(self) -> Model:
        """Return a model with an empty cache."""
        model = self._idle.pop() if self._idle else self._make()
        model.rewind(0)
        return model

    def give_back(self, model: Model) -> None:
        """Keep ``model`` for the next stream."""
        self._idle.append(model)

    def failed(self, error: Exception) -> None:
        """Draft no more: the streams go on without."""
        self.works = False
        hint = error.hint if isinstance(error, DraftwireError) else ""
        log.error("the draft beside the target fails, none drafts now: %s %s", error, hint)


class Beside(Lookup):
    """Drafts for one stream; where it has none, the text is looked up.

    Args:
        tokens: Ids of prompt and text.
        most: Tokens that are looked up at once, at most.
        drafts: Where its model comes from.
    """

    def __init__(self, tokens: Sequence[int], most: int, drafts: Drafts) -> None:
        super().__init__(tokens, most)
        self._drafts = drafts
        self._model: Model | None = None
        self._read: list[int] = []  # what the model's cache holds
        self._sure = 0  # so many of them are text
        self._made: list[int] = []  # behind the text as it was then: the device's, and ours
        self._length_then = -1
        self._wanted = 0  # drafts that this forward is worth
        self._gave = False  # what was found last is of the model's
        self._judged, self._right = _PRIOR, _PRIOR * drafts.chance
        self._over = self._at_work = False
        self._step_s = 0.0
        self._lock = threading.Lock()  # on the model's way back

    def worth(self, forward_s: float, row: float, step_s: float) -> int:
        """Return how many drafts a forward is to have, if they are made here.

        Args:
            forward_s: Of the target, in seconds; 0 before the first.
            row: What a row more costs, as a share of that.
            step_s: Of a draft, in seconds; 0, as if it cost nothing, before one was timed.
        """
        drafts = self._drafts
        if not forward_s or drafts.idle >= _AGAIN:
            drafts.idle = 0
            return _FIRST
        chance = min(self._right / self._judged, 0.99)
        best, found, tokens, reach = 1 / forward_s, 0, 1.0, 1.0
        for count in range(1, _MOST + 1):
            reach *= chance
            tokens += reach
            rate = tokens / (forward_s * (1 + row * count) + step_s * count)
            if rate > best:
                best, found = rate, count
        drafts.idle = 0 if found else drafts.idle + 1
        return found

    def plan(self, drafts: Sequence[int], wanted: int, own: Own) -> Drafting | None:
        """Return what is to be drafted behind ``drafts``, if anything.

        Args:
            drafts: They stand behind the text, and wait.
            wanted: So many there shall be.
            own: Draws.
        """
        self._made, self._wanted, self._over = [], wanted, False
        length = len(self._text) + len(drafts)
        count = wanted - len(drafts)
        if not self._drafts.works or length + count > self._drafts.context or count <= 0:
            return None
        self._length_then = len(self._text)
        self._at_work = True
        return Drafting(count, partial(self._draft, list(drafts), count, own))

    def _draft(self, drafts: list[int], count: int, own: Own) -> float:
        self._step_s = 0.0
        try:
            if self._model is None:
                self._model, self._read, self._sure = self._drafts.take(), [], 0
            self._made = self._behind(self._model, drafts, count, own)
        except Exception as error:  # noqa: BLE001 - engines raise their own classes
            self._model = None
            self._drafts.failed(error)
        finally:
            with self._lock:
                self._at_work = False
            if self._over:  # the stream has ended meanwhile
                self.close()
        return self._step_s

    def _behind(self, model: Model, drafts: list[int], count: int, own: Own) -> list[int]:
        text = [*self._text[self._sure :], *drafts]
        held = self._read[self._sure :]
        same = 0
        while same < min(len(held), len(text) - 1) and held[same] == text[same]:
            same += 1
        del self._read[self._sure + same :]
        model.rewind(len(self._read))
        self._sure = min(len(self._read), len(self._text))
        rest = text[same:]
        if max(rest) >= self._drafts.vocab_size:
            return []  # a token that the draft cannot read
        if len(rest) > _READ:  # a prompt, piece by piece: others wait for their forward
            self._feed(model, rest[:_READ])
            return []
        row, made = self._feed(model, rest), list(drafts)
        begin_s, fed = time.perf_counter(), len(self._read)
        while len(made) < len(drafts) + count:
            made.append(own(made, row))
            if made[-1] >= self._drafts.vocab_size:
                break
            if len(made) < len(drafts) + count:
                row = self._feed(model, made[-1:])
        if len(self._read) > fed:
            self._step_s = (time.perf_counter() - begin_s) / (len(self._read) - fed)
        return made

    def _feed(self, model: Model, ids: list[int]) -> np.ndarray:
        self._read += ids
        return model.forward(ids)

    def reach(self, waiting: Sequence[int]) -> int:
        """Return how many of the drafts that wait go into the forward: all but those
        that contradict longer ones made here."""
        made = self._made if self._length_then == len(self._text) else []
        same = 0
        while same < min(len(made), len(waiting)) and made[same] == waiting[same]:
            same += 1
        return same if same < len(waiting) < len(made) else len(waiting)

    def find(self, drafts: Sequence[int], price: float = 0.0) -> list[int]:
        """See :class:`Lookup`: what was made, where it goes on from ``drafts``."""
        n = len(drafts)
        made = self._made if self._length_then == len(self._text) else []
        self.wanted += self._wanted
        self.spared += min(n, self._wanted)
        self._gave = len(made) > n and made[:n] == list(drafts)
        self._made, self._wanted = [], 0
        return made[n:] if self._gave else super().find(drafts, price)

    def judged(self, count: int, right: int) -> None:
        """See :class:`Lookup`."""
        if not self._gave:
            super().judged(count, right)
            return
        fade = _MEMORY**count
        self._judged = fade * self._judged + count
        self._right = fade * self._right + right

    def close(self) -> None:
        """The stream has ended, or waits for its device."""
        self._over = True
        self._drafts.chance = self._right / self._judged
        with self._lock:
            if self._at_work:  # whoever works gives it back
                return
            model, self._model = self._model, None
        if model is not None:
            self._drafts.give_back(model)
