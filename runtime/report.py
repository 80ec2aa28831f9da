"""The report of one run, and the numbers that people read out of it.

A report is one JSON document, every key always there; what was not measured is null.
:func:`stream_report` fills it for a stream of the driver, whatever carried that, with
counts, bytes, seconds and joules. Every ratio is defined once, in :func:`summarise`, from
those; None where a counter was not measured.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.io import align, parse_json
from draftwire.sampling import loss_of
from draftwire.sampling.qs import QsProposer
from draftwire.transport.messages import Welcome

if TYPE_CHECKING:
    from draftwire.runtime.driver import StreamRun
    from draftwire.runtime.edge.actions import Counts
    from draftwire.transport.capture import WireCapture


SCHEMA = "draftwire.report/1"
_COUNTS = ("prompt_tokens", "tokens", "rounds", "drafted", "accepted", "target_forwards")
_OF_COUNTS = (
    *("rounds", "drafted", "accepted", "forced", "completed"),
    *("accepted_by_position", "judged_by_position"),
)
_LISTS = ("token_ids", "accepted_by_position", "warnings")
_GROUPS = ("draft", "target", "sampling", "mode", "bytes", "seconds", "energy", "link")
_DRAWN = ("scheme", "temperature", "top_k", "top_p", "seed", "sample", "noise")


def versions() -> dict[str, str]:
    """Return the versions of what runs here; only of what is imported already."""
    found = {"python": platform.python_version()}
    for module in ("draftwire", "numpy", "onnxruntime", "tokenizers", "websockets"):
        version = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(version, str):
            found[module] = version
    return found


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: numpy scalars unwrapped, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a report cannot hold {type(value).__name__}")


def check_report(document: object, where: str) -> dict[str, Any]:
    """Return ``document``, parsed JSON, as a run report; a ConfigError that says ``where``
    it stands, where a key is missing or wrong, or it is none of this schema."""
    if not isinstance(document, dict):
        raise ConfigError(f"{where} is not a JSON object", hint=_MADE_BY)
    schema = document.get("schema")
    if schema != SCHEMA:
        raise ConfigError(
            f"{where} has the schema {schema!r}, a run report has {SCHEMA!r}", hint=_MADE_BY
        )

    def wrong(key: str, what: str) -> ConfigError:
        return ConfigError(f"{where}: {key!r} must be {what}", hint=_MADE_BY)

    for key in _COUNTS:
        if key not in document:
            raise wrong(key, "there (null when not measured)")
        value = document[key]
        if value is not None and (not _is_number(value, int) or value < 0):
            raise wrong(key, "a count or null")
    for group in _GROUPS:
        if not isinstance(document.get(group), dict):
            raise wrong(group, "an object")
    numbers = {f"{g}.{k}": v for g in ("bytes", "seconds") for k, v in document[g].items()}
    numbers["energy.joules"] = document["energy"].get("joules")
    for key, value in numbers.items():
        if value is not None and not _is_number(value, (int, float)):
            raise wrong(key, "a number or null")
    for key in _LISTS:
        if not isinstance(document.get(key), list):
            raise wrong(key, "a list")
    for key in ("accepted_by_position", "judged_by_position"):
        counts = document.get(key)
        counts = [] if counts is None else counts
        if not isinstance(counts, list) or not all(_is_number(n, int) for n in counts):
            raise wrong(key, "a list of counts")
    if not isinstance(document.get("preemption") or {}, dict):
        raise wrong("preemption", "an object")
    return document


_MADE_BY = "give files that --json wrote, e.g. `draftwire generate --json run.json`"


def _is_number(value: object, kinds: type | tuple[type, ...]) -> bool:
    right = isinstance(value, kinds) and not isinstance(value, bool)
    return right and abs(value) < 1e300  # type: ignore[arg-type]  # which a float holds


def stream_report(
    run: StreamRun,
    *,
    draft: Mapping[str, Any],
    welcome: Welcome,
    token_ids: Sequence[int],
    text: str | None,
    first_token_s: float | None,
    capture: WireCapture | None = None,
    signal: Mapping[str, Any] = MappingProxyType({}),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the report of a stream that has ended, ready for JSON.

    ``accepted`` counts drafted tokens alone (no correction, no bonus), and
    ``judged_by_position[i]`` the blocks that had a draft ``i``. ``token_ids`` and ``text``
    are what the user saw, ``capture`` has counted the bytes on the wire, ``signal`` is what
    the radio says, and ``warnings`` are the session's.
    """
    spec, counts = run.spec, run.machine.counts
    params, mode = spec.params, spec.mode
    traffic, total = run.traffic, run.ended_s - run.began_s
    up, down = traffic.up_wire, traffic.down_wire
    if capture is not None:
        time.sleep(0.02)  # the last packets are on their way through the kernel
        up, down = capture.up - run.captured[0], capture.down - run.captured[1]
    account = spec.account.account
    account.count(drafted=counts.drafted, accepted=counts.accepted, emitted=counts.tokens)
    energy, beside, idle = account.result(), None, []
    if "beside" in welcome.capabilities:
        share = counts.spared / counts.wanted if counts.wanted else None
        beside = {"wanted": counts.wanted, "spared": counts.spared, "saved_share": share}
        beside["rested_tokens"] = counts.rested
        if counts.rested:
            idle.append(
                f"a draft beside the target drafts faster than this board, which saved it "
                f"{share or 0:.0%} of that: the board did not draft for {counts.rested} of "
                f"{counts.tokens} tokens"
            )
    document = {
        "schema": SCHEMA,
        "versions": versions(),
        "draft": draft,
        "target": {
            "name": welcome.target,
            "version": welcome.target_version,
            "family": welcome.family,
            "numerics": None if welcome.numerics == "unstated" else welcome.numerics,
        },
        "sampling": {
            field.name: value
            for field in dataclasses.fields(params)
            if (value := getattr(params, field.name)) != field.default
            or field.name in _DRAWN
        },
        "mode": {
            "objective": mode.objective,
            "pipeline": mode.pipeline,
            "preempt": mode.preempt_text,
            "cut": mode.cut,
            "batch": mode.batch,
            "controller": spec.controller.name,
            **run.decisions.ways(),
        },
        "prompt_tokens": len(spec.prompt),
        "prefix": {"unsent": counts.unsent, "reused": counts.reused},
        "tokens": len(token_ids),
        "token_ids": token_ids,
        "text": text,
        "finish": run.finish,
        **{name: getattr(counts, name) for name in _OF_COUNTS},
        "target_forwards": counts.forwards,
        "near_ties": counts.near_ties if welcome.numerics == "close" else None,
        "bytes": {
            "up_payload": traffic.up_payload,
            "down_payload": traffic.down_payload,
            "up_wire": up,
            "down_wire": down,
        },
        "seconds": {
            "total": total,
            "prefill": run.prefill_s,
            "first_token": first_token_s,
            "draft": run.draft_s,
            "wait": max(0.0, total - run.draft_s - run.prefill_s),
            "verify": counts.compute_s,
        },
        "energy": energy,
        "link": {
            "compatibility": welcome.compatibility,
            "reconnects": run.reconnects,
            "wire_bytes": "computed" if capture is None else "captured",
            **run.link.channel.report(),
            **run.decisions.report(),
            **signal,
        },
        "preemption": _preemption(counts, run.draft_s, energy),
        "leaves": {"sent": counts.leaves, "right": counts.leaves_right},
        "sides": {"sent": counts.sides, "taken": counts.sides_taken},
        "beside": beside,
        "evidence": spec.proposer.told() if isinstance(spec.proposer, QsProposer) else None,
        "warnings": [
            *warnings,
            *run.warnings,
            *idle,
            *run.decisions.warnings(),
            *filter(None, [loss_of(params, spec.vocab_size)]),
        ],
    }
    return {key: plain(value) for key, value in document.items()}


