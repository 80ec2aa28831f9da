"""Run reports read back: the derived numbers, as a table.

Every ratio is defined once, here, from the counters of the report; None where a counter
was not measured.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.io import align
from draftwire.runtime.report import check_report

__all__ = [
    "Summary",
    "load_reports",
    "positions_table",
    "preemption_table",
    "summarise",
    "table",
]


@dataclass(frozen=True)
class Summary:
    """The numbers that people compare."""

    label: str  # which run
    tokens: int | None  # emitted tokens
    rounds: int | None  # verdicts
    acceptance: float | None  # share of the drafted tokens that were accepted
    # drafted tokens accepted in a block (no correction or bonus)
    accepted_per_block: float | None
    forwards_per_token: float | None  # forwards of the target for each emitted token
    bytes_per_drafted: float | None  # payload bytes up for each drafted token
    tokens_per_s: float | None  # emitted tokens over the whole run's seconds
    joules_per_token: float | None  # joules for each emitted token
    # ``[i]``: share of the blocks with a draft ``i`` whose draft ``i`` was accepted; None
    # when the report does not say how many there were
    by_position: tuple[float | None, ...] | None


def load_reports(
    paths: Iterable[str | os.PathLike[str]],
) -> list[tuple[str, dict[str, Any]]]:
    """Read run reports; a file holds one, or a list of several.

    Returns:
        Label (file name, and ``#2`` and so on inside a list) and report, in order.

    Raises:
        ConfigError: A file cannot be read or is no run report.
    """
    found = []
    for name in paths:
        path = Path(name)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
        except ValueError as exc:  # also: not UTF-8
            raise ConfigError(
                f"{path} is not JSON: {exc}", hint="was the run interrupted?"
            ) from exc
        if isinstance(document, list):
            if not document:
                raise ConfigError(f"{path} holds an empty list, no run report")
            for number, item in enumerate(document, 1):
                label = f"{path.name}#{number}"
                found.append((label, check_report(item, label)))
        else:
            found.append((path.name, check_report(document, str(path))))
    return found


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def summarise(label: str, report: Mapping[str, Any]) -> Summary:
    """Return the derived numbers of a checked report."""
    tokens, drafted = report["tokens"], report["drafted"]
    judged = report.get("judged_by_position")
    by_position = None
    if judged is not None:
        accepted = report["accepted_by_position"]
        by_position = tuple(
            _ratio(accepted[i] if i < len(accepted) else 0, count)
            for i, count in enumerate(judged)
        )
    return Summary(
        label=label,
        tokens=tokens,
        rounds=report["rounds"],
        acceptance=_ratio(report["accepted"], drafted),
        accepted_per_block=_ratio(report["accepted"], report["rounds"]),
        forwards_per_token=_ratio(report["target_forwards"], tokens),
        bytes_per_drafted=_ratio(report["bytes"].get("up_payload"), drafted),
        tokens_per_s=_ratio(tokens, report["seconds"].get("total")),
        joules_per_token=_ratio(report["energy"].get("joules"), tokens),
        by_position=by_position,
    )


_COLUMNS = (
    ("run", "label"),
    ("tokens", "tokens"),
    ("rounds", "rounds"),
    ("acceptance", "acceptance"),
    ("accepted/block", "accepted_per_block"),
    ("forwards/token", "forwards_per_token"),
    ("bytes/drafted", "bytes_per_drafted"),
    ("tokens/s", "tokens_per_s"),
    ("J/token", "joules_per_token"),
)


def table(summaries: Sequence[Summary]) -> str:
    """Return the summaries as plain text, one line a run; "-" is not measured."""
    rows = [[_cell(getattr(s, field)) for _, field in _COLUMNS] for s in summaries]
    return align([[title for title, _ in _COLUMNS], *rows])


def positions_table(summaries: Sequence[Summary]) -> str:
    """Return the acceptance by position in the block, or "" when no run tells it."""
    known = [s for s in summaries if s.by_position]
    if not known:
        return ""
    width = max(len(s.by_position or ()) for s in known)
    rows = []
    for summary in known:
        values = list(summary.by_position or ())
        values += [None] * (width - len(values))
        rows.append([summary.label, *(_cell(value) for value in values)])
    header = ["accepted at position", *(str(i + 1) for i in range(width))]
    return align([header, *rows])


_AHEAD = (
    ("proposed", "proposed"),
    ("wasted", "wasted"),
    ("ahead", "drafted_ahead"),
    ("used", "drafted_ahead_used"),
    ("exits spoke", "provisional"),
    ("were right", "provisional_right"),
    ("outcomes", "outcomes"),
    ("hit", "outcomes_used"),
    ("saved s", "saved_s"),
    ("wasted s", "wasted_s"),
    ("wasted J", "wasted_joules"),
)


def preemption_table(labels: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> str:
    """Return what drafting ahead of the verdicts brought, or "" when no run did it."""
    rows = []
    for label, report in zip(labels, reports):
        found = report.get("preemption") or {}
        if found.get("drafted_ahead"):
            rows.append([label, *(_cell(found.get(field)) for _, field in _AHEAD)])
    if not rows:
        return ""
    return align([["drafted ahead", *(title for title, _ in _AHEAD)], *rows])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
