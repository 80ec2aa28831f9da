"""Conformance: a lost link (PROTOCOL.md, section 4.3)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import AsyncIterator

from draftwire.transport.messages import (
    Bye,
    Error,
    Finish,
    Opened,
    Resumed,
)
from draftwire.verifier.conformance import Kit, Peer, Skipped, Table, expect

__all__ = ["CHECKS"]

CHECKS = Table()
N = 12  # tokens of a text


# ---- 4.3 a lost link


@CHECKS.check("4.3", "resume: ids and secrets")
async def _(kit: Kit) -> None:
    first, second = await _lost(kit, 0), await _lost(kit, 0)
    for opened in (first, second):
        sizes = len(opened.session), len(opened.secret)
        expect(sizes == (8, 16), f"session and secret of {sizes} bytes, not (8, 16)")
    expect(first.session != second.session, "two streams with one session id")
    expect(first.secret != second.secret, "two streams with one secret")
    async with kit.greeted(capabilities=()) as peer:
        opened = await peer.open(N)
        expect(not opened.secret, "a secret for a device that cannot resume")


@CHECKS.check("4.3", "resume: the text goes on")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    for held in (0, 3):
        opened = await _lost(kit, held)
        async with _resumer(kit) as peer:
            answer = _resumed(await peer.resume(opened, held))
            expect(answer.position == held, f"position {answer.position}, not {held}")
            expect(not answer.tokens, f"{len(answer.tokens)} tokens that are known")
            expect(answer.forwards == held, f"{answer.forwards} forwards, not {held}")
            found = await peer.text(text[:held], answer.epoch, N)
            expect(found == text, "another text")


@CHECKS.check("4.3", "resume: a lost commit")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    opened = await _lost(kit, 4)
    async with _resumer(kit) as peer:
        answer = _resumed(await peer.resume(opened, 1))
        expect(answer.tokens == tuple(text[1:4]), f"{answer.tokens}, not {text[1:4]}")
        expect(await peer.text(text[:4], answer.epoch, N) == text, "another text")


@CHECKS.check("4.3", "resume: a lost finish")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    opened = await _lost(kit, 4, count=4)
    async with _resumer(kit) as peer:
        answer = _resumed(await peer.resume(opened, 2))
        expect(answer.tokens == tuple(text[2:4]), f"{answer.tokens}, not {text[2:4]}")
        expect(answer.finish == Finish.LENGTH, "no finish 'length'")
        await peer.open(N, stream=2)


@CHECKS.check("4.3", "resume: half-open connection")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    async with _resumer(kit) as old, _resumer(kit) as new:
        opened = await old.open(N)
        await old.text([], 0, 2)
        answer = _resumed(await new.resume(opened, 2))
        expect(await new.text(text[:2], answer.epoch, N) == text, "another text")


@CHECKS.check("4.3", "resume: wrong secret")
async def _(kit: Kit) -> None:
    text = await kit.reference()
    opened = await _lost(kit, 2)
    flipped = bytes([opened.secret[0] ^ 1]) + opened.secret[1:]
    async with _resumer(kit) as peer:
        for session, secret in ((opened.session, flipped), (b"\x5a" * 8, opened.secret)):
            await peer.resume_unread(Opened(1, session, secret), 2)
            await peer.refused("session", fatal=False)
        answer = _resumed(await peer.resume(opened, 2))
        expect(await peer.text(text[:2], answer.epoch, N) == text, "another text")


@CHECKS.check("4.3", "resume: not after a bye")
async def _(kit: Kit) -> None:
    async with _resumer(kit) as peer:
        opened = await peer.open(N)
        await peer.say(Bye("cancelled"))
        await peer.resume_unread(opened, 0)
        await peer.refused("session", fatal=False)
        await peer.open(N, stream=2)


@asynccontextmanager
async def _resumer(kit: Kit) -> AsyncIterator[Peer]:
    """Return a greeted peer with the capability ``resume``."""
    async with kit.greeted(capabilities=("resume",)) as peer:
        assert peer.welcome is not None
        if "resume" not in peer.welcome.capabilities:
            raise Skipped("it has no capability 'resume'")
        yield peer


async def _lost(kit: Kit, held: int, count: int = N) -> Opened:
    """Open a stream, take ``held`` tokens, lose the link."""
    async with _resumer(kit) as peer:
        opened = await peer.open(count)
        await peer.text([], 0, held)
        peer.cut()
    return opened


def _resumed(answer: object) -> Resumed:
    said = f" ({answer.code}: {answer.message})" if isinstance(answer, Error) else ""
    name = type(answer).__name__.lower()
    expect(isinstance(answer, Resumed), f"{name}{said} instead of resumed")
    assert isinstance(answer, Resumed)
    return answer
