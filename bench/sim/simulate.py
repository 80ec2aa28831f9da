"""Runs of the simulator: a scheme on a profile over a link, and what came of it."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Iterable, Iterator, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.cloud import ForwardCost, SimVerifier, TargetModel, TextBackend
from draftwire.bench.sim.device import StepCost
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.run import Device, Job, Setting, StreamResult
from draftwire.bench.sim.schemes import Scheme
from draftwire.bench.sim.texts import (
    Source,
    Synthetic,
    Text,
    TextDraft,
    TextTarget,
    parse_luck,
)
from draftwire.clock import VirtualClock
from draftwire.errors import ConfigError
from draftwire.runtime.drafter import Model
from draftwire.runtime.pacing.controller import Controller, make_controller
from draftwire.verifier.backends.base import TargetBackend

BLOCKS = range(1, 17)
OBJECTIVES = ("latency", "cost", "energy")
FORWARD_PRICE = 0.25  # seconds that a second of the target is worth, as the controller's


class StuckError(RuntimeError):
    """A simulated stream waits for something that never comes (our bug)."""


@dataclass(frozen=True)
class TextJob:
    """A stream whose text is known beforehand."""

    text: Text  # what is written
    seed: int = 0  # of the exits' dice
    stop_ids: Sequence[int] = ()

    @property
    def prompt(self) -> Sequence[int]:
        """The prompt's ids."""
        return self.text.prompt

    def draft(self) -> Model:
        """Return the draft's model."""
        return TextDraft(self.text)

    def target(self) -> TargetModel:
        """Return the target's model."""
        return TextTarget(self.text, self.seed)


@dataclass(frozen=True)
class RealJob:
    """A stream of real models in virtual time: their logits, and a profile's clock."""

    model: Model  # the draft, shared by all streams of the device, one after another
    prompt: Sequence[int]  # token ids
    stop_ids: Sequence[int] = ()  # ids that end the text

    def draft(self) -> Model:
        """Return the draft, its cache empty."""
        self.model.rewind(0)
        return self.model

    def target(self) -> None:
        """The backend has the target."""


@dataclass(frozen=True)
class Plan:
    """What to simulate."""

    profile: Profile  # what things take
    scheme: Scheme  # how draft and target work together
    link: LinkSpec | None = None  # none takes the profile's
    # where texts come from; None makes synthetic ones from the profile
    source: Source | None = None
    # block length of schemes that have one; None takes the profile's
    block: int | None = None
    # another length policy than the scheme's: its spec, or one that all streams share
    controller: str | Controller | None = None
    streams: int = 4  # how many, one after another, on each device
    tokens: int = 256  # of each stream
    hours: float | None = None  # end after so much virtual time, whatever `streams` says
    sessions: int = 1  # devices at the same time on one verifier
    seed: int = 1  # of everything random
    decode: bool = False  # decode every frame
    # makes the job of stream ``i`` instead of `source`, for real models
    job: Callable[[int], Job] | None = None
    backend: TargetBackend | None = None  # their target
    # ids on the connection are below this; None takes the profile's
    vocabulary: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    plan: Plan  # what was simulated
    link: LinkSpec  # over which link
    controller: str  # the length policy's name
    block: int | None  # its block length, or None
    streams: Sequence[StreamResult]  # results of all streams of all devices
    seconds: float  # virtual time of the run, from when the first user asks
    events: int  # things that happened
    forwards: int  # of the target for all streams, prompts apart
    busy_s: float  # seconds that the target was busy

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(s.ids) for s in self.streams)

    @property
    def ms_per_token(self) -> float:
        """Time per output token after the first ones, milliseconds."""
        seconds = sum(s.last_s - (s.first_s or 0.0) for s in self.streams)
        tokens = sum(len(s.ids) - s.first_tokens for s in self.streams)
        return 1e3 * seconds / tokens if tokens else math.nan

    @property
    def first_token_ms(self) -> float:
        """Mean time to the first token, milliseconds."""
        waits = [s.first_s - s.began_s for s in self.streams if s.first_s is not None]
        return 1e3 * sum(waits) / len(waits) if waits else math.nan

    @property
    def accepted_per_block(self) -> float:
        """Drafted tokens accepted for each verdict."""
        rounds = sum(s.counts.rounds for s in self.streams)
        accepted = sum(s.counts.accepted for s in self.streams)
        return accepted / rounds if rounds else math.nan

    @property
    def forwards_per_token(self) -> float:
        """Target forwards for each token of text."""
        return sum(s.counts.forwards for s in self.streams) / max(1, self.tokens)

    def bytes_per_token(self, key: str) -> float:
        """Return the bytes of ``"up_wire"`` and the like for each token of text."""
        return sum(s.bytes[key] for s in self.streams) / max(1, self.tokens)

    @property
    def joules_per_token(self) -> float | None:
        """Modelled joules of the board for each token, or None without watts."""
        joules = [s.energy.get("joules") for s in self.streams]
        if not joules or any(j is None for j in joules):
            return None
        return float(sum(j for j in joules if j is not None)) / max(1, self.tokens)


