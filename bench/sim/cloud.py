"""The verifier in virtual time: the real scheduler and streams, simulated forwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Collection, Sequence

import numpy as np

from draftwire.bench.sim.facts import Exit as ExitFact
from draftwire.bench.sim.facts import Profile
from draftwire.bench.sim.texts import PlayedDraft, TextTarget, by_prompt
from draftwire.clock import Clock
from draftwire.errors import RefusedError
from draftwire.packages import Exit, Family, TargetPackage
from draftwire.transport.messages import Hello
from draftwire.verifier.backends.base import ExitListener, SlotInput, TargetBackend
from draftwire.verifier.beside import Drafts
from draftwire.verifier.dialogue import Dialogue, Peer
from draftwire.verifier.executor import Executor, VirtualExecutor
from draftwire.verifier.greeting import welcome_to
from draftwire.verifier.registry import Served
from draftwire.verifier.scheduler import Scheduler
from draftwire.verifier.serving.accounts import Account, Usage
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.streams import KeptStreams, Terms

EXIT_LAYERS = 1000  # an exit's place in the stack, as parts of the whole
_EXIT_THRESHOLD = 0.5  # logits of simulated exits are nearly one-hot, or flat
_MANY = 1 << 30
# Slots of texts that have ended would be missed by whoever uses the backend next.
_LIMITS = Limits(block=255, waiting=255, resume_s=math.inf, prefixes=0)
_MOST = {"lookup": 4, "leaves": 16}  # tokens that a forward judges beside the drafts


@dataclass(frozen=True)
class ForwardCost:
    """What a forward takes, of the target or of a draft."""

    base_s: float  # a forward over few tokens of one session
    free: int = 17  # so many tokens (drafts and the one before them) cost no more
    token_s: float = 0.0  # each token beyond
    session_s: float = 0.0  # each session beyond the first
    read_s: float = 0.0  # each prompt token that is read
    most: int = 128  # tokens of one session

    @classmethod
    def of(cls, profile: Profile) -> ForwardCost:
        """Return the costs of a profile's cloud."""
        return cls(
            profile.seconds("cloud.forward_ms"),
            int(profile["cloud.free_tokens"]),
            profile.seconds("cloud.forward_ms_per_token"),
            profile.seconds("cloud.forward_ms_per_session"),
            profile.seconds("cloud.read_ms_per_token"),
            int(profile["cloud.most_tokens"]),
        )

    @classmethod
    def of_draft(cls, profile: Profile) -> ForwardCost:
        """Return the costs of a profile's board."""
        return cls(
            profile.seconds("draft.step_ms"),
            int(profile["draft.step_tokens"]),
            profile.seconds("draft.read_ms_per_token"),
        )

    def __call__(self, tokens: int, sessions: int = 1) -> float:
        """Return the seconds of a forward that judges or drafts.

        Args:
            tokens: Of all sessions together.
            sessions: In the batch.
        """
        over = max(0, tokens - self.free * sessions)
        return self.base_s + self.token_s * over + self.session_s * (sessions - 1)

    def of_batch(self, parts: Sequence[SlotInput], prefill: bool) -> float:
        """Return the seconds of a forward over ``parts``, which only read in a prefill."""
        tokens = sum(len(part) for part in parts)
        return self.reading(tokens) if prefill else self(tokens, len(parts))

    def reading(self, tokens: int) -> float:
        """Return the seconds of a forward that reads prompt tokens."""
        return self.base_s + self.read_s * tokens


