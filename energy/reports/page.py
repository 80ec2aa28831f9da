"""One self-contained HTML page: power trace coloured by phase, tables, every caveat.

No script from elsewhere, no font, no picture file: it opens on any machine, offline.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Sequence

import numpy as np

from draftwire.energy.reports.rows import Row
from draftwire.energy.reports.text import flat, per_token_text, phase_rows, stated
from draftwire.energy.reports.trace import Trace, colour_of
from draftwire.io import quantity, significant, write_text

__all__ = ["page", "write_page"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 920, 300, 56, 40, 12
POINTS = 1800


def write_page(
    entries: Sequence[tuple[Row, Trace | None]], path: Path, *, title: str
) -> None:
    """Write the page, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_text(path, page(entries, title=title))


def page(entries: Sequence[tuple[Row, Trace | None]], *, title: str) -> str:
    """Return the page as text."""
    body = [f"<h1>{_esc(title)}</h1>"]
    body.append(
        "<p class=dim>Uncertainties are 95 % half-widths from the sensor's data sheet "
        "and the samples, not from a calibration; where the sheet is not known they "
        "cover resolution and sampling only, and say so. Parts of a total are never "
        "added to it.</p>"
    )
    if len(entries) > 1:
        body += _bars([row for row, _ in entries])
    for row, trace in entries:
        body.append(_section(row, trace))
    body.append("<div id=tip></div>")
    records = json.dumps([flat(row) for row, _ in entries], allow_nan=False)
    data = records.replace("</", "<\\/")
    here = Path(__file__)
    style, script = (
        here.with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js")
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{_esc(title)}</title><style>{style}</style></head><body>"
        + "\n".join(body)
        + f'<script type="application/json" id=rows>{data}</script>'
        + f"<script>{script}</script></body></html>\n"
    )


def _section(row: Row, trace: Trace | None) -> str:
    name = Path(row.file).name
    parts = [f"<h2>{_esc(name)} <span class=dim>{_esc(row.label)}</span></h2>"]
    if row.energy_j is None:
        parts.append(f"<p><b>No joules.</b> {_esc(row.why_null or '')}</p>")
    else:
        energy = _pm(stated(row.energy_j, row.uncertainty_j, row))
        kind = "<span class=flag>modelled</span>" if row.kind == "modelled" else ""
        rails = f", {' + '.join(row.rails)}" if row.rails else ""
        parts.append(
            f"<div class=big>{energy}</div><div class=dim>"
            f"scope {_esc(row.scope or '-')}{_esc(rails)}, source "
            f"{_esc(row.source or '-')} {kind}</div>"
        )
    parts.append(_cards(row))
    if trace is not None:
        parts.append(_svg(trace, row))
        parts.append(_legend(trace))
    if len(row.by_phase_j or {}) > 1:
        parts.append(_phases(row, trace))
    parts += [f"<p>{_pm(line)}</p>" for line in per_token_text(row)]
    if row.by_rail_j and row.energy_j is not None:
        parts.append(_rails(row, trace))
    if row.terms:
        parts.append(_terms(row))
    if row.flags:
        flags = "".join(f"<span class=flag>{_esc(flag)}</span>" for flag in row.flags)
        parts.append(f"<p>{flags}</p>")
    parts += [f"<p class=dim>{_esc(note)}</p>" for note in row.notes]
    return "\n".join(parts)


def _cards(row: Row) -> str:
    covered = "-" if row.coverage is None else f"{100 * row.coverage:.1f} %"
    cards = [
        ("seconds", None if row.seconds is None else f"{row.seconds:.2f}"),
        ("covered by samples", covered),
        ("mean power", _pm(quantity(row.mean_w, row.mean_uncertainty_w, "W"))),
        ("highest sample", None if row.max_w is None else significant(row.max_w, "W")),
        ("samples", None if row.samples is None else str(row.samples)),
    ]
    if row.net_j is not None:
        net = stated(row.net_j, row.net_uncertainty_j, row)
        cards.append((f"net of {row.baseline_w:.3g} W idle", _pm(net)))
    if row.answers_per_wh and not row.open_ended:
        cards.append(("requests per Wh", f"{row.answers_per_wh:.4g}"))
    shown = [
        f"<div class=card><span class=dim>{name}</span><b>{value}</b></div>"
        for name, value in cards
        if value not in (None, "-")
    ]
    if row.power_mode:
        mode = _esc(row.power_mode)
        shown.append(
            f"<div class=card><span class=dim>power mode</span><b>{mode}</b></div>"
        )
    return f"<div class=cards>{''.join(shown)}</div>"


