"""What a session measures and remembers for its controller: the wiring, in one place.

One object a session: it feeds the channel estimator and the controller with what passes
through the session, keeps a controller from stream to stream so that it need not learn
anew, and owns the suffix cache.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol, Sequence

from draftwire.errors import ConfigError
from draftwire.runtime.actions import Emit
from draftwire.runtime.channel import Channel
from draftwire.runtime.controller import Controller, Policy, make_controller
from draftwire.runtime.controller_auto import Auto
from draftwire.runtime.radio import read_radio
from draftwire.runtime.suffix_cache import SuffixCache
from draftwire.sampling import Proposer, card_of
from draftwire.sampling.qs import QsProposer
from draftwire.transport.messages import Block, Message, Welcome
from draftwire.transport.traffic import Traffic

__all__ = ["Decisions"]

Explain = Callable[[str], None]


class Sender(Protocol):
    """What is needed of :class:`~draftwire.runtime.link.Link`."""

    def send(self, message: Message) -> None:
        """Send a message."""

    def traffic(self) -> Traffic:
        """Return the bytes so far."""


class Decisions:
    """The controller's eyes and memory.

    Args:
        suffix_cache: ``"off"``; ``"memory"``: for as long as the session lives; or a
            file that is read now and written when the session closes.
        welcome: Of the verifier; a file of another tokenizer is refused.
        measures: There is a power source.
        radio: Whom to ask for the signal at the end of each stream, see
            :func:`~draftwire.runtime.radio.read_radio`; ``"off"`` asks nobody.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: The file is damaged, or belongs to another tokenizer; the radio
            cannot be asked.
    """

    def __init__(
        self,
        suffix_cache: str | Path,
        welcome: Welcome,
        measures: bool,
        radio: str = "off",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel = Channel()
        self._radio = radio
        if radio != "off":
            read_radio(radio)  # what cannot be asked is said now, not after a stream
        self._clock = clock
        self._measures = measures
        self._tokenizer = welcome.tokenizer.hex()
        self._file: Path | None = None
        self._cache: SuffixCache | None = None
        if str(suffix_cache) != "off":
            self._cache = SuffixCache(welcome.vocab_size)
            if str(suffix_cache) != "memory":
                self._file = Path(suffix_cache)
                self._cache.load(self._file, self._tokenizer)
        self._known: dict[tuple[Any, ...], Controller] = {}
        self._controller: Controller = Policy()
        self._explain: Explain | None = None
        self._using: SuffixCache | None = None
        self._qs: QsProposer | None = None
        self._steps = 0

    def controller(
        self,
        spec: str | Controller,
        max_watts: float | None = None,
        max_joules_per_token: float | None = None,
    ) -> Controller:
        """Return the policy that ``spec`` names: the same one for the same words.

        Raises:
            ConfigError: It is unknown, or there is no power source for a budget.
        """
        if (max_watts is not None or max_joules_per_token is not None) and (
            not self._measures
        ):
            raise ConfigError(
                "a budget of power needs a power source, and there is none",
                hint="`draftwire energy sources` tells what is missing; --energy "
                "model:draft=6,verify-wait=3,... states the watts",
            )
        if not isinstance(spec, str):
            return spec
        key = (spec, max_watts, max_joules_per_token)
        if key not in self._known:
            self._known[key] = make_controller(
                spec, max_watts=max_watts, max_joules_per_token=max_joules_per_token
            )
        return self._known[key]

    def begin(
        self,
        controller: Controller,
        scheme: str,
        prompt: Sequence[int],
        proposer: Proposer,
        explain: Explain | None = None,
    ) -> SuffixCache | None:
        """A stream begins; return the cache that its drafter may ask.

        Args:
            controller: Of the stream.
            scheme: Of sampling; one that draws its own drafts takes none from a cache.
            prompt: Token ids.
            proposer: Of the stream; that of ``qs`` takes the controller's resolution.
            explain: Gets one line for each block that leaves.
        """
        self._controller, self._explain = controller, explain
        self._steps = 0
        self._qs = proposer if isinstance(proposer, QsProposer) else None
        self._using = self._cache if card_of(scheme).any_draft else None
        if self._using is not None:
            self._using.begin(prompt)
        return self._using

    def drafted(self, steps: int, seconds: float) -> None:
        """A token was proposed.

        Args:
            steps: Forwards of the draft so far: a token of the cache adds none.
            seconds: What the last one took.
        """
        if steps > self._steps:
            self._steps = steps
            self._controller.drafted_in(seconds)

    def send(self, link: Sender, message: Message) -> None:
        """Send a message, and note it."""
        before = link.traffic().up_wire
        now = self._clock()
        link.send(message)
        self.channel.sent(now, message, link.traffic().up_wire - before)
        if self._explain is not None and isinstance(message, Block) and not message.more:
            self._explain(self._controller.explain())

    def received(self, message: Message) -> None:
        """Note a message that came, after the session has dealt with it."""
        found = self.channel.received(self._clock(), message)
        if found is None:
            return
        self._controller.measured(found)
        if self._using is not None and isinstance(self._controller, Auto):
            # The cache must be about as good as the model is; its time is saved.
            known = self._controller.survival.acceptance
            self._using.least = min(max(known - 0.05, 0.5), 0.9)
        if self._qs is not None:
            # Replaced as a whole: the drafting thread sees the old ones or the new.
            resolution = self._controller.resolution()
            self._qs.settings = replace(self._qs.settings, resolution=resolution)

    def emitted(self, emit: Emit) -> None:
        """Note text; only what is final is remembered."""
        if self._using is not None:
            self._using.commit([t.id for t in emit.tokens if t.kind != "unverified"])

    def power(self, watts: Mapping[str, float | None]) -> None:
        """Note the watts of each phase."""
        self._controller.power(watts)

    def link_lost(self) -> None:
        """The connection is gone."""
        self.channel.lost(self._clock())

    def link_up(self) -> None:
        """There is a new one."""
        self.channel.back(self._clock())

    def report(self, recalled: int) -> dict[str, Any]:
        """Return what the run report's ``link`` says of it.

        Args:
            recalled: Tokens of this stream that the cache gave.
        """
        cache = self._using
        known = None if cache is None else {**cache.report(), "recalled": recalled}
        found = {**self.channel.report(), "suffix_cache": known}
        return found if self._radio == "off" else {**found, "radio": self._signal()}

    def _signal(self) -> dict[str, Any]:
        try:
            return read_radio(self._radio)
        except ConfigError as exc:  # a modem may be pulled out during a stream
            return {"source": self._radio, "signal_dbm": None, "why_null": str(exc)}

    def warnings(self) -> list[str]:
        """Return what a user should know of the budgets."""
        controller = self._controller
        found = controller.governor.warning() if isinstance(controller, Auto) else ""
        return [f"the budget cannot be kept: {found}"] if found else []

    def close(self) -> None:
        """Write the cache's file, if there is one.

        Raises:
            ConfigError: It cannot be written.
        """
        if self._file is not None and self._cache is not None:
            self._cache.save(self._file, self._tokenizer)
