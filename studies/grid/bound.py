"""The clairvoyant bound: how fast one stream of drafts could possibly be.

The game. A text of ``N`` tokens is to be committed. Position ``i`` is *right* when the
draft model, its context right, proposes what the target writes there.

- The device drafts one token after another, ``t_d`` each, always behind a context that
  it knows or has drafted itself: one linear stream, no second choices. A token can leave
  at once and is at the server ``d_up`` later.
- The server runs one forward at a time. A forward that starts with ``c`` tokens
  committed takes in the next ``m`` drafts, which must have arrived, and commits those
  that are right and one token of its own. It may take in at most ``M - 1`` drafts, and
  costs ``t_v(m + 1)``, which does not fall with ``m``.
- What a forward commits is known to the device ``d_down`` after its end.

The bound is the least time of the last commit when both sides know beforehand which
positions are right, and nothing is ever started that will not be of use. No scheme with
one linear stream of drafts beats it. At time 0 both sides know the prompt and are idle;
nothing counts for reading it.

Two wider games have a bound by the same programme. With *two choices* for a position the
drafts may go on behind either, and who knows the right one sends that alone: a position is
right if one of the two is. With a *draft beside the target* (``server_s`` a token) the
server may make any of the ``m`` drafts itself, at the cost of its own time before the
forward. Which those are, and that they need the drafts before them, is left out: so it
bounds from below, and need not be reached.

Why this is exact (for one stream of drafts):

1. *Wrong drafts are never made.* They commit nothing, cost time, and carry no knowledge
   to one who knows which they are.
2. *The eager device is best.* Let ``K_i`` be when the device knows position ``i`` from
   the server, ``D_i`` when its draft of ``i`` is done. A draft of ``i`` takes ``t_d`` and
   needs ``i - 1``, so ``D_i >= t_d + min(K_{i-1}, D_{i-1} if i-1 is right)``. The device
   that always works on the first position that it does not know reaches equality
   everywhere: what it leaves behind when news overtake it is committed already. And
   ``D`` only gets earlier when commits do.
3. So only the server chooses: how many drafts ``m`` each forward takes in. Given ``m``,
   the best start is the first moment when the server is free and the last of them has
   arrived: a later start makes every later time later.
4. *Every wrong position is a gate.* It can be committed by the server's own token only,
   so some forward ends exactly there, and the device's drafts begin anew after it: of two
   schedules, the one that passes the gate earlier is better, whatever came before.
5. Between two gates the state is ``(c, T, D)``: committed, the time, and when the drafts
   of the positions from ``c`` on are done. Smaller is better in all times, so a dynamic
   programme over ``c`` that keeps what nothing else beats is exact.

With ``B`` tokens at once (one forward of the draft, ``t_d``, says the next ``B``
positions) only 2 changes: the device may also begin anew behind news that came while a
forward went on, which costs it that forward and gains where the next ones lie. Both are
tried; ``D`` repeats itself after ``B`` positions, ``t_d`` later: those are compared.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence, Tuple

_Drafts = Tuple[int, float]  # position of the first of a stream, and when it was begun
_EPS = 1e-12


def clairvoyant_s(
    right: Sequence[bool],
    *,
    draft_s: float,
    forward_s: Callable[[int], float],
    up_s: float,
    down_s: float,
    most: int = 128,
    server_s: float = math.inf,
    at_once: int = 1,
) -> float:
    """Return the least seconds until the whole text is committed.

    Args:
        right: For each position whether the draft is right there, ``(N,)``.
        draft_s: Of a forward of the draft.
        forward_s: Of a forward over that many tokens: drafts and one more.
        up_s: From the device to the server.
        down_s: Back.
        most: Tokens that a forward can take.
        server_s: Of a draft that is made beside the target.
        at_once: Tokens of a forward of the draft.

    Returns:
        Seconds from the start, both sides idle and knowing the prompt, to the end of
        the last forward.

    Raises:
        ValueError: ``most`` is below 1.
    """
    if most < 1:
        raise ValueError(f"a forward of {most} tokens")
    cost = [forward_s(n) for n in range(1, most + 1)]

    def drafted_s(drafts: _Drafts, place: int) -> float:
        return drafts[1] + draft_s * -(-(place - drafts[0] + 1) // at_once)

    def end_s(c: int, m: int, free_s: float, drafts: _Drafts) -> float:
        """Return when the forward ends that takes in ``m`` drafts behind ``c``."""
        best = math.inf
        for ours in range(m + 1 if server_s < math.inf else 1):
            start_s = free_s + (ours * server_s if ours else 0.0)
            if m > ours:
                start_s = max(start_s, drafted_s(drafts, c + m - ours - 1) + up_s)
            best = min(best, start_s + cost[m])
        return best

    def to_gate(begin: int, gate: int, at_s: float, known_s: float) -> float:
        """Return when position ``gate`` is committed; ``begin`` is the first that is not.

        The positions ``begin .. gate - 1`` are right. ``gate`` is wrong, or the last of the
        text: no draft of it is ever needed, because the forward that ends there brings it.
        """
        # fronts[c]: when the server is free, and where and when the device's drafts began;
        # none beaten.
        fronts: dict[int, list[tuple[float, _Drafts]]] = {begin: [(at_s, (begin, known_s))]}
        best = math.inf
        for c in range(begin, gate + 1):
            for free_s, drafts in fronts.pop(c, ()):
                for m in range(min(most - 1, gate - c) + 1):
                    over_s, after = end_s(c, m, free_s, drafts), c + m + 1
                    if after > gate:
                        best = min(best, over_s)
                        continue

                    def when_s(one: _Drafts, after: int = after) -> list[float]:
                        return [drafted_s(one, after + i) for i in range(at_once)]

                    # They go on, or begin anew behind the news.
                    for one in (drafts, (after, over_s + down_s)):
                        _keep(fronts.setdefault(after, []), (over_s, one), when_s)
        return best

    n = len(right)
    begin, at_s = 0, 0.0
    known_s = 0.0  # the prompt is known to the device at the start, not after a trip
    while begin < n:
        gate = begin
        while gate < n - 1 and right[gate]:
            gate += 1
        at_s = to_gate(begin, gate, at_s, known_s)
        begin, known_s = gate + 1, at_s + down_s
    return at_s


def _keep(
    front: list[tuple[float, _Drafts]],
    new: tuple[float, _Drafts],
    when_s: Callable[[_Drafts], Sequence[float]],
) -> None:
    """Add ``new`` unless it is beaten; drop what it beats: later in all that counts."""
    mine = (new[0], *when_s(new[1]))
    others = [(old, (old[0], *when_s(old[1]))) for old in front]
    if any(all(a <= b + _EPS for a, b in zip(theirs, mine)) for _, theirs in others):
        return
    front[:] = [o for o, its in others if not all(a <= b for a, b in zip(mine, its))]
    front.append(new)
