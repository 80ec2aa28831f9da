"""What a comparison is asked for, checked; and which of its rows can be run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.texts import Source, Synthetic, parse_luck
from draftwire.errors import ConfigError

LINKS = ("lan", "wan", "poor")
TRACE_RTT = "40ms"  # traces tell a rate alone


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Raises:
        ConfigError: A value is out of range, or two of them exclude each other.
    """

    draft: Path  # draft package
    target: Path  # target package
    entries: Sequence[Scheme]  # the rows
    links: Sequence[str] = ()  # text forms; empty takes ``LINKS``
    traces: Sequence[Path] = ()  # files with a rate over time; each is a link of 40 ms
    # timing profile to pace to, or None for the models' own time
    profile: str | None = None
    # play texts of this luck in place of the models; needs a profile
    acceptance: str | None = None
    recording: Path | None = None  # play a recording of real models; needs a profile
    prompts: Sequence[str] = ()  # what to continue
    count: int = 3  # how many texts to play
    tokens: int = 64  # of each text
    repeats: int = 3  # runs of everything, in turns
    # tokens of a block, where a row has a fixed length; None lets the simulator choose each
    # row's best over each link
    block: int | None = 4
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 50  # of the sampled rows
    top_p: float = 1.0  # likewise
    seed: int = 1  # of the first prompt; each further one adds 1
    method: str = "auto"  # of the link emulator
    threads: int = 1  # of either engine
    simulated: bool = False  # in virtual time, by the simulator

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


@dataclass(frozen=True)
class Found:
    """What the runs of a comparison gave."""

    reports: list[dict[str, Any]]  # of every run, in the order of the runs
    links: list[dict[str, Any]]  # what each link was
    text: str  # what was written, in words
    # the target's own text of each prompt, where it is known beforehand
    known: Mapping[int, Sequence[int]] | None = None


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


def why_not(entry: Scheme, settings: Settings, profile: Profile | None) -> str:
    """Return why a row cannot be run here, or ""."""
    if entry.cloud_drafts and profile is not None:
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


def usable(settings: Settings, profile: Profile | None) -> list[Scheme]:
    """Return the rows that can be run.

    Raises:
        ConfigError: None can.
    """
    used = [e for e in settings.entries if not why_not(e, settings, profile)]
    if not used:
        why = why_not(settings.entries[0], settings, profile)
        raise ConfigError(f"no row can be run: {why}")
    return used


def source_of(settings: Settings, profile: Profile | None) -> Source | None:
    """Return where played texts come from, or None for models."""
    if settings.recording is not None:
        from draftwire.bench.sim.recording import read_recording

        return read_recording(settings.recording)
    if settings.acceptance is None:
        return None
    length = 64 if profile is None else int(profile["text.prompt_tokens"])
    luck = parse_luck(settings.acceptance)
    return Synthetic(luck, seed=settings.seed, prompt_tokens=max(8, length))
