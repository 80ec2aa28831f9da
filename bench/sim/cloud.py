"""The verifier in virtual time: the real scheduler and streams, simulated forwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Callable, Collection, Protocol, Sequence

import numpy as np

from draftwire.bench.sim.facts import Exit as ExitFact
from draftwire.bench.sim.facts import Profile
from draftwire.clock import Clock
from draftwire.packages import Exit, Family
from draftwire.transport.messages import Hello, Message
from draftwire.verifier.backends.base import ExitListener, SlotInput, TargetBackend
from draftwire.verifier.beside import Beside, Drafts, Model
from draftwire.verifier.dialogue import Dialogue, Peer
from draftwire.verifier.executor import Executor, VirtualExecutor
from draftwire.verifier.greeting import welcome_to
from draftwire.verifier.lookup import Lookup
from draftwire.verifier.registry import Served
from draftwire.verifier.scheduler import Scheduler
from draftwire.verifier.serving.accounts import Account, Usage
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.streams import KeptStreams, Terms

EXIT_THRESHOLD = 0.5  # logits of simulated exits are nearly one-hot, or flat
# Slots of texts that have ended would be missed by whoever uses the backend next.
_LIMITS = Limits(block=255, waiting=255, resume_s=math.inf, prefixes=0)


class TargetModel(Protocol):
    """Logits of one stream's target."""

    def run(self, start: int, tokens: np.ndarray, rows: int) -> np.ndarray:
        """Feed ``tokens`` from position ``start`` on.

        Returns:
            ``(rows, width)`` logits of the last ``rows`` tokens.
        """

    def exit_rows(self, number: int, exit: ExitFact, end: int, rows: int) -> np.ndarray:
        """Return what early exit ``number`` makes of the last ``rows`` before ``end``."""


@dataclass(frozen=True)
class ForwardCost:
    """What a forward of the target takes."""

    base_s: float  # a forward over few tokens of one session
    free: int = 17  # so many tokens (drafts and the one before them) cost no more
    token_s: float = 0.0  # each token beyond
    session_s: float = 0.0  # each session beyond the first
    read_s: float = 0.0  # each prompt token that is read

    @classmethod
    def of(cls, profile: Profile) -> ForwardCost:
        """Return the costs of a profile's cloud."""
        return cls(
            profile.seconds("cloud.forward_ms"),
            int(profile["cloud.free_tokens"]),
            profile.seconds("cloud.forward_ms_per_token"),
            profile.seconds("cloud.forward_ms_per_session"),
            profile.seconds("cloud.read_ms_per_token"),
        )

    def __call__(self, tokens: int, sessions: int = 1) -> float:
        """Return the seconds of a forward that judges.

        Args:
            tokens: Of all sessions together.
            sessions: In the batch.
        """
        over = max(0, tokens - self.free * sessions)
        return self.base_s + self.token_s * over + self.session_s * (sessions - 1)

    def of_batch(self, parts: Sequence[SlotInput], prefill: bool) -> float:
        """Return the seconds of a forward over ``parts``."""
        tokens = sum(len(part.tokens) for part in parts)
        return self.reading(tokens) if prefill else self(tokens, len(parts))

    def reading(self, tokens: int) -> float:
        """Return the seconds of a forward that reads prompt tokens."""
        return self.base_s + self.read_s * tokens


class TextBackend:
    """The targets of texts that are known beforehand, as one backend.

    Which text a slot holds is said when it is taken: prompts need not tell.

    Args:
        name: Of the target.
        vocab_size: Ids are below this.
        exits: Early exits.
        context: Longest sequence.

    Attributes:
        next: Gives the model of the slot that is taken next.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    slots: int = 1 << 30
    numerics = "exact"
    logit_error = 0.0
    leaves = True

    def __init__(
        self,
        name: str,
        vocab_size: int,
        exits: Sequence[ExitFact] = (),
        context: int = 1 << 20,
    ) -> None:
        self.id, self.version = "", "simulated"
        self.name, self.vocab_size, self.context = name, vocab_size, context
        self.family = Family(name, None, "00" * 32)
        self.facts = tuple(exits)
        self.exits: tuple[Exit, ...] = tuple(
            Exit(number + 1, EXIT_THRESHOLD, fact.agreement)
            for number, fact in enumerate(exits)
        )
        self.next: Callable[[], TargetModel | None] | None = None
        self._models: dict[int, TargetModel] = {}
        self._taken = 0

    def allocate(self) -> int:
        """Take a slot for the text that comes next."""
        model = None if self.next is None else self.next()
        assert model is not None
        self._taken += 1
        self._models[self._taken] = model
        return self._taken

    def release(self, slot: int) -> None:
        """Give a slot back."""
        del self._models[slot]

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Return the rows of the texts."""
        models = self._models
        if on_exit is not None:
            for number, fact in enumerate(self.facts):
                ends = [(i, i.start + len(i.tokens)) for i in batch]
                on_exit(
                    number,
                    [models[i.slot].exit_rows(number, fact, e, i.rows) for i, e in ends],
                )
        return [_rows(models[i.slot], i) for i in batch]


