"""Live runs of a comparison: a verifier process, an emulated link, a session.

All rows share one verifier, one link and one session, and take turns: A B C A B C, not
A A B B, so that a machine that slows down hits all alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import draftwire
from draftwire.bench.compare_carried import carrying
from draftwire.bench.compare_colocated import Colocated, tune_block
from draftwire.bench.link import LinkSpec
from draftwire.bench.link.emulate import emulate
from draftwire.bench.pace import PacedDraft, PacedTarget
from draftwire.bench.pace_played import PlayedDraft, PlayedTarget
from draftwire.bench.pace_server import PacedVerifier
from draftwire.bench.sim.cloud import ForwardCost
from draftwire.bench.sim.device import StepCost
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.schemes import Scheme, carried_sizes
from draftwire.bench.sim.texts import Text
from draftwire.energy.sources.modelled import ModelSource
from draftwire.packages import DraftPackage, TargetPackage
from draftwire.runtime.draft_model import DraftModel
from draftwire.runtime.drafter import Model
from draftwire.runtime.session import Session
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.base import TargetBackend

__all__ = ["LiveRun", "run_live"]


@dataclass(frozen=True)
class LiveRun:
    """What to run.

    Attributes:
        draft: Draft package.
        target: Target package.
        entries: The rows.
        links: Over which links.
        prompts: Token ids.
        params: Sampling of each prompt; the scheme is each row's own.
        tokens: New tokens of each text, at most.
        repeats: How often.
        block: Tokens of a block, where a row has blocks of a fixed length.
        best: Better lengths, by the names of link and row.
        profile: Whose time the models keep, or None for their own.
        profile_name: How the verifier finds it: name or file.
        texts: What is played in place of the models, or None.
        vocabulary: Ids that a dense distribution is over.
        method: Of the link emulator.
        threads: Of either engine.
    """

    draft: DraftPackage
    target: TargetPackage
    entries: Sequence[Scheme]
    links: Sequence[LinkSpec]
    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]
    tokens: int
    repeats: int
    block: int
    profile: Profile | None
    profile_name: str | None
    texts: Sequence[Text] | None
    vocabulary: int
    best: Mapping[tuple[str, str], int] = field(default_factory=dict)
    method: str = "auto"
    threads: int = 1


@dataclass
class _Server:
    """Co-located decoding, and the block length that suits it best."""

    colocated: Colocated
    block: int


def run_live(run: LiveRun, say: Callable[[str], None]) -> tuple[list[Any], list[Any]]:
    """Run everything.

    Args:
        run: What.
        say: Told what is going on.

    Returns:
        The run reports, and what each link was.

    Raises:
        TransportError: The verifier does not start.
        BoardError: The link cannot be emulated.
        DraftwireError: A stream failed.
    """
    reports: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    sizes = carried_sizes(run.entries, run.params[0].temperature, run.vocabulary)
    server = _server(run, say)
    with carrying(sizes), PacedVerifier(
        Path(run.target.path),
        profile=run.profile_name,
        texts=run.texts,
        carried=sizes,
        threads=run.threads,
    ) as verifier:
        for link in run.links:
            with emulate(link, verifier.port, run.method) as running:
                links.append(
                    {
                        "name": link.name,
                        "method": running.method,
                        "notes": running.notes,
                        "scheduling": running.scheduling,
                        "spec": link.to_dict(),
                    }
                )
                url = f"ws://127.0.0.1:{running.url_port}"
                with _session(run, url, verifier.token) as session:
                    draft = _pace(run, session)
                    for repeat in range(run.repeats):
                        say(f"{link.name}, repeat {repeat + 1} of {run.repeats}")
                        for report in _turn(run, session, server, link):
                            report["bench"].update(link=link.name, repeat=repeat)
                            reports.append(report)
                    links[-1]["draft_forwards"] = draft and draft.pacer.count
                    links[-1]["draft_forwards_late"] = draft and draft.pacer.missed
    return reports, links


def _session(run: LiveRun, url: str, token: str) -> Session:
    energy: str | ModelSource = "auto"
    watts = _watts(run)
    if run.profile is not None and watts:
        origin = f"profile {run.profile.name}, no radio"
        energy = ModelSource(run.profile.name, watts, origin=origin)
    return draftwire.connect(
        url,
        draft=run.draft,
        target=run.target.version,
        token=token,
        threads=run.threads,
        energy=energy,
        timeout_s=30.0,
    )


def _watts(run: LiveRun) -> dict[str, float]:
    """Return the board's watts, where the profile states them."""
    watts = run.profile.watts() if run.profile is not None else {}
    if "wait" not in watts:
        return {}
    # Profiles know nothing of radios: handing over a frame counts as waiting.
    return {"transmit": watts["wait"], "idle": watts["wait"], **watts}


