"""Our simulator beside published results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from draftwire.bench.sim.facts import Claim
from draftwire.bench.sim.schemes import scheme_named
from draftwire.bench.sim.simulate import Outcome, Plan, simulate


def beside_published(plan: Plan) -> list[dict[str, Any]]:
    """Run every scheme that the profile has a published speed of.

    Args:
        plan: Its profile counts; its scheme does not.

    Returns:
        A row each: ours, theirs, and by how much ours is off.
    """
    rows = []
    for known in plan.profile.published:
        outcome = simulate(replace(plan, scheme=scheme_named(known.scheme)))
        ours = 1e3 / outcome.ms_per_token
        rows.append(
            {
                "scheme": known.scheme,
                "tokens_per_s": ours,
                "published_tokens_per_s": known.tokens_s,
                "off_percent": 100 * (ours / known.tokens_s - 1),
                "accepted_per_block": outcome.row["accepted_per_block"],
                "source": known.source,
            }
        )
    return rows


def check_claims(plan: Plan) -> list[dict[str, Any]]:
    """Hold published ratios of latencies against the simulator.

    What the publication leaves open is the acceptance: so beside the ratio at the
    profile's own, the acceptance is given at which the ratio would be met, or None where
    no acceptance meets it with these timings.
    """
    acceptance = plan.profile["text.acceptance"]
    return [
        {
            "claim": claim.what,
            "scheme": claim.scheme,
            "against": claim.against,
            "published_ratio": claim.ratio,
            "ratio": _ratio(plan, claim, acceptance),
            "acceptance": acceptance,
            "acceptance_that_meets_it": _meeting(plan, claim),
            "source": claim.source,
        }
        for claim in plan.profile.claims
    ]


def _ratio(plan: Plan, claim: Claim, acceptance: float) -> float:
    profile = plan.profile.replaced("assumed", "asked for", text__acceptance=acceptance)

    def run(name: str) -> Outcome:
        scheme = scheme_named(name)
        return simulate(replace(plan, profile=profile, source=None, scheme=scheme))

    ours = run(claim.scheme).ms_per_token
    if claim.against != "request":
        return ours / run(claim.against).ms_per_token
    # One request for every token: a forward and a round trip each.
    return ours / (profile["cloud.forward_ms"] + profile["link.rtt_ms"])


def _meeting(plan: Plan, claim: Claim) -> float | None:
    """Return the acceptance that gives the published ratio, to two places."""
    low, high = 0.02, 0.98
    at_low, at_high = _ratio(plan, claim, low), _ratio(plan, claim, high)
    if not min(at_low, at_high) <= claim.ratio <= max(at_low, at_high):
        return None
    while high - low > 0.01:
        middle = (low + high) / 2
        if (_ratio(plan, claim, middle) > claim.ratio) == (at_high < at_low):
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 2)
