"""How soon the channel estimator follows a link that moves, and whether lengths do.

Beside links that stay as they are: steps of the uplink's rate by a thousand times and of
the round trip, both ways, bursts of lost packets, and hand-overs that take the link away
for a while and give it back as another. The link model is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from draftwire.bench.link.text import parse_link
from draftwire.bench.link.traces import Trace
from draftwire.bench.sim.texts import Synthetic, parse_luck
from studies.controllers.policies import Board, Watcher, run_policy

_AT_S = 8.0
_CHEAP_S = 1e-3  # a rate at which a hundred bytes take less is not worth telling
_TOKENS = 700


@dataclass(frozen=True)
class Move:
    """A link, and what becomes of it after eight seconds."""

    name: str  # one line
    link: str  # before, with a rate
    rtt_s: float | None = None  # round trip afterwards; None leaves it
    up_bit_s: float | None = None  # the uplink's rate afterwards; None leaves it
    outage_s: float = 0.0  # the link is gone for so long first
    bits: int = 0  # evidence that a drafted token carries


MOVES = (
    Move("stays: 40 ms, 20 mbit/s", "40ms/20mbit"),
    Move("stays: 40 ms, 20 kbit/s up", "40ms/up=20kbit/down=20mbit"),
    Move("bursts of loss, 40 ms", "40ms/20mbit/burst=1%:25%:100%"),
    Move("uplink 20 mbit/s to 20 kbit/s", "40ms/20mbit", up_bit_s=2e4),
    Move("uplink 20 kbit/s to 20 mbit/s", "40ms/up=20kbit/down=20mbit", up_bit_s=2e7),
    Move("uplink 20 mbit/s to 10 kbit/s", "40ms/20mbit", up_bit_s=1e4),
    Move("... quantised laws, 4 mbit/s to 50 kbit/s", "40ms/4mbit", None, 5e4, 0.0, 277),
    Move("round trip 20 to 150 ms", "20ms/20mbit", 0.15),
    Move("round trip 150 to 20 ms", "150ms/20mbit", 0.02),
    Move("hand-over: gone for 0.8 s, 40 to 90 ms", "40ms/20mbit", 0.09, None, 0.8),
    Move("hand-over to 90 ms, 64 kbit/s", "40ms/20mbit", 0.09, 6.4e4, 0.8),
)


def follow(
    move: Move, mode: str, profile: str = "agx-a100-qwen", seed: int = 2
) -> dict[str, Any]:
    """Return how soon the estimates are right for good after ``move``.

    Right: the round trip within a tenth, and the rate within a fifth, or so fast by both
    the truth and the estimate that a hundred bytes take less than a millisecond.

    Args:
        move: What happens.
        mode: Of the stream, one of :data:`~studies.controllers.policies.MODES`.
        profile: Timings.
        seed: Of the text.

    Returns:
        ``seconds`` and ``rounds`` from the first answer over the moved link until both
        are right at four verdicts in a row, None where they never are; ``right``, the
        share of later verdicts at which they are; the mean lengths of blocks before and
        after.
    """
    watcher = Watcher()
    spec = move.link + (f"/outage={_AT_S}s+{move.outage_s}s" if move.outage_s else "")
    link = parse_link(spec)
    moved_s = _AT_S + move.outage_s

    def change(device: Board) -> None:
        if move.rtt_s is not None:
            device.change_round_trip(move.rtt_s)
        if move.up_bit_s is not None:
            up = device.ways.models[0]
            up._trace, up._steady = Trace.constant(move.up_bit_s), move.up_bit_s

    run_policy(
        watcher, profile, mode, spec, Synthetic(parse_luck("0.85"), seed=seed),
        streams=1, tokens=_TOKENS, evidence_bits=move.bits, change=(moved_s, change),
    )  # fmt: skip
    rtt_s = move.rtt_s or link.delay_s("up") + link.delay_s("down")
    byte_s = 8.0 / (move.up_bit_s or link.bit_s("up") or 1e12)

    def cheap(found_s: float) -> bool:
        return max(found_s, byte_s) * 100 < _CHEAP_S

    before = max((n for t, _, _, n in watcher.seen if t <= moved_s), default=0)
    after = [
        (t, _near(found, rtt_s, 0.1) and (cheap(byte) or _near(byte, byte_s, 0.2)))
        for t, found, byte, samples in watcher.seen
        if t > moved_s and samples > before
    ]
    began_s = moved_s if not move.outage_s else after[0][0]
    rights = [right for _, right in after]
    first = next((i for i in range(len(after) - 3) if all(rights[i : i + 4])), None)
    blocks: list[list[int]] = [[], []]  # before the move was felt, and after
    for t, n in watcher.lengths:
        blocks[t > moved_s + 2].append(n)
    means = [sum(part) / len(part) if part else None for part in blocks]
    return {
        "move": move.name,
        "mode": mode,
        "seconds": None if first is None else after[first][0] - began_s,
        "rounds": None if first is None else first + 1,
        "right": 0.0 if first is None else sum(rights[first:]) / len(rights[first:]),
        "length_before": means[0],
        "length_after": means[1],
    }


def _near(found: float | None, truth: float, share: float) -> bool:
    return found is not None and abs(found - truth) <= share * truth
