"""The run report of a stream, gathered from the parts of its session."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Sequence

from draftwire.packages import DraftPackage
from draftwire.runtime.accounting import StreamAccount
from draftwire.runtime.decisions import Decisions
from draftwire.runtime.draft_model import DraftModel
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge_session import EdgeSession
from draftwire.runtime.link import Link
from draftwire.runtime.stream_facts import StreamFacts, report_of
from draftwire.sampling import loss_of
from draftwire.transport.capture import WireCapture
from draftwire.transport.messages import Welcome
from draftwire.transport.traffic import Traffic

__all__ = ["Reporter"]


class Reporter:
    """Knows where a session keeps what its reports say.

    Args:
        package: Of the draft.
        model: The loaded draft.
        drafter: Its thread.
        link: To the verifier.
        decisions: Controller and channel.
        capture: Counts the bytes on the wire, or None.
    """

    def __init__(
        self,
        package: DraftPackage,
        model: DraftModel,
        drafter: Drafter,
        link: Link,
        decisions: Decisions,
        capture: WireCapture | None,
    ) -> None:
        self._package = package
        self._model = model
        self._drafter = drafter
        self._link = link
        self._decisions = decisions
        self._capture = capture

    def traffic(self) -> Traffic:
        """Return the bytes of the session so far."""
        traffic = self._link.traffic()
        if self._capture is None:
            return traffic
        time.sleep(0.02)  # the last packets are on their way through the kernel
        return replace(traffic, up_wire=self._capture.up, down_wire=self._capture.down)

    def report(
        self,
        machine: EdgeSession,
        facts: StreamFacts,
        welcome: Welcome,
        account: StreamAccount | None,
        warnings: Sequence[str],
    ) -> dict[str, Any]:
        """Return the report of a stream that has ended.

        Args:
            machine: Of the stream.
            facts: Likewise.
            welcome: Of its connection.
            account: Of its joules.
            warnings: Of the session.
        """
        package, model, drafter = self._package, self._model, self._drafter
        return report_of(
            facts,
            machine.counts,
            welcome,
            draft={
                "id": package.id,
                "name": package.name,
                "engine": model.engine,
                "precision": model.precision,
            },
            traffic=self.traffic().minus(facts.before),
            wire="computed" if self._capture is None else "captured",
            reconnects=self._link.reconnects,
            energy=_energy(machine, account),
            draft_s=drafter.draft_s,
            prefill_s=drafter.prefill_s,
            channel=self._decisions.report(drafter.recalled),
            warnings=[
                *warnings,
                *self._decisions.warnings(),
                *filter(None, [loss_of(facts.params, welcome.vocab_size)]),
            ],
        )


def _energy(machine: EdgeSession, account: StreamAccount | None) -> dict[str, Any]:
    if account is None:
        return {"why_null": "the stream did not begin"}
    counts = machine.counts
    account.account.count(
        drafted=counts.drafted, accepted=counts.accepted, emitted=counts.tokens
    )
    return account.account.result()
