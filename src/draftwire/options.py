"""Every option of a session and of a stream: its type, range, default and help, once.

The signatures of :func:`draftwire.connect` and ``session.generate``, the settings of
files and environment, the flags of the command line, the requests of the service and the
reference in docs/options.md all come from these classes. A value is checked when an
object is made, and the sentence of the error is the same everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ClassVar, Iterator, Mapping, Sequence, Type, TypeVar

from draftwire.errors import ConfigError

__all__ = [
    "GROUPS",
    "STREAM_GROUPS",
    "Connect",
    "Draft",
    "Limits",
    "Measure",
    "Option",
    "Options",
    "Pacing",
    "Power",
    "Rule",
    "Sampling",
    "option_named",
    "options_of",
]

MAX_TOKENS = 1 << 24
MAX_SECONDS = 86_400.0


@dataclass(frozen=True)
class Rule:
    """What values an option takes.

    Attributes:
        wants: In words, behind "it must be".
        kind: ``int``, ``float``, ``bool``, ``str``, ``Path``, ``tuple`` (of texts), or
            what turns a value into the right kind, or raises ValueError.
        fits: Whether a value of that kind is one.
        choices: All of them, where they can be listed.
    """

    wants: str
    kind: Callable[[Any], Any]
    fits: Callable[[Any], bool] = lambda value: True
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> Any:
        """Return ``value`` as this kind.

        Raises:
            ValueError: It is of another kind, or out of range.
        """
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
            found = str(value) if isinstance(value, Path) else value
            right = isinstance(found, str) and _is_text(found)
        else:
            found, right = kind(value), True
        if not (right and self.fits(found)):
            raise ValueError(self.wants)
        return found

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` of a flag or of the environment stands for.

        Raises:
            ValueError: It stands for none.
        """
        kind: Any = self.kind
        if kind in (int, float):
            try:
                return self.read(kind(text))
            except ValueError:
                raise ValueError(self.wants) from None
        if kind is bool:
            words = {"1": True, "true": True, "yes": True, "on": True}
            words.update({"0": False, "false": False, "no": False, "off": False})
            if text.lower() not in words:
                raise ValueError(self.wants)
            return words[text.lower()]
        return self.read(text)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")  # lone surrogates are no text
    except UnicodeEncodeError:
        return False
    return True


def _whole(low: int, high: int) -> Rule:
    fits = lambda value: low <= value <= high  # noqa: E731
    return Rule(f"a whole number, {low} to {high}", int, fits)


def _number(low: float, high: float, *, above: bool = False) -> Rule:
    words = f"a number, {'above ' if above else ''}{low:g} to {high:g}"
    return Rule(words, float, lambda v: low <= v <= high and not (above and v == low))


def _word(*choices: str) -> Rule:
    words = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    return Rule(words, str, lambda value: value in choices, choices)


_TEXT = Rule("text", str)
_FLAG = Rule("true or false", bool)
_FILE = Rule("a file", Path)


def _threads(value: object) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _texts(most: int, length: int) -> Rule:
    def fits(value: Sequence[str]) -> bool:
        return len(value) <= most and all(len(v) <= length and _is_text(v) for v in value)

    return Rule(f"at most {most} texts of 1 to {length} characters", tuple, fits)


def _preempt_fits(value: str) -> bool:
    words = {word.strip() for word in value.split(",") if word.strip()}
    return words <= {"guess", "exits", "outcomes"} or words == {"off"}


_PREEMPT = Rule(
    "off, or any of guess, exits, outcomes, joined by commas", str, _preempt_fits
)


