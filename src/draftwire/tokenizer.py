"""The tokenizer of a package: text to ids and back, and its fingerprint."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Sequence

from draftwire.errors import ConfigError, PackageError
from draftwire.io import parse_json, read_text

MAX_TOKENIZER = 64 << 20  # bytes; the largest published ones have about 35 MB

# Part of the fingerprint: a changed letter makes every package incompatible.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading and trailing spaces  ",
    "tabs\tand\nlines\r\n\n\nand    runs of spaces",
    "def f(x: int) -> str:\n    return f'{x:>8.3f}'  # comment\n",
    "0 1 12 123 1234567890 3.14159 -2e-10 0xFF",
    "Naïve café, Straße, Ångström, señor, ﬁne, e\u0301",
    "Привет мир. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم",
    "你好，世界。こんにちは世界。안녕하세요 세계. สวัสดีชาวโลก",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\ufeff",
    "CamelCase snake_case SHOUTING don't I'll we've <b>&amp;</b> http://a.b/c?d=e#f",
    '{"robot": {"arm": [0.1, -0.2], "gripper": "open"}}',
)
_ALIAS = 0xF0000  # private characters: nothing that a text means
_PAD_WORDS = frozenset({b"[pad]", b"<pad>", b"<|pad|>", b"<|padding|>", b"pad"})


class Tokenizer:
    """Text to token ids and back, as ``tokenizer.json`` and so a ``tokenizers.Tokenizer``
    says."""

    def __init__(self, engine: Any) -> None:
        engine.no_padding()
        engine.no_truncation()
        self._engine = engine
        self._literal: Any = None  # takes special tokens for text; made when needed
        self._aliases: dict[int, int] = {}  # ids that stand for special ones there
        added = engine.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._alias = {word: chr(_ALIAS + n) for n, word in enumerate(self._special)}
        self._any_form = any(t.normalized for t in added.values() if t.special)
        words = sorted((t.content for t in added.values()), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, filter(None, words))) or "(?!)")

    @property
    def engine(self) -> Any:
        """The ``tokenizers.Tokenizer`` inside."""
        return self._engine

    @property
    def vocab_size(self) -> int:
        """Tokens it knows, added ones included, padding rows of a model not."""
        return int(self._engine.get_vocab_size(with_added_tokens=True))

    @property
    def special(self) -> dict[str, int]:
        """Ids of its special tokens by how they are spelt."""
        return {word: i for word, i in self._special.items() if word}

    def encode(
        self, text: str, *, bos_id: int | None = None, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of ``text``, behind ``bos_id`` when given.

        What is spelt like a special token stays text, so that nobody can write an end of
        turn into a prompt; ``parse_special`` is for what a chat template wrote. A
        ConfigError where it is no text, or the tokenizer cannot take it.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a text was expected, this is {type(text).__name__}")
        if parse_special or not (self._any_form or self.special_spans(text)):
            ids = _encode(self._engine, text)
        else:
            ids = self.encode_spans(text, ())
        return ids if bos_id is None else [bos_id, *ids]

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where ``text`` spells special tokens, as the engine would find them."""
        found = self._added.finditer(text)
        return [match.span() for match in found if match[0] in self._special]

    def encode_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Return the ids of ``text``, of which ``spans`` (of :meth:`special_spans`, in
        order) alone are special tokens; raises as :meth:`encode`.
        """
        if self._literal is None:
            self._make_literal()
        pieces, end = [], 0
        for begin, after in spans:
            pieces += [text[end:begin], self._alias[text[begin:after]]]
            end = after
        ids = _encode(self._literal, "".join([*pieces, text[end:]]))
        special = {*self._special.values()}
        # Unigram vocabularies hold them as plain pieces too.
        plain = special.isdisjoint(ids)
        if not plain or sum(i in self._aliases for i in ids) != len(spans):
            raise ConfigError(
                "the prompt spells a special token of this model, which its tokenizer "
                "cannot keep as text",
                hint="leave it out, or give token ids",
            )
        return [self._aliases.get(i, i) for i in ids]

    def _make_literal(self) -> None:
        """Make an engine for which special tokens are text, and other characters they."""
        # A copy: setting this on the engine that others decode with is no option.
        literal = type(self._engine).from_str(self._engine.to_str())
        if not hasattr(literal, "encode_special_tokens"):
            raise ConfigError(
                "the prompt spells a special token, which this version of the "
                "tokenizers library cannot keep as text",
                hint="pip install --upgrade tokenizers",
            )
        literal.encode_special_tokens = True
        added = self._engine.get_added_tokens_decoder()
        for word, i in self._special.items():
            alias = type(added[i])(
                self._alias[word],
                lstrip=added[i].lstrip,
                rstrip=added[i].rstrip,
                normalized=False,
                special=False,
            )
            literal.add_tokens([alias])
            self._aliases[literal.token_to_id(self._alias[word])] = i
        self._literal = literal

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``."""
        return str(self._engine.decode(list(ids), skip_special_tokens=skip_special))

    def token_id(self, token: str) -> int | None:
        """Return the id of ``token`` as the vocabulary spells it, or None."""
        found = self._engine.token_to_id(token)
        return None if found is None else int(found)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a ``tokenizer.json``, or the one of the package at ``path`` (ConfigError: the
    ``tokenizers`` library is not installed; PackageError: the file is missing or no
    tokenizer)."""
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    return Tokenizer(_engine(read_text(path, MAX_TOKENIZER, "a tokenizer"), path))


def tokenizer_fingerprint(tokenizer_json: str | Path) -> str:
    """Return 64 hex digits that two tokenizers share exactly when their ids mean the same.

    It covers the ids of fixed probe texts, the special tokens and the vocabulary. It leaves
    out how the file is written, padding and truncation settings, pad tokens at the end of
    the vocabulary, and the padding rows of a model's embedding, which no tokenizer knows.
    ``transport/PROTOCOL.md`` 4.1 says it to the byte. A ConfigError where ``tokenizers`` is
    not installed, a PackageError where the file is missing or no tokenizer.
    """
    path = Path(tokenizer_json)
    text = read_text(path, MAX_TOKENIZER, "a tokenizer")
    engine = _engine(text, path)
    tokenizer = Tokenizer(engine)
    words = sorted((int(i), t.encode("utf-8")) for t, i in engine.get_vocab(True).items())
    while words and words[-1][1].lower() in _PAD_WORDS:
        del words[-1]
    known = {i for i, _ in words}
    added = parse_json(text).get("added_tokens") or ()
    special = {int(entry["id"]) for entry in added if entry.get("special")}
    lists = [tokenizer.encode(probe, parse_special=True) for probe in PROBES]
    lines = [" ".join(map(str, ids)) for ids in (*lists, sorted(special & known))]
    lines += [f"{i} {word.hex()}" for i, word in words]
    packed = "".join(line + "\n" for line in ("draftwire.tokenizer/2", *lines))
    return hashlib.sha256(packed.encode("ascii")).hexdigest()


def first_token(folder: str | Path) -> int | None:
    """Return the token that a model's tokenizer puts in front of a text, or None.

    The post-processor of ``tokenizer.json`` decides, not which token some file calls the
    beginning. What it puts behind a text (an end, for training) is left out: a prompt goes
    on. A ConfigError where ``tokenizers`` is not installed, a PackageError where there is
    no tokenizer, or it puts several tokens in front.
    """
    engine = load_tokenizer(folder).engine
    plain = _encode(engine, PROBES[0])
    whole = list(engine.encode(PROBES[0]).ids)
    at = next((i for i in range(len(whole)) if whole[i:][: len(plain)] == plain), 0)
    if at > 1:
        raise PackageError(
            f"{Path(folder).name}: its tokenizer puts {at} tokens in front of a text, a "
            "package holds one"
        )
    return int(whole[0]) if at else None


def _encode(engine: Any, text: str) -> list[int]:
    try:
        return list(engine.encode(text, add_special_tokens=False).ids)
    except BaseException as exc:
        # The library's panics are no Exception, and its errors are bare ones.
        panic = type(exc).__name__ == "PanicException"
        if not (panic or isinstance(exc, Exception)):
            raise
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ConfigError(
            f"the tokenizer cannot take this text: {reason[:160]}",
            hint="give text without lone surrogates",
        ) from exc


def _engine(text: str, path: Path) -> Any:
    try:
        import tokenizers
    except ImportError as exc:
        raise ConfigError(
            "reading text needs the tokenizers library, which is not installed",
            hint="pip install 'draftwire[board]' (which has the engine, too)",
        ) from exc
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as exc:  # noqa: BLE001  (the library raises bare Exception)
        raise PackageError(
            f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads"
            f" ({str(exc).splitlines()[0][:120]})",
            hint="save it again with a tokenizers version that both sides have",
        ) from exc
