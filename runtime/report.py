"""The report of one run: one JSON document, every key always there.

:func:`stream_report` fills it for a stream of the driver, whatever carried that.

What was not measured is null. Ratios are left to the reader of the report
(:mod:`draftwire.runtime.summary`): the report holds counts, bytes, seconds and joules.
"""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.sampling import loss_of
from draftwire.transport.messages import Welcome

if TYPE_CHECKING:
    from draftwire.runtime.actions import Counts
    from draftwire.runtime.driver import StreamRun
    from draftwire.transport.capture import WireCapture

__all__ = [
    "FINISHES",
    "SCHEMA",
    "RunRecord",
    "build_report",
    "check_report",
    "replace_file",
    "stream_report",
    "versions",
    "write_report",
]

SCHEMA = "draftwire.report/1"
FINISHES = ("length", "stop", "deadline", "budget", "cancelled", "error")

# The groups of the report and the keys each has, whatever was measured.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "draft": ("id", "name", "engine", "precision"),
    "target": ("name", "version", "family"),
    "sampling": ("scheme", "temperature", "top_k", "top_p", "seed"),
    "mode": ("objective", "pipeline", "controller"),
    "bytes": ("up_payload", "down_payload", "up_wire", "down_wire"),
    "seconds": ("total", "prefill", "first_token", "draft", "wait", "verify"),
    "energy": ("joules", "source", "scope", "uncertainty", "by_phase", "why_null"),
    "link": ("rtt_ms", "up_mbit_s", "reconnects"),
}
# Plain keys: counts that are integers or null.
_COUNTS = (
    "prompt_tokens",
    "tokens",
    "rounds",
    "drafted",
    "accepted",
    "target_forwards",
)
_LISTS = ("token_ids", "accepted_by_position", "warnings")
_ORDER = (
    "schema",
    "versions",
    "draft",
    "target",
    "sampling",
    "mode",
    "prompt_tokens",
    "tokens",
    "token_ids",
    "text",
    "finish",
    "rounds",
    "drafted",
    "accepted",
    "accepted_by_position",
    "judged_by_position",
    "target_forwards",
    "bytes",
    "seconds",
    "energy",
    "link",
    "preemption",
    "warnings",
)


