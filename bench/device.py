"""What a draft costs this device: size, start, memory, and tokens a second.

Every engine, precision and thread count is measured in processes of its own, so that
nothing is loaded or warm that a real start would find cold; but files that were read
lately are in the page cache, as on any second start.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Iterable, Sequence

import draftwire
from draftwire.bench.child import run_child
from draftwire.bench.machine import cores, machine
from draftwire.errors import ConfigError
from draftwire.io import format_table
from draftwire.packages import DraftPackage, load_draft
from draftwire.runtime.engines.choice import ENGINES, importable

SCHEMA = "draftwire.bench/1"
_CODE = "import sys, draftwire.bench.device_child as child; child.main(sys.argv[1])"
# What a board installs, by the engine that needs it; draftwire itself is counted apart.
_COMMON = ("numpy", "websockets", "tokenizers")
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "litert": ("ai-edge-litert", "tflite-runtime"),
}
_MEDIANS = (
    *("import_s", "import_cpu_s", "package_s", "tokenizer_s", "load_s", "prefill_s"),
    *("first_token_s", "first_token_cpu_s", "rss_import_mb", "rss_loaded_mb"),
    *("rss_drafting_mb", "peak_rss_mb", "step_ms", "step_cpu_ms", "lanes_ms"),
    "joules_per_token",
    "watts",
)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    draft: Path  # a draft package
    # names; empty takes those that are installed and have a file
    engines: Sequence[str] = ()
    precisions: Sequence[str] = ()  # empty takes all that an engine has a file for
    # threads inside one operator; empty takes 1, 2 and all cores
    threads: Sequence[int] = ()
    provider: str | None = None  # as for ``DraftModel.load``
    rounds: int = 30  # undisturbed rounds of 16 tokens in each process
    spawn: int = 3  # processes for each line; medians over them
    energy: bool = True  # look for a power meter


def bench_device(settings: Settings) -> dict[str, Any]:
    """Measure, and return the document that ``--json`` writes.

    A ConfigError where an engine or precision is not there, a PackageError where the draft
    is damaged.
    """
    package = load_draft(settings.draft)
    lines, left_out = _lines(package, settings)
    return {
        "schema": SCHEMA,
        "bench": "device",
        "machine": machine(),
        "draft": {"id": package.id, "name": package.name},
        "install": {engine: install_size(package, engine) for engine in ENGINES},
        "settings": {"rounds": settings.rounds, "spawn": settings.spawn},
        "runs": [_run(package, settings, *line) for line in lines],
        "left_out": left_out,
    }


def _lines(
    package: DraftPackage, settings: Settings
) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Return engine, precision and threads of each line, and what is left out."""
    for engine in settings.engines:
        if engine not in ENGINES:
            raise ConfigError(
                f"there is no engine {engine!r}", hint=f"known: {', '.join(ENGINES)}"
            )
    left_out, lines = [], []
    threads = list(settings.threads) or thread_counts(cores())
    for engine in ENGINES:
        files = [f for f in package.files.values() if f.precision and f.engine == engine]
        if settings.engines and engine not in settings.engines:
            continue
        if not files:
            left_out.append(f"{engine}: {package.path.name} has no file for it")
            continue
        if not importable(engine):
            left_out.append(f"{engine}: not installed")
            continue
        for file in sorted(files, key=lambda f: f.bytes):
            if not settings.precisions or file.precision in settings.precisions:
                lines += [(engine, file.precision, count) for count in threads]
    if not lines:
        raise ConfigError(
            "nothing to measure: " + ("; ".join(left_out) or "no such precision"),
            hint=f"{package.path.name} has {', '.join(package.precisions)}",
        )
    return lines, left_out


def thread_counts(cores: int) -> list[int]:
    """Return the thread counts worth trying on a machine."""
    return sorted({1, min(2, cores), min(4, cores)})


def _run(
    package: DraftPackage, settings: Settings, engine: str, precision: str, threads: int
) -> dict[str, Any]:
    line: dict[str, Any] = {"engine": engine, "precision": precision, "threads": threads}
    found = []
    for _ in range(settings.spawn):
        wanted = {
            **line,
            "started": time.monotonic(),
            "draft": str(package.path),
            "provider": settings.provider if engine == "onnxruntime" else None,
            "rounds": settings.rounds,
            "energy": settings.energy,
        }
        try:
            found.append(json.loads(run_child(_CODE, json.dumps(wanted))))
        except ConfigError as exc:  # this line cannot run here; the others may
            return {**line, "error": str(exc)}
    for key in _MEDIANS:
        values = [one[key] for one in found if one.get(key) is not None]
        line[key] = statistics.median(values) if values else None
    line["tokens_per_s"] = 1e3 / line["step_ms"]
    for key in ("rounds", "rounds_undisturbed"):
        line[key] = sum(one[key] for one in found)
    for key in ("engine_version", "lanes", "warnings", "energy_source", "energy_why_null"):
        line[key] = found[0].get(key)
    if not settings.energy:
        line["energy_why_null"] = "not asked for"
    line["processes"] = len(found)
    return line


