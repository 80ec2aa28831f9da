"""A study of evolving targets as tables, verdicts and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from draftwire.errors import ConfigError
from draftwire.io import write_text, write_whole
from studies.evolve.stats import Cell, Table, read_table

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
ARM_NAMES = {
    "frozen": "frozen draft",
    "suffix": "frozen + suffix cache",
    "independent": "independent, equal compute",
    "long": "independent, more compute",
    "stale": "stale base (ceiling)",
    "retrained": "re-trained each time",
}
_COLOURS = {
    "frozen": "#1f5a96",
    "suffix": "#3aa0c8",
    "independent": "#c9a227",
    "long": "#b3541e",
    "stale": "#777777",
    "retrained": "#3d8a4d",
}
_METRICS = {
    "greedy": "accepted of {block}, greedy",
    "coupled": "accepted of {block}, T = 1 (coupled noise)",
    "overlap": "sum min(p, q) at T = 1",
}


def render(document: Mapping[str, Any]) -> str:
    """Return the tables as text for a terminal."""
    return "\n".join(_body(document, pictures={}))


def write_markdown(document: Mapping[str, Any], path: Path) -> list[Path]:
    """Put tables, verdicts and pictures between the marks of a Markdown file.

    Args:
        document: The study's document.
        path: The file; what stands outside of the marks is kept. Pictures go beside
            it.

    Returns:
        What was written.

    Raises:
        ConfigError: matplotlib is not there, or the file cannot be written.
    """
    pictures = draw(document, path.parent, path.stem)
    block = "\n".join([BEGIN, "", *_body(document, pictures), "", END])
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
        if BEGIN not in old or END not in old:
            raise ConfigError(
                f"{path} has no place for a study",
                hint=f"put the lines {BEGIN} and {END} there",
            )
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    before, _, rest = old.partition(BEGIN)
    write_text(path, before + block + rest.partition(END)[2])
    return [path, *pictures.values()]


def _body(document: Mapping[str, Any], pictures: Mapping[str, Path]) -> list[str]:
    lines = [*_settings(document), "", *_targets(document)]
    block = document["settings"]["probe"]["block"]
    for metric, words in _METRICS.items():
        table = read_table(document, metric)
        title = words.format(block=block)
        lines += ["", f"### {title[0].upper()}{title[1:]}", ""]
        lines += _table(table)
        if metric in pictures:
            lines += ["", f"![{title}]({pictures[metric].name})"]
    lines += ["", "### What a device downloads", "", *_bytes(document)]
    if "bytes" in pictures:
        lines += ["", f"![acceptance over download]({pictures['bytes'].name})"]
    lines += ["", "### The claims", "", *_claims(document)]
    return lines


def _settings(document: Mapping[str, Any]) -> list[str]:
    s, m = document["settings"], document["machine"]
    b, p = s["budget"], s["probe"]
    trainings = document.get("trainings", {})
    cost = {
        kind: [row for name, row in trainings.items() if name.startswith(kind + ".")]
        for kind in ("frozen", "independent.1x", f"independent.{b['long']:g}x", "target")
    }
    # What a teacher read is inside of the first training that asked for it.
    spent = sum(
        row["cpu_seconds"] for name, row in trainings.items() if name[:5] != "rows."
    )
    lines = [
        f"Base {s['base']}; {len(b['seeds'])} seeds for every draft; "
        f"{p['prompts']} held-out prompts of {p['prompt_tokens']} tokens for each target "
        f"and kind of text, continued by {p['count']} tokens; blocks of {p['block']}. "
        "Brackets are 95 % bootstrap intervals over seeds and prompts.",
        "",
        "| trained | tokens each | arithmetic each | CPU seconds each |",
        "|---|---|---|---|",
    ]
    names = {
        "frozen": "frozen draft",
        "independent.1x": "independent draft, equal compute",
        f"independent.{b['long']:g}x": f"independent draft, {b['long']:g} times",
        "target": "evolved target (LoRA)",
    }
    for kind, rows in cost.items():
        if rows:
            tokens = sorted({row["tokens"] for row in rows})
            span = f"{tokens[0]:,}"
            span += f" to {tokens[-1]:,}" if len(tokens) > 1 else ""
            flops = rows[0].get("flops")
            # The first one of a kind may have waited for the teacher.
            seconds = median(row["cpu_seconds"] for row in rows)
            work = f"{flops / 1e12:.1f} Tflop" if flops else "-"
            lines.append(f"| {names[kind]} | {span} | {work} | {seconds:.0f} |")
    lines += [
        "",
        f"All trainings together: {spent / 60:.0f} CPU minutes on one core of a shared "
        f"{m['cores']}-core {m['processor']} machine, torch {m['torch']}, {m['date']}.",
    ]
    return lines


def _targets(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "| target | reads | anchor | held-out loss (base) | KL to base "
        "| distinct 4-grams, greedy / sampled |",
        "|---|---|---|---|---|---|",
    ]
    order = read_table(document, "greedy").evolved
    for name in ["base", *order]:
        entry = document["targets"][name]
        for domain, row in entry["domains"].items():
            anchor = "-" if name == "base" else "trained" if entry["free"] else "frozen"
            lines.append(
                f"| {name} | {domain} | {anchor} | {row['loss']:.3f} "
                f"({row['base_loss']:.3f}) | {row['kl_to_base']:.3f} "
                f"| {row['distinct_4_greedy']:.2f} / {row['distinct_4_sampled']:.2f} |"
            )
    return lines


def _table(table: Table) -> list[str]:
    arms = table.arms
    lines = [
        "| target | " + " | ".join(ARM_NAMES[a] for a in arms) + " |",
        "|---|" + "---|" * len(arms),
    ]
    for name in ["base", *table.evolved]:
        cells = [_text(table.cell([name], arm)) for arm in arms]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [_text(table.cell(table.evolved, arm)) for arm in arms]
    lines.append("| mean of evolved | " + " | ".join(cells) + " |")
    return lines


def _text(cell: Cell | None) -> str:
    return "-" if cell is None else cell.text()


def downloads(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the MB that a device has downloaded after all versions, by arm."""
    sizes = document.get("bytes", {})
    if not sizes:
        return {}
    count = sum(1 for name in document["targets"] if name != "base")
    draft, base, part = (sizes[k] / 1e6 for k in ("draft", "base_as_draft", "trained_part"))
    found = {
        "frozen": draft,
        "suffix": draft,
        "independent": draft,
        "long": draft,
        "stale": base,
        "retrained": draft + count * draft,
        "retrained, as a delta": draft + count * part,
    }
    return found