def link_of(profile: Profile) -> LinkSpec:
    """Return the link that a profile tells of."""
    half = profile.seconds("link.rtt_ms") / 2

    def rate(name: str) -> float | None:
        value = profile[name]
        return None if math.isinf(value) else value * 1e6

    return LinkSpec(
        name=f"profile {profile.name}",
        delay_up_s=half,
        delay_down_s=half,
        up_bit_s=rate("link.up_mbit_s"),
        down_bit_s=rate("link.down_mbit_s"),
        source=profile.facts["link.rtt_ms"].source,
    )


def synthetic_of(profile: Profile, seed: int, **options: Any) -> Synthetic:
    """Return texts of dice with a profile's acceptance."""
    return Synthetic(
        parse_luck(repr(profile["text.acceptance"])),
        seed=seed,
        prompt_tokens=int(profile["text.prompt_tokens"]),
        **options,
    )


def _controller(plan: Plan, block: int) -> Controller:
    at_once = int(plan.profile["draft.at_once"]) if plan.scheme.place == "device" else 1
    wanted = plan.controller or plan.scheme.policy(block, at_once)
    return make_controller(wanted) if isinstance(wanted, str) else wanted


def vocabulary_of(plan: Plan) -> int:
    """Return what ids on the connection are below."""
    return plan.vocabulary or int(plan.profile["text.vocabulary"])


def helps_of(plan: Plan) -> frozenset[str]:
    """Return what the verifier does beside judging drafts; dice repeat nothing."""
    source = plan.source
    repeats = source.repeats if isinstance(source, Synthetic) else source is not None
    return plan.scheme.helps - (set() if repeats or plan.job else {"lookup"})


def cloud_step_s(profile: Profile) -> float:
    """Return what a step of the draft takes beside the target.

    Raises:
        ConfigError: The profile does not say.
    """
    step_s = profile.seconds("cloud.draft_step_ms")
    if math.isnan(step_s):
        raise ConfigError(
            f"the profile {profile.name} does not say what drafting in the cloud takes",
            hint="give cloud.draft_step_ms, or leave the scheme out",
        )
    return step_s


def setting_of(plan: Plan, block: int, device: int = 0) -> Setting:
    """Return what a device of a plan runs.

    Raises:
        ConfigError: The profile does not say what drafting in the cloud takes.
    """
    profile, scheme = plan.profile, plan.scheme
    link = link_of(profile) if plan.link is None else plan.link
    near = scheme.place == "device"
    step, watts = StepCost.of(profile), profile.watts()
    if not near:
        step = StepCost(cloud_step_s(profile))
        # The board only waits.
        watts = dict.fromkeys(watts, watts["wait"]) if "wait" in watts else {}
    cut = scheme.mode.cut and bool(profile["speculation.cut"])
    return Setting(
        replace(scheme.mode, cut=cut, hush="hush" in scheme.helps),
        vocabulary_of(plan),
        link if device == 0 else link.with_seed(link.seed + device),
        partial(_controller, plan, block),
        step,
        near,
        watts,
        profile.name,
        f"profile {profile.name}, simulated"
        if watts
        else f"profile {profile.name} has no watts",
        tokens=plan.tokens,
        extra=partial(scheme.evidence_bytes, vocabulary=int(profile["text.vocabulary"])),
        rejected=scheme.rejection_bytes(int(profile["text.vocabulary"])),
        bonus=scheme.bonus,
        seed=plan.seed * 1009 + device,
        decode=plan.decode,
        capabilities=(
            "resume",
            "exits",
            *(("further",) if helps_of(plan) & {"lookup", "leaves", "draft"} else ()),
            *(("leaves",) if "leaves" in helps_of(plan) else ()),
            *(("beside",) if "draft" in helps_of(plan) else ()),
        ),
    )