def _pace(run: LiveRun, session: Session) -> PacedDraft | None:
    """Put the profile's clock, or a played text, between drafter and model."""
    # The session has no door for it: no device in service drafts slower than it can.
    drafter = session._drafter
    if run.texts is not None:
        drafter._model = PlayedDraft(run.texts)
    if run.profile is None:
        return None
    model = drafter._model
    assert model is not None
    paced = PacedDraft(model, StepCost.of(run.profile))
    drafter._model = paced
    return paced


def _turn(
    run: LiveRun, session: Session, server: _Server | None, link: LinkSpec
) -> list[dict[str, Any]]:
    """Run every prompt with every row once."""
    reports = []
    for number, prompt in enumerate(run.prompts):
        for entry in run.entries:
            params = run.params[number]
            if entry.place == "cloud":
                assert server is not None
                report = server.colocated.run(
                    prompt, params, entry.block or server.block, run.tokens, link
                )
            else:
                block = run.best.get((link.name, entry.name), run.block)
                report = _stream(run, session, entry, prompt, params, block)
            if run.texts is not None:
                report["draft"] = {"name": "played", "engine": None}
                report["warnings"].append("played: no model was run")
            if run.profile is not None:
                report["warnings"].append(f"paced to profile {run.profile.name}")
            sampled = params.temperature > 0
            report["bench"].update(
                scheme=entry.name,
                prompt=number,
                same_text=entry.same_text or not sampled,
            )
            reports.append(report)
    return reports


def _stream(
    run: LiveRun,
    session: Session,
    entry: Scheme,
    prompt: Sequence[int],
    params: SamplingParams,
    block: int,
) -> dict[str, Any]:
    """Generate one text over the link; return its report."""
    mode = entry.mode
    cut = mode.cut and (run.profile is None or bool(run.profile["speculation.cut"]))
    first_tokens, last_s = 0, None
    stream = session.generate(
        prompt,
        max_new_tokens=run.tokens,
        scheme=entry.sampling(params.temperature, run.vocabulary),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        controller=entry.policy(block),
        objective=mode.objective,
        pipeline=mode.pipeline,
        preempt=mode.preempt_text,
        cut=cut,
        batch=mode.batch,
    )
    for chunk in stream:
        if chunk.tokens:
            first_tokens = first_tokens or len(chunk.tokens)
            last_s = chunk.t_s
    report = stream.report
    assert report is not None
    report["bench"] = {
        "place": "device",
        "first_tokens": first_tokens,
        "last_token_s": last_s,
    }
    return report


def _server(run: LiveRun, say: Callable[[str], None]) -> _Server | None:
    """Load both models here for co-located decoding, where a row asks for it."""
    wanted = [entry for entry in run.entries if entry.place == "cloud"]
    if not wanted:
        return None
    draft: Model
    target: TargetBackend
    if run.texts is not None:
        exits = () if run.profile is None else run.profile.exits
        draft = PlayedDraft(run.texts)
        target = PlayedTarget(run.target, run.texts, exits)
    else:
        from draftwire.verifier.backends.onnx_target import OnnxTarget

        draft = DraftModel.load(run.draft, threads=run.threads)
        target = OnnxTarget(run.target.path, slots=1, threads=run.threads)

    watts = _watts(run)
    told: dict[str, Any] = {}
    if watts and run.profile is not None:
        name = run.profile.name
        told["watts"] = dict.fromkeys(watts, watts["wait"])  # the device only waits
        told["model"], told["origin"] = name, f"profile {name}, waiting"

    def together(draft: Model, target: TargetBackend) -> Colocated:
        return Colocated(
            draft,
            target,
            vocab_size=min(run.draft.vocab_size, target.vocab_size),
            draft_context=run.draft.context,
            stop_ids=sorted({*run.draft.eos_ids, *target.eos_ids}),
            **told,
        )

    say("choosing the block length of co-located decoding")
    profile = run.profile
    step_s = None if profile is None else profile.seconds("cloud.draft_step_ms")
    block = tune_block(
        together(draft, target),
        run.prompts,
        run.params,
        run.tokens,
        forward_s=None if profile is None else profile.seconds("cloud.forward_ms"),
        draft_s=step_s,
    )
    if profile is not None and step_s is not None:
        draft = PacedDraft(draft, StepCost(step_s))
        target = PacedTarget(target, ForwardCost.of(profile))
    return _Server(together(draft, target), block)
