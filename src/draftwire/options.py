"""Every option of a session and of a stream: its type, range, default and help, once.

The signatures of :func:`draftwire.connect` and ``session.generate``, the settings of
files and environment, the flags of the command line, the requests of the service and the
reference in docs/options.md all come from these classes. A value is checked when an
object is made, and the sentence of the error is the same everywhere.
"""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Iterator, Mapping, TypeVar

from draftwire import rules
from draftwire.errors import ConfigError
from draftwire.rules import Rule

MAX_TOKENS = 1 << 24
MAX_SECONDS = 86_400.0


@dataclass(frozen=True)
class Option:
    """One option, as tables, flags and documents see it."""

    name: str  # of the argument; also the key in a file
    default: Any  # its only default
    rule: Rule  # what it takes
    help: str  # one line
    secret: bool = False  # its value is never shown, and it has no flag: others see those
    common: bool = False  # help names it among the first

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
        """Return ``value`` checked; a ConfigError, with its name or ``where``, where it
        will not do.
        """
        try:
            return self.rule.read(value)
        except (ValueError, TypeError, OverflowError):
            shown = "(not shown)" if self.secret else f"{value!r}"[:80]
            raise ConfigError(
                f"{where or self.name} is {shown}", hint=f"it must be {self.rule.wants}"
            ) from None

    def parse(self, given: object, where: str = "") -> Any:
        """Return what a flag or a variable stands for; otherwise as :meth:`read`."""
        try:
            found = self.rule.convert(given) if isinstance(given, str) else given
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(
                f"{where or self.name}: {given} cannot be read: {why}",
                hint=f"it must be {self.rule.wants}",
            ) from None
        return self.read(found, where)


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
        dataclasses.replace(rules.TEXT, shown="URL"),
        "address of the verifier, ws://HOST:PORT or wss://...",
        common=True,
    )
    draft: Path | None = _option(
        None,
        dataclasses.replace(rules.FILE, wants="a folder", shown="DIR"),
        "draft package; by default the reference draft",
        common=True,
    )
    token_file: Path | None = _option(
        None, rules.FILE, "file with the verifier's bearer token", common=True
    )


@dataclass(frozen=True)
class Connect(Options):
    """How to reach the verifier."""

    title: ClassVar[str] = "the link"

    target: str = _option(
        "", rules.NAME, "name or version of the target; by default its newest"
    )
    token: str | None = _option(None, rules.TOKEN, "bearer token", secret=True)
    insecure: bool = _option(
        False,
        rules.FLAG,
        "allow plain ws:// to another machine: token and text can be read on the way",
    )
    tls_ca: Path | None = _option(None, rules.FILE, "trust the certificates in this file")
    tls_cert: Path | None = _option(
        None, rules.FILE, "certificate to show to the verifier (mutual TLS)"
    )
    tls_key: Path | None = _option(None, rules.FILE, "its key, if in a file of its own")
    proxy: str = _option(
        "auto",
        dataclasses.replace(rules.TEXT, shown="URL|auto|off"),
        "auto (the environment's), off, or the URL of an HTTP proxy",
    )
    timeout_s: float = _option(10.0, rules.SECONDS, "seconds for connecting and greeting")
    silence_s: float | None = _option(
        None,
        rules.SECONDS,
        "seconds without a sign of life, while an answer is owed, after which the link "
        "counts as lost; by default derived from what answers take, 1 to 15",
    )


@dataclass(frozen=True)
class Draft(Options):
    """How the draft model runs."""

    title: ClassVar[str] = "the draft model"

    precision: str | None = _option(
        None,
        rules.NAME,
        "which of the draft's models to run, e.g. int8; by default its choice",
    )
    engine: str | None = _option(
        None, rules.word("onnxruntime", "litert"), "by default what is installed"
    )
    provider: str | None = _option(
        None,
        rules.word("auto", "cpu", "cuda", "tensorrt"),
        "where onnxruntime computes; by default the best there is",
    )
    threads: int | str | None = _option(
        None,
        rules.THREADS,
        "threads of the draft, or auto to measure; by default the draft's hint, or 1",
    )


@dataclass(frozen=True)
class Measure(Options):
    """What is measured and remembered."""

    title: ClassVar[str] = "measuring"

    energy: str = _option(
        "auto",
        dataclasses.replace(rules.TEXT, shown="SOURCE"),
        "auto, off, a source of `draftwire energy sources`, or "
        "model:draft=6,wait=3,... in watts",
    )
    capture: bool = _option(
        False, rules.FLAG, "count the bytes on the wire instead of computing them (root)"
    )
    wire_log: Path | None = _option(
        None,
        rules.FILE,
        "note every message in this file, as JSON lines with token ids: "
        "`draftwire report FILE`, `draftwire bench simulate --replay FILE`",
    )
    radio: str = _option(
        "off",
        dataclasses.replace(rules.TEXT, shown="mmcli|iw:NAME|off"),
        "put the radio's signal into the run reports: mmcli, iw:NAME, or off",
    )
    suffix_cache: str | Path = _option(
        "off",
        rules.CACHE,
        "draft what was written before, at no cost: off, memory (within this session), "
        "or a file, which then holds your text",
    )


