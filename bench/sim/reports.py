"""What a simulation says: run reports like those of live runs, and rows of tables."""

from __future__ import annotations

import math
from typing import Any

from draftwire.bench.sim.run import StreamResult
from draftwire.bench.sim.simulate import Outcome


def _known(value: float) -> float | None:
    return None if math.isnan(value) or math.isinf(value) else value


def _preempt(outcome: Outcome) -> str:
    """Return what was drafted ahead on; exits only where the target has some."""
    words = outcome.plan.scheme.mode.preempt_text.split(",")
    if not outcome.plan.profile.exits or outcome.plan.job is not None:
        words = [word for word in words if word != "exits"]
    return ",".join(words) or "off"


def facts_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Return every number that the run rests on, with its source."""
    facts = outcome.plan.profile.facts.values()
    return [
        {"name": f.name, "value": _known(f.value), "how": f.how, "source": f.source}
        for f in facts
        if f.how != "default"
    ]


def row_of(outcome: Outcome) -> dict[str, Any]:
    """Return what people compare, for one outcome; units are in the names."""
    counts = [s.counts for s in outcome.streams]
    drafted, accepted = sum(c.drafted for c in counts), sum(c.accepted for c in counts)
    return {
        "scheme": outcome.plan.scheme.name,
        "place": outcome.plan.scheme.place,
        "preempt": _preempt(outcome),
        "controller": outcome.controller,
        "block": outcome.block,
        "tokens": outcome.tokens,
        "ms_per_token": outcome.ms_per_token,
        "tokens_per_s": 1e3 / outcome.ms_per_token,
        "first_token_ms": outcome.first_token_ms,
        "accepted_per_block": _known(outcome.accepted_per_block),
        "acceptance": accepted / drafted if drafted else None,
        "forwards_per_token": outcome.forwards_per_token,
        "target_busy_share": outcome.busy_s / outcome.seconds,
        "up_bytes_per_token": outcome.bytes_per_token("up_wire"),
        "down_bytes_per_token": outcome.bytes_per_token("down_wire"),
        "joules_per_token": outcome.joules_per_token,
        "wasted_per_token": sum(c.wasted for c in counts) / max(1, outcome.tokens),
        "sessions": outcome.plan.sessions,
        "simulated_s": outcome.seconds,
    }


def run_report(outcome: Outcome, stream: StreamResult) -> dict[str, Any]:
    """Return the report of one simulated stream, of the schema of live ones.

    It says ``"simulated": true``, and names the profile and the link.
    """
    plan = outcome.plan
    report = stream.report(
        {"name": f"simulated: {plan.profile.name}"},
        ["simulated: no model, board or network was measured"],
    )
    report["sampling"]["seed"] = plan.seed
    report["mode"]["scheme"] = plan.scheme.name
    report["link"].update(spec=outcome.link.to_dict(), wire_bytes="simulated")
    return {**report, "simulated": True}