@dataclass
class RunRecord:
    """What one run measured; every field may stay None (not measured).

    The mappings may hold more keys than the report names; they are kept.

    Attributes:
        draft: id, name, engine, precision.
        target: name, version, family.
        sampling: scheme, temperature, top_k, top_p, seed.
        mode: objective, pipeline, controller, ...
        prompt_tokens: Tokens of the prompt.
        token_ids: Emitted tokens.
        text: Their text.
        finish: One of ``FINISHES``.
        rounds: Verdicts received.
        drafted: Drafted tokens that were sent.
        accepted: Drafted tokens that were accepted (no correction, no bonus).
        accepted_by_position: ``[i]``: blocks whose draft ``i`` was accepted.
        judged_by_position: ``[i]``: blocks that had a draft ``i``.
        target_forwards: Forwards of the target after prefill.
        bytes: up_payload, down_payload, up_wire, down_wire.
        seconds: total, prefill, first_token, draft, wait, verify.
        energy: joules, source, scope, uncertainty, by_phase, or why_null.
        link: rtt_ms, up_mbit_s, reconnects, ...
        preemption: What drafting ahead of the verdicts brought, in tokens; None where
            the run had nothing to do with it.
        warnings: Sentences for the user.
        versions: Beside those of :func:`versions`, e.g. the verifier's.
    """

    draft: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    mode: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int | None = None
    token_ids: Sequence[int] = ()
    text: str | None = None
    finish: str | None = None
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    accepted_by_position: Sequence[int] = ()
    judged_by_position: Sequence[int] | None = None
    target_forwards: int | None = None
    bytes: Mapping[str, int | None] = field(default_factory=dict)
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)
    link: Mapping[str, Any] = field(default_factory=dict)
    preemption: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Return the versions of what runs here; only of what is imported already."""
    found = {"python": platform.python_version()}
    for module in ("draftwire", "numpy", "onnxruntime", "tokenizers", "websockets"):
        version = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(version, str):
            found[module] = version
    return found


def build_report(record: RunRecord) -> dict[str, Any]:
    """Return the report of a run, ready for JSON.

    Raises:
        ValueError: The record contradicts itself (our bug).
    """
    if record.finish is not None and record.finish not in FINISHES:
        raise ValueError(f"finish is {record.finish!r}")
    if (record.accepted or 0) > (record.drafted or 0):
        raise ValueError(f"{record.accepted} accepted of {record.drafted} drafted")
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "versions": {**versions(), **record.versions},
        "prompt_tokens": record.prompt_tokens,
        "tokens": len(record.token_ids),
        "token_ids": list(record.token_ids),
        "text": record.text,
        "finish": record.finish,
        "rounds": record.rounds,
        "drafted": record.drafted,
        "accepted": record.accepted,
        "accepted_by_position": list(record.accepted_by_position),
        "judged_by_position": (
            None if record.judged_by_position is None else list(record.judged_by_position)
        ),
        "target_forwards": record.target_forwards,
        "preemption": record.preemption,
        "warnings": list(record.warnings),
    }
    for group, keys in _GROUPS.items():
        given = getattr(record, group)
        values[group] = {**dict.fromkeys(keys), **given}
    energy = values["energy"]
    if energy["joules"] is None and not energy["why_null"]:
        energy["why_null"] = "no power source was asked for"
    report = {key: _plain(values[key]) for key in _ORDER}
    return report


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: numpy scalars unwrapped, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a report cannot hold {type(value).__name__}")


def check_report(document: object, where: str) -> dict[str, Any]:
    """Return ``document`` as a run report, or say what is wrong with it.

    Args:
        document: Parsed JSON.
        where: File name and place, for the message.

    Raises:
        ConfigError: It is no report of this schema, or a key is missing or wrong.
    """
    if not isinstance(document, dict):
        raise ConfigError(f"{where} is not a JSON object", hint=_MADE_BY)
    schema = document.get("schema")
    if schema != SCHEMA:
        raise ConfigError(
            f"{where} has the schema {schema!r}, a run report has {SCHEMA!r}",
            hint=_MADE_BY,
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
    for group in ("bytes", "seconds"):
        for key, value in document[group].items():
            if value is not None and not _is_number(value, (int, float)):
                raise wrong(f"{group}.{key}", "a number or null")
    for key in _LISTS:
        if not isinstance(document.get(key), list):
            raise wrong(key, "a list")
    for key in ("accepted_by_position", "judged_by_position"):
        for value in document.get(key) or ():
            if not _is_number(value, int):
                raise wrong(key, "a list of counts")
    return document


_MADE_BY = "give files that --json wrote, e.g. `draftwire generate --json run.json`"


def _is_number(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def write_report(
    report: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    target: str | os.PathLike[str],
) -> None:
    """Write one report, or a list of several, as JSON.

    Args:
        report: As :func:`build_report` returns it.
        target: A file, replaced as a whole or not at all, or "-" for stdout.

    Raises:
        ConfigError: The file cannot be written.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(target)
    try:
        if path.exists() and not path.is_file():  # a pipe or /dev/null
            path.write_text(text, encoding="utf-8")
        else:
            replace_file(path, text)
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror}") from exc


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, as a whole or not at all.

    Raises:
        OSError: It cannot be written; what was there is there still.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        if scratch.exists():
            scratch.unlink()


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
    """Return the report of a stream that has ended.

    Args:
        run: The stream.
        draft: Id, name, engine and precision of the draft.
        welcome: Of the verifier.
        token_ids: What the user saw.
        text: Likewise.
        first_token_s: Seconds until the first final token.
        capture: Has counted the bytes on the wire, or None.
        signal: What the radio says.
        warnings: Of the session.
    """
    spec, counts = run.spec, run.machine.counts
    params, mode = spec.params, spec.mode
    traffic, total = run.traffic, run.ended_s - run.began_s
    wire = {"up_wire": traffic.up_wire, "down_wire": traffic.down_wire}
    if capture is not None:
        time.sleep(0.02)  # the last packets are on their way through the kernel
        wire = {
            "up_wire": capture.up - run.captured[0],
            "down_wire": capture.down - run.captured[1],
        }
    account = spec.account.account
    account.count(drafted=counts.drafted, accepted=counts.accepted, emitted=counts.tokens)
    energy = account.result()
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
                "objective": mode.objective,
                "pipeline": mode.pipeline,
                "preempt": mode.preempt_text,
                "cut": mode.cut,
                "batch": mode.batch,
                "controller": spec.controller.name,
            },
            prompt_tokens=len(spec.prompt),
            token_ids=token_ids,
            text=text,
            finish=run.finish,
            rounds=counts.rounds,
            drafted=counts.drafted,
            accepted=counts.accepted,
            accepted_by_position=list(counts.accepted_by_position),
            judged_by_position=list(counts.judged_by_position),
            target_forwards=counts.forwards,
            bytes={
                "up_payload": traffic.up_payload,
                "down_payload": traffic.down_payload,
                **wire,
            },
            seconds={
                "total": total,
                "prefill": run.prefill_s,
                "first_token": first_token_s,
                "draft": run.draft_s,
                "wait": max(0.0, total - run.draft_s - run.prefill_s),
                "verify": counts.compute_s,
            },
            energy=energy,
            link={
                "compatibility": welcome.compatibility,
                "reconnects": run.reconnects,
                "wire_bytes": "computed" if capture is None else "captured",
                **run.link.channel.report(),
                **run.decisions.report(),
                **signal,
            },
            warnings=[
                *warnings,
                *run.warnings,
                *run.decisions.warnings(),
                *filter(None, [loss_of(params, spec.vocab_size)]),
            ],
            preemption=_preemption(counts, run.draft_s, energy),
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
