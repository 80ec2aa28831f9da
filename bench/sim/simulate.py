"""Runs of the simulator: a scheme on a profile over a link, and what came of it."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Callable, Iterable, Iterator, Sequence

from draftwire.bench.sim.cloud import ForwardCost, SimVerifier, TextBackend
from draftwire.bench.sim.run import (
    Device,
    Job,
    Plan,
    StreamResult,
    cloud_step_s,
    synthetic_of,
)
from draftwire.bench.sim.table import row
from draftwire.bench.sim.texts import TextDraft, TextTarget
from draftwire.clock import VirtualClock
from draftwire.errors import ConfigError
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.executor import Done, Heard, VirtualExecutor

__all__ = ["Outcome", "Plan", "price", "simulate", "synthetic_of", "tuned"]

BLOCKS = range(1, 17)
OBJECTIVES = ("latency", "cost", "energy")
FORWARD_PRICE = 0.25  # seconds that a second of the target is worth, as the controller's


class StuckError(RuntimeError):
    """A simulated stream waits for something that never comes (our bug)."""


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    plan: Plan  # what was simulated
    streams: Sequence[StreamResult]  # results of all streams of all devices
    seconds: float  # virtual time of the run, from when the first user asks
    forwards: int  # of the target for all streams, prompts apart
    busy_s: float  # seconds that the target was busy

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """The run reports of all streams, of the schema of live ones.

        They say ``"simulated": true``, and name the profile and the link.
        """
        return [self._report(stream) for stream in self.streams]

    def _report(self, stream: StreamResult) -> dict[str, Any]:
        plan = self.plan
        report = stream.report(
            {"name": f"simulated: {plan.profile.name}"},
            ["simulated: no model, board or network was measured"],
        )
        report["sampling"]["seed"] = plan.seed
        report["mode"]["scheme"] = plan.scheme.name
        report["link"].update(spec=plan.the_link.to_dict(), wire_bytes="simulated")
        return {**report, "simulated": True}

    @cached_property
    def row(self) -> dict[str, Any]:
        """What people compare, see :func:`draftwire.bench.sim.table.row`."""
        return row(self.reports)

    @property
    def block(self) -> int | None:
        """The block length, or None where the length policy decides."""
        fixed = self.plan.scheme.has_blocks and self.plan.controller is None
        return self.plan.length if fixed else None

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.row["tokens"])

    @property
    def ms_per_token(self) -> float:
        """Time per output token after the first ones, milliseconds; NaN without any."""
        known = self.row["ms_per_token"]
        return math.nan if known is None else float(known)

    @property
    def joules_per_token(self) -> float | None:
        """Modelled joules of the board for each token, or None without watts."""
        known = self.row["joules_per_token"]
        return None if known is None else float(known)


class _RealClock(VirtualClock):
    """Real time, and one thread that waits for it."""

    def now(self) -> float:
        return time.perf_counter()

    def post(self, what: Callable[..., None], *args: Any) -> None:
        self.call_at(self.now(), what, *args)

    def run(self, done: Callable[[], bool] | None = None) -> bool:
        while self._queue and not (done is not None and done()):
            when, _, what, args = heapq.heappop(self._queue)
            if what is not None:
                time.sleep(max(0.0, when - self.now()))
                what(*args)
        return done is None or done()


class _InlineExecutor(VirtualExecutor):
    """Runs forwards in place, in the time that they take."""

    def run(
        self, parts: Sequence[SlotInput], prefill: bool, heard: Heard | None, done: Done
    ) -> None:
        self.over = False
        began_s = self._clock.now()
        answer = self._backend.forward(parts)
        self._clock.post(self._end, answer, self._clock.now() - began_s, done)


def simulate(
    plan: Plan,
    kind: type[Device] = Device,
    before: Callable[[VirtualClock, Device], None] = lambda clock, device: None,
) -> Outcome:
    """Run a plan.

    Args:
        plan: What.
        kind: Of the devices.
        before: Called with each device before it starts; may plan changes.

    Raises:
        ConfigError: The plan cannot be run.
        DraftwireError: A stream failed.
        StuckError: A session waits for ever (our bug).
    """
    profile, scheme, helps = plan.profile, plan.scheme, plan.helps
    clock = _RealClock() if plan.real_time else VirtualClock()
    texts = TextBackend(f"simulated: {profile.name}", plan.ids, profile.exits)
    backend: TargetBackend = texts if plan.backend is None else plan.backend
    if "draft" in helps and plan.job is not None:
        raise ConfigError(
            "a draft beside the target plays texts that are known beforehand",
            hint=f"leave {scheme.name} out, or --real",
        )
    cost = ForwardCost.of(profile)
    own = _InlineExecutor(backend, clock, cost.of_batch) if plan.own_pace else None
    step_s = cloud_step_s(profile) if "draft" in helps else 0.0
    verifier = SimVerifier(clock, backend, cost, own, helps=helps, draft_s=step_s)
    source, left, ended_s = plan.texts, plan.sessions, 0.0
    end_s = math.inf if plan.hours is None else plan.hours * 3600

    def done() -> None:
        nonlocal left, ended_s
        left, ended_s = left - 1, clock.now()

    def jobs(device: int, index: int) -> Job | None:
        if clock.now_s >= end_s or (plan.hours is None and index >= plan.streams):
            return None
        number = index * plan.sessions + device
        if plan.job is not None:
            return plan.job(number)
        text = source.text(number, plan.tokens)
        texts.targets.append(TextTarget(text, plan.seed + number))
        return Job(
            text.prompt, partial(TextDraft, text, plan.at_once, plan.lanes), text=text
        )

    devices: list[Device] = []
    for number in range(plan.sessions):
        shared = devices[:1] if plan.gateway else []
        device = kind(clock, plan, verifier, partial(jobs, number), done, number, *shared)
        before(clock, device)
        devices.append(device)
    for device in devices:
        device.start()
    with _links_unheard():
        # When no user asks any more, nothing happens; a real clock would wait for pings.
        clock.run((lambda: not left) if plan.real_time else None)
    streams = [result for device in devices for result in device.results]
    for result in streams:
        if result.error is not None:
            raise result.error
    if left:
        raise StuckError(f"{scheme.name} on {profile.name} came to a halt")
    begun_s = min((s.began_s for s in streams), default=0.0)
    return Outcome(
        plan,
        streams,
        ended_s - begun_s,
        verifier.forwards,
        verifier.busy_s,
    )


@contextlib.contextmanager
def _links_unheard() -> Iterator[None]:
    """Log nothing of links that there are not."""
    log = logging.getLogger("draftwire.link")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def price(outcome: Outcome, objective: str) -> float:
    """Return what an outcome costs a token; the least is the best.

    ``latency``: milliseconds. ``cost``: milliseconds, and a quarter of the target's own
    milliseconds. ``energy``: joules of the board.

    Raises:
        ConfigError: The objective is unknown, or nobody knows the board's watts.
    """
    if objective == "latency":
        return outcome.ms_per_token
    if objective == "cost":
        busy_ms = 1e3 * outcome.busy_s / max(1, outcome.tokens)
        return outcome.ms_per_token + FORWARD_PRICE * busy_ms
    if objective == "energy":
        joules = outcome.joules_per_token
        if joules is None:
            raise ConfigError(
                f"nobody knows the joules: {outcome.row['joules_why_null']}",
                hint="choose the objective latency or cost",
            )
        return joules
    raise ConfigError(f"no objective {objective!r}", hint=", ".join(OBJECTIVES))


def tuned(plan: Plan, objective: str = "latency") -> Outcome:
    """Run a plan with the best block length.

    Looks at every third one, and then at the neighbours of the best.
    """
    if not plan.scheme.tunable or plan.controller is not None:
        return simulate(plan)
    found: dict[int, Outcome] = {}

    def best(lengths: Iterable[int]) -> int:
        for k in lengths:
            if k in BLOCKS and k not in found:
                found[k] = simulate(replace(plan, block=k))
        return min(found, key=lambda k: price(found[k], objective))

    at = best(BLOCKS[1::3])
    while (nearer := best((at - 1, at + 1))) != at:
        at = nearer
    return found[at]
