"""What a caller asks of a stream, against what draft and verifier can do."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Sequence

from draftwire.errors import ConfigError
from draftwire.options import Pacing, Sampling
from draftwire.runtime.controller import Controller, FixedLength
from draftwire.runtime.mode import Mode
from draftwire.sampling import SamplingParams, card_of
from draftwire.transport.messages import Welcome

if TYPE_CHECKING:
    from draftwire.tokenizer import Tokenizer

__all__ = ["controller_for", "encode_prompt", "insight", "params_of"]


def params_of(options: Sampling, welcome: Welcome, mode: Mode) -> SamplingParams:
    """Return the sampling of a stream.

    Raises:
        ConfigError: The verifier does not know the scheme, or it cannot be used so.
    """
    params = SamplingParams(
        options.scheme or ("greedy" if options.temperature == 0 else "coupled"),
        options.temperature,
        options.top_k,
        options.top_p,
        secrets.randbits(63) if options.seed is None else options.seed,
    )
    if params.scheme not in welcome.schemes:
        raise ConfigError(
            f"the verifier does not know the sampling scheme {params.scheme!r}",
            hint="it knows " + ", ".join(welcome.schemes),
        )
    if mode.racing and not getattr(card_of(params.scheme), "racing", True):
        raise ConfigError(
            f"scheme {params.scheme!r} cannot race: which drafts are in time would depend "
            "on what was drawn, and bias the text",
            hint="use coupled, or the objective cost",
        )
    return params


def controller_for(
    options: Pacing, controller: Controller | None = None
) -> str | Controller:
    """Return the policy to use: the one given, blocks of a fixed length, or ``auto``.

    Args:
        options: Of the stream.
        controller: An object in place of words.
    """
    if controller is not None:
        return controller
    words = options.controller
    if words == "auto" and options.objective == "cost" and options.block is None:
        return "auto:cost"  # what the user wants is said once, and holds for both
    if words is not None:
        return words
    if options.block is None and options.objective == "latency":
        return "auto"  # it knows when a race is not worth a draft
    return f"fixed:{4 if options.block is None else options.block}"


def insight(controller: Controller, mode: Mode) -> bool:
    """Return whether somebody looks at how sure the draft is of each token."""
    return not isinstance(controller, FixedLength) or "outcomes" in mode.preempt


def encode_prompt(
    prompt: str | Sequence[int],
    tokenizer: Tokenizer,
    bos_id: int | None,
    vocab_size: int,
    context: int,
) -> list[int]:
    """Return the ids of a prompt.

    Args:
        prompt: Text, or ids (then nothing is added in front).
        tokenizer: Of the draft.
        bos_id: Put in front of a text, unless None.
        vocab_size: Ids are below it.
        context: Tokens that the target holds, with the answer.

    Raises:
        ConfigError: It is empty, too long, no text, or holds an unknown id.
    """
    wanted = ConfigError("the prompt is neither text nor a list of token ids")
    if isinstance(prompt, str):
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise ConfigError(f"the prompt is not Unicode text: {exc.reason}") from exc
        ids = tokenizer.encode(prompt, bos_id=bos_id)
    else:
        try:
            ids = [_id_of(token) for token in prompt]
        except TypeError:
            raise wanted from None
    if not ids:
        raise ConfigError("the prompt is empty")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ConfigError(f"the prompt holds a token id outside 0..{vocab_size - 1}")
    if len(ids) >= context:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, but the target holds {context} together "
            "with the answer",
            hint="shorten the prompt",
        )
    return ids


def _id_of(token: object) -> int:
    index = getattr(token, "__index__", None)
    if index is None or isinstance(token, bool):
        raise TypeError
    return int(index())
