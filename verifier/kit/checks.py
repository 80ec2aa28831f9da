"""All rows for a verifier, in the order of PROTOCOL.md, and what must be known before."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

from websockets.exceptions import WebSocketException

from draftwire.errors import TransportError
from draftwire.verifier.kit import (
    grammar_rows,
    resume_rows,
    scheme_rows,
    stream_rows,
    wire_rows,
)
from draftwire.verifier.kit.peer import Kit
from draftwire.verifier.kit.rows import Failed, Row
from draftwire.verifier.kit.target import KIT_HELLO, TOKENIZER

CHECKS: list[Row] = [
    *wire_rows.ROWS,
    *stream_rows.ROWS,
    *grammar_rows.ROWS,
    *scheme_rows.ROWS,
    *resume_rows.ROWS,
    *stream_rows.RULES,
]


async def prepare(kit: Kit, *, seconds: float = 60.0) -> None:
    """Greet; make the kit's ``hello``, ``known``, ``noise`` and ``long`` fit the verifier.

    Of the ``seconds`` for all rows together a third may go into long texts. A
    TransportError where nobody answers at all.
    """
    try:
        async with kit.greeted() as peer:
            kit.known = peer.welcome.tokenizer == KIT_HELLO.tokenizer
            if kit.known:
                kit.tokenizer = TOKENIZER
            kit.hello = replace(kit.hello, vocab_size=peer.welcome.vocab_size)
            if peer.welcome.noise and kit.noise not in peer.welcome.noise:
                kit.noise = peer.welcome.noise[0]  # an engine behind it has its own
    except (OSError, asyncio.TimeoutError, WebSocketException, Failed) as error:
        raise TransportError(
            f"{kit.url} does not greet a device: {error or type(error).__name__}",
            hint="is the address right, the token (--token-file), the draft (--draft)?",
        ) from error
    if not kit.known:
        begin = time.monotonic()
        with contextlib.suppress(Failed):  # its row will tell
            await kit.want(kit.request(24))
        each_s = (time.monotonic() - begin) / 24
        kit.long = min(kit.long, max(48, int(seconds / 3 / 6 / each_s)))
