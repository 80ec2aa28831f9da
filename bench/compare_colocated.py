"""Co-located speculative decoding: the draft beside the target, no network between.

The same two sessions as over a network, back to back in one process and one thread:
draft a block, judge it, go on. It is what a server would do that can host both models.
Only text crosses the network, so the first token is charged with a round trip of the
link, and the bytes are those of the prompt and of the text.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Sequence

import numpy as np

from draftwire.runtime.actions import Action, Draft, Emit, Send
from draftwire.runtime.controller import FixedLength
from draftwire.runtime.drafter import Model
from draftwire.runtime.edge_session import EdgeSession
from draftwire.runtime.mode import Mode
from draftwire.runtime.report import RunRecord, build_report
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Message, Open, Opened
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.target_session import TargetSession, Work

__all__ = ["Colocated", "tune_block"]

BLOCKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
_CHUNK = 128  # as the real scheduler: prompt tokens in one forward
_HEADERS = 52 + 2  # IPv4, TCP with timestamps, and a websocket frame's head


@dataclass
class _Run:
    """One stream at work."""

    edge: EdgeSession
    actions: deque[Action]
    cloud: TargetSession | None = None
    sequence: list[int] = field(default_factory=list)
    order: Draft | None = None
    left: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)
    draft_s: float = 0.0
    verify_s: float = 0.0
    steps: int = 0


class Colocated:
    """Both models on one machine.

    Args:
        draft: The draft's model.
        target: The target's backend, with a free slot.
        vocab_size: Ids of both are below this.
        context: Tokens that both hold.
        stop_ids: Ids that end a text.
    """

    def __init__(
        self,
        draft: Model,
        target: TargetBackend,
        *,
        vocab_size: int,
        context: int,
        stop_ids: Sequence[int],
    ) -> None:
        self._draft = draft
        self._target = target
        self._vocab_size = vocab_size
        self._context = context
        self._stop_ids = tuple(stop_ids)

    def run(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        block: int,
        tokens: int,
        rtt_s: float = 0.0,
    ) -> dict[str, Any]:
        """Write one text; return its run report.

        Args:
            prompt: Token ids.
            params: Sampling.
            block: Drafted tokens of each block.
            tokens: At most so many.
            rtt_s: Of the link over which the text is read.
        """
        proposer = make_proposer(params, self._vocab_size)
        edge = EdgeSession(
            prompt,
            params=params,
            proposer=proposer,
            controller=FixedLength(block),
            max_new_tokens=tokens,
            context=self._context,
            stop_ids=self._stop_ids,
            mode=Mode(preempt=frozenset()),
        )
        run = _Run(edge, deque())
        slot = self._target.allocate()
        began_s = time.perf_counter()
        try:
            run.actions.extend(edge.start())
            while not edge.done:
                self._step(run, slot, proposer, began_s)
        finally:
            self._target.release(slot)
        return self._report(run, params, block, prompt, rtt_s)

    def _step(self, run: _Run, slot: int, proposer: Any, began_s: float) -> None:
        while run.actions:
            self._act(run, run.actions.popleft(), began_s)
        if run.edge.done:
            return
        work = None if run.cloud is None else run.cloud.poll()
        if work is not None and run.cloud is not None:
            begin_s = time.perf_counter()
            rows = self._forward(slot, work)
            seconds = time.perf_counter() - begin_s
            run.verify_s += 0.0 if work.prefill else seconds
            for message in run.cloud.complete(work, rows, compute_s=seconds):
                run.actions.extend(run.edge.message(message))
        elif run.left and run.order is not None:
            begin_s = time.perf_counter()
            fed = run.sequence[self._draft.length :]
            logits = self._draft.forward(fed)
            proposal = proposer.propose(logits[: self._vocab_size], len(run.sequence))
            run.draft_s += time.perf_counter() - begin_s if len(fed) == 1 else 0.0
            run.sequence.append(proposal.token)
            run.left -= 1
            run.steps += 1
            run.actions.extend(run.edge.drafted(run.order.branch, proposal))
        else:
            raise RuntimeError("co-located decoding came to a halt: our bug")

    def _forward(self, slot: int, work: Work) -> np.ndarray[Any, Any]:
        """Run the target on ``work``, a prompt in pieces."""
        size = _CHUNK if work.prefill else len(work.tokens)
        for at in range(0, len(work.tokens), size):
            part = work.tokens[at : at + size]
            item = SlotInput(slot, work.start + at, part, work.rows)
            rows = self._target.forward([item])[0]
        return rows

    def _act(self, run: _Run, action: Action, began_s: float) -> None:
        if isinstance(action, Send):
            self._receive(run, action.message)
        elif isinstance(action, Draft):
            run.sequence[action.valid :] = action.tokens
            if self._draft.length > action.valid:
                self._draft.rewind(action.valid)
            if action.count and self._draft.length >= len(run.sequence):
                self._draft.rewind(len(run.sequence) - 1)
            run.order, run.left = action, action.count
        elif isinstance(action, Emit):
            run.seen.append((time.perf_counter() - began_s, len(action.tokens)))

    def _receive(self, run: _Run, message: Message) -> None:
        if isinstance(message, Open):
            run.cloud = TargetSession(
                message,
                vocab_size=self._vocab_size,
                context=self._context,
                max_block=255,
            )
            opened = Opened(message.stream, bytes(8), bytes(16))
            run.actions.extend(run.edge.message(opened))
        elif isinstance(message, Block) and run.cloud is not None:
            for answer in run.cloud.receive(message):
                run.actions.extend(run.edge.message(answer))

    def _report(
        self,
        run: _Run,
        params: SamplingParams,
        block: int,
        prompt: Sequence[int],
        rtt_s: float,
    ) -> dict[str, Any]:
        counts, ids = run.edge.counts, run.edge.committed
        first_s, first_tokens = run.seen[0] if run.seen else (None, 0)
        last_s = run.seen[-1][0] if run.seen else 0.0
        bits = Codec(self._vocab_size).bits
        up = 2 + -(-len(prompt) * bits // 8)
        down = sum(2 + -(-n * bits // 8) for _, n in run.seen)
        target = self._target
        report = build_report(
            RunRecord(
                draft={"name": "beside the target"},
                target={
                    "name": target.name,
                    "version": target.version,
                    "family": target.family.name,
                },
                sampling={
                    "scheme": params.scheme,
                    "temperature": params.temperature,
                    "top_k": params.top_k,
                    "top_p": params.top_p,
                    "seed": params.seed,
                },
                mode={
                    "objective": "cost",
                    "pipeline": 1,
                    "preempt": "off",
                    "cut": False,
                    "batch": 0,
                    "controller": f"fixed:{block}",
                },
                prompt_tokens=len(prompt),
                token_ids=ids,
                finish=run.edge.finish,
                rounds=counts.rounds,
                drafted=counts.drafted,
                accepted=counts.accepted,
                accepted_by_position=list(counts.accepted_by_position),
                judged_by_position=list(counts.judged_by_position),
                target_forwards=counts.rounds,
                bytes={
                    "up_payload": up,
                    "down_payload": down,
                    "up_wire": up + _HEADERS + 4,
                    "down_wire": down + _HEADERS * len(run.seen),
                },
                seconds={
                    "total": last_s + rtt_s,
                    "first_token": None if first_s is None else first_s + rtt_s,
                    "draft": run.draft_s,
                    "verify": run.verify_s,
                },
                energy={
                    "why_null": "nothing runs on the device; its idle power is not metered"
                },
                link={"wire_bytes": "computed", "rtt_ms": 1e3 * rtt_s},
            )
        )
        report["bench"] = {
            "place": "cloud",
            "first_tokens": first_tokens,
            "last_token_s": last_s + rtt_s,
        }
        return report


def tune_block(
    colocated: Colocated,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    tokens: int,
    *,
    forward_s: float | None = None,
    draft_s: float | None = None,
) -> int:
    """Return the block length with which co-located decoding is fastest.

    Args:
        colocated: With models that are not paced: only their counts are needed.
        prompts: Texts to try it on.
        params: Sampling, one for each.
        tokens: Of each text.
        forward_s: Of the target, in the profile that will be paced to; None takes the
            time that the models really need.
        draft_s: Of the draft, likewise.
    """
    best, best_s = BLOCKS[0], float("inf")
    worse = 0
    for block in BLOCKS:
        spent = 0.0
        for prompt, one in zip(prompts, params):
            report = colocated.run(prompt, one, block, tokens)
            if forward_s is None or draft_s is None:
                spent += report["seconds"]["total"]
            else:
                spent += forward_s * report["target_forwards"]
                spent += draft_s * report["drafted"]
        if spent < best_s:
            best, best_s, worse = block, spent, 0
        else:
            worse += 1
            if worse == 3:
                break
    return best