@dataclass(frozen=True)
class Option:
    """One option, as tables, flags and documents see it.

    Attributes:
        name: Of the argument; also the key in a file.
        default: Its only default.
        rule: What it takes.
        help: One line.
        secret: Its value is never shown.
    """

    name: str
    default: Any
    rule: Rule
    help: str
    secret: bool = False

    @property
    def flag(self) -> str:
        """Its flag on the command line: seconds lose their unit there."""
        name = self.name[:-2] if self.name.endswith("_s") else self.name
        return "--" + name.replace("_", "-")

    def read(self, value: object, where: str = "") -> Any:
        """Return ``value`` checked.

        Args:
            value: Given by a caller.
            where: Its name in the message; by default the option's.

        Raises:
            ConfigError: It is not one of this option's.
        """
        return self._checked(self.rule.read, value, where)

    def parse(self, text: str, where: str = "") -> Any:
        """Return the value that ``text`` stands for; otherwise as :meth:`read`."""
        return self._checked(self.rule.parse, text, where)

    def _checked(self, read: Callable[[Any], Any], value: object, where: str) -> Any:
        try:
            return read(value)
        except (ValueError, TypeError, OverflowError):
            shown = "(not shown)" if self.secret else f"{value!r}"[:80]
            raise ConfigError(
                f"{where or self.name} is {shown}", hint=f"it must be {self.rule.wants}"
            ) from None


def _option(default: Any, rule: Rule, help: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help, "secret": secret}
    )


_T = TypeVar("_T", bound="Options")