_AHEAD_COUNTS = ("provisional", "provisional_right", "outcomes", "outcomes_used")


def _preemption(
    counts: Counts, draft_s: float, energy: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what drafting ahead of the verdicts brought, and what it cost; seconds and
    joules of single drafts are their share of all drafting."""
    proposed = counts.proposed
    each_s = draft_s / proposed if proposed else 0.0
    joules = (energy.get("by_phase") or {}).get("draft") if proposed else None
    return {
        "proposed": proposed,
        "wasted": counts.wasted,
        "overtaken": counts.overtaken,
        "drafted_ahead": counts.preempted,
        "drafted_ahead_used": counts.preempted_used,
        **{name: getattr(counts, name) for name in _AHEAD_COUNTS},
        "saved_s": counts.preempted_used * each_s,
        "wasted_s": counts.wasted * each_s,
        "wasted_joules": None if joules is None else joules * counts.wasted / proposed,
    }


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
    """Read run reports, each with its label: file name, and ``#2`` and so on inside a list.
    A ConfigError where a file cannot be read or is no run report."""
    found = []
    for name in paths:
        path = Path(name)
        try:
            document = parse_json(path.read_bytes())
        except OSError as exc:
            raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
        except ValueError as exc:  # also: not UTF-8
            raise ConfigError(
                f"{path} is not JSON: {exc}", hint="was the run interrupted?"
            ) from exc
        if not isinstance(document, list):
            found.append((path.name, check_report(document, str(path))))
        elif not document:
            raise ConfigError(f"{path} holds an empty list, no run report")
        else:
            labels = [f"{path.name}#{number}" for number in range(1, len(document) + 1)]
            found += [(label, check_report(o, label)) for label, o in zip(labels, document)]
    return found


def total(reports: Sequence[Mapping[str, Any]], *path: str) -> Any:
    """Return the sum of what stands at ``path`` in reports; None where one has nothing."""
    values: list[Any] = [*reports]
    for key in path:
        values = [(value or {}).get(key) for value in values]
    return None if None in values else sum(values)


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


def table(summaries: Sequence[Summary]) -> str:
    """Return the summaries as plain text, one line a run; "-" is not measured."""
    head = ["run", "tokens", "rounds", "acceptance", "accepted/block", "forwards/token"]
    head += ["bytes/drafted", "tokens/s", "J/token"]  # all but the last of a summary
    rows = [[_cell(value) for value in list(vars(s).values())[:-1]] for s in summaries]
    return align([head, *rows])


def positions_table(summaries: Sequence[Summary]) -> str:
    """Return the acceptance by position in the block, or "" when no run tells it."""
    known = [(s.label, s.by_position) for s in summaries if s.by_position]
    if not known:
        return ""
    width = max(len(values) for _, values in known)
    rows = [
        [label, *map(_cell, values), *["-"] * (width - len(values))]
        for label, values in known
    ]
    header = ["accepted at position", *(str(i + 1) for i in range(width))]
    return align([header, *rows])


_AHEAD = {
    "proposed": "proposed",
    "wasted": "wasted",
    "ahead": "drafted_ahead",
    "used": "drafted_ahead_used",
    "exits spoke": "provisional",
    "were right": "provisional_right",
    "outcomes": "outcomes",
    "hit": "outcomes_used",
    "saved s": "saved_s",
    "wasted s": "wasted_s",
    "wasted J": "wasted_joules",
}


def preemption_table(labels: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> str:
    """Return what drafting ahead of the verdicts brought, or "" when no run did it."""
    told = [
        (label, report.get("preemption") or {}) for label, report in zip(labels, reports)
    ]
    rows = [
        [label, *(_cell(found.get(key)) for key in _AHEAD.values())]
        for label, found in told
        if found.get("drafted_ahead")
    ]
    return align([["drafted ahead", *_AHEAD], *rows]) if rows else ""


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
