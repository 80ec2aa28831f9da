"""How much of a draft a target accepts: block after block, with the real models.

Device and cloud halves run in one process; the codec is the real one, so the bytes are
those of the frames that would cross the network. Nothing is timed here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from draftwire.errors import ConfigError, IncompatibleError
from draftwire.packages import DraftPackage
from draftwire.sampling import Proposal, SamplingParams, make_decider, make_proposer
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Commit
from draftwire.verifier.backends.base import SlotInput, TargetBackend
from draftwire.verifier.backends.loading import Loader

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
    codec, count, text = Codec(vocab), Count(), list(prompt)
    cached = epoch = 0  # tokens that the target's slot holds; branches
    correction: int | None = None
    draft.reset()
    slot = target.allocate()
    try:
        while count.emitted < tokens:
            base = len(text)
            proposals: list[Proposal] = []
            fresh = text[draft.length :]
            for position in range(base, base + block):
                logits = draft.forward(fresh)[:vocab]
                proposals.append(proposer.propose(logits, position))
                fresh = [proposals[-1].token]
            ids = [p.token for p in proposals]
            at, sent = epoch & 0xFF, proposer.pack(proposals)
            frame = Block(at, base - len(prompt), tuple(ids), sent, correction=correction)
            count.up_bytes += len(codec.encode(frame))
            work = SlotInput(
                slot, cached, np.array(text[cached:] + ids, np.int64), block + 1
            )
            judged = target.forward([work])[0][:, :vocab]
            decision = decider.decide(ids, frame.evidence, judged, base)
            accepted, token, evidence = decision.accepted, decision.token, decision.evidence
            owed = token < 0
            said = None if owed else token
            commit = Commit(epoch & 0xFF, accepted, said, evidence=evidence)
            count.down_bytes += len(codec.encode(commit))
            if owed:
                token = proposer.correct(proposals[accepted], evidence, base + accepted)
            correction = token if owed else None
            kept = [*ids[:accepted], token]
            epoch += accepted < block
            text += kept
            cached = base + accepted
            draft.rewind(min(draft.length, cached))
            count.rounds += 1
            count.drafted += block
            count.accepted += accepted
            count.emitted += len(kept)
            count.evidence_bytes += len(frame.evidence) + len(evidence)
            if set(kept) & set(target.eos_ids):
                break
    finally:
        target.release(slot)
    return count


def load_judge(package: DraftPackage, target: Path) -> TargetBackend:
    """Load the target that judges a draft.

    Raises:
        IncompatibleError: They share no tokenizer.
    """
    backend = Loader(slots=1, threads=1)(target)
    if package.family.tokenizer != backend.family.tokenizer:
        raise IncompatibleError(
            f"the draft {package.name} and the target {backend.name} do not share a "
            "tokenizer",
            hint="take two packages of one family",
        )
    return backend


def check_room(
    prompts: Sequence[Sequence[int]], context: int, *, block: int, tokens: int
) -> None:
    """Raise a ConfigError where a prompt and its text are longer than a context."""
    longest = max(map(len, prompts)) + tokens + 2 * block + 2
    if longest > context:
        raise ConfigError(
            f"prompts and new tokens need a context of {longest}, the models have "
            f"{context}",
            hint="lower --tokens, or shorten the prompts",
        )


def measure_all(
    draft: DraftModel,
    target: TargetBackend,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    *,
    block: int,
    tokens: int,
) -> dict[str, Any]:
    """Measure a draft on each prompt; return the sums of all :class:`Count`, the
    ``acceptance``, and its standard error over the prompts (``acceptance_error``, None of
    one prompt).
    """
    counts = [
        measure(draft, target, prompt, one, block=block, tokens=tokens)
        for prompt, one in zip(prompts, params)
    ]
    total = {key: sum(asdict(count)[key] for count in counts) for key in asdict(Count())}
    shares = np.array([count.accepted / count.drafted for count in counts])
    error = float(shares.std(ddof=1)) / math.sqrt(len(counts)) if len(counts) > 1 else None
    acceptance = total["accepted"] / total["drafted"]
    return {**total, "acceptance": acceptance, "acceptance_error": error}
