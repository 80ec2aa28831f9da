"""Rotary positions: how fast each pair of dimensions turns.

Source:
    Su et al. 2021, RoFormer, s. 3.4.2; Peng et al. 2023, YaRN; Ding et al. 2024,
    LongRoPE; the spelling of all is transformers', modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ModelError

Rates = NDArray[np.float64]


class UnknownArchitecture(ModelError):
    """The model is of a shape that this exporter does not write by itself."""


class Fields:
    """Typed access to a config with messages that name the model."""

    def __init__(self, where: str, raw: Mapping[str, Any]) -> None:
        self.where, self.raw = where, raw

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number above 0."""
        value = self.raw.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= 1 << 31:
            raise ModelError(f"{self.where}: config.json has {name} = {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number above 0, or the default."""
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            raise ModelError(f"{self.where}: config.json has {name} = {value!r}")
        return float(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rope:
    """One rotation."""

    rates: Rates  # ``(rotated / 2,)`` radians per position
    factor: float = 1.0  # of the rotated queries and keys
    # positions that it holds for, where that is fewer than the model's
    context: int | None = None


def read_rope(where: str, config: Mapping[str, Any], head_dim: int, partial: float) -> Rope:
    """Return the rotation that a config (of transformers 4 or 5) describes.

    ``partial`` is the rotated share of a head where the config names none. A ModelError
    where a field is missing, odd, or a scaling that is not known.
    """
    flat = {
        "rope_theta": config.get("rope_theta", config.get("rotary_emb_base", 10000.0)),
        "partial_rotary_factor": config.get(
            "partial_rotary_factor", config.get("rotary_pct", partial)
        ),
        "max_position_embeddings": config.get("max_position_embeddings"),
        "original_max_position_embeddings": config.get("original_max_position_embeddings"),
    }
    for name in ("rope_scaling", "rope_parameters"):
        if config.get(name) is not None:
            if not isinstance(config[name], dict):
                raise ModelError(f"{where}: config.json has an odd {name}")
            flat.update({k: v for k, v in config[name].items() if v is not None})
    values = Fields(where, flat)
    rotary = int(head_dim * values.number("partial_rotary_factor"))
    if rotary % 2 or not 0 < rotary <= head_dim:
        raise ModelError(f"{where} rotates {rotary} of {head_dim} dimensions")
    powers = np.arange(0, rotary, 2, dtype=np.float64) / rotary
    rates = values.number("rope_theta") ** -powers
    kind = flat.get("rope_type", flat.get("type", "default"))
    if kind in ("default", None):
        return Rope(rates)
    if kind == "linear":
        return Rope(rates / values.number("factor"))
    if kind == "dynamic":
        # Up to the trained length nothing changes; beyond it every key would.
        name = "original_max_position_embeddings"
        return Rope(rates, context=values.count(name if flat[name] else name[9:]))
    if kind == "llama3":
        return Rope(_llama3(rates, values))
    if kind == "yarn":
        return _yarn(rates, values, rotary)
    if kind in ("longrope", "su"):
        return _longrope(rates, values)
    raise UnknownArchitecture(
        f"{where} scales its rotary positions by {kind!r}; default, linear, dynamic, "
        "llama3, yarn and longrope are known here"
    )


def _llama3(rates: Rates, values: Fields) -> Rates:
    factor = values.number("factor")
    low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
    if high <= low:
        raise ModelError(f"{values.where}: high_freq_factor is not above the low one")
    turns = values.number("original_max_position_embeddings") * rates / (2 * np.pi)
    # 0 keeps long wavelengths slowed by the factor, 1 leaves short ones alone.
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return rates * (share + (1.0 - share) / factor)


def _yarn(rates: Rates, values: Fields, rotary: int) -> Rope:
    original = values.number("original_max_position_embeddings")
    factor = values.number("factor", values.number("max_position_embeddings") / original)
    theta = values.number("rope_theta")

    def pair(turns: float) -> float:
        """Return which pair turns so often over the original length."""
        return rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = pair(values.number("beta_fast", 32.0))
    high = pair(values.number("beta_slow", 1.0))
    if values.raw.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    ramp = np.clip((np.arange(rotary // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    scaled = rates * (1.0 - ramp) + rates / factor * ramp
    both = [values.raw.get(name) for name in ("mscale", "mscale_all_dim")]

    def size(weight: Any) -> float:
        return 1.0 if factor <= 1 else 0.1 * float(weight) * math.log(factor) + 1.0

    if values.raw.get("attention_factor") is not None:
        return Rope(scaled, values.number("attention_factor"))
    return Rope(scaled, size(both[0]) / size(both[1]) if all(both) else size(1.0))


def _longrope(rates: Rates, values: Fields) -> Rope:
    original = values.count("original_max_position_embeddings")
    factor = values.number("factor", values.number("max_position_embeddings") / original)
    size = 1.0
    if values.raw.get("attention_factor") is not None:
        size = values.number("attention_factor")
    elif factor > 1:
        size = math.sqrt(1 + math.log(factor) / math.log(original))
    short = np.asarray(values.raw.get("short_factor"), np.float64)
    if short.shape != rates.shape:
        raise ModelError(f"{values.where}: config.json has an odd short_factor")
    # Longer texts turn at other rates from their first token on, which a cache of keys
    # cannot follow; so the original length is what is served.
    return Rope(rates / short, size, original)
