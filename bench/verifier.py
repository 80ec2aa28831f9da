"""Load on a verifier: many devices at once, what they get and what it costs.

The verifier is a process of its own; the devices are raw websocket clients here. Their
drafter costs nothing: it knows the target's text, read before the clock starts, and errs
at fixed places, so that the acceptance is chosen and every text can be compared. Each
run is made twice, with batching and without (``--max-batch 1``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from draftwire.bench.child import VerifierProcess
from draftwire.errors import DraftwireError, TransportError
from draftwire.packages import TargetPackage, load_target
from draftwire.transport.codec import SUBPROTOCOL, Codec
from draftwire.transport.dial import web
from draftwire.transport.messages import (
    Block,
    Commit,
    Hello,
    Open,
    Opened,
    Progress,
    Welcome,
)
from draftwire.verifier.kit.peer import direct

SCHEMA = "draftwire.bench.verifier/1"
PROMPTS = 8
PATIENCE_S = 60.0


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


class Fault(Exception):
    """A device got what it must not get."""


class _Device:
    def __init__(self, socket: Any, package: TargetPackage) -> None:
        self._socket = socket
        self._codec = Codec()
        self._package = package

    async def _say(self, message: Any) -> None:
        await self._socket.send(self._codec.encode(message))

    async def _hear(self, kind: type[Any]) -> Any:
        while True:
            frame = await asyncio.wait_for(self._socket.recv(), PATIENCE_S)
            found = self._codec.decode(frame).message
            if not isinstance(found, Progress):
                break
        if not isinstance(found, kind):
            raise Fault(f"{found} instead of {kind.__name__.lower()}")
        return found

    async def greet(self) -> None:
        package = self._package
        tokenizer = bytes.fromhex(package.family.tokenizer)
        backbone = bytes.fromhex(package.family.backbone or "")
        await self._say(
            Hello("draftwire-bench", "", tokenizer, backbone, package.vocab_size)
        )
        self._codec = Codec((await self._hear(Welcome)).vocab_size)

    async def open(self, prompt: Sequence[int], count: int) -> None:
        await self._say(Open(tuple(prompt), "greedy", 0.0, 0, 1.0, 0, count))
        await self._hear(Opened)

    async def judge(self, epoch: int, base: int, tokens: Sequence[int]) -> Commit:
        await self._say(Block(epoch & 0xFF, base, tuple(tokens)))
        found: Commit = await self._hear(Commit)
        return found

    async def text(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the target's own text, asked for without drafts."""
        await self.open(prompt, count)
        text: list[int] = []
        while len(text) < count:
            commit = await self.judge(0, len(text), ())
            assert commit.token is not None
            text.append(commit.token)
        return text

    async def stream(
        self, prompt: Sequence[int], wanted: list[int], load: Load, rng: random.Random
    ) -> list[tuple[float, int]]:
        """Draft one text; return when each round ended, with its tokens.

        The times are ``(seconds of the round, tokens)``.
        """
        await self.open(prompt, load.tokens)
        text: list[int] = []
        rounds = []
        epoch = 0
        while len(text) < load.tokens:
            if load.think_s:
                await asyncio.sleep(load.think_s)
            guess = wanted[
                len(text) : len(text) + min(load.block, load.tokens - 1 - len(text))
            ]
            for i in range(len(guess)):
                if rng.random() >= load.acceptance:
                    guess[i] = (guess[i] + 1) % self._package.vocab_size
                    guess[i + 1 :] = [0] * (len(guess) - i - 1)
                    break
            begin = time.perf_counter()
            commit = await self.judge(epoch, len(text), guess)
            seconds = time.perf_counter() - begin
            text += guess[: commit.accepted]
            text += [] if commit.token is None else [commit.token]
            epoch += commit.accepted < len(guess)
            rounds.append((seconds, commit.accepted + (commit.token is not None)))
            if text != wanted[: len(text)]:
                raise Fault("the text is not the target's own")
            self.on_round(rounds[-1])
            if commit.finish:
                break
        return rounds

    def on_round(self, round_: tuple[float, int]) -> None:
        """Called after each round; replaced by whoever counts."""


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
        process = VerifierProcess([load.target], flags=flags)
        process.start()
        try:
            found, texts = asyncio.run(_run(load, package, process.port, texts))
        finally:
            process.kill()
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
        "cores": len(os.sched_getaffinity(0)),
        "runs": runs,
    }


