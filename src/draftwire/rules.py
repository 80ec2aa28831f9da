"""What values there are: kinds, ranges and words, and how each is said in a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from draftwire.io import parse_json

_LONGEST = 4096  # characters of a word or a name


@dataclass(frozen=True)
class Rule:
    """What values an option takes."""

    wants: str  # in words, behind "it must be"
    # ``int``, ``float``, ``bool``, ``str``, ``Path``, ``tuple`` (of texts), or what turns a
    # value into the right kind, or raises ValueError
    kind: Callable[[Any], Any]
    fits: Callable[[Any], bool] = lambda value: True  # whether a value of that kind is one
    shown: str = "TEXT"  # what stands for it in a command's help
    parsed: Callable[[str], Any] | None = None  # of a flag or the environment

    def read(self, value: object) -> Any:
        """Return ``value`` as this kind (ValueError: it is of another kind, or out of
        range)."""
        kind: Any = self.kind
        if kind is bool:
            found: Any = value
            right = isinstance(value, bool)
        elif kind is int:
            right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            found = int(value) if right else value  # type: ignore[call-overload]
        elif kind is float:
            right = isinstance(value, numbers.Real) and not isinstance(value, bool)
            found = float(value) if right else value  # type: ignore[arg-type]
            right = right and math.isfinite(found)
        elif kind is Path:
            right = isinstance(value, (str, Path)) and "\0" not in str(value)
            found = Path(value) if right else value  # type: ignore[arg-type]
        elif kind is tuple:
            found = (value,) if isinstance(value, str) else value
            right = isinstance(found, (list, tuple))
            right = right and all(isinstance(v, str) and v for v in found)
            found = tuple(found) if right else value
        elif kind is str:
            found, right = value, isinstance(value, str) and is_text(value)
        else:
            found, right = kind(value), True
        if not (right and self.fits(found)):
            raise ValueError(self.wants)
        return found

    def convert(self, text: str) -> Any:
        """Return what ``text`` of a flag or of the environment stands for, unchecked."""
        kind: Any = self.kind
        if self.parsed is not None:
            return self.parsed(text)
        if kind is bool:
            return _SWITCH.get(text.lower(), text)
        if kind is Path:
            return _home(Path(text))
        for number in {int: (int, float), float: (float,)}.get(kind, ()):
            try:
                return number(text)
            except ValueError:
                pass
        return text


_SWITCH = dict.fromkeys(("1", "true", "yes", "on"), True)
_SWITCH.update(dict.fromkeys(("0", "false", "no", "off"), False))


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~ of somebody who is not there
        return path


def is_text(value: str) -> bool:
    try:
        value.encode("utf-8")  # lone surrogates are no text
    except UnicodeEncodeError:
        return False
    return True


def whole(low: int, high: int) -> Rule:
    fits = lambda value: low <= value <= high  # noqa: E731
    return Rule(f"a whole number, {low} to {high}", int, fits, "N")


def number(low: float, high: float, *, above: bool = False, shown: str = "X") -> Rule:
    words = f"a number, {'above ' if above else ''}{low:g} to {high:g}"
    fits = lambda v: low <= v <= high and not (above and v == low)  # noqa: E731
    return Rule(words, float, fits, shown)


def word(*choices: str) -> Rule:
    words = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    return Rule(words, str, lambda value: value in choices, "|".join(choices))


TEXT = Rule(f"text of at most {_LONGEST} characters", str, lambda v: len(v) <= _LONGEST)


def text(shown: str) -> Rule:
    """Return the rule of a text that a command's help shows so."""
    return dataclasses.replace(TEXT, shown=shown)


NAME = text("NAME")
SCHEME = Rule(
    "the name of a scheme of docs/sampling.md",
    str,
    lambda value: re.fullmatch(r"[a-z0-9+-]{1,64}", value) is not None,
    "NAME",
)
FLAG = Rule("true or false", bool)
FILE = Rule("a file", Path, shown="FILE")
TOKEN = Rule(
    "one word of visible ASCII characters",
    str,
    lambda value: re.fullmatch(r"[!-~]{1,4096}", value) is not None,
)


def threads(value: object) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value):
        return _CORES.read(int(value))  # type: ignore[no-any-return]
    return _CORES.read(value)  # type: ignore[no-any-return]


_CORES = whole(1, 4096)
SECONDS = number(0, 3600, above=True, shown="SECONDS")


