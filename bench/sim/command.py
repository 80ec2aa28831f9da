"""What ``draftwire bench simulate`` does: from a question to a document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.bench.link import LinkSpec
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.recording import read_recording, record
from draftwire.bench.sim.replay import Replay, merged, read_replay
from draftwire.bench.sim.run import Job, Plan, real_job
from draftwire.bench.sim.schemes import SCHEMES, Scheme, schemes_named
from draftwire.bench.sim.simulate import OBJECTIVES, Outcome, simulate, synthetic_of, tuned
from draftwire.bench.sim.texts import parse_luck
from draftwire.errors import ConfigError
from draftwire.packages import DraftPackage, load_draft, load_tokenizer
from draftwire.reference import draft_path, target_path

SCHEMA = "draftwire.bench/1"


@dataclass(frozen=True)
class Question:
    """What the user asked for; see the command's flags.

    Raises:
        ConfigError: The seed is below 0, or texts are to come from two places.
    """

    profile: str = "nano-a100"  # name or file of a timing profile
    link: str | None = None  # text form of a link; None takes the profile's
    # names joined by commas, ``all``, or None for what fits the profile
    schemes: str | None = None
    block: str | None = None  # ``"best"``, a number, or None for the profile's
    # what ``best`` is judged by, and what ours aims for; None judges by latency and leaves
    # ours their own
    objective: str | None = None
    acceptance: str | None = None  # luck of synthetic texts; None takes the profile's
    confidence: str = "calibrated"  # what the draft's confidence says
    repeats: float = 0.0  # share of synthetic texts that repeats what stands before it
    second_right: float = 0.5  # of wrong drafts in them, those whose second choice is right
    recording: Path | None = None  # play recorded texts
    real: str | None = None  # run models: a reference target's name, or a target package
    draft: Path | None = None  # their draft package; None takes the reference one
    replay: Path | None = None  # take link, board, target and texts from this wire log
    streams: int = 4  # one after another on each device
    tokens: int = 400  # of each stream
    hours: float | None = None  # virtual time instead of `streams`
    sessions: int = 1  # devices on one verifier
    gateway: bool = False  # they share a link and what their drafts run on
    seed: int = 1  # of everything random
    runs: bool = False  # put a run report of every stream into the document

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}", hint="a whole number from 0")
        texts = {
            "a recording": self.recording,
            "real models": self.real,
            "an acceptance": self.acceptance,
        }
        given = [what for what, value in texts.items() if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other")


def answer(
    question: Question, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Simulate what was asked for.

    Args:
        question: Checked here.
        say: Told what is going on.

    Returns:
        A document for ``--json``; :func:`draftwire.bench.sim.show.render` shows it.

    Raises:
        ConfigError: Something in the question is unknown or does not fit.
    """
    if question.objective not in (None, *OBJECTIVES):
        raise ConfigError(
            f"no objective {question.objective!r}", hint=", ".join(OBJECTIVES)
        )
    replay = _replay(question)
    profile = find(question.profile) if replay is None else replay.profile
    plan = plan_of(question, profile, replay)
    schemes = list(_schemes(question, profile)) if replay is None else [replay.scheme]
    if replay is not None and question.schemes is not None:
        schemes += schemes_named(question.schemes)
    outcomes = []
    for scheme in schemes:
        say(f"{scheme.name} ...")
        one = replace(plan, scheme=aimed(scheme, question.objective))
        plans = [one] if replay is None else replay.plans(one)
        aim = question.objective or "latency"
        best = question.block == "best"
        found = [tuned(part, objective=aim) if best else simulate(part) for part in plans]
        outcomes.append(merged(found))
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "bench simulate",
        "simulated": True,
        "profile": profile.name,
        "seed": question.seed,
        "title": f"{profile.title} (profile {profile.name}, simulated)",
        "notes": [*(profile.notes if replay is None else replay.notes), *shared_by(plan)],
        "link": outcomes[0].plan.the_link.to_dict(),
        "rows": [row_of(outcome) for outcome in outcomes],
        "facts": [
            {"name": f.name, "value": f.value, "how": f.how, "source": f.source}
            for f in profile.facts.values()
            if f.how != "default"
        ],
    }
    if replay is not None:
        document["rows"].insert(0, replay.row())
    if question.runs:
        document["runs"] = [report for outcome in outcomes for report in outcome.reports]
    return document


