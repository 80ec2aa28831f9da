"""Rows: the schemes that send evidence (PROTOCOL.md, section 6)."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from draftwire.sampling import Proposal, make_proposer
from draftwire.transport.messages import Commit
from draftwire.verifier.kit.peer import Kit, Stream
from draftwire.verifier.kit.rows import Table, expect
from draftwire.verifier.kit.target import decider_of, logits_after
from draftwire.verifier.target_session import params_of

ROWS = Table()
_VOCAB = 8  # of the small distributions
_Row = Callable[["list[int]"], Any]  # of logits, given the drafts before


class Drafts:
    """A device that draws its drafts, with their evidence, for one stream."""

    def __init__(self, stream: Stream, vocab_size: int) -> None:
        self.stream = stream
        self.proposer = make_proposer(params_of(stream.request), vocab_size)
        self.owed: int | None = None

    async def judge(self, rows: list[_Row], cut: bool = False) -> tuple[Any, bytes, Commit]:
        """Send a draft drawn from each row of logits; return drafts, evidence and verdict.

        With ``cut`` a correction that is owed stays undrawn.
        """
        stream = self.stream
        drawn: list[Proposal] = []
        at = len(stream.request.prompt) + len(stream.text)
        for j, row in enumerate(rows):
            drawn.append(self.proposer.propose(row([p.token for p in drawn]), at + j))
        tokens, evidence = [p.token for p in drawn], self.proposer.pack(drawn)
        commit = await stream.judge(tokens, evidence=evidence, correction=self.owed)
        self.owed = None
        if commit.evidence and not cut:
            refused, place = drawn[commit.accepted], at + commit.accepted
            self.owed = self.proposer.correct(refused, commit.evidence, place)
            stream.grow([self.owed])
        return tokens, evidence, commit


@ROWS.row("6.3", "separate-lossy: verdicts", "separate-lossy")
@ROWS.row("6.3", "separate: verdicts", "separate")
@ROWS.row("6.3", "qs: verdicts", "qs")
@ROWS.row("6.3", "residual: verdicts", "residual")
async def _evidence(kit: Kit, scheme: str) -> str:
    small = {"vocab_size": _VOCAB} if kit.known else {}
    async with kit.greeted(scheme, **small) as peer:
        vocab = peer.welcome.vocab_size
        count = max(96, kit.long // 4) if kit.known else 16
        temperature = 1.0 if kit.known else 1e-3
        request = kit.coupled(
            count, scheme=scheme, temperature=temperature, top_k=6, seed=11, sample=1
        )
        stream = await peer.open(request)
        drafts = Drafts(stream, vocab)
        return await (_exact if kit.known else _certain)(kit, drafts, min(3, peer.block))


async def _certain(kit: Kit, drafts: Drafts, size: int) -> str:
    """Try drafts of probability 1 at a temperature that leaves one token."""
    want, stream = await kit.want(kit.request(8)), drafts.stream
    for wrong in (False, True, False):
        token = want[len(stream.text)]
        row = np.full(stream.peer.welcome.vocab_size, -1e4, np.float32)
        row[token ^ 1 if wrong else token] = 0.0

        def certain(_: list[int], row: Any = row) -> Any:
            return row

        _, _, commit = await drafts.judge([certain])
        expect(commit.accepted != wrong, f"{commit.accepted} accepted of a certain draft")
        expect(stream.text == want[: len(stream.text)], "another text")
    return "drafts of probability 1; its distribution is not known"


async def _exact(kit: Kit, drafts: Drafts, size: int) -> str:
    """Hold verdicts to what the target's distribution and the coins make of the drafts."""
    stream, accepted, judged, number = drafts.stream, 0, 0, 0
    request = stream.request
    decider = decider_of(request, _VOCAB)
    while not stream.finish and len(stream.text) < request.max_new_tokens - 8:
        ids = [*request.prompt, *stream.text]

        def draft(more: list[int], ids: list[int] = ids) -> Any:
            return logits_after([*ids, *more], _VOCAB) * np.float32(0.4)

        sent, evidence, commit = await drafts.judge([draft] * size)
        rows = [logits_after([*ids, *sent[:j]], _VOCAB) for j in range(size + 1)]
        right = decider.decide(sent, evidence, np.stack(rows), len(ids))
        token = -1 if commit.token is None else commit.token
        found = (commit.accepted, token, commit.evidence)
        number, judged, accepted = number + 1, judged + size, accepted + commit.accepted
        expect(found == tuple(right), f"verdict {number} is {found}, not {tuple(right)}")
    return f"{number} verdicts on {judged} drafts, {accepted} accepted"
