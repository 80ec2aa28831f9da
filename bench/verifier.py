"""Load on a verifier: many devices at once, what they get and what it costs.

The verifier is a process of its own; the devices are raw websocket clients here. Their
drafter costs nothing: it knows the target's text, read before the clock starts, and errs
at fixed places, so that the acceptance is chosen and every text can be compared. Each
run is made twice, with batching and without (``--max-batch 1``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence

from websockets.exceptions import WebSocketException

from draftwire.bench.child import VerifierProcess
from draftwire.bench.machine import cores
from draftwire.errors import DraftwireError, TransportError
from draftwire.io import format_table, run_async
from draftwire.packages import TargetPackage, load_target
from draftwire.transport.dial import web
from draftwire.transport.messages import Hello, Open, Opened, Progress, Welcome
from draftwire.verifier.kit.peer import Kit, Peer, Stream
from draftwire.verifier.kit.rows import Failed, must_be

SCHEMA = "draftwire.bench.verifier/1"
PROMPTS = 8
PATIENCE_S = 60.0
# What ends a device.
FAULTS = (Failed, OSError, WebSocketException, DraftwireError, asyncio.TimeoutError)


@dataclass(frozen=True)
class Load:
    """What the devices do."""

    target: Path  # target package
    devices: int = 64  # at the same time
    seconds: float = 60.0  # measured, after everybody is connected
    block: int = 4  # drafted tokens a round
    acceptance: float = 0.8  # chance of a drafted token to be right
    tokens: int = 64  # length of a text; then the device opens the next stream
    # pause of a device before each block, as long as drafting would take
    think_s: float = 0.0
    threads: int | None = None  # of the verifier's engine; None leaves its own choice
    seed: int = 1  # of the drafter's errors


@dataclass
class _Tally:
    """What one device got while the clock ran."""

    tokens: int = 0
    rounds_s: list[float] = field(default_factory=list)
    texts: int = 0
    faults: list[str] = field(default_factory=list)


async def enter(
    stack: contextlib.AsyncExitStack, url: str, package: TargetPackage, token: str = ""
) -> Peer:
    """Return a device that has greeted."""
    tokenizer = bytes.fromhex(package.family.tokenizer)
    backbone = bytes.fromhex(package.family.backbone or "")
    hello = Hello("draftwire-bench", "", tokenizer, backbone, package.vocab_size)
    kit = Kit(url, hello, token or None, patience_s=PATIENCE_S)
    peer = await stack.enter_async_context(kit.peer(ping_interval=None))
    must_be(Welcome, await peer.greet())
    return peer


async def _open(
    peer: Peer, prompt: Sequence[int], count: int, want: Sequence[int] | None = None
) -> Stream:
    request = Open(tuple(prompt), "greedy", 0.0, 0, 1.0, 0, count)
    await peer.say(request)
    answer = await peer.hear()
    while isinstance(answer, Progress):
        answer = await peer.hear()
    return Stream(peer, 0, request, want, must_be(Opened, answer))


async def text_of(peer: Peer, prompt: Sequence[int], count: int) -> list[int]:
    """Return the target's own text, asked for without drafts."""
    stream = await _open(peer, prompt, count)
    await stream.fill(count)
    return stream.text


async def draft(
    peer: Peer,
    prompt: Sequence[int],
    wanted: list[int],
    load: Load,
    rng: random.Random,
    count: Callable[[float, int], None],
) -> None:
    """Draft one text; ``count`` hears the seconds and tokens of each round."""
    stream = await _open(peer, prompt, load.tokens, wanted)
    while len(stream.text) < len(wanted) and not stream.finish:
        if load.think_s:
            await asyncio.sleep(load.think_s)
        at = len(stream.text)
        guess = wanted[at : min(at + load.block, load.tokens - 1)]
        for i in range(len(guess)):
            if rng.random() >= load.acceptance:
                guess[i] = (guess[i] + 1) % peer.kit.hello.vocab_size
                guess[i + 1 :] = [0] * (len(guess) - i - 1)
                break
        begin = time.perf_counter()
        commit = await stream.judge(guess)
        tokens = commit.accepted + (commit.token is not None)
        count(time.perf_counter() - begin, tokens)


def bench_verifier(
    load: Load, max_batches: Sequence[int | None] = (None, 1)
) -> dict[str, Any]:
    """Measure the verifier under ``load``, once for each limit on the streams of a forward.

    None leaves the verifier's own limit. A TransportError where it does not start.
    """
    package = load_target(load.target)
    runs = []
    texts: list[list[int]] | None = None
    for max_batch in max_batches:
        flags = ["--slots", str(load.devices), "--max-sessions", str(load.devices + 8)]
        flags += ["--context", str(min(package.context, load.tokens + 64)), "-q"]
        flags += [] if load.threads is None else ["--threads", str(load.threads)]
        flags += [] if max_batch is None else ["--max-batch", str(max_batch)]
        with VerifierProcess([load.target], flags=flags) as process:
            found, texts = run_async(_run(load, package, process.port, texts))
        runs.append({"max_batch": max_batch, **found})
    return {
        "schema": SCHEMA,
        "target": {"name": package.name, "version": package.version},
        "devices": load.devices,
        "seconds": load.seconds,
        "block": load.block,
        "acceptance": load.acceptance,
        "tokens": load.tokens,
        "think_ms": load.think_s * 1e3,
        "cores": cores(),
        "runs": runs,
    }


