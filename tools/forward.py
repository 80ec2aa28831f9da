"""What a forward of the embedded verifier costs, and how sessions should share it.

``python -m tools.forward --target NAME.target`` times one round of
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

from draftwire.io import format_table
from draftwire.verifier.backends.base import Form, Frame, SlotInput
from draftwire.verifier.backends.onnx_target import OnnxTarget
from studies.command import Say, start


def measure(
    target: Path,
    *,
    sessions: Sequence[int] = (1, 2, 4, 8),
    contexts: Sequence[Sequence[int]] = ((64,), (256,), (1024,), (64, 1024)),
    block: int = 6,
    repeats: int = 15,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Time rounds of verification; return for each combination the medians in milliseconds.

    ``contexts`` are tokens in the sessions' caches, in turns: ``(64, 1024)`` gives half of
    the sessions a short context and half a long one; each sends ``block`` tokens.
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
    return model.run(Frame(batch, Form()), None)


def _looped(model: OnnxTarget, batch: Sequence[SlotInput]) -> list[Any]:
    return [_together(model, [one]) for one in batch]


FLAGS = """
--target DIR !           target package
--sessions N,N:counts =1,2,4,8  in a round
--contexts N+N,N:words =64,256,1024,64+1024  tokens in their caches, in turns
--block N =6             tokens that each session sends
--repeats N =15
--threads N =1           of the engine
"""


def _study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    rows = measure(
        args.target,
        sessions=args.sessions,
        contexts=[[int(n) for n in mix.split("+")] for mix in args.contexts],
        block=args.block,
        repeats=args.repeats,
        threads=args.threads,
    )
    return {"schema": "draftwire.forward/1", "rows": rows}


def _render(document: dict[str, Any]) -> str:
    rows = document["rows"]
    return format_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows])


QUESTION = "What a forward of the embedded verifier costs, by sessions and contexts."
main = partial(start, "tools.forward", QUESTION, FLAGS, _study, _render)

if __name__ == "__main__":
    sys.exit(main())
