"""``draftwire.v1``: bytes to messages and back. No sockets, no clocks.

One message is one websocket frame. The first byte holds the kind (low four bits) and
four flags. Hot messages (block, provisional, commit) have a fixed layout; the others are
fields of (tag, length, bytes), so that they can grow: a reader skips a field it does not
know, unless its tag says that it must be understood.

Golden vectors: ``tests/golden/wire_v1.json``.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any, Callable, NamedTuple

from draftwire.errors import ProtocolError
from draftwire.transport.bits import (
    Reader,
    id_bits,
    pack_ids,
    pack_time,
    packed_size,
    unpack_ids,
    unpack_time,
    varint,
)
from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Finish,
    Hello,
    Kind,
    Message,
    Open,
    Opened,
    Provisional,
    Resume,
    Resumed,
    Welcome,
)

__all__ = [
    "MAX_BLOCK",
    "MAX_FORWARDS",
    "MAX_FRAME",
    "MAX_SEQUENCE",
    "SUBPROTOCOL",
    "VERSION",
    "Codec",
    "fields_of",
]

SUBPROTOCOL = "draftwire.v1"
VERSION = 1
MAX_FRAME = 8 * 2**20  # bytes; a full fp16 law of 8 tokens at V = 152,064 is 2.4 MB
MAX_BLOCK = 255  # tokens
MAX_SEQUENCE = 2**24  # positions
MAX_FORWARDS = 2**32 - 1  # of one stream
_MAX_TEXT = 4096  # bytes of a text field
_MAX_LIST = 256  # entries of a list field
_MAX_VOCAB = 2**24


class _Field(NamedTuple):
    """One field of a growing message: its place, its name, how it is written."""

    number: int
    name: str
    pack: Callable[[Codec, Any], bytes]
    unpack: Callable[[Codec, Reader, str], Any]
    required: bool = False


def _number(limit: int) -> tuple[Callable[..., bytes], Callable[..., int]]:
    return (
        lambda codec, value: varint(value),
        lambda codec, reader, name: reader.varint(limit, name),
    )


def _read_text(codec: Codec, reader: Reader, name: str) -> str:
    if reader.left() > _MAX_TEXT:
        raise ProtocolError(f"{name} has {reader.left()} bytes, limit {_MAX_TEXT}")
    try:
        return reader.take(reader.left()).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"{name} is not UTF-8") from exc


_TEXT = (lambda codec, value: value.encode("utf-8"), _read_text)


def _read_words(codec: Codec, reader: Reader, name: str) -> tuple[str, ...]:
    return tuple(_read_text(codec, reader, name).split())


_WORDS = (lambda codec, value: " ".join(value).encode("utf-8"), _read_words)


def _raw(*sizes: int) -> tuple[Callable[..., bytes], Callable[..., bytes]]:
    def read(codec: Codec, reader: Reader, name: str) -> bytes:
        if reader.left() not in sizes:
            raise ProtocolError(f"{name} has {reader.left()} bytes, not {sizes[0]}")
        return reader.take(reader.left())

    return (lambda codec, value: value), read


def _read_numbers(codec: Codec, reader: Reader, name: str) -> tuple[int, ...]:
    found: list[int] = []
    while reader.left():
        if len(found) >= _MAX_LIST:
            raise ProtocolError(f"{name} has more than {_MAX_LIST} entries")
        found.append(reader.varint(_MAX_VOCAB, name))
    return tuple(found)


_NUMBERS = (lambda codec, value: b"".join(varint(v) for v in value), _read_numbers)


def _read_ids(codec: Codec, reader: Reader, name: str) -> tuple[int, ...]:
    count = reader.varint(codec.max_ids, f"{name} count")
    data = reader.take(packed_size(count, codec.bits))
    return unpack_ids(data, count, codec.bits, codec.vocab_size)


_IDS = (
    lambda codec, value: varint(len(value)) + pack_ids(value, codec.bits),
    _read_ids,
)


def _read_real(codec: Codec, reader: Reader, name: str) -> float:
    (value,) = struct.unpack("<d", reader.take(8))
    if not math.isfinite(value):
        raise ProtocolError(f"{name} is not a finite number")
    return float(value)


_REAL = (lambda codec, value: struct.pack("<d", value), _read_real)
_SEED = (
    lambda codec, value: struct.pack("<Q", value),
    lambda codec, reader, name: struct.unpack("<Q", reader.take(8))[0],
)
_FINISH = (
    lambda codec, value: varint(value),
    lambda codec, reader, name: Finish(reader.varint(max(Finish), name)),
)
_FLAG = (
    lambda codec, value: varint(int(value)),
    lambda codec, reader, name: bool(reader.varint(1, name)),
)

_GROWING: dict[type[Any], tuple[Kind, tuple[_Field, ...]]] = {
    Hello: (
        Kind.HELLO,
        (
            _Field(1, "versions", *_NUMBERS, required=True),
            _Field(2, "agent", *_TEXT, required=True),
            _Field(3, "target", *_TEXT, required=True),
            _Field(4, "tokenizer", *_raw(32), required=True),
            _Field(5, "backbone", *_raw(32, 0), required=True),
            _Field(6, "vocab_size", *_number(_MAX_VOCAB), required=True),
            _Field(7, "draft_id", *_raw(32, 0)),
            _Field(8, "family", *_TEXT),
            _Field(9, "capabilities", *_WORDS),
        ),
    ),
    Welcome: (
        Kind.WELCOME,
        (
            _Field(1, "version", *_number(255), required=True),
            _Field(2, "agent", *_TEXT, required=True),
            _Field(3, "target", *_TEXT, required=True),
            _Field(4, "target_version", *_TEXT, required=True),
            _Field(5, "family", *_TEXT, required=True),
            _Field(6, "tokenizer", *_raw(32), required=True),
            _Field(7, "backbone", *_raw(32, 0), required=True),
            _Field(8, "vocab_size", *_number(_MAX_VOCAB), required=True),
            _Field(9, "context", *_number(MAX_SEQUENCE), required=True),
            _Field(10, "max_block", *_number(MAX_BLOCK), required=True),
            _Field(11, "eos_ids", *_NUMBERS),
            _Field(12, "compatibility", *_TEXT),
            _Field(13, "capabilities", *_WORDS),
            _Field(14, "schemes", *_WORDS),
            _Field(15, "target_id", *_raw(32, 0)),
        ),
    ),
    Open: (
        Kind.OPEN,
        (
            _Field(1, "stream", *_number(2**32 - 1), required=True),
            _Field(2, "prompt", *_IDS, required=True),
            _Field(3, "scheme", *_TEXT, required=True),
            _Field(4, "temperature", *_REAL, required=True),
            _Field(5, "top_k", *_number(2**32 - 1), required=True),
            _Field(6, "top_p", *_REAL, required=True),
            _Field(7, "seed", *_SEED, required=True),
            _Field(8, "max_new_tokens", *_number(MAX_SEQUENCE), required=True),
            _Field(9, "stop_ids", *_NUMBERS),
            _Field(10, "objective", *_TEXT),
            _Field(11, "bonus", *_FLAG),
            _Field(12, "exits", *_FLAG),
        ),
    ),
    Opened: (
        Kind.OPENED,
        (
            _Field(1, "stream", *_number(2**32 - 1), required=True),
            _Field(2, "session", *_raw(8, 0)),
            _Field(3, "secret", *_raw(16, 0)),
        ),
    ),
    Resume: (
        Kind.RESUME,
        (
            _Field(1, "session", *_raw(8), required=True),
            _Field(2, "secret", *_raw(16), required=True),
            _Field(3, "position", *_number(MAX_SEQUENCE), required=True),
        ),
    ),
    Resumed: (
        Kind.RESUMED,
        (
            _Field(1, "epoch", *_number(255), required=True),
            _Field(2, "position", *_number(MAX_SEQUENCE), required=True),
            _Field(3, "tokens", *_IDS, required=True),
            _Field(4, "finish", *_FINISH),
            _Field(5, "forwards", *_number(MAX_FORWARDS)),
        ),
    ),
    Error: (
        Kind.ERROR,
        (
            _Field(1, "code", *_TEXT, required=True),
            _Field(2, "message", *_TEXT, required=True),
            _Field(3, "hint", *_TEXT),
            _Field(4, "fatal", *_FLAG),
        ),
    ),
    Bye: (Kind.BYE, (_Field(1, "reason", *_TEXT),)),
}
_DEFAULTS = {cls: {f.name: f.default for f in dataclasses.fields(cls)} for cls in _GROWING}
_BY_KIND = {kind: (cls, fields) for cls, (kind, fields) in _GROWING.items()}


def fields_of(kind: Kind) -> dict[int, _Field]:
    """Return the fields of a growing message by number."""
    return {field.number: field for field in _BY_KIND[kind][1]}


_EVIDENCE, _MORE, _CORRECTION, _RACE = 0x10, 0x20, 0x40, 0x80  # block flags
_NO_TOKEN, _FINISH_SHIFT = 0x20, 6  # commit flags, beside _EVIDENCE


class Codec:
    """Encodes and decodes the frames of one connection.

    Args:
        vocab_size: Of the connection (``Welcome.vocab_size``); None before the
            welcome, when no message carries token ids.
        max_ids: Longest list of ids that is read.
    """

    def __init__(
        self, vocab_size: int | None = None, *, max_ids: int = MAX_SEQUENCE
    ) -> None:
        self.max_ids = max_ids
        self._vocab_size = vocab_size
        self._bits = None if vocab_size is None else id_bits(vocab_size)

    @property
    def vocab_size(self) -> int:
        """Ids are below this.

        Raises:
            ProtocolError: The greetings are not over yet.
        """
        if self._vocab_size is None:
            raise ProtocolError("token ids before the welcome")
        return self._vocab_size

    @property
    def bits(self) -> int:
        """Bits of one id."""
        if self._bits is None:
            raise ProtocolError("token ids before the welcome")
        return self._bits

    def encode(self, message: Message) -> bytes:
        """Return the frame of ``message``.

        Raises:
            ValueError: A field does not fit its place on the wire (our bug).
        """
        if isinstance(message, Block):
            return self._encode_block(message)
        if isinstance(message, Commit):
            return self._encode_commit(message)
        if isinstance(message, Provisional):
            token = pack_ids((message.token,), self.bits)
            head = bytes((Kind.PROVISIONAL, message.epoch & 0xFF))
            return head + varint(message.accepted) + token
        kind, fields = _GROWING[type(message)]
        defaults = _DEFAULTS[type(message)]
        out = bytearray((kind,))
        for field in fields:
            value = getattr(message, field.name)
            if not field.required and value == defaults[field.name]:
                continue
            data = field.pack(self, value)
            out += varint(field.number << 1 | field.required)
            out += varint(len(data)) + data
        return bytes(out)

    def decode(self, data: bytes) -> Message:
        """Return the message in the frame ``data``.

        Raises:
            ProtocolError: The frame is not valid.
        """
        if len(data) > MAX_FRAME:
            raise ProtocolError(f"a frame of {len(data)} bytes, limit {MAX_FRAME}")
        reader = Reader(data)
        head = reader.byte()
        kind, flags = head & 0x0F, head & 0xF0
        if kind == Kind.BLOCK:
            return self._decode_block(reader, flags)
        if kind == Kind.COMMIT:
            return self._decode_commit(reader, flags)
        if flags:
            raise ProtocolError(f"unknown flags {flags:#04x} on message kind {kind}")
        if kind == Kind.PROVISIONAL:
            epoch = reader.byte()
            accepted = reader.varint(MAX_BLOCK, "accepted")
            message = Provisional(epoch, accepted, self._id(reader))
            reader.end()
            return message
        if kind not in _BY_KIND:
            raise ProtocolError(f"unknown message kind {kind}")
        return self._decode_growing(reader, Kind(kind))

    def _decode_growing(self, reader: Reader, kind: Kind) -> Message:
        cls, fields = _BY_KIND[kind]
        known = {field.number: field for field in fields}
        found: dict[str, Any] = {}
        while reader.left():
            tag = reader.varint(2**16, "field tag")
            body = reader.take(reader.varint(MAX_FRAME, "field length"))
            field = known.get(tag >> 1)
            if field is None:
                if tag & 1:
                    raise ProtocolError(
                        f"{kind.name} has a field {tag >> 1} that must be understood"
                    )
                continue
            if field.name in found:
                raise ProtocolError(f"{kind.name} has {field.name} twice")
            inner = Reader(body)
            found[field.name] = field.unpack(self, inner, f"{kind.name} {field.name}")
            inner.end()
        missing = [f.name for f in fields if f.required and f.name not in found]
        if missing:
            raise ProtocolError(f"{kind.name} lacks {', '.join(missing)}")
        message: Message = cls(**found)
        return message

    def _id(self, reader: Reader) -> int:
        data = reader.take(packed_size(1, self.bits))
        return unpack_ids(data, 1, self.bits, self.vocab_size)[0]

    def _encode_block(self, block: Block) -> bytes:
        if len(block.tokens) > MAX_BLOCK:
            raise ValueError(f"a block of {len(block.tokens)} tokens, limit {MAX_BLOCK}")
        flags = _EVIDENCE if block.evidence else 0
        flags |= _MORE if block.more else 0
        flags |= _RACE if block.race else 0
        ids = block.tokens
        if block.correction is not None:
            flags |= _CORRECTION
            ids = (block.correction, *ids)
        head = bytes((Kind.BLOCK | flags, block.epoch & 0xFF)) + varint(block.base)
        out = head + varint(len(block.tokens)) + pack_ids(ids, self.bits)
        if block.evidence:
            out += varint(len(block.evidence)) + block.evidence
        return out

    def _decode_block(self, reader: Reader, flags: int) -> Block:
        epoch = reader.byte()
        base = reader.varint(MAX_SEQUENCE, "block base")
        count = reader.varint(MAX_BLOCK, "block length")
        extra = 1 if flags & _CORRECTION else 0
        data = reader.take(packed_size(count + extra, self.bits))
        ids = unpack_ids(data, count + extra, self.bits, self.vocab_size)
        evidence = b""
        if flags & _EVIDENCE:
            evidence = reader.take(reader.varint(MAX_FRAME, "evidence length"))
        reader.end()
        return Block(
            epoch=epoch,
            base=base,
            tokens=ids[extra:],
            evidence=evidence,
            more=bool(flags & _MORE),
            correction=ids[0] if extra else None,
            race=bool(flags & _RACE),
        )

    def _encode_commit(self, commit: Commit) -> bytes:
        flags = int(commit.finish) << _FINISH_SHIFT
        flags |= _EVIDENCE if commit.evidence else 0
        flags |= _NO_TOKEN if commit.token is None else 0
        out = bytes((Kind.COMMIT | flags, commit.epoch & 0xFF))
        out += varint(commit.accepted)
        if commit.token is not None:
            out += pack_ids((commit.token,), self.bits)
        times = pack_time(commit.queue_s) | pack_time(commit.compute_s) << 12
        out += times.to_bytes(3, "little")
        if commit.evidence:
            out += varint(len(commit.evidence)) + commit.evidence
        if commit.forwards is not None:
            out += varint(commit.forwards)
        return out

    def _decode_commit(self, reader: Reader, flags: int) -> Commit:
        epoch = reader.byte()
        accepted = reader.varint(MAX_SEQUENCE, "accepted")
        token = None if flags & _NO_TOKEN else self._id(reader)
        times = int.from_bytes(reader.take(3), "little")
        evidence = b""
        if flags & _EVIDENCE:
            evidence = reader.take(reader.varint(MAX_FRAME, "evidence length"))
        forwards = reader.varint(MAX_FORWARDS, "forwards") if reader.left() else None
        reader.end()
        return Commit(
            epoch=epoch,
            accepted=accepted,
            token=token,
            finish=Finish(flags >> _FINISH_SHIFT),
            queue_s=unpack_time(times & 0xFFF),
            compute_s=unpack_time(times >> 12),
            evidence=evidence,
            forwards=forwards,
        )
