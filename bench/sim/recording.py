"""Recorded texts: what real models wrote and proposed, played back in the simulator.

A recording holds, for each prompt, the target's greedy text, and at each of its places
the draft's most likely token given the right context, its second choice, and its
probability. JSON, so that it can be read and checked anywhere::

    {"schema": "draftwire.simtext/1", "draft": {...}, "target": {...}, "vocabulary": V,
     "texts": [{"prompt": [ids], "tokens": [ids], "proposals": [ids], "second": [ids],
                "confidence": [...]}]}

Played back, ids are renamed to a small range, stream by stream, so that logits are cheap;
equal ids stay equal. What the draft says behind a wrong context is not recorded: it is
taken to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from draftwire.bench.sim.texts import Text
from draftwire.errors import ConfigError
from draftwire.io import parse_json
from draftwire.runtime.drafter import Model

SCHEMA = "draftwire.simtext/1"
_LISTS = ("tokens", "proposals", "second", "confidence")
_IDS = ("prompt", "tokens", "proposals", "second")
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Recording:
    """Texts of real models."""

    name: str  # for reports
    texts: Sequence[Text]  # at least one
    vocabulary: int  # ids are below this

    @property
    def acceptance(self) -> float:
        """Share of places where the draft is right."""
        right = [r for text in self.texts for r in text.right]
        return sum(right) / len(right)

    def text(self, index: int, tokens: int) -> Text:
        """Return text ``index``, from the first again after the last, cut to length."""
        found = self.texts[index % len(self.texts)]
        return replace(found, **{key: getattr(found, key)[:tokens] for key in _LISTS})


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        ConfigError: The file cannot be read, or is not a recording; says where.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"the recording {path} is above {_MAX_BYTES >> 20} MiB")
        document = parse_json(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot read the recording {path}: {exc}",
            hint="make one with draftwire bench simulate --record FILE",
        ) from exc
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise ConfigError(f"{path} is no recording of schema {SCHEMA}")
    vocabulary, raw = document.get("vocabulary"), document.get("texts")
    if not isinstance(vocabulary, int) or not 2 <= vocabulary <= 2**24:
        raise ConfigError(f"{path}: vocabulary is {vocabulary!r}")
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{path} holds no text")
    texts = [_text(f"{path}: text {i}", one, vocabulary) for i, one in enumerate(raw)]
    return Recording(f"recorded({path.name})", texts, vocabulary)


def _text(where: str, raw: object, vocabulary: int) -> Text:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is no object")
    for key in ("prompt", *_LISTS):
        value = raw.get(key)
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{where} has no list {key!r}")
        kind, top = ((int,), vocabulary - 1) if key in _IDS else ((int, float), 1)
        if not all(type(v) in kind and 0 <= v <= top for v in value):
            raise ConfigError(f"{where}: {key} holds something that is no such number")
    if len({len(raw[key]) for key in _LISTS}) != 1:
        raise ConfigError(f"{where}: its lists differ in length")
    return renamed(raw)


def renamed(columns: Mapping[str, Sequence[Any]]) -> Text:
    """Return the text with its ids numbered from 0 in the order of their coming."""
    names: dict[int, int] = {}
    ids = {k: tuple(names.setdefault(t, len(names)) for t in columns[k]) for k in _IDS}
    width = max(len(names), 2)
    # Above 0, so that it has a logit; a top choice cannot be less likely than that.
    sure = tuple(max(1.5 / width, chance) for chance in columns["confidence"])
    return Text(**ids, confidence=sure, width=width)


def record(
    draft: Model,
    vocabulary: int,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a recording of what a target wrote after each prompt, and of what the draft
    says at every place of it; ids are below ``vocabulary``, ``about`` says whose they are.
    """
    rows = [
        {"prompt": list(prompt), **_proposals(draft, prompt, text, vocabulary)}
        for prompt, text in zip(prompts, texts)
    ]
    return {"schema": SCHEMA, **about, "vocabulary": vocabulary, "texts": rows}


def _proposals(
    draft: Model, prompt: Sequence[int], written: Sequence[int], vocab: int
) -> dict[str, list[Any]]:
    draft.rewind(0)
    row = draft.forward(list(prompt))
    found: dict[str, list[Any]] = {key: [] for key in _LISTS}
    for token in written:
        logits = np.asarray(row[:vocab], np.float64)
        best = int(logits.argmax())
        share = float(1 / np.exp(logits - logits[best]).sum())
        logits[best] = -np.inf
        found["tokens"].append(int(token))
        found["proposals"].append(best)
        found["second"].append(int(logits.argmax()))
        found["confidence"].append(round(share, 6))
        row = draft.forward([int(token)])
    return found
