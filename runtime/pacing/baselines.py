"""Length policies of published systems.

They have the same interface and the same measurements as ours, so that a comparison
compares the rules alone.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Sequence

from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.controller import Controller, Round
from draftwire.sampling import Proposal

__all__ = ["FlexSpec", "PipeSd", "Qsv", "Ucb"]


class FlexSpec(Controller):
    """Maximises ``(1 + g*K) / (T_f + K*T_m)`` (``flexspec``) within budgets of power.

    A ratio of two linear functions has its optimum at an end: ``K_min`` or ``K_max``, or
    what the budgets leave of that range; 0, the target alone, where they leave nothing.
    The channel is in ``T_f`` (round trip, frame) and ``T_m`` (bytes of a token).

    Args:
        ends: ``K_min`` and ``K_max``.
        max_watts: Mean watts of a round, or None.
        max_joules_per_token: Joules of a round over the tokens expected of it, or None.

    Source:
        https://arxiv.org/abs/2601.00644, as methods, section 1, has it. The paper gives
        no constants: ``g`` forgets with 0.9, and costs and watts are measured as for
        ``auto``. Budgets hold for the expected round, not for every window as ``auto``'s.
    """

    name, waits = "flexspec", True

    def __init__(
        self,
        ends: tuple[int, int] = (1, 8),
        max_watts: float | None = None,
        max_joules_per_token: float | None = None,
    ) -> None:
        self._lengths = range(ends[0], ends[1] + 1)
        self._watts = math.inf if max_watts is None else max_watts
        self._each = math.inf if max_joules_per_token is None else max_joules_per_token
        self._acceptance = 0.7

    def limit(self) -> int:
        costs = self.costs

        def seconds(k: int) -> float:
            return costs.wait_s + k * costs.token_s

        def text(k: int) -> float:
            return 1.0 + self._acceptance * k

        def fits(k: int) -> bool:
            drafting_s = k * costs.draft_s
            joules = costs.wait_w * (seconds(k) - drafting_s) + costs.draft_w * drafting_s
            return joules <= min(self._watts * seconds(k), self._each * text(k))

        fit = [k for k in self._lengths if not costs.powered or fits(k)]
        return max(fit, key=lambda k: text(k) / seconds(k), default=0)

    def judged(self, drafted: int, accepted: int) -> None:
        if drafted:
            self._acceptance += 0.1 * (accepted / drafted - self._acceptance)

    def explain(self) -> str:
        return f"limit {self.limit()}, acceptance {self._acceptance:.2f}"


class Qsv(Controller):
    """A table over length and resolution, by recent certainty and uplink (``qsv``).

    The throughput of a choice is ``E[N] / (compute + uplink)`` with
    ``E[N] = sum_k k a^(k-1) (1-a) + (K+1) a^K``; round trip and downlink are not in it.
    The state is the mean probability of the last accepted tokens (in tenths); the table
    holds the acceptance seen in each state, at each resolution.

    Source:
        https://arxiv.org/abs/2507.00605, section 3 of methods: 64 recent probabilities,
        K in 1..12, two resolutions. The paper learns the choice with a double DQN;
        here the table is filled from measurement and the published model is maximised.
    """

    name, waits = "qsv", True
    lengths = range(1, 13)
    resolutions = (16, 100)
    # Of 16 ids of a vocabulary of 32,000: what qs publishes, at resolution.
    bits = (225.0, 258.0)  # of a token, until some were sent

    def __init__(self) -> None:
        self._bits = list(self.bits)
        self._recent: deque[float] = deque(maxlen=64)
        self._block: list[float | None] = []
        self._sent: deque[list[float | None]] = deque()
        self._table = [[0.75] * 11 for _ in self.resolutions]
        self._chosen = self._used = 1  # for blocks to come, and of those that are out

    @property
    def _state(self) -> int:
        if not self._recent:
            return 7
        return int(10 * sum(self._recent) / len(self._recent))

    def _throughput(self, length: int, choice: int) -> float:
        a = min(self._table[choice][self._state], 0.99)
        tokens = sum(k * a ** (k - 1) * (1 - a) for k in range(1, length + 1))
        tokens += (length + 1) * a**length
        costs = self.costs
        uplink = length * self._bits[choice] / 8 * costs.byte_s
        return tokens / (length * costs.draft_s + costs.forward_s + uplink)

    def limit(self) -> int:
        best = [
            max((self._throughput(k, choice), k) for k in self.lengths)
            for choice in range(len(self.resolutions))
        ]
        self._chosen = best.index(max(best))
        self._block = []
        return best[self._used][1]

    def resolution(self) -> int:
        self._used = self._chosen  # it is asked between two blocks
        return self.resolutions[self._used]

    def enough(self, block: Sequence[Proposal]) -> bool:
        self._block = [p.confidence for p in block]
        return False

    def sent(self, drafted: int) -> None:
        self._sent.append((self._block + [None] * drafted)[:drafted])
        self._block = []

    def judged(self, drafted: int, accepted: int) -> None:
        known = self._sent.popleft() if self._sent else []
        row, state = self._table[self._used], self._state
        for i in range(min(drafted, accepted + 1)):
            row[state] += 0.05 * ((i < accepted) - row[state])
        self._recent.extend(c for c in known[:accepted] if c is not None)

    def measured(self, round: Round) -> None:
        super().measured(round)
        if round.drafted:
            nbytes = max(0.0, round.up_bytes - self.costs.frame_bytes)
            known = self._bits[self._used]
            self._bits[self._used] += 0.1 * (8 * nbytes / round.drafted - known)
        while len(self._sent) > round.in_flight:
            self._sent.popleft()

    def explain(self) -> str:
        resolution = self.resolutions[self._used]
        return f"limit {self.limit()}, state {self._state}, resolution {resolution}"


class PipeSd(Controller):
    """Two thresholds (``pipesd``): a block leaves when the product of the draft's
    probabilities falls under the first, or one of them under the second.

    Args:
        all_of: The first threshold.
        one_of: The second.

    Source:
        https://arxiv.org/abs/2605.13319, as methods, section 7, has it. Its thresholds
        are tuned for each pair of models; ours are a choice.
    """

    name, waits = "pipesd", True

    def __init__(self, all_of: float = 0.5, one_of: float = 0.3) -> None:
        self._all_of, self._one_of = all_of, one_of
        self._reach = 1.0

    def limit(self) -> int:
        return 16

    def enough(self, block: Sequence[Proposal]) -> bool:
        known = [1.0 if p.confidence is None else p.confidence for p in block]
        self._reach = math.prod(known)
        return self._reach < self._all_of or (bool(known) and known[-1] < self._one_of)

    def explain(self) -> str:
        return f"all accepted {self._reach:.2f}"


class Ucb(Controller):
    """Upper confidence bounds over the length of a block (``ucb``).

    Each length is an arm, the tokens a second of its rounds are its reward. What is old
    counts less, so that a link that moves is found out.

    Source:
        The idea of https://arxiv.org/abs/2606.20591 (UCB-SpecStop), from its abstract;
        discounted UCB is that of Garivier and Moulines (2011).
    """

    name, waits = "ucb", True
    lengths = range(1, 13)
    _KEPT = 0.995

    def __init__(self) -> None:
        self._count = [0.0] * len(self.lengths)
        self._tokens = [0.0] * len(self.lengths)
        self._seconds = [0.0] * len(self.lengths)
        self._last_s: float | None = None

    def begin(self, mode: Mode) -> None:
        self._last_s = None

    def limit(self) -> int:
        total = sum(self._count)
        rates = [n / s if s else 0.0 for n, s in zip(self._tokens, self._seconds)]
        scale = max(rates)

        def bound(i: int) -> float:
            if self._count[i] < 0.5:
                return math.inf
            spread = 0.2 * math.sqrt(math.log(total + 1.0) / self._count[i])
            return rates[i] + scale * spread

        return self.lengths[max(range(len(self.lengths)), key=bound)]

    def measured(self, round: Round) -> None:
        super().measured(round)
        last_s, self._last_s = self._last_s, round.t_s
        if last_s is None or not 1 <= round.drafted <= len(self.lengths):
            return
        for known in (self._count, self._tokens, self._seconds):
            known[:] = [x * self._KEPT for x in known]
        arm = round.drafted - 1
        self._count[arm] += 1.0
        self._tokens[arm] += round.tokens
        self._seconds[arm] += round.t_s - last_s
