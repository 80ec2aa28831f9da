"""A target with a real cache, in numpy: what it says depends on all that it was fed.

A row of logits is a hash of the tokens in the slot, each at its place, so that a token
that was fed to the wrong place, or not at all, changes the text. It never forgives a gap,
and counts what it is fed again although its slot holds it. No engine, no thread: it runs
under generated histories as well as behind a socket.
"""

from __future__ import annotations

import hashlib

import grammars
import numpy as np
from pieces import plain_text

from draftwire.packages import Exit, Family
from draftwire.verifier.backends.base import SlotTarget

FAMILY = Family("hashed", "b" * 64, "a" * 64)


class FedDraft:
    """A draft model that notes what it is fed; ``says(fed)`` are its logits."""

    def __init__(self, says):
        self.fed, self.says = [], says

    @property
    def length(self):
        return len(self.fed)

    def rewind(self, length):
        assert length <= len(self.fed)
        del self.fed[length:]

    def forward(self, tokens):
        assert len(tokens) > 0
        self.fed += tokens
        return self.says(self.fed)

    def copy(self, other, end):
        assert other.fed[: len(self.fed)] == self.fed and end <= len(other.fed)
        self.fed += other.fed[len(self.fed) : end]


class CachedTarget(SlotTarget):
    """A target backend.

    Args:
        vocab_size: Number of ids.
        slots: KV slots.
        context: Tokens that each holds.
        salt: Of the hash: another salt is another target.
        exits: Early exits that foresee the verdict; those whose number is in ``wrong``
            foresee something else.
        wrong: Numbers of exits.

    Attributes:
        forwards: Calls of :meth:`forward`.
        ran: For each call the ``(slot, start, tokens, rows)`` of its inputs.
        fed: Tokens fed so far.
        again: Those among them that their slot held already, at that very place.
        before: Called with each batch before it runs; what it raises ends the forward.
    """

    name, version, family, bos_id, eos_ids = "hashed", "v1", FAMILY, None, ()
    numerics, leaves = "exact", True
    begin = None  # the digest of no text: the salt

    def __init__(
        self, vocab_size=23, slots=4, context=256, salt=b"", exits=0, wrong=frozenset()
    ):
        self.id = hashlib.sha256(salt).hexdigest()
        self.tokenizer_path = (
            grammars.TOKENIZER if vocab_size == len(grammars.WORDS) else None
        )
        super().__init__(slots, context, vocab_size)
        self.exits = tuple(Exit(i + 1, 0.0, 0.9) for i in range(exits))
        self.wrong = wrong
        self.begin = self.begin or salt
        self.shared = 0
        self.content = {}  # of each slot: the token and the digest up to each position
        self.forwards = self.fed = self.again = 0
        self.ran = []
        self.before = lambda batch: None
        # Ids that were asked for last, and the digest before each.
        self._path = [], [self.begin]

    def allocate(self):
        slot = super().allocate()
        self.content[slot] = []
        return slot

    def release(self, slot):
        super().release(slot)
        del self.content[slot]

    def copy(self, source, slot, length):
        self.content[slot] = self.content[source][:length]
        self.shared += 1
        return True

    def forward(self, batch, on_exit=None):
        self.forwards += 1
        self.ran.append([(i.slot, i.start, i.tokens.tolist(), i.rows) for i in batch])
        self.before(batch)
        for item in batch:
            assert item.slot in self.content, f"slot {item.slot} is nobody's"
            held = len(self.content[item.slot])
            assert 0 <= item.start <= held, f"fed at {item.start} of a cache of {held}"
        return super().forward(batch, on_exit)

    def run(self, frame, tell):
        answers = [self._feed(item) for item in frame.items]
        for number, _ in enumerate(self.exits if tell else ()):
            turn = int(number in self.wrong)
            tell(number, [np.roll(rows, turn, axis=1) for rows in answers])
        return answers

    def _feed(self, item):
        held = self.content[item.slot]
        for at, token in enumerate(item.tokens.tolist(), item.start):
            if at >= len(held) or held[at][0] != token:
                break
            self.again += 1
        del held[item.start :]
        digest = held[-1][1] if held else self.begin
        rows = np.zeros((item.rows, self.vocab_size), np.float32)
        beside = {row: told for row, *told in item.beside()}
        for row, token in enumerate(item.tokens.tolist()):
            if row < item.kept:
                digest = self._fold(digest, token)
                held.append((token, digest))
                said = digest
            else:  # a leaf is looked at from its chain alone, and not kept
                behind, chain = beside[row]
                front = said if chain else held[item.start + behind - 1][1]
                said = self._fold(front, token)
            if row >= len(item) - item.rows:
                rows[row - len(item)] = self._logits(said)
        self.fed += len(item)
        return rows

    def _fold(self, digest, token):
        data = digest + int(token).to_bytes(4, "little")
        return hashlib.blake2b(data, digest_size=16).digest()

    def _logits(self, digest):
        said = hashlib.shake_128(digest).digest(self.vocab_size)
        return np.frombuffer(said, np.uint8).astype(np.float32) / 40

    def rows_after(self, tokens):
        """Return ``(vocab,)`` logits after ``tokens``, without any cache."""
        tokens, (known, digests) = list(tokens), self._path
        same = min(len(known), len(tokens))
        if known[:same] != tokens[:same]:
            same = next(i for i, (a, b) in enumerate(zip(known, tokens)) if a != b)
        del digests[same + 1 :]
        for token in tokens[same:]:
            digests.append(self._fold(digests[-1], token))
        self._path = tokens, digests
        return self._logits(digests[-1])

    def text(self, prompt, params, count, stops=(), **more):
        """Return what plain decoding makes of ``prompt``."""
        size, context = self.vocab_size, self.context
        more["stops"] = stops
        return plain_text(self.rows_after, prompt, params, count, size, context, **more)
