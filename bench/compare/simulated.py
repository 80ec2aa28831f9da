"""A comparison in virtual time, and the block lengths that are best there."""

from __future__ import annotations

from typing import Callable, Sequence

from draftwire.bench.compare.settings import Found, Settings, source_of
from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.reports import run_report
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.simulate import Plan, simulate, tuned
from draftwire.bench.sim.texts import Source

VANILLA_BLOCK = 4  # as published
_REAL = "nano-a100"  # whose clock a simulation of the reference models has


def _chosen(entry: Scheme, settings: Settings) -> bool:
    """Whether a row's block length is the best one, and not one that was asked for."""
    if not entry.tunable:
        return False
    if entry.place == "cloud":
        return True  # a server that hosts both would tune it
    return settings.block is None and entry.name != "vanilla"


def best_blocks(
    settings: Settings,
    profile: Profile | None,
    links: Sequence[LinkSpec],
    used: Sequence[Scheme],
    source: Source | None,
    say: Callable[[str], None],
) -> dict[tuple[str, str], int]:
    """Return each row's best length over each link, on the same texts in virtual time."""
    found: dict[tuple[str, str], int] = {}
    if settings.block is not None or profile is None:
        return found
    for link in links:
        for entry in used:
            if not _chosen(entry, settings) or entry.place == "cloud":
                continue
            plan = Plan(
                profile,
                entry,
                link=link,
                source=source,
                streams=settings.count,
                tokens=settings.tokens,
                seed=settings.seed,
            )
            best = tuned(plan).block
            assert best is not None
            say(f"{link.name}: the best block of {entry.name} has {best} tokens")
            found[link.name, entry.name] = best
    return found


def run_simulated(
    settings: Settings,
    used: Sequence[Scheme],
    profile: Profile | None,
    links: Sequence[LinkSpec],
    say: Callable[[str], None],
) -> Found:
    """Run every row over every link in virtual time, on the clock of ``profile``."""
    source = source_of(settings, profile)
    clock = find(_REAL) if profile is None else profile
    job, backend, vocabulary, about = None, None, None, ""
    if source is not None:
        about = source.name
        if settings.recording is not None:
            vocabulary = getattr(source, "vocabulary", None)
    elif settings.profile is None:
        from draftwire.bench.sim.command import real_jobs

        version = settings.target.name.replace(".target", "")
        job, backend, vocabulary = real_jobs(version)
        about = f"reference draft, target {version}"
    else:
        about = f"synthetic texts of profile {clock.name}"
    reports = []
    for link in links:
        for entry in used:
            say(f"{link.name}: {entry.name}")
            plan = Plan(
                clock,
                entry,
                link=link,
                source=source,
                block=settings.block or VANILLA_BLOCK,
                streams=settings.count,
                tokens=settings.tokens,
                seed=settings.seed,
                job=job,
                backend=backend,
                vocabulary=vocabulary,
            )
            outcome = tuned(plan) if _chosen(entry, settings) else simulate(plan)
            for stream in outcome.streams:
                report = run_report(outcome, stream)
                report["bench"].update(
                    scheme=entry.name,
                    link=link.name,
                    repeat=0,
                    same_text=True,
                    simulated=True,
                    pace=clock.name,
                )
                reports.append(report)
    specs = [
        {"name": link.name, "method": "simulated", "notes": [], "spec": link.to_dict()}
        for link in links
    ]
    return Found(reports, specs, about)
