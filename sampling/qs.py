"""QS: quantise, sample, verify. A few bits of draft law go up instead of all of it.

The device cuts the draft's law to a support, rounds it to a lattice of whole numbers
(``evidence.Lattice``), and only then draws the token. The cloud decodes the
same whole numbers, so rejection sampling returns exactly the target's law.

Per token the device chooses

- the support: tokens above a threshold that moves so that the dropped mass averages a
  budget (conformal), at most ``support`` of them;
- the resolution: the coarsest lattice whose rounding moves at most ``tolerance`` of the
  mass, so that a confident law takes one byte and a flat one takes what it needs.

Both follow from the law at this position and from earlier ones, never from the token
that is drawn at this one: otherwise the draw would no longer have the law that is sent.

Evidence up: for each token these bits, from the lowest up, padded to a byte::

    support - 1            7 bits    n, at most 128 tokens, all of weight above 0
    resolution             4 bits    index into RESOLUTIONS; absent when n is 1
    the n - 1 other ids    a set out of vocab - 1, see evidence.put_set
    the weights            a set of n - 1 cuts out of resolution - 1, see put_small

The drafted token itself is known from the block, so the set holds the others only, each
id above the drafted one lowered by 1. Weights are in the order of rising ids; the cuts
are their running sums, less 1. A law on one token takes one byte.

Source:
    Quantize-Sample-and-Verify, https://arxiv.org/abs/2507.00605; sparse and conformal,
    https://arxiv.org/abs/2510.09942. The threshold's rule, the choice of the resolution
    and the code are ours.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Sequence

import numpy as np

from draftwire.errors import ConfigError, ProtocolError
from draftwire.sampling.evidence import (
    BitReader,
    BitWriter,
    Lattice,
    get_set,
    get_small,
    put_set,
    put_small,
    quantise,
)
from draftwire.sampling.laws import Law, SamplingParams, largest
from draftwire.sampling.rejection import Drawn, Judge, check_tokens
from draftwire.sampling.scheme import Card, Scheme

CARD = Card(
    "qs",
    exact=True,
    note="ids and a quantised draft law up (1 to some 100 bytes a token); one id down",
    any_draft=False,
)

MAX_SUPPORT = 128
MAX_BYTES = 512  # of one token: 127 ids of 24 bits are far from it
RESOLUTIONS = (2, 4, 8, 12, 16, 24, 32, 48, 64, 100, 128, 200, 256, 400, 512, 768)
_CODES = {resolution: code for code, resolution in enumerate(RESOLUTIONS)}
_FIRST_THRESHOLD = 1e-3
_LOWEST, _HIGHEST = 1e-7, 0.999
_TOLD = 4096  # positions that a report tells of
_REMEMBERED = 512  # positions whose threshold can be returned to after a rejection
_GRID = np.array(RESOLUTIONS, np.float64)[:, None]


@dataclass(frozen=True)
class QsSettings:
    """How much of the draft's law to send; the cloud need not know.

    Raises:
        ConfigError: A value is out of range.
    """

    # most tokens of a law, 1..128. It goes before ``budget``: a law that is flatter than
    # that drops what is left (at T = 1.5 without top-k about a quarter of the mass at 64),
    # which costs acceptance and never exactness.
    support: int = 64
    # mass to drop on average by the threshold; 0 keeps the top ``support``
    budget: float = 0.05
    rate: float = 0.02  # how fast the threshold moves
    resolution: int = 0  # one of ``RESOLUTIONS``, or 0 to choose by ``tolerance``
    # mass that rounding may move, the smaller the more bits; the finest lattice is taken
    # where none keeps it
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.support <= MAX_SUPPORT:
            raise ConfigError(f"support {self.support} is outside 1..{MAX_SUPPORT}")
        if not (0 <= self.budget < 1 and 0 <= self.rate <= 1):
            raise ConfigError("budget must be in [0, 1) and rate in [0, 1]")
        if self.resolution and self.resolution not in RESOLUTIONS:
            raise ConfigError(
                f"resolution {self.resolution} has no code",
                hint="choose 0 or one of " + ", ".join(map(str, RESOLUTIONS)),
            )
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"tolerance {self.tolerance} is outside (0, 1)")

    @classmethod
    def of(cls, words: str) -> QsSettings:
        """Return those of words such as ``"support=16,resolution=100"``."""
        given = dict(part.split("=") for part in words.split(",") if part)
        whole = ("support", "resolution")
        try:
            numbers: Any = {k: int(v) if k in whole else float(v) for k, v in given.items()}
            return cls(**numbers)
        except (TypeError, ValueError):
            hint = "support, budget, tolerance and resolution, such as support=16,budget=0"
            raise ConfigError(f"qs cannot be {words!r}", hint=hint) from None

    @property
    def dense(self) -> bool:
        """Whether the lattice over the whole vocabulary comes out: nothing is cut then."""
        return not self.budget and 0 < self.resolution <= self.support


class QsProposer(Drawn):
    """Device half.

    Args:
        params: Of the draft's law.
        vocab_size: Of the connection.
        settings: May be replaced between tokens, e.g. when the uplink gets slower.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, settings: QsSettings | None = None
    ) -> None:
        super().__init__(params, vocab_size)
        self.settings = self._asked = settings or QsSettings()
        # Thresholds after each position. A discarded branch must leave no trace: its
        # thresholds would carry its noise, which the next branch draws from again.
        self._trail: list[tuple[int, float]] = []
        self._proposed, self._missed = 0, 0.0
        self._sent: dict[int, tuple[int, int, float]] = {}  # by position, see `told`

    @property
    def threshold(self) -> float:
        """The conformal threshold after the last proposed position."""
        return self._trail[-1][1] if self._trail else _FIRST_THRESHOLD

    def _packed(self, draft: Lattice, token: int) -> bytes:
        return encode(draft, token, self._vocab_size)

    def shortfall(self) -> str:
        """Say by how much the budget was missed, "" when it was kept."""
        mean = self._missed / max(1, self._proposed)
        if self._proposed < 16 or mean <= 2 * self.settings.budget:
            return ""
        return (
            f"scheme 'qs' left out {mean:.0%} of the draft's distribution on average "
            f"above its budget of {self.settings.budget:.0%}: it is too flat for "
            f"{self.settings.support} tokens; the text is exact, fewer drafts are accepted "
            "(lower the temperature, or set top-k or top-p)"
        )

    def told(self) -> dict[str, object]:
        """Return what was asked for, and what was sent of each position, for a report."""
        rows = [self._sent[position] for position in sorted(self._sent)]
        found = dict(zip(("support", "resolution", "dropped_mass"), map(list, zip(*rows))))
        return {"settings": asdict(self._asked), "by_token": found}

    def _round(self, law: Law, position: int) -> Lattice:
        settings = self.settings
        while self._trail and self._trail[-1][0] >= position:
            self._trail.pop()
        threshold = self.threshold if settings.budget else 0.0
        ids, probs, missed = _cut(law, threshold, settings.support)
        mass = float(probs.sum())
        self._proposed += 1
        self._missed += missed
        if settings.budget:
            moved = threshold + settings.rate * (settings.budget - (1.0 - mass))
            self._trail.append((position, min(max(moved, _LOWEST), _HIGHEST)))
            del self._trail[:-_REMEMBERED]
        found = _round(ids, probs if settings.dense else probs / mass, settings)
        if len(self._sent) < _TOLD or position in self._sent:
            dropped = round(max(0.0, 1.0 - mass), 6)
            self._sent[position] = len(found.weights), found.total, dropped
        return found


