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
import re
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Callable,
    ClassVar,
    Iterator,
    Mapping,
    Sequence,
    TypeVar,
)

from draftwire.errors import ConfigError

__all__ = [
    "CONNECT_GROUPS",
    "GROUPS",
    "OPTIONS",
    "STREAM_GROUPS",
    "Connect",
    "Draft",
    "Limits",
    "Measure",
    "Option",
    "Options",
    "Pacing",
    "Peers",
    "Power",
    "Rule",
    "Sampling",
    "check_prompt",
    "options_of",
]

MAX_TOKENS = 1 << 24
MAX_SECONDS = 86_400.0
_LONGEST = 4096  # characters of a word or a name


@dataclass(frozen=True)
class Rule:
    """What values an option takes.

    Attributes:
        wants: In words, behind "it must be".
        kind: ``int``, ``float``, ``bool``, ``str``, ``Path``, ``tuple`` (of texts), or
            what turns a value into the right kind, or raises ValueError.
        fits: Whether a value of that kind is one.
        shown: What stands for it in a command's help.
    """

    wants: str
    kind: Callable[[Any], Any]
    fits: Callable[[Any], bool] = lambda value: True
    shown: str = "TEXT"

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
            found, right = value, isinstance(value, str) and _is_text(value)
        else:
            found, right = kind(value), True
        if not (right and self.fits(found)):
            raise ValueError(self.wants)
        return found

    def convert(self, text: str) -> Any:
        """Return what ``text`` of a flag or of the environment stands for, unchecked."""
        kind: Any = self.kind
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


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")  # lone surrogates are no text
    except UnicodeEncodeError:
        return False
    return True


def _whole(low: int, high: int) -> Rule:
    fits = lambda value: low <= value <= high  # noqa: E731
    return Rule(f"a whole number, {low} to {high}", int, fits, "N")


def _number(low: float, high: float, *, above: bool = False, shown: str = "X") -> Rule:
    words = f"a number, {'above ' if above else ''}{low:g} to {high:g}"
    fits = lambda v: low <= v <= high and not (above and v == low)  # noqa: E731
    return Rule(words, float, fits, shown)


def _word(*choices: str) -> Rule:
    words = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    return Rule(words, str, lambda value: value in choices, "|".join(choices))


_TEXT = Rule(f"text of at most {_LONGEST} characters", str, lambda v: len(v) <= _LONGEST)
_NAME = dataclasses.replace(_TEXT, shown="NAME")
_SCHEME = Rule(
    "the name of a scheme of `draftwire sampling table`",
    str,
    lambda value: re.fullmatch(r"[a-z0-9+-]{1,64}", value) is not None,
    "NAME",
)
_FLAG = Rule("true or false", bool)
_FILE = Rule("a file", Path, shown="FILE")
_TOKEN = Rule(
    "one word of visible ASCII characters",
    str,
    lambda value: re.fullmatch(r"[!-~]{1,4096}", value) is not None,
)


def _threads(value: object) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value):
        return _CORES.read(int(value))  # type: ignore[no-any-return]
    return _CORES.read(value)  # type: ignore[no-any-return]


_CORES = _whole(1, 4096)
_SECONDS = _number(0, 3600, above=True, shown="SECONDS")


def _cache(value: object) -> str | Path:
    """A word, or a file: one that a file of settings names lies beside it."""
    if value in ("off", "memory"):
        return str(value)
    if not value:
        raise ValueError
    return _FILE.read(value)  # type: ignore[no-any-return]


def _texts(most: int, length: int) -> Rule:
    def fits(value: Sequence[str]) -> bool:
        return len(value) <= most and all(len(v) <= length and _is_text(v) for v in value)

    return Rule(f"at most {most} texts of 1 to {length} characters", tuple, fits)


def _preempt_fits(value: str) -> bool:
    words = {word.strip() for word in value.split(",")}
    return words <= {"guess", "exits", "outcomes"} or words == {"off"}


_PREEMPT = Rule(
    "off, or any of guess, exits, outcomes, joined by commas", str, _preempt_fits, "WORDS"
)


def _controller_fits(value: str) -> bool:
    found = re.fullmatch(
        "off|flexspec|qsv|auto(:latency|:cost|:energy)?|fixed:([0-9]{1,3})", value
    )
    return found is not None and (not found[2] or 1 <= int(found[2]) <= 255)


