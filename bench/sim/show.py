"""Simulations and comparisons as text for a terminal, as Markdown, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from draftwire.energy.reports.plots import picture
from draftwire.io import format_table

# Heads of columns, and the keys of what stands in them.
_SIMULATED = {
    "scheme": "scheme",
    "policy": "controller",
    "ms/token": "ms_per_token",
    "tokens/s": "tokens_per_s",
    "first ms": "first_token_ms",
    "accepted/block": "accepted_per_block",
    "forwards/token": "forwards_per_token",
    "target busy": "target_busy_share",
    "B up/token": "up_bytes_per_token",
    "B down/token": "down_bytes_per_token",
    "J/token": "joules_per_token",
}
_COMPARED = {
    "scheme": "scheme",
    "policy": "controller",
    "ms/token": "ms_per_token",
    "x cloud": "ratio",
    "first ms": "first_token_ms",
    "acc/block": "accepted_per_block",
    "forwards/token": "forwards_per_token",
    "capacity tok/s": "capacity_tokens_s",
    "B up": "up_payload_per_token",
    "B down": "down_payload_per_token",
    "wire up": "up_wire_per_token",
    "wire down": "down_wire_per_token",
    "J/token": "joules_per_token",
}
_COLOURS = {"cloud": "#777777", "colocated": "#c9a227"}
_OURS, _OTHERS = "#1f5a96", "#b3541e"
OURS = (
    *("cost", "latency", "latency-auto", "ours", "ours-no-exits"),
    *("ours-cost", "ours-latency", "auto"),
)


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as text, a column for each head with the key that stands under it."""
    return format_table(
        list(columns), [[row[key] for key in columns.values()] for row in rows]
    )


# ---- a simulation


