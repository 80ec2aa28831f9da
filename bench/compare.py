"""``draftwire bench compare``: every scheme beside every other, live or simulated.

One table from one run: the same target, prompts and seeds for all rows, over the same
links, in turns. Every run checks law 1: rows whose text is decided by the target and the
seed must have written the same text to the token.
"""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.bench.compare_settings import (
    Found,
    Settings,
    links_of,
    source_of,
    usable,
    why_not,
)
from draftwire.bench.compare_simulated import VANILLA_BLOCK, best_blocks, run_simulated
from draftwire.bench.compare_table import different_texts, rows_of
from draftwire.bench.link import LinkSpec
from draftwire.bench.link.emulate import choose_method
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.texts import Text
from draftwire.errors import ConfigError

__all__ = ["SCHEMA", "Settings", "compare"]

SCHEMA = "draftwire.bench.compare/1"


@dataclass
class _Texts:
    """What is written: prompts for models, or texts to play."""

    prompts: list[Sequence[int]] = field(default_factory=list)
    played: list[Text] | None = None
    about: str = ""


def compare(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a comparison.

    Args:
        settings: What.
        say: Told what is going on.

    Returns:
        A document for ``--json``: settings, rows, the run reports that they were made
        from, and under ``different`` a sentence for each text that broke law 1.

    Raises:
        ConfigError: A setting, a package, a link or a profile is wrong.
        TransportError: The verifier does not start.
        BoardError: The link cannot be emulated.
    """
    links = links_of(settings)
    if not settings.simulated:
        for link in links:
            choose_method(link, settings.method)  # before anything is started for nothing
    profile = None if settings.profile is None else find(settings.profile)
    begun = datetime.datetime.now(datetime.timezone.utc)
    load = os.getloadavg()[0]
    used = usable(settings, profile)
    run = run_simulated if settings.simulated else _live
    found = run(settings, used, profile, links, say)
    left_out = [
        {"scheme": entry.name, "why": why_not(entry, settings, profile)}
        for entry in settings.entries
        if entry not in used
    ]
    return {
        "schema": SCHEMA,
        "command": "bench compare",
        "simulated": settings.simulated,
        "date": begun.strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_1min": round(load, 1),
            "python": platform.python_version(),
            "scheduling": _scheduling(),
        },
        "paced_to": None if profile is None else profile.name,
        "text": found.text,
        "tokens": settings.tokens,
        "repeats": settings.repeats,
        "block": settings.block,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "links": found.links,
        "left_out": left_out,
        "rows": rows_of(found.reports),
        "different": different_texts(found.reports, found.known),
        "compared": sum(1 for report in found.reports if report["bench"]["same_text"]),
        "schemes": [entry.name for entry in used],
        "runs": found.reports,
    }


def _live(
    settings: Settings,
    used: Sequence[Scheme],
    profile: Profile | None,
    links: Sequence[LinkSpec],
    say: Callable[[str], None],
) -> Found:
    from draftwire.bench.compare_live import LiveRun, run_live
    from draftwire.packages import load_draft, load_target, load_tokenizer
    from draftwire.sampling import SamplingParams

    draft, target = load_draft(settings.draft), load_target(settings.target)
    vocabulary = min(draft.vocab_size, target.vocab_size)
    source, texts = source_of(settings, profile), _Texts()
    if source is not None:
        from draftwire.bench.pace_played import played_texts

        texts.played = played_texts(
            source, settings.count, settings.tokens, vocab_size=vocabulary
        )
        texts.prompts = [text.prompt for text in texts.played]
        texts.about = source.name
    else:
        tokenizer = load_tokenizer(draft.tokenizer_path)
        texts.prompts = [
            tokenizer.encode(prompt, bos_id=draft.bos_id) for prompt in settings.prompts
        ]
        texts.about = f"draft {draft.name}, target {target.name} {target.version}"
    if not texts.prompts:
        raise ConfigError("there is no prompt to continue")
    sampled = settings.temperature > 0
    params = [
        SamplingParams(
            "coupled" if sampled else "greedy",
            settings.temperature,
            settings.top_k if sampled else 0,
            settings.top_p if sampled else 1.0,
            settings.seed + number,
        )
        for number in range(len(texts.prompts))
    ]
    reports, about = run_live(
        LiveRun(
            draft=draft,
            target=target,
            entries=used,
            links=links,
            prompts=texts.prompts,
            params=params,
            tokens=settings.tokens,
            repeats=settings.repeats,
            block=settings.block or VANILLA_BLOCK,
            best=best_blocks(settings, profile, links, used, source, say),
            profile=profile,
            profile_name=_findable(settings.profile),
            texts=texts.played,
            # A profile's models have a vocabulary of their own.
            vocabulary=vocabulary if profile is None else int(profile["text.vocabulary"]),
            method=settings.method,
            threads=settings.threads,
        ),
        say,
    )
    for report in reports:
        report["bench"].update(simulated=False, pace=settings.profile)
    known = None
    if texts.played is not None:
        known = {i: text.tokens for i, text in enumerate(texts.played)}
    return Found(reports, about, texts.about, known)


def _findable(profile: str | None) -> str | None:
    """Return how another process finds the profile, wherever it runs."""
    if profile is None or not profile.endswith(".toml"):
        return profile
    return str(Path(profile).resolve())


def _scheduling() -> str:
    """Return how the kernel schedules this process."""
    names = {os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr", os.SCHED_OTHER: "normal"}
    return names.get(os.sched_getscheduler(0), "other")
