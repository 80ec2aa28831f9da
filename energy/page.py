"""One self-contained HTML page: power trace coloured by phase, tables, every caveat.

No script from elsewhere, no font, no picture file: it opens on any machine, offline.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Sequence

import numpy as np

from draftwire.energy.export import flat, quantity, write_whole
from draftwire.energy.report import Row
from draftwire.energy.trace import Trace, colour_of

__all__ = ["page", "write_page"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 920, 300, 56, 40, 12
POINTS = 1800

_CSS = """
:root{color-scheme:light dark;--ink:#1b1b1b;--dim:#666;--line:#ddd;--paper:#fff;
--card:#f7f7f7}
@media(prefers-color-scheme:dark){:root{--ink:#eee;--dim:#aaa;--line:#444;--paper:#161616;
--card:#222}} body{font:15px/1.5
system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:980px;margin:2rem auto;padding:0 1rem} h1{font-size:1.4rem;margin:0 0
.2rem}h2{font-size:1.05rem;margin:2rem 0 .3rem}
.dim{color:var(--dim)}.big{font-size:1.9rem;font-weight:600}
.cards{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}
.card{background:var(--card);border-radius:8px;padding:.6rem .9rem;min-width:7.5rem}
.card b{display:block;font-size:1.15rem} table{border-collapse:collapse;margin:.6rem
0;font-variant-numeric:tabular-nums} th,td{padding:.25rem .8rem .25rem
0;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}th{color:var(--dim);font-weight:500}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .35em 0 0}
.flag{background:#D55E00;color:#fff;border-radius:4px;padding:.05rem .45rem;
margin-right:.3rem}svg{width:100%;height:auto;display:block} svg
text{fill:var(--dim);font:11px system-ui,sans-serif}
.grid{stroke:var(--line)}.trace{fill:none;stroke:var(--ink);stroke-width:1.1}
.mean{stroke:var(--ink);stroke-dasharray:5 4;stroke-width:.9}
#tip{position:fixed;background:var(--ink);color:var(--paper);border-radius:4px;
padding:.15rem .5rem;font-size:12px;pointer-events:none;display:none}
"""

_SCRIPT = """
for(const svg of document.querySelectorAll('svg[data-t]')){
const t=JSON.parse(svg.dataset.t),w=JSON.parse(svg.dataset.w);
const p=JSON.parse(svg.dataset.p);
const tip=document.getElementById('tip'),b=JSON.parse(svg.dataset.b);
svg.addEventListener('mousemove',e=>{const r=svg.getBoundingClientRect();
const s=b[2]*((e.clientX-r.left)*b[3]/r.width-b[0])/(b[1]-b[0]);
if(s<0||s>b[2]){tip.style.display='none';return}
let i=0;while(i<t.length-1&&t[i+1]<s)i++;
let n='';for(const q of p)if(s>=q[0]&&s<q[1])n=q[2];
tip.textContent=s.toFixed(2)+' s  '+(w[i]===null?'-':w[i].toFixed(2)+' W')+'  '+n;
tip.style.display='block';tip.style.left=e.clientX+12+'px';
tip.style.top=e.clientY+12+'px'});
svg.addEventListener('mouseleave',()=>tip.style.display='none')}
"""


def write_page(
    entries: Sequence[tuple[Row, Trace | None]], path: Path, *, title: str
) -> None:
    """Write the page, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    text = page(entries, title=title)
    write_whole(path, lambda temporary: _put(temporary, text))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def page(entries: Sequence[tuple[Row, Trace | None]], *, title: str) -> str:
    """Return the page as text."""
    body = [f"<h1>{_esc(title)}</h1>"]
    body.append(
        "<p class=dim>Uncertainties are 95 % half-widths from the sensor's data sheet "
        "and the samples, not from a calibration. Parts of a total are never added to "
        "it.</p>"
    )
    for row, trace in entries:
        body.append(_section(row, trace))
    body.append("<div id=tip></div>")
    records = json.dumps([flat(row) for row, _ in entries], allow_nan=False)
    data = records.replace("</", "<\\/")
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{_esc(title)}</title><style>{_CSS}</style></head><body>"
        + "\n".join(body)
        + f'<script type="application/json" id=rows>{data}</script>'
        + f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _section(row: Row, trace: Trace | None) -> str:
    name = Path(row.file).name
    parts = [f"<h2>{_esc(name)} <span class=dim>{_esc(row.label)}</span></h2>"]
    if row.energy_j is None:
        parts.append(f"<p><b>No joules.</b> {_esc(row.why_null or '')}</p>")
    else:
        energy = quantity(row.energy_j, row.uncertainty_j).replace("+-", "\u00b1")
        kind = "<span class=flag>modelled</span>" if row.kind == "modelled" else ""
        parts.append(
            f"<div class=big>{energy}</div><div class=dim>"
            f"scope {_esc(row.scope or '-')}, source {_esc(row.source or '-')} "
            f"{kind}</div>"
        )
    parts.append(_cards(row))
    if trace is not None:
        parts.append(_svg(trace, row))
        parts.append(_legend(trace))
    if row.by_phase_j:
        parts.append(_phases(row, trace))
    if row.flags:
        flags = "".join(f"<span class=flag>{_esc(flag)}</span>" for flag in row.flags)
        parts.append(f"<p>{flags}</p>")
    parts += [f"<p class=dim>{_esc(note)}</p>" for note in row.notes]
    return "\n".join(parts)


