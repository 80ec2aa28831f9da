"""For a vLLM server of somebody's own: what makes it sample as draftwire's devices do.

    python -m vllm.entrypoints.openai.api_server --model MODEL \\
        --logits-processors draftwire.verifier.backends.vllm.http_processor:CoupledProcessor

It acts on requests with ``vllm_xargs`` of ours (at temperature 0) and on no others: the
logits become those of a single id, the one that comes first in the race over the shared
noise. draftwire has to be installed beside vLLM. For the V1 model runner of vLLM 0.32,
without a speculative config (with one, vLLM leaves processors out without a word, and the
probe of ``--backend openai`` finds that).
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from draftwire.errors import ConfigError
from draftwire.sampling import SamplingParams, make_decider


def _params(request: Any) -> SamplingParams | None:
    given = request.extra_args or {}
    if "draftwire_seed" not in given:
        return None
    return SamplingParams(
        "coupled",
        float(given.get("draftwire_temperature", 1.0)),
        int(given.get("draftwire_top_k", 0)),
        float(given.get("draftwire_top_p", 1.0)),
        int(given["draftwire_seed"]),
        sample=int(given.get("draftwire_sample", 0)),
    )


class CoupledProcessor(AdapterLogitsProcessor):
    """Draws the tokens of draftwire's requests with the noise that devices draft with."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse settings that make no sense, before the request is taken."""
        try:
            _params(sampling_params)
        except (ConfigError, TypeError, ValueError) as error:  # vLLM makes a 400 of it
            raise ValueError(str(error)) from None

    def is_argmax_invariant(self) -> bool:
        """Tell vLLM that greedy decoding is concerned as well."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], list[int], torch.Tensor], torch.Tensor] | None:
        """Return what makes one id of a row of logits, None for requests of others."""
        wanted = _params(params)
        if wanted is None:
            return None

        def draw(prompt: list[int], text: list[int], logits: torch.Tensor) -> torch.Tensor:
            row = logits.float().cpu().numpy()[None]
            decider = make_decider(wanted, row.shape[1])
            token = decider.decide((), b"", row, len(prompt) + len(text)).token
            found = torch.full_like(logits, float("-inf"))
            found[token] = 0.0
            return found

        return draw