@dataclass(frozen=True)
class Sampling(Options):
    """How tokens are drawn."""

    title: ClassVar[str] = "sampling"

    scheme: str | None = _option(
        None,
        rules.SCHEME,
        "how drafts and verdicts are drawn; by default greedy at temperature 0, above it "
        "coupled: docs/sampling.md",
    )
    temperature: float = _option(
        0.0, rules.number(0, 100), "0 takes the likeliest token", common=True
    )
    top_k: int = _option(
        0, rules.whole(0, 2**32 - 1), "sample among the k likeliest tokens; 0: all"
    )
    top_p: float = _option(
        1.0, rules.number(0, 1, above=True), "sample within this probability mass"
    )
    min_p: float = _option(
        0.0,
        rules.number(0, 1),
        "then sample among tokens at least so likely against the likeliest; 0: all",
    )
    repetition_penalty: float = _option(
        1.0,
        rules.number(0, 100, above=True),
        "make tokens that came before, prompt included, less likely: divides their logits "
        "(multiplies those below 0); 1: off",
    )
    presence_penalty: float = _option(
        0.0, rules.number(-2, 2), "taken from the logits of tokens that the text holds"
    )
    frequency_penalty: float = _option(
        0.0, rules.number(-2, 2), "taken from them for each time that the text holds them"
    )
    logit_bias: tuple[tuple[int, float], ...] = _option(
        (), rules.BIASES, "what is added to the logits of some token ids, -100 to 100"
    )
    bad_words: tuple[str, ...] = _option(
        (),
        rules.texts(64, 64),
        "text whose tokens shall not come, alone or after a space; may be repeated",
    )
    logprobs: int | None = _option(
        None,
        rules.whole(0, 20),
        "the target's log-probability of each token, and of so many likeliest ones: about "
        "7 bytes down for each number",
    )
    seed: int | None = _option(
        None,
        rules.whole(0, 2**64 - 1),
        "of the sampling noise; by default a new one each time",
        common=True,
    )
    sample: int = _option(
        0,
        rules.whole(0, 2**32 - 1),
        "which of the texts that share a seed: each number has noise of its own",
    )
    noise: str = _option(
        "auto",
        rules.word("auto", "philox", "sparse", "murmur3/vllm", "murmur3/sglang"),
        "how coupled draws its noise, each its own text for a seed: auto is sparse from "
        "32,768 tokens on where the verifier has it (a tenth of the time), else philox; "
        "murmur3 is a stock server's own",
    )


@dataclass(frozen=True)
class Limits(Options):
    """When a stream ends, and what it bears."""

    title: ClassVar[str] = "the end of the text"

    max_new_tokens: int = _option(
        128, rules.whole(1, MAX_TOKENS), "at most so many tokens", common=True
    )
    stop: tuple[str, ...] = _option(
        (), rules.texts(16, 256), "end before this text; may be repeated", common=True
    )
    ignore_eos: bool = _option(
        False, rules.FLAG, "go on where the model ends its text: for measurements"
    )
    deadline_s: float | None = _option(
        None,
        rules.number(0, MAX_SECONDS, above=True, shown="SECONDS"),
        "end after so many seconds with what is there",
        common=True,
    )
    offline: str | None = _option(
        None,
        rules.word("wait", "draft", "error"),
        "while the link is lost: wait for it, draft on alone (guesses are marked and put "
        "right later), or fail at once; by default as the session, or wait",
        common=True,
    )
    patience_s: float = _option(
        30.0,
        rules.number(0, MAX_SECONDS, shown="SECONDS"),
        "seconds without a verdict, link lost or not, after which that is an error",
    )


@dataclass(frozen=True)
class Structure(Options):
    """What the text must be: docs/structure.md."""

    title: ClassVar[str] = "structure"

    schema: str | None = _option(
        None,
        rules.JSON_SCHEMA,
        "the text is JSON of this schema (object: any object)",
        common=True,
    )
    regex: str | None = _option(None, rules.TEXT, "the text matches this, as a whole")
    choice: tuple[str, ...] = _option(
        (), rules.texts(1024, 4096), "the text is this, or another choice; repeated"
    )
    grammar: str | None = _option(
        None, rules.LARK, "the text is one of this grammar's (a file in llguidance's Lark)"
    )
    force: bool = _option(
        True,
        rules.FLAG,
        "what leaves no choice is text at once: not drafted, not sent, not sampled",
    )