def simulate(
    plan: Plan,
    kind: type[Device] = Device,
    before: Callable[[VirtualClock, Device], None] = lambda clock, device: None,
) -> Outcome:
    """Run a plan.

    Args:
        plan: What.
        kind: Of the devices.
        before: Called with each device before it starts; may plan changes.

    Raises:
        ConfigError: The plan cannot be run.
        DraftwireError: A stream failed.
        StuckError: A session waits for ever (our bug).
    """
    profile, scheme = plan.profile, plan.scheme
    block = scheme.block or plan.block or int(profile["speculation.block"])
    source = synthetic_of(profile, plan.seed) if plan.source is None else plan.source
    clock = VirtualClock()
    backend: TargetBackend
    if plan.backend is None:
        backend = TextBackend(
            f"simulated: {profile.name}", vocabulary_of(plan), profile.exits
        )
    else:
        backend = plan.backend
    cost = ForwardCost.of(profile)
    helps = helps_of(plan)
    step_s = cloud_step_s(profile) if "draft" in helps else 0.0
    verifier = SimVerifier(clock, backend, cost, helps=helps, draft_s=step_s)
    left, ended_s = plan.sessions, 0.0
    end_s = math.inf if plan.hours is None else plan.hours * 3600

    def done() -> None:
        nonlocal left, ended_s
        left, ended_s = left - 1, clock.now_s

    def jobs(device: int, index: int) -> Job | None:
        if clock.now_s >= end_s or (plan.hours is None and index >= plan.streams):
            return None
        number = index * plan.sessions + device
        if plan.job is not None:
            return plan.job(number)
        return TextJob(source.text(number, plan.tokens), plan.seed + number)

    devices = []
    for number in range(plan.sessions):
        setting = setting_of(plan, block, number)
        device = kind(clock, setting, verifier, partial(jobs, number), done)
        before(clock, device)
        devices.append(device)
    for device in devices:
        device.start()
    with _links_unheard():
        clock.run()  # when no user asks any more, nothing happens
    streams = [result for device in devices for result in device.results]
    for result in streams:
        if result.error is not None:
            raise result.error
    if left:
        raise StuckError(f"{scheme.name} on {profile.name} came to a halt")
    begun_s = min((s.began_s for s in streams), default=0.0)
    return Outcome(
        plan,
        link_of(profile) if plan.link is None else plan.link,
        _controller(plan, block).name,
        block if scheme.has_blocks and plan.controller is None else None,
        streams,
        ended_s - begun_s,
        clock.events,
        verifier.forwards,
        verifier.busy_s,
    )


@contextlib.contextmanager
def _links_unheard() -> Iterator[None]:
    """Log nothing of links that there are not."""
    log = logging.getLogger("draftwire.link")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def price(outcome: Outcome, objective: str) -> float:
    """Return what an outcome costs a token; the least is the best.

    ``latency``: milliseconds. ``cost``: milliseconds, and a quarter of the target's own
    milliseconds. ``energy``: joules of the board.

    Raises:
        ConfigError: The objective is unknown, or nobody knows the board's watts.
    """
    if objective == "latency":
        return outcome.ms_per_token
    if objective == "cost":
        busy_ms = 1e3 * outcome.busy_s / max(1, outcome.tokens)
        return outcome.ms_per_token + FORWARD_PRICE * busy_ms
    if objective == "energy":
        joules = outcome.joules_per_token
        if joules is None:
            raise ConfigError(
                f"the profile {outcome.plan.profile.name} has no watts",
                hint="choose the objective latency or cost",
            )
        return joules
    raise ConfigError(f"no objective {objective!r}", hint=", ".join(OBJECTIVES))


def tuned(
    plan: Plan, blocks: Sequence[int] = BLOCKS, objective: str = "latency"
) -> Outcome:
    """Run a plan with the best block length.

    Looks at every length when there are few; else at every other one, and then at the
    neighbours of the best.
    """
    if not plan.scheme.tunable or plan.controller is not None:
        return simulate(plan)
    found: dict[int, Outcome] = {}

    def best(lengths: Iterable[int]) -> int:
        for k in lengths:
            if k in blocks and k not in found:
                found[k] = simulate(replace(plan, block=k))
        return min(found, key=lambda k: price(found[k], objective))

    if len(blocks) <= 4:
        return found[best(blocks)]
    at = best(list(blocks)[1::3])
    for _ in range(len(blocks)):
        nearer = best((at - 1, at + 1))
        if nearer == at:
            break
        at = nearer
    return found[at]
