"""An open and a welcome for a machine that is tried by hand, and what its work asks."""

from dataclasses import replace

from draftwire.sampling import NOISES, SCHEMES
from draftwire.transport.messages import Open, Welcome


def asked(**changes):
    """Return an open, greedy unless ``changes`` say otherwise."""
    return replace(Open((1, 2, 3), "greedy", 0.0, 0, 1.0, 0, 9), **changes)


def promised(vocab_size, context=64, max_block=8, **changes):
    """Return a welcome of a verifier that has what every one has."""
    has = {"capabilities": ("processors", "logprobs"), "schemes": tuple(SCHEMES)}
    has.update(noise=NOISES, **changes)
    return Welcome("t", "t", "v1", "", b"", b"", vocab_size, context, max_block, **has)


def chains_of(work, before):
    """Return the ids that each wanted row of ``work`` stands behind, in a slot that has
    ``before``: of the plain ones, then of leaves and what stands behind those."""
    beside = sum(len(ids) for _, ids in work.sides)
    ids = work.tokens.tolist()
    front = [*before[: work.start], *ids[: len(ids) - beside]]
    first = len(front) - work.drafted
    chains = [front[: len(front) - i] for i in reversed(range(work.rows - beside))]
    for place, ids in work.sides:
        stem = front[: first + place]
        chains += [[*stem, *ids[: i + 1]] for i in range(len(ids))]
    return chains
