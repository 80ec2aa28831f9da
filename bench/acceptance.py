"""How much of a draft a target accepts: block after block, with the real models.

Device and cloud halves run in one process; the codec is the real one, so the bytes are
those of the frames that would cross the network. Nothing is timed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from draftwire.sampling import Proposal, SamplingParams, make_decider, make_proposer
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Commit
from draftwire.verifier.backends.base import SlotInput, TargetBackend

if TYPE_CHECKING:
    from draftwire.runtime.engines.draft_model import DraftModel

PROMPTS = (
    "Before sunrise the old ferry left the harbour with eleven passengers and a goat.",
    "To repair a bicycle tyre, first take the wheel off and find the hole.",
    "The committee met on Tuesday to talk about the new bridge across the river.",
    "Rain had fallen for three days, and the cellar of the bakery was full of water.",
    "A robot arm needs two things to pick up a cup: a good camera and patience.",
    "My grandmother kept her recipes in a tin box under the stairs.",
    "When the power failed, the whole street came out to look at the stars.",
    "The most common mistake in planning a garden is to forget how tall things grow.",
    "She opened the letter slowly, because she knew the handwriting.",
    "Sound travels faster in water than in air, which is why whales can call so far.",
    "The train was late again, so the two strangers began to play chess.",
    "At the end of the harvest the village holds a race with wooden carts.",
)


@dataclass
class Count:
    """What one scheme did on one prompt."""

    rounds: int = 0  # blocks that were judged
    drafted: int = 0  # drafted tokens in them
    accepted: int = 0  # those that were kept
    emitted: int = 0  # tokens committed, corrections and bonus tokens included
    up_bytes: int = 0  # block frames
    down_bytes: int = 0  # commit frames
    evidence_bytes: int = 0  # their part that is evidence, both ways


@dataclass
class _Text:
    tokens: list[int]
    prompt: int
    cached: int = 0  # tokens that the target's slot holds
    epoch: int = 0
    correction: int | None = None
    count: Count = field(default_factory=Count)


def measure(
    draft: DraftModel,
    target: TargetBackend,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    block: int,
    tokens: int,
) -> Count:
    """Write ``tokens`` new tokens (the last block may commit more, a text may end) and
    count.

    The draft is reset first; one of the target's slots is used and given back.
    """
    vocab = min(draft.vocab_size, target.vocab_size)
    proposer, decider = make_proposer(params, vocab), make_decider(params, vocab)
    codec = Codec(vocab)
    text = _Text(list(prompt), len(prompt))
    draft.reset()
    slot = target.allocate()
    try:
        while text.count.emitted < tokens:
            base = len(text.tokens)
            proposals = _draft(draft, text, proposer, block, vocab)
            ids = [p.token for p in proposals]
            frame = Block(
                text.epoch & 0xFF,
                base - text.prompt,
                tuple(ids),
                proposer.pack(proposals),
                correction=text.correction,
            )
            text.count.up_bytes += len(codec.encode(frame))
            fresh = np.array(text.tokens[text.cached :] + ids, np.int64)
            work = SlotInput(slot, text.cached, fresh, len(ids) + 1)
            logits = target.forward([work])[0][:, :vocab]
            decision = decider.decide(ids, frame.evidence, logits, base)
            owed = decision.token < 0
            commit = Commit(
                text.epoch & 0xFF,
                decision.accepted,
                None if owed else decision.token,
                evidence=decision.evidence,
            )
            text.count.down_bytes += len(codec.encode(commit))
            token = decision.token
            if owed:
                token = proposer.correct(
                    proposals[decision.accepted],
                    decision.evidence,
                    base + decision.accepted,
                )
            text.correction = token if owed else None
            kept = [*ids[: decision.accepted], token]
            if decision.accepted < len(ids):
                text.epoch += 1
            text.tokens += kept
            text.cached = base + decision.accepted
            draft.rewind(min(draft.length, text.cached))
            count = text.count
            count.rounds += 1
            count.drafted += len(ids)
            count.accepted += decision.accepted
            count.emitted += len(kept)
            count.evidence_bytes += len(frame.evidence) + len(decision.evidence)
            if set(kept) & set(target.eos_ids):
                break
    finally:
        target.release(slot)
    return text.count


def _draft(
    draft: DraftModel, text: _Text, proposer: Any, block: int, vocab: int
) -> list[Proposal]:
    proposals: list[Proposal] = []
    fresh = text.tokens[draft.length :]
    for j in range(block):
        logits = draft.forward(fresh)[:vocab]
        proposals.append(proposer.propose(logits, len(text.tokens) + j))
        fresh = [proposals[-1].token]
    return proposals
