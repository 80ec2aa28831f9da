"""One self-contained HTML page: power trace coloured by phase, tables, every caveat.

No script from elsewhere, no font, no picture file: it opens on any machine, offline, and
is made on a board without matplotlib.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np

from draftwire.energy.reports.rows import Row
from draftwire.energy.reports.text import (
    flat,
    per_token_text,
    phase_rows,
    phase_whys,
    stated,
)
from draftwire.energy.reports.trace import Trace, colour_of, trace_of_row
from draftwire.io import quantity, significant, write_text

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 920, 300, 56, 40, 12
POINTS = 1800
CAVEAT = (
    "Uncertainties are 95 % half-widths from the sensor's data sheet and the samples, not "
    "from a calibration; where the sheet is not known they cover resolution and sampling "
    "only, and say so. Parts of a total are never added to it."
)
HATCH = (
    "<defs><pattern id=hole width=7 height=7 patternUnits=userSpaceOnUse "
    'patternTransform="rotate(45)"><line class=hatch x1=0 x2=0 y1=0 y2=7 />'
    "</pattern></defs>"
)


def write_page(rows: Sequence[Row], path: Path) -> None:
    """Write a page with every row, whole or not at all."""
    names = list(dict.fromkeys(Path(row.file).name for row in rows))
    title = _esc(f"Energy: {', '.join(names[:4])}")
    body = [f"<h1>{title}</h1>", _tag("p", "dim", CAVEAT)]
    body += _bars(rows) if len(rows) > 1 else []
    body += [_section(row, trace_of_row(row)) for row in rows]
    records = json.dumps([flat(row) for row in rows], allow_nan=False)
    data = records.replace("</", "<\\/")
    here = Path(__file__)
    style, script = (
        here.with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js")
    )
    text = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body>"
        + "\n".join(body)
        + '\n<div id=tip></div><script type="application/json" id=rows>'
        + f"{data}</script><script>{script}</script></body></html>\n"
    )
    write_text(path, text)


def _section(row: Row, trace: Trace | None) -> str:
    name, by_phase = Path(row.file).name, row.by_phase_j or {}
    parts = [f"<h2>{_esc(name)} <span class=dim>{_esc(row.label)}</span></h2>"]
    if row.energy_j is None:
        parts.append(f"<p><b>No joules.</b> {_esc(row.why_null or '')}</p>")
    else:
        rails = f", {' + '.join(row.rails)}" if row.rails else ""
        kind = _tag("span", "flag", "modelled") if row.kind == "modelled" else ""
        told = f"scope {row.scope or '-'}{rails}, source {row.source or '-'}"
        parts.append(_tag("div", "big", _pm(stated(row.energy_j, row.uncertainty_j, row))))
        parts.append(_tag("div", "dim", f"{_esc(told)} {kind}"))
    parts.append(_cards(row))
    parts += [] if trace is None else [_svg(trace, row), _legend(trace)]
    if len(by_phase) > 1:
        names = list(by_phase) if trace is None else trace.phases
        head = ("phase", "joules", "share", "seconds", "mean power")
        lines = [
            (_key(p, names) + _esc(p), *map(_pm, cells)) for p, *cells in phase_rows(row)
        ]
        parts.append(_table(head, lines))
        parts += [_tag("p", "dim", _esc(why)) for why in phase_whys(row)]
    parts += [f"<p>{_pm(line)}</p>" for line in per_token_text(row)]
    if row.by_rail_j and row.energy_j is not None:
        parts.append(_rails(row, trace))
    if row.terms:
        terms = sorted(row.terms.items(), key=lambda item: -item[1])
        cells = ", ".join(f"{name} {significant(2 * u)}" for name, u in terms if u > 0)
        made = f"What the uncertainty is made of (95 %): {cells}."
        parts.append(_tag("p", "dim", made))
    if row.flags:
        flags = "".join(_tag("span", "flag", _esc(flag)) for flag in row.flags)
        parts.append(f"<p>{flags}</p>")
    parts += [_tag("p", "dim", _esc(note)) for note in row.notes]
    return "\n".join(part for part in parts if part)


def _cards(row: Row) -> str:
    mean = quantity(row.mean_w, row.mean_uncertainty_w, "W")
    cards: list[tuple[str, str | bool | None]] = [
        ("seconds", row.seconds is not None and f"{row.seconds:.2f}"),
        ("covered by samples", row.coverage is not None and f"{100 * row.coverage:.1f} %"),
        ("mean power", row.mean_w is not None and mean),
        ("highest sample", row.max_w is not None and significant(row.max_w, "W")),
        ("samples", row.samples is not None and str(row.samples)),
    ]
    if row.net_j is not None:
        net = stated(row.net_j, row.net_uncertainty_j, row)
        cards.append((f"net of {row.baseline_w:.3g} W idle", net))
    if row.answers_per_wh and not row.open_ended:
        cards.append(("requests per Wh", f"{row.answers_per_wh:.4g}"))
    cards.append(("power mode", row.power_mode))
    shown = [
        _tag("div", "card", _tag("span", "dim", name) + f"<b>{_pm(str(value))}</b>")
        for name, value in cards
        if value
    ]
    return _tag("div", "cards", "".join(shown))


def _rails(row: Row, trace: Trace | None) -> str:
    lines = []
    for rail, joules in row.by_rail_j.items():
        watt = joules / row.seconds if row.seconds else None
        part = "in the total" if rail in row.rails else "beside it, or below"
        spark = "" if trace is None else _spark(trace, trace.rails_w.get(rail))
        energy, power = significant(joules), significant(watt, "W")
        lines.append((_esc(rail), energy, power, _tag("span", "dim", part), spark))
    return _table(("rail", "joules", "mean power", "&nbsp;", "over time"), lines)


def _spark(trace: Trace, w: np.ndarray | None) -> str:
    t = trace.t_s
    if w is None or not np.isfinite(w).any() or t[-1] <= t[0]:
        return ""
    low, high = min(0.0, float(np.nanmin(w))), float(np.nanmax(w)) or 1.0
    lines = []
    for at, power in trace.pieces(w):
        at, power = _thin(at, power, 200)
        x = 200 * (at - t[0]) / (t[-1] - t[0])
        lines.append(_line(x, 29 - 28 * (power - low) / ((high - low) or 1.0)))
    size = 'viewBox="0 0 200 30" width=200 height=30 style="width:200px"'
    return f"<svg {size}>{''.join(lines)}</svg>"


def _bars(rows: Sequence[Row]) -> list[str]:
    """Draw runs side by side, one chart for each scope: scopes cannot be mixed."""
    charts = []
    for scope in dict.fromkeys(row.scope for row in rows):
        same = [
            (row, row.energy_j, row.uncertainty_j or 0.0)
            for row in rows
            if row.scope == scope and row.energy_j is not None
        ]
        if len(same) < 2:
            continue
        most = max(joules + half for _, joules, half in same) or 1.0
        lines = []
        for place, (row, joules, half) in enumerate(same):
            y = 26 * place + 16
            a, b, c = (250 + 400 * v / most for v in (joules, joules - half, joules + half))
            lines.append(
                f"<text x=240 y={y + 4} text-anchor=end>{_esc(Path(row.file).name)}</text>"
                f'<rect x=250 y={y - 8} width="{max(a - 250, 0):.1f}" height=16 '
                'fill="#0072B2" fill-opacity=.7 />'
                f'<path class=bar d="M{b:.1f} {y}H{c:.1f}M{b:.1f} {y - 4}V{y + 4}'
                f'M{c:.1f} {y - 4}V{y + 4}"/>'
                f'<text x="{c + 8:.1f}" y={y + 4}>'
                f"{_pm(stated(joules, row.uncertainty_j, row))}</text>"
            )
        box = f'<svg viewBox="0 0 {WIDTH} {26 * len(same) + 10}">'
        charts.append(f"<h2>Scope {_esc(str(scope))}</h2>{box}{''.join(lines)}</svg>")
    return charts


def _legend(trace: Trace) -> str:
    phases = trace.phases if len(trace.phases) > 1 else []
    keys = [_key(phase, phases) + _esc(phase) for phase in phases]
    if trace.holes:
        keys.append("hatched: no sample; the power may have stood anywhere in it")
    return _tag("p", "dim", " &nbsp; ".join(keys)) if keys else ""


def _svg(trace: Trace, row: Row) -> str:
    t, w = _thin(trace.t_s, trace.total_w, POINTS)
    known = np.isfinite(w)
    if not known.any():
        return _tag("p", "dim", "no total to draw")
    t, w = t[known], w[known]
    pieces = [_thin(at, watt, POINTS) for at, watt in trace.pieces()]
    end = max(trace.end_s, 1e-9)
    low, high = min(0.0, float(w.min())), float(w.max()) * 1.1 or 1.0
    plot_w, plot_h = WIDTH - LEFT - 10, HEIGHT - BOTTOM - TOP

    def x(seconds: float) -> float:
        return LEFT + plot_w * seconds / end

    def y(watt: float) -> float:
        return TOP + plot_h * (1 - (watt - low) / (high - low))

    def across(watt: float, style: str) -> str:
        at = f"{y(watt):.1f}"
        return f'<line class={style} x1={LEFT} x2={WIDTH - 10} y1="{at}" y2="{at}"/>'

    spans = json.dumps([[round(a, 3), round(b, 3), n] for a, b, n in trace.spans])
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="power over time" '
        f"data-t='{json.dumps([round(float(v), 4) for v in t])}' "
        f"data-w='{json.dumps([round(float(v), 3) for v in w])}' "
        f"data-p='{_esc(spans)}' "
        f"data-b='{json.dumps([LEFT, LEFT + plot_w, end, WIDTH])}'>"
    ]
    for watt in _ticks(low, high):
        at = f'x={LEFT - 6} y="{y(watt) + 4:.1f}" text-anchor=end'
        out.append(f"{across(watt, 'grid')}<text {at}>{watt:g}</text>")
    for second in _ticks(0.0, end):
        at = f'x="{x(second):.1f}" y={HEIGHT - BOTTOM + 16} text-anchor=middle'
        out.append(f"<text {at}>{second:g}</text>")
    for phase, xs, ys in trace.areas(pieces):
        foot = [f"{x(at):.1f},{y(0):.1f}" for at in (xs[0], xs[-1])]
        fill = f'fill="{colour_of(phase, trace.phases)}" fill-opacity=.55'
        edge = _points(map(x, xs), map(y, ys))
        out.append(f'<polygon points="{foot[0]} {edge} {foot[1]}" {fill} />')
    out += [_line(map(x, at), map(y, power)) for at, power in pieces]
    out += [HATCH] if trace.holes else []
    for start, stop, least, most in trace.holes:
        out.append(
            f'<rect x="{x(start):.1f}" y="{y(most):.1f}" '
            f'width="{max(x(stop) - x(start), 1.0):.1f}" '
            f'height="{max(y(least) - y(most), 1.0):.1f}" fill="url(#hole)">'
            f"<title>no sample for {stop - start:.2f} s</title></rect>"
        )
    out += [] if row.mean_w is None else [across(row.mean_w, "mean")]
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
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    first = np.ceil(low / step) * step
    return [float(round(v, 9)) for v in np.arange(first, high + step * 1e-6, step)]


def _points(xs: Iterable[float], ys: Iterable[float]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys))


def _line(xs: Iterable[float], ys: Iterable[float]) -> str:
    return f'<polyline class=trace points="{_points(xs, ys)}"/>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{cell}" for cell in head)]
    lines += ["".join(f"<td>{cell}" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _tag(name: str, style: str, inner: str) -> str:
    return f"<{name} class={style}>{inner}</{name}>"


def _key(phase: str, phases: list[str]) -> str:
    return f'<span class=key style="background:{colour_of(phase, phases)}"></span>'


def _pm(text: str) -> str:
    return _esc(text).replace("+-", "\u00b1")


def _esc(text: str) -> str:
    return html.escape(text, quote=True)
