"""``draftwire bench compare``: every scheme beside every other, live or simulated.

One table from one run: the same target, prompts and seeds for all rows, over the same
links, in turns. Every run checks law 1: rows whose text is decided by the target and the
seed must have written the same text to the token.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.link.emulate import choose_method
from draftwire.bench.machine import machine
from draftwire.bench.sim.command import (
    Question,
    block_of,
    draft_of,
    plan_of,
    target_of,
    why_not,
)
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.schemes import DEFAULT_ROWS, ROWS, Scheme, schemes_named
from draftwire.bench.sim.simulate import Plan, simulate, tuned
from draftwire.bench.sim.table import different_texts, rows_of
from draftwire.errors import ConfigError
from draftwire.packages import load_target

SCHEMA = "draftwire.bench.compare/1"
LINKS = ("lan", "wan", "poor")
TRACE_RTT = "40ms"  # traces tell a rate alone
VANILLA_BLOCK = 4  # as published


@dataclass(frozen=True)
class Settings(Question):
    """What to compare: a question, and how its rows are run.

    Raises:
        ConfigError: A value is out of range, or two of them exclude each other.
    """

    # timing profile whose time the models take; none leaves them their own. Texts that are
    # played (an acceptance, a recording) need one.
    profile: str = ""
    schemes: str | None = DEFAULT_ROWS  # the rows
    # tokens of a block, where a row has a fixed length; ``"best"``: each row's best over
    # each link, as the simulator finds it
    block: str | None = "4"
    streams: int = 3  # how many texts to play
    tokens: int = 64  # of each text
    links: Sequence[str] = ()  # text forms; empty takes ``LINKS``
    traces: Sequence[Path] = ()  # files with a rate over time; each is a link of 40 ms
    target: str = "v1"  # name of a reference target, or a target package
    prompts: Sequence[str] = ()  # what the models continue; none takes the demo's
    rounds: int = 3  # runs of everything, in turns
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 50  # of the sampled rows
    top_p: float = 1.0  # likewise
    method: str = "auto"  # of the link emulator
    threads: int = 1  # of either engine
    simulated: bool = False  # in virtual time, by the simulator

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, most in (
            ("texts", self.streams, 1000),
            ("tokens", self.tokens, 100_000),
            ("repeats", self.rounds, 1000),
            ("block", self.length or 1, 64),
            ("threads", self.threads, 1024),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}, must be within 1..{most}")
        if self.played and not self.profile and not self.simulated:
            raise ConfigError(
                "texts that are played take no time of their own",
                hint="pace them: --profile nano-a100, or another one",
            )
        if self.length is None and not self.played and not self.simulated:
            raise ConfigError(
                "the best block length is found on texts that are known beforehand",
                hint="give --k a number, or play texts: --acceptance 0.8",
            )
        if self.prompts and (self.played or self.simulated):
            raise ConfigError(
                "texts that are played or simulated have prompts of their own"
            )
        if self.temperature and (self.played or self.simulated):
            raise ConfigError(
                "played and simulated texts are greedy", hint="leave --temperature out"
            )
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}, must be at least 0")

    @property
    def played(self) -> bool:
        """True when the texts are known beforehand and no model runs."""
        return self.acceptance is not None or self.recording is not None

    @property
    def length(self) -> int | None:
        """Tokens of a block; None is the best length."""
        return block_of(self.block)

    def plan(self, profile: Profile) -> Plan:
        """Return what the simulator runs of each row: the same texts, on that clock."""
        real = None if self.played or self.profile else self.target
        plan = plan_of(replace(self, real=real), profile)
        return replace(plan, block=plan.block or VANILLA_BLOCK)

    def chosen(self, entry: Scheme) -> bool:
        """Whether a row's block length is the best one, and not one that was asked for."""
        # A server that hosts both models would tune it.
        wanted = self.length is None and entry.name != "vanilla"
        return entry.tunable and (wanted or entry.place == "cloud")


@dataclass(frozen=True)
class Found:
    """What the runs of a comparison gave."""

    reports: list[dict[str, Any]]  # of every run, in the order of the runs
    links: list[dict[str, Any]]  # what each link was
    text: str  # what was written, in words
    # the target's own text of each prompt, where it is known beforehand
    known: Mapping[int, Sequence[int]] | None = None