def _cards(row: Row) -> str:
    cards = [
        ("seconds", row.seconds, "{:.2f}"),
        ("mean W", row.mean_w, "{:.2f}"),
        ("max W", row.max_w, "{:.2f}"),
        ("samples", row.samples, "{:d}"),
        ("coverage %", None if row.coverage is None else 100 * row.coverage, "{:.1f}"),
        ("runs per Wh", row.answers_per_wh, "{:.4g}"),
    ]
    cards += [(f"J / {kind} token", v, "{:.3g}") for kind, v in row.per_token_j.items()]
    shown = [
        f"<div class=card><span class=dim>{name}</span><b>{form.format(value)}</b></div>"
        for name, value, form in cards
        if value is not None
    ]
    if row.power_mode:
        mode = _esc(row.power_mode)
        shown.append(
            f"<div class=card><span class=dim>power mode</span><b>{mode}</b></div>"
        )
    return f"<div class=cards>{''.join(shown)}</div>"


def _phases(row: Row, trace: Trace | None) -> str:
    names = trace.phases if trace is not None else list(row.by_phase_j or {})
    lines = ["<table><tr><th>phase<th>joules<th>share<th>seconds<th>mean W</tr>"]
    items = sorted((row.by_phase_j or {}).items(), key=lambda item: -item[1])
    for phase, joules in items:
        seconds = row.phase_seconds.get(phase)
        share = f"{100 * joules / row.energy_j:.1f} %" if row.energy_j else "-"
        watt = f"{joules / seconds:.2f}" if seconds else "-"
        time = f"{seconds:.2f}" if seconds is not None else "-"
        key = f'<span class=key style="background:{colour_of(phase, names)}"></span>'
        lines.append(
            f"<tr><td>{key}{_esc(phase)}<td>{joules:.4g}<td>{share}<td>{time}<td>{watt}</tr>"
        )
    return "".join(lines) + "</table>"


def _legend(trace: Trace) -> str:
    if len(trace.phases) < 2:
        return ""
    keys = [
        f'<span class=key style="background:{colour_of(p, trace.phases)}"></span>{_esc(p)}'
        for p in trace.phases
    ]
    return f"<p class=dim>{' &nbsp; '.join(keys)}</p>"


def _svg(trace: Trace, row: Row) -> str:
    t, w = _thin(trace.t_s, trace.total_w)
    known = np.isfinite(w)
    if not known.any():
        return "<p class=dim>no total to draw</p>"
    t, w = t[known], w[known]
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
        inside = (t > start) & (t < stop)
        xs = np.concatenate([[start], t[inside], [stop]])
        ys = np.interp(xs, t, w)
        edge = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys))
        colour = colour_of(phase, trace.phases)
        out.append(
            f'<polygon points="{x(start):.1f},{y(0):.1f} {edge} '
            f'{x(stop):.1f},{y(0):.1f}" fill="{colour}" fill-opacity=.55 />'
        )
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(t, w))
    out.append(f'<polyline class=trace points="{line}"/>')
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


def _thin(t: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the lowest and the highest of each stretch: peaks must stay visible."""
    if len(t) <= POINTS:
        return t, w
    keep = []
    for part in np.array_split(np.arange(len(t)), POINTS // 2):
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


def _esc(text: str) -> str:
    return html.escape(text, quote=True)
