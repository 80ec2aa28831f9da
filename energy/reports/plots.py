"""Pictures for papers: the power trace by phase, joules by phase, the Pareto chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np

from draftwire.energy.reports.rows import Row
from draftwire.energy.reports.text import stated
from draftwire.energy.reports.trace import Trace, colour_of
from draftwire.errors import ConfigError
from draftwire.io import significant, write_whole

__all__ = ["plot_pareto", "plot_rows", "plot_trace"]

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
FORMATS = (".png", ".pdf", ".svg")


def plot_trace(trace: Trace, row: Row, path: Path) -> None:
    """Draw power over time coloured by phase, and joules by phase beside it.

    Args:
        trace: From ``trace_of``.
        row: The result of the same recording.
        path: Ends in .png, .pdf or .svg.

    Raises:
        ConfigError: matplotlib is not there, or the path has another ending.
    """
    plt = _pyplot(path)
    bars = sum(joules is not None for joules in (row.by_phase_j or {}).values()) > 1
    with plt.rc_context(STYLE):
        if bars:
            figure, (left, right) = plt.subplots(
                1, 2, figsize=(7.2, 2.9), gridspec_kw={"width_ratios": (2.7, 1)}
            )
        else:
            figure, left = plt.subplots(figsize=(7.2, 2.9))
            right = None
        _draw_trace(left, trace, row)
        if right is not None:
            _draw_phases(right, trace, row)
        figure.tight_layout(w_pad=2.0)
        _save(figure, plt, path)


def _draw_trace(axes: Any, trace: Trace, row: Row) -> None:
    t, w = trace.t_s, trace.total_w
    known = bool(np.isfinite(w).any())
    shown = set()
    if known:
        for start, end, phase in trace.spans:
            colour = colour_of(phase, trace.phases)
            for at, watt in trace.pieces():
                # The fill ends on the span's own edges, not on the nearest sample.
                a, b = max(start, at[0]), min(end, at[-1])
                if b <= a:
                    continue
                inside = (at > a) & (at < b)
                x = np.concatenate([[a], at[inside], [b]])
                label = phase if phase not in shown and len(trace.phases) > 1 else None
                shown.add(phase)
                y = np.interp(x, at, watt)
                axes.fill_between(x, y, color=colour, alpha=0.55, linewidth=0, label=label)
        for at, watt in trace.pieces():
            axes.plot(at, watt, color="#222222", linewidth=0.9)
        for place, (start, end, low, high) in enumerate(trace.holes):
            axes.fill_between(
                [start, end],
                [low, low],
                [high, high],
                facecolor="none",
                edgecolor="#999999",
                hatch="////",
                linewidth=0.4,
                label="no sample" if place == 0 else None,
            )
            shown.add("no sample")
        if row.mean_w is not None:
            axes.axhline(row.mean_w, color="#222222", linewidth=0.7, linestyle=(0, (4, 3)))
            axes.annotate(
                f"mean\n{row.mean_w:.2f}",
                (1.0, row.mean_w),
                xycoords=("axes fraction", "data"),
                xytext=(3, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                fontsize=8,
            )
    else:
        for rail, values in trace.rails_w.items():
            axes.plot(t, values, linewidth=0.9, label=rail)
        axes.legend(loc="upper right")
    axes.set_xlim(0, max(t[-1], trace.spans[-1][1]))
    low = float(np.nanmin(w)) if known else 0.0
    axes.set_ylim(bottom=min(0.0, low))
    if known:
        axes.set_ylim(top=float(np.nanmax(w)) * 1.18)
    axes.set_xlabel("time (s)")
    axes.set_ylabel(f"power, {trace.scope} (W)" if trace.scope else "power by rail (W)")
    axes.set_title(_title(row))
    if len(shown) > 1:
        axes.legend(
            loc="upper left",
            ncols=min(len(shown), 6),
            handlelength=1.0,
            columnspacing=1.0,
        )


def _title(row: Row) -> str:
    if row.energy_j is None:
        return f"no joules: {row.why_null}"[:80]
    energy = stated(row.energy_j, row.uncertainty_j, row).replace("+-", "\u00b1")
    kind = ", MODELLED" if row.kind == "modelled" else ""
    return f"{energy}  ({row.source}, {row.scope}{kind})"


def _draw_phases(axes: Any, trace: Trace, row: Row) -> None:
    told = {p: j for p, j in (row.by_phase_j or {}).items() if j is not None}
    by_phase = dict(sorted(told.items(), key=lambda item: item[1]))
    places = np.arange(len(by_phase))
    colours = [colour_of(phase, trace.phases) for phase in by_phase]
    values = list(by_phase.values())
    halves = [row.phase_uncertainty_j.get(phase) or 0.0 for phase in by_phase]
    axes.barh(places, values, color=colours, alpha=0.85, height=0.65)
    axes.errorbar(
        values, places, xerr=halves, fmt="none", ecolor="#222222", capsize=2, lw=0.8
    )
    axes.set_yticks(places, list(by_phase))
    axes.set_xlabel("energy (J)")
    axes.grid(axis="y", visible=False)
    whole = row.energy_j or 1.0
    for place, value, half in zip(places, values, halves):
        text = f" {significant(value)}, {100 * value / whole:.0f} %"
        axes.annotate(text, (max(value + half, 0), place), va="center", fontsize=8)
    axes.set_xlim(min(0.0, min(values)), max(v + h for v, h in zip(values, halves)) * 1.8)
    axes.set_title("by phase, 95 %")


def plot_rows(rows: Sequence[Row], path: Path) -> None:
    """Draw joules of several runs with their uncertainty, phases stacked.

    Raises:
        ConfigError: No run has joules, or matplotlib is not there.
    """
    plt = _pyplot(path)
    known = [row for row in rows if row.energy_j is not None]
    if not known:
        raise ConfigError("no run has joules: there is nothing to draw")
    scopes = sorted({str(row.scope) for row in known})
    if len(scopes) > 1:
        raise ConfigError(
            f"scopes differ: {', '.join(scopes)}: their bars cannot stand side by side",
            hint="one picture for each scope, or --scope for all",
        )
    told = all(None not in (row.by_phase_j or {}).values() for row in known)
    phases = list(dict.fromkeys(p for row in known for p in (row.by_phase_j or {})))
    phases = phases if told else []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(3.5, 0.9 * len(known) + 1.8), 3.2))
        places = np.arange(len(known))
        base = np.zeros(len(known))
        for phase in phases or ["run"]:
            heights = np.array(
                [
                    ((row.by_phase_j or {}).get(phase) if phases else row.energy_j) or 0.0
                    for row in known
                ]
            )
            colour = colour_of(phase, phases)
            axes.bar(places, heights, 0.62, bottom=base, color=colour, label=phase)
            base += heights
        errors = [row.uncertainty_j or 0.0 for row in known]
        totals = [row.energy_j for row in known]
        axes.errorbar(
            places, totals, errors, fmt="none", ecolor="#222222", capsize=3, lw=0.9
        )
        names = [Path(row.file).stem for row in known]
        axes.set_xticks(places, names, rotation=25 if len(known) > 3 else 0)
        only = any(row.resolution_only for row in known)
        axes.set_ylabel(f"energy, {scopes[0]} (J)")
        axes.set_title("bars: 95 %" + (", resolution only" if only else ""))
        axes.grid(axis="x", visible=False)
        if len(phases) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        _save(figure, plt, path)


def plot_pareto(points: Sequence[dict[str, Any]], path: Path, *, per: str) -> None:
    """Draw energy against time of each power mode; the Pareto front is joined.

    Args:
        points: ``mode``, ``seconds``, ``energy_j``, their half-widths, ``pareto``.
        path: Ends in .png, .pdf or .svg.
        per: What both are per, e.g. ``"run"`` or ``"emitted token"``.

    Raises:
        ConfigError: matplotlib is not there, or no point has joules.
    """
    plt = _pyplot(path)
    known = [point for point in points if point["energy_j"] is not None]
    if not known:
        raise ConfigError("no mode has joules: there is nothing to draw")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 3.3))
        front = sorted(
            (p for p in known if p["pareto"]), key=lambda point: point["seconds"]
        )
        axes.plot(
            [p["seconds"] for p in front],
            [p["energy_j"] for p in front],
            color="#0072B2",
            linewidth=1.2,
            zorder=1,
            label="Pareto front",
        )
        for point in known:
            best = point["pareto"]
            colour = "#0072B2" if best else "#999999"
            axes.errorbar(
                point["seconds"],
                point["energy_j"],
                point.get("uncertainty_j") or 0.0,
                xerr=point.get("uncertainty_s") or 0.0,
                fmt="o" if best else "s",
                color=colour,
                ms=5.5,
                capsize=3,
                lw=1.0,
                zorder=2,
            )
            axes.annotate(
                point["mode"],
                (point["seconds"], point["energy_j"]),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set_xlabel(f"time per {per} (s)")
        axes.set_ylabel(f"energy per {per} (J)")
        axes.margins(x=0.22, y=0.18)
        axes.set_title("power modes, bars: 95 %")
        axes.legend(loc="upper right")
        figure.tight_layout()
        _save(figure, plt, path)


def _pyplot(path: Path) -> Any:
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: pictures end in {', '.join(FORMATS)}")
    try:
        import matplotlib
    except ImportError as exc:
        raise ConfigError(
            "plots need matplotlib", hint="pip install 'draftwire[plots]'"
        ) from exc
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, plt: Any, path: Path) -> None:
    try:
        write_whole(path, lambda temporary: figure.savefig(temporary))
    finally:
        plt.close(figure)