def compare(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a comparison; return the document for ``--json``.

    That has settings, rows, the run reports that they were made from, and under
    ``different`` a sentence for each text that broke law 1. A ConfigError where a setting,
    a package, a link or a profile is wrong, a TransportError where the verifier does not
    start, a BoardError where the link cannot be emulated.
    """
    entries, links = schemes_named(settings.schemes or "", ROWS), links_of(settings)
    target_of(settings.target)
    if not settings.simulated:
        for link in links:
            choose_method(link, settings.method)  # before anything is started for nothing
    profile = find(settings.profile) if settings.profile else None
    at_once = 1 if profile is None else profile["draft.at_once"]
    if at_once > 1 and settings.played and not settings.simulated:
        raise ConfigError(
            "a draft that says several tokens in one forward is simulated, not played",
            hint="--simulate, or a profile whose draft.at_once is 1",
        )
    begun = datetime.datetime.now(datetime.timezone.utc)
    about = machine()  # before the load is ours
    whys = {entry.name: _why_not(entry, settings, profile) for entry in entries}
    used = [entry for entry in entries if not whys[entry.name]]
    if not used:
        raise ConfigError(f"no row can be run: {next(iter(whys.values()))}")
    if settings.simulated:
        found = run_simulated(settings, used, profile, links, say)
    else:
        from draftwire.bench.compare.live import LiveRun

        found = LiveRun(settings, used, profile, links, say).found()
    kinds = {os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr", os.SCHED_OTHER: "normal"}
    scheduling = kinds.get(os.sched_getscheduler(0), "other")
    return {
        "schema": SCHEMA,
        "command": "bench compare",
        "simulated": settings.simulated,
        "date": begun.strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**about, "scheduling": scheduling},
        "paced_to": None if profile is None else profile.name,
        "text": found.text,
        "tokens": settings.tokens,
        "repeats": settings.rounds,
        "block": settings.length,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "links": found.links,
        "left_out": [{"scheme": name, "why": why} for name, why in whys.items() if why],
        "rows": rows_of(found.reports),
        "different": different_texts(found.reports, found.known),
        "compared": sum(1 for report in found.reports if report["bench"]["same_text"]),
        "schemes": [entry.name for entry in used],
        "runs": found.reports,
    }


def links_of(settings: Settings) -> list[LinkSpec]:
    """Return the links to run over.

    Raises:
        ConfigError: One is wrong, or two have the same name.
    """
    texts = list(settings.links)
    if not texts and not settings.traces:
        texts = list(LINKS)
    links = [LinkSpec.parse(text) for text in texts]
    for path in settings.traces:
        if not path.is_file():
            raise ConfigError(f"there is no trace at {path}", hint="check the path")
        link = LinkSpec.parse(f"{TRACE_RTT}/trace:{path}")
        links.append(replace(link, name=f"{TRACE_RTT}/{path.stem}"))
    names = [link.name for link in links]
    if len(set(names)) < len(names):
        raise ConfigError("a link is asked for twice")
    return links


def _why_not(entry: Scheme, settings: Settings, profile: Profile | None) -> str:
    """Return why a row cannot be run here, or ""."""
    if settings.played or (settings.simulated and profile is not None):
        return why_not(entry, profile, profile is not None and bool(profile.exits))
    if settings.simulated:
        if "draft" in entry.helps:
            return "a draft beside the target plays texts that are known beforehand"
        why = "early exits of real models are not simulated"
        return why if why_not(entry, profile, False) else ""
    if (
        why_not(entry, None, False)
        and load_target(target_of(settings.target)).exits is None
    ):
        return "the target has no early exits (draftwire export exits)"
    return why_not(entry, profile, True)


def run_simulated(
    settings: Settings,
    used: Sequence[Scheme],
    profile: Profile | None,
    links: Sequence[LinkSpec],
    say: Callable[[str], None],
) -> Found:
    """Run every row over every link in virtual time, on the clock of ``profile``."""
    clock = profile or find(Question.profile)  # of real models too
    plan = settings.plan(clock)
    about = plan.texts.name
    if plan.job is not None:
        names = draft_of(settings.draft).name, target_of(settings.target).stem
        about = "{} draft, target {}".format(*names)
    elif not settings.played:
        about = f"synthetic texts of profile {clock.name}"
    reports = []
    for link in links:
        for entry in used:
            say(f"{link.name}: {entry.name}")
            one = replace(plan, scheme=entry, link=link)
            outcome = tuned(one) if settings.chosen(entry) else simulate(one)
            for report in outcome.reports:
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