async def _run(
    load: Load, package: TargetPackage, port: int, texts: list[list[int]] | None
) -> tuple[dict[str, Any], list[list[int]]]:
    rng = random.Random(load.seed)
    url = f"ws://127.0.0.1:{port}"
    prompts = [
        [rng.randrange(3, min(300, package.vocab_size)) for _ in range(16)]
        for _ in range(PROMPTS)
    ]
    async with contextlib.AsyncExitStack() as stack:
        try:
            devices = [await enter(stack, url, package) for _ in range(load.devices)]
            if texts is None:
                texts = [await text_of(devices[0], one, load.tokens) for one in prompts]
        except FAULTS as error:
            message = f"the verifier does not take the devices: {error}"
            raise TransportError(message) from error
        before = _numbers(port)
        tallies = [_Tally() for _ in devices]
        start = time.perf_counter()
        stop = start + load.seconds
        parts = zip(range(load.devices), devices, tallies)
        work = (_work(*part, prompts, texts, load, stop) for part in parts)
        await asyncio.gather(*work)
        seconds = time.perf_counter() - start
        after = _numbers(port)
    spent = {name: value - before[name] for name, value in after.items()}
    return _summary(tallies, seconds, spent), texts


async def _work(
    number: int,
    device: Peer,
    tally: _Tally,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[list[int]],
    load: Load,
    stop: float,
) -> None:
    rng = random.Random(load.seed * 1000 + number)

    def count(seconds: float, tokens: int) -> None:
        if time.perf_counter() <= stop:
            tally.rounds_s.append(seconds)
            tally.tokens += tokens

    turn = number
    while time.perf_counter() < stop:
        which = turn % len(prompts)
        turn += 1
        try:
            await draft(device, prompts[which], texts[which], load, rng, count)
        except FAULTS as error:
            tally.faults.append(f"device {number}: {type(error).__name__}: {error}")
            return
        tally.texts += 1


def _summary(
    tallies: Sequence[_Tally], seconds: float, spent: dict[str, float]
) -> dict[str, Any]:
    rounds = sorted(1e3 * s for tally in tallies for s in tally.rounds_s)
    tokens = [float(tally.tokens) for tally in tallies]
    faults = [fault for tally in tallies for fault in tally.faults]
    total, mean = sum(tokens), statistics.mean(tokens)
    forwards, committed = spent["forwards"], spent["committed"]

    def ratio(part: float, whole: float, digits: int) -> float | None:
        return round(part / whole, digits) if whole else None

    def quantile(q: float) -> float | None:
        return ratio(rounds[min(len(rounds) - 1, int(q * len(rounds)))], 1, 3)

    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        "errors": len(faults),
        "first_errors": faults[:3],
        "tokens": int(total),
        "tokens_per_s": round(total / seconds, 1),
        "texts": sum(tally.texts for tally in tallies),
        "rounds": len(rounds),
        "round_ms": {name: quantile(q) if rounds else None for name, q in at.items()},
        "forwards": int(forwards),
        "forwards_per_token": ratio(forwards, committed, 4),
        "blocks_per_forward": ratio(spent["blocks"], forwards, 2),
        "forward_seconds": round(spent["seconds"], 2),
        "share": {
            "min": ratio(min(tokens), mean, 3),
            "max": ratio(max(tokens), mean, 3),
            "stdev": ratio(statistics.pstdev(tokens), mean, 3),
            "jain": ratio(total**2, len(tokens) * sum(x * x for x in tokens), 4),
        },
    }


def _numbers(port: int) -> dict[str, float]:
    """Return what the verifier counts: verify forwards, their blocks, committed tokens."""
    names = {
        'kind="verify"': "forwards",
        "generation_tokens_total{": "committed",
        "iteration_batch_size_sum": "blocks",
        "iteration_seconds_total{": "seconds",
    }
    found = dict.fromkeys(names.values(), 0.0)
    url = f"http://127.0.0.1:{port}/metrics"
    with web("127.0.0.1", None).open(url, timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            for part, kind in names.items():
                if part in name:
                    found[kind] += float(value)
                    break
    return found


def render(document: dict[str, Any]) -> str:
    """Return the document as a table for people."""
    runs = document["runs"]
    limits = [run["max_batch"] for run in runs]
    names = ["batching" if most is None else f"at most {most}" for most in limits]
    rows = []
    for title, *keys in (
        ("errors", "errors"),
        ("tokens/s", "tokens_per_s"),
        ("texts, all the target's own", "texts"),
        ("round p50 ms", "round_ms", "p50"),
        ("round p99 ms", "round_ms", "p99"),
        ("blocks a forward", "blocks_per_forward"),
        ("forwards a token", "forwards_per_token"),
        ("smallest share of the mean", "share", "min"),
        ("largest share of the mean", "share", "max"),
        ("Jain's fairness index", "share", "jain"),
    ):
        values = [functools.reduce(lambda found, key: found[key], keys, r) for r in runs]
        rows.append([title, *(v if v is None else str(v) for v in values)])
    head = (
        f"{document['devices']} devices, {document['seconds']:g} s, blocks of "
        f"{document['block']}, acceptance {document['acceptance']:g}, "
        f"target {document['target']['name']} {document['target']['version']}"
    )
    lines = [head, "", format_table(["", *names], rows)]
    for run in runs:
        lines += [f"error: {text}" for text in run["first_errors"]]
    return "\n".join(lines)
