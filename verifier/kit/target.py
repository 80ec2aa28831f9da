"""The kit's target: a model by a formula, so that every text of it is known beforehand.

The logit of id ``i`` after the ids ``..., a, b`` is the highest byte of
``mix(mix(a * 2**32 + b) + (i + 1) * G)``, over 32, where ``mix`` is SplitMix64's finaliser
and ``G`` its increment (PROTOCOL.md 6.2); ``a`` is 0 where there is one id only. Many
logits are equal, so texts also depend on how ties are settled. docs/conformance.md has it
with vectors.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from draftwire.packages.exits import Exit
from draftwire.packages.manifest import Family
from draftwire.sampling import make_decider, shape_for
from draftwire.sampling.grammar import Rules
from draftwire.transport.messages import Hello, Open
from draftwire.verifier.backends.base import ExitListener, Frame, SlotTarget
from draftwire.verifier.target_session import params_of

NAME = "kit"
VOCAB = 512
CONTEXT = 4096
# Its ids are bytes, then pairs of sixteen of them (docs/conformance.md); for grammars.
TOKENIZER = Path(__file__).with_name("tokenizer.json")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_EXIT_S = 0.002  # between the word of the exit and the end of the forward


def _fingerprint(what: str) -> str:
    return hashlib.sha256(f"draftwire kit {what}".encode()).hexdigest()


FAMILY = Family(NAME, _fingerprint("backbone"), _fingerprint("tokenizer"))
KIT_HELLO = Hello(
    agent="draftwire-kit",
    target=NAME,
    tokenizer=bytes.fromhex(FAMILY.tokenizer),
    backbone=bytes.fromhex(FAMILY.backbone or ""),
    vocab_size=VOCAB,
    family=NAME,
)


def _mix(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = words ^ words >> np.uint64(31)
    return mixed


def logits_after(ids: Sequence[int], vocab_size: int = VOCAB) -> np.ndarray[Any, Any]:
    """Return the logits ``(vocab_size,)`` float32 of what follows ``ids``."""
    before = ids[-2] if len(ids) > 1 else 0
    state = _mix(np.array([int(before) << 32 | int(ids[-1])], np.uint64))
    steps = np.arange(1, vocab_size + 1, dtype=np.uint64) * _GOLDEN
    logits: np.ndarray[Any, Any] = (_mix(state + steps) >> np.uint64(56)) / 32
    return logits.astype(np.float32)


def decider_of(request: Open, vocab_size: int) -> Any:
    """Return the verifier's half of the scheme that ``request`` asks for."""
    return make_decider(params_of(request), vocab_size)


def text_of(
    request: Open, count: int, vocab_size: int, rules: Rules | None = None
) -> list[int]:
    """Return the first ``count`` tokens that the target gives without drafts.

    A grammar, of which ``rules`` are what it makes of the stream, may end the text before.
    """
    decider = decider_of(request, vocab_size)
    ids, begin = list(request.prompt), len(request.prompt)
    first = begin - request.text_before
    guide = None if rules is None else rules.guide(first)
    shape = shape_for(params_of(request), vocab_size, first, guide)
    while len(ids) - begin < count:
        if guide is not None:
            guide.follow(ids)
            path = guide.path()
            ids += path.ids[: count - len(ids) + begin]
            if path.ended or len(ids) - begin == count:
                break
        row = logits_after(ids, vocab_size)[None]
        if shape is not None:
            shape.follow(ids)
            row = shape.rows(row)
        ids.append(int(decider.decide((), b"", row, len(ids)).token))
    return ids[begin:]


class KitTarget(SlotTarget):
    """The target as a backend of our verifier."""

    id = _fingerprint("target")
    name, version = NAME, "1"
    numerics, logit_error = "exact", 0.0
    family = FAMILY
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    tokenizer_path = TOKENIZER
    exits: tuple[Exit, ...] = (Exit(layer=1, threshold=0.0, agreement=1.0),)
    leaves = True

    def __init__(self, *, slots: int = 16, context: int | None = None) -> None:
        super().__init__(slots, min(context or CONTEXT, CONTEXT), VOCAB)

    def run(self, frame: Frame, tell: ExitListener | None) -> list[np.ndarray[Any, Any]]:
        """See :class:`~draftwire.verifier.backends.base.SlotTarget`."""
        answers = []
        for item in frame.items:
            before = self.tokens[item.slot, max(0, item.start - 1) : item.start].tolist()
            ids = item.tokens.tolist()
            ends = [ids[max(0, end - 1) : end + 1] for end in range(item.kept)]
            for row, behind, chain in item.beside():
                front = ids[max(0, behind - 1) : behind]
                ends.append([*front, *ids[row - chain : row + 1]])
            wanted = ends[len(ends) - item.rows :]
            rows = [logits_after([*before, *end][-2:]) for end in wanted]
            answers.append(np.stack(rows) if rows else np.zeros((0, VOCAB), np.float32))
        if tell is not None:  # its exit knows half of the logit
            tell(0, [np.floor(rows / 2) for rows in answers])
            time.sleep(_EXIT_S)
        return answers
