"""The reference grid: five profiles, four round trips, three acceptances."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Callable, Iterable, Sequence

from draftwire.bench.sim.cloud import ForwardCost
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.schemes import DISTRIBUTED, Scheme
from draftwire.bench.sim.simulate import Plan, cloud_step_s, synthetic_of, tuned
from studies.grid.bound import clairvoyant_s

# A profile, and the milliseconds of a draft on its board where that is another one.
PROFILES = (
    *("nano-a100", "agx-a100-qwen", "agx-a100-llama"),
    *("agx-a100-llama@12", "agx-a100-llama@5.4"),
)
RTTS_MS = (10.0, 40.0, 80.0, 150.0)
RATES = (0.6, 0.8, 0.9)


def cell_of(profile: Profile, rtt_ms: float, rate: float) -> Profile:
    """Return the profile with another round trip and acceptance.

    Reading is free, and the link has no rate: only times count here, as in the reference.
    """
    return profile.replaced(
        "assumed",
        "a cell of the reference grid",
        link__rtt_ms=rtt_ms,
        text__acceptance=rate,
        cloud__read_ms_per_token=0.0,
        draft__read_ms_per_token=0.0,
        link__up_mbit_s=math.inf,
        link__down_mbit_s=math.inf,
    )


def _board(name: str) -> Profile:
    name, _, step_ms = name.partition("@")
    found = find(name)
    if not step_ms:
        return found
    return found.replaced("assumed", "the grid", draft__step_ms=float(step_ms))


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
        )
        tokens += len(right)
    return 1e3 * total / tokens


def grid(
    plan: Plan,
    schemes: Sequence[Scheme],
    *,
    profiles: Iterable[str] = PROFILES,
    rtts_ms: Iterable[float] = RTTS_MS,
    rates: Iterable[float] = RATES,
    objective: str = "latency",
    repeats: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run schemes, each with its best block length, in every cell.

    Args:
        plan: Streams, tokens and seed count; profile and scheme do not.
        schemes: What to compare.
        profiles: Names; ``NAME@MS`` with drafts that take so many milliseconds.
        rtts_ms: Round trips.
        rates: Acceptances, each position for itself.
        objective: What the block length is chosen by.
        repeats: Share of the texts that repeats what stands before it.
        say: Told of each cell that is done.

    Returns:
        One row a cell: milliseconds a token by scheme, and the bounds.
    """
    rows = []
    rates, rtts_ms = tuple(rates), tuple(rtts_ms)
    for name in profiles:
        base = _board(name)
        for rtt_ms in rtts_ms:
            for rate in rates:
                profile = cell_of(base, rtt_ms, rate)
                source = synthetic_of(profile, plan.seed, repeats=repeats)
                cell = replace(plan, profile=profile, link=None, source=source)
                row: dict[str, Any] = {
                    "profile": name,
                    "forward_ms": profile["cloud.forward_ms"],
                    "draft_ms": profile["draft.step_ms"],
                    "rtt_ms": rtt_ms,
                    "acceptance": rate,
                    "ms_per_token": {},
                    "block": {},
                    "bound_ms_per_token": bound_ms(cell),
                    "bound_two_choices": bound_ms(cell, choices=2),
                    "bound_draft_beside": bound_ms(cell, server=True),
                }
                for scheme in schemes:
                    outcome = tuned(replace(cell, scheme=scheme), objective=objective)
                    row["ms_per_token"][scheme.name] = outcome.ms_per_token
                    row["block"][scheme.name] = outcome.block
                rows.append(row)
                say(f"{name}, RTT {rtt_ms:g} ms, acceptance {rate:g}: done")
    return rows


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean; NaN of nothing."""
    if not values:
        return math.nan
    return math.exp(sum(math.log(v) for v in values) / len(values))


def judge(
    rows: Sequence[dict[str, Any]], ours: str = "ours-latency"
) -> dict[str, float | None]:
    """Return how the race does over a grid.

    Returns:
        Each as a geometric mean and as the least of all cells, None where the grid has
        no such scheme. ``bound_share``: bound over ``race``, which like the bound knows
        no exits; ``race_over_distributed``: the fastest of the other distributed schemes
        that know none either, over ``race``; ``over_plain`` and ``over_distributed``: the
        fastest of those, and of all other distributed schemes, over ours;
        ``over_cloud``: streaming over ours; ``ours_bound_share``: bound over ours.
    """
    found: dict[str, float | None] = {}

    def put(name: str, top: Sequence[str], bottom: str) -> None:
        ratios = []
        for row in rows:
            speeds = {**row["ms_per_token"], "bound": row["bound_ms_per_token"]}
            others = [speeds[n] for n in top if n in speeds]
            if others and bottom in speeds:
                ratios.append(min(others) / speeds[bottom])
        found[name] = geometric_mean(ratios) if ratios else None
        found[f"{name}_least"] = min(ratios) if ratios else None

    plain = [name for name in DISTRIBUTED if name != "earlyexit"]
    put("bound_share", ["bound"], "race")
    put("race_over_distributed", plain, "race")
    put("race_over_cloud", ["cloud"], "race")
    put("ours_bound_share", ["bound"], ours)
    put("over_plain", plain, ours)
    put("over_distributed", DISTRIBUTED, ours)
    put("over_cloud", ["cloud"], ours)
    return found
