"""One text, asked of a target in odd pieces beside strangers."""

from __future__ import annotations

import numpy as np

from draftwire.verifier.backends.base import SlotInput


def ask_in_pieces(target, ids, rng):
    """Return the rows of a text that is read in odd pieces beside strangers."""
    slot, found, others = target.allocate(), [], [target.allocate() for _ in range(4)]
    lengths = dict.fromkeys(others, 0)
    while len(found) < len(ids):
        at = len(found)
        n = min(rng.randint(1, 9), len(ids) - at)
        if rng.random() < 0.3:  # drafts that are rejected
            junk = np.array([rng.randrange(target.vocab_size) for _ in range(n)])
            target.forward([SlotInput(slot, at, junk, n)])
        batch = [SlotInput(slot, at, ids[at : at + n], n)]
        for other in rng.sample(others, rng.randint(0, 4)):
            k = rng.randint(1, 12)
            if lengths[other] + k > target.context:
                lengths[other] = 0
            words = np.array([rng.randrange(target.vocab_size) for _ in range(k)])
            batch.append(SlotInput(other, lengths[other], words, rng.randint(0, k)))
            lengths[other] += k
        rng.shuffle(batch)
        listen = (lambda k, rows: None) if rng.random() < 0.3 else None
        rows = target.forward(batch, on_exit=listen)
        found += list(next(r for i, r in zip(batch, rows) if i.slot == slot))
    for taken in (slot, *others):
        target.release(taken)
    return np.array(found)
