"""Text out of a stream of tokens: whole characters only, and stop strings kept back.

``detokenizer`` turns ids into text at a bounded cost for each token; ``StopFilter`` lets
text through until a stop string begins; ``TextStream`` is both in a row, and ``Screen`` is
what the user sees: tokens and their text, with guesses that may go.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import partial
from typing import Any, Iterable, Sequence, Union

from draftwire.errors import ConfigError
from draftwire.runtime.edge.actions import Emit, Token

# A character takes at most four byte tokens; a longer tail of replacement characters is
# invalid text that waiting does not mend.
_MAX_HELD = 8
# Tokens of the prompt that decoders may look back at (a leading space is dropped only
# at the very beginning of a text).
_LOOK_BACK = 4
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")  # byte fallback, as Llama spells it


def detokenizer(tokenizer: Any, prompt_ids: Sequence[int] = ()) -> Decoder:
    """Return what makes text of ids as they come: ``push`` ids, and ``flush`` what is left.

    The chunks joined are the whole decoding. Special tokens have no text. A character whose
    bytes are spread over several tokens comes out with the last of them; half a one becomes
    U+FFFD at the end.

    Args:
        tokenizer: A ``draftwire.tokenizer.Tokenizer`` or a ``tokenizers.Tokenizer``.
        prompt_ids: Tokens before the first one pushed; their text is not repeated, but
            a word that continues it keeps its leading space.
    """
    engine = getattr(tokenizer, "engine", tokenizer)
    # The library skips special tokens before it decodes, so they may be dropped here; that
    # keeps them out of the window, where they would hide a first word.
    added = engine.get_added_tokens_decoder().items()
    special = {token_id for token_id, token in added if token.special}
    # The pickled state of a decoder is its JSON; the whole tokenizer's would be large.
    state = "{}" if engine.decoder is None else engine.decoder.__getstate__()
    if json.loads(state).get("type") != "ByteLevel":
        return _WindowDecoder(engine, special, prompt_ids)
    found = _ByteDecoder(engine, special)
    found.push(prompt_ids[-_LOOK_BACK:])  # half a character may be there
    return found


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Source:
        ``bytes_to_unicode`` of GPT-2: printable bytes stand for themselves, the others
        are numbered from U+0100 on.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + extra): byte for extra, byte in enumerate(others)},
    }


class _ByteDecoder:
    """Byte-level vocabularies: every token is some bytes, joined and read as UTF-8."""

    _ALPHABET = _byte_alphabet()

    def __init__(self, engine: Any, special: Iterable[int]) -> None:
        self._token = engine.id_to_token
        self._bytes: dict[int, bytes] = {token_id: b"" for token_id in special}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def _bytes_of(self, token_id: int) -> bytes:
        token = self._token(token_id) or ""  # padding rows of the model have no token
        alphabet = self._ALPHABET
        if all(char in alphabet for char in token):
            found = bytes([alphabet[char] for char in token])
        else:  # an added token, spelt as itself
            found = token.encode("utf-8", "replace")
        self._bytes[token_id] = found
        return found

    def push(self, ids: Iterable[int]) -> str:
        known = self._bytes
        return self._utf8.decode(
            b"".join([known[i] if i in known else self._bytes_of(i) for i in ids])
        )

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDecoder:
    """Any other decoder: decode a short window twice and take the difference."""

    def __init__(
        self, engine: Any, special: Iterable[int], prompt_ids: Sequence[int]
    ) -> None:
        self._decode = engine.decode
        self._token = engine.id_to_token
        self._special = frozenset(special)
        before = [i for i in prompt_ids if i not in self._special]
        self._window: list[int] = before[-_LOOK_BACK:]
        while self._window and 0x80 <= (self._byte(self._window[0]) or 0) < 0xC0:
            del self._window[0]  # a run of bytes is decoded as a whole, or not at all
        # Tokens of the window whose text is out; bytes of half a character are not.
        self._shown = len(self._window) - self._half()
        self._text = self._decode(self._window[: self._shown]) if self._shown else ""

    def _half(self) -> int:
        """Return how many byte tokens at the window's end begin a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(self._tail(self._window))
        return len(decoder.getstate()[0])

    def _tail(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that stand for themselves at the end of ``ids``."""
        tail: list[int] = []
        for token_id in reversed(ids):
            byte = self._byte(token_id)
            if byte is None:
                break
            tail.insert(0, byte)
        return bytes(tail)

    def _byte(self, token_id: int) -> int | None:
        """Return the byte that a token stands for, if it is one."""
        found = _BYTE_TOKEN.match(str(self._token(token_id)))
        return int(found.group(1), 16) if found else None

    def push(self, ids: Iterable[int]) -> str:
        out = []
        for token_id in ids:
            # Padding rows of the model have no token, and no text.
            if token_id not in self._special and self._token(token_id) is not None:
                self._window.append(token_id)
                out.append(self._take(final=False))
        return "".join(out)

    def flush(self) -> str:
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        held = len(self._window) - self._shown
        if not held:
            return ""
        now: str = self._decode(self._window)
        if now.endswith("\ufffd") and not final and self._may_go_on(held):
            return ""
        if now.startswith(self._text):
            fresh = now[len(self._text) :]
        else:  # invalid bytes, and the decoder takes back what it had made of them
            fresh = str(self._decode(self._window[self._shown :]))
        if fresh:
            # A window must begin with a token that has text: what a decoder trims at
            # the beginning is then trimmed from text that is out already.
            self._window = self._window[self._shown :]
            self._text = self._decode(self._window)
        self._shown = len(self._window)
        return fresh

    def _may_go_on(self, held: int) -> bool:
        """Return whether a text that ends in a replacement character may mend, or really
        holds one; bytes tell."""
        tail = self._tail(self._window[len(self._window) - held :])
        if tail:
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                decoder.decode(tail)
            except UnicodeDecodeError:
                pass  # invalid already; waiting is for the usual limit
            else:
                return bool(decoder.getstate()[0])
        return held < _MAX_HELD


Decoder = Union[_ByteDecoder, _WindowDecoder]


class StopFilter:
    """Lets text through up to the first stop string, which it swallows.

    The first is the one that is complete first; where two are complete at the same
    character, the longer. So the result does not depend on how the text was cut.

    Args:
        stop: Stop strings, none of them empty.

    Attributes:
        stopped: The stop string that was met, or None.

    Raises:
        ConfigError: A stop string is empty.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str):
            stop = (stop,)
        if not all(stop):
            raise ConfigError("a stop string is empty", hint="leave it out")
        # Longest first, so that ties are won by the longer.
        self._stop = tuple(dict.fromkeys(sorted(stop, key=len, reverse=True)))
        self._longest = max((len(s) for s in self._stop), default=0)
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """Take further text; return what certainly comes before any stop string."""
        if self.stopped is not None:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        begin, first_end = 0, len(text) + 1
        for stop in self._stop:
            found = text.find(stop, 0, first_end)
            if found >= 0 and found + len(stop) < first_end:
                begin, first_end = found, found + len(stop)
                self.stopped = stop
        if self.stopped is not None:
            self._held = ""
            return text[:begin]
        # What may begin a stop string is kept back.
        shown = max(0, len(text) - self._longest + 1)
        while not any(stop.startswith(text[shown:]) for stop in self._stop):
            shown += 1
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


