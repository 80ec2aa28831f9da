"""Fuzzes the codec, both sessions and HTTP: ``make fuzz``, or this file with arguments.

Coverage-guided by atheris where that is installed, else by a plain mutation loop. A
crash leaves its input in the folder ``fuzz-crashes`` and its hex on the screen; put that
into ``corpus.json`` once it is fixed.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "helpers"), str(HERE.parents[1] / "src")]

SHARES = {"codec": 0.4, "target": 0.3, "edge": 0.2, "http": 0.1}


def noise(rng: random.Random, most: int) -> bytes:
    """Return 1 to ``most`` random bytes; ``randbytes`` is not in Python 3.8."""
    n = rng.randrange(1, most + 1)
    return rng.getrandbits(8 * n).to_bytes(n, "little")


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return ``data`` with a few changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        kind, at = rng.randrange(8), rng.randrange(len(out) + 1)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            out[at:at] = noise(rng, 8)
        elif kind == 3:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 4:
            other = rng.choice(others)
            out[at:] = other[rng.randrange(len(other) + 1) :]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randrange(1, 17)]
        elif kind == 6:
            out += noise(rng, 32)
        else:
            out[at:at] = b"\xff" * rng.randrange(1, 12)
    return bytes(out[:300])


def loop(name: str, runs: int, seed: int) -> int:
    """Run the corpus and ``runs`` mutations of it; return how many inputs that was."""
    from fuzz_targets import TARGETS, seeds

    run, rng = TARGETS[name], random.Random(seed)
    pool = seeds(name)
    for data in pool:
        one(run, data)
    for _ in range(runs):
        data = mutate(rng.choice(pool), pool, rng)
        one(run, data)
        if rng.random() < 0.01:  # wander away from the seeds
            pool.append(data)
    return len(pool) + runs


def one(run, data: bytes) -> None:
    """Run one input, and name it when it fails."""
    try:
        run(data)
    except BaseException:
        print(f"\nthe input: {data.hex()}", file=sys.stderr)
        raise


def guided(name: str, runs: int, seed: int) -> None:
    """Fuzz with atheris; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["draftwire"]):
        from fuzz_targets import TARGETS, seeds

    run = TARGETS[name]
    crashes = Path("fuzz-crashes")
    crashes.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds(name)):
            (Path(folder) / f"{number:04}").write_bytes(data)
        words = [f"-runs={runs}", f"-seed={seed}", "-max_len=300", "-timeout=30"]
        words += [f"-artifact_prefix={crashes}/", "-print_final_stats=1", folder]
        atheris.Setup([sys.argv[0], *words], lambda data: one(run, data))
        atheris.Fuzz()


def main() -> int:
    """Share ``--runs`` out among the targets, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs (a million)")
    parser.add_argument("--target", choices=SHARES, help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    args = parser.parse_args()
    if args.target is None:
        for name, share in SHARES.items():
            words = ["--target", name, "--runs", str(int(args.runs * share))]
            words += ["--seed", str(args.seed)] + ["--plain"] * args.plain
            code = subprocess.call([sys.executable, __file__, *words])
            if code:
                return code
        return 0
    # What is refused would be logged a million times.
    logging.getLogger("draftwire.verifier").setLevel(logging.CRITICAL)
    started = time.perf_counter()
    try:
        import atheris  # noqa: F401
    except ImportError:
        args.plain = True
    if not args.plain:
        guided(args.target, args.runs, args.seed)
    count = loop(args.target, args.runs, args.seed)
    seconds = time.perf_counter() - started
    print(f"{args.target}: {count} inputs in {seconds:.0f} s, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
