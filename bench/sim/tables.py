"""The simulator's results as text for a terminal, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from draftwire.energy.reports.plots import picture


def render(document: Mapping[str, Any]) -> str:
    """Return a document of the command as text."""
    parts = [document["title"]]
    if document.get("rows"):
        parts.append(_schemes(document["rows"]))
    if document.get("notes"):
        parts.append("\n".join(f"- {note}" for note in document["notes"]))
    if document.get("facts"):
        parts.append(_facts(document["facts"]))
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    from draftwire.io import format_table

    return format_table(header, rows)


def _schemes(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "scheme", "policy", "ms/token", "tokens/s", "first ms", "accepted/block",
        "forwards/token", "target busy", "B up/token", "B down/token", "J/token",
    )  # fmt: skip
    keys = (
        "scheme", "controller", "ms_per_token", "tokens_per_s", "first_token_ms",
        "accepted_per_block", "forwards_per_token", "target_busy_share",
        "up_bytes_per_token", "down_bytes_per_token", "joules_per_token",
    )  # fmt: skip
    table = _table(header, [[row[key] for key in keys] for row in rows])
    return (
        f"{table}\nms/token: after the first tokens; bytes: on the wire, headers counted;"
        "\nJ/token: the board, modelled from stated watts; -: nobody knows"
    )


def _facts(facts: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{f['how']:9s} {f['name']} = {f['value']:g}: {f['source']}" for f in facts]
    return "what it rests on\n" + "\n".join(lines)


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw milliseconds a token by scheme.

    Raises:
        ConfigError: matplotlib is not there, or the path has another ending.
    """
    with picture(path) as plt:
        draw_schemes(plt, document)


def draw_schemes(plt: Any, document: Mapping[str, Any]) -> Any:
    """Draw a bar for each scheme; return the axes."""
    rows = document["rows"]
    _, axes = plt.subplots(figsize=(6.4, 0.4 * len(rows) + 1.4))
    names = [f"{row['scheme']} ({row['controller']})" for row in rows]
    axes.barh(names, [row["ms_per_token"] for row in rows], color="#4878CF")
    axes.invert_yaxis()
    axes.set_xlabel("ms a token, simulated")
    axes.set_title(document["title"], wrap=True)
    return axes
