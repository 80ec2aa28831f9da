"""Both halves of every sampling scheme: how the device proposes, how the cloud decides.

numpy alone; no I/O, no models. ``SCHEMES`` is the table that ``--scheme`` reads.
"""

from __future__ import annotations

from draftwire.errors import ConfigError
from draftwire.sampling import coupled, greedy, qs, residual, separate
from draftwire.sampling.laws import NOISES, Law, SamplingParams, law_of, log_probs
from draftwire.sampling.scheme import (
    Card,
    Decider,
    Decision,
    Proposal,
    Proposer,
    Scheme,
)
from draftwire.sampling.shape import Constraint, Shape, shape_for

__all__ = [
    "NOISES",
    "SCHEMES",
    "Card",
    "Constraint",
    "Decider",
    "Decision",
    "Law",
    "Proposal",
    "Proposer",
    "SamplingParams",
    "Scheme",
    "Shape",
    "card_of",
    "check_race",
    "law_of",
    "log_probs",
    "loss_of",
    "make_decider",
    "make_proposer",
    "shape_for",
]

SCHEMES: dict[str, Scheme] = {
    scheme.card.name: scheme
    for scheme in (
        *(greedy.SCHEME, coupled.SCHEME, coupled.MATCH_SCHEME, residual.SCHEME, qs.SCHEME),
        *(separate.SCHEME, separate.LOSSY_SCHEME, greedy.ARGMAX_SCHEME),
    )
}


def _named(name: str) -> Scheme:
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise ConfigError(
            f"unknown sampling scheme {name!r}", hint="known schemes: " + ", ".join(SCHEMES)
        )
    return scheme


def _scheme(params: SamplingParams) -> Scheme:
    scheme = _named(params.scheme)
    if params.temperature > 0 and not scheme.card.sampled:
        raise ConfigError(
            f"scheme {params.scheme!r} cannot sample at temperature {params.temperature:g}",
            hint="use --scheme coupled, or --temperature 0",
        )
    if params.temperature == 0 and not scheme.card.greedy:
        raise ConfigError(
            f"scheme {params.scheme!r} needs a temperature above 0",
            hint="use --scheme greedy, or --temperature 0.8",
        )
    return scheme


def card_of(scheme: str) -> Card:
    """Return the name card of ``scheme``; a ConfigError where there is none."""
    return _named(scheme).card


def check_race(scheme: str) -> None:
    """Refuse (ConfigError) a scheme whose text would depend on when blocks arrive."""
    if not card_of(scheme).racing:
        raise ConfigError(
            f"scheme {scheme!r} cannot race: which blocks come in time depends on the "
            "tokens that were drawn, and that would bias the text",
            hint="use --scheme coupled, or wait for each answer",
        )


def loss_of(params: SamplingParams, vocab_size: int) -> str:
    """Say in one sentence what these settings lose against the target's law, "" if nothing.

    Raises:
        ConfigError: No such scheme, or not at this temperature.
    """
    return _scheme(params).loss(params, vocab_size)


def make_proposer(
    params: SamplingParams, vocab_size: int, *, insight: bool = False, second: bool = False
) -> Proposer:
    """Return the device half of ``params.scheme``; a ConfigError where it cannot be had.

    With ``insight`` proposals say how sure the draft is, and their runner-up; with
    ``second`` the latter, where the scheme can (those that take drafts from anywhere).
    """
    scheme = _scheme(params)
    scheme.check(params, vocab_size)
    proposer = scheme.make_proposer(params, vocab_size)
    proposer.insight, proposer.second = insight, second
    return proposer


def make_decider(params: SamplingParams, vocab_size: int) -> Decider:
    """Return the cloud half of ``params.scheme``; raises as :func:`make_proposer`."""
    scheme = _scheme(params)
    scheme.check(params, vocab_size)
    return scheme.make_decider(params, vocab_size)
