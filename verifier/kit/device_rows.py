"""Rows for devices: what they do about a verifier's faults and the link's."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, Callable

from draftwire.transport.bits import varint
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Finish,
    Open,
    Progress,
    Provisional,
)
from draftwire.verifier.kit.mimic import Gone, Link, Mimic, Served
from draftwire.verifier.kit.rows import (
    Failed,
    NotTested,
    Result,
    Table,
    expect,
    needs,
    rules,
    run_rows,
)

EXERCISES = Table()  # each takes one text of the device
row = EXERCISES.row
_UNKNOWN = varint(1998) + b"\x02xx"  # a field that may be skipped
_MUST = varint(1999) + b"\x02xx"  # one that must be understood
_WRONG_HASH = b"\x5a" * 8
_LOOKS, _LOOK_S = 16, 0.3  # so often it is waited so long for drafts beside a branch
FEW = 5  # tokens before something happens


@row("4", "a text from open to end")
async def _(mimic: Mimic) -> str:
    stream = await mimic.stream()
    expect(stream.link.hello.agent, "no agent in its hello")
    said, asked = await stream.serve(), stream.request
    await stream.rest()
    return f"{said}; {asked.scheme}, {asked.objective}, bonus {int(asked.bonus)}"


@row("4.2", "blocks of at most 3, of which 5 may wait", {"max_block": 3, "max_waiting": 5})
@row("4.2", "blocks of one token", {"max_block": 1, "max_waiting": 1})
@row("8", "a verifier that has nothing beyond the base", {"capabilities": (), "streams": 1})
async def _terms(mimic: Mimic, changes: dict[str, Any]) -> str:
    stream = await mimic.stream(**changes)
    stream.lag = 0.02  # so that more than one block is in flight, if it wants that
    return await stream.serve()


@row("3", "fields that may be skipped")
async def _(mimic: Mimic) -> str:
    stream = await (await mimic.connection(tail=_UNKNOWN)).asked()
    await stream.accept(_UNKNOWN)
    return await stream.serve(tail=_UNKNOWN)


@row("1", "another version: HTTP 426")
async def _(mimic: Mimic) -> str:
    mimic.refusal = 426
    for _ in range(int(mimic.patience_s * 50)):
        await asyncio.sleep(0.02)
        if mimic.upgrades and time.monotonic() - mimic.upgrades[0] > 0.5:
            tries = len(mimic.upgrades)
            expect(tries < 6, f"{tries} tries within half a second")
            return f"{tries} tries"
    raise Failed("no device came")


# ---- a link that is lost


async def _again(mimic: Mimic, old: Served, *, anew: bool = True) -> Served:
    """Return the stream of a device that comes back."""
    try:
        link = await mimic.connection()
    except Failed:
        raise NotTested("it does not come back") from None
    frame = await link.hear()
    link.put_back(frame)
    if not isinstance(frame.message, Open):
        await link.resumed(old)
        if anew:
            await old.say(old.answer)
        return old
    needs(anew, "it opens the stream anew instead of a resume")
    return await _anew(link, old)


async def _anew(link: Link, old: Served) -> Served:
    """Take an open in that goes on where a text was."""
    again = await link.asked()
    request, text = again.request, [*old.request.prompt, *old.text]
    held = len(request.prompt) - len(old.request.prompt)
    most = len(old.text) + (old.request.scheme in ("separate", "separate-lossy"))
    same = list(request.prompt)[: len(text)] == text[: len(request.prompt)]
    expect(same, "another prompt")
    lacks = len(old.text) - old.unseen - held
    expect(lacks <= 0, f"{lacks} tokens of the text are not in its prompt")
    expect(held <= most, "more in its prompt than the text")
    left = old.request.max_new_tokens - held
    found = request.max_new_tokens
    expect(found == left, f"max_new_tokens {found}, and {left} are left")
    fixed: dict[str, Any] = {"prompt": (), "max_new_tokens": 1}
    expect(replace(request, **fixed) == replace(old.request, **fixed), "other settings")
    await again.accept()
    return again


@row("4.3", "link lost before the welcome", "hello")
@row("4.3", "link lost before opened", "open")
@row("4.3", "link lost after opened", "opened")
@row("4.3", "link lost while a verdict is owed", "block")
@row("4.3", "link lost after a commit", "commit")
@row("4.3", "link closed together with a commit", "close")
@row("4.3", "link lost with the end of the text", "end")
async def _lost(mimic: Mimic, when: str) -> str:
    link = await mimic.raw_connection()
    if when == "hello":
        await link.hear()
        await link.cut()
        try:
            link = await mimic.raw_connection()
        except Failed:
            raise NotTested("it gives its first connection up, as it may") from None
    await link.greet()
    stream = await link.asked()
    if when == "open":
        await link.cut()
        return await (await _anew(await mimic.connection(), stream)).serve()
    await stream.accept()
    if when == "hello":
        return await stream.serve()
    if when == "block":
        await stream.serve(FEW)
        await stream.verdict()
    elif when == "commit":
        await stream.serve(FEW)
    elif when == "close":
        await stream.say(await _last(stream))
        await stream.link.close(1001)
    elif when == "end":
        while not (last := await stream.verdict()).finish:
            await stream.say(last)
    await link.cut()
    return await (await _again(mimic, stream)).serve()


@row("4.3", "two links lost, one after the other")
async def _(mimic: Mimic) -> str:
    stream = await mimic.stream()
    for tokens in (FEW, 2 * FEW):
        await stream.serve(tokens)
        await stream.link.cut()
        stream = await _again(mimic, stream)
    return await stream.serve()


@row("4.3", "a resume that is not granted: the stream is opened anew")
async def _(mimic: Mimic) -> str:
    stream = await mimic.stream()
    await stream.serve(FEW)
    await stream.link.cut()
    link = await mimic.connection()
    number, message, _ = await link.hear()
    needs(not isinstance(message, Open), "it opens the stream anew instead of a resume")
    await link.say(Error("stream", "the mimic has forgotten it", fatal=False), number or 0)
    return await (await _anew(link, stream)).serve()


@row("4.9", "a grammar that the verifier has forgotten")
async def _(mimic: Mimic) -> None:
    link = await mimic.raw_connection()
    await link.greet(also=("grammar",))
    first = await link.asked()
    needs(first.request.grammar, "its text keeps to no grammar")
    link.grammars.clear()
    forgot = Error("grammar", "the mimic has forgotten it", fatal=False)
    await link.say(forgot, first.number)
    again = await link.asked()
    expect(again.request == first.request, "another open")
    await link.say(Error("request", "the mimic compiles none", fatal=False), again.number)


@row("3.4", "brief blocks, and an open that has to say everything")
async def _(mimic: Mimic) -> str:
    link = await mimic.raw_connection()
    await link.greet(also=("brief",))
    stream = await link.asked()
    if brief := link.brief:
        first = stream.request
        anew = Error("prefix", "the mimic knows nothing", fatal=False)
        await link.say(anew, stream.number)
        stream = await link.asked()
        expect(not link.brief, "it leaves things out again")
        expect(stream.request == first, "another open")
    await stream.accept()
    return f"{await stream.serve()}, {'brief' if brief else 'whole'} open"


@row("4.12", "drafts beside a branch")
async def _(mimic: Mimic) -> str:
    link = await mimic.raw_connection()
    await link.greet(also=("brief", "trees"))
    stream = await link.asked()
    await stream.accept()
    session, stream.contrary = stream.session, True
    for turn in range(_LOOKS):
        if session.done:
            break
        await stream.listen(_LOOK_S, lambda: bool(session.branch.sides))
        if turn % 2 and stream.request.exits and session.branch.sides:
            at, token = min(session.branch.sides)  # it may give its branch up for that
            before = session.epoch
            await stream.say(Provisional(before, at - len(stream.text), token))
            await stream.listen(_LOOK_S, lambda: session.epoch != before)  # noqa: B023
        await stream.serve(len(stream.text) + 1)
    said = await stream.serve()
    needs(stream.beside is not None, "it sends none")
    return f"{said}, {stream.kept} of them sent beside a branch"


# ---- errors that pass


@row("5", "busy: not before retry_after_ms", "busy")
@row("5", "limit of the stream: not before retry_after_ms", "limit")
async def _busy(mimic: Mimic, code: str) -> str:
    link = await mimic.connection()
    number, _, _ = await link.hear()
    begin = time.monotonic()
    error = Error(code, "the mimic has no room", fatal=False, retry_after_ms=500)
    await link.say(error, number or 0)
    try:
        stream = await link.asked()
    except Gone:
        stream = await (await mimic.connection()).asked()
    waited = time.monotonic() - begin
    expect(waited > 0.49, f"it asks again after {waited:.2f} s, 0.5 were told")
    await stream.accept()
    return await stream.serve()


@row("5", "draining: it goes on elsewhere", "draining", 1001)
@row("5", "internal: it goes on", "internal", 1011)
async def _leaves(mimic: Mimic, code: str, close: int) -> str:
    stream = await mimic.stream()
    await stream.serve(FEW)
    await stream.link.say(Error(code, "the mimic goes away"))
    await stream.link.close(close)
    return await (await _again(mimic, stream)).serve()


@row("4.4", "a bye that it did not ask for")
async def _(mimic: Mimic) -> None:
    stream = await mimic.stream()
    await stream.serve(FEW)
    await stream.say(Bye("ended", stream.session.counts.forwards))
    stream.link.numbers.discard(stream.number)
    try:
        await stream.rest()  # blocks that were on their way
        while True:
            number, message, _ = await stream.link.hear(0.5)
            went = isinstance(message, Block) and number == stream.number
            expect(not went, "it goes on with a stream that ended")
            if isinstance(message, Open):
                break
    except (Gone, Failed) as why:
        if "goes on" in str(why):
            raise


@row("4.5", "words of progress while nothing is judged")
async def _(mimic: Mimic) -> str:
    stream = await mimic.stream()
    await stream.serve(FEW)
    commit = await stream.verdict()
    for _ in range(6):  # for a second and a half, longer than a device bears silence
        await stream.say(Progress("judging", stream.session.epoch, len(stream.text), 1))
        try:
            _, message, _ = await stream.link.hear(0.25)
        except Failed:
            continue
        ended = isinstance(message, (Bye, Error))
        expect(not ended, "it gives a verifier up that says it works")
        stream.take(message)
    await stream.say(commit)
    return await stream.serve()


@row("3.3", "provisional verdicts that lie")
async def _(mimic: Mimic) -> str:
    stream = await mimic.stream()
    needs(stream.request.exits, "its stream does not ask for them")
    vocab, lies = stream.link.welcome.vocab_size, 0
    while not stream.session.done:
        try:
            commit = await stream.verdict()
        except NotTested as why:
            raise Failed(f"it believes a lie: {why}") from None
        token = ((commit.token or 0) + 1) % vocab
        await stream.say(Provisional(commit.epoch, 0, token))
        await asyncio.sleep(0.005)
        await stream.say(commit)
        lies += 1
    return f"{lies} lies, {len(stream.text)} tokens"


# ---- what no device may believe


async def _last(stream: Served) -> Commit:
    await stream.serve(FEW)
    return await stream.verdict()


@row("4.6", "a wrong text hash", {"text_hash": _WRONG_HASH})
@row("4.2", "more accepted than was sent", {"accepted": 200, "text_hash": b""})
@row(
    "4.2",
    "a commit of a branch that is not there yet",
    {"epoch": 77, "accepted": 1, "text_hash": b""},
)
async def _lies(mimic: Mimic, changes: dict[str, Any]) -> None:
    stream = await mimic.stream()
    commit = replace(await _last(stream), **changes)
    await stream.say(commit)
    await stream.ended("that")


@row("4.2", "a commit that comes twice")
async def _(mimic: Mimic) -> None:
    stream = await mimic.stream()
    commit = await _last(stream)
    while commit.accepted < 2 and not commit.finish:
        await stream.say(commit)
        commit = await stream.verdict()
    needs(not commit.finish, "no block with two accepted drafts came")
    await stream.say(commit)
    await stream.say(commit)
    stream.lied = True
    for _ in range(300):  # a block in flight may hide it until the hash comes
        try:
            found = await stream.verdict()
        except (Gone, Failed, NotTested):
            return
        await stream.say(replace(found, text_hash=stream.hash()))
        if found.finish:
            break
    await stream.ended("a commit that came twice")


@row("4.3", "resumed at another place", {"position": 1})
@row("4.3", "resumed with too many tokens", {"tokens": (1,) * 2000, "text_hash": b""})
@row("4.3", "resumed with another text", {"text_hash": _WRONG_HASH})
async def _resumed(mimic: Mimic, changes: dict[str, Any]) -> None:
    stream = await mimic.stream()
    await stream.serve(FEW)
    await stream.link.cut()
    stream = await _again(mimic, stream, anew=False)
    await stream.say(replace(stream.answer, **changes))
    await stream.ended("that")


@row("3", "a frame cut short", lambda frame: frame[:3])
@row("3", "a frame of no kind", lambda frame: b"\x0d\x00")
@row("3", "a text frame", lambda frame: "commit")
@row("3", "a field that must be understood", lambda frame: frame + _MUST)
@row("3", "an unknown finish", lambda frame: frame + b"\x03\x01\x09")
@row("3", "a message of its own kind", None)
async def _torn_frames(mimic: Mimic, tear: Any) -> None:
    stream = await mimic.stream()
    commit = replace(await _last(stream), finish=Finish.NOT_YET)
    said = commit if tear else Block(0, 0, ())
    frame = stream.link.codec.encode(said, stream.number)
    await stream.link.send(tear(frame) if tear else frame)
    await stream.ended("that")


# ---- what every device was held to

RULES = rules(
    ("1", "subprotocol", "it offers draftwire.v2"),
    ("3", "frames", "its frames can be read"),
    ("3", "messages", "its messages come where they belong"),
    ("4", "numbers", "numbers of streams"),
    ("5", "opens", "its opens can be served"),
    ("4.2", "branches", "each branch has the next number"),
    ("4.2", "places", "blocks begin where the last one ended"),
    ("4.12", "beside", "drafts beside a branch stand where they may"),
    ("7", "max_block", "no block above max_block"),
    ("7", "max_waiting", "no more waits than max_waiting"),
    ("4.9", "grammars", "grammars are sent before the opens that name them, once"),
    ("6", "evidence", "its evidence can be read"),
    ("4", "ends", "nothing is sent after the end"),
)


async def try_device(
    mimic: Mimic, told: Callable[[Result], None] = lambda _: None, wanted: str = ""
) -> list[Result]:
    """Try a device on a mimic that listens, one text a row; return all results.

    Tried are rows whose names hold ``wanted``; all rules are looked at.
    """
    rows = [row for row in EXERCISES if wanted in row.name]
    found = await run_rows(mimic, rows, told, around=mimic.text)
    return found + await run_rows(mimic, RULES, told)
