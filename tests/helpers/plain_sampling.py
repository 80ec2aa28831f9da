"""Section 6 of PROTOCOL.md once more, in plain Python and as slow as it reads.

It shares no line with ``draftwire.sampling`` and uses no numpy. The vectors of
``tests/golden/sampling_v2.json`` were made of it; examples/js/check.mjs reads them, too.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from functools import lru_cache

M32, M64 = 2**32 - 1, 2**64 - 1
G = 0x9E3779B97F4A7C15

# ---- noise


def philox(key, counter):
    k, c = list(key), list(counter)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & M32, (a >> 32) ^ c[3] ^ k[1], a & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def unit(seed, t, token, domain, sample=0):
    key = (seed & M32, seed >> 32)
    words = philox(key, (token // 2, t, sample, domain))
    high, low = words[2:] if token % 2 else words[:2]
    return ((high >> 5) * 2**26 + (low >> 6) + 1) * 2.0**-53


@lru_cache(maxsize=8)
def philox_noise(seed, t, count, sample=0):
    return [max(-math.log(unit(seed, t, i, 0, sample)), 2.0**-54) for i in range(count)]


def mix(x):
    x &= M64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def poisson_table():
    exp4 = sum(Fraction(4**n, math.factorial(n)) for n in range(140))
    table, total = [], Fraction(0)
    for j in range(31):
        total += Fraction(4**j, math.factorial(j)) / exp4
        table.append(math.floor(total * 2**64))
    return table


TABLE = poisson_table()


@lru_cache(maxsize=8)
def sparse_noise(seed, t, count, sample=0):
    k = mix(mix(seed + G) + (t + 2**32 * sample) * G)
    noise = []
    for i in range(count):
        u = ((mix(k + (i + 1) * G) >> 11) + 1) * 2.0**-53
        noise.append(2.0**-10 + max(-math.log(u), 2.0**-54))
    for cell in range(-(-count // 4096)):
        arrivals = sum(v <= mix(k + (cell + 2**40) * G) for v in TABLE)
        for s in range(arrivals):
            r = mix(k + (32 * cell + s + 2**41) * G)
            token = 4096 * cell + r % 4096
            if token < count:
                noise[token] = min(noise[token], ((r >> 12) + 1) * 2.0**-62)
    return noise


# ---- distributions and draws

@lru_cache(maxsize=32)
def generated(seed, size):
    """Return the logits that the vectors of large vocabularies name by a seed."""
    return tuple(
        (sum(mix(seed + (i + 1) * G).to_bytes(8, "little")) - 1020) / 64
        for i in range(size)
    )


def row_of(row):
    """Return the logits of a row as the vectors hold it."""
    if isinstance(row, dict):
        return generated(int(row["splitmix"], 16), row["size"])
    return [float(x) for x in row]


def distribution(logits, temperature, top_k=0, top_p=1.0):
    """Return kept ids, rising, and their probabilities."""
    if math.inf in logits or max(logits) == -math.inf or any(x != x for x in logits):
        raise ValueError("logits that are no numbers")
    top = max(logits)

    known = {x: math.exp(x / temperature - top / temperature) for x in set(logits)}
    weight = [known[x] for x in logits]
    order = range(len(logits))
    if top_k or top_p < 1:
        order = sorted(order, key=lambda i: (-logits[i], i))[: top_k or len(logits)]
    if top_p < 1:
        goal = top_p * sum(weight[i] for i in sorted(order)) * (1 - 1e-12)
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += weight[i]
            if mass >= goal:
                break
        order = kept
    ids = sorted(order)
    whole = sum(weight[i] for i in ids)
    return ids, [weight[i] / whole for i in ids]


def single(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def shaped(logits, before, text, case):
    """Return a row of logits after ``before``, of which the last ``text`` ids are text."""
    row, bias = list(logits), dict(case["logit_bias"])
    written = before[len(before) - text :]
    r, often, once = (
        case[f"{name}_penalty"] for name in ("repetition", "frequency", "presence")
    )
    for i, x in enumerate(row):
        touched = i in bias or ((r, often, once) != (1, 0, 0) and i in before)
        x += bias.get(i, 0.0)
        if i in before:
            x = x * r if x < 0 else x / r
        if i in written:
            x -= often * written.count(i) + once
        row[i] = single(x) if touched else x
    for word in case["bad_words"]:
        *head, last = word
        if before[len(before) - len(head) :] == head:
            row[last] = -math.inf
    return row


def min_p_cut(ids, probs, min_p):
    """Return those that are at least ``min_p`` of the likeliest, and their shares."""
    kept = [(i, p) for i, p in zip(ids, probs) if p >= min_p * max(probs)]
    whole = sum(p for _, p in kept)
    return [i for i, _ in kept], [p / whole for _, p in kept]


def coupled(ids, probs, noise):
    times = [(noise[i] / p if p else math.inf, i) for i, p in zip(ids, probs)]
    return min(times)[1]