async def enter(
    stack: contextlib.AsyncExitStack, url: str, package: TargetPackage, token: str = ""
) -> _Device:
    """Return a device that has greeted."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    socket = await stack.enter_async_context(
        connect(
            url,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            ping_interval=None,
            open_timeout=PATIENCE_S,
            additional_headers=headers,
            **direct(url),  # type: ignore[arg-type]
        )
    )
    found = _Device(socket, package)
    await found.greet()
    return found


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
                texts = [await devices[0].text(prompt, load.tokens) for prompt in prompts]
        except (OSError, WebSocketException, DraftwireError, Fault) as error:
            raise TransportError(
                f"the verifier does not take the devices: {error}"
            ) from error
        before = _numbers(port)
        tallies = [_Tally() for _ in devices]
        start = time.perf_counter()
        stop = start + load.seconds
        await asyncio.gather(
            *(
                _work(i, devices[i], tallies[i], prompts, texts, load, stop)
                for i in range(load.devices)
            )
        )
        seconds = time.perf_counter() - start
        after = _numbers(port)
    return _summary(
        tallies, seconds, {k: v - before.get(k, 0.0) for k, v in after.items()}
    ), texts


async def _work(
    number: int,
    device: _Device,
    tally: _Tally,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[list[int]],
    load: Load,
    stop: float,
) -> None:
    rng = random.Random(load.seed * 1000 + number)

    def count(round_: tuple[float, int]) -> None:
        if time.perf_counter() <= stop:
            tally.rounds_s.append(round_[0])
            tally.tokens += round_[1]

    device.on_round = count  # type: ignore[method-assign]
    turn = number
    while time.perf_counter() < stop:
        which = turn % len(prompts)
        turn += 1
        try:
            await device.stream(prompts[which], texts[which], load, rng)
        except (
            Fault,
            OSError,
            WebSocketException,
            DraftwireError,
            asyncio.TimeoutError,
        ) as error:
            tally.faults.append(f"device {number}: {type(error).__name__}: {error}")
            return
        tally.texts += 1


def _summary(
    tallies: Sequence[_Tally], seconds: float, spent: dict[str, float]
) -> dict[str, Any]:
    rounds = sorted(1e3 * s for tally in tallies for s in tally.rounds_s)
    shares = [float(tally.tokens) for tally in tallies]
    faults = [fault for tally in tallies for fault in tally.faults]
    total = sum(shares)
    forwards, committed = spent["forwards"], spent["committed"]

    def quantile(q: float) -> float | None:
        return (
            round(rounds[min(len(rounds) - 1, int(q * len(rounds)))], 3) if rounds else None
        )

    mean = total / len(shares)
    return {
        "errors": len(faults),
        "first_errors": faults[:3],
        "tokens": int(total),
        "tokens_per_s": round(total / seconds, 1),
        "texts": sum(tally.texts for tally in tallies),
        "rounds": len(rounds),
        "round_ms": {"p50": quantile(0.5), "p99": quantile(0.99), "max": quantile(1.0)},
        "forwards": int(forwards),
        "forwards_per_token": round(forwards / committed, 4) if committed else None,
        "blocks_per_forward": round(spent["blocks"] / forwards, 2) if forwards else None,
        "forward_seconds": round(spent["seconds"], 2),
        "share": {
            "min": round(min(shares) / mean, 3) if mean else None,
            "max": round(max(shares) / mean, 3) if mean else None,
            "stdev": round(statistics.pstdev(shares) / mean, 3) if mean else None,
            "jain": round(total**2 / (len(shares) * sum(x * x for x in shares)), 4)
            if mean
            else None,
        },
    }


def _numbers(port: int) -> dict[str, float]:
    """Return what the verifier counts: verify forwards, their blocks, committed tokens."""
    found = dict.fromkeys(("forwards", "committed", "blocks", "seconds"), 0.0)
    url = f"http://127.0.0.1:{port}/metrics"
    with web("127.0.0.1", None).open(url, timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if 'kind="verify"' in name:
                found["forwards"] += float(value)
            elif "generation_tokens_total{" in name:
                found["committed"] += float(value)
            elif "iteration_batch_size_sum" in name:
                found["blocks"] += float(value)
            elif "iteration_seconds_total{" in name:
                found["seconds"] += float(value)
    return found


def render(document: dict[str, Any]) -> str:
    """Return the document as a table for people."""
    from draftwire.io import format_table

    runs = document["runs"]
    names = [
        "batching" if run["max_batch"] is None else f"at most {run['max_batch']}"
        for run in runs
    ]
    rows: list[tuple[str, list[Any]]] = [
        ("errors", [run["errors"] for run in runs]),
        ("tokens/s", [run["tokens_per_s"] for run in runs]),
        ("texts, all the target's own", [run["texts"] for run in runs]),
        ("round p50 ms", [run["round_ms"]["p50"] for run in runs]),
        ("round p99 ms", [run["round_ms"]["p99"] for run in runs]),
        ("blocks a forward", [run["blocks_per_forward"] for run in runs]),
        ("forwards a token", [run["forwards_per_token"] for run in runs]),
        ("smallest share of the mean", [run["share"]["min"] for run in runs]),
        ("largest share of the mean", [run["share"]["max"] for run in runs]),
        ("Jain's fairness index", [run["share"]["jain"] for run in runs]),
    ]
    head = (
        f"{document['devices']} devices, {document['seconds']:g} s, blocks of "
        f"{document['block']}, acceptance {document['acceptance']:g}, "
        f"target {document['target']['name']} {document['target']['version']}"
    )
    cells = [[name, *(v if v is None else str(v) for v in row)] for name, row in rows]
    lines = [head, "", format_table(["", *names], cells)]
    for run in runs:
        lines += [f"error: {text}" for text in run["first_errors"]]
    return "\n".join(lines)
