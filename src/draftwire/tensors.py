"""Safetensors files with numpy alone: read, checked; written; adapters merged.

Source:
    The safetensors format: 8 bytes little-endian header length, a JSON header,
    then the data, its tensors side by side without holes.
    https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, MutableMapping

import numpy as np

from draftwire.errors import PackageError
from draftwire.io import parse_json, replacing

if TYPE_CHECKING:
    from draftwire.packages import TargetPackage

    Array = np.ndarray[Any, Any]

# Bytes; the format allows 100 million, which take half a minute to read. A model of
# 20,000 tensors (128 experts in each of 48 layers) has 2 MB.
MAX_HEADER = 4 << 20
MAX_BYTES = 1 << 62  # of a tensor, were no side of it 0
MAX_DIMS = 8
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_FLOATS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_LENGTH = struct.Struct("<Q")
LORA_A, LORA_B = ".lora_a", ".lora_b"

Weights = Mapping[str, "Array"]


def read_header(path: Path) -> tuple[bytes, int]:
    """Return the header of a safetensors file, not looked into, and the file's bytes
    (PackageError: it is missing, truncated, or its header is longer than any model's)."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise _broken(path, "is too short")
            (length,) = _LENGTH.unpack(start)
            if start == b"version " and stream.read(19) == b"https://git-lfs.git":
                what, hint = "is a pointer of Git LFS and no tensors", "git lfs pull"
                raise PackageError(f"{path.name} {what}", hint=hint)
            if length > min(MAX_HEADER, size - 8):
                raise _broken(path, f"claims a header of {length} bytes")
            return stream.read(length), size
    except FileNotFoundError as exc:
        raise PackageError(f"there is no {path}") from exc
    except OSError as exc:
        raise PackageError(f"{path} cannot be read: {exc.strerror}") from exc


def _broken(path: Path, what: str) -> PackageError:
    return PackageError(f"{path.name} {what}", hint="copy or download the file again")


class TensorFile:
    """A safetensors file, its header checked, its data mapped and not yet read; a
    PackageError where it is missing, truncated or breaks the format."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        text, size = read_header(self.path)
        self._base = 8 + len(text)
        self._size = size - self._base
        entries = self._parse(text)
        metadata = entries.pop("__metadata__", {})
        words = metadata.values() if isinstance(metadata, dict) else [None]
        if not all(isinstance(value, str) for value in words):
            raise self._broken("has metadata that are not strings")
        self.metadata: Mapping[str, str] = metadata  # the header's own strings
        self._entries = {name: self._entry(name, e) for name, e in entries.items()}
        end = 0
        places = sorted((*entry[2:], name) for name, entry in self._entries.items())
        for begin, stop, name in places:
            if begin != end:
                raise self._broken(f"has a hole or an overlap before {name}")
            end = stop
        if end != self._size:
            raise self._broken(f"holds {self._size} bytes of data, not {end}")
        self._data: Array = np.zeros(0, np.uint8)
        if self._size:
            self._data = np.memmap(self.path, np.uint8, "r", self._base, (self._size,))

    def _broken(self, what: str) -> PackageError:
        return _broken(self.path, what)

    def _parse(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("a name stands twice")
            return found

        try:
            entries = parse_json(text, once)
        except ValueError as exc:
            raise self._broken("has a header that is not JSON") from exc
        if not isinstance(entries, dict):
            raise self._broken("has a header that is no object")
        return entries

    def _entry(self, name: str, raw: Any) -> tuple[str, tuple[int, ...], int, int]:
        if not isinstance(raw, dict):
            raise self._broken(f"describes {name} with no object")
        dtype = raw.get("dtype")
        shape, span = _whole(raw.get("shape")), _whole(raw.get("data_offsets"))
        if not isinstance(dtype, str) or dtype not in SIZES:
            raise PackageError(
                f"{self.path.name} holds {name} as {dtype!r}, which is not supported",
                hint="take the checkpoint that it was quantised from",
            )
        if shape is None or len(shape) > MAX_DIMS:
            raise self._broken(f"gives {name} an unfit shape")
        if math.prod(max(1, dim) for dim in shape) > MAX_BYTES // SIZES[dtype]:
            raise self._broken(f"gives {name} a shape that no memory holds")
        if span is None or len(span) != 2 or span[0] > span[1]:
            raise self._broken(f"gives {name} unfit offsets")
        if span[1] > self._size:
            raise self._broken(
                f"is cut short: {name} ends at byte {span[1]} of {self._size}"
            )
        if math.prod(shape) * SIZES[dtype] != span[1] - span[0]:
            raise self._broken(f"gives {name} a shape that does not fit its bytes")
        return dtype, tuple(shape), span[0], span[1]

    def names(self) -> Iterable[str]:
        """Return the names of its tensors, in the header's order."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._entries[name][1]

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype in the format's words, e.g. "BF16"."""
        return self._entries[name][0]

    def read(self, name: str) -> Array:
        """Return a tensor as a new float32 array (PackageError: it holds no floating-point
        numbers)."""
        dtype, shape, begin, end = self._entries[name]
        if dtype not in _FLOATS:
            raise self._broken(f"holds {name} as {dtype}, which is no float")
        values = self._data[begin:end].view(_FLOATS[dtype])
        if dtype == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32).reshape(shape)


