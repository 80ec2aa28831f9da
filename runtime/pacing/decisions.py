"""What a session remembers for its controllers, and what a stream tells its own.

:class:`Memory` lives as long as the session: the controllers, so that they need not learn
anew, and the suffix cache. :class:`Decisions` belongs to one stream: it feeds the
controller with what passes through.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from draftwire.errors import ConfigError
from draftwire.runtime.edge.actions import Emit
from draftwire.runtime.pacing.auto import Auto
from draftwire.runtime.pacing.channel import Channel
from draftwire.runtime.pacing.controller import (
    AUTOREGRESSIVE,
    Controller,
    FixedLength,
    make_controller,
)
from draftwire.runtime.pacing.parallel import ParallelPacing
from draftwire.runtime.pacing.radio import read_radio
from draftwire.runtime.pacing.suffix_cache import SuffixCache
from draftwire.sampling import Proposer, card_of
from draftwire.sampling.qs import QsProposer
from draftwire.transport.messages import Message

if TYPE_CHECKING:
    from draftwire.packages import Parallel
    from draftwire.runtime.drafter import Step

__all__ = ["Decisions", "Memory"]


class Memory:
    """Controllers and suffix cache of a session.

    Args:
        suffix_cache: ``"off"``, ``"memory"``, or a file that is read now and written when
            the session closes.
        tokenizer: Fingerprint; a file of another tokenizer is refused.
        vocab_size: Of the connection.
        measures: There is a power source.
        radio: Whom to ask for the signal at the end of each stream, or ``"off"``.
        parallel: How the draft says several tokens in one forward, or None.

    Raises:
        ConfigError: The file is damaged, or belongs to another tokenizer; the radio
            cannot be asked.
    """

    def __init__(
        self,
        suffix_cache: str | Path,
        tokenizer: bytes,
        vocab_size: int,
        measures: bool,
        radio: str = "off",
        parallel: Parallel | None = None,
    ) -> None:
        self._parallel = parallel
        self._radio = radio
        if radio != "off":
            read_radio(radio)  # what cannot be asked is said now, not after a stream
        self._measures = measures
        self._tokenizer = tokenizer.hex()
        self._file: Path | None = None
        self.cache: SuffixCache | None = None
        if str(suffix_cache) != "off":
            self.cache = SuffixCache(vocab_size)
            if str(suffix_cache) != "memory":
                self._file = Path(suffix_cache)
                self.cache.load(self._file, self._tokenizer)
        self._free: dict[tuple[Any, ...], list[Controller]] = {}
        self._taken: dict[int, tuple[Any, ...]] = {}

    def controller(
        self,
        spec: str | Controller,
        max_watts: float | None = None,
        max_joules_per_token: float | None = None,
    ) -> Controller:
        """Return the policy that ``spec`` names; one that has learned, if one is free.

        Raises:
            ConfigError: It is unknown, there is no power source for a budget, or the draft
                cannot draft in the way it asks for.
        """
        budgets = {"max_watts": max_watts, "max_joules_per_token": max_joules_per_token}
        if not self._measures and any(b is not None for b in budgets.values()):
            raise ConfigError(
                "a budget of power needs a power source, and there is none",
                hint="`draftwire energy sources` tells what is missing; --energy "
                "model:draft=6,verify-wait=3,... states the watts",
            )
        if not isinstance(spec, str):
            return self._choosing(spec)
        key = (spec, max_watts, max_joules_per_token)
        free = self._free.setdefault(key, [])
        found = free.pop() if free else self._choosing(make_controller(spec, **budgets))
        self._taken[id(found)] = key
        return found

    def _choosing(self, rule: Controller) -> Controller:
        """Return a rule that chooses how blocks are drafted, where the draft has ways.

        A ConfigError where it asks for a way that the draft has not.
        """
        if self._parallel is not None:
            return ParallelPacing(rule, self._parallel)
        way = rule.way_asked if isinstance(rule, FixedLength) else ""
        if way not in ("", AUTOREGRESSIVE):
            raise ConfigError(
                f"controller {rule.name!r} needs a draft that says several tokens in one "
                "forward, and this one, or its engine, says one",
                hint=f"{rule.name.rpartition(':')[0]}, or a draft that was made with "
                "`draftwire export draft --parallel 8`, on onnxruntime 1.20 or newer",
            )
        return rule

    def give_back(self, controller: Controller) -> None:
        """The stream of ``controller`` has ended: the next one may learn from it."""
        key = self._taken.pop(id(controller), None)
        if key is not None:
            self._free[key].append(controller)

    def signal(self) -> dict[str, Any]:
        """Return what the radio says, for a report; nothing where nobody asks it."""
        if self._radio == "off":
            return {}
        try:
            return {"radio": read_radio(self._radio)}
        except ConfigError as exc:  # a modem may be pulled out during a stream
            why = {"source": self._radio, "signal_dbm": None, "why_null": str(exc)}
            return {"radio": why}

    def close(self) -> None:
        """Write the cache's file, if there is one.

        Raises:
            OutputError: It cannot be written.
        """
        if self._file is not None and self.cache is not None:
            self.cache.save(self._file, self._tokenizer)


class Decisions:
    """The eyes of one stream's controller.

    The proposer of ``qs`` takes the controller's resolution; a scheme that draws its own
    drafts takes none from the session's ``cache``.

    Attributes:
        cache: What the drafter may ask, or None.
        recalled: Tokens that it gave.
    """

    def __init__(
        self,
        controller: Controller,
        scheme: str,
        prompt: Sequence[int],
        proposer: Proposer,
        cache: SuffixCache | None = None,
    ) -> None:
        self.controller = controller
        self._qs = proposer if isinstance(proposer, QsProposer) else None
        self._asked = 0 if self._qs is None else self._qs.settings.resolution
        self.cache = cache if cache is not None and card_of(scheme).any_draft else None
        self.recalled = 0
        if self.cache is not None:
            self.cache.begin(prompt)

    def drafted(self, step: Step, seconds: float) -> None:
        """A token was proposed, by a forward, by the cache, or by an earlier forward."""
        if step.fed:
            if step.fed == 1 and not step.masks:
                self.controller.costs.stepped(step.lanes, seconds)
            self.controller.forwarded(step.fed, step.masks, seconds)
        elif not step.drafts[0].proposal.depth:
            self.recalled += 1

    def received(
        self, channel: Channel, now_s: float, message: Message, stream: int = 0
    ) -> bool:
        """Note a message that the machine has dealt with; return True for a verdict."""
        found = channel.received(now_s, message, stream)
        if found is None:
            return False
        controller = self.controller
        controller.measured(found)
        if self.cache is not None and isinstance(controller.rule, Auto):
            # The cache must be about as good as the model is; its time is saved.
            known = controller.rule.survival.acceptance
            self.cache.least = min(max(known - 0.05, 0.5), 0.9)
        if self._qs is not None:
            # Replaced as a whole: the drafting thread sees the old ones or the new.
            resolution = controller.resolution() or self._asked
            self._qs.settings = replace(self._qs.settings, resolution=resolution)
        return True

    def power(self, watts: Mapping[str, float | None]) -> None:
        """Note the watts of each phase."""
        self.controller.power(watts)

    def emitted(self, emit: Emit) -> None:
        """Note text; only what is final is remembered."""
        if self.cache is not None:
            self.cache.commit([t.id for t in emit.tokens if t.kind != "unverified"])

    def report(self) -> dict[str, Any]:
        """Return what the run report's ``link`` says of the cache."""
        cache = self.cache
        known = None if cache is None else {**cache.report(), "recalled": self.recalled}
        return {"suffix_cache": known}

    def ways(self) -> dict[str, Any]:
        """Return what the run report says of the ways of drafting, where there are some."""
        controller = self.controller
        if not isinstance(controller, ParallelPacing):
            return {}
        return {"drafting": controller.report()}

    def warnings(self) -> list[str]:
        """Return what a user should know of the budgets."""
        controller = self.controller.rule
        found = controller.governor.warning() if isinstance(controller, Auto) else ""
        short = "" if self._qs is None else self._qs.shortfall()
        return [
            *([f"the budget cannot be kept: {found}"] if found else []),
            *([short] if short else []),
        ]
