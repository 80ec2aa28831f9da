"""What the grid's command does: from a question to a document."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, Sequence

from draftwire.bench.sim.command import SCHEMA, Question, aimed, answer, plan_of
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import schemes_named
from draftwire.errors import ConfigError
from studies.command import Say
from studies.grid.grid import PROFILES, RATES, SECOND_RIGHT, bound_ms, grid, judge
from studies.grid.published import beside_published, check_claims

_GRID = "cloud,await,earlyexit,picospec,acespec,pipesd,race,auto,ours,colocated,ssd,hybrid"


def reference_grid(
    question: Question,
    say: Say,
    *,
    at_once: int = 1,
    rows: int = 128,
    jobs: int = 1,
    boards: str | None = None,
) -> dict[str, Any]:
    """Run the reference grid.

    Args:
        question: Its schemes, objective, streams, tokens and seed count.
        say: Told of each cell that is done.
        at_once: Tokens that a forward of the draft says.
        rows: Tokens that one of the target takes, at most.
        jobs: Processes.
        boards: Names joined by commas in place of the five.

    Returns:
        A document for ``--json``.

    Raises:
        ConfigError: A scheme, the objective or an acceptance is none.
    """
    schemes = schemes_named(question.schemes or _GRID)
    rates: Sequence[float] = RATES
    if question.acceptance is not None:
        rates = _rates(question.acceptance)
        question = replace(question, acceptance=None)
    found = grid(
        plan_of(question, find(question.profile)),
        [aimed(scheme, question.objective) for scheme in schemes],
        objective=question.objective or "latency",
        repeats=question.repeats,
        at_once=at_once,
        rows=rows,
        jobs=jobs,
        rates=rates,
        say=say,
        boards=PROFILES if boards is None else boards.split(","),
    )
    return {
        "schema": SCHEMA,
        "command": "studies.grid",
        "simulated": True,
        "seed": question.seed,
        "title": "the reference grid, simulated; texts of dice, each position for itself; "
        f"{at_once} tokens a forward of the draft, at most {rows} of the target",
        "at_once": at_once,
        "most_tokens": rows,
        "grid": found,
        "judged": judge(found),
    }


def _rates(text: str) -> tuple[float, ...]:
    with contextlib.suppress(ValueError):
        rates = tuple(map(float, text.split(",")))
        if all(0 <= rate <= 1 for rate in rates):
            return rates
    raise ConfigError(
        f"{text!r} are no acceptances of a grid", hint="give numbers of 0 to 1, with commas"
    )


def one_profile(question: Question, say: Say) -> dict[str, Any]:
    """Run the schemes of a profile as ``draftwire bench simulate`` does, beside the bound
    and beside what was published.

    Published numbers need the profile's own link, texts and schemes.

    Raises:
        ConfigError: Something in the question is unknown or does not fit.
    """
    question = replace(question, second_right=SECOND_RIGHT)
    plan = plan_of(question, find(question.profile))
    document = {**answer(question, say), "command": "studies.grid"}
    document["bound_ms_per_token"] = bound_ms(plan)
    changed = (question.schemes, question.link, question.acceptance)
    if all(value is None for value in changed):
        document["published"] = beside_published(plan)
        document["claims"] = check_claims(plan)
    return document
