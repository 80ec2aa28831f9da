"""The tokenizer of a package: text to ids and back, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Sequence

from draftwire.errors import ConfigError, PackageError

__all__ = ["Tokenizer", "load_tokenizer", "tokenizer_fingerprint"]

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
_PAD_WORDS = frozenset({"[pad]", "<pad>", "<|pad|>", "<|padding|>", "pad"})


class Tokenizer:
    """Text to token ids and back, as ``tokenizer.json`` says.

    Args:
        engine: A ``tokenizers.Tokenizer``.
    """

    def __init__(self, engine: Any) -> None:
        engine.no_padding()
        engine.no_truncation()
        self._engine = engine

    @property
    def engine(self) -> Any:
        """The ``tokenizers.Tokenizer`` inside."""
        return self._engine

    @property
    def vocab_size(self) -> int:
        """Tokens it knows, added ones included, padding rows of a model not."""
        return int(self._engine.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, bos_id: int | None = None) -> list[int]:
        """Return the ids of ``text``, with ``bos_id`` in front when given."""
        ids = list(self._engine.encode(text, add_special_tokens=False).ids)
        return ids if bos_id is None else [bos_id, *ids]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``."""
        return str(self._engine.decode(list(ids), skip_special_tokens=skip_special))

    def token_id(self, token: str) -> int | None:
        """Return the id of ``token`` as the vocabulary spells it, or None."""
        found = self._engine.token_to_id(token)
        return None if found is None else int(found)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a ``tokenizer.json``, or the one of the package at ``path``.

    Raises:
        ConfigError: The ``tokenizers`` library is not installed.
        PackageError: The file is missing or no tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "tokenizer.json"
    return Tokenizer(_engine(_read(path), path))


def tokenizer_fingerprint(tokenizer_json: str | Path) -> str:
    """Return what two tokenizers share exactly when their ids mean the same.

    It covers the ids of fixed probe texts, the special tokens and the vocabulary.
    It leaves out how the file is written, padding and truncation settings, pad
    tokens at the end of the vocabulary, and the padding rows of a model's embedding,
    which no tokenizer knows.

    Returns:
        64 hex digits.

    Raises:
        ConfigError: The ``tokenizers`` library is not installed.
        PackageError: The file is missing or no tokenizer.
    """
    path = Path(tokenizer_json)
    text = _read(path)
    engine = _engine(text, path)
    tokenizer = Tokenizer(engine)
    vocabulary = {int(i): t for t, i in engine.get_vocab(True).items()}
    while vocabulary and vocabulary[max(vocabulary)].lower() in _PAD_WORDS:
        del vocabulary[max(vocabulary)]
    special = sorted(
        int(entry["id"])
        for entry in json.loads(text).get("added_tokens") or ()
        if entry.get("special") and int(entry["id"]) in vocabulary
    )
    content = {
        "probes": [tokenizer.encode(probe) for probe in PROBES],
        "special": special,
        "vocabulary": sorted(vocabulary.items()),
    }
    packed = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(packed.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TOKENIZER:
            raise PackageError(f"{path} is too large for a tokenizer")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise PackageError(f"there is no {path.name} in {path.parent}") from exc
    except (OSError, ValueError) as exc:
        raise PackageError(f"{path} cannot be read as a tokenizer: {exc}") from exc


def _engine(text: str, path: Path) -> Any:
    try:
        import tokenizers
    except ImportError as exc:
        raise ConfigError(
            "reading text needs the tokenizers library, which is not installed",
            hint="pip install 'draftwire[tokenizers]'",
        ) from exc
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as exc:  # noqa: BLE001  (the library raises bare Exception)
        raise PackageError(
            f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads"
            f" ({str(exc).splitlines()[0][:120]})",
            hint="save it again with a tokenizers version that both sides have",
        ) from exc
