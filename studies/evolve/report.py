"""A study of evolving targets as tables, verdicts and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from draftwire.energy.reports.plots import picture
from draftwire.errors import ConfigError
from draftwire.io import write_text
from studies.command import markdown
from studies.evolve.stats import KINDS, Cell, Table

ARM_NAMES = {
    "frozen": "frozen draft",
    "suffix": "frozen + suffix cache",
    "independent": "independent, equal compute",
    "long": "independent, more compute",
    "stale": "stale base (ceiling)",
    "given": "given package",
    "retrained": "re-trained each time",
}
# Followed by kind of evolution, and their marks in the picture.
_ONES = {"frozen": "o", "independent": "D", "given": "s"}
_WAYS = {"greedy": "greedy", "coupled": "T = 1 (coupled noise)"}


def render(document: Mapping[str, Any]) -> str:
    """Return the tables as text for a terminal."""
    return "\n".join(_body(document, None))


def write_markdown(document: Mapping[str, Any], path: Path, part: str) -> list[Path]:
    """Put tables, verdicts and a picture between the marks of a Markdown file.

    Args:
        document: The study's document.
        path: The file; what stands outside of the marks is kept. The picture goes
            beside it.
        part: Whose marks.

    Returns:
        What was written.

    Raises:
        ConfigError: matplotlib is not there, or the file cannot be written.
    """
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    picture = draw(document, path.with_name(f"{path.stem}-{part}.png"))
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if begin not in old or end not in old:
        raise ConfigError(
            f"{path} has no place for a study",
            hint=f"put the lines {begin} and {end} there",
        )
    before, _, rest = old.partition(begin)
    block = "\n".join([begin, "", *_body(document, picture), "", end])
    write_text(path, before + block + rest.partition(end)[2])
    return [path, *([picture] if picture else [])]


def _body(document: Mapping[str, Any], picture: Path | None) -> list[str]:
    lines = [*_settings(document), "", *_targets(document)]
    block = document["settings"]["probe"]["block"]
    for metric, way in _WAYS.items():
        table = Table(document, metric)
        lines += ["", f"**By kind of evolution, {way}**", "", *_kinds(table, block)]
        if metric == "coupled" and picture:
            lines += ["", f"![accepted of a block, by kind of evolution]({picture.name})"]
    for metric, way in _WAYS.items():
        table = Table(document, metric)
        lines += ["", f"**Every policy: accepted of {block}, {way}**", "", *_table(table)]
    if sizes := _bytes(document):
        lines += ["", "**What a device downloads**", "", *sizes]
    claims = _claims(document)
    return [*lines, "", "**The claims**", "", *claims] if claims else lines


def _settings(document: Mapping[str, Any]) -> list[str]:
    s, m = document["settings"], document["machine"]
    b, p = s["budget"], s["probe"]
    trainings = document.get("trainings", {})
    # What a teacher read is inside of the first training that asked for it.
    spent = sum(
        row["cpu_seconds"] for name, row in trainings.items() if name[:5] != "rows."
    )
    seeds = f"{len(b['seeds'])} seeds for every draft trained here; "
    lines = [
        f"Base {s['base']}; {seeds if any('frozen.' in n for n in trainings) else ''}"
        f"{p['prompts']} held-out prompts of {p['prompt_tokens']} tokens for each target "
        f"and kind of text, continued by {p['count']} tokens; blocks of {p['block']}. "
        "Brackets are 95 % intervals: one resampling of the prompts shared by all "
        "comparisons, Student's t over seeds, everything paired.",
        "",
    ]
    rows = []
    for kind, name in {
        "frozen": "frozen draft",
        "independent.1x": "independent draft, equal compute",
        f"independent.{b['long']:g}x": f"independent draft, {b['long']:g} times",
        "target": "evolved target",
    }.items():
        if found := [row for n, row in trainings.items() if n.startswith(kind + ".")]:
            tokens = sorted({row["tokens"] for row in found})
            span = " to ".join(f"{n:,}" for n in dict.fromkeys((tokens[0], tokens[-1])))
            flops = found[0].get("flops")
            # The first one of a kind may have waited for the teacher.
            seconds = median(row["cpu_seconds"] for row in found)
            work = f"{flops / 1e12:.1f} Tflop" if flops else "-"
            rows.append((name, span, work, f"{seconds:.0f}"))
    lines += markdown(
        ["trained", "tokens each", "arithmetic each", "CPU seconds each"], rows
    )
    return [
        *lines,
        "",
        f"All trainings together: {spent / 60:.1f} CPU minutes on one core of a shared "
        f"{m['cores']}-core {m['processor']} machine, torch {m['torch']}, {m['date']}.",
    ]


def _targets(document: Mapping[str, Any]) -> list[str]:
    heads = ["target", "kind of evolution", "reads", "held-out loss (base)", "KL to base"]
    rows = []
    for name in ["base", *Table(document).evolved]:
        entry = document["targets"][name]
        for domain, row in entry["domains"].items():
            kind = "-" if name == "base" else KINDS[_kind(entry)]
            losses = f"{row['loss']:.3f} ({row['base_loss']:.3f})"
            distinct = f"{row['distinct_4_greedy']:.2f} / {row['distinct_4_sampled']:.2f}"
            rows.append((name, kind, domain, losses, f"{row['kl_to_base']:.3f}", distinct))
    return markdown([*heads, "distinct 4-grams, greedy / sampled"], rows)


def _kind(entry: Mapping[str, Any]) -> str:
    """Return how a target evolved; the documents of 2026-11-22 say less."""
    return str(entry.get("kind") or ("free" if entry["free"] else "text"))


def _kinds(table: Table, block: int) -> list[str]:
    """Return a row for each evolved target and draft, by kind."""
    first = Table(table.document, f"{table.metric}_first")
    heads = ["kind of evolution", "target", "KL", "draft", f"accepted of {block}"]
    rows = []
    order = list(KINDS)
    targets = table.document["targets"]
    for name in sorted(table.evolved, key=lambda n: order.index(_kind(targets[n]))):
        head = [KINDS[_kind(targets[name])], name, f"{table.divergence(name):.3f}"]
        for arm in _ONES:
            both = [(t.cell([name], arm), t.retention(name, arm)) for t in (table, first)]
            if both[0][0] is not None:
                cells = [_text(cell) for pair in both for cell in pair]
                rows.append([*head, ARM_NAMES[arm], *cells])
                head = [" | | "]  # three empty cells
    return markdown([*heads, "kept of the base's", "first draft accepted", "kept"], rows)


def _table(table: Table) -> list[str]:
    arms = [a for a in ARM_NAMES if any(table.cell([n], a) for n in table.evolved)]
    groups = {name: [name] for name in ["base", *table.evolved]}
    groups["mean of evolved"] = table.evolved
    rows = [[t, *(_text(table.cell(n, arm)) for arm in arms)] for t, n in groups.items()]
    return markdown(["target", *(ARM_NAMES[arm] for arm in arms)], rows)


def _text(cell: Cell | None) -> str:
    return "-" if cell is None else cell.text()


def _bytes(document: Mapping[str, Any]) -> list[str]:
    if "bytes" not in document:
        return []
    greedy, coupled = (Table(document, m) for m in _WAYS)
    count = len(greedy.evolved)
    draft, base, part = (
        document["bytes"][k] / 1e6 for k in ("draft", "base_as_draft", "trained_part")
    )
    heads = ["policy", f"MB after {count} versions", "accepted, greedy", "accepted, T = 1"]
    rows = []
    for arm, name in ARM_NAMES.items():
        cells = [_text(t.cell(t.evolved, arm)) for t in (greedy, coupled)]
        size = f"{base if arm == 'stale' else draft:.1f}"
        if arm == "retrained":
            size = f"{draft + count * draft:.1f}, trained part {draft + count * part:.1f}"
        if cells != ["-", "-"]:
            rows.append([name, size, *cells])
    note = "int8 packages as exported; the trained part at one byte a weight."
    return [*markdown(heads, rows), "", note]


def _claims(document: Mapping[str, Any]) -> list[str]:
    tables = {m: Table(document, m) for m in _WAYS}
    lines: list[str] = []

    def claim(words: str, better: str, cells: Mapping[str, Cell | None]) -> None:
        known = {m: c for m, c in cells.items() if c is not None}
        signs = {c.sign for c in known.values()}
        if not known:
            return
        verdict = "mixed" if {-1, 1} <= signs else "not established"
        for sign, word in ((1, "confirmed"), (-1, "refuted")):
            if sign in signs and -sign not in signs:
                verdict = f"in part {word}" if 0 in signs else word
        numbers = ", ".join(f"{m} {c.text()}" for m, c in known.items())
        lines.append(f"- **{words}: {verdict}.** {better}: {numbers}.")

    evolved = tables["greedy"].evolved

    def less(one: str, other: str) -> dict[str, Cell | None]:
        return {m: t.difference(evolved, one, other) for m, t in tables.items()}

    pairs = (
        ("independent", "At equal compute the shared backbone beats an independent draft"),
        ("long", "It still does when the independent draft gets more compute"),
    )
    for other, words in pairs:
        better = f"Frozen less {ARM_NAMES[other]}, accepted of a block"
        claim(words, better, less("frozen", other))
        each = [(n, tables["coupled"].difference([n], "frozen", other)) for n in evolved]
        words = "; ".join(f"{name} {cell.text()}" for name, cell in each if cell)
        if words:
            lines.append(f"  By target at T = 1: {words}.")
    words = "A suffix cache helps the frozen draft follow"
    claim(words, "With the cache less without", less("suffix", "frozen"))
    words = "A frozen draft is as good as one re-trained for each version"
    claim(words, "Frozen less re-trained", less("frozen", "retrained"))
    return lines + _anchors(document, tables)


def _anchors(document: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    lines = []
    targets = document["targets"]
    for name in tables["greedy"].evolved:
        twin = name + "-free"
        if twin not in targets:
            continue
        parts = []
        for metric, table in tables.items():
            own = table.between(name, twin, "frozen")
            ceiling = table.between(name, twin, "stale")
            if own is not None:
                words = f"{metric} {own.text()}"
                words += f" (ceiling {ceiling.text()})" if ceiling is not None else ""
                parts.append(words)
        losses = [next(iter(targets[n]["domains"].values()))["loss"] for n in (name, twin)]
        lines.append(
            f"- **Freezing the anchor, {name}**: frozen draft against the target with "
            f"the anchor frozen less with it trained: {', '.join(parts)}. The target's "
            f"own loss is {losses[0]:.3f} with the anchor frozen, {losses[1]:.3f} with it "
            "trained: the freedom bought the target that much."
        )
    return lines


def draw(document: Mapping[str, Any], path: Path) -> Path | None:
    """Draw acceptance over how far a target went from the base, by kind of evolution.

    Returns:
        The picture, or None where there is nothing to draw.

    Raises:
        ConfigError: matplotlib is not there, or the picture cannot be written.
    """
    points = [
        (axes, arm, name, table.divergence(name), cell)
        for axes, table in enumerate(Table(document, metric) for metric in _WAYS)
        for arm in _ONES
        for name in document["targets"]
        if name != "base" and (cell := table.cell([name], arm)) is not None
    ]
    if not points:
        return None
    with picture(path) as plt:
        # The legend stands beside the panels.
        plt.rcParams.update({"savefig.bbox": "tight", "savefig.dpi": 110})
        figure, panels = plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True)
        drawn = set()
        for at, arm, name, divergence, cell in points:
            kind = _kind(document["targets"][name])
            colour = f"C{list(KINDS).index(kind)}"
            label = f"{KINDS[kind]}: {ARM_NAMES[arm]}"
            panels[at].errorbar(
                [divergence],
                [cell.mean],
                yerr=[[cell.mean - cell.low], [cell.high - cell.mean]],
                fmt=_ONES[arm],
                color=colour,
                markerfacecolor="none" if arm == "independent" else colour,
                elinewidth=0.7,
                label=None if label in drawn else label,
            )
            drawn.add(label)
        for axes, way in zip(panels, _WAYS.values()):
            axes.set(xscale="log", xlabel="KL to the base, nats a token", title=way)
        panels[0].set_ylabel("accepted of a block")
        figure.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return path
