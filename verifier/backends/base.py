"""What the verifier asks of an engine that holds a target model.

A backend keeps ``slots`` KV caches. One forward takes a *ragged* batch: several slots,
each with its own context length and its own number of new tokens. Rewinding is implied:
tokens that start below a slot's length overwrite what was there.

A backend must be *block invariant*: the logits of k tokens in one forward equal those
of k single forwards, whatever else is in the batch. Otherwise the text of speculative
decoding would not be the target's own. Floating-point sums depend on their order, and an
engine chooses the order by the shapes that it sees, so a backend says its ``numerics``:
``exact`` when it shows the engine only shapes that give the same bits (:class:`Form`),
``close`` when it takes what is quickest and near ties may fall either way.
docs/verifier.md says where bits come apart and what each costs.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Protocol, Sequence, Tuple

import numpy as np

from draftwire.errors import ConfigError, ModelError, RefusedError

if TYPE_CHECKING:
    from draftwire.packages import Exit, Family

log = logging.getLogger("draftwire.verifier")

# More takes the event loop longer than a turn of it should; then it is read again.
SHARED_BYTES = 64 << 20
# Takes the number of an exit, and for each input of the forward, or frame, the exit's
# logits ``(rows, vocab_size)``: see ``TargetBackend.forward``.
ExitListener = Callable[[int, List["np.ndarray[Any, Any]"]], None]


@dataclass(frozen=True)
class SlotInput:
    """New tokens of one session for a forward."""

    slot: int  # the KV slot, from ``TargetBackend.allocate``
    # position of the first token; at most the slot's length, and below it means a rewind to
    # ``start`` first
    start: int
    tokens: np.ndarray[Any, Any]  # ``(n,)`` int64 token ids, ``n >= 1``
    # how many rows of logits to return, those of the last ``rows`` tokens; 0 while a prompt
    # is only being read
    rows: int
    # the last tokens are leaves: of each, how many of the tokens in front it stands behind.
    # Its place is theirs to fill, but none of them looks at it, it is not kept, and
    # ``rows`` counts it. Only where the backend takes them.
    leaves: tuple[int, ...] = ()
    # of each leaf, how many of the leaves directly before it it stands behind too: 0, or
    # one more than the leaf before, which then stands behind the same tokens. Its place is
    # as many further. Empty where there are no such branches.
    chains: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def kept(self) -> int:
        """How many of the tokens stay in the slot: all but leaves."""
        return len(self.tokens) - len(self.leaves)

    def beside(self) -> Iterator[tuple[int, int, int]]:
        """Yield each leaf's row among the tokens, its ``leaves`` and its ``chains``."""
        return zip(count(self.kept), self.leaves, self.chains or [0] * len(self.leaves))

    def part(self, first: int, last: int) -> SlotInput:
        """Return tokens ``first..last-1``, and those of the wanted rows that are theirs."""
        n = len(self.tokens)
        if first == 0 and last == n:
            return self
        rows = max(0, last - max(first, n - self.rows))
        return SlotInput(self.slot, self.start + first, self.tokens[first:last], rows)


class Target(Protocol):
    """What is known of a target, whichever engine it is on."""

    id: str  # hash of the weights' package; changes with every version
    name: str  # for people, such as "reference"
    version: str  # which evolution of the target, such as "v2"
    family: Family  # what a draft must share: backbone and tokenizer fingerprints
    vocab_size: int  # number of token ids, padding rows left out
    context: int  # most tokens of a stream
    bos_id: int | None  # token that starts a text
    eos_ids: tuple[int, ...]  # tokens that end one
    slots: int  # how many streams fit at the same time
    exits: tuple[Exit, ...]  # early exits, from the lowest up
    # "exact": a position's logits have the same bits however they were asked for; "close":
    # the same up to ``logit_error``; "unstated": the arithmetic is nobody's promise
    numerics: str
    # how far two ways to ask were apart when it was loaded, in logits; 0.0 when exact, or
    # not known
    logit_error: float