def _bytes(document: Mapping[str, Any]) -> list[str]:
    found = downloads(document)
    if not found:
        return ["Not measured."]
    greedy, coupled = (read_table(document, m) for m in ("greedy", "coupled"))
    count = len(greedy.evolved)
    lines = [
        f"| policy | MB after {count} versions | accepted, greedy | accepted, T = 1 |",
        "|---|---|---|---|",
    ]
    for policy, size in found.items():
        arm = policy.partition(",")[0]
        cells = [_text(t.cell(t.evolved, arm)) for t in (greedy, coupled)]
        name = ARM_NAMES[arm] + (" (trained part only)" if "delta" in policy else "")
        lines.append(f"| {name} | {size:.1f} | {cells[0]} | {cells[1]} |")
    lines += [
        "",
        "int8 packages as exported; the trained part at one byte a weight. The suffix "
        "cache costs nothing to download; it fills from what the device has seen.",
    ]
    return lines


def _claims(document: Mapping[str, Any]) -> list[str]:
    tables = {m: read_table(document, m) for m in ("greedy", "coupled")}
    lines: list[str] = []

    def claim(words: str, better: str, cells: Mapping[str, Cell | None]) -> None:
        known = {m: c for m, c in cells.items() if c is not None}
        signs = {c.sign for c in known.values()}
        if not known:
            verdict = "not measured"
        elif signs == {1}:
            verdict = "confirmed"
        elif signs == {-1}:
            verdict = "refuted"
        elif -1 in signs and 1 in signs:
            verdict = "mixed"
        elif 1 in signs or -1 in signs:
            verdict = "in part"
            verdict += " confirmed" if 1 in signs else " refuted"
        else:
            verdict = "not established"
        numbers = ", ".join(f"{m} {c.text()}" for m, c in known.items())
        lines.append(f"- **{words}: {verdict}.** {better}: {numbers}.")

    evolved = tables["greedy"].evolved
    pairs = (
        ("independent", "At equal compute the shared backbone beats an independent draft"),
        ("long", "It still does when the independent draft gets more compute"),
    )
    for other, words in pairs:
        cells = {m: t.difference(evolved, "frozen", other) for m, t in tables.items()}
        claim(words, f"Frozen less {ARM_NAMES[other]}, accepted of a block", cells)
        better: list[str] = []
        worse: list[str] = []
        for name in evolved:
            cell = tables["coupled"].difference([name], "frozen", other)
            if cell is not None and cell.sign:
                (better if cell.sign > 0 else worse).append(name)
        if better or worse:
            lines.append(
                f"  By target at T = 1: ahead on {', '.join(better) or 'none'}; behind on "
                f"{', '.join(worse) or 'none'}; the others do not differ."
            )
    cells = {m: t.difference(evolved, "suffix", "frozen") for m, t in tables.items()}
    claim(
        "A suffix cache helps the frozen draft follow",
        "With the cache less without",
        cells,
    )
    cells = {m: t.difference(evolved, "frozen", "retrained") for m, t in tables.items()}
    claim(
        "A frozen draft is as good as one re-trained for each version",
        "Frozen less re-trained",
        cells,
    )
    lines += _anchors(document, tables)
    lines += _ageing(tables)
    return lines


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


