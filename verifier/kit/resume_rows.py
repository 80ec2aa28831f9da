"""Rows: a lost link (PROTOCOL.md, section 4.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Sequence

import numpy as np

from draftwire.transport.messages import Error
from draftwire.verifier.kit.peer import Kit, Stream
from draftwire.verifier.kit.rows import Table, about, expect, needs
from draftwire.verifier.kit.scheme_rows import Drafts

ROWS = Table()
N = 24  # tokens of a text
_WRONG = b"\x5a" * 8


async def _lost(kit: Kit, held: int, drafts: Sequence[int] = (), **changes: Any) -> Stream:
    """Open a stream, take ``held`` tokens, send drafts, lose the link."""
    request = kit.request(N, **changes)
    want = await kit.want(request)
    async with kit.greeted("resume") as peer:
        stream = await peer.open(request, 0, want)
        await (stream.fill if request.objective == "cost" else stream.until)(held)
        if drafts:
            await stream.draft(drafts[: peer.welcome.room])
        peer.cut()
    return stream


@ROWS.row("4.3", "ids and secrets")
async def _(kit: Kit) -> None:
    first, second = (await _lost(kit, 0)).opened, (await _lost(kit, 0)).opened
    for opened in (first, second):
        sizes = len(opened.id), len(opened.secret)
        expect(sizes == (8, 16), f"id and secret of {sizes} bytes, not (8, 16)")
    expect(first.id != second.id, "two streams with one id")
    expect(first.secret != second.secret, "two streams with one secret")
    async with kit.greeted() as peer:
        found = (await peer.open(kit.request(N))).opened
        expect(not found.secret, "a secret for a device that cannot resume")


@ROWS.row("4.3", "resume in a race", 6, "", {"objective": "latency", "credit": 8})
@ROWS.row("4.3", "resume while it judges what is wrong", 3, "wrong", {})
@ROWS.row("4.3", "resume while it judges", 3, "right", {})
@ROWS.row("4.3", "resume while it waits", 3, "", {})
@ROWS.row("4.3", "resume before anything was said", 0, "", {})
async def _resumes(kit: Kit, held: int, drafts: str, changes: dict[str, Any]) -> None:
    text = await kit.want(kit.request(N, **changes))
    block = text[held : held + 2]
    if drafts == "wrong":
        block = [t ^ 1 for t in block]
    old = await _lost(kit, held, block if drafts else (), **changes)
    async with kit.greeted("resume") as peer:
        stream = await peer.resume(old, 2)
        if not drafts and not changes:
            expect(
                len(stream.text) == held,
                f"{len(stream.text) - held} tokens nobody asked for",
            )
            expect(stream.forwards == held, f"{stream.forwards} forwards, not {held}")
        at = len(stream.text)
        await stream.judge([text[at], text[at + 1] ^ 1][: peer.block])
        await stream.fill(N)


@ROWS.row("4.3", "resume while it reads")
async def _(kit: Kit) -> None:
    async with kit.greeted("resume") as peer:
        size = min(peer.welcome.context - N - 1, 4000)
    await _resumes(kit, 0, "", {"prompt": tuple((i >> 3) & 1 for i in range(size))})


@ROWS.row("4.3", "resume after lost commits")
async def _(kit: Kit) -> None:
    old = await _lost(kit, 6)
    for position in (2, 0, 6):
        async with kit.greeted("resume") as peer:
            stream = await peer.resume(old, position=position)
            found = len(stream.text)
            expect(found == 6, f"{found} tokens after {position} were held, not 6")
            if position == 6:
                await stream.fill(N)
            peer.cut()


@ROWS.row("4.3", "resume after a lost end")
async def _(kit: Kit) -> None:
    old = await _lost(kit, N)
    async with kit.greeted("resume") as peer:
        stream = await peer.resume(old, position=N - 2)
        expect(len(stream.text) == N, f"{len(stream.text)} tokens, not {N}")
        expect(stream.finish, "no finish")
        await peer.open(kit.request(N))


@ROWS.row("4.3", "resume where a correction is owed")
async def _(kit: Kit) -> None:
    request = kit.coupled(N, scheme="separate", temperature=1.0, top_k=4)

    async def owes(stream: Stream) -> bool:
        vocab = stream.peer.welcome.vocab_size
        row = np.full(vocab, -1e4, np.float32)
        row[len(stream.text) % vocab] = 0.0  # hardly the target's choice
        drafts = Drafts(stream, vocab)
        return bool((await drafts.judge([lambda _: row], cut=True))[2].evidence)

    async with kit.greeted("separate"):
        pass
    async with kit.greeted("resume") as peer:
        stream, owed = await peer.open(request), False
        while not owed and len(stream.text) < N - 4:
            owed = await owes(stream)
        peer.cut()
    needs(owed, "every draft was accepted")
    async with kit.greeted("resume") as peer:
        again = await peer.resume(stream)
        expect(again.text == stream.text, "the device's correction was drawn there")
        expect(await owes(again), "the same draft meets another verdict")


@ROWS.row("4.3", "resume on a half-open connection, under another number")
async def _(kit: Kit) -> None:
    request = kit.request(N)
    want = await kit.want(request)
    async with kit.greeted("resume") as old, kit.greeted("resume") as new:
        stream = await old.open(request, 0, want)
        await stream.fill(2)
        several = new.welcome.streams > 2
        if several:
            await new.open(kit.request(N))
        again = await new.resume(stream, 77 if several else 0)
        await again.fill(N)


@ROWS.row("4.3", "no resume for a wrong secret, id, place or text")
async def _(kit: Kit) -> None:
    for what, changes in (
        ("a wrong secret", {"secret": bytes(16)}),
        ("an unknown id", {"id": _WRONG}),
        ("another text", {"text_hash": _WRONG}),
        ("more text than there is", {"position": 9, "text_hash": b""}),
    ):
        old = await _lost(kit, 2)
        async with kit.greeted("resume") as peer:
            await peer.say(replace(old.resuming(2), **changes))
            with about(what):
                await peer.refused("stream", 0)
            if "secret" in changes:  # the guess has cost its owner nothing
                await (await peer.resume(old)).fill(N)


@ROWS.row("4.3", "no resume after a bye or an error")
async def _(kit: Kit) -> None:
    async with kit.greeted("resume") as peer:
        for word in ("bye", "error"):
            stream = await peer.open(kit.request(N))
            await stream.fill(1)
            if word == "bye":
                await stream.bye()
            else:
                await peer.say(Error("internal", "given up by the kit", fatal=False))
            await peer.say(stream.resuming(1), 1)
            await peer.refused("stream", 1)
