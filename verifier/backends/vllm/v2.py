"""vLLM's V2 model runner: our noise and drafts in it; imported by its workers alone.

V2 applies custom logits processors to every drafted row, which is where our noise belongs.
Drafts it keeps on the device, in a row for each request, written by its speculator after a
step. Ours proposes nothing: what our scheduler has planned is written there as the step
begins, so that it judges the newest drafts.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from draftwire.verifier.backends.vllm.noise import Ours, mark, ours_of


class Processor(LogitsProcessor):
    """Our noise: named in ``logits_processors``."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._ours: list[Ours | None] = [None] * req_states.max_num_reqs

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Note how the request in this slot is sampled."""
        self._ours[req_idx] = ours_of(sampling_params)
        return self._ours[req_idx] is not None

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """See :func:`~.noise.mark`."""
        slots, offsets = ctx.expanded_idx_mapping.tolist(), ctx.expanded_local_pos.tolist()
        firsts = [row for row, offset in enumerate(offsets) if not offset]
        inputs = ctx.pos[firsts].tolist()
        groups = []
        for first, end, at in zip(firsts, [*firsts[1:], len(offsets)], inputs):
            ours = self._ours[slots[first]]
            if ours is not None:
                groups.append((first, ctx.input_ids[first + 1 : end], ours, at + 1))
        mark(logits, groups)
        return logits


class Speculator(BaseSpeculator):
    """Proposes nothing that anybody looks at."""

    supports_mm_inputs = False
    draft_logits = None

    def __init__(self, states: Any) -> None:
        self._drafts = torch.zeros_like(states.draft_tokens)

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """Nothing runs."""

    def capture(self) -> None:
        """Nothing runs."""

    def propose(self, input_batch: Any, *_: Any, **__: Any) -> torch.Tensor:
        """Return a row for each request."""
        return self._drafts[: input_batch.num_reqs]


def install(runner: Any) -> None:
    """Give the runner drafts from outside."""
    states, update = runner.req_states, runner.update_requests
    width = states.draft_tokens.shape[1]

    def update_requests(plan: Any) -> None:
        update(plan)
        drafts = {
            states.req_id_to_index[name]: [*ids, *[0] * (width - len(ids))]
            for name, ids in plan.scheduled_spec_decode_tokens.items()
        }
        if drafts:
            rows = torch.tensor(list(drafts.values()), device=states.draft_tokens.device)
            states.draft_tokens[list(drafts)] = rows

    runner.update_requests = update_requests
    if runner.speculator is not None:  # on the last of several workers in a row
        runner.speculator = Speculator(states)