def _rows(model: TargetModel, item: SlotInput) -> np.ndarray:
    """Return the rows of an input: of each leaf as of a text that ends with it."""
    chain, leaves = item.tokens[: item.kept], item.tokens[item.kept :]
    beside = [
        model.run(item.start, np.append(chain[:behind], leaf), 1)
        for behind, leaf in zip(item.leaves, leaves)
    ]
    rows = model.run(item.start, chain, item.rows - len(beside))
    return np.concatenate([rows, *beside]) if beside else rows


class SimVerifier:
    """One target for all streams: the verifier's own scheduler and streams on a clock.

    Args:
        clock: Where everything happens.
        backend: The target.
        cost: Of its forwards.
        executor: Runs the forwards in place of one that takes `cost`.
        chunk: Most tokens of one prompt in one forward.
        helps: What it does beside judging drafts, see :class:`~.schemes.Scheme`.
        draft_s: Of a forward of the draft beside the target.

    Attributes:
        backend: The target.
        served: It in service.
        kept: The streams.
        busy_s: Seconds of all forwards.
    """

    def __init__(
        self,
        clock: Clock,
        backend: TargetBackend,
        cost: ForwardCost | None = None,
        executor: Executor | None = None,
        chunk: int = 128,
        helps: Collection[str] = (),
        draft_s: float = 0.0,
    ) -> None:
        self.backend = backend
        if executor is None:
            assert cost is not None
            facts = getattr(backend, "facts", ())
            fractions = [fact.fraction for fact in facts]
            executor = VirtualExecutor(backend, clock, cost.of_batch, fractions)
            executor.draft_s = draft_s
        patient = "patience" in helps
        scheduler = Scheduler(backend, executor, clock, chunk=chunk, patience=patient)
        self.served = Served(backend, scheduler, frozenset())
        most = {name: 4 if name in helps else 0 for name in ("lookup", "leaves")}
        self._limits = replace(_LIMITS, **most)
        self.kept = KeptStreams(self._limits, clock.now)
        self.draft: Callable[[], Model] | None = None  # of the stream that is opened next
        if "draft" in helps:
            self.served.drafts = Drafts(self._take, 1 << 30, 1 << 30)
            self.kept.lookup_of = self._beside  # type: ignore[method-assign]
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

    def _take(self) -> Model:
        raise AssertionError("each stream has a draft of its own")

    def _beside(self, prompt: Sequence[int], served: Served) -> Lookup:
        assert self.draft is not None
        return Beside(prompt, self._limits.lookup, Drafts(self.draft, 1 << 30, 1 << 30))

    def attach(
        self,
        next: Callable[[], TargetModel | None],
        peer: Peer,
        draft: Callable[[], Model] | None = None,
    ) -> Dialogue:
        """Return the verifier's end of a new connection.

        Args:
            next: Gives the model of the stream that is opened next on it, where texts
                are known beforehand.
            peer: The way to the device.
            draft: Gives the model beside the target for that stream.
        """
        dialogue = _Dialogue(self.kept, self._greet, peer)
        dialogue.verifier, dialogue.next, dialogue.draft = self, next, draft
        return dialogue

    def _greet(self, hello: Hello) -> Terms:
        if not isinstance(self.backend, TextBackend):
            # Nobody says when in a forward the exits of real models would speak.
            known = tuple(c for c in hello.capabilities if c != "exits")
            hello = replace(hello, capabilities=known)
        beside = self.served.drafts is not None
        terms = welcome_to(hello, self.backend, self._limits, beside=beside)
        return Terms(self.served, self.usage, terms)


class _Dialogue(Dialogue):
    """A connection's end that tells the backend whose text comes next."""

    verifier: SimVerifier
    next: Callable[[], TargetModel | None]
    draft: Callable[[], Model] | None

    def take(self, message: Message, number: int | None = 0) -> None:
        self.verifier.draft = self.draft
        if isinstance(self.verifier.backend, TextBackend):
            self.verifier.backend.next = self.next
        super().take(message, number)
