"""Rows: texts, branches, races and ends of streams (PROTOCOL.md, sections 3.2 to 4.6)."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any, Awaitable, Callable

import numpy as np

from draftwire.sampling import NOISES
from draftwire.transport.messages import (
    Block,
    Commit,
    Error,
    Finish,
    Open,
    Opened,
    Progress,
)
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.kit.peer import EVIDENCE, Kit, Peer, Stream
from draftwire.verifier.kit.rows import Table, about, expect, must_be, needs, rules
from draftwire.verifier.kit.target import logits_after

ROWS = Table()
N = 24  # tokens of a text
QUIET_S = 0.25  # whoever does what he should not does so within this time
_LONGEST_PROMPT = 16384


_Run = Callable[[Peer, Stream, Any], Awaitable[None]]


def _streamed(
    section: str, name: str, count: int = N, **changes: Any
) -> Callable[[_Run], _Run]:
    """Return a decorator for rows about one greedy stream: peer, stream, its text."""

    def enter(run: _Run) -> _Run:
        async def row(kit: Kit, peer: Peer) -> None:
            stream = await peer.known(kit.request(count, **changes))
            await run(peer, stream, stream.want)

        ROWS.greeted(section, name)(row)
        return run

    return enter


def _wrong(token: int) -> int:
    return (token + 1) % 2 if token < 2 else 0


async def _near(kit: Kit, request: Open, want: list[int]) -> dict[int, int]:
    """Return tokens that the target nearly chose, by their place in the text.

    Of the kit's own target they are known; any other is asked what it draws for greedy
    drafts at a temperature.
    """
    ids, start = [*request.prompt, *want], len(request.prompt)
    found = {}
    for i in range(len(want) if kit.known else 0):
        row = logits_after(ids[: start + i], kit.hello.vocab_size)
        first, second = np.argsort(-row, kind="stable")[:2].tolist()
        found[i] = second if first == want[i] else first
    at = 0
    async with kit.greeted() as peer:
        for seed in range(0 if kit.known else 24):
            if "coupled" not in peer.welcome.schemes or at + peer.block >= len(want):
                break
            fields = {"prompt": tuple(ids[: start + at]), "temperature": 0.7}
            stream = await peer.open(kit.coupled(peer.block + 2, seed=seed, **fields))
            await stream.judge(want[at : at + peer.block])
            at += len(stream.text)
            if stream.text[-1] != want[at - 1]:
                found[at - 1] = stream.text[-1]
            await stream.bye()
    return found


@_streamed("4", "text without drafts", 2 * N)
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    await stream.fill(2 * N)


@_streamed("4.2", "right drafts are accepted, wrong ones corrected")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    for right, wrong in ((3, 0), (0, 1), (1, 1), (2, 1), (0, 3)):
        at, epoch = len(stream.text), stream.epoch
        block = [*text[at : at + right]]
        block += [_wrong(t) for t in text[at + right : at + right + wrong]]
        kept = min(right, peer.block)
        commit = await stream.judge(block[: peer.block])
        found = (commit.epoch, commit.accepted, commit.token is None)
        expect(found == (epoch, kept, False), f"{commit}; {kept} are right")


_COUPLED = {"scheme": "coupled", "temperature": 0.9, "top_p": 0.95, "seed": 2**63 + 5}
_PROCESSED = {
    "min_p": 0.1,
    "repetition_penalty": 1.25,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "bad_words": ((1,), (2, 3)),
    "logit_bias": ((5, 0.75), (7, -100.0)),
    "text_before": 1,
}
_DRAWN = {**_PROCESSED, "scheme": "coupled", "temperature": 0.9, "seed": 7}
_RACE = {"objective": "latency", "credit": 4}


@ROWS.row("3.3", "provisional verdicts", "exits", 2, {"exits": True})
@ROWS.row("4.2a", "a race: drafts change nothing", "", 2, _RACE)
@ROWS.row("3.4", "brief blocks: drafts change nothing", "brief", 8, {})
@ROWS.row("4.12", "drafts beside a branch: drafts change nothing", "trees", 8, {})
@ROWS.row("6.1", "processors, coupled: drafts change nothing", "processors", 8, _DRAWN)
@ROWS.row("6.1", "processors, greedy: drafts change nothing", "processors", 8, _PROCESSED)
@ROWS.row("6", "argmax: drafts change nothing", "", 8, {**_COUPLED, "scheme": "argmax"})
@ROWS.row("6", "match: drafts change nothing", "", 8, {**_COUPLED, "scheme": "match"})
@ROWS.row("6", f"coupled, {NOISES[3]}: drafts change nothing", NOISES[3], 1, _COUPLED)
@ROWS.row("6", f"coupled, {NOISES[2]}: drafts change nothing", NOISES[2], 1, _COUPLED)
@ROWS.row("6", f"coupled, {NOISES[1]}: drafts change nothing", NOISES[1], 1, _COUPLED)
@ROWS.row("6", f"coupled, {NOISES[0]}: drafts change nothing", NOISES[0], 1, _COUPLED)
@ROWS.row("6", "greedy: drafts change nothing", "", 1, {})
async def _unchanged(kit: Kit, need: str, part: int, changes: dict[str, Any]) -> str:
    """Play a text, a part of the longest, that needs a capability or a noise."""
    noise = need if need in NOISES else "philox"
    async with kit.greeted("" if need in NOISES else need) as peer:
        least = 48 if need in ("processors", "brief", "trees") else 1
        count = min(max(least, kit.long // part), peer.welcome.context - 4)
        request = kit.request(count, noise=noise, **changes)
        drawn = request.scheme != "coupled" or noise in peer.welcome.noise
        needs(
            drawn and request.scheme in peer.welcome.schemes,
            f"it does not offer scheme {request.scheme!r} with {noise!r}",
        )
        want = await kit.want(request)
        expect(need != "processors" or not {1, 7} & {*want}, "a banned id came")
        if request.scheme == "match" and not kit.known:
            again = await peer.open(request)
            await again.fill(count)
            needs(
                again.text == want, "its engine draws with coins of its own, anew each time"
            )
            await again.bye() if not again.finish else None
        near = await _near(kit, request, want) if part < 8 and need != "exits" else {}
        stream = await peer.open(request, 0, want)
        said = await stream.play(17, near, race=request.objective == "latency")
    if need != "exits":
        return said
    needs(stream.hints, "its exits said nothing")
    return f"{stream.hints} of them"


@ROWS.greeted("6", "seed, sample, temperature, top_k and top_p matter")
async def _(kit: Kit, peer: Peer) -> None:
    texts: dict[tuple[int, ...], str] = {}
    needs("coupled" in peer.welcome.schemes, "it does not offer scheme 'coupled'")
    for noise in peer.welcome.noise:
        for name, changes in (
            ("as it is", {}),
            ("seed", {"seed": 8}),
            ("the seed's high half", {"seed": 7 + 2**32}),
            ("sample", {"sample": 1}),
            ("temperature", {"temperature": 4.0}),
            ("top_k", {"top_k": 2}),
            ("top_p", {"top_p": 0.2}),
        ):
            if name == "sample" and noise.startswith("murmur3"):
                continue
            request = replace(kit.coupled(N // 2, temperature=1.3, noise=noise), **changes)
            want = await kit.want(request) if kit.known else None
            stream = await peer.open(request, 0, want)
            await stream.fill(N // 2)
            text = tuple(stream.text)
            expect(text not in texts, f"{name}, {noise}: as with {texts.get(text)}")
            # Of a target that is sure of itself, top_k and top_p may agree.
            if kit.known or name == "as it is":
                texts[text] = f"{name}, {noise}"


PROCESSORS: dict[str, dict[str, Any]] = {
    "min_p": {"min_p": 1.0},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "presence_penalty": {"presence_penalty": 1.0},
    "frequency_penalty": {"frequency_penalty": -2.0},
    "logit_bias": {"logit_bias": ((5, 100.0),)},
    "bad_words": {"bad_words": ((1,),)},
}


@ROWS.greeted("3.4", "brief opens: what they leave out is as before, or asked for", "brief")
async def _(kit: Kit, peer: Peer) -> None:
    plain = kit.request(N // 2)
    asked = [plain, plain, replace(plain, max_new_tokens=3), replace(plain, seed=9)]
    if "coupled" in peer.welcome.schemes:
        asked += [kit.coupled(N // 2), kit.coupled(N // 2, sample=3)]
        other: tuple[dict[str, Any], ...] = ({"prompt": (1, 1)}, {"stop_ids": (0,)})
        asked += [kit.coupled(N // 2, **changes) for changes in other]
    for request in [*asked, plain]:
        brief = replace(request, brief=True)
        stream = await peer.open(brief, 0, await kit.want(request))
        await stream.fill(request.max_new_tokens)
        wrong = bytearray(peer.codec.encode(brief, 0))
        expect(wrong[0] == 0x13, "the kit's own open is not brief")
        wrong[1] ^= 1
        await peer.send(bytes(wrong))
        await peer.refused("prefix", 0)


@ROWS.greeted("4.7", "ids that are named instead of sent", capabilities=("prefix", "brief"))
async def _(kit: Kit, peer: Peer) -> str:
    needs("prefix" in peer.welcome.capabilities, "it does not offer 'prefix'")
    first = kit.request(min(4 * N, (peer.welcome.context - 8) // 2))
    stream = await peer.known(first)
    await stream.fill(first.max_new_tokens)
    known, more = (*first.prompt, *stream.text), (1, 0)
    whole = replace(first, prompt=known + more)
    want, digest = await kit.want(whole), TextHash(known).digest(16)
    named = replace(whole, prompt=more, prefix=digest, prefix_length=len(known))
    refused = 0
    for request in (named, replace(named, brief=True)):
        await peer.say(request)
        answer = await peer.hear()
        if isinstance(answer, Error) and answer.code == "prefix":
            refused += 1  # it may have needed the room
            continue
        stream = Stream(peer, 0, whole, want, must_be(Opened, answer))
        await stream.fill(whole.max_new_tokens)
    await peer.say(replace(named, prefix=bytes(16)))
    await peer.refused("prefix", 0)
    needs(refused < 2, "it holds no text of an ended stream")
    return f"{len(known)} ids named, {2 - refused} times taken"


@ROWS.greeted("6.1", "each processor matters", "processors")
async def _(kit: Kit, peer: Peer) -> None:
    texts: dict[tuple[int, ...], str] = {}
    needs(
        kit.known and "coupled" in peer.welcome.schemes,
        "only with scheme 'coupled' of the kit's target",
    )
    plain = kit.coupled(4 * N, temperature=1.3, top_k=6)
    banned = {"bad_words": (((await kit.want(plain))[1],),)}
    for name, changes in {"none": {}, **PROCESSORS, "bad_words": banned}.items():
        request = replace(plain, **changes)
        stream = await peer.known(request)
        await stream.fill(4 * N)
        other = texts.setdefault(tuple(stream.text), name)
        expect(other == name, f"{name}: as with {other}")


@ROWS.greeted("9.2", "log-probabilities", "logprobs")
async def _(kit: Kit, peer: Peer) -> None:
    request = kit.request(N, logprobs=3)
    want = await kit.want(kit.request(N))
    stream = await peer.open(request, 0, want)
    while not stream.finish:
        at = len(stream.text)
        drafts = [*want[at : at + 2], _wrong(want[min(at + 2, N - 1)])][: peer.block]
        commit = await stream.judge(drafts)
        for i, token in enumerate(stream.text[at:]):
            pairs = commit.logprobs[3 * i : 3 * i + 3]
            expect(len(pairs) == 3 and pairs[0][0] == token, f"{pairs} for {token}")
            expect(pairs[0][1] == pairs[1][1] >= pairs[2][1], f"no greedy token: {pairs}")
            if kit.known:
                ids = [*request.prompt, *stream.text[: at + i]]
                row = logits_after(ids, kit.hello.vocab_size).astype(float)
                row -= np.log(np.exp(row).sum())
                right = np.argsort(-row, kind="stable")[:2].tolist()
                expect([i for i, _ in pairs[1:]] == right, f"not the likeliest: {pairs}")
                close = all(abs(row[i] - x) < 2e-5 for i, x in pairs)
                expect(close, f"{pairs}; {row[right]} is right")
        expect(len(commit.logprobs) == 3 * (len(stream.text) - at), "too many")


@ROWS.row("6.1", "no processors where they were not agreed on, or out of range")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        asked = {**PROCESSORS, "logprobs": {"logprobs": 1}}
        await peer.refuses({name: kit.coupled(N, **c) for name, c in asked.items()})
    wrong: tuple[dict[str, Any], ...] = (
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -2.5},
        {"logit_bias": ((5, 101.0),)},
        {"logit_bias": ((5, 1.0), (5, 2.0))},
        {"bad_words": ((),)},
        {"min_p": 0.5, "text_before": 5},
    )
    async with kit.greeted("processors") as peer:
        await peer.refuses({str(c): kit.coupled(N, **c) for c in wrong})


@_streamed("4.2", "no bonus when it is not wanted", bonus=False)
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    k = min(3, peer.block)
    for _ in range(2):
        at = len(stream.text)
        commit = await stream.judge(text[at : at + k])
        expect(commit.accepted == k, f"{commit.accepted} of {k} accepted")
        expect(commit.token is None, "a token follows")
    commit = await stream.judge([_wrong(text[len(stream.text)])])
    expect(commit.token is not None, "no token after a rejection")
    commit = await stream.judge(())
    expect(commit.token is not None, "no token where no drafts were judged")


@ROWS.greeted("4.2", "pipelines up to max_waiting")
async def _(kit: Kit, peer: Peer) -> str:
    room = min(peer.welcome.room, peer.welcome.context - 12, kit.long)
    for bonus in (True, False):
        stream = await peer.known(kit.request(room + 4, bonus=bonus))
        for wrong in (room, room // 2):
            at = len(stream.text)
            block = list((stream.want or ())[at : at + room])
            block[wrong : wrong + 1] = [_wrong(t) for t in block[wrong : wrong + 1]]
            size = min(5, peer.block)
            for i in range(0, len(block), size):
                await stream.draft(block[i : i + size])
            await stream.until(at + min(wrong, len(block)))
        await stream.bye() if not stream.finish else None
    return f"{room} drafts in flight"


@_streamed("3.2", "a block in pieces")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    needs(peer.block >= 3, f"blocks of {peer.block} tokens")
    await stream.fill(1)  # the prompt is read by now
    await stream.draft(text[1:2], more=True)
    await peer.silence(QUIET_S)
    await stream.draft(text[2:3], more=True)
    commit = await stream.judge(text[3:4])
    expect(commit.accepted == 3, f"{commit.accepted} accepted, not 3 in one")


@_streamed("4.2", "blocks that overlap the text")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    await stream.fill(4)
    k = min(4, peer.block)
    await stream.send(Block(0, 3, tuple(text[3 : 3 + k])))
    if k > 1:
        stream.ahead = text[4 : 3 + k]
        commit = await stream.commit()
        expect(commit.accepted == k - 1, f"{commit.accepted} accepted, not {k - 1}")
    at = len(stream.text)
    await stream.send(Block(0, at - 1, (_wrong(text[at - 1]),)))  # contradicts the text
    stream.give_up()
    commit = await stream.judge(text[at : at + 1])
    expect(commit.epoch == 1, "a contradiction does not end the branch")


@_streamed("4.2", "blocks of dead branches")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    await stream.judge([_wrong(text[0])])
    await stream.send(Block(0, 1, (_wrong(text[1]),)))  # sent before the verdict came
    commit = await stream.judge(text[1:2])
    expect(commit.epoch == 1, "a late block is judged")
    expect(commit.accepted == 1, "a late block is in the way of the next branch")


@_streamed("4.2", "branches given up, epochs around")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    for epoch in (100, 200, 300):  # 44 is ahead of 200, modulo 256
        at = len(stream.text)
        stream.give_up(epoch)
        commit = await stream.judge(text[at : at + 1])
        expect(commit.epoch == epoch & 0xFF, f"epoch {commit.epoch}, not {epoch}")
        expect(commit.accepted == 1, "right drafts refused")
    at = len(stream.text)
    few = min(2, peer.welcome.room)
    await stream.draft([_wrong(t) for t in text[at : at + few]], more=True)
    stream.give_up()
    await stream.draft(text[at : at + few])
    await stream.until(at + 2)
    expect(stream.epoch == 301, "a branch that was given up still counts")


@ROWS.row("4.2", "gaps, repetitions and corrections that nobody wants")
async def _(kit: Kit) -> None:
    piece = Block(0, 0, (1,), more=True)
    for what, blocks in (
        ("a gap", [Block(0, 5, ())]),
        ("a gap in a branch", [piece, Block(0, 2, (1,))]),
        ("a repetition", [piece, Block(0, 0, (1,))]),
        ("a correction", [Block(0, 1, (), correction=0)]),
        ("evidence", [Block(0, 0, (1,), evidence=b"xyz")]),
        ("an open", [kit.request(N)]),
    ):
        async with kit.greeted() as peer:
            await peer.open(kit.request(N, prompt=(1, 1)))
            for block in blocks:
                await peer.say(block)
            with about(what):
                await peer.refused("protocol", close=1002)


# ---- drafts beside a branch

_BESIDE = {"capabilities": ("trees",)}  # without "further" nothing judges them beside


async def _branched(kit: Kit, peer: Peer) -> tuple[Stream, list[int]]:
    """Return a stream that has sent a block of two wrong drafts, not all of it yet, with
    three right ones beside the first; and its text."""
    needs(peer.welcome.room >= 4, f"{peer.welcome.room} drafts may wait")
    stream = await peer.known(kit.request(N))
    text = list(stream.want or ())
    await stream.fill(1)
    await stream.draft([_wrong(text[1])], more=True)
    await stream.draft_beside(1, text[1], text[2:4])
    await stream.draft_beside(1, text[1], text[4:5])
    return stream, text


@ROWS.greeted("4.12", "drafts beside a branch begin the next one", "trees", **_BESIDE)
async def _(kit: Kit, peer: Peer) -> None:
    stream, text = await _branched(kit, peer)
    await stream.draft([_wrong(text[2])])
    commit = await stream.commit()
    expect((commit.epoch, commit.accepted) == (0, 0), f"{commit} for wrong drafts")
    commit = await stream.commit()  # it was not asked for
    found = f"{commit.accepted} of 3 accepted, branch {commit.epoch}"
    expect((commit.epoch, commit.accepted) == (1, 3), found)
    # Those behind an id that the text has not got are gone.
    at = len(stream.text)
    await stream.draft(text[at : at + 1], more=True)
    await stream.draft_beside(at, _wrong(text[at]), text[at + 1 : at + 3])
    await stream.draft([_wrong(text[at + 1])])
    commit = await stream.commit()
    expect((commit.epoch, commit.accepted) == (1, 1), f"{commit}, one is right")
    await peer.silence(QUIET_S)
    await stream.fill(N)


@ROWS.greeted("4.12", "drafts beside a branch that has ended", "trees", **_BESIDE)
async def _(kit: Kit, peer: Peer) -> None:
    stream, text = await _branched(kit, peer)
    await stream.draft(())
    await stream.until(6)
    expect(stream.epoch == 1, f"branch {stream.epoch} after the first one")
    at, wrong = len(stream.text), _wrong(text[len(stream.text)])
    await stream.judge([wrong])
    for place, token in ((at, wrong), (at + 1, text[at + 1])):
        await stream.send(Block(1, place + 1, (0, 0), instead=(1, token)))
    await peer.silence(QUIET_S)
    late = tuple(text[at + 1 : at + 1 + min(2, peer.block)])
    await stream.send(Block(1, at + 1, late, instead=(1, text[at])))
    stream.ahead = list(late)
    commit = await stream.commit()
    found = f"{commit.accepted} of {len(late)} accepted, branch {commit.epoch}"
    expect((commit.epoch, commit.accepted) == (2, len(late)), found)
    await stream.fill(N)


@ROWS.greeted("4.12", "a branch that is given up with drafts beside it", "trees", **_BESIDE)
async def _(kit: Kit, peer: Peer) -> None:
    for wait in (False, True):
        stream, text = await _branched(kit, peer)
        await stream.draft([_wrong(text[2])])
        if wait:  # until the verifier has begun the next branch by itself
            await asyncio.sleep(QUIET_S / 2)
        stream.give_up()
        await stream.draft(text[1:3])
        await stream.until(3)
        at = len(stream.text)
        commit = await stream.judge(text[at : at + 1])
        expect((commit.epoch, commit.accepted) == (2, 1), f"{commit}; branch 2 goes on")
        await stream.bye()


@ROWS.row("4.12", "drafts beside a branch that cannot stand there")
async def _(kit: Kit) -> None:
    beside = Block(0, 1, (1,), instead=(1, 0))
    wrong: dict[str, dict[str, Any]] = {
        "without the capability": {},
        "a gap": {"base": 2, "instead": (2, 0)},
        "a repetition": {},
        "behind the branch": {"base": 3},
        "beside nothing": {"epoch": 1},
        "of one number": {"instead": (1,)},
        "of no id": {"instead": (1, kit.hello.vocab_size)},
        "at their own place": {"instead": (0, 0)},
        "with more": {"more": True},
    }
    for what, changes in wrong.items():
        need = "" if what == "without the capability" else "trees"
        async with kit.greeted(need) as peer:
            await peer.open(kit.request(N, prompt=(1, 1)))
            await peer.say(Block(0, 0, (1,), more=True))
            if what == "a repetition":
                await peer.say(beside)
            await peer.say(replace(beside, **changes))
            with about(what):
                await peer.refused("protocol", close=1002)


# ---- races


@_streamed("4.2a", "a race: decoding on without blocks", objective="latency")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    await stream.until(N)


@_streamed("4.2a", "a race: the last block says whether it goes on", credit=8)
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    await stream.judge(text[:1], race=True)
    await stream.until(9)
    await stream.judge((), race=False)
    await peer.silence(QUIET_S)


@_streamed("4.2a", "credit", objective="latency", credit=8)
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    for goal in (8, 16):
        await stream.until(goal)
        await peer.silence(QUIET_S)
        await stream.send(Block(0, len(stream.text), (), race=True))
    await stream.until(24)


@ROWS.greeted("4.2a", "no race with evidence")
async def _(kit: Kit, peer: Peer) -> None:
    schemes = [scheme for scheme in EVIDENCE if scheme in peer.welcome.schemes]
    needs(schemes, "it offers no scheme with evidence")
    for scheme in schemes:
        request = kit.coupled(N, scheme=scheme, top_k=8)
        await peer.say(replace(request, objective="latency"))
        await peer.refused("request", 0)
        await peer.open(request)
        await peer.say(Block(0, 0, (1,), evidence=b"xyz", race=True))
        await peer.refused("request", 0)


# ---- ends


@ROWS.greeted("4.4", "length, context and stop ids")
async def _(kit: Kit, peer: Peer) -> None:
    text = await kit.want(kit.request(N))
    stop = text[N // 2]
    until = text[: text.index(stop) + 1]
    context = peer.welcome.context
    ends = [
        ("max_new_tokens", kit.request(5), text[:5], Finish.LENGTH),
        ("stop_ids", kit.request(N, stop_ids=(stop,)), until, Finish.STOP),
    ]
    if context <= _LONGEST_PROMPT:
        full = kit.request(N, prompt=tuple(i % 2 for i in range(context - 5)))
        ends.append(("the context", full, await kit.want(full, 5), Finish.LENGTH))
    for what, request, want, finish in ends:
        for drafts in ([], [*want, 0, 1, 0]):
            stream = await peer.open(request, 0, want)
            await stream.judge(drafts[: peer.block])
            await stream.fill(len(want))
            expect(stream.finish is finish, f"{what}: finish {int(stream.finish)}")
            expect(stream.text == want, f"{what}: {len(stream.text)} of {len(want)}")
            await stream.send(Block(0, len(want), ()))  # of a stream that has ended


@ROWS.greeted("4.4", "bye is answered, and frees the number")
async def _(kit: Kit, peer: Peer) -> None:
    for drafts in ((), (1, 1)[: peer.welcome.room]):
        stream = await peer.known(kit.request(N))
        await stream.fill(2)
        await stream.draft(drafts, more=True)
        answer = await stream.bye()
        expect(answer.reason == "ended", f"reason {answer.reason!r}")
        await stream.send(Block(0, 2, (1,)))  # was on its way
    stream = await peer.known(kit.request(N))
    await stream.fill(N)
    await peer.silence(QUIET_S)


@ROWS.greeted("4", "several streams at once")
async def _(kit: Kit, peer: Peer) -> str:
    rng, streams = random.Random(23), []
    needs(peer.welcome.streams > 1, "it carries one stream at a time")
    for i in range(min(peer.welcome.streams, 6)):
        prompt = tuple(1 & (i + 1) >> j for j in range(3, -1, -1))
        request = kit.request(2 * N, prompt=prompt)
        if i % 3 == 2 and "coupled" in peer.welcome.schemes:
            request = kit.coupled(2 * N, prompt=prompt, seed=i)
        number = i if i < 3 else 13 * i + 100
        streams.append(await peer.known(request, number))
    going = list(streams)
    while going:
        for stream in rng.sample(going, len(going)):
            at = len(stream.text)
            block = list((stream.want or ())[at : at + rng.choice((0, 1, 3))])
            if block and rng.random() < 0.3:
                block[-1] = _wrong(block[-1])
            await stream.draft(block[: peer.welcome.room])
        for stream in rng.sample(going, len(going)):
            await stream.until(len(stream.text) + 1)
        going = [stream for stream in going if not stream.finish]
    return f"{len(streams)} streams"


@_streamed("5", "an error of a stream ends that stream alone")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    needs(peer.welcome.streams > 1, "it carries one stream at a time")
    given_up = Error("internal", "the kit gives this one up", fatal=False)
    await stream.fill(3)
    await peer.say(replace(stream.request, scheme="no-such-scheme"), 1)
    await peer.refused("request", 1)
    await peer.say(given_up, 1)
    await stream.fill(N)
    await peer.open(stream.request, 1)
    await peer.say(given_up, 1)
    again = await peer.open(stream.request, 0, text)
    await again.fill(4)


@_streamed("4.5", "idle answers")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    needs(peer.welcome.progress_ms, "its welcome says that it sends no progress")
    await stream.judge([_wrong(text[0])])
    await stream.fill(3)
    for what, block in (
        ("a block of a dead branch", Block(0, 1, (text[1],))),
        ("a block that the text has already", Block(1, 1, tuple(text[1:2]))),
    ):
        await stream.send(block)
        with about(what):
            answer = must_be(Progress, await peer.hear())
            stream.progress(answer)
            expect(answer == Progress("idle", 1, 3, 0), str(answer))


@ROWS.greeted("4.5", "progress while it works")
async def _(kit: Kit, peer: Peer) -> str:
    every_s = peer.welcome.progress_ms / 1e3
    needs(every_s, "its welcome says that it sends none")
    size = min(peer.welcome.context - 2, _LONGEST_PROMPT)
    heard = dict.fromkeys(range(min(peer.welcome.streams, 6)), time.monotonic())
    for number in heard:
        prompt = tuple((i >> number) & 1 for i in range(size))
        await peer.say(kit.request(1, prompt=prompt), number)
        await peer.say(Block(0, 0, ()), number)
    words, longest = 0, 0.0
    while heard:
        data = await asyncio.wait_for(peer.socket.recv(), kit.patience_s)
        stream, message, _ = peer.codec.decode(data)
        now = time.monotonic()
        if isinstance(message, Progress):
            words += 1
            expect(message.work > 0, "progress without work while it reads")
        longest = max(longest, *(now - then for then in heard.values()), 0.0)
        heard[stream or 0] = now
        if isinstance(message, (Commit, Error)):
            heard.pop(stream or 0, None)
    needs(words or longest >= 2 * every_s, f"nothing waited longer than {longest:.2f} s")
    silence = f"{longest:.2f} s of silence, {every_s:g} are promised"
    expect(longest < 1.5 * every_s + 0.5, silence)
    return f"{words} words, at most {silence}"


@_streamed("4.6", "forwards are counted")
async def _(peer: Peer, stream: Stream, text: list[int]) -> None:
    for i in range(6):
        at = len(stream.text)
        await stream.judge([*text[at : at + 1], _wrong(text[at + 1])][: peer.block])
        expect(stream.forwards == i + 1, f"{stream.forwards} after {i + 1} verdicts")
    answer = await stream.bye()
    expect(answer.forwards == 6, f"{answer.forwards} in the bye, not 6")


# ---- what all streams are held to

RULES = rules(
    ("4.6", "hash", "text hashes are right"),
    ("4.6", "hash at the end", "a text hash at the end"),
    ("4.6", "hash often", "a text hash at least every 256 tokens"),
    ("4.6", "owed", "no text hash while a correction is owed"),
    ("4.6", "forwards", "forwards never fall"),
    ("3.3", "hints", "provisional verdicts where they are wanted"),
    ("4.5", "progress", "words of progress are true"),
)