def _cut(law: Law, threshold: float, support: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return ids and probabilities of the support, unordered, and what found no room."""
    kept = np.flatnonzero(law.probs >= threshold) if threshold else None
    missed = 0.0
    if kept is None or len(kept) > support or not len(kept):
        best = largest(law.probs, support if kept is None or len(kept) else 1)
        if kept is not None and len(kept):
            missed = float(law.probs[kept].sum() - law.probs[best].sum())
        kept = best
    return (kept if law.ids is None else law.ids[kept]), law.probs[kept], missed


def _round(ids: np.ndarray, probs: np.ndarray, settings: QsSettings) -> Lattice:
    """Return the lattice law, in the order of rising ids, without zero weights."""
    if len(ids) == 1:
        return Lattice(ids, np.ones(1, np.int64), 1)
    resolution = settings.resolution
    if resolution:
        weights = quantise(probs, resolution)
    else:
        # Weights are repaired to sum up after they were rounded, which moves some more:
        # the first guess is only where to begin.
        moved = np.abs(np.floor(probs * _GRID + 0.5) / _GRID - probs).sum(axis=1) / 2
        fine = np.flatnonzero(moved <= settings.tolerance)
        for resolution in RESOLUTIONS[fine[0] if len(fine) else -1 :]:
            weights = quantise(probs, resolution)
            if np.abs(weights / resolution - probs).sum() / 2 <= settings.tolerance:
                break
    kept = np.flatnonzero(weights)
    if len(kept) == 1:
        return Lattice(ids[kept], np.ones(1, np.int64), 1)
    kept = kept[np.argsort(ids[kept])]
    return Lattice(ids[kept], weights[kept], resolution)


def encode(draft: Lattice, token: int, vocab_size: int) -> bytes:
    """Return the evidence of ``token``, which was drawn from ``draft``.

    That has rising ids, weights above 0 and a total out of ``RESOLUTIONS`` (or one token
    of weight 1).
    """
    assert draft.ids is not None
    ids: list[int] = draft.ids.tolist()
    bits = BitWriter()
    bits.put(len(ids) - 1, 7)
    if len(ids) > 1:
        bits.put(_CODES[draft.total], 4)
        at = bisect_left(ids, token)
        others = ids[:at] + [i - 1 for i in ids[at + 1 :]]
        put_set(bits, others, vocab_size - 1)
        cuts = [c - 1 for c in accumulate(draft.weights.tolist()[:-1])]
        put_small(bits, cuts, draft.total - 1)
    return bits.done()


def decode(bits: BitReader, token: int, vocab_size: int) -> Lattice:
    """Undo :func:`encode`; the reader stands at the next token's evidence then.

    Raises:
        ProtocolError: The bits are no law on this vocabulary.
    """
    count = bits.take(7) + 1
    if count > vocab_size:
        raise ProtocolError(f"a support of {count} tokens out of {vocab_size}")
    if count == 1:
        bits.align()
        return Lattice(np.array([token], np.int64), np.ones(1, np.int64), 1)
    total = RESOLUTIONS[bits.take(4)]
    if count > total:
        raise ProtocolError(f"{count} weights above 0 cannot sum to {total}")
    others = get_set(bits, count - 1, vocab_size - 1)
    at = bisect_left(others, token)
    ids = others[:at] + [token] + [i + 1 for i in others[at:]]
    cuts = [0, *(c + 1 for c in get_small(bits, count - 1, total - 1)), total]
    bits.align()
    return Lattice(np.array(ids, np.int64), np.diff(np.array(cuts, np.int64)), total)


def unpack(tokens: Sequence[int], evidence: bytes, vocab_size: int) -> list[Lattice]:
    """Return the law of each token; a ProtocolError where the evidence is not theirs."""
    if len(evidence) > MAX_BYTES * len(tokens):
        raise ProtocolError(
            f"{len(evidence)} bytes of evidence for {len(tokens)} tokens, at most "
            f"{MAX_BYTES} each"
        )
    check_tokens(tokens, vocab_size)
    bits = BitReader(evidence)
    drafts = [decode(bits, token, vocab_size) for token in tokens]
    bits.finish()
    return drafts


SCHEME = Scheme(CARD, QsProposer, lambda p, v: Judge(unpack, p, v))
