"""From run reports to the rows of a comparison; and the law that all texts are one.

Reads the reports of the runs and nothing else, live or simulated.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any, Iterable, Mapping, Sequence

BASELINE = "cloud"
Report = Mapping[str, Any]


def ms_per_token(reports: Iterable[Report]) -> float | None:
    """Return milliseconds a token after the first ones of each text, or None.

    Args:
        reports: Runs of one scheme; their times and tokens are added up.
    """
    seconds, tokens = 0.0, 0
    for report in reports:
        bench = report["bench"]
        first_s = report["seconds"]["first_token"]
        if first_s is None or bench["last_token_s"] is None:
            continue
        seconds += bench["last_token_s"] - first_s
        tokens += report["tokens"] - bench["first_tokens"]
    return 1e3 * seconds / tokens if tokens > 0 else None


def rows_of(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return one row for each link and scheme, in the order of their first runs.

    Times are medians over the repeats; a ratio is the median of each repeat's own ratio
    to streaming from the cloud, whose runs were made at the same time. Counts are summed
    over everything.
    """
    groups: dict[tuple[str, str], list[Report]] = defaultdict(list)
    for report in reports:
        bench = report["bench"]
        groups[bench["link"], bench["scheme"]].append(report)
    return [
        _row(link, scheme, group, groups.get((link, BASELINE), []))
        for (link, scheme), group in groups.items()
    ]


def _row(
    link: str, scheme: str, group: Sequence[Report], cloud: Sequence[Report]
) -> dict[str, Any]:
    each, others = _each(group), _each(cloud)
    shared = [key for key in each if others.get(key)]
    tokens = sum(report["tokens"] for report in group)
    rounds = _sum(group, "rounds")
    accepted = _sum(group, "accepted")
    forwards = _sum(group, "target_forwards")
    first = [report["seconds"]["first_token"] for report in group]
    row: dict[str, Any] = {
        "link": link,
        "scheme": scheme,
        "controller": group[0]["mode"]["controller"],
        "place": group[0]["bench"]["place"],
        "streams": len(group),
        "tokens": tokens,
        "ms_per_token": median(each.values()) if each else None,
        "ms_per_token_each": list(each.values()),
        "ratio": median(each[k] / others[k] for k in shared) if shared else None,
        "first_token_ms": _first_ms(first),
        "accepted_per_block": _share(accepted, rounds),
        "acceptance": _share(accepted, _sum(group, "drafted")),
        "forwards_per_token": _share(forwards, tokens),
        "forward_ms": _times(1e3, _share(_seconds(group, "verify"), forwards)),
        "capacity_tokens_s": _capacity(group, tokens),
        "same_text": group[0]["bench"]["same_text"],
        **_joules(group, tokens),
    }
    for key in ("up_payload", "down_payload", "up_wire", "down_wire"):
        known = [report["bytes"][key] for report in group]
        total = None if None in known else sum(known)
        row[f"{key}_per_token"] = _share(total, tokens)
    return row


def _each(group: Sequence[Report]) -> dict[int, float]:
    """Return milliseconds a token of each repeat."""
    repeats: dict[int, list[Report]] = defaultdict(list)
    for report in group:
        repeats[report["bench"]["repeat"]].append(report)
    found = {key: ms_per_token(part) for key, part in repeats.items()}
    return {key: value for key, value in found.items() if value is not None}


def _first_ms(first: Sequence[float | None]) -> float | None:
    known = [1e3 * s for s in first if s is not None]
    return median(known) if known else None


def _sum(group: Sequence[Report], key: str) -> int | None:
    values = [report[key] for report in group]
    return None if None in values else sum(values)


def _seconds(group: Sequence[Report], key: str) -> float | None:
    values = [report["seconds"][key] for report in group]
    return None if None in values else sum(values)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _capacity(group: Sequence[Report], tokens: int) -> float | None:
    """Return the tokens a second that one server serves at most.

    A token keeps it busy for its share of the target's forwards; where the draft runs
    there too, for its drafting as well.
    """
    busy_s = _seconds(group, "verify")
    if busy_s is not None and group[0]["bench"]["place"] == "cloud":
        drafting_s = _seconds(group, "draft")
        busy_s = None if drafting_s is None else busy_s + drafting_s
    return tokens / busy_s if busy_s else None


def _joules(group: Sequence[Report], tokens: int) -> dict[str, Any]:
    energies = [report["energy"] for report in group]
    joules = [energy["joules"] for energy in energies]
    known = bool(joules) and None not in joules
    return {
        "joules_per_token": _share(sum(joules), tokens) if known else None,
        "joules_source": energies[0].get("source") if known else None,
        "joules_why_null": None
        if known
        else next((e.get("why_null") for e in energies if e["joules"] is None), None),
    }


def different_texts(
    reports: Sequence[Report], known: Mapping[int, Sequence[int]] | None = None
) -> list[str]:
    """Return a sentence for each text that differs from its siblings: law 1.

    Schemes whose text the drafts decide too are skipped; ``known`` is the target's own text
    of each prompt, where it is known beforehand.
    """
    first: dict[int, tuple[str, list[int]]] = {}
    for number, ids in (known or {}).items():
        first[number] = ("the target's own text", list(ids))
    found = []
    for report in reports:
        bench = report["bench"]
        if not bench["same_text"]:
            continue
        name = f"{bench['scheme']} over {bench['link']}, repeat {bench['repeat'] + 1}"
        ids = list(report["token_ids"])
        reference = first.setdefault(bench["prompt"], (name, ids))
        wanted = reference[1][: len(ids)] if known else reference[1]
        if ids != wanted:
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, wanted)) if a != b),
                min(len(ids), len(wanted)),
            )
            found.append(
                f"prompt {bench['prompt'] + 1}: {name} differs from {reference[0]} "
                f"from token {at + 1} on"
            )
    return found