def render(document: Mapping[str, Any]) -> str:
    """Return a document of ``bench simulate`` as text."""
    every = {"all tokens/s": "tokens_per_s_of_all"}  # of a gateway
    more = every if all("tokens_per_s_of_all" in row for row in document["rows"]) else {}
    rows = (
        f"{table({**_SIMULATED, **more}, document['rows'])}\n"
        "ms/token: after the first tokens; bytes: on the wire, headers counted;\n"
        "J/token: the board, modelled from stated watts; -: nobody knows"
    )
    notes = "\n".join(f"- {note}" for note in document["notes"])
    facts = (
        f"{f['how']:9s} {f['name']} = {f['value']:g}: {f['source']}"
        for f in document["facts"]
    )
    rests = "\n".join(["what it rests on", *facts])
    return "\n\n".join(filter(None, [document["title"], rows, notes, rests]))


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw milliseconds a token by scheme, one panel a link, a dot for each repeat.

    Raises:
        ConfigError: matplotlib is not there, or the path has another ending.
    """
    with picture(path) as plt:
        draw(plt, document)


def draw(plt: Any, document: Mapping[str, Any]) -> Any:
    """Draw the panels; return the axes of the first."""
    if "links" in document:
        title, names = _title(document), document["schemes"]
        panels = {link["name"]: _of(document, link["name"]) for link in document["links"]}
    else:
        title, panels = document["title"], {"simulated": document["rows"]}
        names = [row["scheme"] for row in document["rows"]]
    figure, plots = plt.subplots(
        1,
        len(panels),
        figsize=(2.4 + 2.7 * len(panels), 1.3 + 0.3 * len(names)),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    most = _most_ms(document["rows"])
    for axes, (name, rows) in zip(plots[0], panels.items()):
        _panel(axes, rows, names, most)
        axes.set_title(name)
    axes = plots[0][0]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    figure.suptitle(title, fontsize="small")
    return axes


def _most_ms(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return where the axis ends: a row that is far off would squash the others."""
    times = sorted(float(row["ms_per_token"]) for row in rows if row["ms_per_token"])
    return 1.05 * min(times[-1], 3.0 * times[len(times) // 2]) if times else 1.0


def _panel(
    axes: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str], most: float
) -> None:
    found = {row["scheme"]: row for row in rows if row["ms_per_token"] is not None}
    for at, name in enumerate(names):
        row = found.get(name)
        if row is None:
            continue
        base = name.partition(":")[0]
        colour = _COLOURS.get(base, _OURS if base in OURS else _OTHERS)
        axes.barh(at, row["ms_per_token"], color=colour, alpha=0.85)
        if row["ms_per_token"] > most:
            note = f"{row['ms_per_token']:.0f} "
            axes.text(most, at, note, ha="right", va="center", color="white")
        each = row.get("ms_per_token_each", ())
        if len(each) > 1:
            each = [ms for ms in each if ms <= most]
            axes.plot(each, [at] * len(each), "k.", markersize=3)
    if "cloud" in found:
        at_ms = found["cloud"]["ms_per_token"]
        axes.axvline(at_ms, color="#777777", linestyle="--", linewidth=1)
    axes.set_xlabel("ms a token")
    axes.set_xlim(0, most)


# ---- a comparison


def render_compared(document: Mapping[str, Any]) -> str:
    """Return the document as tables, one for each link, and what to know about them."""
    parts = [_title(document)]
    for link in document["links"]:
        rows = _of(document, link["name"])
        lines = [f"{link['name']} ({link['method']})", table(_COMPARED, rows)]
        lines += _remarks(rows)
        late, forwards = link.get("draft_forwards_late"), link.get("draft_forwards")
        if late and forwards:
            share = 100 * late / forwards
            lines.append(f"{share:.1f} % of the draft's forwards missed their pace")
        parts.append("\n".join(lines))
    parts.append("\n".join([*_notes(document), *_verdict(document)]))
    return "\n\n".join(parts)


def _title(document: Mapping[str, Any]) -> str:
    if document["simulated"]:
        kind = "simulated"
    elif document["paced_to"]:
        kind = f"live, paced to profile {document['paced_to']}"
    else:
        kind = "live, at the models' own speed"
    medians = "" if document["simulated"] else f"medians of {document['repeats']}; "
    return (
        f"{kind}; {document['text']}; {document['tokens']} tokens a text; {medians}"
        f"temperature {document['temperature']:g}"
    )


def _of(document: Mapping[str, Any], link: str) -> list[Mapping[str, Any]]:
    return [row for row in document["rows"] if row["link"] == link]


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where co-located decoding wins, and what the edge gives back for it."""
    near = next((r for r in rows if r["scheme"].partition(":")[0] == "colocated"), None)
    timed = [r for r in rows if r["place"] == "device" and r["ms_per_token"]]
    if near is None or not near["ms_per_token"] or not timed:
        return []
    best = min(timed, key=lambda row: float(row["ms_per_token"]))
    ratio = best["ms_per_token"] / near["ms_per_token"]
    if ratio <= 1:
        return [f"{best['scheme']} beats co-located decoding: {ratio:.2f} of its time"]
    said = [f"co-located decoding wins: the best distributed row takes {ratio:.2f} of it"]
    able = [r for r in timed if r["capacity_tokens_s"] and near["capacity_tokens_s"]]
    if able:
        most = max(able, key=lambda row: float(row["capacity_tokens_s"]))
        gain = most["capacity_tokens_s"] / near["capacity_tokens_s"]
        said.append(
            f"what the edge gives back: {most['scheme']} serves {gain:.2f} times as many "
            "tokens on one server, and no draft is hosted there"
        )
    return said


def _notes(document: Mapping[str, Any]) -> list[str]:
    rows = document["rows"]
    notes = [
        "ms/token: after the first tokens. capacity: tokens a second that one server "
        "serves at most, one stream a forward (1 / its busy seconds a token)",
        "B: payload bytes a token; wire: with websocket, TCP and IP headers",
    ]
    sources = sorted({r["joules_source"] for r in rows if r["joules_source"]})
    if sources:
        notes.append(f"J/token: {', '.join(sources)}")
    for why in sorted({r["joules_why_null"] for r in rows if r["joules_why_null"]}):
        notes.append(f"no joules: {why}")
    named = [run["sampling"]["scheme"].partition("+")[2] for run in document["runs"]]
    sizes = sorted({size for size in named if size}, key=int)
    if sizes:
        notes.append(
            "greedy rows with evidence carry it through the wire "
            f"({', '.join(sizes)} bytes a drafted token), though greedy decoding does not "
            "need it"
        )
    for row in document["left_out"]:
        notes.append(f"left out: {row['scheme']}: {row['why']}")
    return notes


def _verdict(document: Mapping[str, Any]) -> list[str]:
    different = document["different"]
    if different:
        return [f"LAW 1 BROKEN: {sentence}" for sentence in different]
    return [
        f"law 1: {document['compared']} texts that must be the target's own are, "
        "token for token"
    ]


def markdown(document: Mapping[str, Any]) -> str:
    """Return one Markdown table over all links: milliseconds a token, and the ratio."""
    links = [link["name"] for link in document["links"]]
    lines = [
        "| scheme | " + " | ".join(links) + " | forwards/token | B up/token |",
        "|---|" + "---|" * (len(links) + 2),
    ]
    for name in document["schemes"]:
        rows = {r["link"]: r for r in document["rows"] if r["scheme"] == name}
        cells = [_pair(rows.get(link)) for link in links]
        one = rows[links[0]]
        extra = (one["forwards_per_token"], one["up_wire_per_token"])
        cells += ["-" if x is None else f"{x:.2f}" for x in extra]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pair(row: Mapping[str, Any] | None) -> str:
    if row is None or row["ms_per_token"] is None:
        return "-"
    ratio = "" if row["ratio"] is None else f" ({row['ratio']:.2f})"
    return f"{row['ms_per_token']:.1f}{ratio}"
