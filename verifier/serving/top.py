"""What ``draftwire verifier top`` shows: two metrics pages, and what lies between them.

Plain text of 80 columns, so that it is the same over ssh, in a file and in a test.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Callable, Dict, Mapping, Tuple

from draftwire.io import align
from draftwire.verifier.serving.metrics import PREFIX

WIDTH = 80
_BARS = " ▁▂▃▄▅▆▇█"
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_PER_POS = "spec_decode_num_accepted_tokens_per_pos_total"

# By name, and by sorted labels.
Page = Dict[str, Dict[Tuple[Tuple[str, str], ...], float]]


def read_page(text: str) -> Page:
    """Return the samples of a page by name and labels; our prefix is left out.

    Raises:
        ValueError: It is no metrics page of a verifier.
    """
    found: Page = {}
    for line in text.splitlines():
        if line.startswith("#") or not line:
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None:
            raise ValueError(f"no sample: {line[:60]!r}")
        name, labels, value = match.groups()
        key = tuple(sorted(_LABEL.findall(labels or "")))
        found.setdefault(name.replace(PREFIX, "", 1), {})[key] = float(value)
    if "connections" not in found:
        raise ValueError("no metrics of a verifier")
    return found


class Top:
    """The view of one verifier, which the first line calls ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pages: deque[tuple[float, Page]] = deque(maxlen=2)
        self._speeds: deque[float] = deque(maxlen=60)

    @property
    def seen(self) -> bool:
        """True once a page was taken in."""
        return bool(self._pages)

    def take(self, page: Page, now: float) -> None:
        """Take in a page of :func:`read_page`, read at ``now`` (monotonic seconds)."""
        self._pages.append((now, page))
        if len(self._pages) > 1:
            self._speeds.append(self._rate("generation_tokens_total") or 0.0)

    def _value(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return _sum(self._pages[-1][1], name, labels)

    def _rate(self, name: str, **labels: str) -> float | None:
        """Return a counter's growth a second; 0 where it began anew, None at first."""
        if len(self._pages) < 2:
            return None
        (before, old), (now, new) = self._pages[0], self._pages[-1]
        seconds = now - before
        grown = _sum(new, name, labels) - _sum(old, name, labels)
        return max(0.0, grown / seconds) if seconds > 0 else 0.0

    def document(self) -> dict[str, Any]:
        """Return what is shown, for a program; a rate is null before the second page."""
        rate, targets = self._rate, []
        for key in sorted(self._pages[-1][1].get("num_requests_running", ())):
            of = dict(key)
            drafted = rate("spec_decode_num_draft_tokens_total", **of)
            accepted = rate("spec_decode_num_accepted_tokens_total", **of)
            drafts = rate("spec_decode_num_drafts_total", **of)
            forwards = rate("iterations_total", kind="verify", **of)
            blocks = rate("iteration_batch_size_sum", **of)
            reads = rate("prefix_cache_queries_total", **of)
            targets.append(
                {
                    "name": of["model_name"],
                    "version": of["model_version"],
                    "tokens_per_s": rate("generation_tokens_total", **of),
                    "acceptance": _share(accepted, drafted),
                    "accepted_per_draft": _share(accepted, drafts),
                    "running": int(self._value("num_requests_running", **of)),
                    "waiting": int(self._value("num_requests_waiting", **of)),
                    "kv_cache_usage": self._value("kv_cache_usage_perc", **of),
                    "forwards_per_s": forwards,
                    "batch": _share(blocks, forwards),
                    "busy": rate("iteration_seconds_total", **of),
                    "prefix_hits": _share(rate("prefix_cache_hits_total", **of), reads),
                    "rebuilds": int(self._value("num_rebuilds_total", **of)),
                    "near_ties": int(self._value("near_ties_total", **of)),
                    "first_token_s": self._median("time_to_first_token_seconds", of),
                    "by_position": self._positions(of, drafts),
                }
            )
        accounts = [
            {
                "name": dict(key)["account"],
                "connections": int(self._value("account_connections", **dict(key))),
                "running": int(self._value("account_requests_running", **dict(key))),
                "paused": rate("account_paused_seconds_total", **dict(key)),
            }
            for key in sorted(self._pages[-1][1].get("account_connections", ()))
        ]
        ((info, _),) = self._pages[-1][1].get("info", {(("version", "?"),): 1.0}).items()
        return {
            "version": dict(info).get("version", "?"),
            "draining": bool(self._value("draining")),
            "connections": int(self._value("connections")),
            "strangers": int(self._value("strangers")),
            "kept": int(self._value("kept_streams")),
            "refusals_per_s": rate("refusals_total"),
            "turned_away_per_s": rate("turned_away_total"),
            "cores": rate("process_cpu_seconds_total"),
            "memory_bytes": self._value("process_resident_memory_bytes"),
            "files": int(self._value("process_open_fds")),
            "received_per_s": rate("received_bytes_total"),
            "sent_per_s": rate("sent_bytes_total"),
            "targets": targets,
            "accounts": accounts,
        }

    def _positions(self, of: Mapping[str, str], drafts: float | None) -> list[float | None]:
        """Return which share of drafts had a token accepted at each place."""
        if not drafts:
            return []
        places = {
            int(dict(key)["position"])
            for key in self._pages[-1][1].get(_PER_POS, ())
            if of.items() <= dict(key).items()
        }
        rates = [self._rate(_PER_POS, position=str(i), **of) for i in sorted(places)]
        return [_share(rate, drafts) for rate in rates]

    def _median(self, name: str, of: Mapping[str, str]) -> float | None:
        """Return the bucket that holds the median since the page before, in seconds."""
        bounds = {dict(key)["le"] for key in self._pages[-1][1].get(f"{name}_bucket", ())}
        rates = sorted(
            (float(le), self._rate(f"{name}_bucket", le=le, **of) or 0.0) for le in bounds
        )
        if not rates or not rates[-1][1]:
            return None
        return next(bound for bound, rate in rates if rate >= rates[-1][1] / 2)

    def render(self, clock: str = "", height: int = 24) -> list[str]:
        """Return at most ``height`` lines of the view, each of at most 80 columns.

        ``clock`` is the time of day, at the right of the first line.
        """
        found = self.document()
        state = "draining" if found["draining"] else f"draftwire {found['version']}"
        head = f"{self._name}   {state}"
        lines = [f"{head:{WIDTH - len(clock) - 1}} {clock}".rstrip()]
        running = sum(target["running"] for target in found["targets"])
        lines += [
            f"devices {found['connections']}   streams {running}, {found['kept']} wait for "
            f"their device   strangers {found['strangers']}   refused "
            f"{_short(found['refusals_per_s'])}/s",
            f"cores {_short(found['cores'])}   memory {_bytes(found['memory_bytes'])}   "
            f"files {found['files']}   in {_bytes(found['received_per_s'])}/s   out "
            f"{_bytes(found['sent_per_s'])}/s",
            "",
        ]
        rows = [["target", *(head for head, _, _ in _COLUMNS)]]
        for target in found["targets"]:
            label = target["name"]
            if label != target["version"]:
                label += f" {target['version']}"
            cells = [show(target[key]) for _, key, show in _COLUMNS]
            rows.append([label[:20], *cells])
        lines += [*align(rows).splitlines(), ""]
        for target in found["targets"]:
            if target["by_position"]:
                shares = target["by_position"][:16]
                bars = "".join(_BARS[min(8, round(8 * share))] for share in shares)
                words = " ".join(f"{100 * share:.0f}" for share in shares)
                lines.append(f"{target['name'][:12]}, accepted by place  {bars}  {words} %")
        if self._speeds:
            most = max(self._speeds) or 1.0
            bars = "".join(_BARS[round(8 * speed / most)] for speed in self._speeds)
            lines += [f"tokens/s  {bars}  most {_short(most)}", ""]
        rows = [["token", "devices", "streams", "held back"]]
        for a in sorted(
            found["accounts"], key=lambda a: (-a["running"], -a["connections"])
        ):
            counts = str(a["connections"]), str(a["running"])
            rows.append([a["name"][:24], *counts, _percent(a["paused"])])
        lines += align(rows).splitlines()
        return [_plain(line[:WIDTH]).rstrip() for line in lines[:height]]


def _sum(page: Page, name: str, labels: Mapping[str, str]) -> float:
    wanted = set(labels.items())
    return float(sum(v for key, v in page.get(name, {}).items() if wanted <= set(key)))


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value == float("inf"):
        return "long"
    return f"{value:g} s" if value >= 1 else f"{1e3 * value:.0f} ms"


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("tok/s", "tokens_per_s", _short),
    ("accept", "acceptance", _percent),
    ("/draft", "accepted_per_draft", _short),
    ("run", "running", str),
    ("wait", "waiting", str),
    ("KV", "kv_cache_usage", _percent),
    ("fwd/s", "forwards_per_s", _short),
    ("batch", "batch", _short),
    ("busy", "busy", _percent),
    ("first", "first_token_s", _seconds),
)
