"""Section 6 of PROTOCOL.md once more, in plain Python and as slow as it reads.

It shares no line with ``draftwire.sampling`` and uses no numpy.
``python tests/helpers/plain_sampling.py`` writes ``tests/golden/sampling_v2.json``.
"""

from __future__ import annotations

import json
import math
import random
import struct
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

M24, M32, M64 = 2**24 - 1, 2**32 - 1, 2**64 - 1
G = 0x9E3779B97F4A7C15
DRAFT, ACCEPT, CORRECT = 1, 2, 3

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

_wobble = 0.0  # the generator moves all exponentials by so much, to see what depends on it


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


@lru_cache(maxsize=8)
def ranked(logits):
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def distribution(logits, temperature, top_k=0, top_p=1.0):
    """Return kept ids, rising, and their probabilities."""
    if math.inf in logits or max(logits) == -math.inf or any(x != x for x in logits):
        raise ValueError("logits that are no numbers")
    top = max(logits)

    def weight_of(x):
        moved = 1 + _wobble * (hash(x) % 7 - 3)
        return math.exp(x / temperature - top / temperature) * moved

    known = {x: weight_of(x) for x in set(logits)}
    weight = [known[x] for x in logits]
    order = range(len(logits))
    if top_k or top_p < 1:
        order = ranked(tuple(logits))[: top_k or len(logits)]
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


def greedy(logits):
    return ranked(tuple(logits))[0]


def coupled(ids, probs, noise):
    times = [(noise[i] / p if p else math.inf, i) for i, p in zip(ids, probs)]
    return min(times)[1]


def draw(ids, weights, u):
    """Return the smallest id whose running sum reaches ``u`` times the whole."""
    sums, total = [], 0.0
    for w in weights:
        total += w
        sums.append(total)
    return next(i for i, s in zip(ids, sums) if s >= u * total)


def draw_whole(ids, weights, u):
    """The same of whole numbers, exactly."""
    ticket = max(1, math.ceil(u * sum(weights)))
    for i, w in zip(ids, weights):
        ticket -= w
        if ticket <= 0:
            return i
    raise AssertionError


def lattice(probs, whole):
    """Return whole numbers that sum to ``whole``, rounded and then put right."""
    scaled = [p * whole for p in probs]
    weights = [math.floor(s + 0.5) for s in scaled]
    while sum(weights) != whole:
        short = whole - sum(weights)
        step = 1 if short > 0 else -1
        able = [i for i in range(len(probs)) if step > 0 or weights[i]]
        able.sort(key=lambda i: (step * (weights[i] - scaled[i]), i))
        for i in able[: abs(short)]:
            weights[i] += step
    return weights


# ---- evidence


