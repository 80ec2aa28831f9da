"""The grid as text for a terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftwire.bench.sim.show import draw, table
from draftwire.bench.sim.show import render as render_schemes
from draftwire.energy.reports.plots import picture
from draftwire.io import format_table

# What stands in the tables beside publications: heads, and keys of the rows.
_HEADS = {
    "published": {
        "scheme": "scheme",
        "tokens/s here": "tokens_per_s",
        "published": "published_tokens_per_s",
        "off %": "off_percent",
        "accepted/block": "accepted_per_block",
    },
    "claims": {
        "published": "claim",
        "time of": "scheme",
        "over": "against",
        "ratio": "published_ratio",
        "here": "ratio",
        "at acceptance": "acceptance",
        "met at": "acceptance_that_meets_it",
    },
}


def render(document: Mapping[str, Any]) -> str:
    """Return a document of the study as text."""
    if document.get("grid"):
        return f"{document['title']}\n\n{_grid(document['grid'], document['judged'])}"
    parts = [render_schemes(document), _bound(document)]
    for name, heads in _HEADS.items():
        if document.get(name):
            parts.append(table(heads, document[name]))
    return "\n\n".join(parts)


def _bound(document: Mapping[str, Any]) -> str:
    bound = document["bound_ms_per_token"]
    shares = ", ".join(
        f"{row['scheme']} {bound / row['ms_per_token']:.2f}"
        for row in document["rows"]
        # Drafts beside the target, and early exits, play another game.
        if row["place"] == "device" and "exits" not in row["preempt"]
    )
    return (
        f"clairvoyant bound for one linear stream of drafts: {bound:.2f} ms/token\n"
        f"bound / reached: {shares}"
    )


def _grid(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0]["ms_per_token"])
    lines = []
    for row in rows:
        cells: list[object] = [
            f"{row['forward_ms']:g} / {row['draft_ms']:g}, {row['rtt_ms']:g}",
            f"{row['acceptance']:g}",
        ]
        for name in names:
            block = row["block"][name]
            speed = f"{row['ms_per_token'][name]:.1f}"
            cells.append(speed if block is None else f"{speed} ({block})")
        bounds = "bound_ms_per_token", "bound_two_choices", "bound_draft_beside"
        lines.append([*cells, *(f"{row[key]:.1f}" for key in bounds)])
    bounds = "bound", "two choices", "draft beside"
    cells_table = format_table(("t_v / t_d, RTT ms", "accept", *names, *bounds), lines)
    said = [
        cells_table,
        "ms a token; in brackets the best block length of 1..16. The bounds: of one stream "
        "of drafts, of two choices for each, of drafts beside the target too",
    ]
    if judged:
        header = ("time of", "over that of", "mean", "least", "where", "quicker by > 0.5 %")
        tv_td = "{:g} / {:g}, RTT {:g}, {:g}"
        judgements = [
            (one["what"], one["ours"], f"{one['mean']:.3f}", f"{one['least']:.3f}")
            + (tv_td.format(*one["least_at"]), f"{one['quicker']} of {one['cells']}")
            for one in judged
        ]
        said.append(format_table(header, judgements))
    return "\n\n".join(said)


def _draw_grid(plt: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    profiles = list(dict.fromkeys(row["profile"] for row in rows))
    _, plots = plt.subplots(
        1, len(profiles), figsize=(3.4 * len(profiles), 3.0), squeeze=False
    )
    rates = sorted({row["acceptance"] for row in rows})
    rate = rates[len(rates) // 2]
    for axes, profile in zip(plots[0], profiles):
        part = [r for r in rows if r["profile"] == profile and r["acceptance"] == rate]
        rtts = [row["rtt_ms"] for row in part]
        for name in part[0]["ms_per_token"]:
            axes.plot(rtts, [r["ms_per_token"][name] for r in part], "o-", label=name)
        bounds = [row["bound_ms_per_token"] for row in part]
        axes.plot(rtts, bounds, "k--", label="bound")
        axes.set_title(f"{profile}, acceptance {rate:g}")
        axes.set_xlabel("round trip, ms")
    plots[0][0].set_ylabel("ms a token, simulated")
    plots[0][-1].legend()


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw the grid by round trip, or a profile's schemes with the bound.

    Raises:
        ConfigError: matplotlib is not there, or the path has another ending.
    """
    with picture(path) as plt:
        if document.get("grid"):
            _draw_grid(plt, document["grid"])
        else:
            bound = document["bound_ms_per_token"]
            draw(plt, document).axvline(bound, color="#333333", linestyle="--")
