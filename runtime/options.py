"""What a caller may ask of a stream, checked; and what comes back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from draftwire.errors import ConfigError
from draftwire.runtime.actions import Token
from draftwire.runtime.controller import Controller, make_controller
from draftwire.sampling import SamplingParams
from draftwire.transport.messages import Welcome

__all__ = ["OFFLINE", "PATIENCE_S", "Chunk", "StreamOptions"]

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
        )
