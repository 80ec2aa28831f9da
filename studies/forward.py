"""What a forward of the embedded verifier costs, and how sessions should share it.

``python -m studies.forward --target NAME.target`` times one round of
verification for several sessions, each with a context and a block of drafted tokens:

- *shared*: all sessions in one forward of the engine, caches copied side by side;
- *looped*: one forward a session, nothing copied;
- *served*: what the backend does by itself.

All are timed in turns within one run, so that a busy machine slows them alike; the
median of each is shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from draftwire.cli._common import write_json
from draftwire.io import format_table
from draftwire.verifier.backends.base import Form, Frame, SlotInput
from draftwire.verifier.backends.onnx_target import OnnxTarget

__all__ = ["measure"]


def measure(
    target: Path,
    *,
    sessions: Sequence[int] = (1, 2, 4, 8),
    contexts: Sequence[Sequence[int]] = ((64,), (256,), (1024,), (64, 1024)),
    block: int = 6,
    repeats: int = 15,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Time rounds of verification.

    Args:
        target: A target package.
        sessions: Sessions in a round.
        contexts: Tokens in the sessions' caches, in turns: ``(64, 1024)`` gives half
            of the sessions a short context and half a long one.
        block: Tokens that each session sends.
        repeats: Rounds of each kind.
        threads: Of the engine.

    Returns:
        For each combination the medians in milliseconds.
    """
    model = OnnxTarget(target, slots=max(sessions), threads=threads)
    rng = np.random.default_rng(0)
    found = []
    for mix in contexts:
        slots = [model.allocate() for _ in range(max(sessions))]
        for i, slot in enumerate(slots):
            context = mix[i % len(mix)]
            tokens = rng.integers(0, model.vocab_size, context)
            for at in range(0, context, 128):
                model.forward([SlotInput(slot, at, tokens[at : at + 128], 0)])
        for count in sessions:
            if count < len(mix):
                continue
            batch = []
            for i, slot in enumerate(slots[:count]):
                tokens = rng.integers(0, model.vocab_size, block)
                batch.append(SlotInput(slot, mix[i % len(mix)], tokens, block))
            kinds: dict[str, Callable[[], Any]] = {
                "shared_ms": partial(_together, model, batch),
                "looped_ms": partial(_looped, model, batch),
                "served_ms": partial(model.forward, batch),
            }
            for kind in kinds.values():
                kind()
            times: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(repeats):
                for name, kind in kinds.items():
                    begin = time.perf_counter()
                    kind()
                    times[name].append(time.perf_counter() - begin)
            medians = {
                name: round(1e3 * statistics.median(values), 3)
                for name, values in times.items()
            }
            mixed = "+".join(map(str, mix))
            found.append({"sessions": count, "contexts": mixed, **medians})
        for slot in slots:
            model.release(slot)
    return found


def _together(model: OnnxTarget, batch: Sequence[SlotInput]) -> list[Any]:
    return model.run(Frame(batch, Form()))


def _looped(model: OnnxTarget, batch: Sequence[SlotInput]) -> list[Any]:
    return [_together(model, [one]) for one in batch]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--contexts", nargs="+", default=["64", "256", "1024", "64+1024"])
    parser.add_argument("--block", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = measure(
        args.target,
        sessions=args.sessions,
        contexts=[[int(n) for n in mix.split("+")] for mix in args.contexts],
        block=args.block,
        repeats=args.repeats,
        threads=args.threads,
    )
    if args.json:
        write_json(rows, "-")
    else:
        print(format_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