def install_size(package: DraftPackage, engine: str) -> dict[str, Any]:
    """Return megabytes on disk of what a board carries to draft with an engine.

    Those of the packages are as installed here, compiled bytecode left out; what is not
    installed here is null.
    """
    sizes: dict[str, float | None] = {"draftwire": _own_size(Path(draftwire.__file__))}
    older = () if sys.version_info >= (3, 11) else ("tomli",)
    sizes.update({name: _distribution_mb(name) for name in (*_COMMON, *older)})
    own = {name: _distribution_mb(name) for name in PACKAGES[engine]}
    found = {name: size for name, size in own.items() if size is not None}
    sizes.update(found if found else dict.fromkeys(PACKAGES[engine][:1]))
    models = [f for f in package.files.values() if f.precision and f.engine == engine]
    sizes["draft"] = None
    if models:
        model = min(models, key=lambda f: f.bytes)
        carried = ("tokenizer.json", model.path.name, model.path.name + ".data")
        files = [package.files[name] for name in carried if name in package.files]
        sizes["draft"] = sum(file.bytes for file in files) / 1e6
    missing = [name for name, size in sizes.items() if size is None]
    known = sum(size for size in sizes.values() if size is not None)
    return {
        "parts_mb": sizes,
        "total_mb": None if missing else known,
        "why_null": f"not here: {', '.join(missing)}" if missing else None,
    }


def _distribution_mb(name: str) -> float | None:
    try:
        files = metadata.distribution(name).files
    except metadata.PackageNotFoundError:
        return None
    return _megabytes(Path(str(file.locate())) for file in files or ())


def _own_size(init: Path) -> float:
    """Return the megabytes of our own modules and data, those of all packages."""
    folders = (init.parent, *(p.resolve() for p in init.parent.iterdir() if p.is_symlink()))
    return _megabytes({file.resolve() for one in folders for file in one.rglob("*")})


def _megabytes(files: Iterable[Path]) -> float:
    """Return what the files take without compiled bytecode; some may be gone."""
    there = (file for file in files if file.suffix != ".pyc" and file.is_file())
    return sum(file.stat().st_size for file in there) / 1e6


def render(document: dict[str, Any]) -> str:
    """Return the document as plain text."""
    box = document["machine"]
    head = (
        f"{document['draft']['name']} on {box['board']} ({box['processor']}), "
        f"Python {box['python']}, load {box['load_1min']:.1f}, {box['date']}"
    )
    header = ["engine", "precision", "threads", "import s", "first token s", "CPU s"]
    header += ["memory MB", "tokens/s", "ms/token", "CPU ms/token", "mJ/token"]
    keys = ["engine_version", "precision", "threads", "import_s", "first_token_s"]
    keys += ["first_token_cpu_s", "rss_drafting_mb", "tokens_per_s"]
    rows, notes = [], list(document["left_out"])
    for run in document["runs"]:
        if "error" in run:
            notes.append(f"{run['engine']} {run['precision']}: {run['error']}")
            continue
        joules, steps = run["joules_per_token"], (run["step_ms"], run["step_cpu_ms"])
        cells = [*(run[key] for key in keys), *(f"{ms:.3f}" for ms in steps)]
        rows.append([*cells, joules and joules * 1e3])
        if run["lanes_ms"]:
            notes.append(
                f"{run['precision']}, {run['threads']} threads: a forward of "
                f"{run['lanes']} sequences takes {run['lanes_ms'] / run['step_ms']:.2f} "
                "times that of one"
            )
        notes += run["warnings"]
    reasons = {run.get("energy_why_null") for run in document["runs"]} - {None}
    notes += [f"no joules: {reason}" for reason in sorted(reasons)]
    for engine, size in document["install"].items():
        parts = ", ".join(
            f"{name} {mb:.1f}" for name, mb in size["parts_mb"].items() if mb is not None
        )
        total = size["total_mb"]
        said = size["why_null"] if total is None else f"{total:.0f} MB"
        notes.append(f"installed with {engine}: {said} ({parts})")
    return "\n\n".join([head, format_table(header, rows), "\n".join(notes)])