_CONTROLLER = Rule(
    "auto, auto:latency, auto:cost, auto:energy, fixed:K with K from 1 to 255, flexspec, "
    "qsv or off",
    str,
    _controller_fits,
    "SPEC",
)


@dataclass(frozen=True)
class Option:
    """One option, as tables, flags and documents see it.

    Attributes:
        name: Of the argument; also the key in a file.
        default: Its only default.
        rule: What it takes.
        help: One line.
        secret: Its value is never shown, and it has no flag: others see those.
        common: Help names it among the first.
    """

    name: str
    default: Any
    rule: Rule
    help: str
    secret: bool = False
    common: bool = False

    @property
    def flag(self) -> str:
        """Its flag on the command line: seconds lose their unit there."""
        name = self.name[:-2] if self.name.endswith("_s") else self.name
        return "--" + name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its variable in the environment."""
        return "DRAFTWIRE_" + self.name.upper()

    def read(self, value: object, where: str = "") -> Any:
        """Return ``value`` checked.

        Args:
            value: Given by a caller.
            where: Its name in the message; by default the option's.

        Raises:
            ConfigError: It is not one of this option's.
        """
        try:
            return self.rule.read(value)
        except (ValueError, TypeError, OverflowError):
            shown = "(not shown)" if self.secret else f"{value!r}"[:80]
            raise ConfigError(
                f"{where or self.name} is {shown}", hint=f"it must be {self.rule.wants}"
            ) from None

    def parse(self, text: str, where: str = "") -> Any:
        """Return the value that ``text`` stands for; otherwise as :meth:`read`."""
        return self.read(self.rule.convert(text), where)


def _option(
    default: Any, rule: Rule, help: str, *, secret: bool = False, common: bool = False
) -> Any:
    meta = {"rule": rule, "help": help, "secret": secret, "common": common}
    return dataclasses.field(default=default, metadata=meta)


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
    def pick(cls: type[_T], values: Mapping[str, Any]) -> _T:
        """Return the group with those of ``values`` that belong to it."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True)
class Peers(Options):
    """Who drafts and who verifies: what commands need, where programs pass arguments."""

    title: ClassVar[str] = "draft and verifier"

    verifier: str | None = _option(
        None,
        dataclasses.replace(_TEXT, shown="URL"),
        "address of the verifier, ws://HOST:PORT or wss://...",
        common=True,
    )
    draft: Path | None = _option(
        None,
        dataclasses.replace(_FILE, wants="a folder", shown="DIR"),
        "draft package; by default the reference draft",
        common=True,
    )
    token_file: Path | None = _option(
        None, _FILE, "file with the verifier's bearer token", common=True
    )


@dataclass(frozen=True)
class Connect(Options):
    """How to reach the verifier."""

    title: ClassVar[str] = "the link"

    target: str = _option(
        "", _NAME, "name or version of the target; by default its newest", common=True
    )
    token: str | None = _option(None, _TOKEN, "bearer token", secret=True)
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
        "auto",
        dataclasses.replace(_TEXT, shown="URL|auto|off"),
        "auto (the environment's), off, or the URL of an HTTP proxy",
    )
    timeout_s: float = _option(10.0, _SECONDS, "seconds for connecting and greeting")
    silence_s: float | None = _option(
        None,
        _SECONDS,
        "seconds without a sign of life, while an answer is owed, after which the link "
        "counts as lost; by default derived from what answers take, 1 to 15",
    )


@dataclass(frozen=True)
class Draft(Options):
    """How the draft model runs."""

    title: ClassVar[str] = "the draft model"

    precision: str | None = _option(
        None, _NAME, "which of the draft's models to run, e.g. int8; by default its choice"
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
        Rule("a whole number from 1, or auto", _threads, shown="N|auto"),
        "threads of the draft, or auto to measure; by default the draft's hint, or 1",
    )


