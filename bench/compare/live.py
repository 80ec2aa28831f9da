"""Live runs of a comparison: a verifier process, an emulated link, a session.

Rows take turns: A B C A B C, not A A B B, so that a machine that slows down hits all
alike. Those whose verifier does the same beside judging drafts share it, its link and a
session; the others have one of their own, so that no baseline gets a help of ours.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Mapping, Sequence

import draftwire
from draftwire.bench.compare.carried import carrying
from draftwire.bench.compare.pace import Pacer, paced_draft
from draftwire.bench.compare.run import VANILLA_BLOCK, Found, Settings
from draftwire.bench.compare.server import PacedVerifier, played
from draftwire.bench.link import LinkSpec
from draftwire.bench.link.emulate import emulate
from draftwire.bench.sim.cloud import ForwardCost, TextBackend
from draftwire.bench.sim.command import Question, draft_of, target_of
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.run import Plan, real_job
from draftwire.bench.sim.schemes import Scheme, carried_sizes
from draftwire.bench.sim.simulate import simulate, tuned
from draftwire.bench.sim.texts import PlayedDraft, Text, played_texts
from draftwire.cli.demo import PROMPTS
from draftwire.energy.account.account import ModelSource
from draftwire.packages import load_target, load_tokenizer
from draftwire.runtime.drafter import Model
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.runtime.session import Session
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.base import TargetBackend

Report = Dict[str, Any]
Helps = FrozenSet[str]  # of a verifier, as a row wants them


class LiveRun:
    """One live comparison: what is written, by whom, and in whose time.

    Args:
        settings: What is compared.
        used: The rows.
        profile: Whose time the models take; None leaves them their own.
        links: Each row runs over each of them.
        say: Told of progress.
    """

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
        self.draft = draft_of(settings.draft)
        self.target = load_target(target_of(settings.target))
        self.vocab_size = min(self.draft.vocab_size, self.target.vocab_size)
        self.texts: list[Text] | None = None
        self.prompts: list[Sequence[int]]
        if profile is not None and settings.played:
            source = settings.plan(profile).texts
            self.texts = played_texts(
                source, settings.streams, settings.tokens, vocab_size=self.vocab_size
            )
            self.prompts = [text.prompt for text in self.texts]
            self.about = source.name
        else:
            tokenizer, bos_id = load_tokenizer(self.draft.tokenizer_path), self.draft.bos_id
            known = PROMPTS.get(settings.target, PROMPTS["v1"])
            self.prompts = [
                tokenizer.encode(prompt, bos_id=bos_id)
                for prompt in settings.prompts or known
            ]
            target = f"{self.target.name} {self.target.version}"
            self.about = f"draft {self.draft.name}, target {target}"
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
        self.best: dict[tuple[str, str], int] = {}
        if profile is not None:
            self.vocabulary = int(profile["text.vocabulary"])
            watts = profile.watts()
            if "wait" in watts:
                # Profiles know nothing of radios: handing over a frame counts as waiting.
                wait = watts["wait"]
                self.watts = {"transmit": wait, "idle": wait, **watts}
            if settings.length is None:
                self.best = self._best(settings.plan(profile))
        self.near: Plan | None = None

    def _best(self, plan: Plan) -> dict[tuple[str, str], int]:
        """Return each row's best length over each link, on these texts in virtual time."""
        found: dict[tuple[str, str], int] = {}
        for link in self.links:
            for entry in self.used:
                if self.settings.chosen(entry) and entry.place == "device":
                    best = tuned(replace(plan, scheme=entry, link=link)).block
                    assert best is not None
                    self.say(
                        f"{link.name}: the best block of {entry.name} has {best} tokens"
                    )
                    found[link.name, entry.name] = best
        return found

    def found(self) -> Found:
        """Run every row over every link.

        A TransportError where the verifier does not start, a BoardError where the link
        cannot be emulated.
        """
        settings = self.settings
        reports, about = [], []
        sizes = carried_sizes(self.used, settings.temperature, self.vocabulary)
        kinds = sorted({entry.helps for entry in self.used}, key=sorted)
        with carrying(sizes), ExitStack() as house:
            verifiers = {
                helps: house.enter_context(self._verifier(sizes, helps)) for helps in kinds
            }
            for link in self.links:
                with ExitStack() as stack:
                    sessions: dict[Helps, Session] = {}
                    paced = []
                    for helps, verifier in verifiers.items():
                        running = stack.enter_context(
                            emulate(link, verifier.port, settings.method)
                        )
                        url = f"ws://127.0.0.1:{running.url_port}"
                        session = self._session(url, verifier.token)
                        sessions[helps] = stack.enter_context(session)
                        paced.append(self._pace(session))
                    told: dict[str, Any] = {
                        "name": link.name,
                        "method": running.method,
                        "notes": running.notes,
                        "scheduling": running.scheduling,
                        "spec": link.to_dict(),
                    }
                    about.append(told)
                    for repeat in range(settings.rounds):
                        self.say(f"{link.name}, repeat {repeat + 1} of {settings.rounds}")
                        for report in self._turn(sessions, link):
                            report["bench"].update(link=link.name, repeat=repeat)
                            reports.append(report)
                    pacers = [pacer for pacer in paced if pacer is not None]
                    for key, counts in (
                        ("draft_forwards", [pacer.count for pacer in pacers]),
                        ("draft_forwards_late", [pacer.missed for pacer in pacers]),
                    ):
                        told[key] = sum(counts) if counts else None
        for report in reports:
            report["bench"].update(simulated=False, pace=settings.profile or None)
        known = None
        if self.texts is not None:
            known = {i: text.tokens for i, text in enumerate(self.texts)}
        return Found(reports, about, self.about, known)

    def _verifier(self, sizes: Sequence[int], helps: Helps) -> PacedVerifier:
        return PacedVerifier(
            Path(self.target.path),
            profile=self.settings.profile or None,
            texts=self.texts,
            carried=sizes,
            threads=self.settings.threads,
            helps=helps,
            draft=Path(self.draft.path),
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

    def _pace(self, session: Session) -> Pacer | None:
        """Put the profile's clock, or a played text, between drafter and model."""
        # The session has no door for it: no device in service drafts slower than it can.
        drafter = session._drafter
        lanes = 1 if self.profile is None else int(self.profile["draft.lanes"])
        if self.texts is not None:
            drafter.use(PlayedDraft(played(self.texts), lanes))
        if self.profile is None:
            return None
        cost = ForwardCost.of_draft(self.profile)
        model = drafter.model
        pacer = paced_draft(model, cost, lanes, self.profile["draft.lane_part"])
        drafter.use(model)
        return pacer

    def _turn(self, sessions: Mapping[Helps, Session], link: LinkSpec) -> list[Report]:
        """Run every prompt with every row once."""
        reports = []
        for number, (prompt, params) in enumerate(zip(self.prompts, self.params)):
            for entry in self.used:
                if entry.place == "cloud":
                    report = self._beside(entry, link, number)
                else:
                    block = self.settings.length or VANILLA_BLOCK
                    block = self.best.get((link.name, entry.name), block)
                    session = sessions[entry.helps]
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

    # ---- co-located: both models here, and only text crosses the link

    def _beside(self, entry: Scheme, link: LinkSpec, number: int) -> Report:
        """Write one text with the draft beside the target; return its report."""
        if self.near is None:
            self.near = self._server(entry)
        plan, job = self.near, self.near.job
        assert job is not None
        outcome = simulate(
            replace(
                plan,
                scheme=entry,
                link=link,
                params=self.params[number],
                job=lambda _: job(number),
                streams=1,
                real_time=True,
            )
        )
        report = outcome.streams[0].report({"name": "beside the target"}, ())
        report["link"].update(wire_bytes="computed", rtt_ms=1e3 * link.rtt_s)
        return report

    def _server(self, entry: Scheme) -> Plan:
        """Load both models here; choose the best block length."""
        threads, profile = self.settings.threads, self.profile
        draft: Model
        target: TargetBackend
        if self.texts is not None:
            targets = played(self.texts)
            draft = PlayedDraft(targets)
            target = TextBackend.of(self.target, targets=targets)
        else:
            from draftwire.verifier.backends.onnx_target import OnnxTarget

            draft = DraftModel.load(self.draft, threads=threads)
            target = OnnxTarget(self.target.path, slots=1, threads=threads)
        stops = sorted({*self.draft.eos_ids, *target.eos_ids})
        self.say("choosing the block length of co-located decoding")
        plan = Plan(
            profile or find(Question.profile),  # models in their own time have any
            replace(entry, block=None),
            link=LinkSpec("at once", 0.0, 0.0),
            streams=len(self.prompts),
            tokens=self.settings.tokens,
            job=lambda index: real_job(draft, self.prompts[index], stops),
            backend=target,
            vocabulary=self.vocab_size,
            draft_context=self.draft.context,
            params=self.params[0],
            real_time=profile is None,
            own_pace=profile is None,
        )
        return replace(plan, block=tuned(plan).block)
