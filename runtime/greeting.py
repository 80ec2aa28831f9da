"""What a device says first: of itself, and of a stream."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Sequence

import draftwire
from draftwire.packages import DraftPackage
from draftwire.runtime.edge.mode import Mode
from draftwire.sampling import NOISES, SamplingParams
from draftwire.sampling.grammar import Rules
from draftwire.tracing import tracing
from draftwire.transport.messages import Hello, Open
from draftwire.transport.text_hash import TextHash

__all__ = ["hello_of", "open_of"]

_CAPABILITIES = (
    *("resume", "exits", "prefix", "further", "leaves", "beside"),
    *("processors", "logprobs", "brief"),
)
_GRAMMAR = ("grammar",) if find_spec("llguidance") else ()


def hello_of(package: DraftPackage, target: str) -> Hello:
    """Return the greeting for ``target`` (name or version, "" for the default)."""
    backbone = package.family.backbone
    return Hello(
        f"draftwire/{draftwire.__version__}",
        target,
        bytes.fromhex(package.family.tokenizer),
        bytes.fromhex(backbone) if backbone else b"",
        package.vocab_size,
        bytes.fromhex(package.id),
        package.family.name,
        (*_CAPABILITIES, *_GRAMMAR, *(["trace"] if tracing() else [])),
        NOISES,
    )


def open_of(
    prompt: Sequence[int],
    params: SamplingParams,
    mode: Mode,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    bonus: bool,
    racing: bool,
    held: int = 0,
    text: int = 0,
    grammar: Rules | None = None,
    logprobs: int = 0,
) -> Open:
    """Return the request for a stream.

    Args:
        prompt: Token ids.
        params: Sampling.
        mode: Of the stream.
        max_new_tokens: At most so many tokens after the prompt.
        stop_ids: Ids that end the text.
        racing: The verifier shall not wait for blocks.
        bonus: Ask for a token after a block that is accepted whole.
        held: So many ids of the prompt the verifier has still; they are named, not sent.
        text: So many at the end of it are text already.
        grammar: What the text keeps to, or None.
        logprobs: Pairs for each new token.
    """
    return Open(
        tuple(prompt[held:]),
        params.scheme,
        params.temperature,
        params.top_k,
        params.top_p,
        0 if params.scheme in ("greedy", "argmax") else params.seed,  # nothing is drawn
        max_new_tokens,
        tuple(stop_ids),
        objective="latency" if racing else "cost",
        bonus=bonus,
        exits="exits" in mode.preempt,
        sample=params.sample,
        noise=params.noise,
        prefix=TextHash(prompt[:held]).digest(16) if held else b"",
        prefix_length=held,
        logprobs=logprobs,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        bad_words=params.bad_words,
        text_before=text if params.penalised or grammar is not None else 0,
        grammar=b"" if grammar is None else grammar.compiled.grammar.digest,
        forced=grammar is None or grammar.forcing,
    )
