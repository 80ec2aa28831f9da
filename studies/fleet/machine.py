"""One verifier in virtual time: forward after forward, over whoever waits.

Everything that is assumed is a field here, with where it comes from. Nothing of it was
measured on such a machine; what the study says is how the *ways to decode* compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MODES = ("edge", "streaming", "colocated")
_PREFILL_CHUNK = 512  # tokens of one prompt in one forward
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Server:
    """An A100-80 with an 8B target in float16, from its data sheet."""

    weights_s: float = 16.1e9 / 1.63e12  # a forward reads 16.1 GB at 80 % of 2.04 TB/s
    # 2 x 8.03e9 operations a token, at half of 312 TFLOP/s
    token_s: float = 2 * 8.03e9 / 156e12
    kv_token_bytes: int = 131072  # llama-3.1-8B: 32 layers x 2 x 8 heads x 128 x 2 bytes
    kv_bytes_s: float = 1.63e12  # what attention reads, at 80 % of the bandwidth
    launch_s: float = 0.001  # what a forward takes besides
    kv_bytes: float = 60e9  # what weights leave of the memory
    # a forward of a 1B draft beside the target (2.5 GB), one token a stream
    draft_s: float = 2.5e9 / 1.63e12 + 0.0005
    # what an hour of it costs, in dollars; an assumption, all costs scale with it
    hour: float = 2.0

    def forward(self, tokens: int, context: int) -> float:
        """Return the seconds of a forward of ``tokens`` that reads ``context`` of KV."""
        work = max(self.weights_s, tokens * self.token_s)
        return self.launch_s + work + context * self.kv_token_bytes / self.kv_bytes_s


@dataclass(frozen=True)
class Board:
    """A device: an Orin Nano with a draft of 0.1B to 0.5B, and its way to the cloud."""

    step_s: float = 0.008  # a drafted token
    acceptance: float = 0.75  # of each drafted token, independent of the others
    block: int = 4  # drafted tokens of a block
    colocated_block: int = 3  # of the draft beside the target
    # median round trip; each device has its own, with a spread of a factor 1.5
    rtt_s: float = 0.040


@dataclass(frozen=True)
class Load:
    """What a device wants: now and then a text."""

    think_s: float = 30.0  # mean pause between two texts
    prompt: int = 400  # tokens of a prompt
    text: float = 120.0  # mean tokens of a text
    slow_s: float = 0.060  # seconds a token that 95 of 100 texts must keep


@dataclass
class Outcome:
    """What a verifier did."""

    tokens: int = 0  # committed
    forwards: int = 0  # of the target
    busy_s: float = 0.0  # time in them (and in those of a draft beside it)
    seconds: float = 0.0  # of the run
    # seconds a token of each text, its first token apart
    token_s: list[float] = field(default_factory=list)
    peak_kv_bytes: float = 0.0  # most that the KV of running texts took

    def slow_token_s(self) -> float:
        """Return what 95 of 100 texts keep; infinite without a text."""
        return float(np.quantile(self.token_s, 0.95)) if self.token_s else math.inf


@dataclass(frozen=True)
class World:
    """All that is assumed."""

    server: Server = Server()  # each verifier
    board: Board = Board()  # each device
    load: Load = Load()  # what they want
    seconds: float = 30.0  # of virtual time


def simulate(world: World, mode: str, devices: int, seed: int) -> Outcome:
    """Run one verifier with so many devices, from a steady start.

    ``mode`` is ``"edge"``: the board drafts while its block is away, and waits for verdicts
    (objective ``cost``); ``"streaming"``: a token a forward; or ``"colocated"``: a draft
    beside the target. All chance is of ``seed``.
    """
    server, board, load, seconds = world.server, world.board, world.load, world.seconds
    rng = np.random.default_rng(seed)
    out = Outcome(seconds=seconds)
    rtt = board.rtt_s * rng.lognormal(0.0, np.log(1.5), devices)
    ready = rng.exponential(load.think_s, devices)
    unread = np.full(devices, load.prompt)
    left = 1 + rng.geometric(1 / load.text, devices)
    context = np.zeros(devices, np.int64)
    made = np.zeros(devices, np.int64)  # tokens of this text
    first = np.zeros(devices)  # when its first one was there
    block = {"edge": board.block, "streaming": 0, "colocated": board.colocated_block}[mode]
    now = 0.0
    while now < seconds:
        who = np.flatnonzero(ready <= now)
        if not len(who):
            now = float(ready.min())
            continue
        who = who[np.argsort(ready[who], kind="stable")]
        rows = np.where(unread[who] > 0, np.minimum(unread[who], _PREFILL_CHUNK), block + 1)
        taken = max(1, int(np.searchsorted(np.cumsum(rows), _BATCH_TOKENS, "right")))
        who, rows = who[:taken], rows[:taken]
        reads = unread[who] > 0
        took = server.forward(int(rows.sum()), int(context[who].sum()))
        if mode == "colocated" and not reads.all():
            took += block * server.draft_s
        now += took
        out.forwards += 1
        out.busy_s += took
        unread[who[reads]] -= rows[reads]
        context[who[reads]] += rows[reads]
        kept = _accepted(rng, board.acceptance, block, len(who))
        # A prompt that is read brings the first token.
        new = np.where(reads, np.where(unread[who] == 0, 1, 0), kept + 1)
        new = np.minimum(new, left[who])
        begun = (made[who] == 0) & (new > 0)
        first[who[begun]] = now
        made[who] += new
        left[who] -= new
        context[who[~reads]] += new[~reads]
        out.tokens += int(new.sum())
        ready[who] = now
        if mode == "edge":
            ready[who] += _away(rtt[who], board, kept, reads, unread[who] == 0)
        out.peak_kv_bytes = max(
            out.peak_kv_bytes, float(context.sum()) * server.kv_token_bytes
        )
        over = who[left[who] == 0]
        out.token_s += ((now - first[over]) / np.maximum(1, made[over] - 1)).tolist()
        ready[over] = now + rng.exponential(load.think_s, len(over))
        unread[over], context[over], made[over] = load.prompt, 0, 0
        left[over] = 1 + rng.geometric(1 / load.text, len(over))
    return out


def _accepted(
    rng: np.random.Generator, acceptance: float, block: int, n: int
) -> NDArray[np.int64]:
    """Return how many drafts of each of ``n`` blocks are kept."""
    if not block:
        return np.zeros(n, np.int64)
    right = rng.random((n, block)) < acceptance
    return np.asarray(np.cumprod(right, axis=1).sum(axis=1), np.int64)


def _away(
    rtt: NDArray[np.float64],
    board: Board,
    kept: NDArray[np.int64],
    reads: NDArray[np.bool_],
    read: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return how long each block is away from the verifier, from verdict to next block.

    While a block was away its device has drafted on: a whole block that is kept is
    followed at once by what was drafted in a round trip; a rejection by a new block.
    """
    drafting = board.block * board.step_s
    ahead = np.maximum(0.0, drafting - rtt)
    after = rtt + np.where(kept == board.block, ahead, drafting)
    return np.where(reads, np.where(read, rtt + ahead, 0.0), after)