class TextBackend:
    """The targets of texts that are known beforehand, as one backend of the verifier.

    A stream's text is known by its prompt. Forwards take no time.

    Args:
        name: Of the target.
        vocab_size: Ids are below this.
        exits: Early exits; dice say where they are sure and right.
        slots: Streams at the same time.

    Attributes:
        targets: Of the texts; the latest of equal prompts counts.
    """

    numerics = "exact"
    logit_error = 0.0
    leaves = True

    def __init__(
        self,
        name: str,
        vocab_size: int,
        exits: Sequence[ExitFact] = (),
        targets: Sequence[TextTarget] = (),
        slots: int = _MANY,
    ) -> None:
        self.name, self.vocab_size, self.slots = name, vocab_size, slots
        self.family = Family(name, None, "00" * 32)
        self.facts = tuple(exits)
        self.exits: tuple[Exit, ...] = tuple(
            Exit(round(fact.fraction * EXIT_LAYERS), _EXIT_THRESHOLD, fact.agreement)
            for fact in exits
        )
        self.targets = list(targets)
        self.id, self.version, self.context = "", "simulated", 1 << 20
        self.bos_id: int | None = None
        self.eos_ids: tuple[int, ...] = ()
        self._models: dict[int, TextTarget | None] = {}  # by slot, None before the prompt
        self._taken = 0

    @classmethod
    def of(cls, package: TargetPackage, *words: Any, **named: Any) -> TextBackend:
        """Return one in place of a target package's own; arguments as from `exits` on."""
        found = cls(package.name, package.vocab_size, *words, **named)
        for key in ("id", "version", "family", "context", "bos_id", "eos_ids"):
            setattr(found, key, getattr(package, key))
        return found

    def allocate(self) -> int:
        """Take a slot."""
        if len(self._models) >= self.slots:
            raise RefusedError(f"the target is busy: all {self.slots} slots hold a session")
        self._taken += 1
        self._models[self._taken] = None
        return self._taken

    def release(self, slot: int) -> None:
        """Give a slot back."""
        del self._models[slot]

    def share(self, source: int, slot: int, length: int) -> bool:
        """Nothing is copied: reading is free."""
        return False

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Return the rows of the texts."""
        models = [self._model(item) for item in batch]
        if on_exit is not None:
            for number, fact in enumerate(self.facts):
                ends = [(item.start + len(item), item.rows) for item in batch]
                told = [m.exit_rows(number, fact, *end) for m, end in zip(models, ends)]
                on_exit(number, told)
        return [_rows(model, item) for model, item in zip(models, batch)]

    def _model(self, item: SlotInput) -> TextTarget:
        model = self._models[item.slot]
        if model is None or not item.start:
            model = by_prompt(self.targets, item.tokens[: item.kept].tolist())
            self._models[item.slot] = model
        return model


def _rows(model: TextTarget, item: SlotInput) -> np.ndarray:
    """Return the rows of an input: of each leaf as of a text that ends with it."""
    places = [item.start + behind + chain for _, behind, chain in item.beside()]
    beside = [model.run(place + 1, 1) for place in places]
    rows = model.run(item.start + item.kept, item.rows - len(beside))
    return np.concatenate([rows, *beside]) if beside else rows


def helping(helps: Collection[str], limits: Limits) -> Limits:
    """Return ``limits`` of a verifier that helps so, see :class:`~.schemes.Scheme`."""
    most = {name: n if name in helps else 0 for name, n in _MOST.items()}
    return replace(limits, **most)


class SimVerifier:
    """One target for all streams: the verifier's own scheduler and streams on a clock.

    Args:
        clock: Where everything happens.
        backend: The target.
        cost: Of its forwards.
        executor: Runs the forwards in place of one that takes `cost`.
        helps: What it does beside judging drafts, see :class:`~.schemes.Scheme`; a draft
            beside the target plays the backend's texts.
        draft_s: Of a forward of that.

    Attributes:
        backend: The target.
        served: It in service.
        kept: The streams.
    """

    def __init__(
        self,
        clock: Clock,
        backend: TargetBackend,
        cost: ForwardCost | None = None,
        executor: Executor | None = None,
        helps: Collection[str] = (),
        draft_s: float = 0.0,
    ) -> None:
        self.backend = backend
        if isinstance(backend, TextBackend):
            fractions = [fact.fraction for fact in backend.facts]
        else:  # of a real model, at even distances
            count = len(backend.exits)
            fractions = [(k + 1) / (count + 1) for k in range(count)]
        self._exits = bool(fractions)
        if executor is None:
            assert cost is not None
            executor = VirtualExecutor(backend, clock, cost.of_batch, fractions)
            executor.draft_s = draft_s
        most = ForwardCost.most if cost is None else cost.most
        patient = "patience" in helps
        scheduler = Scheduler(backend, executor, clock, chunk=most, patience=patient)
        self.served = Served(backend, scheduler, frozenset())
        self.kept = KeptStreams(helping(helps, _LIMITS), clock.now)
        if "draft" in helps:
            assert isinstance(backend, TextBackend)
            targets = backend.targets
            self.served.drafts = Drafts(lambda: PlayedDraft(targets), _MANY, _MANY)
        self.usage = Usage(Account("", "simulated"))

    @property
    def busy_s(self) -> float:
        """Seconds of all forwards."""
        return self.served.scheduler.counters.compute_s

    @property
    def forwards(self) -> int:
        """Forwards so far, prompts apart."""
        counters = self.served.scheduler.counters
        return counters.forwards - counters.prefill_forwards

    def attach(self, peer: Peer) -> Dialogue:
        """Return the verifier's end of a new connection; ``peer`` leads to the device."""
        return Dialogue(self.kept, self._greet, peer)

    def _greet(self, hello: Hello) -> Terms:
        if not self._exits:
            known = tuple(c for c in hello.capabilities if c != "exits")
            hello = replace(hello, capabilities=known)
        welcome = welcome_to(hello, self.served, self.kept.limits)
        return Terms(self.served, self.usage, welcome)
