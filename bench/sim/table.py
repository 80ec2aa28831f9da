"""From run reports to the rows that people compare; and the law that all texts are one.

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


def row(group: Sequence[Report]) -> dict[str, Any]:
    """Return what runs of one scheme come to; counts are summed, unknown is None."""
    tokens = sum(report["tokens"] for report in group)
    accepted, forwards = _sum(group, "accepted"), _sum(group, "target_forwards")
    joules = _sum(group, "energy", "joules")
    whys = (r["energy"].get("why_null") for r in group if r["energy"]["joules"] is None)
    busy_s = verify_s = _sum(group, "seconds", "verify")
    if busy_s is not None and group and group[0]["bench"]["place"] == "cloud":
        # Where the draft runs there too, a token keeps the server busy for its drafting.
        drafting_s = _sum(group, "seconds", "draft")
        busy_s = None if drafting_s is None else busy_s + drafting_s
    found = {
        "streams": len(group),
        "tokens": tokens,
        "ms_per_token": ms_per_token(group),
        "accepted_per_block": share(accepted, _sum(group, "rounds")),
        "acceptance": share(accepted, _sum(group, "drafted")),
        "forwards_per_token": share(forwards, tokens),
        "forward_ms": share(None if verify_s is None else 1e3 * verify_s, forwards),
        # Tokens a second that one server serves at most, one stream a forward.
        "capacity_tokens_s": share(tokens, busy_s),
        "joules_per_token": share(joules, tokens),
        "joules_source": None if joules is None else group[0]["energy"].get("source"),
        "joules_why_null": next(whys, None),
    }
    for key in ("up_payload", "down_payload", "up_wire", "down_wire"):
        found[f"{key}_per_token"] = share(_sum(group, "bytes", key), tokens)
    return found


def share(part: float | None, whole: float | None) -> float | None:
    """Return the ratio; None where one of the two is not known, or there is nothing."""
    return None if part is None or not whole else part / whole


def _sum(group: Sequence[Report], *keys: str) -> float | None:
    values: list[Any] = list(group)
    for key in keys:
        values = [value[key] for value in values]
    return None if None in values or not values else sum(values)


def rows_of(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return one row for each link and scheme, in the order of their first runs.

    Times are medians over the repeats; a ratio is the median of each repeat's own ratio
    to streaming from the cloud, whose runs were made at the same time. Counts are summed
    over everything.
    """
    groups: dict[tuple[str, str], list[Report]] = defaultdict(list)
    for report in reports:
        groups[report["bench"]["link"], report["bench"]["scheme"]].append(report)
    rows = []
    for (link, scheme), group in groups.items():
        each, cloud = _each(group), _each(groups.get((link, BASELINE), []))
        shared = [key for key in each if cloud.get(key)]
        first = [report["seconds"]["first_token"] for report in group]
        known = [1e3 * s for s in first if s is not None]
        rows.append(
            {
                "link": link,
                "scheme": scheme,
                "controller": group[0]["mode"]["controller"],
                "place": group[0]["bench"]["place"],
                **row(group),
                "ms_per_token": median(each.values()) if each else None,
                "ms_per_token_each": list(each.values()),
                "ratio": median(each[k] / cloud[k] for k in shared) if shared else None,
                "first_token_ms": median(known) if known else None,
                "same_text": group[0]["bench"]["same_text"],
            }
        )
    return rows


def _each(group: Sequence[Report]) -> dict[int, float]:
    """Return milliseconds a token of each repeat."""
    repeats: dict[int, list[Report]] = defaultdict(list)
    for report in group:
        repeats[report["bench"]["repeat"]].append(report)
    found = {key: ms_per_token(part) for key, part in repeats.items()}
    return {key: value for key, value in found.items() if value is not None}


def different_texts(
    reports: Sequence[Report], known: Mapping[int, Sequence[int]] | None = None
) -> list[str]:
    """Return a sentence for each text that differs from its siblings: law 1.

    Schemes whose text the drafts decide too are skipped; ``known`` is the target's own text
    of each prompt, where it is known beforehand.
    """
    first: dict[int, tuple[str, list[int]]] = {
        number: ("the target's own text", list(ids))
        for number, ids in (known or {}).items()
    }
    found = []
    for report in reports:
        bench = report["bench"]
        if not bench["same_text"]:
            continue
        name = f"{bench['scheme']} over {bench['link']}, repeat {bench['repeat'] + 1}"
        ids = list(report["token_ids"])
        whose, wanted = first.setdefault(bench["prompt"], (name, ids))
        wanted = wanted[: len(ids)] if known else wanted
        if ids != wanted:
            both = enumerate(zip(ids, wanted))
            shorter = min(len(ids), len(wanted))
            at = next((i for i, (a, b) in both if a != b), shorter)
            found.append(
                f"prompt {bench['prompt'] + 1}: {name} differs from {whose} "
                f"from token {at + 1} on"
            )
    return found
