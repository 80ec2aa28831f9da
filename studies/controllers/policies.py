"""Length policies side by side: in virtual time, over real channel traces.

Every policy runs in the same mode of the stream, over the same link, on the same texts
with the same luck; so the rules alone differ. The oracle knows which drafts will be
accepted; streaming is the verifier alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import numpy as np

from draftwire.bench.link.text import parse_link
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.run import Device
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.simulate import Outcome, Plan, simulate
from draftwire.bench.sim.texts import Source
from draftwire.clock import VirtualClock
from draftwire.energy.account.account import Account
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.auto import Auto
from draftwire.runtime.pacing.controller import Controller, Round, make_controller
from draftwire.runtime.pacing.governor import WINDOW_S
from draftwire.sampling import Proposal

MODES = {
    "wait": Mode.of(preempt="off"),
    "ahead": Mode.of(),
    "pipeline": Mode.of(pipeline=8),
    "race": Mode.of("latency"),
}
POLICIES = ("auto", "fixed:4", "flexspec", "qsv", "pipesd", "ucb")


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
    def tokens_s(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else math.nan

    @property
    def worst_watts(self) -> float:
        """The highest mean power over any window that a budget looks at, watts."""
        times, watts = np.array(self.spend).T
        joules = np.concatenate([[0.0], np.cumsum(np.diff(times) * watts[:-1])])
        starts = np.concatenate([times, times - WINDOW_S]).clip(times[0])
        starts = starts[starts + WINDOW_S <= times[-1]]
        if not len(starts):
            return float(joules[-1] / max(times[-1] - times[0], 1e-9))
        ends = np.interp(starts + WINDOW_S, times, joules)
        return float((ends - np.interp(starts, times, joules)).max() / WINDOW_S)

    @property
    def joules_per_token(self) -> float | None:
        """Joules of the board for each token."""
        per_token = self.outcome.joules_per_token
        after_first = self.outcome.tokens / max(1, self.tokens)
        return None if per_token is None else per_token * after_first


class Board(Device):
    """A device that notes what it draws: ``spend`` is ``(t_s, watts)`` at each change."""

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
        if watts := self._board.watts:
            phase = "draft" if drafting else "verify-wait"
            self._board.spend.append((self._board.clock.now(), watts[phase]))


class Oracle(Controller):
    """Knows every acceptance and every state of the channel to come."""

    name = "oracle"
    board: Board

    def __init__(self, mode: Mode) -> None:
        self._most = 1 if mode.racing else 200

    def limit(self) -> int:
        job, running = self.board.job, self.board.running
        assert job is not None and job.text is not None
        at = 0
        if running is not None:  # else it is being opened
            at = len(running.machine.committed) + len(running.machine._lines.main)
        right = [*job.text.right[at : at + self._most], False]
        return right.index(False)


class Watcher(Auto):
    """Ours, and what it was told after each commit, and how long its blocks were.

    Args:
        blind: Nothing tells it good drafts from bad ones, and it never draws back: the
            length alone is judged.

    Attributes:
        seen: ``(t_s, round trip, seconds a byte, samples)`` at each commit.
        lengths: ``(t_s, tokens)`` of each block.
    """

    board: Board

    def __init__(self, *, blind: bool = False) -> None:
        super().__init__("latency")
        self._blind = blind
        self.seen: list[tuple[float, float | None, float, int]] = []
        self.lengths: list[tuple[float, int]] = []
        if blind:
            self._trial.draw_back = lambda why: None  # type: ignore[method-assign]

    def measured(self, round: Round) -> None:
        super().measured(round)
        path = self.board.driver.link.channel.path
        self.seen.append((round.t_s, path.rtt_s, path.byte_s, path.samples))

    def sent(self, drafted: int) -> None:
        super().sent(drafted)
        if drafted:
            self.lengths.append((self.board.clock.now(), drafted))

    def enough(self, block: Sequence[Proposal]) -> bool:
        return super().enough([Proposal(p.token) for p in block] if self._blind else block)


def run_policy(
    policy: str | Controller,
    profile: str,
    mode: str,
    link: str,
    source: Source,
    *,
    streams: int = 2,
    tokens: int = 300,
    seed: int = 1,
    evidence_bits: int = 0,
    change: tuple[float, Callable[[Board], None]] | None = None,
) -> Run:
    """Run one policy; it keeps what it has learned from stream to stream.

    Args:
        policy: Spec of a controller, a controller, or ``"oracle"``.
        profile: What things take.
        mode: Of the streams, one of :data:`MODES`.
        link: Between device and verifier, its text form.
        source: Of the texts.
        streams: One after another.
        tokens: Of each stream.
        seed: Of the link.
        evidence_bits: That a drafted token carries beside its id.
        change: What happens to the board, and when.
    """
    if not isinstance(policy, str):
        controller = policy
    elif policy == "oracle":
        controller = Oracle(MODES[mode])
    else:
        controller = make_controller(policy)
    facts = find(profile)
    if watts := facts.watts():
        controller.power(watts)
    boards: list[Board] = []

    def before(clock: VirtualClock, device: Device) -> None:
        assert isinstance(device, Board)
        if isinstance(controller, (Oracle, Watcher)):
            controller.board = device
        boards.append(device)
        if change is not None:
            clock.call_at(change[0], change[1], device)

    scheme = Scheme("policy", "", MODES[mode], up_bits_per_token=evidence_bits)
    plan = Plan(
        facts, scheme, link=parse_link(link), source=source, controller=controller,
        streams=streams, tokens=tokens, seed=seed,
    )  # fmt: skip
    return Run(simulate(plan, Board, before), boards[0].spend)
