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

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from draftwire.bench.sim.texts import Text
from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.runtime.engines.draft_model import DraftModel
    from draftwire.verifier.backends.base import TargetBackend

SCHEMA = "draftwire.simtext/1"
_LISTS = ("tokens", "proposals", "second", "confidence")
_IDS = ("prompt", "tokens", "proposals", "second")
_MAX_BYTES = 256 * 2**20
_CHUNK = 64


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
        document = json.loads(path.read_text(encoding="utf-8"))
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
    draft: DraftModel,
    target: TargetBackend,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Let both models write, and return the recording.

    Args:
        draft: The draft model.
        target: The target, with a free slot.
        prompts: Token ids.
        tokens: Of each text, at most.
        about: More entries for the document, such as who the models are.
    """
    vocab = min(draft.vocab_size, target.vocab_size)
    texts = []
    for prompt in prompts:
        written = _target_text(target, prompt, tokens, vocab)
        texts.append({"prompt": list(prompt), **_proposals(draft, prompt, written, vocab)})
    return {"schema": SCHEMA, **about, "vocabulary": vocab, "texts": texts}


def _target_text(
    target: TargetBackend, prompt: Sequence[int], tokens: int, vocab: int
) -> list[int]:
    from draftwire.verifier.backends.base import SlotInput

    slot, text = target.allocate(), list(prompt)
    try:
        done = 0
        room = min(tokens, target.context - len(prompt))
        while len(text) - len(prompt) < room:
            for at in range(done, len(text) - 1, _CHUNK):
                part = np.array(text[at : min(at + _CHUNK, len(text) - 1)], np.int64)
                target.forward([SlotInput(slot, at, part, 0)])
            last = np.array(text[-1:], np.int64)
            rows = target.forward([SlotInput(slot, len(text) - 1, last, 1)])[0]
            done = len(text)
            text.append(int(rows[-1, :vocab].argmax()))
            if text[-1] in target.eos_ids:
                break
    finally:
        target.release(slot)
    return text[len(prompt) :]


def _proposals(
    draft: DraftModel, prompt: Sequence[int], written: Sequence[int], vocab: int
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
