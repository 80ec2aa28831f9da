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
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.run import Device, TextJob
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.simulate import Outcome, Plan, simulate
from draftwire.bench.sim.texts import Source
from draftwire.clock import VirtualClock
from draftwire.energy.account.account import Account
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import Controller, make_controller

GUESS = frozenset({"guess"})
MODES = {
    "wait": Mode(preempt=frozenset()),
    "ahead": Mode(preempt=GUESS),
    "pipeline": Mode(pipeline=8, preempt=GUESS),
    "race": Mode(objective="latency", preempt=GUESS),
}
POLICIES = ("auto", "fixed:4", "flexspec", "qsv", "pipesd", "ucb")


class Sight:
    """What the simulator tells the oracle: how long the draft will be right."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.device: Device | None = None
        self._right: list[bool] = []
        self._job: object = None

    def run(self) -> int:
        """Return how many drafts from here on would be accepted in a row."""
        device = self.device
        assert device is not None and isinstance(device.job, TextJob)
        if device.job is not self._job:
            self._job, self._right = device.job, device.job.text.right
        at = 0
        if device.running is not None:  # else it is being opened
            machine = device.running.machine
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
    """What one policy did."""

    outcome: Outcome  # of the simulation
    spend: Sequence[tuple[float, float]]  # ``(t_s, watts)`` at each change, for windows

    @property
    def seconds(self) -> float:
        """From the first token of each stream to its last."""
        return sum(s.last_s - (s.first_s or 0.0) for s in self.outcome.streams)

    @property
    def tokens(self) -> int:
        """Tokens meanwhile."""
        return sum(len(s.ids) - s.first_tokens for s in self.outcome.streams)

    @property
    def commits(self) -> Sequence[tuple[float, int]]:
        """``(t_s, tokens)`` each time that some were seen."""
        return [seen for stream in self.outcome.streams for seen in stream.seen]

    @property
    def tokens_s(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else math.nan

    @property
    def joules_per_token(self) -> float | None:
        """Joules of the board for each token."""
        per_token = self.outcome.joules_per_token
        after_first = self.outcome.tokens / max(1, self.tokens)
        return None if per_token is None else per_token * after_first


class Board(Device):
    """A device that notes what it draws.

    Attributes:
        spend: ``(t_s, watts)`` at each change.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.spend: list[tuple[float, float]] = []

    def started(self, account: Account) -> StreamAccount:
        """Return the account of a new stream, which notes the watts."""
        return _Noting(account, self)

    def change_round_trip(self, rtt_s: float) -> None:
        """Give the link another delay from now on."""
        for model in self.ways.models:
            model.delay_s = rtt_s / 2


class _Noting(StreamAccount):
    def __init__(self, account: Account, board: Board) -> None:
        super().__init__(account)
        self._board = board

    def settle(self, *, drafting: bool, waiting: bool) -> None:
        super().settle(drafting=drafting, waiting=waiting)
        watts = self._board.watts
        if watts:
            phase = "draft" if drafting else "verify-wait"
            self._board.spend.append((self._board.clock.now(), watts[phase]))


class Oracle(Controller):
    """Knows every acceptance and every state of the channel to come."""

    name = "oracle"

    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    def limit(self) -> int:
        return self._sight.length()

    def explain(self) -> str:
        return f"{self._sight.run()} drafts will be accepted"


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
    change: Callable[[VirtualClock, Board], None] = lambda clock, board: None,
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
    sight = Sight(mode)
    controller = policy if not isinstance(policy, str) else (
        Oracle(sight) if policy == "oracle" else make_controller(policy)
    )  # fmt: skip
    if profile.watts():
        controller.power(profile.watts())
    boards: list[Board] = []

    def before(clock: VirtualClock, device: Device) -> None:
        assert isinstance(device, Board)
        sight.device = device
        boards.append(device)
        change(clock, device)

    outcome = simulate(
        Plan(
            profile,
            Scheme("policy", "", mode, up_bits_per_token=evidence_bits),
            link=link,
            source=source,
            controller=controller,
            streams=streams,
            tokens=tokens,
            seed=seed,
        ),
        Board,
        before,
    )
    return Run(outcome, boards[0].spend)


def trace_link(path: Path, rtt_ms: float) -> LinkSpec:
    """Return the link of a trace, up and down."""
    return parse_link(f"{rtt_ms:g}ms,trace:{path}")
