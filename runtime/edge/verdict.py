"""Reads a commit: which tokens it adds to the text, and where each comes from."""

from __future__ import annotations

from typing import Sequence

from draftwire.errors import ProtocolError
from draftwire.runtime.edge.actions import Counts, Token, TokenKind
from draftwire.runtime.edge.in_flight import InFlight
from draftwire.runtime.edge.lines import Lines
from draftwire.runtime.pacing.controller import Controller
from draftwire.sampling import Proposer
from draftwire.transport.messages import Commit, Finish


def read_verdict(
    commit: Commit, wire: InFlight, lines: Lines, proposer: Proposer, position: int
) -> tuple[list[Token], int | None]:
    """Return the text that ``commit`` adds from ``position`` of the sequence on, and the
    last of it where it was drawn here: ``proposer`` draws the correction where the scheme
    leaves that to the device. A ProtocolError where it contradicts what was sent."""
    accepted = wire.reach(commit.epoch, commit.accepted)
    ids, forced = wire.marked(commit.epoch)
    kinds: list[TokenKind] = ["forced" if one else "accepted" for one in forced[:accepted]]
    tokens = [Token(i, kind) for i, kind in zip(ids, kinds)]
    beyond = ids[accepted:]
    whole, correction = not beyond, None
    if commit.token is not None:
        # With more blocks in flight the verifier may add what the next one drafted.
        agrees = whole or beyond[0] == commit.token
        tokens.append(Token(commit.token, "bonus" if agrees else "correction"))
        tokens += [Token(i, "bonus") for i in commit.further]
    elif commit.evidence and not whole:
        correction = proposer.correct(
            lines.main.proposals[accepted], commit.evidence, position + accepted
        )
        tokens.append(Token(correction, "correction"))
    if commit.further and commit.token is None:
        raise ProtocolError("the verifier left out a token and sent others behind it")
    if not tokens and commit.finish is Finish.NOT_YET:
        raise ProtocolError("the verifier answered a block without a token")
    return tokens, correction


def told(
    tokens: Sequence[Token], pairs: Sequence[tuple[int, float]], each: int
) -> Sequence[Token]:
    """Return ``tokens`` with what the verifier says of each: ``each`` ids and log-
    probabilities. A ProtocolError where these are not of those tokens."""
    if not each:
        return tokens
    rows = [tuple(pairs[i : i + each]) for i in range(0, len(pairs), each)]
    whole = all(len(row) == each for row in rows)
    if not whole or [row[0][0] for row in rows] != [token.id for token in tokens]:
        raise ProtocolError("the log-probabilities are not those of the tokens")
    return [Token(token.id, token.kind, row) for token, row in zip(tokens, rows)]


def tally(
    counts: Counts,
    controller: Controller,
    commit: Commit,
    wire: InFlight,
    new: Sequence[int],
    committed: int,
) -> None:
    """Count a verdict, tell the controller, and bring what is in flight up to the text.

    The text, ``committed`` long, grows by ``new``.
    """
    accepted = wire.reach(commit.epoch, commit.accepted)
    counts.rounds += 1
    counts.accepted += commit.accepted
    counts.tokens += len(new)
    counts.queue_s += commit.queue_s
    counts.compute_s += commit.compute_s
    branch = wire.branch(commit.epoch)
    leaf = wire.leaves.get((commit.epoch, committed + accepted))
    came = len(commit.further) > 0 and leaf is not None and leaf == commit.token
    counts.leaves_right += came
    controller.seconds.judged(came)
    late = min(len(new), len(branch)) - accepted
    if late > 0 and list(branch[: len(new)]) == list(new[: len(branch)]):
        counts.overtaken += late
        controller.overtaken(late)
    for block in wire.advance(commit.epoch, new, accepted, committed):
        counts.judge(block.offset, block.judged, block.accepted)
        controller.judged(block.judged, block.accepted)