class TargetBackend(Target, Protocol):
    """A target model on some engine, with KV slots for many sessions.

    Its inputs may have leaves where it has an attribute ``leaves`` that is true.
    """

    def allocate(self) -> int:
        """Take a KV slot; a RefusedError where every one is in use."""
        raise NotImplementedError

    def release(self, slot: int) -> None:
        """Give a slot back; its content is forgotten."""
        raise NotImplementedError

    def share(self, source: int, slot: int, length: int) -> bool:
        """Copy what ``length`` tokens of a slot have left into one that was just allocated.

        Callable while the worker runs other tokens of ``source``, which keeps those. False
        where that is not to be had; then the tokens have to be read.
        """
        raise NotImplementedError

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Run one forward over inputs of different slots; blocking, for one worker thread.

        Args:
            batch: The inputs.
            on_exit: Called from the same thread in the middle of the forward, once an
                exit is reached: its number, and its logits of the wanted rows of each
                input. A backend that cuts the batch calls it for each cut, with no
                rows for the inputs that are not in it, or not with all wanted rows. What
                it raises ends the forward; the slots are then rewound to the inputs' first
                tokens. None is the plain forward at its plain price.

        Returns:
            For each input, ``(rows, vocab_size)`` float32 logits of its last ``rows``
            tokens.

        Raises:
            ModelError: An input does not fit its slot, or the engine failed.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Form:
    """What an engine gets to see of a batch, so that its sums go one way.

    The plain form is what was asked for. An exact one gives each position's sums one order
    on the engine at hand: because its shapes do not depend on what was asked (``alone``),
    or because the engine's kernels have no other order for shapes of that kind, which
    :meth:`SlotTarget.settle` tries out.
    """

    # forwards begin at its multiples and end before the next; what is in the cache since
    # then is computed again. 0 begins where the input does.
    window: int = 0
    rows: int = 1  # new tokens and wanted logits are padded to a multiple of it
    columns: int = 1  # so is what attention looks back on
    # one input a forward, its row and column counts a function of its window
    alone: bool = False

    def cut(
        self, batch: Sequence[SlotInput], tokens: np.ndarray[Any, Any]
    ) -> Iterator[list[Cut]]:
        """Yield forwards of the engine, each with which input its parts belong to.

        ``tokens`` ``(slots, context)`` are cached.
        """
        rest = list(enumerate(batch))
        while rest:
            now, later = [], []
            for i, item in rest:
                first = item.start - (item.start % self.window if self.window else 0)
                n = min(len(item), first + (self.window or len(item)) - item.start)
                head = item.part(0, n)
                again = np.concatenate([tokens[item.slot, first : item.start], head.tokens])
                # Leaves come to forms without windows alone.
                now.append((i, replace(head, start=first, tokens=again)))
                if n < len(item):
                    later.append((i, item.part(n, len(item))))
            yield from ([one] for one in now) if self.alone else [now]
            rest = later


# Which input of a batch, and what of it.
Cut = Tuple[int, SlotInput]