def _ageing(tables: Mapping[str, Table]) -> list[str]:
    lines = ["- **Ageing**, acceptance against each target over that against the base on "]
    lines[0] += "the same kind of text (1 is no ageing):"
    for name in tables["greedy"].evolved:
        parts = []
        for metric, table in tables.items():
            cell = table.retention(name, "frozen")
            if cell is not None:
                parts.append(f"{metric} {cell.text()}")
        where = f"KL {tables['greedy'].divergence(name):.3f}"
        kept = ", ".join(parts) or "the base never saw this kind of text"
        lines.append(f"  - {name} ({where}): {kept}")
    return lines


def draw(document: Mapping[str, Any], folder: Path, stem: str) -> dict[str, Path]:
    """Draw acceptance by target, and over what is downloaded.

    Returns:
        The pictures, by metric and "bytes".

    Raises:
        ConfigError: matplotlib is not there, or a picture cannot be written.
    """
    try:
        import matplotlib
    except ImportError as exc:
        raise ConfigError(
            "pictures need matplotlib", hint="pip install 'draftwire[plots]'"
        ) from exc
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found: dict[str, Path] = {}
    block = document["settings"]["probe"]["block"]

    def keep(figure: Any, kind: str) -> None:
        path = folder / f"{stem}-{kind}.png"
        figure.tight_layout()
        try:
            write_whole(path, lambda to: figure.savefig(to, format="png", dpi=110))
        finally:
            pyplot.close(figure)
        found[kind] = path

    for metric in ("greedy", "coupled"):
        figure, axes = pyplot.subplots(figsize=(9.2, 4.6))
        _draw_targets(axes, read_table(document, metric), block, metric)
        keep(figure, metric)
    if downloads(document):
        figure, axes = pyplot.subplots(figsize=(7.2, 3.6))
        _draw_bytes(axes, document, block)
        keep(figure, "bytes")
    return found


def _draw_targets(axes: Any, table: Table, block: int, metric: str) -> None:
    names = ["base", *table.evolved]
    width = 0.8 / max(1, len(table.arms))
    for number, arm in enumerate(table.arms):
        places, cells = [], []
        for place, name in enumerate(names):
            cell = table.cell([name], arm)
            if cell is not None:
                places.append(place - 0.4 + (number + 0.5) * width)
                cells.append(cell)
        axes.bar(
            places,
            [c.mean for c in cells],
            width * 0.92,
            color=_COLOURS[arm],
            label=ARM_NAMES[arm],
            yerr=[[c.mean - c.low for c in cells], [c.high - c.mean for c in cells]],
            error_kw={"elinewidth": 0.7, "ecolor": "#222222"},
        )
    labels = [f"{n}\nKL {table.divergence(n):.2f}" for n in names]
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_ylabel(_METRICS[metric].format(block=block))
    axes.set_ylim(0, block)
    axes.legend(
        fontsize=8, ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bytes(axes: Any, document: Mapping[str, Any], block: int) -> None:
    sizes = downloads(document)
    table = read_table(document, "coupled")
    for policy, size in sizes.items():
        arm, _, delta = policy.partition(",")
        cell = table.cell(table.evolved, arm)
        if cell is None:
            continue
        axes.errorbar(
            [size],
            [cell.mean],
            yerr=[[cell.mean - cell.low], [cell.high - cell.mean]],
            fmt="D" if delta else "o",
            color=_COLOURS[arm],
            capsize=2,
            label=ARM_NAMES[arm] + (", trained part only" if delta else ""),
        )
    axes.set_xlim(0, 1.08 * max(sizes.values()))
    axes.set_xlabel(f"MB downloaded by a device after {len(table.evolved)} versions")
    axes.set_ylabel(f"accepted of {block}, T = 1")
    axes.set_ylim(0, None)
    axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
