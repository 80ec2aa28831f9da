"""A stream's span on the device: what its driver tells of it to OpenTelemetry."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from draftwire.tracing import Trace, begin_trace
from draftwire.transport.messages import Block, Commit, Message, Open, Resume, Welcome

if TYPE_CHECKING:
    from draftwire.runtime.driver import StreamRun


class StreamTrace:
    """Notes rounds, lost links and the end of one stream in its span."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._sent: deque[tuple[float, int]] = deque(maxlen=64)  # blocks, unanswered

    def sending(self, message: Message, welcome: Welcome | None) -> Message:
        """Return ``message`` as it goes out: an open names the span."""
        if isinstance(message, Open):
            if welcome is not None and "trace" in welcome.capabilities:
                return replace(message, trace=self._trace.carried)
        elif isinstance(message, Resume):
            self._trace.event("resume", {"draftwire.position": message.position})
        elif isinstance(message, Block) and not (message.more or message.instead):
            self._sent.append((time.monotonic(), len(message.tokens)))
        return message

    def heard(self, message: Message) -> None:
        """A commit ends a round: from the block to its verdict, the network included."""
        if isinstance(message, Commit) and self._sent:
            sent_s, drafted = self._sent.popleft()
            attributes = {
                "draftwire.drafted": drafted,
                "draftwire.accepted": message.accepted,
                "draftwire.queue_s": message.queue_s,
                "draftwire.compute_s": message.compute_s,
            }
            self._trace.step("draftwire.round", time.monotonic() - sent_s, attributes)

    def lost(self) -> None:
        self._sent.clear()
        self._trace.event("link lost")

    def finished(self, run: StreamRun, error: Exception | None) -> None:
        counts = run.machine.counts
        attributes = {
            "gen_ai.usage.input_tokens": len(run.spec.prompt),
            "gen_ai.usage.output_tokens": counts.tokens,
            "gen_ai.response.finish_reasons": [run.finish],
            "draftwire.rounds": counts.rounds,
            "draftwire.drafted": counts.drafted,
            "draftwire.accepted": counts.accepted,
            "draftwire.target_forwards": counts.forwards,
            "draftwire.draft_s": run.draft_s,
            "draftwire.reconnects": run.reconnects,
        }
        self._trace.end(attributes, "" if error is None else str(error))


def trace_of(welcome: Welcome, scheme: str, temperature: float) -> StreamTrace | None:
    """Begin the span of a stream, inside the one that its caller is in, if there is one.

    Source:
        Attributes: OpenTelemetry's semantic conventions for generative AI.
    """
    attributes = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.system": "draftwire",
        "gen_ai.request.model": welcome.target,
        "gen_ai.response.model": f"{welcome.target} {welcome.target_version}",
        "gen_ai.request.temperature": temperature,
        "draftwire.scheme": scheme,
    }
    trace = begin_trace("draftwire.generate", "CLIENT", attributes)
    return None if trace is None else StreamTrace(trace)
