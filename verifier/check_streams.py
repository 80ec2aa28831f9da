"""Conformance: streams, their limits and errors (PROTOCOL.md, sections 4 to 7)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from websockets.exceptions import ConnectionClosed

from draftwire.transport.codec import MAX_FRAME
from draftwire.transport.messages import (
    Block,
    Bye,
    Error,
    Finish,
    Opened,
)
from draftwire.verifier.conformance import Failed, Kit, Peer, Skipped, Table, expect

__all__ = ["CHECKS"]

CHECKS = Table()
N = 12  # tokens of a text
QUIET_S = 0.25  # whoever judges half a block does so within this time


# ---- 4 streams


@CHECKS.check("4", "text without drafts")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(N)
        expect(await peer.text([], 0, N) == text, "another text the second time")


@CHECKS.check("4", "right drafts")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        k = min(4, peer.max_block)
        await peer.open(N)
        commit = await peer.judge(0, 0, text[:k])
        expect(commit.accepted == k, f"{commit.accepted} of {k} right drafts accepted")
        expect(commit.token == text[k], "another token after them")
        expect(commit.epoch == 0, f"epoch {commit.epoch}")


@CHECKS.check("4.2", "wrong drafts")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(N)
        at = epoch = 0
        for right in (0, 1, 2):
            if right >= peer.max_block:
                break
            block = [*text[at : at + right], kit.wrong(text[at + right])]
            commit = await peer.judge(epoch, at, block)
            expect(commit.epoch == epoch, f"epoch {commit.epoch} of a block of {epoch}")
            expect(commit.accepted == right, f"{commit.accepted} accepted, not {right}")
            expect(commit.token == text[at + right], "a wrong correction")
            at, epoch = at + right + 1, epoch + 1


@CHECKS.check("4.2", "text on the way meets the bonus")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        if peer.max_block < 5:
            raise Skipped(f"blocks of {peer.max_block} tokens")
        await peer.open(N)
        found: list[int] = []
        for base, block in ((0, text[:2]), (2, text[2:5])):  # the second guesses the bonus
            await peer.say(Block(0, base, tuple(block)))
        while len(found) < 5:
            commit = await peer.commit()
            found += text[len(found) : len(found) + commit.accepted]
            found.append(-1 if commit.token is None else commit.token)
        expect(found == text[: len(found)], "another text")


@CHECKS.check("4.2", "overlap with the text")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        if peer.max_block < 3:
            raise Skipped(f"blocks of {peer.max_block} tokens")
        await peer.open(N)
        await peer.judge(0, 0, text[:2])  # the text has three tokens now
        commit = await peer.judge(0, 1, text[1:4])
        expect(commit.accepted == 1, f"{commit.accepted} accepted after an overlap of two")
        expect(commit.token == text[4], "another text")
        await peer.say(Block(0, 3, (text[3], kit.wrong(text[4]))))  # contradicts the text
        commit = await peer.judge(1, 5, text[5:6])
        expect(commit.epoch == 1, "a contradiction does not end the branch")


@CHECKS.check("4.2", "late blocks of a dead branch")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(N)
        commit = await peer.judge(0, 0, [kit.wrong(text[0])])
        await peer.say(Block(0, 1, tuple(text[1:2])))  # sent before the verdict came
        commit = await peer.judge(1, 1, text[1:2])
        expect(commit.epoch == 1, "a late block is judged")
        expect((commit.accepted, commit.token) == (1, text[2]), "another text")


@CHECKS.check("4.2", "epochs ahead and around")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(N)
        at = 0
        for epoch in (100, 200, 44):  # 44 is ahead of 200, modulo 256
            commit = await peer.judge(epoch, at, text[at : at + 1])
            expect(commit.epoch == epoch, f"epoch {commit.epoch}, not {epoch}")
            expect((commit.accepted, commit.token) == (1, text[at + 1]), "another text")
            at += 2


@CHECKS.check("4.2", "a gap is an error")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        await peer.open(N)
        await peer.say(Block(0, 5, ()))
        await peer.refused("protocol", close=1002)


@CHECKS.check("3.2", "a block in two frames")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        if peer.max_block < 3:
            raise Skipped(f"blocks of {peer.max_block} tokens")
        await peer.open(N)
        await peer.text([], 0, 1)  # the prompt is read by now
        await peer.say(Block(0, 1, tuple(text[1:2]), more=True))
        await peer.silence(QUIET_S)
        await peer.say(Block(0, 2, tuple(text[2:4])))
        commit = await peer.commit()
        expect(commit.accepted == 3, f"{commit.accepted} accepted, not 3 in one")
        expect(commit.token == text[4], "another text")


@CHECKS.check("3.2", "a correction nobody asked for")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        await peer.open(N)
        await peer.say(Block(0, 1, (), correction=0))
        await peer.refused("protocol", close=1002)


@CHECKS.check("4.4", "length")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(3)
        commit = await peer.judge(0, 0, text[: min(3, peer.max_block)])
        got = commit.accepted + (commit.token is not None)
        if peer.max_block >= 2:
            expect(got == 3, f"{got} tokens of the 3 that were asked for")
            expect(commit.finish == Finish.LENGTH, "no finish 'length'")


@CHECKS.check("4.4", "stop ids")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(N, stop_ids=(text[2],))
        first = text.index(text[2])
        found = await peer.text([], 0, N)
        expect(found == text[: first + 1], f"{len(found)} tokens up to the stop id")
    async with kit.greeted() as peer:
        await peer.open(N, stop_ids=(text[2],))
        commit = await peer.judge(0, 0, text[: min(5, peer.max_block)])
        expect(commit.finish == Finish.STOP, "no finish 'stop'")


@CHECKS.check("6", "coupled: drafts change nothing")
async def _(kit: Kit) -> None:
    sampled = {"scheme": "coupled", "temperature": 1.0, "seed": 7}
    async with kit.greeted() as peer:
        assert peer.welcome is not None
        if "coupled" not in peer.welcome.schemes:
            raise Skipped("it has no scheme 'coupled'")
        await peer.open(N, **sampled)
        text = await peer.text([], 0, N)
    async with kit.greeted() as peer:
        await peer.open(N, **sampled)
        commit = await peer.judge(0, 0, [kit.wrong(text[0])])
        expect((commit.accepted, commit.token) == (0, text[0]), "a wrong correction")
        commit = await peer.judge(1, 1, text[1:2])
        expect((commit.accepted, commit.token) == (1, text[2]), "another text")


@CHECKS.check("4", "bye, then the next stream")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with kit.greeted() as peer:
        await peer.open(N)
        await peer.say(Bye("cancelled"))
        await peer.say(Block(0, 0, tuple(text[:1])))  # was on its way
        await peer.open(N, stream=2)
        expect(await peer.text([], 0, N) == text, "another text in the second stream")
        await peer.say(Block(0, N, ()))  # of a stream that has ended
        await peer.open(N, stream=3)


@CHECKS.check("4", "one stream at a time")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        await peer.open(N)
        await peer.say(kit.request(N))
        await peer.refused("protocol", close=1002)


# ---- 5 errors, 7 limits


@CHECKS.check("5", "error request")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        assert peer.welcome is not None
        for changes in (
            {"scheme": "no-such-scheme"},
            {"prompt": (1,) * peer.welcome.context},
            {"prompt": ()},
            {"max_new_tokens": 0},
            {"scheme": "greedy", "temperature": -1.0},
        ):
            await peer.say(replace(kit.request(N), **changes))
            await peer.refused("request", fatal=False)
        await peer.open(N)  # the connection has stayed open


@CHECKS.check("7", "drafts above max_block")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        most = peer.max_block
        await peer.open(N)
        for base in range(0, most + 1, 200):
            count = min(200, most + 1 - base)
            last = base + count == most + 1
            await peer.say(Block(0, base, (0,) * count, more=not last))
        await peer.refused("protocol limit")


@CHECKS.check("7", "frame too long")
async def _(kit: Kit) -> None:
    async with kit.greeted() as peer:
        await peer.send(bytes(MAX_FRAME + 1))
        try:
            answer = await asyncio.wait_for(peer.socket.recv(), kit.patience_s)
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else 1009
            expect(code in (1002, 1008, 1009), f"close code {code}")
        except asyncio.TimeoutError:
            raise Failed("it takes a frame above 8 MiB") from None
        else:
            found = peer.codec.decode(answer)
            expect(isinstance(found, Error) and found.fatal, "no fatal error")


# ---- 5, what takes effort or cannot be provoked


@CHECKS.check("5", "error busy")
async def _(kit: Kit) -> None:
    if not kit.exhaust:
        raise Skipped("takes every slot: only with --exhaust")
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        with suppress(Failed):  # as many devices as it takes
            while len(peers) < 65:
                peers.append(await stack.enter_async_context(kit.greeted()))
        for peer in peers:
            await peer.say(kit.request(N))
            answer = await peer.hear()
            if isinstance(answer, Error):
                expect(answer.code in ("busy", "limit"), f"error {answer.code!r}")
                expect(not answer.fatal, "an error 'busy' that ends the connection")
                await peers[0].say(Bye())
                for _ in range(200):
                    await peer.say(kit.request(N))
                    if isinstance(await peer.hear(), Opened):
                        return
                    await asyncio.sleep(0.02)
                raise Failed("still busy after a stream has ended")
    raise Skipped("65 streams, and not busy")


@CHECKS.check("5", "error draining")
async def _(kit: Kit) -> None:
    raise Skipped("cannot be provoked from outside")


@CHECKS.check("5", "error internal")
async def _(kit: Kit) -> None:
    raise Skipped("cannot be provoked from outside")
