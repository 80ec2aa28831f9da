"""``python -m studies.controllers``: what the length policies are worth, as tables.

Five questions: the speed on real channel traces, how soon a step of the round trip or of
the text is followed, how soon a link that moves is found out, what the energy objective
saves, and whether budgets of power hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.link.text import parse_link
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.schemes import SCHEMES
from draftwire.bench.sim.show import table
from draftwire.bench.sim.simulate import Plan
from draftwire.bench.sim.texts import Synthetic, parse_luck
from draftwire.clock import VirtualClock
from draftwire.errors import ConfigError
from draftwire.runtime.pacing.controller import make_controller
from draftwire.runtime.pacing.governor import WINDOW_S
from draftwire.runtime.pacing.length_rule import best_ratio
from studies.controllers.moves import MOVES, follow
from studies.controllers.policies import (
    MODES,
    POLICIES,
    Board,
    Run,
    Watcher,
    run_policy,
    trace_link,
)
from studies.grid.grid import bound_ms


@dataclass(frozen=True)
class Settings:
    """What to run."""

    traces: Sequence[Path] = ()  # files of ``t_s,mbit_s``; none leaves that table out
    profile: str = "agx-a100-qwen"  # timing profile
    rtt_ms: float = 80.0  # round trip on the traces
    acceptance: str = "0.8"  # as ``bench simulate`` has it
    # of :data:`~studies.controllers.policies.MODES`
    modes: Sequence[str] = ("race", "pipeline", "ahead", "wait")
    tokens: int = 300  # of a stream
    streams: int = 2  # one after another, with one controller
    seeds: int = 1  # texts and links to average over


def _source(luck: str, seed: int, confidence: str = "calibrated") -> Synthetic:
    return Synthetic(parse_luck(luck), seed=seed, confidence=confidence)


def _speed(settings: Settings, policy: str, mode: str, trace: Path) -> float:
    seconds = tokens = 0.0
    for seed in range(1, settings.seeds + 1):
        run = run_policy(
            policy,
            find(settings.profile),
            MODES[mode],
            trace_link(trace, settings.rtt_ms),
            _source(settings.acceptance, seed),
            streams=settings.streams,
            tokens=settings.tokens,
            seed=seed,
        )
        seconds += run.seconds
        tokens += run.tokens
    return tokens / seconds


def _traces(settings: Settings, say: Callable[[str], None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for trace in settings.traces:
        here: list[dict[str, Any]] = []
        for mode in settings.modes:
            speeds = {
                policy: _speed(settings, policy, mode, trace)
                for policy in ("oracle", *POLICIES, "off")
            }
            here.append(
                {
                    "mode": mode,
                    "trace": trace.stem,
                    "tokens_s": speeds,
                    "of_oracle": speeds["auto"] / max(speeds["oracle"], speeds["off"]),
                    "to_next": speeds["auto"] / max(speeds[p] for p in POLICIES[1:]),
                }
            )
            say(f"{mode} {trace.stem}: {here[-1]['of_oracle']:.3f} of the oracle")
        # The best that any of these modes could do, all known beforehand.
        best = max(row["tokens_s"][p] for row in here for p in ("oracle", "off"))
        for row in here:
            row["of_best"] = row["tokens_s"]["auto"] / best
        rows += here
    return sorted(rows, key=lambda row: settings.modes.index(row["mode"]))


def _bound(settings: Settings) -> float:
    """Return the tokens a second of the exact bound, on a link without a rate."""
    way_s = settings.rtt_ms / 2e3
    plan = Plan(
        find(settings.profile),
        SCHEMES["race"],
        link=LinkSpec("no rate", way_s, way_s),
        streams=settings.streams,
        tokens=settings.tokens,
    )
    seeds = range(1, settings.seeds + 1)
    sources = [_source(settings.acceptance, seed) for seed in seeds]
    each_ms = [bound_ms(replace(plan, source=source)) for source in sources]
    return 1e3 * len(each_ms) / sum(each_ms)


def _worth(
    lengths: Sequence[int], rate: float, fixed: float, marginal: float
) -> float | None:
    """Return the text a second that block lengths are worth, over the most possible."""
    if not lengths:
        return None
    curve = [rate**k for k in range(1, 65)]
    text = sum(1 + sum(curve[:k]) for k in lengths)
    spent = sum(fixed + k * marginal for k in lengths)
    return text / spent / best_ratio(curve, fixed, marginal)[1]


def _one_step(what: str, first: float, then: float, seed: int) -> float | None:
    """Return what the lengths are worth after one step, or None when it came too late."""
    profile = find("agx-a100-llama")  # where drafting pays before and after
    noted = Watcher(blind=True)
    marks: list[int] = []
    if what == "rtt_ms":
        rtts, rates = (first, then), (0.8, 0.8)
    else:
        rtts, rates = (40.0, 40.0), (first, then)
    luck = f"{rates[0]}" if what == "rtt_ms" else f"steps:{rates[0]},{rates[1]}@300"

    def change(clock: VirtualClock, device: Board) -> None:
        def step() -> None:
            marks.append(len(noted.lengths))
            device.change_round_trip(then / 1e3)

        if what == "rtt_ms":
            clock.call_at(25.0, step)

    run = run_policy(
        noted,
        profile,
        MODES["wait"],
        parse_link(f"{rtts[0]:g}ms"),
        _source(luck, seed, "none"),
        streams=1,
        tokens=600,
        seed=seed,
        change=change,
    )
    if what == "acceptance":
        texts = accumulate(tokens for _, tokens in run.outcome.streams[0].seen)
        marks.append(next(n for n, text in enumerate(texts, 1) if text >= 300))
    fixed = profile.seconds("cloud.forward_ms") + rtts[1] / 1e3
    draft_s = profile.seconds("draft.step_ms")
    lengths = [n for _, n in noted.lengths[marks[0] + 15 : marks[0] + 40]]
    return _worth(lengths, rates[1], fixed, draft_s)


def _steps(settings: Settings) -> list[dict[str, Any]]:
    """A step of the round trip, and one of the acceptance; lengths alone count."""
    rows = []
    for what, first, then in (("rtt_ms", 20.0, 150.0), ("acceptance", 0.85, 0.45)):
        seeds = range(1, max(8, settings.seeds) + 1)
        found = [_one_step(what, first, then, seed) for seed in seeds]
        shares = [share for share in found if share is not None]
        rows.append(
            {
                "step": what,
                "from": first,
                "to": then,
                "runs": len(shares),
                "of_optimum": sum(shares) / len(shares),
                "worst": min(shares),
            }
        )
    return rows


def _energy(settings: Settings) -> list[dict[str, Any]]:
    rows = []
    for name in ("agx-a100-qwen", "agx-a100-llama"):
        profile = find(name)
        for mode in ("race", "ahead"):
            runs = {
                policy: run_policy(
                    policy,
                    profile,
                    MODES[mode],
                    parse_link(f"{profile['link.rtt_ms']:g}ms/20mbit"),
                    _source("0.8", 3),
                    streams=3,
                    tokens=400,
                )
                for policy in ("auto", "auto:energy")
            }
            fast, thrifty = runs["auto"], runs["auto:energy"]
            spent = [fast.joules_per_token or 0.0, thrifty.joules_per_token or 0.0]
            rows.append(
                {
                    "profile": name,
                    "mode": mode,
                    "ms_per_token": 1e3 / fast.tokens_s,
                    "thrifty_ms_per_token": 1e3 / thrifty.tokens_s,
                    "joules_per_token": spent[0],
                    "thrifty_joules_per_token": spent[1],
                    "saved": 1 - spent[1] / spent[0],
                    "slower": fast.tokens_s / thrifty.tokens_s - 1,
                }
            )
    return rows


def worst_watts(run: Run, window_s: float = WINDOW_S) -> float:
    """Return the highest mean power over any window of a run, watts."""
    import numpy as np

    times = np.array([t for t, _ in run.spend])
    watts = np.array([w for _, w in run.spend])
    joules = np.concatenate([[0.0], np.cumsum(np.diff(times) * watts[:-1])])
    starts = np.concatenate([times, times - window_s]).clip(times[0])
    starts = starts[starts + window_s <= times[-1]]
    if not len(starts):
        return float(joules[-1] / max(times[-1] - times[0], 1e-9))
    ends = np.interp(starts + window_s, times, joules)
    return float((ends - np.interp(starts, times, joules)).max() / window_s)


def _budgets(settings: Settings) -> list[dict[str, Any]]:
    profile: Profile = find("agx-a100-qwen")
    rows = []
    for mode in ("race", "ahead"):
        for watts in (None, 30.0, 20.0, 14.0):
            controller = make_controller("auto", max_watts=watts)
            run = run_policy(
                controller,
                profile,
                MODES[mode],
                parse_link("80ms/20mbit"),
                _source("0.8", 3),
                streams=3,
                tokens=400,
            )
            rows.append(
                {
                    "mode": mode,
                    "max_watts": watts,
                    "worst_window_watts": worst_watts(run),
                    "ms_per_token": 1e3 / run.tokens_s,
                }
            )
    return rows


def bench_controllers(
    settings: Settings, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run everything; return one document.

    Raises:
        ConfigError: A mode is unknown.
    """
    for mode in settings.modes:
        if mode not in MODES:
            raise ConfigError(f"no mode {mode!r}", hint="one of " + ", ".join(MODES))
    document: dict[str, Any] = {
        "schema": "draftwire.controllers/1",
        "profile": settings.profile,
        "rtt_ms": settings.rtt_ms,
        "acceptance": settings.acceptance,
        "bound_tokens_s": _bound(settings),
        "traces": _traces(settings, say),
    }
    document["steps"] = _steps(settings)
    say("steps done")
    document["moves"] = [
        follow(move, mode, settings.profile)
        for move in MOVES
        for mode in settings.modes
        if mode != "ahead"  # one block out, as in "wait"
    ]
    say("moves done")
    document["energy"] = _energy(settings)
    say("energy done")
    document["budgets"] = _budgets(settings)
    return document


