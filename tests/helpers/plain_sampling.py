"""Section 6 of PROTOCOL.md once more, in plain Python and as slow as it reads.

It shares no line with ``draftwire.sampling`` and uses no numpy.
``python tests/helpers/plain_sampling.py`` writes ``tests/golden/sampling_v1.json``.
"""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from pathlib import Path

M32, M64 = 2**32 - 1, 2**64 - 1
G = 0x9E3779B97F4A7C15


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


def distribution(logits, temperature, top_k, top_p):
    """Return kept ids, rising, and their probabilities."""
    top = max(logits)
    weight = [math.exp(x / temperature - top / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[: top_k or len(order)]
    if top_p < 1:
        goal = top_p * sum(weight[i] for i in order) * (1 - 1e-12)
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


def coupled(ids, probs, noise):
    times = [(noise[i] / p if p else math.inf, i) for i, p in zip(ids, probs)]
    return min(times)[1]


def match(ids, probs, u):
    sums, total = [], 0.0
    for p in probs:
        total += p
        sums.append(total)
    return next(i for i, s in zip(ids, sums) if s >= u * total)


def vectors():
    """Return cases: random logits, and many that tie."""
    rng, cases = random.Random(20261128), []
    shapes = [
        lambda n: [round(rng.gauss(0, 2), 3) for _ in range(n)],
        lambda n: [float(rng.randint(-3, 3)) for _ in range(n)],  # ties everywhere
        lambda n: [1.5] * n,
        lambda n: [-1e30 if rng.random() < 0.5 else float(rng.randint(0, 4))] * n,
    ]
    settings = [(0, 1.0), (3, 1.0), (0, 0.7), (6, 0.8), (1, 1.0)]
    for number in range(40):
        logits = shapes[number % 4](rng.randint(2, 24))
        top_k, top_p = settings[number % 5]
        t = rng.choice([0.5, 0.8, 1.0, 1.7])
        seed, position = rng.getrandbits(64), rng.choice([0, 7, 4095, 2**24 - 1])
        ids, probs = distribution(logits, t, top_k, top_p)
        count = len(logits)
        cases.append(
            {
                "logits": logits,
                "temperature": t,
                "top_k": top_k,
                "top_p": top_p,
                "seed": f"{seed:016x}",
                "position": position,
                "greedy": min(range(count), key=lambda i: (-logits[i], i)),
                "kept": ids,
                "coupled": coupled(ids, probs, philox_noise(seed, position, count)),
                "coupled_sparse": coupled(ids, probs, sparse_noise(seed, position, count)),
                "match": match(ids, probs, unit(seed, position, 0, 3)),
            }
        )
    return {"schema": "draftwire.sampling_vectors/1", "cases": cases}


if __name__ == "__main__":
    place = Path(__file__).resolve().parents[1] / "golden" / "sampling_v1.json"
    document = vectors()
    rows = ",\n  ".join(json.dumps(case) for case in document.pop("cases"))
    head = json.dumps(document)[:-1]
    place.write_text(f'{head}, "cases": [\n  {rows}\n]}}\n', encoding="utf-8")
