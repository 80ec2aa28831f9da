"""Drafts inside vLLM's own scheduler (0.32): imported by its engine process alone.

``SchedulerConfig.scheduler_cls`` and the proposer class are public but declared unstable,
and ``num_output_placeholders`` is a field of vLLM's requests: that is why the version is
pinned and :func:`..engine.probe` looks at what comes out before anybody is served.

A stream whose text is as long as was asked for is *held*: it stays among the running
requests, its cache stays, and it has nothing to schedule. One that has been preempted
meanwhile waits likewise until somebody asks.

A step for sixteen streams costs little more than one for a single stream. So where devices
answer much faster than a step takes, the next step waits for them: else the first of them
would have a step to itself, and the others would wait for that.
"""

from __future__ import annotations

import queue
import time
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

from draftwire.verifier.backends.streaming import Push
from draftwire.verifier.backends.vllm import KEY
from draftwire.verifier.backends.vllm.wish import Load, Wish

_PATIENCE = 0.1  # of a step, for devices that answer fast


class NullProposer:
    """A proposer that proposes nothing: drafts come from devices, by the scheduler."""

    def __init__(self, config: Any) -> None:
        pass

    def load_model(self, *_: Any, **__: Any) -> None:
        """Load nothing; the CPU runner asks."""

    def propose(self, sampled: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        """Return no drafts for any request."""
        return [[] for _ in sampled]


class DraftScheduler(Scheduler):
    """vLLM's scheduler, with drafts from outside and streams that wait for their device."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.running: list[Request]
        self._wishes: dict[str, Wish] = {}
        shrink = self.vllm_config.additional_config.get("draftwire_shrink", True)
        self._load = Load(self.num_spec_tokens, shrink=shrink)
        self._begun = time.monotonic()
        self._queued: dict[str, float] = {}  # seconds that a push waited for this step
        self._prompts = False  # somebody's prompt is in this step
        self.core: Any = None  # whose scheduler this is

    def add_request(self, request: Request) -> None:
        """Take in a request; one of ours comes with its sampling."""
        told = getattr(request.sampling_params, "extra_args", None) or {}
        if KEY in told:
            self._wishes[request.request_id] = Wish(probing=told[KEY][2])
        super().add_request(request)

    def push(self, items: list[tuple[str, Push]], sent: float) -> None:
        """Take what streams want; of requests that have ended it is void."""
        for name, push in items:
            if name in self._wishes:
                self._wishes[name].take(push, sent)

    def _held(self, request: Request) -> bool:
        """Tell whether a request waits for its device."""
        wish = self._wishes.get(request.request_id)
        if wish is None or not request.num_output_tokens or request.is_prefill_chunk:
            return False
        wish.settle(request.all_token_ids, request.num_tokens)
        return wish.holds(request.num_tokens)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plan a step: see vLLM's."""
        self._gather()
        self._begun = time.monotonic()
        self._queued.clear()
        if len(self._wishes) > len(self.requests):
            self._wishes = {n: w for n, w in self._wishes.items() if n in self.requests}
        held = [r for r in self.running if self._held(r)]
        rests = set(held)
        awake = [r for r in self.running if r not in rests]
        self._offer(awake)
        for request in held:
            request.num_output_placeholders = -1  # nothing to schedule
        self.running = awake + held
        sleeping = [
            r for r in self.waiting if r.status == RequestStatus.PREEMPTED and self._held(r)
        ]
        self.waiting.remove_requests(sleeping)
        try:
            plan = super().schedule(throttle_prefills)
        finally:
            for request in held:
                request.num_output_placeholders = 0
            for request in reversed(sleeping):
                self.waiting.prepend_request(request)
        self._prompts = bool(plan.scheduled_new_reqs) or any(
            self.requests[name].is_prefill_chunk for name in plan.num_scheduled_tokens
        )
        return plan

    def _gather(self) -> None:
        """Take in what comes from devices that answer at once."""
        most = _PATIENCE * self._load.price.seconds
        while self.core is not None:
            end = max((w.soon(most) for w in self._wishes.values()), default=0.0)
            left = end - time.monotonic()
            if left <= 0:
                return
            try:
                self.core._handle_client_request(*self.core.input_queue.get(timeout=left))
            except queue.Empty:
                return

    def _offer(self, awake: list[Request]) -> None:
        """Let the coming step judge what drafts there are, as far as they pay."""
        wishes = [self._wishes.get(request.request_id) for request in awake]
        shares = self._load.share([0.0 if w is None else w.chances.value for w in wishes])
        for request, wish, most in zip(awake, wishes, shares):
            if wish is None:
                continue
            if wish.since:
                self._queued[request.request_id] = self._begun - wish.since
                wish.since = 0.0
            length = request.num_tokens
            if length - request.num_computed_tokens == 1:
                most = self.num_spec_tokens if wish.probing else most
                request.spec_token_ids = wish.drafts(length, most)

    def update_from_output(self, plan: SchedulerOutput, output: Any) -> dict[int, Any]:
        """Take in what a step has brought; say of each stream's tokens how they came."""
        planned = plan.scheduled_spec_decode_tokens
        drafted = {n: sum(i >= 0 for i in ids) for n, ids in planned.items()}  # no padding
        found: dict[int, Any] = super().update_from_output(plan, output)
        now = time.monotonic()
        seconds = now - self._begun
        if plan.total_num_scheduled_tokens and not self._prompts:
            self._load.stepped(plan.total_num_scheduled_tokens, seconds)
        for outputs in found.values():
            for told in outputs.outputs:
                wish = self._wishes.get(told.request_id)
                if wish is None:
                    continue
                n = drafted.get(told.request_id, 0)
                wish.chances.judged(n, max(0, len(told.new_token_ids) - 1) if n else 0)
                waited = self._queued.get(told.request_id, 0.0)
                odd = told.num_nans_in_logits
                step = [n, wish.epoch, waited, seconds, self.current_step, odd]
                told.kv_transfer_params = {KEY: step}
                request = self.requests.get(told.request_id)
                wish.told = now if request is not None and self._held(request) else 0.0
        return found

    def get_num_unfinished_requests(self) -> int:
        """Return how many want a step: held ones keep nobody busy."""
        held = sum(map(self._held, self.running))
        held += sum(
            r.status == RequestStatus.PREEMPTED and self._held(r) for r in self.waiting
        )
        wanting: int = super().get_num_unfinished_requests() - held
        return wanting

    def has_unfinished_requests(self) -> bool:
        """Tell whether anybody wants a step."""
        return self.get_num_unfinished_requests() > 0


def _begin(self: Any) -> None:
    self.scheduler.core = self
    self.check_for_draft_tokens = False  # no worker has drafts: nobody needs to ask


def _push(self: Any, items: list[Any], sent: float) -> None:
    self.scheduler.push([(name, Push(*push)) for name, push in items], sent)


def _step(self: Any) -> int:
    step: int = self.scheduler.current_step
    return step


# The one way into the engine's process that wakes it: a utility call of EngineCore.
EngineCore.draftwire_begin = _begin
EngineCore.draftwire_push = _push
EngineCore.draftwire_step = _step