def render(document: dict[str, Any]) -> str:
    """Return the document as plain tables."""
    parts = []
    if document["traces"]:
        policies = ("oracle", *POLICIES, "off")
        rows = [
            {**r, "tokens/s": f"{r['mode']} {r['trace']}", **r["tokens_s"]}
            for r in document["traces"]
        ]
        ratios = {
            "auto/oracle": "of_oracle",
            "auto/best": "of_best",
            "auto/next": "to_next",
        }
        heads = {"tokens/s": "tokens/s", **dict(zip(policies, policies)), **ratios}
        parts.append(table(heads, rows))
        parts.append(
            f"the exact bound without a limit of rate: {document['bound_tokens_s']:.2f} "
            "tokens/s"
        )
        for mode in dict.fromkeys(row["mode"] for row in document["traces"]):
            shares = [r["of_oracle"] for r in document["traces"] if r["mode"] == mode]
            parts.append(
                f"{mode}: {sum(shares) / len(shares):.3f} of its oracle on average"
            )
    return "\n\n".join([*parts, *(table(_HEADS[k], document[k]) for k in _HEADS)])


# What stands in the tables: heads, and keys of the rows.
_HEADS = {
    "steps": {
        "step": "step",
        "from": "from",
        "to": "to",
        "runs": "runs",
        "of the optimum, rounds 16-40": "of_optimum",
        "worst run": "worst",
    },
    "moves": {
        "the link": "move",
        "stream": "mode",
        "found after, s": "seconds",
        "verdicts": "rounds",
        "right then": "right",
        "block before": "length_before",
        "after": "length_after",
    },
    "energy": {
        "auto, auto:energy": "profile",
        "stream": "mode",
        "ms/token": "ms_per_token",
        "thrifty": "thrifty_ms_per_token",
        "J/token": "joules_per_token",
        "thrifty ": "thrifty_joules_per_token",
        "saved": "saved",
        "slower": "slower",
    },
    "budgets": {
        "budget": "mode",
        "W": "max_watts",
        "worst 10 s, W": "worst_window_watts",
        "ms/token": "ms_per_token",
    },
}