class TextStream:
    """Ids in, text for the user out: a :func:`detokenizer` and a :class:`StopFilter`."""

    def __init__(
        self, tokenizer: Any, *, prompt_ids: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        self._detokenizer = detokenizer(tokenizer, prompt_ids)
        self._filter = StopFilter(stop)

    @property
    def stopped(self) -> str | None:
        return self._filter.stopped

    def push(self, ids: Iterable[int]) -> str:
        """Take further ids; return text, never half a character or half a stop string, and
        nothing after one."""
        return self._filter.push(self._detokenizer.push(ids))

    def flush(self) -> str:
        text = self._filter.push(self._detokenizer.flush())
        return text + self._filter.flush()


class Screen:
    """Turns what a session emits into ``tokens`` and their ``text``, guesses included; the
    arguments are those of a :class:`~draftwire.runtime.text.TextStream`."""

    def __init__(
        self, tokenizer: Any, prompt_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._new = partial(TextStream, tokenizer, prompt_ids=prompt_ids, stop=stop)
        self._stream = self._new()
        self._verified = 0
        self.tokens: list[Token] = []
        self.text = ""

    @property
    def unverified(self) -> int:
        return len(self.tokens) - self._verified

    @property
    def met(self) -> bool:
        """True when a stop string was met, be it in guesses."""
        return self._stream.stopped is not None

    @property
    def stopped(self) -> bool:
        """True when a stop string was met in the verified part of the text."""
        if not self.met or not self.unverified:
            return self.met
        verified = self._new()
        verified.push([token.id for token in self.tokens[: self._verified]])
        return verified.stopped is not None

    def push(self, event: Emit) -> tuple[str, tuple[Token, ...]]:
        """Show further tokens; return the text and the tokens that are new. Once a stop
        string is met in final text, ``tokens`` ends with the last that has a part in the
        text before it."""
        if event.shown:  # shown as guesses, final now
            shown = slice(self._verified, self._verified + event.shown)
            self.tokens[shown] = event.tokens[: event.shown]
        before, fresh = len(self.tokens), event.tokens[event.shown :]
        self.tokens += fresh
        if event.tokens[0].kind != "unverified":
            self._verified += len(event.tokens)
        piece = self._stream.push([token.id for token in fresh])
        self.text += piece
        if self.stopped and self._verified:
            self._cut()
        return piece, tuple(self.tokens[before:])

    def _cut(self) -> None:
        plain = self._new(stop=())
        length = 0
        for count, token in enumerate(self.tokens):
            if length >= len(self.text):
                del self.tokens[count:]
                self._verified = min(self._verified, count)
                return
            length += len(plain.push([token.id]))

    def revise(self, position: int) -> None:
        """Take back every token from ``position`` on."""
        del self.tokens[position:]
        self._stream = self._new()
        self.text = self._stream.push([token.id for token in self.tokens])

    def flush(self) -> str:
        """End the text, guesses and all; return what of it was held back."""
        rest = self._stream.flush()
        self.text += rest
        if self.met:
            self._cut()
        return rest
