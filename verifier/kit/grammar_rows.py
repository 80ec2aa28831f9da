"""Rows: texts that keep to a grammar (PROTOCOL.md, section 4.9)."""

from __future__ import annotations

import random
from typing import Any

from draftwire.sampling.grammar import Grammar, Rules
from draftwire.sampling.grammar.engine import missing, vocabulary
from draftwire.transport import messages
from draftwire.transport.messages import Finish, Open
from draftwire.verifier.kit.peer import Kit, Peer, Stream
from draftwire.verifier.kit.rows import NotTested, Table, about, expect
from draftwire.verifier.kit.target import text_of

ROWS = Table()
_NO_MORE = 200  # tokens: all of these texts end before
GRAMMARS = {
    "a schema": Grammar(
        "json",
        '{"type":"object","properties":{"a":{"enum":["abc","abd","cd"]},'
        '"b":{"type":"boolean"},"c":{"type":"string","maxLength":6}},'
        '"required":["a","b","c"],"additionalProperties":false}',
    ),
    "a regex": Grammar("regex", "[ab]{2,12}(abcabc|cdcd)\\[[0-3]{1,4}\\]"),
    "choices": Grammar.of_choices(["abc", "abcd", "abcabc{}", "cd:cd"]),
}


async def _compiled(kit: Kit, peer: Peer, grammar: Grammar) -> Any:
    """Send a grammar; return it compiled."""
    if (why := missing()) is not None:
        raise NotTested(str(why))
    assert kit.tokenizer is not None
    words = vocabulary(kit.tokenizer, kit.hello.tokenizer.hex())
    text = grammar.text.encode()
    await peer.say(messages.Grammar(grammar.format, text, words.mark))
    return words.compile(grammar)


def _drafts(stream: Stream, want: list[int], count: int) -> list[int]:
    """Return the next ids of ``want`` that a grammar leaves a choice about."""
    guide, at = stream.guide, len(stream.text)
    found: list[int] = []
    while guide is not None and len(found) < count:
        ids = guide.path((), found)[0] if found else ()
        if at + len(ids) >= len(want):
            break
        found.append(want[at + len(ids)])
    return found


async def _plain(kit: Kit, peer: Peer, request: Open, rules: Rules) -> list[int]:
    """Return the text without drafts, which must keep to its grammar."""
    want = None
    if kit.known:
        want = text_of(request, _NO_MORE, peer.welcome.vocab_size, rules)
    stream = await peer.open(request, 0, want, rules)
    await stream.fill(_NO_MORE)
    guide = rules.guide(len(request.prompt))
    guide.follow([*request.prompt, *stream.text])
    expect(guide.length == len(stream.text), f"{stream.text} is none of its texts")
    expect(stream.finish is Finish.STOP, f"it ends with {stream.finish.name.lower()}")
    expect(guide.content, f"{stream.text} is not whole")
    return stream.text


@ROWS.row("4.9", "a grammar: forced ids are text at once", True)
@ROWS.row("4.9", "a grammar: drafts change nothing", False)
async def _kept(kit: Kit, forcing: bool) -> str:
    rng, tokens, forced, drafts = random.Random(5), 0, 0, 0
    async with kit.greeted("grammar") as peer:
        schemes = [s for s in ("greedy", "coupled") if s in peer.welcome.schemes]
        for name, grammar in GRAMMARS.items():
            compiled = await _compiled(kit, peer, grammar)
            for scheme in schemes:
                temperature = 0.0 if scheme == "greedy" else 0.9
                changes = {"scheme": scheme, "temperature": temperature, "seed": 7}
                request = kit.request(
                    _NO_MORE, grammar=grammar.digest, forced=forcing, **changes
                )
                rules = Rules(compiled, peer.welcome.vocab_size, (), forcing)
                with about(f"{name}, {scheme}"):
                    want = await _plain(kit, peer, request, rules)
                    stream = await peer.open(request, 0, want, rules)
                    while not stream.finish:
                        block = _drafts(stream, want, min(3, peer.block))
                        if block and rng.random() < 0.4:  # most often one it forbids
                            block[-1] = rng.randrange(peer.welcome.vocab_size)
                        drafts += len(block)
                        await stream.judge(block)
                    expect(stream.text == want, "the text ends elsewhere")
                    expect(stream.finish is Finish.STOP, "it does not say stop")
                tokens, forced = tokens + len(want), forced + stream.forced
    expect(forced > 0 or not forcing, "nothing was forced")
    return f"{tokens} tokens, {forced} forced, {drafts} drafts"


@ROWS.greeted("4.9", "a budget that ends inside a structure says length", "grammar")
async def _(kit: Kit, peer: Peer) -> None:
    grammar = GRAMMARS["a schema"]
    compiled = await _compiled(kit, peer, grammar)
    for forcing in (False, True):
        request = kit.request(5, grammar=grammar.digest, forced=forcing)
        rules = Rules(compiled, peer.welcome.vocab_size, (), forcing)
        stream = await peer.open(request, 0, None, rules)
        await (stream.fill(5) if len(stream.text) < 5 else stream.commit())
        expect(len(stream.text) == 5, f"{len(stream.text)} tokens, not 5")
        expect(stream.finish is Finish.LENGTH, "it does not say length")


@ROWS.row("4.9", "grammars that are not known, cannot be used, or of another engine")
async def _(kit: Kit) -> None:
    recursive = Grammar("json", '{"$ref":"#"}')
    known = GRAMMARS["choices"]
    async with kit.greeted("grammar") as peer:
        unknown = {"one that was not sent": kit.request(8, grammar=b"?" * 32)}
        await peer.refuses(unknown, "grammar")
        other = messages.Grammar(known.format, known.text.encode(), b"another!")
        await peer.say(other)
        broken = messages.Grammar("regex", b"(", b"another!")
        await peer.say(broken)
        if missing() is None and kit.tokenizer is not None:
            mark = vocabulary(kit.tokenizer, kit.hello.tokenizer.hex()).mark
            text = recursive.text.encode()
            await peer.say(messages.Grammar("json", text, mark))
        names = {
            "another engine's": known.digest,
            "half a regex": Grammar.name("regex", b"("),
        }
        if missing() is None:
            names["one without a text that ends"] = recursive.digest
        await peer.refuses({n: kit.request(8, grammar=d) for n, d in names.items()})
        await peer.open(kit.request(8), 2)  # the connection goes on
    async with kit.greeted() as peer:
        unasked = {"where it was not agreed on": kit.request(8, grammar=known.digest)}
        await peer.refuses(unasked)