@dataclass(frozen=True)
class Pacing(Options):
    """How far to draft, and what to do while verdicts are out."""

    title: ClassVar[str] = "drafting"

    block: int | None = _option(
        None,
        rules.whole(1, 255),
        "tokens of a draft block; by default 4, and in a race as the controller auto says",
    )
    controller: str | None = _option(
        None,
        rules.CONTROLLER,
        "auto (measures the link, the drafts and the board, and decides), auto:energy, "
        "auto:cost, fixed:K, flexspec, pipesd, qsv, ucb, or off: the target alone",
    )
    objective: str = _option(
        "cost",
        rules.word("auto", "cost", "latency"),
        "cost: few forwards of the target; auto: the fastest as measured; latency: a race",
        common=True,
    )
    max_forwards_per_token: float = _option(
        1.0,
        rules.number(0, 1, above=True),
        "what the objective auto may ask of the target: 1 is what it takes alone",
    )
    pipeline: int = _option(1, rules.whole(1, 64), "blocks in flight, at most")
    preempt: str = _option(
        "guess",
        rules.PREEMPT,
        "what is drafted meanwhile: off, or any of guess (the next block), exits (what "
        "the target's early exits expect), outcomes (the likeliest other ones)",
    )
    cut: bool = _option(
        False, rules.FLAG, "send a half-drafted block once nothing is in flight"
    )
    batch: int = _option(
        0, rules.whole(0, 255), "send pieces of so many tokens of a block; 0: whole blocks"
    )
    qs: str = _option(
        "",
        rules.QS,
        "what scheme qs sends of a distribution: support=64 tokens at most, budget=0.05 of "
        "its mass to drop, tolerance=0.05 of it to move by rounding, or a fixed resolution",
    )


@dataclass(frozen=True)
class Power(Options):
    """Budgets; they need a power source."""

    title: ClassVar[str] = "power"

    max_joules: float | None = _option(
        None,
        rules.number(0, 1e9, above=True, shown="J"),
        "end with what is there once this device has spent so much",
    )
    max_watts: float | None = _option(
        None,
        rules.number(0, 1e6, above=True, shown="W"),
        "draft no more than this mean power allows, over any ten seconds; with "
        "controller auto",
    )
    max_joules_per_token: float | None = _option(
        None,
        rules.number(0, 1e9, above=True, shown="J"),
        "likewise, for each token of text",
    )


@dataclass(frozen=True)
class Doors(Options):
    """Where `draftwire service run` serves: of that command alone."""

    title: ClassVar[str] = "the service"

    http: str | None = _option(
        None,
        dataclasses.replace(rules.TEXT, shown="HOST:PORT|unix:PATH"),
        "serve OpenAI's clients at this address too; unix:PATH names the local socket",
    )
    http_token_file: Path | None = _option(
        None, rules.FILE, "file with the token that clients of --http must have"
    )
    http_cert: Path | None = _option(
        None, rules.FILE, "certificate of --http: clients come by https"
    )
    http_key: Path | None = _option(None, rules.FILE, "its key, if in a file of its own")
    http_origin: tuple[str, ...] = _option(
        (),
        rules.texts(16, 256),
        "web page that may ask, e.g. https://panel.local; may be repeated",
    )


CONNECT_GROUPS: tuple[type[Options], ...] = (Connect, Draft, Measure)
STREAM_GROUPS: tuple[type[Options], ...] = (Sampling, Limits, Structure, Pacing, Power)
GROUPS: tuple[type[Options], ...] = (Peers, *CONNECT_GROUPS, *STREAM_GROUPS)


def options_of(*groups: type[Options]) -> Iterator[Option]:
    """Return the options of these groups, in order."""
    for group in groups:
        for field in dataclasses.fields(group):
            yield Option(field.name, field.default, **field.metadata)


OPTIONS: dict[str, Option] = {o.name: o for o in options_of(*GROUPS, Doors)}


def check_prompt(prompt: object) -> str | list[int]:
    """Return a prompt as text or as a list of ids (ConfigError: it is empty, or neither of
    them)."""
    if isinstance(prompt, str):
        if not rules.is_text(prompt):
            hint = "is it in another encoding than UTF-8?"
            raise ConfigError("the prompt is not Unicode text", hint=hint)
        found: str | list[int] = prompt
    else:
        try:
            if isinstance(prompt, (bytes, bytearray, Mapping, set, frozenset)):
                raise TypeError
            tokens = list(prompt)  # type: ignore[call-overload]
            if bool in map(type, tokens):
                raise TypeError
            found = [operator.index(token) for token in tokens]
        except TypeError:
            what = "the prompt is neither text nor a list of token ids"
            raise ConfigError(what, hint="bytes are decoded first") from None
    if not found:
        raise ConfigError("the prompt is empty", hint="give it a word to go on from")
    return found
