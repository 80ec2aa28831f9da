"""What a simulation says: run reports like those of live runs, and rows of tables."""

from __future__ import annotations

import math
from typing import Any

from draftwire.bench.sim.run import StreamResult
from draftwire.bench.sim.simulate import Outcome
from draftwire.runtime.report import RunRecord, build_report

__all__ = ["facts_of", "row_of", "run_report"]


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
    counts = [s.edge.counts for s in outcome.streams]
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
        "up_bytes_per_token": outcome.bytes_per_token(0),
        "down_bytes_per_token": outcome.bytes_per_token(1),
        "joules_per_token": outcome.joules_per_token,
        "wasted_per_token": sum(c.wasted for c in counts) / max(1, outcome.tokens),
        "sessions": outcome.plan.sessions,
        "simulated_s": outcome.seconds,
    }


def run_report(outcome: Outcome, stream: StreamResult) -> dict[str, Any]:
    """Return the report of one simulated stream, of the schema of live ones.

    It says ``"simulated": true``, and names the profile and the link.
    """
    plan, counts, mode = outcome.plan, stream.edge.counts, outcome.plan.scheme.mode
    total = stream.last_s - stream.began_s
    first = None if stream.first_s is None else stream.first_s - stream.began_s
    up, down = stream.payload
    report = build_report(
        RunRecord(
            draft={"name": f"simulated: {plan.profile.name}"},
            target={"name": f"simulated: {plan.profile.name}"},
            sampling={"scheme": "greedy", "temperature": 0.0, "seed": plan.seed},
            mode={
                "scheme": plan.scheme.name,
                "objective": mode.objective,
                "pipeline": mode.pipeline,
                "preempt": mode.preempt_text,
                "cut": mode.cut,
                "batch": mode.batch,
                "controller": outcome.controller,
            },
            token_ids=stream.ids,
            finish=stream.finish,
            rounds=counts.rounds,
            drafted=counts.drafted,
            accepted=counts.accepted,
            accepted_by_position=list(counts.accepted_by_position),
            judged_by_position=list(counts.judged_by_position),
            target_forwards=stream.forwards,
            bytes={
                "up_payload": up,
                "down_payload": down,
                "up_wire": stream.wire[0],
                "down_wire": stream.wire[1],
            },
            seconds={
                "total": total,
                "prefill": stream.prefill_s,
                "first_token": first,
                "draft": stream.draft_s,
                "wait": max(0.0, total - stream.draft_s - stream.prefill_s),
                "verify": counts.compute_s,
            },
            energy=stream.energy,
            link={"spec": outcome.link.to_dict(), "wire_bytes": "simulated"},
            warnings=["simulated: no model, board or network was measured"],
        )
    )
    return {**report, "simulated": True}
