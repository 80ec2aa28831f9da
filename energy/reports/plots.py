"""Pictures for papers: the power trace by phase, joules by phase, the Pareto chart."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from draftwire.energy.reports.rows import Row
from draftwire.energy.reports.text import stated
from draftwire.energy.reports.trace import Trace, colour_of, trace_of_row
from draftwire.errors import ConfigError
from draftwire.io import significant, write_whole

STYLE = Path(__file__).with_name("draftwire.mplstyle")
FORMATS = (".png", ".pdf", ".svg")
INK = "#222222"
_WHISKER = {"fmt": "none", "ecolor": INK, "lw": 0.8}


def check_picture(path: Path) -> None:
    """See that a picture can be drawn and its name ends as one (ConfigError: it cannot)."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: pictures end in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        hint = "pip install 'draftwire[plots]'"
        raise ConfigError("plots need matplotlib", hint=hint) from exc


@contextlib.contextmanager
def picture(path: Path) -> Iterator[Any]:
    """Give pyplot in our style for the block, then write its current figure to ``path``;
    a ConfigError without matplotlib, or for a path that cannot be written."""
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.style.context(STYLE):
        try:
            yield pyplot
            figure = pyplot.gcf()
            figure.tight_layout(w_pad=2.0)
            write_whole(path, lambda temporary: figure.savefig(temporary))
        finally:
            pyplot.close()


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the power trace of one row by phase, or bars when there are several; a
    ConfigError for nothing to draw, scopes that differ, or no matplotlib."""
    trace = trace_of_row(rows[0]) if len(rows) == 1 else None
    if trace is None:
        _plot_bars(rows, path)
        return
    told = {p: j for p, j in (rows[0].by_phase_j or {}).items() if j is not None}
    with picture(path) as plt:
        if len(told) > 1:
            ratios = {"width_ratios": (2.7, 1)}
            _, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), gridspec_kw=ratios)
            _draw_phases(right, trace, rows[0], told)
        else:
            left = plt.subplots(figsize=(7.2, 2.9))[1]
        _draw_trace(left, trace, rows[0])


def _draw_trace(axes: Any, trace: Trace, row: Row) -> None:
    pieces, shown = trace.pieces(), set()

    def once(label: str, legend: bool = True) -> str | None:
        new = legend and label not in shown
        shown.add(label)
        return label if new else None

    for phase, x, y in trace.areas(pieces):
        look = {"color": colour_of(phase, trace.phases), "alpha": 0.55, "linewidth": 0}
        axes.fill_between(x, y, label=once(phase, len(trace.phases) > 1), **look)
    for at, watt in pieces:
        axes.plot(at, watt, color=INK, linewidth=0.9)
    for start, end, low, high in trace.holes:
        box = [start, end], [low, low], [high, high]
        look = {"facecolor": "none", "edgecolor": "#999999", "hatch": "////"}
        axes.fill_between(*box, linewidth=0.4, label=once("no sample"), **look)
    if pieces and row.mean_w is not None:
        axes.axhline(row.mean_w, color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        text, place = f"mean\n{row.mean_w:.2f} W", (1.0, row.mean_w)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
        style.update(xycoords=("axes fraction", "data"), va="center")
        axes.annotate(text, place, xytext=(3, 0), **style)
    if not pieces:
        for rail, values in trace.rails_w.items():
            axes.plot(trace.t_s, values, linewidth=0.9, label=rail)
        axes.legend(loc="upper right")
    axes.set_xlim(0, trace.end_s)
    axes.set_ylim(bottom=min(0.0, float(np.nanmin(trace.total_w)) if pieces else 0.0))
    if pieces:
        axes.set_ylim(top=float(np.nanmax(trace.total_w)) * 1.18)
    axes.set_xlabel("time (s)")
    axes.set_ylabel(f"power, {trace.scope} (W)" if trace.scope else "power by rail (W)")
    energy = stated(row.energy_j, row.uncertainty_j, row).replace("+-", "\u00b1")
    kind = ", MODELLED" if row.kind == "modelled" else ""
    if row.coverage is not None and row.coverage < 0.9995:
        kind += f", {100 * row.coverage:.1f} % covered"
    none = f"no joules: {row.why_null}"[:80]
    told = row.energy_j is not None
    axes.set_title(f"{energy}  ({row.source}, {row.scope}{kind})" if told else none)
    if len(shown) > 1:
        columns = min(len(shown), 6)
        axes.legend(loc="upper left", ncols=columns, handlelength=1.0, columnspacing=1.0)


def _draw_phases(axes: Any, trace: Trace, row: Row, told: dict[str, float]) -> None:
    told = dict(sorted(told.items(), key=lambda item: item[1]))
    places, values = np.arange(len(told)), list(told.values())
    colours = [colour_of(phase, trace.phases) for phase in told]
    halves = [row.phase_uncertainty_j.get(phase) or 0.0 for phase in told]
    axes.barh(places, values, color=colours, alpha=0.85, height=0.65)
    axes.errorbar(values, places, xerr=halves, capsize=2, **_WHISKER)
    axes.set_yticks(places, list(told))
    axes.set_xlabel("energy (J)")
    axes.grid(axis="y", visible=False)
    for place, value, half in zip(places, values, halves):
        text = f" {significant(value)}, {100 * value / (row.energy_j or 1.0):.0f} %"
        axes.annotate(text, (max(value + half, 0), place), va="center", fontsize=8)
    axes.set_xlim(min(0.0, min(values)), max(v + h for v, h in zip(values, halves)) * 1.8)
    axes.set_title("by phase, 95 %")


def _plot_bars(rows: Sequence[Row], path: Path) -> None:
    """Draw joules of several runs with their uncertainty, phases stacked."""
    known = [row for row in rows if row.energy_j is not None]
    if not known:
        raise ConfigError("no run has joules: there is nothing to draw")
    scopes = sorted({str(row.scope) for row in known})
    if len(scopes) > 1:
        raise ConfigError(
            f"scopes differ: {', '.join(scopes)}: their bars cannot stand side by side",
            hint="one picture for each scope, or --scope for all",
        )
    parts = [dict(row.by_phase_j or {}) for row in known]
    if not all(parts) or any(None in part.values() for part in parts):
        parts = [{"run": row.energy_j} for row in known]
    phases = list(dict.fromkeys(phase for part in parts for phase in part))
    with picture(path) as plt:
        _, axes = plt.subplots(figsize=(max(3.5, 0.9 * len(known) + 1.8), 3.2))
        places, base = np.arange(len(known)), np.zeros(len(known))
        for phase in phases:
            heights = np.array([part.get(phase) or 0.0 for part in parts])
            colour = colour_of(phase, phases)
            axes.bar(places, heights, 0.62, bottom=base, color=colour, label=phase)
            base += heights
        errors = [row.uncertainty_j or 0.0 for row in known]
        totals = [row.energy_j for row in known]
        axes.errorbar(places, totals, errors, capsize=3, **_WHISKER)
        names = [Path(row.file).stem for row in known]
        look = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"}
        wide = len(known) > 3 or max(map(len, names)) > 10
        axes.set_xticks(places, names, **(look if wide else {}))
        only = any(row.resolution_only for row in known)
        axes.set_ylabel(f"energy, {scopes[0]} (J)")
        axes.set_title("whiskers: 95 %" + (", resolution only" if only else ""))
        axes.grid(axis="x", visible=False)
        if len(phases) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def plot_pareto(points: Sequence[dict[str, Any]], path: Path, *, per: str) -> None:
    """Draw energy against time of each power mode, the Pareto front joined; ``per``: what
    both are per, ``"run"`` or ``"emitted token"``."""
    known = [point for point in points if point["energy_j"] is not None]
    if not known:
        raise ConfigError("no mode has joules: there is nothing to draw")
    known.sort(key=lambda point: (point["seconds"], point["energy_j"]))
    front = [(p["seconds"], p["energy_j"]) for p in known if p["pareto"]]
    with picture(path) as plt:
        _, axes = plt.subplots(figsize=(4.4, 3.3))
        line = {"color": "#0072B2", "linewidth": 1.2, "zorder": 1}
        axes.plot(*zip(*front), label="front: not surely beaten", **line)
        for place, point in enumerate(known):
            at = (point["seconds"], point["energy_j"])
            mark, colour = ("o", "#0072B2") if point["pareto"] else ("s", "#999999")
            half_j, half_s = (point.get(f"uncertainty_{u}") or 0.0 for u in "js")
            style = {"ms": 5.5, "capsize": 3, "lw": 1.0, "zorder": 2}
            axes.errorbar(*at, half_j, half_s, fmt=mark, color=colour, **style)
            # By turns to the upper right and the lower left: neighbours keep apart.
            side, across, along = (
                (-1, "right", "top") if place % 2 else (1, "left", "bottom")
            )
            look = {"textcoords": "offset points", "fontsize": 8, "ha": across, "va": along}
            axes.annotate(point["mode"], at, xytext=(6 * side, 5 * side), **look)
        axes.set_xlabel(f"time per {per} (s)")
        axes.set_ylabel(f"energy per {per} (J)")
        axes.margins(x=0.22, y=0.18)
        axes.set_title("power modes, whiskers: 95 %")
        axes.legend(loc="best")
