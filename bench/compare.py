"""``draftwire bench compare``: every scheme beside every other, live or simulated.

One table from one run: the same target, prompts and seeds for all rows, over the same
links, in turns. Every run checks law 1: rows whose text is decided by the target and the
seed must have written the same text to the token.
"""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from draftwire.bench.compare_schemes import Entry
from draftwire.bench.compare_table import different_texts, rows_of
from draftwire.bench.link import LinkSpec
from draftwire.bench.link.emulate import choose_method
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.reports import run_report
from draftwire.bench.sim.simulate import Plan, simulate, tuned
from draftwire.bench.sim.texts import Source, Synthetic, Text, parse_luck
from draftwire.errors import ConfigError

__all__ = ["LINKS", "SCHEMA", "Settings", "compare"]

SCHEMA = "draftwire.bench.compare/1"
LINKS = ("lan", "wan", "poor")
TRACE_RTT = "40ms"  # traces tell a rate alone
_VANILLA_BLOCK = 4  # as published
_REAL = "nano-a100"  # whose clock a simulation of the reference models has


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        draft: Draft package.
        target: Target package.
        entries: The rows.
        links: Text forms; empty takes ``LINKS``.
        traces: Files with a rate over time; each is a link of 40 ms.
        profile: Timing profile to pace to, or None for the models' own time.
        acceptance: Play texts of this luck in place of the models; needs a profile.
        recording: Play a recording of real models; needs a profile.
        prompts: What to continue.
        count: How many texts to play.
        tokens: Of each text.
        repeats: Runs of everything, in turns.
        block: Tokens of a block, where a row has a fixed length; None lets the
            simulator choose each row's best over each link.
        temperature: 0 is greedy.
        top_k: Of the sampled rows.
        top_p: Likewise.
        seed: Of the first prompt; each further one adds 1.
        method: Of the link emulator.
        threads: Of either engine.
        simulated: In virtual time, by the simulator.

    Raises:
        ConfigError: A value is out of range, or two of them exclude each other.
    """

    draft: Path
    target: Path
    entries: Sequence[Entry]
    links: Sequence[str] = ()
    traces: Sequence[Path] = ()
    profile: str | None = None
    acceptance: str | None = None
    recording: Path | None = None
    prompts: Sequence[str] = ()
    count: int = 3
    tokens: int = 64
    repeats: int = 3
    block: int | None = 4
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 1
    method: str = "auto"
    threads: int = 1
    simulated: bool = False

    def __post_init__(self) -> None:
        for name, value, most in (
            ("count", self.count, 1000),
            ("tokens", self.tokens, 100_000),
            ("repeats", self.repeats, 1000),
            ("block", 1 if self.block is None else self.block, 64),
            ("threads", self.threads, 1024),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}, must be within 1..{most}")
        played = [x for x in (self.acceptance, self.recording) if x is not None]
        if len(played) == 2:
            raise ConfigError("a recording and an acceptance exclude each other")
        if played and self.profile is None and not self.simulated:
            raise ConfigError(
                "texts that are played take no time of their own",
                hint="pace them: --profile nano-a100, or another one",
            )
        if self.block is None and not played and not self.simulated:
            raise ConfigError(
                "the best block length is found on texts that are known beforehand",
                hint="give --k a number, or play texts: --acceptance 0.8",
            )
        if played and self.prompts:
            raise ConfigError("texts that are played have prompts of their own")
        if self.temperature and (played or self.simulated):
            raise ConfigError(
                "played and simulated texts are greedy", hint="leave --temperature out"
            )
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}, must be at least 0")


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
    known: Mapping[int, Sequence[int]] | None
    if settings.simulated:
        reports, about, used, known, text = _simulated(settings, profile, links, say)
    else:
        reports, about, used, known, text = _live(settings, profile, links, say)
    left_out = [
        {"scheme": entry.name, "why": why}
        for entry, why in ((e, _why_not(e, settings, profile)) for e in settings.entries)
        if why
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
        "text": text,
        "tokens": settings.tokens,
        "repeats": settings.repeats,
        "block": settings.block,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "links": about,
        "left_out": left_out,
        "rows": rows_of(reports),
        "different": different_texts(reports, known),
        "compared": sum(1 for report in reports if report["bench"]["same_text"]),
        "schemes": [entry.name for entry in used],
        "runs": reports,
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


def _why_not(entry: Entry, settings: Settings, profile: Profile | None) -> str:
    """Return why a row cannot be run here, or ""."""
    if entry.scheme.place == "cloud" and profile is not None:
        step = profile["cloud.draft_step_ms"]
        if step != step:
            return f"profile {profile.name} does not say what drafting in the cloud takes"
    if entry.needs_exits:
        played = settings.acceptance is not None or settings.recording is not None
        if played or (settings.simulated and profile is not None):
            if profile is None or not profile.exits:
                return "the profile has no early exits"
        elif settings.simulated:
            return "early exits of real models are not simulated"
        else:
            from draftwire.packages import load_target

            if load_target(settings.target).exits is None:
                return "the target has no early exits (draftwire export exits)"
    return ""


def _used(settings: Settings, profile: Profile | None) -> list[Entry]:
    used = [e for e in settings.entries if not _why_not(e, settings, profile)]
    if not used:
        why = _why_not(settings.entries[0], settings, profile)
        raise ConfigError(f"no row can be run: {why}")
    return used


def _source(settings: Settings, profile: Profile | None) -> Source | None:
    """Return where played texts come from, or None for models."""
    if settings.recording is not None:
        from draftwire.bench.sim.recording import read_recording

        return read_recording(settings.recording)
    if settings.acceptance is None:
        return None
    length = 64 if profile is None else int(profile["text.prompt_tokens"])
    luck = parse_luck(settings.acceptance)
    return Synthetic(luck, seed=settings.seed, prompt_tokens=max(8, length))


_Found = tuple[
    "list[dict[str, Any]]",
    "list[dict[str, Any]]",
    "list[Entry]",
    "Mapping[int, Sequence[int]] | None",
    str,
]


def _live(
    settings: Settings,
    profile: Profile | None,
    links: Sequence[LinkSpec],
    say: Callable[[str], None],
) -> _Found:
    from draftwire.bench.compare_live import LiveRun, run_live
    from draftwire.packages import load_draft, load_target, load_tokenizer
    from draftwire.sampling import SamplingParams

    used = _used(settings, profile)
    draft, target = load_draft(settings.draft), load_target(settings.target)
    vocabulary = min(draft.vocab_size, target.vocab_size)
    source, texts = _source(settings, profile), _Texts()
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
            block=settings.block or _VANILLA_BLOCK,
            best=_best_blocks(settings, profile, links, used, source, say),
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
    return reports, about, used, known, texts.about


def _chosen(entry: Entry, settings: Settings) -> bool:
    """Whether a row's block length is the best one, and not one that was asked for."""
    if entry.block is not None or not entry.scheme.tunable:
        return False
    if entry.scheme.place == "cloud":
        return True  # a server that hosts both would tune it
    return settings.block is None and entry.name != "vanilla"


