"""The reference grid: five boards, four round trips, three acceptances."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Callable, Iterable, NamedTuple, Sequence

from draftwire.bench.sim.cloud import ForwardCost
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.run import cloud_step_s
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.simulate import Plan, synthetic_of, tuned
from studies.grid.bound import clairvoyant_s

PROFILES = (
    *("nano-a100", "agx-a100-qwen", "agx-a100-llama"),
    *("agx-a100-llama@12", "agx-a100-llama@5.4"),
)
RTTS_MS = (10.0, 40.0, 80.0, 150.0)
RATES = (0.6, 0.8, 0.95)
# Of wrong drafts, those whose second choice is right: of the reference draft's, 0.928 of
# the target's choices are among its first two and 0.796 are its first.
SECOND_RIGHT = 0.65
LANES = 4
# Schemes with a draft beside the target: who has one there compares with these.
BESIDE = ("colocated", "ssd", "hybrid")


class Cell(NamedTuple):
    """One of the grid."""

    board: str  # name of a profile, perhaps with another board
    rtt_ms: float  # round trip
    rate: float  # acceptance, each position for itself


def cell_of(
    profile: Profile, rtt_ms: float, rate: float, at_once: int = 1, rows: int = 128
) -> Profile:
    """Return the profile with another round trip, acceptance, and tokens of a forward: of
    the draft ``at_once``, of the target at most ``rows``.

    Reading is free, and the link has no rate: only times count here, as in the reference.
    """
    return profile.replaced(
        "assumed",
        "a cell of the reference grid",
        link__rtt_ms=rtt_ms,
        text__acceptance=rate,
        draft__at_once=at_once,
        draft__lanes=LANES,
        cloud__most_tokens=rows,
        cloud__read_ms_per_token=0.0,
        draft__read_ms_per_token=0.0,
        link__up_mbit_s=math.inf,
        link__down_mbit_s=math.inf,
    )


def bound_ms(plan: Plan, *, choices: int = 1, server: bool = False) -> float:
    """Return the clairvoyant bound on the texts of a plan, milliseconds a token.

    Args:
        plan: Profile, link, texts.
        choices: For each position that drafts may go on behind: 1 or 2.
        server: A draft beside the target drafts too, in the profile's time.
    """
    profile = plan.profile
    cost = ForwardCost.of(profile)
    source = synthetic_of(profile, plan.seed) if plan.source is None else plan.source
    way_s = profile.seconds("link.rtt_ms") / 2
    up_s, down_s = way_s, way_s
    if plan.link is not None:
        up_s, down_s = plan.link.delay_up_s, plan.link.delay_down_s
    total = tokens = 0.0
    for index in range(plan.streams):
        text = source.text(index, plan.tokens)
        right = text.right
        if choices == 2:
            right = [a or b == c for a, b, c in zip(right, text.second, text.tokens)]
        total += clairvoyant_s(
            right,
            draft_s=profile.seconds("draft.step_ms"),
            forward_s=cost,
            up_s=up_s,
            down_s=down_s,
            server_s=cloud_step_s(profile) if server else math.inf,
            at_once=int(profile["draft.at_once"]),
            most=cost.most,
        )
        tokens += len(right)
    return 1e3 * total / tokens


def grid(
    plan: Plan,
    schemes: Sequence[Scheme],
    *,
    boards: Iterable[str] = PROFILES,
    rtts_ms: Iterable[float] = RTTS_MS,
    rates: Iterable[float] = RATES,
    at_once: int = 1,
    rows: int = 128,
    objective: str = "latency",
    repeats: float = 0.0,
    jobs: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run schemes, each with its best block length, in every cell.

    Args:
        plan: Streams, tokens and seed count; profile and scheme do not.
        schemes: What to compare.
        boards: Of the cells, see :class:`Cell`.
        rtts_ms: Likewise.
        rates: Likewise.
        at_once: Tokens that a forward of the draft says.
        rows: Tokens that one of the target takes, at most.
        objective: What the block length is chosen by.
        repeats: Share of the texts that repeats what stands before it.
        jobs: Processes.
        say: Told of each cell that is done.

    Returns:
        One row a cell: milliseconds a token by scheme, and the bounds.
    """
    run = partial(_run, plan, schemes, (at_once, rows), objective, repeats)
    cells = [Cell(*words) for words in product(boards, rtts_ms, rates)]
    found = []
    with contextlib.ExitStack() as stack:
        each: Iterable[dict[str, Any]] = map(run, cells)
        if jobs > 1:
            each = stack.enter_context(multiprocessing.Pool(jobs)).imap(run, cells)
        for row in each:
            found.append(row)
            where = f"RTT {row['rtt_ms']:g} ms, acceptance {row['acceptance']:g}"
            say(f"{row['profile']}, {where}: done")
    return found


