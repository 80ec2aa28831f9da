"""One text of a target: alone, one token a forward, or in odd pieces beside strangers."""

from __future__ import annotations

import numpy as np

from draftwire.sampling import make_decider, shape_for
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


def assert_ragged(target, slots, whole, seed, tolerance):
    """Rows of ragged batches and rewinds are those of reading each text anew.

    ``whole`` returns the logits behind each id of a text; ``slots`` are taken.
    """
    rng, texts = np.random.default_rng(seed), {slot: [] for slot in slots}
    for _ in range(15):
        batch = []
        for slot in rng.permutation(slots)[: rng.integers(1, len(slots) + 1)]:
            text = texts[int(slot)]
            del text[len(text) - rng.integers(0, min(5, len(text) + 1)) :]  # a rewind
            n = int(rng.integers(1, min(9, target.context - len(text))))
            tokens = rng.integers(0, target.vocab_size, n)
            rows = int(rng.integers(0, n + 1))
            batch.append(SlotInput(int(slot), len(text), tokens, rows))
            text += tokens.tolist()
        for item, rows in zip(batch, target.forward(batch)):
            wanted = whole(texts[item.slot])
            assert rows.shape == (item.rows, target.vocab_size)
            assert np.allclose(rows, wanted[len(wanted) - item.rows :], 0, tolerance)
        texts = {s: t if len(t) < target.context - 10 else [] for s, t in texts.items()}


def plain_text(
    row_after,
    prompt,
    params,
    count,
    vocab_size,
    context,
    *,
    stops=(),
    rules=None,
    written=0,
):
    """Return what plain decoding makes of ``prompt``: one row of logits, one token.

    Args:
        row_after: Returns ``(vocab,)`` logits after ids.
        prompt: Ids; the last ``written`` of them count as text.
        params: Sampling.
        count: Tokens after the prompt.
        vocab_size: Number of ids.
        context: Tokens of the target.
        stops: Ids that end the text.
        rules: Of a grammar, which puts in what it leaves no choice about, or None.
        written: See above.
    """
    decider, first = make_decider(params, vocab_size), len(prompt) - written
    sequence, end, guide = list(prompt), min(context, len(prompt) + count), None
    while len(sequence) < end:
        if rules is not None:
            guide = rules.guide(first)  # anew each time: nothing is remembered
            guide.follow(sequence)
            sequence += guide.path().ids[: end - len(sequence)]
            guide.follow(sequence)
            if guide.path().ended or len(sequence) == end:
                break
        row = row_after(sequence)[None]
        shape = shape_for(params, vocab_size, first, guide)
        if shape is not None:
            shape.follow(sequence)
            row = shape.rows(row)
        sequence.append(decider.decide([], b"", row, len(sequence)).token)
        if sequence[-1] in stops:
            break
    return sequence[len(prompt) :]


def target_only(backend, prompt, params, count):
    """Return what a backend writes without a draft, one token a forward."""
    slot, cached = backend.allocate(), 0

    def row_after(sequence):
        nonlocal cached
        fresh = np.array(sequence[cached:], np.int64)
        ((row,),) = backend.forward([SlotInput(slot, cached, fresh, 1)])
        cached = len(sequence)
        return row

    size, context = backend.vocab_size, backend.context
    try:
        return plain_text(
            row_after, prompt, params, count, size, context, stops=backend.eos_ids
        )
    finally:
        backend.release(slot)


def assert_of_the_likeliest(row, drawn):
    """Assert that tokens are drawn of the four likeliest of a row as their law has it."""
    likely = np.argsort(-row)[:4]
    p = np.exp(row[likely] - row[likely].max())
    wanted = len(drawn) * p / p.sum()
    seen = np.array([drawn.count(token) for token in likely])
    assert seen.sum() == len(drawn)
    # Chi square with three degrees: above 16.3 once in a thousand.
    assert float(((seen - wanted) ** 2 / wanted).sum()) < 16.3
