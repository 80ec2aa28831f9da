"""One text of a target: alone, one token a forward, or in odd pieces beside strangers."""

from __future__ import annotations

import numpy as np

from draftwire.sampling import make_decider
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


def target_only(backend, prompt, params, count):
    """Return what plain decoding writes: without a draft, one token a forward."""
    slot, tokens, cached = backend.allocate(), list(prompt), 0
    decider = make_decider(params, backend.vocab_size)
    try:
        while len(tokens) < len(prompt) + count:
            fresh = np.array(tokens[cached:], np.int64)
            (row,) = backend.forward([SlotInput(slot, cached, fresh, 1)])
            cached = len(tokens)
            tokens.append(decider.decide([], b"", row, len(tokens)).token)
            if tokens[-1] in backend.eos_ids:
                break
    finally:
        backend.release(slot)
    return tokens[len(prompt) :]
