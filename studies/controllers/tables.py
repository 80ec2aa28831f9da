"""``python -m studies.controllers``: what the length policies are worth, as tables.

Five questions: the speed on real channel traces, how soon a step of the round trip or of
the text is followed, how soon a link that moves is found out, what the energy objective
saves, and whether budgets of power hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import SCHEMES
from draftwire.bench.sim.show import table
from draftwire.bench.sim.simulate import Plan
from draftwire.bench.sim.texts import Synthetic, parse_luck
from draftwire.errors import ConfigError
from draftwire.runtime.pacing.controller import Controller, make_controller
from draftwire.runtime.pacing.length_rule import best_ratio
from studies.command import Say
from studies.controllers.moves import MOVES, follow
from studies.controllers.policies import MODES, POLICIES, Board, Run, Watcher, run_policy
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
    link = f"{settings.rtt_ms:g}ms,trace:{trace}"
    runs = [
        run_policy(
            policy, settings.profile, mode, link, _source(settings.acceptance, seed),
            streams=settings.streams, tokens=settings.tokens, seed=seed,
        )
        for seed in range(1, settings.seeds + 1)
    ]  # fmt: skip
    return sum(run.tokens for run in runs) / sum(run.seconds for run in runs)


def _traces(settings: Settings, say: Say) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for trace in settings.traces:
        here: list[dict[str, Any]] = []
        for mode in settings.modes:
            policies = ("oracle", *POLICIES, "off")
            speeds = {policy: _speed(settings, policy, mode, trace) for policy in policies}
            row: dict[str, Any] = {"mode": mode, "trace": trace.stem, "tokens_s": speeds}
            row["of_oracle"] = speeds["auto"] / max(speeds["oracle"], speeds["off"])
            row["to_next"] = speeds["auto"] / max(speeds[p] for p in POLICIES[1:])
            here.append(row)
            say(f"{mode} {trace.stem}: {row['of_oracle']:.3f} of the oracle")
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


def one_step(what: str, first: float, then: float, seed: int) -> float | None:
    """Return what the lengths are worth after one step, or None when it came too late."""
    name = "agx-a100-llama"  # where drafting pays before and after
    noted = Watcher(blind=True)
    marks: list[int] = []

    def step(board: Board) -> None:
        marks.append(len(noted.lengths))
        board.change_round_trip(then / 1e3)

    if what == "rtt_ms":
        rtt_ms, luck, change = first, "0.8", (25.0, step)
        later_ms, rate = then, 0.8
    else:
        rtt_ms, luck, change = 40.0, f"steps:{first},{then}@300", None
        later_ms, rate = rtt_ms, then
    run = run_policy(
        noted, name, "wait", f"{rtt_ms:g}ms", _source(luck, seed, "none"),
        streams=1, tokens=600, seed=seed, change=change,
    )  # fmt: skip
    if what == "acceptance":
        texts = accumulate(tokens for _, tokens in run.outcome.streams[0].seen)
        marks.append(next(n for n, text in enumerate(texts, 1) if text >= 300))
    profile = find(name)
    fixed = profile.seconds("cloud.forward_ms") + later_ms / 1e3
    lengths = [n for _, n in noted.lengths[marks[0] + 15 : marks[0] + 40]]
    return _worth(lengths, rate, fixed, profile.seconds("draft.step_ms"))


def _steps(settings: Settings) -> list[dict[str, Any]]:
    """A step of the round trip, and one of the acceptance; lengths alone count."""
    rows = []
    for what, first, then in (("rtt_ms", 20.0, 150.0), ("acceptance", 0.85, 0.45)):
        seeds = range(1, max(8, settings.seeds) + 1)
        found = [one_step(what, first, then, seed) for seed in seeds]
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


def _three(policy: str | Controller, profile: str, mode: str, link: str) -> Run:
    return run_policy(policy, profile, mode, link, _source("0.8", 3), streams=3, tokens=400)


def _energy() -> list[dict[str, Any]]:
    rows = []
    for name in ("agx-a100-qwen", "agx-a100-llama"):
        link = f"{find(name)['link.rtt_ms']:g}ms/20mbit"
        for mode in ("race", "ahead"):
            fast, thrifty = (_three(p, name, mode, link) for p in ("auto", "auto:energy"))
            spent = [run.joules_per_token or 0.0 for run in (fast, thrifty)]
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


def _budgets() -> list[dict[str, Any]]:
    rows = []
    for mode in ("race", "ahead"):
        for watts in (None, 30.0, 20.0, 14.0):
            controller = make_controller("auto", max_watts=watts)
            run = _three(controller, "agx-a100-qwen", mode, "80ms/20mbit")
            row = {"mode": mode, "max_watts": watts, "worst_window_watts": run.worst_watts}
            rows.append({**row, "ms_per_token": 1e3 / run.tokens_s})
    return rows


def bench_controllers(settings: Settings, say: Say = lambda line: None) -> dict[str, Any]:
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
    document["energy"] = _energy()
    say("energy done")
    document["budgets"] = _budgets()
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