class Frame:
    """Inputs of different slots side by side, left-aligned and padded as a form says."""

    def __init__(self, items: Sequence[SlotInput], form: Form) -> None:
        self.items = items
        self.width = width = up(max(len(item) for item in items), form.rows)
        self.ids = np.zeros((len(items), width), np.int64)  # padded with 0
        wanted = []
        for b, item in enumerate(items):
            n = len(item)
            self.ids[b, :n] = item.tokens
            wanted.append(np.arange(b * width + n - item.rows, b * width + n))
        # where logits are wanted, as indices ``b * width + s``, padded
        self.rows = np.concatenate(wanted)
        columns = self.rows % width
        # so many of the last columns hold all of them, padded, at least 1
        self.keep = up(width - int(columns.min(initial=width - 1)), form.rows)
        if form.alone and len(self.rows):
            self.rows = np.arange(width)
        elif len(self.rows):
            short = -len(self.rows) % form.rows
            self.rows = np.pad(self.rows, (0, short), "edge")

    def places(self) -> np.ndarray[Any, Any]:
        """Return each token's place in its text, ``(B, width)`` int64; 0 for padding."""
        places = np.zeros(self.ids.shape, np.int64)
        for row, item in zip(places, self.items):
            row[: item.kept] = np.arange(item.start, item.start + item.kept)
            for at, behind, chain in item.beside():
                row[at] = item.start + behind + chain
        return places

    def by_row(self, logits: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Return each input's wanted logits of those ``(N, vocab)`` of ``rows``."""
        if len(self.items) == 1:  # its rows may be in the middle of a whole window
            first = int(self.rows[0]) if len(self.rows) else 0
            end = len(self.items[0]) - first
            return [logits[end - self.items[0].rows : end]]
        ends = np.cumsum([item.rows for item in self.items])
        return [logits[end - item.rows : end] for item, end in zip(self.items, ends)]

    def by_column(self, logits: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Return each input's wanted logits of those ``(B, keep, vocab)`` of columns."""
        gone = self.width - self.keep
        return [
            rows[len(item) - item.rows - gone : len(item) - gone]
            for item, rows in zip(self.items, logits)
        ]


def up(count: int, step: int) -> int:
    """Return the least multiple of ``step`` that is at least ``count``."""
    return -(-count // step) * step


class SlotTarget:
    """What the backends share: slots, and batches cut and joined as a form says.

    It knows which slots are taken, and what each holds of ``context`` tokens. A backend
    gives its engine in :meth:`run` and calls :meth:`settle`.
    """

    name: str
    numerics = "close"
    logit_error = 0.0
    masked = False  # the engine takes a mask and places with each forward
    form = Form()
    # Exact ones, the cheapest first; the last two are exact by what they are.
    forms: tuple[Form, ...] = (Form(16, 16, 512, alone=True), Form(1, 1, 512, alone=True))

    def __init__(self, slots: int, context: int, vocab_size: int) -> None:
        if slots < 1:
            raise ConfigError(f"{slots} slots cannot hold a session")
        self.slots, self.context, self.vocab_size = slots, context, vocab_size
        self.lengths: list[int] = [0] * slots  # tokens that each slot holds
        # The lowest free slot first, so that memory of the high ones stays untouched.
        self._free = list(range(slots - 1, -1, -1))
        # What the slots hold, for forms that compute some of it again.
        self.tokens = np.zeros((slots, context), np.int32)
        # Slots are taken on the event loop and checked on the worker thread.
        self._lock = threading.Lock()

    @property
    def leaves(self) -> bool:
        """A leaf's sums stand in another order than those of the same token as a draft."""
        return self.masked and self.numerics == "close"

    def allocate(self) -> int:
        """Take the lowest free slot; see ``TargetBackend.allocate``."""
        with self._lock:
            if not self._free:
                raise RefusedError(
                    f"the target is busy: all {self.slots} slots hold a session",
                    hint="try again later, or start the verifier with more --slots",
                )
            slot = self._free.pop()
            self.lengths[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        """Give ``slot`` back; a ValueError where it was not taken."""
        with self._lock:
            if not 0 <= slot < self.slots or slot in self._free:
                raise ValueError(f"slot {slot} is not in use")
            self.lengths[slot] = 0
            self._free.append(slot)
            self._free.sort(reverse=True)

    def share(self, source: int, slot: int, length: int) -> bool:
        """Copy a slot's first tokens; see ``TargetBackend.share``."""
        if self.lengths[source] < length or not self.copy(source, slot, length):
            return False
        self.tokens[slot, :length] = self.tokens[source, :length]
        self.lengths[slot] = length
        return True

    def copy(self, source: int, slot: int, length: int) -> bool:
        """Copy the cache of a slot's first tokens; False where that is too much."""
        return False

    def run(self, frame: Frame, tell: ExitListener | None) -> list[np.ndarray[Any, Any]]:
        """Run one forward of the engine, keep its keys and values; return wanted logits.

        ``tell`` is called at each exit; what it raises ends the forward.
        """
        raise NotImplementedError

    def together(self, cuts: list[Cut]) -> list[list[Cut]]:
        """Say which of ``cuts`` share a forward of the engine."""
        return [cuts]

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Run a ragged batch; see ``TargetBackend.forward``."""
        self._check(batch)
        if on_exit is not None:  # caches are written as it runs: it may be broken off
            for item in batch:
                self.lengths[item.slot] = min(self.lengths[item.slot], item.start)
        nothing = np.empty((0, self.vocab_size), np.float32)
        answers: list[list[Any]] = [[] for _ in batch]
        for cuts in self.form.cut(batch, self.tokens):
            for group in self.together(cuts):

                def tell(k: int, rows: list[np.ndarray[Any, Any]]) -> None:
                    said = [nothing] * len(batch)
                    for (i, part), logits in zip(group, rows):  # noqa: B023 - in this turn
                        if part.rows == batch[i].rows:
                            said[i] = logits
                    assert on_exit is not None
                    on_exit(k, said)

                frame = Frame([item for _, item in group], self.form)
                found = self.run(frame, None if on_exit is None else tell)
                for (i, _), logits in zip(group, found):
                    answers[i].append(logits)
        for item in batch:
            end = self.lengths[item.slot] = item.start + item.kept
            self.tokens[item.slot, item.start : end] = item.tokens[: item.kept]
        return [rows[0] if len(rows) == 1 else np.concatenate(rows) for rows in answers]

    def _check(self, batch: Sequence[SlotInput]) -> None:
        """Refuse (ModelError) a batch beyond its sessions' own tokens.

        An input is empty, overlong, leaves a gap, names a slot twice or an unknown token;
        or a leaf stands behind what is not there.
        """
        with self._lock:
            free = frozenset(self._free)
        seen = set()
        for item in batch:
            n = len(item)
            if item.slot in seen:
                raise ModelError(f"slot {item.slot} is twice in one forward")
            seen.add(item.slot)
            if not 0 <= item.slot < self.slots or item.slot in free:
                raise ModelError(f"slot {item.slot} is not in use")
            if n < 1 or not 0 <= item.rows <= n:
                raise ModelError(f"cannot return {item.rows} rows for {n} tokens")
            if not 0 <= item.start <= self.lengths[item.slot]:
                raise ModelError(
                    f"tokens start at position {item.start}, but the slot holds "
                    f"{self.lengths[item.slot]}"
                )
            if item.start + n > self.context:
                raise ModelError(
                    f"{item.start} + {n} tokens exceed the context of {self.context}"
                )
            if item.tokens.min() < 0 or item.tokens.max() >= self.vocab_size:
                raise ModelError(
                    f"a token id is outside the vocabulary of {self.vocab_size}"
                )
            if len(item.chains) not in (0, len(item.leaves)):
                raise ModelError(f"{len(item.chains)} chains for {len(item.leaves)} leaves")
            last = -1, -1  # of the leaf before: its tokens in front, and its chain
            for _, behind, chain in item.beside():
                if not 0 <= behind <= item.kept or chain and (behind, chain - 1) != last:
                    raise ModelError(f"a leaf behind {behind} tokens and {chain} leaves")
                last = behind, chain

    def settle(self, wanted: str | None, default: str) -> None:
        """Choose the form of forwards, and measure what it leaves open.

        ``wanted`` is "exact" (a ConfigError where no form is, on this engine), "close", or
        None for the ``default``, of which exact is close where it cannot be had.
        """
        self.numerics = wanted or default
        for form in self.forms if self.numerics == "exact" else ():
            self.form = form
            self.logit_error = self._spread()
            if self.logit_error == 0:
                if form.alone:
                    log.warning("%s is exact with one stream a forward here", self.name)
                return
        if self.numerics == "exact":
            what = (
                f"{self.name} cannot be exact on this engine: two readings of one text "
                f"differ by {self.logit_error:.3g} in the logits, whatever their form"
            )
            if wanted:
                raise ConfigError(what, hint="serve it with --numerics close")
            log.warning(what)
        self.numerics, self.form = "close", Form()
        self.logit_error = self._spread()

    def _spread(self) -> float:
        """Return how far logits of one text differ between two ways to ask for them.

        Once in a single forward, once in pieces beside strangers, after drafts that were
        rejected; at the beginning of a context and further in.
        """
        rng = np.random.default_rng(0)
        n = min(24, self.context)
        ids, junk = rng.integers(0, self.vocab_size, (2, n))
        slots = [self.allocate() for _ in range(min(3, self.slots))]
        worst = 0.0
        for start in sorted({0, min(self.context - n, 601)}):
            # Whatever stands before: empty caches are a context as good as any.
            far = min(self.context - n, 2 * start + 3)
            begins = [start, far, 1][: len(slots)]
            for slot, begin in zip(slots, begins):
                self.lengths[slot] = max(self.lengths[slot], begin)
            (whole,) = self.forward([SlotInput(slots[0], start, ids, n)])
            at, parts = 0, []
            for k in (1, 2, 5, n):
                k = min(k, n - at)
                if not k:
                    break
                self.forward([SlotInput(slots[0], start + at, junk[: n - at], 0)])
                batch = [SlotInput(slots[0], start + at, ids[at : at + k], k)]
                for i, (slot, begin) in enumerate(zip(slots[1:], begins[1:])):
                    batch.append(SlotInput(slot, begin, junk[: k + i], k))
                parts.append(self.forward(batch)[0])
                at += k
            worst = max(worst, _apart(whole, np.concatenate(parts)))
        for slot in slots:
            self.release(slot)
        return worst


def _apart(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Return the largest difference; infinity where just one of them is a number."""
    finite = np.isfinite(a)
    if (finite != np.isfinite(b)).any():
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))