def row_of(outcome: Outcome) -> dict[str, Any]:
    """Return what people compare, for one outcome; units are in the names."""
    plan, found = outcome.plan, outcome.row
    ahead = plan.scheme.mode.preempt_text.split(",")
    exits = plan.profile.exits if plan.backend is None else plan.backend.exits
    if not exits:
        ahead = [word for word in ahead if word != "exits"]
    waits = [s.first_s - s.began_s for s in outcome.streams if s.first_s is not None]
    ms, wasted = found["ms_per_token"], sum(s.counts.wasted for s in outcome.streams)
    every = {"tokens_per_s_of_all": outcome.tokens / outcome.seconds}
    return {
        "scheme": plan.scheme.name,
        "place": plan.scheme.place,
        "preempt": ",".join(ahead) or "off",
        "controller": plan.length_policy().name,
        "block": outcome.block,
        "tokens": outcome.tokens,
        "ms_per_token": ms,
        "tokens_per_s": 1e3 / ms if ms else None,
        "first_token_ms": 1e3 * sum(waits) / len(waits) if waits else None,
        "accepted_per_block": found["accepted_per_block"],
        "acceptance": found["acceptance"],
        "forwards_per_token": found["forwards_per_token"],
        "target_busy_share": outcome.busy_s / outcome.seconds,
        "up_bytes_per_token": found["up_wire_per_token"],
        "down_bytes_per_token": found["down_wire_per_token"],
        "joules_per_token": found["joules_per_token"],
        "wasted_per_token": wasted / max(1, outcome.tokens),
        "sessions": plan.sessions,
        "simulated_s": outcome.seconds,
        **(every if plan.crowded else {}),
    }


def shared_by(plan: Plan) -> list[str]:
    """Return a sentence for who reads of sessions that are one gateway."""
    if not plan.crowded:
        return []
    return [
        f"One gateway: its {plan.sessions} sessions share one link and, where they draft, "
        "one accelerator, a step of one at a time; a session has no joules of its own."
    ]


def aimed(scheme: Scheme, objective: str | None) -> Scheme:
    """Return the scheme with its controller aiming at the objective, where it can."""
    if objective is None or not scheme.name.startswith("ours-"):
        return scheme
    return replace(scheme, controller=f"auto:{objective}")


def _schemes(question: Question, profile: Profile) -> Sequence[Scheme]:
    if question.schemes is not None:
        return schemes_named(question.schemes)
    exits = bool(profile.exits) and question.real is None
    return [one for one in SCHEMES.values() if not why_not(one, profile, exits)]


def why_not(scheme: Scheme, profile: Profile | None, exits: bool) -> str:
    """Return why a scheme cannot be shown on a profile, or with a target's exits, or ""."""
    if scheme.cloud_drafts and profile is not None:
        step_ms = profile["cloud.draft_step_ms"]
        if step_ms != step_ms:  # unknown: NaN
            return f"profile {profile.name} does not say what drafting in the cloud takes"
    if scheme.name.startswith("earlyexit") and not exits:  # ours do without
        return "the profile has no early exits"
    return ""


def _replay(question: Question) -> Replay | None:
    """Return the recorded run that is asked for."""
    if question.replay is None:
        return None
    if question.recording or question.real or question.acceptance or question.hours:
        raise ConfigError(
            "a replay has its own texts and their length",
            hint="leave out --text, --real, --acceptance and --hours",
        )
    if question.gateway:
        raise ConfigError(
            "a replay has the board and the link of one device",
            hint="leave out --gateway, or take a profile and texts with --text",
        )
    return read_replay(question.replay, question.seed)


