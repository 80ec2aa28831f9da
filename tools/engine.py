"""Texts with drafts beside texts without, on a server that somebody runs.

    python -m tools.engine --engine http://127.0.0.1:8000 --target FOLDER [--texts 6]

Greedy, and coupled where the server has draftwire's processor; right drafts, drafts that
err at one place in five, and wrong ones. Prints how many questions each took.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Callable
from typing import Any

from draftwire.clock import LoopClock
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.attached import AttachedLoader, AttachedTarget
from draftwire.verifier.backends.streaming import Order, Push, Step
from studies.command import Say, markdown, start

FLAGS = """
--engine URL !     the server
--target DIR !     folder of its model's tokenizer
--engine-model NAME =  which of its models
--texts N =6       for each scheme
--tokens N =32     of a text
--block N =6       drafted tokens of a block
"""
_PARAMS = {
    "greedy": SamplingParams(),
    "coupled": SamplingParams("coupled", 0.8, seed=7),
    "coupled, top-k 40, top-p 0.95": SamplingParams("coupled", 0.8, 40, 0.95, seed=9),
}


async def write(
    target: AttachedTarget,
    params: SamplingParams,
    prompt: list[int],
    tokens: int,
    drafts_of: Callable[[list[int]], list[int]],
) -> tuple[list[int], int]:
    """Return a text of the server, and how many questions it took.

    Raises:
        DraftwireError: The server refuses, or has no room.
    """
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[Step | Exception] = asyncio.Queue()
    order = Order(tuple(prompt), len(prompt) + tokens, (), params, target.vocab_size)
    run = target.open(
        order,
        LoopClock(loop),
        steps.put_nowait,
        lambda error, again: steps.put_nowait(error),
    )
    text, asked = list(prompt), 0
    while len(text) < order.end:
        step = await steps.get()
        if isinstance(step, Exception):
            raise step
        text += step.tokens
        asked += 1
        drafts = drafts_of(text[len(prompt) :])
        asks = len(text) + max(1, len(drafts))
        run.push(Push(0, len(text), tuple(drafts), asks, 0))
    run.close()
    return text[len(prompt) :], asked


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Try all schemes that the server can do."""
    target = AttachedLoader(args.engine, args.engine_model)(args.target)
    rng = random.Random(1)
    rows = []
    for name, params in _PARAMS.items():
        if params.scheme not in target.schemes:
            continue
        asked: dict[str, int] = {"none": 0, "right": 0, "one in five wrong": 0, "wrong": 0}
        differ = 0
        for _ in range(args.texts):
            prompt = [rng.randrange(target.vocab_size) for _ in range(8)]

            def text(drafts: Callable[[list[int]], list[int]]) -> tuple[list[int], int]:
                work = write(target, params, prompt, args.tokens, drafts)  # noqa: B023
                return asyncio.run(work)

            plain, count = text(lambda found: [])
            asked["none"] += count

            def right(found: list[int]) -> list[int]:
                return plain[len(found) :][: args.block]  # noqa: B023

            def mixed(found: list[int]) -> list[int]:
                some = rng.randrange(target.vocab_size)
                return [some if rng.random() < 0.2 else t for t in right(found)]  # noqa: B023

            def wrong(found: list[int]) -> list[int]:
                return [(t + 1) % target.vocab_size for t in right(found)]  # noqa: B023

            for kind, drafts in zip(list(asked)[1:], (right, mixed, wrong)):
                found, count = text(drafts)
                asked[kind] += count
                differ += found != plain
        rows.append({"scheme": name, "asked": asked, "differ": differ})
        say(f"{name}: {asked}, {differ} texts differ")
    target.close()
    return {"schema": "draftwire.engine/1", "schemes": list(target.schemes), "rows": rows}


def render(document: dict[str, Any]) -> str:
    """Return the document as a table."""
    kinds = list(document["rows"][0]["asked"])
    rows = [[r["scheme"], *r["asked"].values(), r["differ"]] for r in document["rows"]]
    return "\n".join(markdown(["scheme", *kinds, "texts that differ"], rows))


if __name__ == "__main__":
    question = "Texts with drafts beside texts without, on a server that somebody runs."
    sys.exit(start("tools.engine", question, FLAGS, study, render))
