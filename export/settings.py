"""What trainings and exits can be told: types, ranges, defaults and help, once.

The command line makes its flags of these classes, so importing them costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from draftwire import rules
from draftwire.options import Options
from draftwire.rules import Rule

_COUNT = rules.whole(1, 1 << 40)
_LAYERS = rules.whole(0, 10_000)
_RATE = rules.number(0, 10, above=True)
_SHARE = rules.number(0, 1, above=True, shown="SHARE")


def setting(default: Any, rule: Rule, text: str) -> Any:
    """Return a field of a group of settings."""
    meta = {"rule": rule, "help": text, "secret": False, "common": True}
    return field(default=default, metadata=meta)


def _numbers(value: object) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(int(part) for part in parts)  # type: ignore[attr-defined]


def _seconds(value: object) -> float:
    """Return the seconds of "2h", "90m" or "1h30m"; numbers are seconds already."""
    import re

    if isinstance(value, (int, float)) and value >= 0:
        return float(value)
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?", str(value).strip())
    if found is None or not any(found.groups()):
        raise ValueError
    return 3600 * float(found[1] or 0) + 60 * float(found[2] or 0)


@dataclass(frozen=True)
class TrainingSettings(Options):
    """What decides how a training goes."""

    anchor_layers: int | None = setting(
        None,
        _LAYERS,
        "first layers that draft and targets share; by default those of the target "
        "package, or 2 for a draft and 0 for a directory that evolves",
    )
    tokens: int = setting(2_000_000, _COUNT, "tokens of text that the training reads")
    batch: int = setting(8192, _COUNT, "tokens of a step")
    length: int = setting(256, _COUNT, "tokens of most rows")
    lr: float = setting(3e-3, _RATE, "peak learning rate")
    seed: int = setting(1, rules.whole(0, 2**32 - 1), "of everything random")
    workers: int = setting(1, rules.whole(1, 4096), "training processes (CPU)")
    device: str | None = setting(
        None, rules.word("cpu", "cuda"), "by default cuda where there is one"
    )
    arithmetic: str = setting(
        "auto",
        rules.word("auto", "float32", "bfloat16"),
        "auto takes bfloat16 where it is faster",
    )
    save_every: float = setting(
        60.0, rules.number(0, 86_400, shown="SECONDS"), "seconds between checkpoints"
    )


@dataclass(frozen=True)
class DraftSettings(TrainingSettings):
    """How a draft is made of a base; its matrices learn at ``lr``, norms at a third."""

    layers: int = setting(2, _COUNT, "layers that are trained, between anchor and head")
    prompts: int = setting(
        16, _COUNT, "held-out prompts of each file that acceptance is measured on"
    )
    looks: int = setting(8, _LAYERS, "times that acceptance is measured meanwhile")
    head: int | None = setting(
        None,
        _COUNT,
        "tokens that its head says, the most frequent of what was read: fewer make a "
        "smaller head to read at each step; by default all",
    )
    passes: int | None = setting(
        None,
        _COUNT,
        "times that each text is read: above 1 the base runs once over it and its hidden "
        "states are kept; by default 1, with --budget 4",
    )
    parallel: int | None = setting(
        None,
        rules.whole(2, 32),
        "train mask tokens too, with which one forward drafts so many tokens",
    )
    shared_mask: bool = setting(
        False, rules.FLAG, "one mask token for all places of a parallel draft"
    )
    masks_only: bool = setting(
        False, rules.FLAG, "train nothing but the mask tokens; wants --start"
    )
    written: float = setting(
        0.0,
        rules.number(0, 1, shown="SHARE"),
        "of the rows, how many the base writes itself, most of them greedily",
    )
    budget: float | None = setting(
        None,
        Rule("a time such as 2h, 90m or 1h30m", _seconds, shown="TIME"),
        "what it may take here, as 2h or 90m: decides the tokens by ten seconds of "
        "measuring",
    )


@dataclass(frozen=True)
class EvolveSettings(TrainingSettings):
    """How a target evolves."""

    tokens: int = setting(500_000, _COUNT, "tokens of text that the training reads")
    lr: float = setting(2e-3, _RATE, "peak learning rate")
    rank: int = setting(16, rules.whole(1, 65_536), "of LoRA; its scale is 1")
    free_anchor: bool = setting(
        False, rules.FLAG, "train the anchor too: the family's drafts age faster"
    )


@dataclass(frozen=True)
class ExitSettings(Options):
    """What decides how exits come out, apart from target and text."""

    layers: tuple[int, ...] = setting(
        (),
        Rule("layers such as 2,4", _numbers, shown="N[,N...]"),
        "after how many layers each exit sits; by default one third and two thirds",
    )
    rank: int | None = setting(
        None, _COUNT, "of each exit's residual; by default 256, at most the target's width"
    )
    agreement: float = setting(
        0.9, _SHARE, "how often an exit that speaks shall agree with the target"
    )
    tokens: int = setting(400_000, _COUNT, "to learn from")
    seed: int = setting(1, rules.whole(0, 2**32 - 1), "of everything random")