def _whole(values: Any) -> list[int] | None:
    """Return ``values`` when they are a list of counts, else None."""
    if isinstance(values, list) and all(type(v) is int and v >= 0 for v in values):
        return values
    return None


def read_tensors(path: str | Path) -> dict[str, Array]:
    """Return every tensor of a safetensors file as float32 (PackageError: it is missing,
    truncated or breaks the format)."""
    file = TensorFile(path)
    return {name: file.read(name) for name in file.names()}


def write_tensors(
    path: str | Path, tensors: Weights, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write float16 and float32 arrays as a safetensors file, in place of an older one; its
    bytes follow from the arguments alone. ``metadata`` are strings for the header."""
    words = {np.dtype("<f2"): "F16", np.dtype("<f4"): "F32"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, end = [], 0
    for name, tensor in sorted(tensors.items()):
        part = np.ascontiguousarray(tensor)
        if part.dtype not in words:
            raise ValueError(f"{name} has dtype {part.dtype}, not float16 or 32")
        begin, end = end, end + part.nbytes
        about = {"dtype": words[part.dtype], "shape": list(tensor.shape)}
        header[name] = {**about, "data_offsets": [begin, end]}
        parts.append(part.reshape(-1).view(np.uint8))
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data starts aligned, as the format asks
    with replacing(Path(path)) as scratch, open(scratch, "wb") as stream:
        stream.write(_LENGTH.pack(len(text)) + text)
        for part in parts:
            stream.write(part.data)


def merge_lora(weights: MutableMapping[str, Array], adapter: Weights, scale: float) -> None:
    """Add an adapter to weights: ``weight += scale * lora_b @ lora_a``.

    ``weights`` are ``(out, in)`` by parameter, float32, and changed in place; ``adapter``
    has ``<parameter>.lora_a`` ``(r, in)`` and ``.lora_b`` ``(out, r)``; ``scale`` is what
    LoRA calls alpha over rank. A PackageError where they do not fit: nothing is changed.

    Source:
        Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, s. 4.1.
    """
    for stem, first, second in _pairs(weights, adapter, scale):
        change = np.float32(scale) * (second.astype(np.float32) @ first.astype(np.float32))
        weights[stem] = weights[stem] + change


def _pairs(
    weights: Weights, adapter: Weights, scale: float
) -> list[tuple[str, Array, Array]]:
    """Return parameter and halves of each change; see :func:`merge_lora`."""
    pairs = []
    for name in adapter:
        stem = name[: -len(LORA_A)]
        if name.endswith(LORA_B) and name[: -len(LORA_B)] + LORA_A in adapter:
            continue
        if not name.endswith(LORA_A) or stem + LORA_B not in adapter:
            raise PackageError(f"the adapter's {name} is not half of a pair")
        first, second = adapter[name], adapter[stem + LORA_B]
        if stem not in weights:
            raise PackageError(f"the adapter changes {stem}, which the base lacks")
        wanted = weights[stem].shape
        fits = first.ndim == second.ndim == 2 and first.shape[0] == second.shape[1]
        if not fits or (second.shape[0], first.shape[1]) != wanted:
            raise PackageError(
                f"the adapter's {stem} has shapes {second.shape} and {first.shape}, "
                f"the base's weight {wanted}"
            )
        pairs.append((stem, first, second))
    if not np.isfinite(scale):
        raise PackageError("the adapter's scale is not finite")
    return pairs


def target_weights(package: TargetPackage, base: Weights | None = None) -> dict[str, Array]:
    """Return the weights of a target as float32, its adapter merged.

    Unchanged ones of ``base``, where that is given, are the very same arrays. A
    PackageError where its tensors are damaged or do not fit each other.
    """
    whole = package if package.base is None else package.base
    weights = dict(base or read_tensors(whole.path / "weights.safetensors"))
    if package.adapter is not None:
        merge_lora(weights, *_adapter(package))
    return weights


def adapter_halves(package: TargetPackage, base: Weights) -> dict[str, tuple[Array, Array]]:
    """Return what an evolved target adds to each weight, ``(r, in)`` and ``(out, r)``.

    Float32, the scale in the second; none for a whole target (PackageError: see
    :func:`merge_lora`).
    """
    if package.adapter is None:
        return {}
    tensors, scale = _adapter(package)
    return {
        stem: (first.astype(np.float32), np.float32(scale) * second.astype(np.float32))
        for stem, first, second in _pairs(base, tensors, scale)
    }


def _adapter(package: TargetPackage) -> tuple[dict[str, Array], float]:
    assert package.adapter is not None
    file = TensorFile(package.adapter.path)
    try:
        scale = float(file.metadata.get("scale", ""))
    except ValueError as exc:
        raise PackageError(
            f"{package.path.name} names no scale for its adapter",
            hint="make the adapter package again",
        ) from exc
    return {n: file.read(n) for n in file.names()}, scale