def _phases(row: Row, trace: Trace | None) -> str:
    names = trace.phases if trace is not None else list(row.by_phase_j or {})
    head = "".join(
        f"<th>{n}" for n in ("phase", "joules", "share", "seconds", "mean power")
    )
    lines = [f"<table><tr>{head}</tr>"]
    for phase, *cells in phase_rows(row):
        key = f'<span class=key style="background:{colour_of(phase, names)}"></span>'
        rest = "".join(f"<td>{_pm(cell)}" for cell in cells)
        lines.append(f"<tr><td>{key}{_esc(phase)}{rest}</tr>")
    whys = [f"{phase} is not told: {why}" for phase, why in row.phase_why.items()]
    return (
        "".join(lines) + "</table>" + "".join(f"<p class=dim>{_esc(w)}</p>" for w in whys)
    )


def _rails(row: Row, trace: Trace | None) -> str:
    lines = ["<table><tr><th>rail<th>joules<th>mean power<th>&nbsp;<th>over time</tr>"]
    for rail, joules in row.by_rail_j.items():
        watt = joules / row.seconds if row.seconds else None
        part = "in the total" if rail in row.rails else "beside it, or below"
        spark = "" if trace is None else _spark(trace, trace.rails_w.get(rail))
        lines.append(
            f"<tr><td>{_esc(rail)}<td>{significant(joules)}<td>{significant(watt, 'W')}"
            f"<td class=dim>{part}<td>{spark}</tr>"
        )
    return "".join(lines) + "</table>"


def _spark(trace: Trace, w: np.ndarray | None) -> str:
    t = trace.t_s
    if w is None or not np.isfinite(w).any() or t[-1] <= t[0]:
        return ""
    low, high = min(0.0, float(np.nanmin(w))), float(np.nanmax(w)) or 1.0
    lines = []
    cuts = np.searchsorted(t, [(a + b) / 2 for a, b, _, _ in trace.holes])
    for at, power in zip(np.split(t, cuts), np.split(w, cuts)):
        at, power = _thin(at, power, 200)
        points = " ".join(
            f"{200 * (a - t[0]) / (t[-1] - t[0]):.1f},"
            f"{29 - 28 * (b - low) / (high - low):.1f}"
            for a, b in zip(at, power)
            if b == b
        )
        lines.append(f'<polyline class=trace points="{points}"/>')
    return (
        '<svg viewBox="0 0 200 30" width=200 height=30 style="width:200px">'
        f"{''.join(lines)}</svg>"
    )


def _terms(row: Row) -> str:
    cells = ", ".join(
        f"{name} {significant(2 * u)}"
        for name, u in sorted(row.terms.items(), key=lambda item: -item[1])
        if u > 0
    )
    return f"<p class=dim>What the uncertainty is made of (95 %): {cells}.</p>"


def _bars(rows: Sequence[Row]) -> list[str]:
    """Draw runs side by side, one chart for each scope: scopes cannot be mixed."""
    charts = []
    for scope in dict.fromkeys(row.scope for row in rows):
        same = [row for row in rows if row.scope == scope and row.energy_j is not None]
        if len(same) < 2:
            continue
        most = (
            max((row.energy_j or 0.0) + (row.uncertainty_j or 0.0) for row in same) or 1.0
        )
        lines = []
        for place, row in enumerate(same):
            y, joules = 26 * place + 16, row.energy_j or 0.0
            half = row.uncertainty_j or 0.0
            a, b, c = (250 + 400 * v / most for v in (joules, joules - half, joules + half))
            lines.append(
                f"<text x=240 y={y + 4} text-anchor=end>{_esc(Path(row.file).name)}</text>"
                f'<rect x=250 y={y - 8} width="{max(a - 250, 0):.1f}" height=16 '
                'fill="#0072B2" fill-opacity=.7 />'
                f'<path class=bar d="M{b:.1f} {y}H{c:.1f}M{b:.1f} {y - 4}V{y + 4}'
                f'M{c:.1f} {y - 4}V{y + 4}"/>'
                f'<text x="{c + 8:.1f}" y={y + 4}>'
                f"{_pm(stated(row.energy_j, row.uncertainty_j, row))}</text>"
            )
        charts.append(
            f"<h2>Scope {_esc(str(scope))}</h2>"
            f'<svg viewBox="0 0 {WIDTH} {26 * len(same) + 10}">{"".join(lines)}</svg>'
        )
    return charts


def _legend(trace: Trace) -> str:
    keys = [
        f'<span class=key style="background:{colour_of(p, trace.phases)}"></span>' + _esc(p)
        for p in trace.phases
        if len(trace.phases) > 1
    ]
    if trace.holes:
        keys.append("hatched: no sample; the power may have stood anywhere in it")
    return f"<p class=dim>{' &nbsp; '.join(keys)}</p>" if keys else ""


