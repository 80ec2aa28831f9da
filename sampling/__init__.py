"""Both halves of every sampling scheme: how the device proposes, how the cloud decides.

numpy alone; no I/O, no models. ``SCHEMES`` is the table that ``--scheme`` reads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Dict

from draftwire.errors import ConfigError
from draftwire.sampling import coupled, greedy
from draftwire.sampling.laws import Law, SamplingParams, law_of
from draftwire.sampling.scheme import Card, Decider, Decision, Proposal, Proposer

__all__ = [
    "SCHEMES",
    "Card",
    "Decider",
    "Decision",
    "Law",
    "Proposal",
    "Proposer",
    "SamplingParams",
    "card_of",
    "law_of",
    "make_decider",
    "make_proposer",
]

SCHEMES: dict[str, ModuleType] = {m.CARD.name: m for m in (greedy, coupled)}


def _scheme(params: SamplingParams) -> ModuleType:
    module = SCHEMES.get(params.scheme)
    if module is None:
        raise ConfigError(
            f"unknown sampling scheme {params.scheme!r}",
            hint="known schemes: " + ", ".join(SCHEMES),
        )
    if params.temperature > 0 and not module.CARD.sampled:
        raise ConfigError(
            f"scheme {params.scheme!r} cannot sample at temperature "
            f"{params.temperature:g}",
            hint="use --scheme coupled, or --temperature 0",
        )
    if params.temperature == 0 and not module.CARD.greedy:
        raise ConfigError(
            f"scheme {params.scheme!r} needs a temperature above 0",
            hint="use --scheme greedy, or --temperature 0.8",
        )
    return module


def card_of(scheme: str) -> Card:
    """Return the name card of ``scheme``.

    Raises:
        ConfigError: No such scheme.
    """
    if scheme not in SCHEMES:
        raise ConfigError(
            f"unknown sampling scheme {scheme!r}",
            hint="known schemes: " + ", ".join(SCHEMES),
        )
    card: Card = SCHEMES[scheme].CARD
    return card


def make_proposer(params: SamplingParams, vocab_size: int) -> Proposer:
    """Return the device half of ``params.scheme``.

    Raises:
        ConfigError: No such scheme, or not at this temperature.
    """
    proposer: Proposer = _scheme(params).make_proposer(params, vocab_size)
    return proposer


def make_decider(params: SamplingParams, vocab_size: int) -> Decider:
    """Return the cloud half of ``params.scheme``.

    Raises:
        ConfigError: No such scheme, or not at this temperature.
    """
    decider: Decider = _scheme(params).make_decider(params, vocab_size)
    return decider
