"""Live runs of a comparison: a verifier process, an emulated link, a session.

All rows share one verifier, one link and one session, and take turns: A B C A B C, not
A A B B, so that a machine that slows down hits all alike.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Sequence

import draftwire
from draftwire.bench.compare.carried import carrying
from draftwire.bench.compare.colocated import Colocated, tune_block
from draftwire.bench.compare.pace import PacedDraft, PacedTarget
from draftwire.bench.compare.played import PlayedDraft, PlayedTarget, played_texts
from draftwire.bench.compare.server import PacedVerifier
from draftwire.bench.compare.settings import Found, Settings, source_of
from draftwire.bench.compare.simulated import VANILLA_BLOCK, best_blocks
from draftwire.bench.link import LinkSpec
from draftwire.bench.link.emulate import emulate
from draftwire.bench.sim.cloud import ForwardCost
from draftwire.bench.sim.device import StepCost
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.schemes import Scheme, carried_sizes
from draftwire.bench.sim.texts import Text
from draftwire.energy.account.account import ModelSource
from draftwire.errors import ConfigError
from draftwire.packages import load_draft, load_target, load_tokenizer
from draftwire.runtime.drafter import Model
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.runtime.session import Session
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.base import TargetBackend

Report = Dict[str, Any]


def run_live(
    settings: Settings,
    used: Sequence[Scheme],
    profile: Profile | None,
    links: Sequence[LinkSpec],
    say: Callable[[str], None],
) -> Found:
    """Run every row over every link, in the time of ``profile`` or of the models
    themselves.

    A ConfigError where there is nothing to continue, a TransportError where the verifier
    does not start, a BoardError where the link cannot be emulated.
    """
    run = _Run(settings, used, profile, links, say)
    reports, about = run.all()
    for report in reports:
        report["bench"].update(simulated=False, pace=settings.profile)
    known = None
    if run.texts is not None:
        known = {i: text.tokens for i, text in enumerate(run.texts)}
    return Found(reports, about, run.about, known)


class _Run:
    """One live comparison: what is written, by whom, and in whose time."""

    def __init__(
        self,
        settings: Settings,
        used: Sequence[Scheme],
        profile: Profile | None,
        links: Sequence[LinkSpec],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.used, self.profile = settings, used, profile
        self.links, self.say = links, say
        self.draft, self.target = load_draft(settings.draft), load_target(settings.target)
        self.vocab_size = min(self.draft.vocab_size, self.target.vocab_size)
        source = source_of(settings, profile)
        self.texts: list[Text] | None = None
        self.prompts: list[Sequence[int]]
        if source is not None:
            self.texts = played_texts(
                source, settings.count, settings.tokens, vocab_size=self.vocab_size
            )
            self.prompts = [text.prompt for text in self.texts]
            self.about = source.name
        else:
            tokenizer, bos_id = load_tokenizer(self.draft.tokenizer_path), self.draft.bos_id
            self.prompts = [tokenizer.encode(p, bos_id=bos_id) for p in settings.prompts]
            target = f"{self.target.name} {self.target.version}"
            self.about = f"draft {self.draft.name}, target {target}"
        if not self.prompts:
            raise ConfigError("there is no prompt to continue")
        sampled = settings.temperature > 0
        self.params = [
            SamplingParams(
                "coupled" if sampled else "greedy",
                settings.temperature,
                settings.top_k if sampled else 0,
                settings.top_p if sampled else 1.0,
                settings.seed + number,
            )
            for number in range(len(self.prompts))
        ]
        # A profile's models have a vocabulary of their own.
        self.vocabulary = self.vocab_size
        self.watts: dict[str, float] = {}
        if profile is not None:
            self.vocabulary = int(profile["text.vocabulary"])
            watts = profile.watts()
            if "wait" in watts:
                # Profiles know nothing of radios: handing over a frame counts as waiting.
                wait = watts["wait"]
                self.watts = {"transmit": wait, "idle": wait, **watts}
        self.best = best_blocks(settings, profile, links, used, source, say)
        self.near: tuple[Colocated, int] | None = None

    def all(self) -> tuple[list[Report], list[dict[str, Any]]]:
        """Return the reports of all runs, and what each link was."""
        settings = self.settings
        reports, about = [], []
        sizes = carried_sizes(self.used, settings.temperature, self.vocabulary)
        if any(entry.place == "cloud" for entry in self.used):
            self.near = self._server()
        # One that drafts too, and one that does not, as far as the rows want them.
        kinds = sorted({"draft" in entry.helps for entry in self.used})
        with carrying(sizes), ExitStack() as house:
            verifiers = {
                drafts: house.enter_context(self._verifier(sizes, drafts=drafts))
                for drafts in kinds
            }
            for link in self.links:
                with ExitStack() as stack:
                    sessions: dict[bool, Session] = {}
                    paced = []
                    for drafts, verifier in verifiers.items():
                        running = stack.enter_context(
                            emulate(link, verifier.port, settings.method)
                        )
                        url = f"ws://127.0.0.1:{running.url_port}"
                        session = self._session(url, verifier.token)
                        sessions[drafts] = stack.enter_context(session)
                        paced.append(self._pace(session))
                    found: dict[str, Any] = {
                        "name": link.name,
                        "method": running.method,
                        "notes": running.notes,
                        "scheduling": running.scheduling,
                        "spec": link.to_dict(),
                    }
                    about.append(found)
                    for repeat in range(settings.repeats):
                        self.say(f"{link.name}, repeat {repeat + 1} of {settings.repeats}")
                        for report in self._turn(sessions, link):
                            report["bench"].update(link=link.name, repeat=repeat)
                            reports.append(report)
                    pacers = [draft.pacer for draft in paced if draft is not None]
                    for key, counts in (
                        ("draft_forwards", [pacer.count for pacer in pacers]),
                        ("draft_forwards_late", [pacer.missed for pacer in pacers]),
                    ):
                        found[key] = sum(counts) if counts else None
        return reports, about

    def _verifier(self, sizes: Sequence[int], *, drafts: bool) -> PacedVerifier:
        return PacedVerifier(
            Path(self.target.path),
            profile=_findable(self.settings.profile),
            texts=self.texts,
            carried=sizes,
            threads=self.settings.threads,
            draft=Path(self.draft.path) if drafts else None,
        )

    def _session(self, url: str, token: str) -> Session:
        energy: str | ModelSource = "auto"
        if self.profile is not None and self.watts:
            name = self.profile.name
            energy = ModelSource(name, self.watts, origin=f"profile {name}, no radio")
        return draftwire.connect(
            url,
            draft=self.draft,
            target=self.target.version,
            token=token,
            threads=self.settings.threads,
            energy=energy,
            timeout_s=30.0,
        )

    def _pace(self, session: Session) -> PacedDraft | None:
        """Put the profile's clock, or a played text, between drafter and model."""
        # The session has no door for it: no device in service drafts slower than it can.
        drafter = session._drafter
        if self.texts is not None:
            drafter._model = PlayedDraft(self.texts)
        model = drafter._model
        if self.profile is None or model is None:
            return None
        drafter._model = paced = PacedDraft(model, StepCost.of(self.profile))
        return paced

    def _turn(self, sessions: Mapping[bool, Session], link: LinkSpec) -> list[Report]:
        """Run every prompt with every row once."""
        reports = []
        tokens = self.settings.tokens
        for number, (prompt, params) in enumerate(zip(self.prompts, self.params)):
            for entry in self.used:
                if entry.place == "cloud":
                    assert self.near is not None
                    colocated, block = self.near
                    report = colocated.run(
                        prompt, params, entry.block or block, tokens, link
                    )
                else:
                    block = self.settings.block or VANILLA_BLOCK
                    block = self.best.get((link.name, entry.name), block)
                    session = sessions["draft" in entry.helps]
                    report = self._stream(session, entry, prompt, params, block)
                if self.texts is not None:
                    report["draft"] = {"name": "played", "engine": None}
                    report["warnings"].append("played: no model was run")
                if self.profile is not None:
                    report["warnings"].append(f"paced to profile {self.profile.name}")
                report["bench"].update(
                    scheme=entry.name,
                    prompt=number,
                    same_text=entry.same_text or params.temperature == 0,
                )
                reports.append(report)
        return reports

    def _stream(
        self,
        session: Session,
        entry: Scheme,
        prompt: Sequence[int],
        params: SamplingParams,
        block: int,
    ) -> Report:
        """Generate one text over the link; return its report."""
        mode, profile = entry.mode, self.profile
        first_tokens, last_s = 0, None
        stream = session.generate(
            prompt,
            max_new_tokens=self.settings.tokens,
            scheme=entry.sampling(params.temperature, self.vocabulary),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=params.seed,
            controller=entry.policy(block),
            objective=mode.objective,
            pipeline=mode.pipeline,
            preempt=mode.preempt_text,
            cut=mode.cut and (profile is None or bool(profile["speculation.cut"])),
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

    def _server(self) -> tuple[Colocated, int]:
        """Load both models here, for co-located decoding; choose its best block length."""
        threads, profile = self.settings.threads, self.profile
        draft: Model
        target: TargetBackend
        if self.texts is not None:
            exits = () if profile is None else profile.exits
            draft = PlayedDraft(self.texts)
            target = PlayedTarget(self.target, self.texts, exits)
        else:
            from draftwire.verifier.backends.onnx_target import OnnxTarget

            draft = DraftModel.load(self.draft, threads=threads)
            target = OnnxTarget(self.target.path, slots=1, threads=threads)
        told: dict[str, Any] = {}
        if self.watts and profile is not None:
            # The device only waits.
            told["watts"] = dict.fromkeys(self.watts, self.watts["wait"])
            told["model"], told["origin"] = profile.name, f"profile {profile.name}, waiting"

        def together(draft: Model, target: TargetBackend) -> Colocated:
            return Colocated(
                draft,
                target,
                vocab_size=self.vocab_size,
                draft_context=self.draft.context,
                stop_ids=sorted({*self.draft.eos_ids, *target.eos_ids}),
                **told,
            )

        self.say("choosing the block length of co-located decoding")
        work = self.prompts, self.params, self.settings.tokens
        if profile is None:
            colocated = together(draft, target)
            return colocated, tune_block(colocated, *work)
        step_s = profile.seconds("cloud.draft_step_ms")
        forward_s = profile.seconds("cloud.forward_ms")
        block = tune_block(
            together(draft, target), *work, forward_s=forward_s, draft_s=step_s
        )
        draft = PacedDraft(draft, StepCost(step_s))
        return together(draft, PacedTarget(target, ForwardCost.of(profile))), block


def _findable(profile: str | None) -> str | None:
    """Return how another process finds the profile, wherever it runs."""
    if profile is None or not profile.endswith(".toml"):
        return profile
    return str(Path(profile).resolve())
