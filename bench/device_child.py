"""What one fresh process measures of one engine: how it starts, and how it drafts.

The parent gives its own monotonic time at the start, so that the interpreter's start
counts too.  Only the standard library is imported before the clock runs.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from typing import Any

PROMPT = "The robot goes to the kitchen, takes the red cup from the table and"
STEPS = 16  # tokens of a round: long enough for the clock
_FEWEST_CLEAN = 8
_MOST_TRIES = 5
_ENERGY_S = 2.0


def main(arguments: str) -> None:
    """Measure what the JSON ``arguments`` ask for, and print one JSON object.

    They are ``started`` (monotonic seconds), ``draft``, ``engine``, ``precision``,
    ``threads``, ``provider``, ``rounds`` and ``energy``.
    """
    wanted = json.loads(arguments)
    begun, cpu = time.monotonic(), time.process_time()
    import draftwire.runtime.edge.machine
    import draftwire.runtime.text
    from draftwire.errors import DraftwireError
    from draftwire.packages import load_draft, load_tokenizer
    from draftwire.runtime.engines.choice import importable
    from draftwire.runtime.engines.draft_model import DraftModel
    from draftwire.sampling import SamplingParams, make_proposer

    del draftwire
    importable(wanted["engine"])
    found: dict[str, Any] = {
        "import_s": time.monotonic() - begun,
        "import_cpu_s": time.process_time() - cpu,
        "rss_import_mb": rss(),
    }
    begun = time.monotonic()
    package = load_draft(wanted["draft"])
    found["package_s"] = time.monotonic() - begun
    begun = time.monotonic()
    warnings: list[str] = []
    try:
        tokenizer = load_tokenizer(package.tokenizer_path)
        prompt = tokenizer.encode(PROMPT, bos_id=package.bos_id)
        found["tokenizer_s"] = time.monotonic() - begun
    except DraftwireError as exc:  # a board without tokenizers still drafts
        prompt = [token % package.vocab_size for token in range(1, 18)]
        found["tokenizer_s"] = None
        warnings.append(f"no text was tokenized: {exc}")
    begun = time.monotonic()
    model = DraftModel.load(
        package,
        engine=wanted["engine"],
        precision=wanted["precision"],
        threads=wanted["threads"],
        provider=wanted["provider"],
    )
    found["load_s"] = time.monotonic() - begun
    found["rss_loaded_mb"] = rss()
    propose = make_proposer(SamplingParams(), model.vocab_size).propose
    begun = time.monotonic()
    token = propose(model.forward(prompt), len(prompt)).token
    found["prefill_s"] = time.monotonic() - begun
    found["first_token_s"] = time.monotonic() - wanted["started"]
    found["first_token_cpu_s"] = time.process_time()
    found["engine_version"] = model.engine
    found["warnings"] = [*model.warnings, *warnings]
    context = len(prompt)

    def draft() -> int:
        model.rewind(context)
        last = token
        for position in range(context + 1, context + 1 + STEPS):
            last = propose(model.forward((last,)), position).token
        return last

    draft()
    found.update(rate(draft, int(wanted["rounds"])))
    lanes = (model, *model.beside)
    found["lanes"], found["lanes_ms"] = len(lanes), None
    if model.beside:

        def side_by_side() -> None:
            model.rewind(context)
            for lane in model.beside:
                lane.rewind(min(lane.length, context))
                lane.copy(model, context)
            for _ in range(STEPS):
                model.wide(dict.fromkeys(range(len(lanes)), token))

        side_by_side()
        found["lanes_ms"] = rate(side_by_side, int(wanted["rounds"]))["step_ms"]
    found["rss_drafting_mb"] = rss()
    found["peak_rss_mb"] = peak()
    found.update(power(draft) if wanted["energy"] else {})
    json.dump(found, sys.stdout)


def rate(draft: Any, rounds: int) -> dict[str, Any]:
    """Return the time of a step; rounds in which another process took the core are left
    out where enough others are there."""
    times: list[float] = []
    clean: list[float] = []
    cpu: list[float] = []
    while len(clean) < rounds and len(times) < _MOST_TRIES * rounds:
        before = preemptions()
        start, spent = time.perf_counter(), time.process_time()
        draft()
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - spent)
        if preemptions() == before:
            clean.append(times[-1])
    kept = clean if len(clean) >= _FEWEST_CLEAN else times
    step_s = statistics.median(kept) / STEPS
    return {
        "step_ms": step_s * 1e3,
        "step_cpu_ms": statistics.median(cpu) / STEPS * 1e3,
        "rounds": len(times),
        "rounds_undisturbed": len(clean),
    }


def power(draft: Any) -> dict[str, Any]:
    """Draft for a while under a power meter; joules, or why there are none."""
    from draftwire import energy
    from draftwire.errors import SensorError

    found: dict[str, Any] = {"joules_per_token": None, "watts": None}
    try:
        meter = energy.open_meter(energy.load_tables())
    except SensorError as exc:
        return {**found, "energy_why_null": str(exc)}
    meter.start()
    tokens = 0
    try:
        with energy.measure("draft", meter=meter) as window:
            end = time.monotonic() + _ENERGY_S
            while time.monotonic() < end:
                draft()
                tokens += STEPS
    finally:
        meter.close()
    joules = window.energy_j
    if joules is not None:
        found["joules_per_token"] = joules / tokens
        found["watts"] = window.result.mean_w
    return {
        **found,
        "energy_source": window.source,
        "energy_why_null": window.why_null,
    }


def rss() -> float | None:
    """Return resident megabytes, or None where there is no ``/proc``."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    """Return the most megabytes that were ever resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def preemptions() -> int:
    """Return how often the system took the processor away from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