@dataclass(frozen=True)
class Options:
    """What the groups share: their values are checked when they are made."""

    title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            if value is None and option.default is None:
                continue
            object.__setattr__(self, option.name, option.read(value))

    @classmethod
    def pick(cls: Type[_T], values: Mapping[str, Any]) -> _T:
        """Return the group with those of ``values`` that belong to it."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True)
class Connect(Options):
    """How to reach the verifier."""

    title: ClassVar[str] = "the verifier"

    target: str = _option("", _TEXT, "name or version of the target; empty: its default")
    token: str | None = _option(None, _TEXT, "bearer token", secret=True)
    insecure: bool = _option(
        False,
        _FLAG,
        "allow plain ws:// to another machine: token and text can be read on the way",
    )
    tls_ca: Path | None = _option(None, _FILE, "trust the certificates in this file")
    tls_cert: Path | None = _option(
        None, _FILE, "certificate to show to the verifier (mutual TLS)"
    )
    tls_key: Path | None = _option(None, _FILE, "its key, if in a file of its own")
    proxy: str = _option(
        "auto", _TEXT, "auto (the environment's), off, or the URL of an HTTP proxy"
    )
    timeout_s: float = _option(
        10.0, _number(0, 3600, above=True), "seconds for connecting and greeting"
    )
    silence_s: float | None = _option(
        None,
        _number(0, 3600, above=True),
        "seconds without a sign of life, while an answer is owed, after which the link "
        "counts as lost; by default derived from what answers take, 1 to 15",
    )


@dataclass(frozen=True)
class Draft(Options):
    """How the draft model runs."""

    title: ClassVar[str] = "the draft model"

    precision: str | None = _option(
        None, _TEXT, "which of the draft's models to run, e.g. int8; by default its choice"
    )
    engine: str | None = _option(
        None, _word("onnxruntime", "litert"), "by default what is installed"
    )
    provider: str | None = _option(
        None,
        _word("auto", "cpu", "cuda", "tensorrt"),
        "where onnxruntime computes; by default the best there is",
    )
    threads: int | str | None = _option(
        None,
        Rule("a whole number from 1, or auto", _threads),
        "threads of the draft, or auto to measure; by default the draft's hint, or 1",
    )


@dataclass(frozen=True)
class Measure(Options):
    """What is measured and remembered."""

    title: ClassVar[str] = "measuring"

    energy: str = _option(
        "auto",
        _TEXT,
        "auto, off, a source of `draftwire energy sources`, or "
        "model:draft=6,wait=3,... in watts",
    )
    capture: bool = _option(
        False, _FLAG, "count the bytes on the wire instead of computing them (root)"
    )
    radio: str = _option(
        "off",
        _TEXT,
        "put the radio's signal into the run reports: mmcli, iw:NAME, or off",
    )
    suffix_cache: str = _option(
        "off",
        _TEXT,
        "draft what was written before, at no cost: off, memory (within this session), "
        "or a file, which then holds your text",
    )


@dataclass(frozen=True)
class Sampling(Options):
    """How tokens are drawn."""

    title: ClassVar[str] = "sampling"

    scheme: str | None = _option(
        None, _TEXT, "greedy, or coupled (the default above temperature 0), ..."
    )
    temperature: float = _option(0.0, _number(0, 100), "0 takes the likeliest token")
    top_k: int = _option(
        0, _whole(0, 2**32 - 1), "sample among the k likeliest tokens; 0: all"
    )
    top_p: float = _option(
        1.0, _number(0, 1, above=True), "sample within this probability mass"
    )
    seed: int | None = _option(
        None, _whole(0, 2**64 - 1), "of the sampling noise; by default a new one each time"
    )


@dataclass(frozen=True)
class Limits(Options):
    """When a stream ends, and what it bears."""

    title: ClassVar[str] = "the end of the text"

    max_new_tokens: int = _option(128, _whole(1, MAX_TOKENS), "at most so many tokens")
    stop: tuple[str, ...] = _option((), _texts(16, 256), "end before this text")
    deadline_s: float | None = _option(
        None,
        _number(0, MAX_SECONDS, above=True),
        "end after so many seconds with what is there",
    )
    offline: str | None = _option(
        None,
        _word("wait", "draft", "error"),
        "while the link is lost: wait for it, go on with the draft alone (guesses are "
        "marked and put right later), or fail at once; by default as the session, or wait",
    )
    patience_s: float = _option(
        30.0,
        _number(0, MAX_SECONDS),
        "seconds without a verdict, link lost or not, after which that is an error",
    )


@dataclass(frozen=True)
class Pacing(Options):
    """How far to draft, and what to do while verdicts are out."""

    title: ClassVar[str] = "drafting"

    block: int | None = _option(
        None,
        _whole(1, 255),
        "tokens of a draft block; by default 4, and in a race as the controller auto says",
    )
    controller: str | None = _option(
        None,
        _TEXT,
        "auto (measures the link, the drafts and the board, and decides), auto:energy, "
        "auto:cost, fixed:K, flexspec, qsv, or off: the target alone",
    )
    objective: str = _option(
        "cost",
        _word("cost", "latency"),
        "cost: few forwards of the target; latency: the target decodes on and takes "
        "drafts in as they come",
    )
    pipeline: int = _option(1, _whole(1, 64), "blocks in flight, at most")
    preempt: str = _option(
        "guess",
        _PREEMPT,
        "what is drafted meanwhile: off, or any of guess (the next block), exits (what "
        "the target's early exits expect), outcomes (the likeliest other ones)",
    )
    cut: bool = _option(False, _FLAG, "send a half-drafted block once nothing is in flight")
    batch: int = _option(
        0, _whole(0, 255), "send pieces of so many tokens of a block; 0: whole blocks"
    )


@dataclass(frozen=True)
class Power(Options):
    """Budgets; they need a power source."""

    title: ClassVar[str] = "power"

    max_joules: float | None = _option(
        None,
        _number(0, 1e9, above=True),
        "end with what is there once this device has spent so much",
    )
    max_watts: float | None = _option(
        None,
        _number(0, 1e6, above=True),
        "draft no more than this mean power allows, over any ten seconds; with "
        "controller auto",
    )
    max_joules_per_token: float | None = _option(
        None, _number(0, 1e9, above=True), "likewise, for each token of text"
    )


STREAM_GROUPS: tuple[Type[Options], ...] = (Sampling, Limits, Pacing, Power)
GROUPS: tuple[Type[Options], ...] = (Connect, Draft, Measure, *STREAM_GROUPS)


def options_of(group: Type[Options]) -> Iterator[Option]:
    """Return the options of a group, in order."""
    for field in dataclasses.fields(group):
        meta = field.metadata
        yield Option(field.name, field.default, meta["rule"], meta["help"], meta["secret"])


def option_named(name: str) -> Option:
    """Return the option called ``name``.

    Raises:
        KeyError: There is none.
    """
    for group in GROUPS:
        for option in options_of(group):
            if option.name == name:
                return option
    raise KeyError(name)