def _svg(trace: Trace, row: Row) -> str:
    t, w = _thin(trace.t_s, trace.total_w, POINTS)
    known = np.isfinite(w)
    if not known.any():
        return "<p class=dim>no total to draw</p>"
    t, w = t[known], w[known]
    pieces = [_thin(at, watt, POINTS) for at, watt in trace.pieces()]
    end = max(float(t[-1]), trace.spans[-1][1], 1e-9)
    low, high = min(0.0, float(w.min())), float(w.max()) * 1.1 or 1.0
    plot_w, plot_h = WIDTH - LEFT - 10, HEIGHT - BOTTOM - TOP

    def x(seconds: float) -> float:
        return LEFT + plot_w * seconds / end

    def y(watt: float) -> float:
        return TOP + plot_h * (1 - (watt - low) / (high - low))

    box = json.dumps([LEFT, LEFT + plot_w, end, WIDTH])
    spans = json.dumps([[round(a, 3), round(b, 3), n] for a, b, n in trace.spans])
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="power over time" '
        f"data-t='{json.dumps([round(float(v), 4) for v in t])}' "
        f"data-w='{json.dumps([round(float(v), 3) for v in w])}' "
        f"data-p='{_esc(spans)}' data-b='{box}'>"
    ]
    for watt in _ticks(low, high):
        out.append(
            f'<line class=grid x1={LEFT} x2={WIDTH - 10} y1="{y(watt):.1f}" '
            f'y2="{y(watt):.1f}"/><text x={LEFT - 6} y="{y(watt) + 4:.1f}" '
            f"text-anchor=end>{watt:g}</text>"
        )
    for second in _ticks(0.0, end):
        out.append(
            f'<text x="{x(second):.1f}" y={HEIGHT - BOTTOM + 16} '
            f"text-anchor=middle>{second:g}</text>"
        )
    for start, stop, phase in trace.spans:
        colour = colour_of(phase, trace.phases)
        for at, power in pieces:
            a, b = max(start, float(at[0])), min(stop, float(at[-1]))
            if b <= a:
                continue
            inside = (at > a) & (at < b)
            xs = np.concatenate([[a], at[inside], [b]])
            ys = np.interp(xs, at, power)
            edge = " ".join(f"{x(p):.1f},{y(q):.1f}" for p, q in zip(xs, ys))
            out.append(
                f'<polygon points="{x(a):.1f},{y(0):.1f} {edge} {x(b):.1f},{y(0):.1f}" '
                f'fill="{colour}" fill-opacity=.55 />'
            )
    for at, power in pieces:
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(at, power))
        out.append(f'<polyline class=trace points="{line}"/>')
    if trace.holes:
        out.append(
            "<defs><pattern id=hole width=7 height=7 patternUnits=userSpaceOnUse "
            'patternTransform="rotate(45)"><line class=hatch x1=0 x2=0 y1=0 y2=7 />'
            "</pattern></defs>"
        )
    for start, stop, least, most in trace.holes:
        out.append(
            f'<rect x="{x(start):.1f}" y="{y(most):.1f}" '
            f'width="{max(x(stop) - x(start), 1.0):.1f}" '
            f'height="{max(y(least) - y(most), 1.0):.1f}" fill="url(#hole)">'
            f"<title>no sample for {stop - start:.2f} s</title></rect>"
        )
    if row.mean_w is not None:
        out.append(
            f'<line class=mean x1={LEFT} x2={WIDTH - 10} y1="{y(row.mean_w):.1f}" '
            f'y2="{y(row.mean_w):.1f}"/>'
        )
    out.append(
        f"<text x={LEFT + plot_w / 2} y={HEIGHT - 6} text-anchor=middle>time (s)</text>"
        f'<text transform="translate(14 {TOP + plot_h / 2}) rotate(-90)" '
        f"text-anchor=middle>power, {_esc(trace.scope or '')} (W)</text></svg>"
    )
    return "".join(out)


def _thin(t: np.ndarray, w: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the lowest and the highest of each stretch: peaks must stay visible."""
    if len(t) <= most:
        return t, w
    keep = []
    for part in np.array_split(np.arange(len(t)), most // 2):
        values = np.where(np.isfinite(w[part]), w[part], 0.0)
        keep += sorted({int(part[values.argmin()]), int(part[values.argmax()])})
    return t[keep], w[keep]


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    step = 10.0 ** np.floor(np.log10(span / 4))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= 6:
            step *= factor
            break
    first = np.ceil(low / step) * step
    return [float(round(v, 9)) for v in np.arange(first, high + step * 1e-6, step)]


def _pm(text: str) -> str:
    return _esc(text).replace("+-", "\u00b1")


def _esc(text: str) -> str:
    return html.escape(text, quote=True)
