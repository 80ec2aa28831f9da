"""Every scheme that the simulator can run, in one table."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Sequence

from draftwire.bench.sim.facts import Profile
from draftwire.errors import ConfigError
from draftwire.runtime.mode import Mode

__all__ = ["DISTRIBUTED", "SCHEMES", "Scheme", "scheme_named", "schemes_named"]

_GUESS = frozenset({"guess"})


@dataclass(frozen=True)
class Scheme:
    """How draft and target work together.

    Attributes:
        name: As on the command line.
        title: One line.
        controller: Spec for the length policy; ``{k}`` stands for the block length.
        mode: How the session hides the network.
        place: ``"device"``, or ``"cloud"`` where the draft runs beside the target and
            only text crosses the network.
        up_bits_per_token: Evidence that a drafted token carries beside its id, bits;
            ``"fp16"`` is a dense fp16 distribution over the vocabulary.
        bonus: The target draws one more token after a block that is accepted whole.
        source: What it is a model of.
    """

    name: str
    title: str
    controller: str
    mode: Mode = Mode(preempt=frozenset())
    place: str = "device"
    up_bits_per_token: int | str = 0
    bonus: bool = True
    source: str = ""

    @property
    def tunable(self) -> bool:
        """True when it has a block length to choose."""
        return "{k}" in self.controller

    def evidence_bytes(self, tokens: int, profile: Profile) -> int:
        """Return the bytes beside the ids of a block of ``tokens``."""
        if self.up_bits_per_token == "fp16":
            return tokens * 2 * int(profile["text.vocabulary"])
        assert isinstance(self.up_bits_per_token, int)
        return (tokens * self.up_bits_per_token + 7) // 8


_TABLE = (
    Scheme(
        "cloud",
        "the target decodes by itself and streams",
        "off",
        Mode(objective="latency", preempt=frozenset()),
        source="autoregressive decoding in the cloud",
    ),
    Scheme(
        "colocated",
        "draft beside the target in the cloud",
        "fixed:{k}",
        place="cloud",
        source="arXiv 2606.25091; the server hosts both models",
    ),
    Scheme(
        "vanilla",
        "stop and wait, dense fp16 distributions up",
        "fixed:{k}",
        up_bits_per_token="fp16",
        source="the baseline of arXiv 2603.19133",
    ),
    Scheme(
        "await",
        "stop and wait, ids only",
        "fixed:{k}",
        source="the plainest use of our own wire",
    ),
    Scheme(
        "flexspec",
        "stop and wait, length by a ratio of linear functions",
        "flexspec",
        source="arXiv 2601.00644",
    ),
    Scheme(
        "earlyexit",
        "early exits of the target, preemptive drafting",
        "fixed:{k}",
        Mode(preempt=frozenset({"guess", "exits"})),
        source="arXiv 2505.21594",
    ),
    Scheme(
        "qs",
        "stop and wait, quantised sparse distributions up",
        "fixed:{k}",
        # Support of 16 ids and a lattice of 100 at V = 151,936: 294 bits with the id.
        up_bits_per_token=277,
        source="arXiv 2507.00605 and 2510.09942: 16 ids, resolution 100",
    ),
    Scheme(
        "picospec",
        "pipeline, probabilities of the ids up",
        "fixed:{k}",
        Mode(pipeline=2, preempt=_GUESS, cut=True),
        up_bits_per_token=32,
        bonus=False,
        source="arXiv 2603.19133",
    ),
    Scheme(
        "race",
        "the target decodes on, drafts leave one by one",
        "fixed:1",
        Mode(objective="latency", preempt=_GUESS),
        source="our race without a controller or exits",
    ),
    Scheme(
        "ours-cost",
        "our controller, exits where there are some; forwards for blocks only",
        "auto:cost",
        Mode(objective="cost", pipeline=2, preempt=_GUESS | {"exits"}, cut=True),
    ),
    Scheme(
        "ours-latency",
        "race with our controller, exits where there are some",
        "auto:latency",
        Mode(objective="latency", preempt=_GUESS | {"exits"}),
    ),
)
SCHEMES = {scheme.name: scheme for scheme in _TABLE}
DISTRIBUTED = ("await", "flexspec", "earlyexit", "qs", "picospec", "vanilla")


def scheme_named(name: str) -> Scheme:
    """Return a scheme.

    Raises:
        ConfigError: There is none of that name.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    near = difflib.get_close_matches(name, SCHEMES, n=1)
    raise ConfigError(
        f"no scheme is called {name!r}",
        hint=f"did you mean {near[0]}?" if near else f"there are {', '.join(SCHEMES)}",
    )


def schemes_named(text: str) -> Sequence[Scheme]:
    """Return the schemes of a list joined by commas; ``all`` is every one."""
    if text == "all":
        return list(SCHEMES.values())
    return [scheme_named(part.strip()) for part in text.split(",") if part.strip()]
