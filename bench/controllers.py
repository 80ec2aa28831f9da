"""Length policies side by side: in virtual time, over real channel traces.

Every policy runs in the same mode of the stream, over the same link, on the same texts
with the same luck; so the rules alone differ. The oracle knows which drafts will be
accepted; streaming is the verifier alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.link.text import parse_link
from draftwire.bench.sim.cloud import ForwardCost, SimVerifier
from draftwire.bench.sim.events import Loop
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.run import Device, Job, Setting, StreamResult
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.simulate import StuckError, TextJob
from draftwire.bench.sim.texts import Source
from draftwire.runtime.actions import Action, Emit
from draftwire.runtime.controller import Controller, make_controller
from draftwire.runtime.controller_baselines import Oracle
from draftwire.runtime.mode import Mode

__all__ = ["MODES", "POLICIES", "Board", "Run", "run_policy", "trace_link"]

GUESS = frozenset({"guess"})
MODES = {
    "wait": Mode(preempt=frozenset()),
    "ahead": Mode(preempt=GUESS),
    "pipeline": Mode(pipeline=8, preempt=GUESS),
    "race": Mode(objective="latency", preempt=GUESS),
}
POLICIES = ("auto", "fixed:4", "flexspec", "qsv")


class Sight:
    """What the simulator tells the oracle: how long the draft will be right."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.device: Device | None = None
        self._right: list[bool] = []
        self._machine: object = None

    def run(self) -> int:
        """Return how many drafts from here on would be accepted in a row."""
        device = self.device
        assert device is not None and device._machine is not None
        machine = device._machine
        if machine is not self._machine:
            assert isinstance(device._job, TextJob)
            self._machine, self._right = machine, device._job.text.right
        at = len(machine.committed) + len(machine._lines.main)
        length = 0
        while at + length < len(self._right) and self._right[at + length]:
            length += 1
        return length

    def length(self) -> int:
        """Return the length of the next block."""
        run = self.run()
        return min(run, 1) if self._mode.racing else min(run, 200)


@dataclass(frozen=True)
class Run:
    """What one policy did.

    Attributes:
        policy: Its name.
        streams: Results.
        seconds: From the first token of each stream to its last.
        tokens: Meanwhile.
        forwards: Of the target.
        joules: Of the board, or None without watts.
        spend: ``(t_s, watts)`` at each change, for windows.
        commits: ``(t_s, tokens)``.
    """

    policy: str
    streams: Sequence[StreamResult]
    seconds: float
    tokens: int
    forwards: int
    joules: float | None
    spend: Sequence[tuple[float, float]]
    commits: Sequence[tuple[float, int]]

    @property
    def tokens_s(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else math.nan

    @property
    def joules_per_token(self) -> float | None:
        """Joules of the board for each token."""
        return None if self.joules is None else self.joules / max(1, self.tokens)


class Board(Device):
    """A device that notes what it draws and what it shows.

    Attributes:
        spend: ``(t_s, watts)`` at each change.
        commits: ``(t_s, tokens)`` of each commit.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.spend: list[tuple[float, float]] = []
        self.commits: list[tuple[float, int]] = []

    def _apply(self, actions: Sequence[Action]) -> None:
        super()._apply(actions)
        if self._watts:
            machine = self._machine
            drafting = machine is not None and machine.drafting
            watts = self._watts["draft" if drafting else "verify-wait"]
            self.spend.append((self._loop.now_s, watts))

    def _show(self, emit: Emit) -> None:
        super()._show(emit)
        self.commits.append((self._loop.now_s, len(emit.tokens) - emit.shown))

    def _next_stream(self) -> None:
        super()._next_stream()
        if self._machine is not None and self._watts:
            self._controller.power(self._watts)

    def change_round_trip(self, rtt_s: float) -> None:
        """Give the link another delay from now on."""
        for way in (self._up, self._down):
            way.model.delay_s = rtt_s / 2


def run_policy(
    policy: str | Controller,
    profile: Profile,
    mode: Mode,
    link: LinkSpec,
    source: Source,
    *,
    streams: int = 2,
    tokens: int = 300,
    seed: int = 1,
    evidence_bits: int = 0,
    change: Callable[[Loop, Board], None] | None = None,
) -> Run:
    """Run one policy; it keeps what it has learned from stream to stream.

    Args:
        policy: Spec of a controller, a controller, or ``"oracle"``.
        profile: What things take.
        mode: Of the streams.
        link: Between device and verifier.
        source: Of the texts.
        streams: One after another.
        tokens: Of each stream.
        seed: Of the link.
        evidence_bits: That a drafted token carries beside its id.
        change: Called before the start; may plan changes.
    """
    loop = Loop()
    verifier = SimVerifier(loop, ForwardCost.of(profile))
    sight = Sight(mode)
    if policy == "oracle":
        controller: Controller = Oracle(sight)
    elif isinstance(policy, str):
        controller = make_controller(policy)
    else:
        controller = policy
    scheme = Scheme(
        "policy",
        controller.name,
        controller.name,
        mode,
        up_bits_per_token=evidence_bits,
    )
    done: list[bool] = []

    def job(index: int) -> Job | None:
        if index >= streams:
            return None
        return TextJob(source.text(index, tokens), seed + index)

    setting = Setting(
        profile,
        scheme,
        link,
        lambda: controller,
        tokens=tokens,
        vocab_size=int(profile["text.vocabulary"]),
        seed=seed,
    )
    device = Board(loop, setting, verifier, job, lambda: done.append(True))
    sight.device = device
    if change is not None:
        change(loop, device)
    device.start()
    if not loop.run(lambda: bool(done)):
        raise StuckError(f"{controller.name} came to a halt")
    results = device.results
    joules = [r.energy.get("joules") for r in results]
    known = [float(j) for j in joules if j is not None]
    return Run(
        policy if isinstance(policy, str) else policy.name,
        results,
        sum(r.last_s - (r.first_s or 0.0) for r in results),
        sum(len(r.ids) - r.first_tokens for r in results),
        sum(r.forwards for r in results),
        sum(known) if len(known) == len(joules) else None,
        device.spend,
        device.commits,
    )


def trace_link(path: Path, rtt_ms: float) -> LinkSpec:
    """Return the link of a trace, up and down."""
    return parse_link(f"{rtt_ms:g}ms,trace:{path}")
