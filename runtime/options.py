"""What a caller may ask of a stream, checked; and what comes back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

from draftwire.errors import ConfigError
from draftwire.runtime.actions import Token
from draftwire.runtime.controller import Controller, FixedLength, make_controller
from draftwire.runtime.mode import DEFAULT_MODE, Mode
from draftwire.sampling import SamplingParams
from draftwire.transport.messages import Welcome

if TYPE_CHECKING:
    from draftwire.tokenizer import Tokenizer

__all__ = [
    "OFFLINE",
    "PATIENCE_S",
    "Chunk",
    "StreamOptions",
    "controller_for",
    "encode_prompt",
]

OFFLINE = ("wait", "draft", "error")
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Chunk:
    """A piece of the stream.

    Attributes:
        text: New text; valid UTF-8, possibly empty (a character may need more tokens).
        tokens: The tokens behind this piece.
        t_s: Seconds since the generation began.
        finish: Why the stream ended, on the last chunk; else None.
        verified: False for guesses of the draft alone (``offline="draft"``).
        unverified: How many tokens shown so far are still guesses.
        revision: Usually None. Otherwise guesses shown before were wrong: everything
            after the first ``revision`` tokens of the answer is void, and ``kept_text``
            is the whole text up to there.
        kept_text: See ``revision``.
    """

    text: str
    tokens: tuple[Token, ...]
    t_s: float
    finish: str | None = None
    verified: bool = True
    unverified: int = 0
    revision: int | None = None
    kept_text: str | None = None


@dataclass(frozen=True)
class StreamOptions:
    """Checked options of one stream; see ``Session.generate`` for their meaning."""

    params: SamplingParams
    controller: Controller
    max_new_tokens: int
    deadline_s: float | None
    offline: str
    patience_s: float
    max_joules: float | None = None
    mode: Mode = DEFAULT_MODE

    @property
    def insight(self) -> bool:
        """True when somebody looks at how sure the draft is of each token."""
        fixed = isinstance(self.controller, FixedLength)
        return not fixed or "outcomes" in self.mode.preempt

    @classmethod
    def of(
        cls,
        welcome: Welcome,
        *,
        max_new_tokens: int,
        scheme: str | None,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
        controller: str | Controller,
        deadline_s: float | None,
        offline: str,
        patience_s: float,
        max_joules: float | None = None,
        mode: Mode = DEFAULT_MODE,
    ) -> StreamOptions:
        """Check the arguments of ``Session.generate``.

        Raises:
            ConfigError: One is out of range, or the verifier does not know the scheme.
        """
        params = SamplingParams(
            scheme or ("greedy" if temperature == 0 else "coupled"),
            float(temperature),
            top_k,
            float(top_p),
            secrets.randbits(63) if seed is None else seed,
        )
        if params.scheme not in welcome.schemes:
            raise ConfigError(
                f"the verifier does not know the sampling scheme {params.scheme!r}",
                hint="it knows " + ", ".join(welcome.schemes),
            )
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}, must be at least 1")
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"deadline_s is {deadline_s}, must be above 0")
        if not patience_s >= 0:
            raise ConfigError(f"patience_s is {patience_s}, must be at least 0")
        if offline not in OFFLINE:
            raise ConfigError(
                f"offline={offline!r} is unknown", hint="one of " + ", ".join(OFFLINE)
            )
        if isinstance(controller, str):
            controller = make_controller(controller)
        return cls(
            params,
            controller,
            max_new_tokens,
            deadline_s,
            offline,
            patience_s,
            max_joules,
            mode,
        )


def controller_for(
    controller: str | Controller | None, block: int | None, objective: str
) -> str | Controller:
    """Return the policy to use: the one given, blocks of a fixed length, or ``auto``.

    Args:
        controller: As given by the caller.
        block: Tokens per block, or None for the objective's own: 4 for ``cost``, and
            what the controller ``auto`` says for ``latency``.
        objective: See :class:`~draftwire.runtime.mode.Mode`.
    """
    if controller is not None:
        return controller
    if block is None and objective == "latency":
        return "auto"  # it knows when a race is not worth a draft
    if block is None:
        block = 4
    return f"fixed:{block}"


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
        context: Tokens that draft and target both hold, with the answer.

    Raises:
        ConfigError: It is empty, too long, or holds an unknown id.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, bos_id=bos_id)
    else:
        ids = [int(t) for t in prompt]
    if not ids:
        raise ConfigError("the prompt is empty")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise ConfigError(f"the prompt holds a token id outside 0..{vocab_size - 1}")
    if len(ids) >= context:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, but draft and target hold "
            f"{context} together with the answer",
            hint="shorten the prompt",
        )
    return ids