_beside: dict[tuple[str, str, float], tuple[float, int | None]] = {}


def _run(
    plan: Plan,
    schemes: Sequence[Scheme],
    forwards: tuple[int, int],
    objective: str,
    repeats: float,
    at: Cell,
) -> dict[str, Any]:
    """Return the row of a cell."""
    profile = cell_of(find(at.board), at.rtt_ms, at.rate, *forwards)
    dice = {"repeats": repeats, "second_right": SECOND_RIGHT}
    source = synthetic_of(profile, plan.seed, **dice)
    cell = replace(plan, profile=profile, link=None, source=source)
    found = {}
    for scheme in schemes:
        # Where only text crosses the link, neither that nor the board plays a part.
        key = scheme.name, at.board.partition("@")[0], at.rate
        if scheme.place == "device" or key not in _beside:
            one = tuned(replace(cell, scheme=scheme), objective=objective)
            _beside[key] = one.ms_per_token, one.block
        found[scheme.name] = _beside[key]
    return {
        "profile": at.board,
        "forward_ms": profile["cloud.forward_ms"],
        "draft_ms": profile["draft.step_ms"],
        "rtt_ms": at.rtt_ms,
        "acceptance": at.rate,
        "ms_per_token": {name: ms for name, (ms, _) in found.items()},
        "block": {name: block for name, (_, block) in found.items()},
        "bound_ms_per_token": bound_ms(cell),
        "bound_two_choices": bound_ms(cell, choices=2),
        "bound_draft_beside": bound_ms(cell, server=True),
    }


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean; NaN of nothing."""
    if not values:
        return math.nan
    return math.exp(sum(math.log(v) for v in values) / len(values))


def judge(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how ours do over a grid.

    Returns:
        For each other scheme, and each bound, its time over that of ``ours`` (``hybrid``
        where both have a draft beside the target): the geometric mean, the least, in how
        many cells it is quicker than ours by more than half a percent, and by what cell.
    """
    found = []
    for name in (*rows[0]["ms_per_token"], *_BOUNDS):
        ours = "hybrid" if name in BESIDE or name == "bound_draft_beside" else "ours"
        if name == ours or ours not in rows[0]["ms_per_token"]:
            continue
        speeds = [{**row["ms_per_token"], **{b: row[b] for b in _BOUNDS}} for row in rows]
        ratios = [speed[name] / speed[ours] for speed in speeds]
        worst = min(range(len(rows)), key=ratios.__getitem__)
        found.append(
            {
                "what": name,
                "ours": ours,
                "mean": geometric_mean(ratios),
                "least": ratios[worst],
                "least_at": [rows[worst][key] for key in _WHERE],
                "quicker": sum(ratio < 0.995 for ratio in ratios),
                "cells": len(rows),
            }
        )
    return found


_BOUNDS = ("bound_ms_per_token", "bound_two_choices", "bound_draft_beside")
_WHERE = ("forward_ms", "draft_ms", "rtt_ms", "acceptance")