class Bits:
    def __init__(self):
        self.row, self.count = 0, 0

    def put(self, value, width):
        assert 0 <= value < 1 << width or value == width == 0
        self.row |= value << self.count
        self.count += width

    def done(self):
        return self.row.to_bytes(-(-self.count // 8), "little")


def put_rank(bits, members, n):
    rank = sum(math.comb(c, i) for i, c in enumerate(members, 1))
    bits.put(rank, (math.comb(n, len(members)) - 1).bit_length())


def put_set(bits, members, n):
    k = len(members)
    if not k:
        return
    r = max(0, (n // (4 * k)).bit_length() - 1)
    if r:
        put_rank(bits, [(c >> r) + i for i, c in enumerate(members)], (n - 1 >> r) + k)
    else:
        put_rank(bits, members, n)
    for c in members:
        bits.put(c & (1 << r) - 1, r)


def without(ids, token):
    return [i - (i > token) for i in ids if i != token]


RESOLUTIONS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 100, 128, 200, 256, 400, 512, 768)


def qs_evidence(ids, weights, token, vocab):
    bits = Bits()
    bits.put(len(ids) - 1, 7)
    if len(ids) > 1:
        bits.put(RESOLUTIONS.index(sum(weights)), 4)
        put_set(bits, without(ids, token), vocab - 1)
        cuts, running = [], 0
        for w in weights[:-1]:
            running += w
            cuts.append(running - 1)
        put_rank(bits, cuts, sum(weights) - 1)
    return bits.done()


def entries(ids, weights, token, vocab):
    """Return what comes down of a target's distribution in multiples of 2**-24."""
    ranked = sorted((-w, i) for i, w in zip(ids, weights) if w and i != token)[:64]
    chosen = sorted((i, -w) for w, i in ranked)
    bits = Bits()
    bits.put(len(chosen), 7)
    put_set(bits, without([i for i, _ in chosen], token), vocab - 1)
    for _, w in chosen:
        bits.put(w - 1, 24)
    return chosen, bits.done()


# ---- verdicts


def settings_of(case):
    return case["temperature"], case["top_k"], case["top_p"]


def noise_key(case):
    return int(case["seed"], 16), case["sample"]


def coin(case, at, domain):
    seed, sample = noise_key(case)
    return unit(seed, at, 0, domain, sample)


def own_token(case, logits, at):
    """Return the target's own token, where the scheme looks at nothing else."""
    if case["scheme"] in ("greedy", "argmax"):
        return greedy(logits)
    ids, probs = distribution(logits, *settings_of(case))
    if case["scheme"] == "match":
        return draw(ids, probs, coin(case, at, CORRECT))
    seed, sample = noise_key(case)
    noise = {"philox": philox_noise, "sparse": sparse_noise}[case["noise"]]
    return coupled(ids, probs, noise(seed, at, len(logits), sample))


def covered(case):
    return (
        case["scheme"] == "separate" or 0 < case["top_k"] <= 64 or case["vocab_size"] <= 64
    )


def target_of(case, logits):
    ids, probs = distribution(logits, *settings_of(case))
    if case["scheme"].startswith("separate") and covered(case):
        probs = [w / 2**24 for w in lattice(probs, 2**24)]
    return ids, probs


def decide(case, drafts):
    """Return ``(accepted, token, down)``.

    Args:
        case: One of the vectors.
        drafts: For the schemes that reject: of each token ``{id: weight}`` and the whole.
    """
    rows, at, tokens = case["rows"], case["position"], case["tokens"]
    if case["scheme"] in ("greedy", "argmax", "coupled", "match"):
        for j, row in enumerate(rows):
            token = own_token(case, row_of(row), at + j)
            if j == len(tokens) or token != tokens[j]:
                return j, token, ""
    for j, token in enumerate(tokens):
        ids, probs = target_of(case, row_of(rows[j]))
        p = dict(zip(ids, probs)).get(token, 0.0)
        weights, whole = drafts[j]
        if coin(case, at + j, ACCEPT) * weights.get(token, 0) <= p * whole:
            continue
        if case["scheme"].startswith("separate"):
            down = [max(1, round(x * 2**24)) if x else 0 for x in probs]
            return j, -1, entries(ids, down, token, case["vocab_size"])[1].hex()
        rest = [max(0.0, x - weights.get(i, 0) / whole) for i, x in zip(ids, probs)]
        return j, draw(ids, rest if any(rest) else probs, coin(case, at + j, CORRECT)), ""
    ids, probs = target_of(case, row_of(rows[-1]))
    return len(tokens), draw(ids, probs, coin(case, at + len(tokens), CORRECT)), ""


def correct(case):
    """Return the token that the device draws after a rejection."""
    known = dict(zip(case["q_ids"], case["q_weights"]))
    rest = [max(0, w - known.get(i, 0)) for i, w in zip(case["ids"], case["weights"])]
    return draw_whole(case["ids"], rest, coin(case, case["position"], CORRECT))


# ---- the vectors


def steady(answer):
    """Return what ``answer()`` says, or None where the last bits of ``exp`` decide."""
    global _wobble
    found = []
    for _wobble in (1e-13, -1e-13, 0.0):
        found.append(answer())
    return found[0] if found[0] == found[1] == found[2] else None


class Maker:
    """Everything random of the vectors."""

    def __init__(self):
        self.rng = random.Random(20261128)

    def hexed(self):
        return f"{self.rng.getrandbits(64):016x}"

    def row(self, vocab):
        if vocab > 64:
            return {"splitmix": f"{self.rng.randrange(3):016x}", "size": vocab}
        rng = self.rng
        shape = rng.randrange(5)
        if shape == 0:  # masked tokens
            return [
                rng.choice(["-inf", rng.randint(0, 9) / 4]) for _ in range(vocab - 1)
            ] + [0]
        if shape == 1:  # ties everywhere
            return [rng.randint(-1, 1) for _ in range(vocab)]
        if shape == 2:
            return [1.5] * vocab
        return [rng.randint(-96, 96) / 16 for _ in range(vocab)]

    def place(self):
        rng = self.rng
        return {
            "seed": self.hexed(),
            "sample": rng.choice([0, 0, 1, rng.getrandbits(32), M32]),
            "position": rng.choice([0, 7, rng.randrange(4096), 2**24 - 6]),
        }

    def decision(self, scheme, vocab, k, settings=None, noise="philox"):
        """Return one case of ``k`` drafts, where no last bit decides."""
        rng = self.rng
        cold = scheme in ("greedy", "argmax")
        while True:
            top_k = rng.choice([0, 1, 3, 6])
            chosen = settings or (
                rng.choice([0.3, 0.8, 1.0, 1.7]),
                top_k,
                rng.choice([1.0, 0.9, 0.5]),
            )
            case = {
                "scheme": scheme,
                **dict(
                    zip(
                        ("temperature", "top_k", "top_p"), (0.0, 0, 1.0) if cold else chosen
                    )
                ),
                "noise": noise,
                "vocab_size": vocab,
                **self.place(),
                "tokens": [],
                "evidence": "",
                "rows": [self.row(vocab) for _ in range(k + 1)],
            }
            drafts = []
            for j in range(k):
                self.draft(case, j, drafts)
            self.drafts = drafts
            found = steady(lambda case=case, drafts=drafts: decide(case, drafts))
            if found is not None:
                case["accepted"], case["token"], case["down"] = found
                return case

    def edge(self, scheme, low, high):
        """Return a case of one draft that is refused, or not, by a little."""
        while True:
            case = self.decision(scheme, 8, 1)
            ids, probs = target_of(case, row_of(case["rows"][0]))
            p = dict(zip(ids, probs)).get(case["tokens"][0], 0.0)
            weights, whole = self.drafts[0]
            weight = weights[case["tokens"][0]]
            found = coin(case, case["position"], ACCEPT) * weight / whole
            if low * p < found < high * p:
                return case

    def rejection(self, scheme, vocab, settings):
        """Return a case whose correction is the device's."""
        while True:
            case = self.decision(scheme, vocab, 1, settings)
            if case["token"] == -1:
                return case

    def draft(self, case, j, drafts):
        """Append a token with its evidence."""
        rng, vocab, scheme = self.rng, case["vocab_size"], case["scheme"]
        logits, at = row_of(case["rows"][j]), case["position"] + j
        if scheme in ("greedy", "argmax", "coupled", "match"):
            right = own_token(case, logits, at)
            case["tokens"].append(right if rng.random() < 0.8 else rng.randrange(vocab))
            return
        # A draft that is somewhat like the target.
        near = [x + i % 3 for i, x in enumerate(logits)]
        ids, probs = distribution(near, *settings_of(case))
        u = rng.random()
        if scheme == "residual":
            halves = struct.pack(
                f"<{vocab}e", *[dict(zip(ids, probs)).get(i, 0.0) for i in range(vocab)]
            )
            weights = [int(x * 2**24) for x in struct.unpack(f"<{vocab}e", halves)]
            ids, evidence = list(range(vocab)), halves
        elif scheme == "qs":
            size = rng.choice([1, 2, 5, 40, 128])
            best = sorted(sorted(range(len(ids)), key=lambda i: (-probs[i], ids[i]))[:size])
            mass = sum(probs[i] for i in best)
            whole = rng.choice(RESOLUTIONS)
            weights = lattice([probs[i] / mass for i in best], whole)
            kept = [(ids[i], w) for i, w in zip(best, weights) if w]
            ids, weights = [i for i, _ in kept], [w for _, w in kept]
            weights = weights if len(weights) > 1 else [1]
        else:
            weights = lattice(probs, 2**24)
        token = draw_whole(ids, weights, 1 - u)
        known = dict(zip(ids, weights))
        if scheme == "qs":
            evidence = qs_evidence(ids, weights, token, vocab)
        elif scheme != "residual":
            evidence = (known[token] - 1).to_bytes(3, "little")
        case["tokens"].append(token)
        case["evidence"] += evidence.hex()
        drafts.append((known, sum(weights)))

    def distribution(self, vocab, settings, row=None):
        while True:
            case = {
                "row": row or self.row(vocab),
                **dict(zip(("temperature", "top_k", "top_p"), settings)),
            }
            kept = steady(lambda case=case: distribution(row_of(case["row"]), *settings)[0])
            if kept is None:
                continue
            probs = distribution(row_of(case["row"]), *settings)[1]
            if len(kept) > 64:
                return {
                    **case,
                    "count": len(kept),
                    "sum": sum(kept),
                    "first": kept[:4],
                    "p": probs[:4],
                }
            return {**case, "count": len(kept), "ids": kept, "p": probs}

    def shape(self, vocab):
        """Return rows of a block under all that shapes logits, and the distribution."""
        rng = self.rng
        pick = lambda n: [rng.randrange(vocab) for _ in range(n)]  # noqa: E731
        before, drafts = pick(rng.randrange(1, 12)), pick(rng.randrange(4))
        case = {
            "vocab_size": vocab,
            "context": before,
            "text": rng.randrange(len(before) + 1),
            "drafts": drafts,
            "temperature": rng.choice([0.3, 0.8, 1.7]),
            "top_k": rng.choice([0, 0, 3]),
            "top_p": rng.choice([1.0, 1.0, 0.8]),
            "min_p": rng.choice([0.0, 0.05, 0.3, 1.0]),
            "repetition_penalty": rng.choice([1.0, 1.25, 1.3, 0.7]),
            "presence_penalty": rng.choice([0.0, 0.5, -1.5, 2.0]),
            "frequency_penalty": rng.choice([0.0, 0.1, -0.25]),
            "logit_bias": [
                [i, rng.choice([-100.0, 0.5, 100.0, single(0.1)])]
                for i in sorted({*pick(rng.randrange(3))})
            ],
            "bad_words": rng.choice([[], [pick(1)], [[*before[-1:], *pick(1)], pick(2)]]),
            "rows": [self.row(vocab) for _ in range(len(drafts) + 1)],
        }
        found = []
        for j, row in enumerate(case["rows"]):
            so_far = before + drafts[:j]
            found.append(shaped(row_of(row), so_far, case["text"] + j, case))
        if max(found[-1]) == -math.inf:
            return self.shape(vocab)
        case["shaped"] = [[x if x > -math.inf else "-inf" for x in row] for row in found]

        def law():
            ids, probs = distribution(found[-1], *settings_of(case))
            return min_p_cut(ids, probs, case["min_p"])

        if steady(lambda: law()[0]) is None:
            return self.shape(vocab)
        case["ids"], case["p"] = law()
        return case

    def noise(self, profile, domain=0):
        case = {"profile": profile, **self.place(), "domain": domain}
        seed, t, sample = int(case["seed"], 16), case["position"], case["sample"]
        if domain:
            return {**case, "ids": [0], "u": [unit(seed, t, 0, domain, sample)]}
        made = (philox_noise if profile == "philox" else sparse_noise)(
            seed, t, 9000, sample
        )
        early = sorted(range(9000), key=lambda i: made[i])[:4]
        ids = sorted({*early, 0, 1, 2, 3, 4095, 4096, 8999})
        if profile == "philox":
            case["u"] = [unit(seed, t, i, 0, sample) for i in ids]
        return {**case, "ids": ids, "E": [made[i] for i in ids]}

    def members(self, universe, k):
        members = sorted(self.rng.sample(range(universe), k))
        bits = Bits()
        put_set(bits, members, universe)
        return {
            "universe": universe,
            "members": members,
            "bits": bits.count,
            "hex": bits.done().hex(),
        }

    def law(self, vocab, size, whole):
        ids = sorted(self.rng.sample(range(vocab), size))
        cuts = sorted(self.rng.sample(range(1, whole), size - 1)) if size > 1 else []
        edges = [0, *cuts, whole if size > 1 else 1]
        weights = [b - a for a, b in zip(edges, edges[1:])]
        token = self.rng.choice(ids)
        return {
            "vocab_size": vocab,
            "token": token,
            "ids": ids,
            "weights": weights,
            "hex": qs_evidence(ids, weights, token, vocab).hex(),
        }

    def correction(self, vocab, top_k):
        while True:
            rows = [row_of(self.row(vocab)) for _ in range(2)]
            (ids, probs), (q_ids, q_probs) = (distribution(r, 1.0, top_k) for r in rows)
            weights = lattice(q_probs, 2**24)
            token = draw_whole(q_ids, weights, self.rng.random() or 1.0)
            chosen, down = entries(ids, lattice(probs, 2**24), token, vocab)
            known = dict(zip(q_ids, weights))
            if any(w > known.get(i, 0) for i, w in chosen):
                break
        kept = sorted(sorted(q_ids, key=lambda i: (-known[i], i))[:64])
        case = {
            "vocab_size": vocab,
            **self.place(),
            "refused": token,
            "q_ids": kept,
            "q_weights": [known[i] for i in kept],
            "down": down.hex(),
            "ids": [i for i, _ in chosen],
            "weights": [w for _, w in chosen],
        }
        return {**case, "token": correct(case)}


def small_corrections():
    """Return corrections where a running sum off by one is another token."""
    base = {
        "vocab_size": 8,
        "sample": 0,
        "refused": 2,
        "q_ids": [2, 4],
        "q_weights": [M24, 1],
    }
    ids, weights = [0, 3, 4, 7], [1, 2, 2, 1]
    packed_ids = sum(math.comb(c, i) for i, c in enumerate(without(ids, 2), 1))
    bits = [(4, 7), (packed_ids, (math.comb(7, 4) - 1).bit_length())]
    down = packed(*bits, *[(w - 1, 24) for w in weights])
    for seed in range(8):
        case = {**base, "seed": f"{seed:016x}", "position": seed, "down": down}
        case.update(ids=ids, weights=weights)
        yield {**case, "token": correct(case)}


def halves(*numbers):
    return struct.pack(f"<{len(numbers)}e", *numbers).hex()


def packed(*numbers):
    bits = Bits()
    for value, width in numbers:
        bits.put(value, width)
    return bits.done().hex()


def refusals():
    """Return what no end may take, by what it is an error of."""
    up = [
        ("greedy", [1], "78", "no evidence belongs to ids"),
        ("coupled", [1], "78", "no evidence belongs to ids"),
        ("match", [1], "78", "no evidence belongs to ids"),
        ("argmax", [1], "78", "no evidence belongs to ids"),
        ("residual", [1], "", "missing"),
        ("residual", [1], halves(0, 0.5, 0.5, 0)[:-2], "a byte is missing"),
        ("residual", [1], halves(0, 0.5, float("nan"), 0.5), "not a number"),
        ("residual", [1], halves(0, 0.5, -0.5, 1), "below 0"),
        ("residual", [1], halves(0, 0.5, 0.25, 0), "the whole is more than 5 % off 1"),
        ("residual", [1], halves(1, 1, 1, 1), "the whole is more than 5 % off 1"),
        ("residual", [0], halves(0, 0.5, 0.5, 0), "the draft itself has probability 0"),
        ("residual", [4], halves(0, 0.5, 0.5, 0), "no such id"),
        ("separate", [1], "0000", "a byte is missing"),
        ("separate", [1, 2], "00" * 7, "a byte too many"),
        ("separate", [9], "000000", "no such id"),
        ("qs", [1], "", "missing"),
        ("qs", [1], "0000", "a byte too many"),
        ("qs", [1], "80", "padding that is not zero"),
        ("qs", [1], "04000000", "5 ids out of 4"),
        ("qs", [1], "02000000", "3 weights above 0 that sum to 2"),
        ("qs", [1], "0118", "no set of that rank"),
        ("qs", [7], "00", "no such id"),
    ]
    down = [
        ("", "missing"),
        ("00", "no entries"),
        ("08" + "00" * 400, "more entries than there are ids"),
        (packed((1, 7), (7, 3), (5, 24)), "no set of that rank"),
        (packed((2, 7), (1, 5), (M24, 24), (M24, 24)), "they sum to more than 1"),
        (packed((2, 7), (1, 5), (3, 24)), "cut short"),
        (packed((1, 7), (1, 3), (3, 24)) + "00", "a byte too many"),
        (packed((1, 7), (1, 3), (3, 24), (1, 1)), "padding that is not zero"),
    ]
    logits = [[0, "nan", 1, 2], ["nan"] * 4, [0, "inf", 1, 2], ["-inf"] * 4]
    settings = [
        {"temperature": -0.1},
        {"temperature": 101},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 2**32},
        {"sample": 2**32},
        {"noise": "pink"},
        {"scheme": "coupled", "temperature": 0.0},
        {"scheme": "greedy", "temperature": 0.8},
        {"scheme": "separate", "top_k": 65},
        {"scheme": "separate", "top_k": 0},
    ]
    return {
        "up": [
            {"scheme": s, "vocab_size": 4, "tokens": t, "evidence": e, "why": w}
            for s, t, e, w in up
        ],
        "down": [{"vocab_size": 8, "refused": 7, "down": e, "why": w} for e, w in down],
        "logits": logits,
        "settings": settings,
        "race": ["residual", "qs", "separate", "separate-lossy"],
    }


LARGE = (2048, 32000, 151936)
ALL = (0.8, 0, 1.0)
CUT = (0.8, 50, 0.95)


def vectors():
    """Return the document."""
    make, apart = Maker(), Maker()  # what was added later moves nothing
    free = ("greedy", "argmax", "coupled", "match")
    rejecting = ("residual", "qs", "separate", "separate-lossy")
    decisions = [
        make.decision(s, 8, k % 5) for s in (*free, *rejecting) for k in range(1, 8)
    ]
    decisions += [make.decision("coupled", 8, k, noise="sparse") for k in range(5)]
    for vocab in LARGE:
        decisions += [
            make.decision("greedy", vocab, 1),
            make.decision("coupled", vocab, 0, ALL),
            make.decision("coupled", vocab, 1, ALL, "sparse"),
            make.decision("coupled", vocab, 0, (0.5, 0, 0.9)),
            make.decision("coupled", vocab, 1, CUT, "sparse"),
            make.decision("match", vocab, 0, ALL),
            make.decision("match", vocab, 1, (0.5, 0, 0.9)),
            make.decision("qs", vocab, 2, CUT),
            make.decision("separate", vocab, 2, CUT),
            make.decision("separate-lossy", vocab, 3, (1.7, 0, 1.0)),
        ]
    for scheme in rejecting:
        decisions += [make.edge(scheme, *edge) for edge in ((0.98, 1), (1, 1.02))]
    decisions += [make.rejection("separate-lossy", v, (1.7, 0, 1.0)) for v in LARGE]
    decisions.append(make.decision("residual", 2048, 1, CUT))
    cuts = [(1.0, 0, 0.5), (0.3, 3, 1.0), (0.8, 6, 0.7), (1.7, 1, 1.0), (1.0, 3, 1e-9)]
    cut_large = [(0.8, 50, 0.95), (0.5, 0, 0.9)]
    domains = (DRAFT, ACCEPT, CORRECT)
    return {
        "schema": "draftwire.sampling_vectors/2",
        "noise": [make.noise(p) for p in ("philox", "sparse") for _ in range(4)]
        + [make.noise("philox", domain) for domain in domains for _ in range(2)],
        "distributions": [make.distribution(8, c) for c in cuts for _ in range(4)]
        + [make.distribution(v, c) for v in LARGE for c in cut_large]
        # In binary64 0.28 * 25 is a little above 7: seven tokens reach it all the same.
        + [make.distribution(25, (1.0, 0, 0.28), [0.25] * 25)],
        "sets": [
            make.members(n, k)
            for n, k in [
                (7, 3),
                (7, 7),
                (31, 8),
                (32, 8),
                (999, 2),
                (1015, 127),
                (1016, 127),
            ]
            + [(v - 1, k) for v in LARGE for k in (1, 9, 64)]
        ],
        "quantised": [make.law(8, n, 8) for n in (1, 2, 5, 8)]
        + [make.law(v, n, w) for v in LARGE for n, w in [(2, 2), (16, 100), (128, 768)]],
        "decisions": decisions,
        "corrections": [make.correction(8, 0) for _ in range(4)]
        + [make.correction(v, 50) for v in LARGE]
        + list(small_corrections()),
        "refused": refusals(),
        "shapes": [apart.shape(8) for _ in range(40)],
    }


def render(document):
    """Return JSON with a line for each case."""

    def rows(cases, pad):
        inner = (",\n" + pad).join(json.dumps(case) for case in cases)
        return f"[\n{pad}{inner}\n{pad[:-1]}]"

    parts = []
    for key, value in document.items():
        if isinstance(value, dict):
            groups = [f' "{name}": {rows(cases, "   ")}' for name, cases in value.items()]
            parts.append(f'"{key}": {{\n ' + ",\n ".join(groups) + "\n }")
        else:
            text = rows(value, "  ") if isinstance(value, list) else json.dumps(value)
            parts.append(f'"{key}": {text}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    place = Path(__file__).resolve().parents[1] / "golden" / "sampling_v2.json"
    place.write_text(render(vectors()), encoding="utf-8")
