"""What a step with drafts costs on the embedded vLLM, beside the same vLLM without any.

    .venvs/vllm/bin/python -m tools.steps --target FOLDER [--rounds 9] [--streams 1,4,16]

Two engines in one process: ours, and a stock one of the same settings without scheduler,
samplers or speculative config. A round measures both one after the other, so that other
work on the machine falls on both; printed are medians of the rounds' ratios. Run it with
``PYTHONPATH=src`` in the environment that ``make test-vllm`` makes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from draftwire.clock import LoopClock
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.streaming import Order, Push, Step
from draftwire.verifier.backends.vllm.engine import VllmLoader, VllmTarget
from studies.command import Say, markdown, start

FLAGS = """
--target DIR !     a checkpoint folder
--rounds N =9      of pairs
--tokens N =48     of a text, with several streams at once
--streams N[,N]:text =1,4,16  at once
--right P:number =0.8  share of drafts that are right, with several streams at once
"""
_OURS = ("scheduler_cls", "worker_extension_cls", "speculative_config")
_STEPS = 8  # of each kind in a round
_BLOCKS = (1, 4, 8)


class Stock:
    """The same engine as it is without draftwire."""

    def __init__(self, target: VllmTarget) -> None:
        self._engine = target.engine
        settings = target.engine._settings
        self._settings = {k: v for k, v in settings.items() if k not in _OURS}
        self._llm: Any = None
        self._number = 0

    def start(self) -> None:
        """Start it, on the thread of ours."""
        self._engine._do(self._start())

    async def _start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._settings))

    def close(self) -> None:
        """End it."""
        self._engine._do(self._close())

    async def _close(self) -> None:
        self._llm.shutdown()

    def write(self, prompts: list[list[int]], count: int) -> list[list[tuple[int, float]]]:
        """Return each text at once: its ids, and when each came."""
        return self._engine._do(self._all(prompts, count))  # type: ignore[no-any-return]

    async def _all(self, prompts: list[list[int]], count: int) -> Any:
        return await asyncio.gather(*(self._one(p, count) for p in prompts))

    async def _one(self, prompt: list[int], count: int) -> list[tuple[int, float]]:
        from vllm import SamplingParams as Sampling
        from vllm.sampling_params import RequestOutputKind

        self._number += 1
        how = {"ignore_eos": True, "detokenize": False}
        kind = RequestOutputKind.DELTA
        sampling = Sampling(temperature=0, max_tokens=count, output_kind=kind, **how)
        found: list[tuple[int, float]] = []
        asked = {"prompt_token_ids": prompt}
        name = f"stock-{self._number}"
        async for output in self._llm.generate(asked, sampling, name):
            now = time.monotonic()
            found += [(int(t), now) for t in output.outputs[0].token_ids]
        return found


async def ours(
    target: VllmTarget,
    prompt: list[int],
    count: int,
    drafts_of: Callable[[list[int]], list[int]],
) -> tuple[list[int], list[float]]:
    """Return a text written with drafts, and the seconds of each verdict but the first."""
    steps: asyncio.Queue[Step | Exception] = asyncio.Queue()
    end = len(prompt) + count
    order = Order(tuple(prompt), end, (), SamplingParams(), target.vocab_size)
    clock = LoopClock(asyncio.get_running_loop())
    run = target.open(
        order, clock, steps.put_nowait, lambda error, again: steps.put_nowait(error)
    )
    text, seconds = list(prompt), list[float]()
    since = 0.0
    while len(text) < end:
        step = await steps.get()
        if isinstance(step, Exception):
            raise step
        if not step.tokens:
            continue
        text += step.tokens
        if since:
            seconds.append(time.monotonic() - since)
        drafts = drafts_of(text[len(prompt) :])
        since = time.monotonic()
        asks = min(end, len(text) + len(drafts) + 1)
        run.push(Push(0, len(text), tuple(drafts), asks, 0))
    run.close()
    return text[len(prompt) :], seconds


def _drafter(text: list[int], k: int, right: float, seed: int) -> Callable[..., list[int]]:
    rng = random.Random(seed)
    return lambda so_far: [
        t if rng.random() < right else t + 1 if t else 1
        for t in text[len(so_far) : len(so_far) + k]
    ]


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Measure steps of one stream, then several streams at once."""
    streams = [int(n) for n in args.streams.split(",")]
    slots = max(streams)
    always = {"additional_config": {"draftwire_shrink": False}}
    rng = random.Random(5)
    document: dict[str, Any] = {"schema": "draftwire.steps/1", "target": args.target.name}

    target = VllmLoader(slots=slots, context=1024, engine_args=always)(args.target)
    assert isinstance(target, VllmTarget)
    stock = Stock(target)
    stock.start()
    prompts = [[rng.randrange(5, target.vocab_size) for _ in range(200)] for _ in range(2)]
    ratios: dict[int, list[float]] = {k: [] for k in (0, *_BLOCKS)}
    texts = stock.write(prompts, (1 + max(_BLOCKS)) * (_STEPS + 2))
    differ = 0
    for number in range(args.rounds + 1):
        prompt = prompts[number % len(prompts)]
        text = [t for t, _ in texts[number % len(prompts)]]
        (came,) = stock.write([prompt], _STEPS + 1)
        step_s = statistics.median(b - a for (_, a), (_, b) in zip(came, came[1:]))
        for k in ratios:
            count = (1 + k) * _STEPS + 1
            found, took = asyncio.run(ours(target, prompt, count, _drafter(text, k, 1, 0)))
            differ += found != text[:count]
            if number:  # the first one warms up
                ratios[k].append(statistics.median(took) / step_s)
    document["steps"] = {k: round(statistics.median(r), 2) for k, r in ratios.items()}
    document["differ"] = differ
    for k, ratio in document["steps"].items():
        say(f"a verdict of k = {k}: {ratio} plain steps")
    stock.close()
    target.close()
    target.engine.join()

    target = VllmLoader(slots=slots, context=1024)(args.target)  # K shrinks
    assert isinstance(target, VllmTarget)
    stock = Stock(target)
    stock.start()
    prompts = [
        [rng.randrange(5, target.vocab_size) for _ in range(40)] for _ in range(slots)
    ]
    known = [[t for t, _ in came] for came in stock.write(prompts, args.tokens)]
    document["streams"] = {}

    async def drafted(n: int, number: int) -> None:
        jobs = (
            ours(target, p, args.tokens, _drafter(t, 6, args.right, number))
            for p, t in zip(prompts[:n], known)
        )
        found = [text for text, _ in await asyncio.gather(*jobs)]
        document["differ"] += sum(a != b for a, b in zip(found, known))

    for n in streams:
        gains = []
        for number in range(args.rounds + 1):
            took = {}
            for whose in ("plain", "ours") if number % 2 else ("ours", "plain"):
                began = time.monotonic()
                if whose == "plain":
                    stock.write(prompts[:n], args.tokens)
                else:
                    asyncio.run(drafted(n, number))
                took[whose] = time.monotonic() - began
            gains += [took["plain"] / took["ours"]] if number else []
        low, middle, high = statistics.quantiles(gains, n=4)
        document["streams"][n] = round(middle, 2)
        say(
            f"{n} of {slots} streams at once: {middle:.2f} times the tokens/s of the plain "
            f"engine (half of {args.rounds} rounds {low:.2f} to {high:.2f})"
        )
    say(f"{document['differ']} texts differ")
    stock.close()
    target.close()
    target.engine.join()
    return document


def render(document: dict[str, Any]) -> str:
    """Return the document as a table."""
    steps, streams = document["steps"].items(), document["streams"].items()
    rows = [
        *((f"a verdict of k = {k}", f"{ratio} steps") for k, ratio in steps),
        *((f"{n} streams at once", f"{ratio} times the tokens/s") for n, ratio in streams),
        ("texts that differ", document["differ"]),
    ]
    return "\n".join(markdown(["against the plain engine", "ratio"], rows))


if __name__ == "__main__":
    question = "What a step with drafts costs on the embedded vLLM, beside the plain one."
    sys.exit(start("tools.steps", question, FLAGS, study, render))