def plan_of(question: Question, profile: Profile, replay: Replay | None = None) -> Plan:
    """Return what is simulated, of each scheme alike.

    Raises:
        ConfigError: Something in the question is unknown or does not fit.
    """
    plan = Plan(
        profile,
        SCHEMES["await"],
        link=None if question.link is None else LinkSpec.parse(question.link),
        block=block_of(question.block),
        streams=question.streams,
        tokens=question.tokens,
        hours=question.hours,
        sessions=question.sessions,
        gateway=question.gateway,
        seed=question.seed,
    )
    if replay is not None:
        link = replay.link if plan.link is None else plan.link
        return replace(plan, link=link, vocabulary=replay.vocabulary)
    if question.recording is not None:
        recording = read_recording(question.recording)
        return replace(plan, source=recording, vocabulary=recording.vocabulary)
    if question.real is not None:
        return _run_by_models(question, plan)
    source = synthetic_of(
        profile,
        question.seed,
        confidence=question.confidence,
        repeats=question.repeats,
        second_right=question.second_right,
    )
    if question.acceptance is not None:
        source = replace(source, luck=parse_luck(question.acceptance))
    return replace(plan, source=source)


def block_of(text: str | None) -> int | None:
    """Return the block length, or None where it is to be found or the profile's."""
    if text is None or text == "best":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 255:
        raise ConfigError(f"--k {text!r} is no block length", hint="1..255, or best")
    return int(text)


def draft_of(path: Path | None) -> DraftPackage:
    """Return a draft package, the reference one by default (PackageError: it is none)."""
    return load_draft(draft_path() if path is None else path)


def target_of(name: str) -> Path:
    """Return the path of a target package, or of the reference target of that name
    (ConfigError: there is none)."""
    package = "/" in name or name.endswith(".target")
    return Path(name) if package else target_path(name)


def _run_by_models(question: Question, plan: Plan) -> Plan:
    """Return the plan with real models in place of texts."""
    from draftwire.bench.acceptance import PROMPTS
    from draftwire.runtime.engines.draft_model import DraftModel
    from draftwire.verifier.backends.onnx_target import OnnxTarget

    package = draft_of(question.draft)
    count = plan.sessions
    slots = max(16, count)
    target = OnnxTarget(target_of(question.real or ""), slots=slots, threads=1)
    drafts = [DraftModel.load(package, threads=1) for _ in range(count)]
    tokenizer = load_tokenizer(package.tokenizer_path)
    ids = [tokenizer.encode(text, bos_id=package.bos_id) for text in PROMPTS]

    def job(number: int) -> Job:  # each session has a cache of its own
        draft, prompt = drafts[number % count], ids[number % len(ids)]
        return real_job(draft, prompt, target.eos_ids)

    vocabulary = min(drafts[0].vocab_size, target.vocab_size)
    return replace(plan, job=job, backend=target, vocabulary=vocabulary)


def write_recording(path: Path, version: str, tokens: int) -> dict[str, Any]:
    """Let the reference models write, and record it.

    Returns:
        What was recorded, in numbers.

    Raises:
        ConfigError: The file cannot be written.
    """
    from draftwire.bench.acceptance import PROMPTS
    from draftwire.cli._common import check_output, write_json

    check_output(str(path))
    asked = Question(real=version, tokens=tokens, streams=len(PROMPTS))
    plan = replace(plan_of(asked, find(asked.profile)), scheme=SCHEMES["cloud"])
    assert plan.job is not None and plan.vocabulary is not None
    texts = [stream.ids for stream in simulate(plan).streams]
    jobs = [plan.job(index) for index in range(len(texts))]
    about = {"draft": "reference", "target": f"reference {version}", "decoding": "greedy"}
    prompts = [job.prompt for job in jobs]
    found = record(jobs[0].draft(), plan.vocabulary, prompts, texts, about)
    write_json(found, str(path))
    made = read_recording(path)
    return {
        "schema": SCHEMA,
        "command": "bench simulate --record",
        "texts": len(made.texts),
        "tokens": sum(len(text.tokens) for text in made.texts),
        "acceptance": made.acceptance,
    }