def _best_blocks(
    settings: Settings,
    profile: Profile | None,
    links: Sequence[LinkSpec],
    used: Sequence[Entry],
    source: Source | None,
    say: Callable[[str], None],
) -> dict[tuple[str, str], int]:
    """Return each row's best length over each link, on the same texts in virtual time."""
    found: dict[tuple[str, str], int] = {}
    if settings.block is not None or profile is None:
        return found
    for link in links:
        for entry in used:
            if not _chosen(entry, settings) or entry.scheme.place == "cloud":
                continue
            plan = Plan(
                profile,
                entry.scheme,
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


def _findable(profile: str | None) -> str | None:
    """Return how another process finds the profile, wherever it runs."""
    if profile is None or not profile.endswith(".toml"):
        return profile
    return str(Path(profile).resolve())


def _simulated(
    settings: Settings,
    profile: Profile | None,
    links: Sequence[LinkSpec],
    say: Callable[[str], None],
) -> _Found:
    used = _used(settings, profile)
    source = _source(settings, profile)
    clock = find(_REAL) if profile is None else profile
    job, vocabulary, about = None, None, ""
    if source is not None:
        about = source.name
        if settings.recording is not None:
            vocabulary = getattr(source, "vocabulary", None)
    elif settings.profile is None:
        from draftwire.bench.sim.command import real_jobs

        version = settings.target.name.replace(".target", "")
        job, vocabulary = real_jobs(version)
        about = f"reference draft, target {version}"
    else:
        about = f"synthetic texts of profile {clock.name}"
    reports = []
    for link in links:
        for entry in used:
            say(f"{link.name}: {entry.name}")
            plan = Plan(
                clock,
                entry.scheme,
                link=link,
                source=source,
                block=entry.block or settings.block or _VANILLA_BLOCK,
                streams=settings.count,
                tokens=settings.tokens,
                seed=settings.seed,
                job=job,
                vocabulary=vocabulary,
            )
            outcome = tuned(plan) if _chosen(entry, settings) else simulate(plan)
            for stream in outcome.streams:
                report = run_report(outcome, stream)
                report["bench"] = {
                    "scheme": entry.name,
                    "link": link.name,
                    "repeat": 0,
                    "prompt": stream.number,
                    "place": entry.scheme.place,
                    "same_text": True,
                    "first_tokens": stream.first_tokens,
                    "last_token_s": stream.last_s - stream.began_s,
                    "simulated": True,
                    "pace": clock.name,
                }
                reports.append(report)
    specs = [
        {"name": link.name, "method": "simulated", "notes": [], "spec": link.to_dict()}
        for link in links
    ]
    return reports, specs, used, None, about


def _scheduling() -> str:
    """Return how the kernel schedules this process."""
    names = {os.SCHED_FIFO: "fifo", os.SCHED_RR: "rr", os.SCHED_OTHER: "normal"}
    return names.get(os.sched_getscheduler(0), "other")