@dataclass(frozen=True)
class Measure(Options):
    """What is measured and remembered."""

    title: ClassVar[str] = "measuring"

    energy: str = _option(
        "auto",
        dataclasses.replace(_TEXT, shown="SOURCE"),
        "auto, off, a source of `draftwire energy sources`, or "
        "model:draft=6,wait=3,... in watts",
    )
    capture: bool = _option(
        False, _FLAG, "count the bytes on the wire instead of computing them (root)"
    )
    radio: str = _option(
        "off",
        dataclasses.replace(_TEXT, shown="mmcli|iw:NAME|off"),
        "put the radio's signal into the run reports: mmcli, iw:NAME, or off",
    )
    suffix_cache: str | Path = _option(
        "off",
        Rule("off, memory or a file", _cache, shown="FILE|memory|off"),
        "draft what was written before, at no cost: off, memory (within this session), "
        "or a file, which then holds your text",
    )


@dataclass(frozen=True)
class Sampling(Options):
    """How tokens are drawn."""

    title: ClassVar[str] = "sampling"

    scheme: str | None = _option(
        None,
        _SCHEME,
        "how drafts and verdicts are drawn; by default greedy at temperature 0, above it "
        "coupled: docs/sampling.md",
    )
    temperature: float = _option(
        0.0, _number(0, 100), "0 takes the likeliest token", common=True
    )
    top_k: int = _option(
        0, _whole(0, 2**32 - 1), "sample among the k likeliest tokens; 0: all"
    )
    top_p: float = _option(
        1.0, _number(0, 1, above=True), "sample within this probability mass"
    )
    seed: int | None = _option(
        None,
        _whole(0, 2**64 - 1),
        "of the sampling noise; by default a new one each time",
        common=True,
    )


@dataclass(frozen=True)
class Limits(Options):
    """When a stream ends, and what it bears."""

    title: ClassVar[str] = "the end of the text"

    max_new_tokens: int = _option(
        128, _whole(1, MAX_TOKENS), "at most so many tokens", common=True
    )
    stop: tuple[str, ...] = _option(
        (), _texts(16, 256), "end before this text; may be repeated", common=True
    )
    deadline_s: float | None = _option(
        None,
        _number(0, MAX_SECONDS, above=True, shown="SECONDS"),
        "end after so many seconds with what is there",
        common=True,
    )
    offline: str | None = _option(
        None,
        _word("wait", "draft", "error"),
        "while the link is lost: wait for it, draft on alone (guesses are marked and put "
        "right later), or fail at once; by default as the session, or wait",
        common=True,
    )
    patience_s: float = _option(
        30.0,
        _number(0, MAX_SECONDS, shown="SECONDS"),
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
        _CONTROLLER,
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
        _number(0, 1e9, above=True, shown="J"),
        "end with what is there once this device has spent so much",
    )
    max_watts: float | None = _option(
        None,
        _number(0, 1e6, above=True, shown="W"),
        "draft no more than this mean power allows, over any ten seconds; with "
        "controller auto",
    )
    max_joules_per_token: float | None = _option(
        None, _number(0, 1e9, above=True, shown="J"), "likewise, for each token of text"
    )


CONNECT_GROUPS: tuple[type[Options], ...] = (Connect, Draft, Measure)
STREAM_GROUPS: tuple[type[Options], ...] = (Sampling, Limits, Pacing, Power)
GROUPS: tuple[type[Options], ...] = (Peers, *CONNECT_GROUPS, *STREAM_GROUPS)


def options_of(*groups: type[Options]) -> Iterator[Option]:
    """Return the options of these groups, in order."""
    for group in groups:
        for field in dataclasses.fields(group):
            yield Option(field.name, field.default, **field.metadata)


OPTIONS: dict[str, Option] = {option.name: option for option in options_of(*GROUPS)}


def check_prompt(prompt: object) -> str | list[int]:
    """Return a prompt as text or as a list of ids.

    Raises:
        ConfigError: It is empty, or neither of them.
    """
    if isinstance(prompt, str):
        if not _is_text(prompt):
            raise ConfigError(
                "the prompt is not Unicode text",
                hint="is it in another encoding than UTF-8?",
            )
        found: str | list[int] = prompt
    else:
        plain = isinstance(prompt, (bytes, bytearray, Mapping, set, frozenset))
        try:
            if plain:
                raise TypeError
            found = [_id_of(token) for token in prompt]  # type: ignore[attr-defined]
        except TypeError:
            raise ConfigError(
                "the prompt is neither text nor a list of token ids"
            ) from None
    if not found:
        raise ConfigError("the prompt is empty")
    return found


def _id_of(token: object) -> int:
    index = getattr(token, "__index__", None)
    if index is None or isinstance(token, bool):
        raise TypeError
    return int(index())
