"""Co-located speculative decoding: the draft beside the target, no network between.

The same driver, sessions and scheduler as over a network, in one thread and in real
time: draft a block, judge it, go on. It is what a server would do that can host both
models. Only text crosses the network: the prompt waits for the link before anything
begins, and what is written is seen when the link has carried it.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.cloud import SimVerifier
from draftwire.bench.sim.run import Device, Setting
from draftwire.bench.sim.simulate import RealJob
from draftwire.clock import VirtualClock
from draftwire.runtime.drafter import Model
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import FixedLength
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.executor import Done, Heard, VirtualExecutor

BLOCKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
AT_ONCE = LinkSpec("at once", 0.0, 0.0)


class _RealClock(VirtualClock):
    """Real time, and one thread that waits for it."""

    def now(self) -> float:
        return time.perf_counter()

    def run(self, done: Callable[[], bool] | None = None) -> bool:
        while self._queue and not (done is not None and done()):
            when, _, what, args = heapq.heappop(self._queue)
            if what is not None:
                time.sleep(max(0.0, when - self.now()))
                what(*args)
        return done is None or done()


class _InlineExecutor(VirtualExecutor):
    """Runs forwards in place, in the time that they take."""

    def __init__(self, clock: _RealClock, backend: TargetBackend) -> None:
        super().__init__(backend, clock, lambda parts, prefill: 0.0)

    def run(
        self, parts: Sequence[SlotInput], prefill: bool, heard: Heard | None, done: Done
    ) -> None:
        self.over = False
        began_s = self._clock.now()
        answer = self._backend.forward(parts)
        self._clock.post(self._end, answer, self._clock.now() - began_s, done)


@dataclass(frozen=True)
class Colocated:
    """Both models on one machine."""

    draft: Model
    target: TargetBackend  # with a free slot
    vocab_size: int  # ids of both are below this
    draft_context: int  # tokens that the draft holds
    stop_ids: Sequence[int]  # they end a text
    # of the device in each phase, while it only waits; whose, and where from
    watts: Mapping[str, float] = field(default_factory=dict)
    model: str = ""
    origin: str = "nothing runs on the device; its idle power is not metered"

    def run(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        block: int,
        tokens: int,
        link: LinkSpec = AT_ONCE,
    ) -> dict[str, Any]:
        """Write one text that is read over ``link``; return its run report."""
        clock = _RealClock()
        executor = _InlineExecutor(clock, self.target)
        over: list[bool] = []
        device = Device(
            clock,
            Setting(
                Mode(preempt=frozenset()),
                link=link,
                make_controller=lambda: FixedLength(block),
                step=None,
                near=False,
                params=params,
                tokens=tokens,
                vocab_size=self.vocab_size,
                draft_context=self.draft_context,
                watts=self.watts,
                model=self.model,
                origin=self.origin,
            ),
            SimVerifier(clock, self.target, executor=executor),
            [RealJob(self.draft, prompt, tuple(self.stop_ids)), None].__getitem__,
            lambda: over.append(True),
        )
        device.start()
        clock.run(lambda: bool(over))
        (result,) = device.results
        if result.error is not None:
            raise result.error
        report = result.report({"name": "beside the target"}, ())
        report["link"].update(wire_bytes="computed", rtt_ms=1e3 * link.rtt_s)
        return report


def tune_block(
    colocated: Colocated,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    tokens: int,
    *,
    forward_s: float | None = None,
    draft_s: float | None = None,
) -> int:
    """Return the block length with which co-located decoding is fastest.

    ``colocated`` has models that are not paced: only their counts are needed. ``forward_s``
    and ``draft_s`` are those that will be paced to; None takes what the models really need.
    """
    best, best_s = BLOCKS[0], float("inf")
    worse = 0
    for block in BLOCKS:
        spent = 0.0
        for prompt, one in zip(prompts, params):
            report = colocated.run(prompt, one, block, tokens)
            if forward_s is None or draft_s is None:
                spent += report["seconds"]["total"]
            else:
                spent += forward_s * report["target_forwards"]
                spent += draft_s * report["drafted"]
        if spent < best_s:
            best, best_s, worse = block, spent, 0
        else:
            worse += 1
            if worse == 3:
                break
    return best