def cache(value: object) -> str | Path:
    """A word, or a file: one that a file of settings names lies beside it."""
    if value in ("off", "memory"):
        return str(value)
    if not value:
        raise ValueError
    return FILE.read(value)  # type: ignore[no-any-return]


def biases(value: object) -> tuple[tuple[int, float], ...]:
    """Pairs of a token id and a number: a mapping, pairs, or "ID=X,ID=X"."""
    if isinstance(value, str):
        value = dict(part.split("=") for part in value.split(",") if part.strip())
    pairs: Any = value.items() if isinstance(value, Mapping) else value
    found = {}
    for token, bias in pairs:
        if isinstance(token, str):  # JSON has no other keys
            token = int(token)
        bias = _BIAS.read(float(bias) if isinstance(bias, str) else bias)
        (single,) = struct.unpack("<f", struct.pack("<f", bias))  # as on the wire
        found[_TOKEN_ID.read(token)] = single
    if len(found) > 1024:
        raise ValueError
    return tuple(sorted(found.items()))


_TOKEN_ID = whole(0, 2**24)
_BIAS = number(-100, 100)
BIASES = Rule(
    "at most 1024 token ids with a number from -100 to 100 each", biases, shown="ID=X,..."
)


def schema(value: object) -> str:
    """A JSON schema: its text, made of an object where that is given."""
    compact = (",", ":")
    try:
        if isinstance(value, str):
            value = {"type": "object"} if value == "object" else parse_json(value)
        if not isinstance(value, (Mapping, bool)):
            raise ValueError
        whole = dict(value) if isinstance(value, Mapping) else value
        found = json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=compact)
    except RecursionError:
        raise ValueError from None
    if not is_text(found):
        raise ValueError
    return found


def _file_or(marks: str) -> Callable[[str], str]:
    """Return what reads a file, unless its name holds one of ``marks``."""

    def parse(text: str) -> str:
        if any(mark in text for mark in marks) or text == "object":
            return text
        with open(_home(Path(text)), encoding="utf-8") as file:
            return file.read(1 << 20)

    return parse


JSON_SCHEMA = Rule(
    "a JSON schema: an object, its text, or a file that holds it",
    schema,
    shown="FILE|JSON",
    parsed=_file_or("{"),
)
LARK = Rule(
    "a grammar in llguidance's dialect of Lark", str, is_text, "FILE", _file_or("\n:")
)


def texts(most: int, length: int) -> Rule:
    def fits(value: Sequence[str]) -> bool:
        return len(value) <= most and all(len(v) <= length and is_text(v) for v in value)

    return Rule(f"at most {most} texts of 1 to {length} characters", tuple, fits)


def _preempt_fits(value: str) -> bool:
    words = {word.strip() for word in value.split(",")}
    return words <= {"guess", "exits", "outcomes"} or words == {"off"}


PREEMPT = Rule(
    "off, or any of guess, exits, outcomes, joined by commas", str, _preempt_fits, "WORDS"
)


def _qs_fits(value: str) -> bool:
    pairs = [part.partition("=") for part in value.split(",") if part]
    names = [name for name, _, _ in pairs]
    known = {"support", "budget", "tolerance", "resolution"}
    number = re.compile(r"\d+|\d*\.\d+")
    fits = all([number.fullmatch(given) is not None for _, _, given in pairs])
    return fits and known.issuperset(names) and len({*names}) == len(names)


QS = Rule(
    "any of support, budget, tolerance, resolution with a number, such as "
    "support=16,resolution=100",
    str,
    _qs_fits,
    "WORDS",
)


def _controller_fits(value: str) -> bool:
    found = re.fullmatch(
        r"off|flexspec|pipesd(:(0\.\d+|1)){2}|pipesd|qsv|ucb|auto(:latency|:cost|:energy)?|"
        "fixed:(?P<k>[0-9]{1,3})(:autoregressive|:parallel|:hybrid)?",
        value,
    )
    return found is not None and (not found["k"] or 1 <= int(found["k"]) <= 255)


CONTROLLER = Rule(
    "auto, auto:latency, auto:cost, auto:energy, fixed:K with K from 1 to 255 (and "
    "fixed:K:parallel, :hybrid or :autoregressive), flexspec, pipesd (or pipesd:0.5:0.3, "
    "its thresholds), qsv, ucb or off",
    str,
    _controller_fits,
    "SPEC",
)


THREADS = Rule("a whole number from 1, or auto", threads, shown="N|auto")
CACHE = Rule("off, memory or a file", cache, shown="FILE|memory|off")
