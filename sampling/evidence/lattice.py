"""Laws in whole numbers: what the device can both draw from and send without loss.

A rejection scheme is exact only if the device draws from the very law that the cloud
verifies with. So the draft's law is rounded first, to weights that are whole numbers,
and everything after that (the draw, the wire, the accept test) is exact arithmetic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Lattice(NamedTuple):
    """A law whose probabilities are ``weights / total``."""

    ids: np.ndarray | None  # ``(n,)`` int64 token ids, or None for all ids in order
    weights: np.ndarray  # ``(n,)`` int64, not negative
    total: int  # their sum

    def weight(self, token: int) -> int:
        """Return the weight of ``token``, 0 outside the support."""
        if self.ids is None:
            return int(self.weights[token])
        found = np.flatnonzero(self.ids == token)
        return int(self.weights[found[0]]) if len(found) else 0

    def draw(self, unit: float) -> int:
        """Return the token that a uniform number in (0, 1] falls on."""
        ticket = min(max(math.ceil(unit * self.total), 1), self.total)
        at = int(np.searchsorted(np.cumsum(self.weights), ticket))
        return at if self.ids is None else int(self.ids[at])


def quantise(probs: np.ndarray, resolution: int) -> np.ndarray:
    """Return ``(n,)`` int64 that sum to ``resolution``, nearly as ``probs`` ``(n,)``.

    A sum of these below 1 (a cut tail) is made up for where it errs least.

    Source:
        The lattice quantiser of https://arxiv.org/abs/2507.00605.
    """
    scaled = probs * resolution
    weights = np.floor(scaled + 0.5).astype(np.int64)
    short = resolution - int(weights.sum())
    while short:
        error = weights - scaled
        if short > 0:
            order = np.argsort(error, kind="stable")[:short]
            weights[order] += 1
        else:
            error[weights == 0] = -np.inf
            order = np.argsort(-error, kind="stable")[:-short]
            weights[order] -= 1
        short = resolution - int(weights.sum())
    return weights
