"""Every option of a session and of a stream: its type, range, default and help, once.

The signatures of :func:`draftwire.connect` and ``session.generate``, the settings of
files and environment, the flags of the command line, the requests of the service and the
reference in docs/options.md all come from these classes. A value is checked when an
object is made, and the sentence of the error is the same everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
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


def _option(default: Any, rule: Rule, *, secret: bool = False, common: bool = False) -> Any:
    meta = {"rule": rule, "secret": secret, "common": common}
    return dataclasses.field(default=default, metadata=meta)


_T = TypeVar("_T", bound="Options")
# Of ``Options.helps``: a name, two blanks, and words whose further lines stand deeper.
_HELP = re.compile(r"^    (\w+) {2,}(.*(?:\n {5,}\S.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """What the groups share: their values are checked when they are made."""

    title: ClassVar[str] = ""
    helps: ClassVar[str] = ""  # what each is for, a line each

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

    title = "draft and verifier"
    helps = """
    verifier    address of the verifier, ws://HOST:PORT or wss://...
    draft       draft package; by default the reference draft
    token_file  file with the verifier's bearer token
    """
    verifier: str | None = _option(None, rules.text("URL"), common=True)
    draft: Path | None = _option(
        None, dataclasses.replace(rules.FILE, wants="a folder", shown="DIR"), common=True
    )
    token_file: Path | None = _option(None, rules.FILE, common=True)


@dataclass(frozen=True)
class Connect(Options):
    """How to reach the verifier."""

    title = "the link"
    helps = """
    target     name or version of the target; by default its newest
    token      bearer token
    insecure   allow plain ws:// to another machine: token and text can be read on the way
    tls_ca     trust the certificates in this file
    tls_cert   certificate to show to the verifier (mutual TLS)
    tls_key    its key, if in a file of its own
    proxy      auto (the environment's), off, or the URL of an HTTP proxy
    timeout_s  seconds for connecting and greeting
    silence_s  seconds without a sign of life, while an answer is owed, after which the link
               counts as lost; by default derived from what answers take, 1 to 15
    """
    target: str = _option("", rules.NAME)
    token: str | None = _option(None, rules.TOKEN, secret=True)
    insecure: bool = _option(False, rules.FLAG)
    tls_ca: Path | None = _option(None, rules.FILE)
    tls_cert: Path | None = _option(None, rules.FILE)
    tls_key: Path | None = _option(None, rules.FILE)
    proxy: str = _option("auto", rules.text("URL|auto|off"))
    timeout_s: float = _option(10.0, rules.SECONDS)
    silence_s: float | None = _option(None, rules.SECONDS)


@dataclass(frozen=True)
class Draft(Options):
    """How the draft model runs."""

    title = "the draft model"
    helps = """
    precision  which of the draft's models to run, e.g. int8; by default its choice
    engine     by default what is installed
    provider   where onnxruntime computes; by default the best there is
    threads    threads of the draft, or auto to measure; by default the draft's hint, or 1
    """
    precision: str | None = _option(None, rules.NAME)
    engine: str | None = _option(None, rules.word("onnxruntime", "litert"))
    provider: str | None = _option(None, rules.word("auto", "cpu", "cuda", "tensorrt"))
    threads: int | str | None = _option(None, rules.THREADS)


@dataclass(frozen=True)
class Measure(Options):
    """What is measured and remembered."""

    title = "measuring"
    helps = """
    energy        auto, off, a source of `draftwire energy sources`, or
                  model:draft=6,wait=3,... in watts
    capture       count the bytes on the wire instead of computing them (root)
    wire_log      note every message in this file, as JSON lines with token ids: `draftwire
                  report FILE`, `draftwire bench simulate --replay FILE`
    radio         put the radio's signal into the run reports: mmcli, iw:NAME, or off
    suffix_cache  draft what was written before, at no cost: off, memory (within this
                  session), or a file, which then holds your text
    """
    energy: str = _option("auto", rules.text("SOURCE"))
    capture: bool = _option(False, rules.FLAG)
    wire_log: Path | None = _option(None, rules.FILE)
    radio: str = _option("off", rules.text("mmcli|iw:NAME|off"))
    suffix_cache: str | Path = _option("off", rules.CACHE)


@dataclass(frozen=True)
class Sampling(Options):
    """How tokens are drawn."""

    title = "sampling"
    helps = """
    scheme              how drafts and verdicts are drawn; by default greedy at temperature
                        0, above it coupled: docs/sampling.md
    temperature         0 takes the likeliest token
    top_k               sample among the k likeliest tokens; 0: all
    top_p               sample within this probability mass
    min_p               then sample among tokens at least so likely against the likeliest;
                        0: all
    repetition_penalty  make tokens that came before, prompt included, less likely: divides
                        their logits (multiplies those below 0); 1: off
    presence_penalty    taken from the logits of tokens that the text holds
    frequency_penalty   taken from them for each time that the text holds them
    logit_bias          what is added to the logits of some token ids, -100 to 100
    bad_words           text whose tokens shall not come, alone or after a space; may be
                        repeated
    logprobs            the target's log-probability of each token, and of so many likeliest
                        ones: about 7 bytes down for each number
    seed                of the sampling noise; by default a new one each time
    sample              which of the texts that share a seed: each number has noise of its
                        own
    noise               how coupled draws its noise, each its own text for a seed: auto is
                        sparse from 32,768 tokens on where the verifier has it (a tenth of
                        the time), else philox; murmur3 is a stock server's own
    """
    scheme: str | None = _option(None, rules.SCHEME)
    temperature: float = _option(0.0, rules.number(0, 100), common=True)
    top_k: int = _option(0, rules.whole(0, 2**32 - 1))
    top_p: float = _option(1.0, rules.number(0, 1, above=True))
    min_p: float = _option(0.0, rules.number(0, 1))
    repetition_penalty: float = _option(1.0, rules.number(0, 100, above=True))
    presence_penalty: float = _option(0.0, rules.number(-2, 2))
    frequency_penalty: float = _option(0.0, rules.number(-2, 2))
    logit_bias: tuple[tuple[int, float], ...] = _option((), rules.BIASES)
    bad_words: tuple[str, ...] = _option((), rules.texts(64, 64))
    logprobs: int | None = _option(None, rules.whole(0, 20))
    seed: int | None = _option(None, rules.whole(0, 2**64 - 1), common=True)
    sample: int = _option(0, rules.whole(0, 2**32 - 1))
    noise: str = _option(
        "auto", rules.word("auto", "philox", "sparse", "murmur3/vllm", "murmur3/sglang")
    )


@dataclass(frozen=True)
class Limits(Options):
    """When a stream ends, and what it bears."""

    title = "the end of the text"
    helps = """
    max_new_tokens  at most so many tokens
    stop            end before this text; may be repeated
    ignore_eos      go on where the model ends its text: for measurements
    deadline_s      end after so many seconds with what is there
    offline         while the link is lost: wait for it, draft on alone (guesses are marked
                    and put right later), or fail at once; by default as the session, or
                    wait
    patience_s      seconds without a verdict, link lost or not, after which that is an
                    error
    """
    max_new_tokens: int = _option(128, rules.whole(1, MAX_TOKENS), common=True)
    stop: tuple[str, ...] = _option((), rules.texts(16, 256), common=True)
    ignore_eos: bool = _option(False, rules.FLAG)
    deadline_s: float | None = _option(
        None, rules.number(0, MAX_SECONDS, above=True, shown="SECONDS"), common=True
    )
    offline: str | None = _option(None, rules.word("wait", "draft", "error"), common=True)
    patience_s: float = _option(30.0, rules.number(0, MAX_SECONDS, shown="SECONDS"))


@dataclass(frozen=True)
class Structure(Options):
    """What the text must be: docs/structure.md."""

    title = "structure"
    helps = """
    schema   the text is JSON of this schema (object: any object)
    regex    the text matches this, as a whole
    choice   the text is this, or another choice; repeated
    grammar  the text is one of this grammar's (a file in llguidance's Lark)
    force    what leaves no choice is text at once: not drafted, not sent, not sampled
    """
    schema: str | None = _option(None, rules.JSON_SCHEMA, common=True)
    regex: str | None = _option(None, rules.TEXT)
    choice: tuple[str, ...] = _option((), rules.texts(1024, 4096))
    grammar: str | None = _option(None, rules.LARK)
    force: bool = _option(True, rules.FLAG)


@dataclass(frozen=True)
class Pacing(Options):
    """How far to draft, and what to do while verdicts are out."""

    title = "drafting"
    helps = """
    block                   tokens of a draft block; by default as the controller auto says,
                            and 4 with the objective cost
    controller              auto (measures the link, the drafts and the board, and decides),
                            auto:energy, auto:cost, fixed:K, flexspec, pipesd, qsv, ucb, or
                            off: the target alone
    objective               auto: the fastest as measured; cost: few forwards, the default
                            on one machine; latency: a race
    max_forwards_per_token  what the objective auto may ask of the target: 1 is what it
                            takes alone
    pipeline                blocks in flight, at most
    preempt                 what is drafted meanwhile: off, or any of guess (the next
                            block), exits (what the target's early exits expect), outcomes
                            (the likeliest other ones); by default all, and guess with
                            the objective cost
    cut                     send a half-drafted block once nothing is in flight
    batch                   send pieces of so many tokens of a block; 0: whole blocks
    qs                      what scheme qs sends of a distribution: support=64 tokens at
                            most, budget=0.05 of its mass to drop, tolerance=0.05 of it to
                            move by rounding, or a fixed resolution
    """
    block: int | None = _option(None, rules.whole(1, 255))
    controller: str | None = _option(None, rules.CONTROLLER)
    objective: str | None = _option(
        None, rules.word("auto", "cost", "latency"), common=True
    )
    max_forwards_per_token: float = _option(1.0, rules.number(0, 1, above=True))
    pipeline: int = _option(1, rules.whole(1, 64))
    preempt: str | None = _option(None, rules.PREEMPT)
    cut: bool = _option(False, rules.FLAG)
    batch: int = _option(0, rules.whole(0, 255))
    qs: str = _option("", rules.QS)


@dataclass(frozen=True)
class Power(Options):
    """Budgets; they need a power source."""

    title = "power"
    helps = """
    max_joules            end with what is there once this device has spent so much
    max_watts             draft no more than this mean power allows, over any ten seconds;
                          with controller auto
    max_joules_per_token  likewise, for each token of text
    """
    max_joules: float | None = _option(None, rules.number(0, 1e9, above=True, shown="J"))
    max_watts: float | None = _option(None, rules.number(0, 1e6, above=True, shown="W"))
    max_joules_per_token: float | None = _option(
        None, rules.number(0, 1e9, above=True, shown="J")
    )


@dataclass(frozen=True)
class Doors(Options):
    """Where `draftwire service run` serves: of that command alone."""

    title = "the service"
    helps = """
    http             serve OpenAI's clients at this address too; unix:PATH names the local
                     socket
    http_token_file  file with the token that clients of --http must have
    http_cert        certificate of --http: clients come by https
    http_key         its key, if in a file of its own
    http_origin      web page that may ask, e.g. https://panel.local; may be repeated
    """
    http: str | None = _option(None, rules.text("HOST:PORT|unix:PATH"))
    http_token_file: Path | None = _option(None, rules.FILE)
    http_cert: Path | None = _option(None, rules.FILE)
    http_key: Path | None = _option(None, rules.FILE)
    http_origin: tuple[str, ...] = _option((), rules.texts(16, 256))


CONNECT_GROUPS: tuple[type[Options], ...] = (Connect, Draft, Measure)
STREAM_GROUPS: tuple[type[Options], ...] = (Sampling, Limits, Structure, Pacing, Power)
GROUPS: tuple[type[Options], ...] = (Peers, *CONNECT_GROUPS, *STREAM_GROUPS)


@functools.lru_cache(maxsize=None)
def _options(group: type[Options]) -> tuple[Option, ...]:
    helps = {name: " ".join(text.split()) for name, text in _HELP.findall(group.helps)}
    return tuple(
        Option(f.name, f.default, **{"help": helps.get(f.name), **f.metadata})
        for f in dataclasses.fields(group)
    )


def options_of(*groups: type[Options]) -> Iterator[Option]:
    """Return the options of these groups, in order."""
    for group in groups:
        yield from _options(group)  # type: ignore[arg-type]


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
