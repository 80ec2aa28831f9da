"""What one live stream gathers, and the report that comes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from draftwire.runtime.actions import (
    Counts,
)
from draftwire.runtime.mode import Mode
from draftwire.runtime.report import RunRecord, build_report
from draftwire.runtime.screen import Screen
from draftwire.sampling import SamplingParams
from draftwire.transport.messages import Welcome
from draftwire.transport.traffic import Traffic

__all__ = ["StreamFacts", "report_of"]


@dataclass
class StreamFacts:
    """What a stream gathers outside its state machine.

    Attributes:
        began: ``time.perf_counter()`` at the start.
        prompt_tokens: Length of the prompt.
        params: Sampling.
        controller: Name of the length policy.
        before: Traffic of the connection before the stream.
        mode: What was done while verdicts were out.
        finish: Why it ended.
        first_token_s: Seconds until the first final token.
        ids: Token ids of the answer.
        text: Its text.
    """

    began: float
    prompt_tokens: int
    params: SamplingParams
    controller: str
    before: Traffic
    mode: Mode
    finish: str = "cancelled"
    first_token_s: float | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""

    def take(self, screen: Screen) -> None:
        """Note what the user sees now."""
        self.ids, self.text = screen.ids, screen.text


def report_of(
    facts: StreamFacts,
    counts: Counts,
    welcome: Welcome,
    *,
    draft: Mapping[str, Any],
    traffic: Traffic,
    draft_s: float,
    prefill_s: float,
    reconnects: int,
    wire: str,
    energy: Mapping[str, Any],
    channel: Mapping[str, Any],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return the run report of a stream that has ended.

    Args:
        facts: Of the stream.
        counts: Of its state machine.
        welcome: Of its connection.
        draft: Id, name, engine and precision of the draft.
        traffic: What crossed the network during the stream.
        draft_s: Seconds of drafting.
        prefill_s: Seconds in which the draft read the prompt.
        reconnects: Of the session so far.
        wire: How ``up_wire`` and ``down_wire`` were had: computed or captured.
        energy: The account's result.
        channel: What was learned of the link.
        warnings: Sentences for the user.
    """
    total = time.perf_counter() - facts.began
    params = facts.params
    return build_report(
        RunRecord(
            draft=draft,
            target={
                "name": welcome.target,
                "version": welcome.target_version,
                "family": welcome.family,
            },
            sampling={
                "scheme": params.scheme,
                "temperature": params.temperature,
                "top_k": params.top_k,
                "top_p": params.top_p,
                "seed": params.seed,
            },
            mode={
                "objective": facts.mode.objective,
                "pipeline": facts.mode.pipeline,
                "preempt": facts.mode.preempt_text,
                "cut": facts.mode.cut,
                "batch": facts.mode.batch,
                "controller": facts.controller,
            },
            prompt_tokens=facts.prompt_tokens,
            token_ids=facts.ids,
            text=facts.text,
            finish=facts.finish,
            rounds=counts.rounds,
            drafted=counts.drafted,
            accepted=counts.accepted,
            accepted_by_position=list(counts.accepted_by_position),
            judged_by_position=list(counts.judged_by_position),
            # Every verdict is one forward of the target.
            target_forwards=counts.rounds,
            bytes={
                "up_payload": traffic.up_payload,
                "down_payload": traffic.down_payload,
                "up_wire": traffic.up_wire,
                "down_wire": traffic.down_wire,
            },
            seconds={
                "total": total,
                "prefill": prefill_s,
                "first_token": facts.first_token_s,
                "draft": draft_s,
                "wait": max(0.0, total - draft_s - prefill_s),
                "verify": counts.compute_s,
            },
            energy=energy,
            link={
                "compatibility": welcome.compatibility,
                "reconnects": reconnects,
                "wire_bytes": wire,
                **channel,
            },
            warnings=list(warnings),
            preemption=_preemption(counts, draft_s, energy),
        )
    )


def _preemption(
    counts: Counts, draft_s: float, energy: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what drafting ahead of the verdicts brought, and what it cost.

    Seconds and joules of single drafts are their share of all drafting: ``saved_s`` is
    drafting that was done when the verdict came, ``wasted_s`` went into drafts that
    nobody judged.
    """
    proposed = counts.proposed
    each_s = draft_s / proposed if proposed else 0.0
    joules = (energy.get("by_phase") or {}).get("draft") if proposed else None
    return {
        "proposed": proposed,
        "wasted": counts.wasted,
        "overtaken": counts.overtaken,
        "drafted_ahead": counts.preempted,
        "drafted_ahead_used": counts.preempted_used,
        "provisional": counts.provisional,
        "provisional_right": counts.provisional_right,
        "outcomes": counts.outcomes,
        "outcomes_used": counts.outcomes_used,
        "saved_s": counts.preempted_used * each_s,
        "wasted_s": counts.wasted * each_s,
        "wasted_joules": None if joules is None else joules * counts.wasted / proposed,
    }
