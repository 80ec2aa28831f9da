"""What the verifier asks of an engine that holds a target model.

A backend keeps ``slots`` KV caches. One forward takes a *ragged* batch: several slots,
each with its own context length and its own number of new tokens. Rewinding is implied:
tokens that start below a slot's length overwrite what was there.

A backend must be *block invariant*: the logits of k tokens in one forward equal those
of k single forwards up to float noise, whatever else is in the batch. Otherwise the
text of speculative decoding would not be the target's own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, List, Sequence

import numpy as np

from draftwire.errors import ConfigError, ModelError, RefusedError

if TYPE_CHECKING:
    from typing import Protocol

    from draftwire.packages import Exit, Family
else:
    Protocol = object  # `typing.Protocol` costs start-up time and checks nothing here

__all__ = ["ExitListener", "SlotInput", "SlotTable", "TargetBackend"]

# Takes the number of an exit, and for each input of the forward the exit's logits
# ``(rows, vocab_size)``: see ``TargetBackend.forward``.
ExitListener = Callable[[int, List["np.ndarray[Any, Any]"]], None]


@dataclass(frozen=True)
class SlotInput:
    """New tokens of one session for a forward.

    Attributes:
        slot: The KV slot, from ``TargetBackend.allocate``.
        start: Position of the first token; at most the slot's length, and below it
            means a rewind to ``start`` first.
        tokens: ``(n,)`` int64 token ids, ``n >= 1``.
        rows: How many rows of logits to return, those of the last ``rows`` tokens; 0
            while a prompt is only being read.
    """

    slot: int
    start: int
    tokens: np.ndarray[Any, Any]
    rows: int

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, first: int, last: int) -> SlotInput:
        """Return tokens ``first..last-1`` as an input of their own.

        Args:
            first: Index of its first token.
            last: Index after its last token.

        Returns:
            The part, asking for those of the wanted rows that fall inside it.
        """
        n = len(self.tokens)
        if first == 0 and last == n:
            return self
        rows = max(0, last - max(first, n - self.rows))
        return SlotInput(self.slot, self.start + first, self.tokens[first:last], rows)


class TargetBackend(Protocol):
    """A target model on some engine, with KV slots for many sessions.

    Attributes:
        id: Hash of the weights' package; changes with every version.
        name: Human name, such as ``"reference"``.
        version: Which evolution of the target, such as ``"v2"``.
        family: What a draft must share: backbone and tokenizer fingerprints.
        vocab_size: Number of token ids, padding rows left out.
        context: Most tokens that a slot can hold.
        bos_id: Token that starts a text, or None.
        eos_ids: Tokens that end one.
        slots: How many sessions fit at the same time.
        exits: Early exits, from the lowest up; empty for a target that has none.
    """

    id: str
    name: str
    version: str
    family: Family
    vocab_size: int
    context: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    slots: int
    exits: tuple[Exit, ...]

    def allocate(self) -> int:
        """Take a KV slot.

        Raises:
            RefusedError: Every slot is in use.
        """
        raise NotImplementedError

    def release(self, slot: int) -> None:
        """Give a slot back; its content is forgotten."""
        raise NotImplementedError

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Run one forward; blocking, for one worker thread.

        Args:
            batch: Inputs of different slots.
            on_exit: Called from the same thread in the middle of the forward, once an
                exit is reached: its number, and its logits of the wanted rows of each
                input. A backend that cuts the batch calls it for each cut, with no
                rows for the inputs that are not in it. What it raises ends the
                forward; the slots are then as before it, or rewound to the inputs'
                first tokens. None is the plain forward at its plain price.

        Returns:
            For each input, ``(rows, vocab_size)`` float32 logits of its last ``rows``
            tokens.

        Raises:
            ModelError: An input does not fit its slot, or the engine failed.
        """
        raise NotImplementedError


class SlotTable:
    """Which slots are taken and how many tokens each one holds.

    Args:
        slots: Number of slots.
        context: Tokens that each can hold.
        vocab_size: Token ids must be below it.
    """

    def __init__(self, slots: int, context: int, vocab_size: int) -> None:
        if slots < 1:
            raise ConfigError(f"{slots} slots cannot hold a session")
        self.context = context
        self.vocab_size = vocab_size
        self.lengths: list[int] = [0] * slots
        # The lowest free slot first, so that memory of the high ones stays untouched.
        self._free = list(range(slots - 1, -1, -1))
        # Slots are taken on the event loop and checked on the worker thread.
        self._lock = threading.Lock()

    def allocate(self) -> int:
        """Take the lowest free slot.

        Raises:
            RefusedError: None is free.
        """
        with self._lock:
            if not self._free:
                raise RefusedError(
                    f"the target is busy: all {len(self.lengths)} slots hold a session",
                    hint="try again later, or start the verifier with more --slots",
                )
            slot = self._free.pop()
            self.lengths[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        """Give ``slot`` back.

        Raises:
            ValueError: It was not taken.
        """
        with self._lock:
            if not 0 <= slot < len(self.lengths) or slot in self._free:
                raise ValueError(f"slot {slot} is not in use")
            self.lengths[slot] = 0
            self._free.append(slot)
            self._free.sort(reverse=True)

    def check(self, batch: Sequence[SlotInput]) -> None:
        """Refuse a batch that would read or write outside a session's own tokens.

        Raises:
            ModelError: An input is empty, overlong, leaves a gap, or names a slot
                twice or an unknown token.
        """
        with self._lock:
            free = frozenset(self._free)
        seen = set()
        for item in batch:
            n = len(item)
            if item.slot in seen:
                raise ModelError(f"slot {item.slot} is twice in one forward")
            seen.add(item.slot)
            if not 0 <= item.slot < len(self.lengths) or item.slot in free:
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

    def rewind(self, batch: Sequence[SlotInput]) -> None:
        """Record that slots hold nothing from the first token of ``batch`` on."""
        for item in batch:
            self.lengths[item.slot] = min(self.lengths[item.slot], item.start)

    def commit(self, batch: Sequence[SlotInput]) -> None:
        """Record that ``batch`` is in the caches now."""
        for item in batch:
            self.lengths[item.slot] = item.start + len(item)
