"""What a caller asks of a stream, against what draft and verifier can do."""

from __future__ import annotations

import inspect
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence, TypedDict, TypeVar

from draftwire.errors import ConfigError, IncompatibleError
from draftwire.options import (
    STREAM_GROUPS,
    Pacing,
    Power,
    Sampling,
    Structure,
    check_prompt,
    options_of,
)
from draftwire.packages import DraftPackage
from draftwire.runtime.driver import named
from draftwire.runtime.edge.mode import PREEMPT, Mode
from draftwire.runtime.pacing.controller import Controller, FixedLength, make_controller
from draftwire.sampling import SamplingParams, card_of, check_race, make_proposer, shape_for
from draftwire.sampling.grammar import Compiled, Grammar, Rules
from draftwire.sampling.grammar.engine import OPTION_OF, missing, vocabulary
from draftwire.transport.messages import Welcome

if TYPE_CHECKING:
    from draftwire.tokenizer import Tokenizer


class StreamOptions(TypedDict, total=False):
    """The options of ``generate``, where they are passed on: docs/options.md."""

    max_new_tokens: int
    scheme: str | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]]
    bad_words: Sequence[str]
    logprobs: int | None
    seed: int | None
    sample: int
    noise: str
    stop: Sequence[str]
    ignore_eos: bool
    schema: Mapping[str, Any] | bool | str | None
    regex: str | None
    choice: Sequence[str]
    grammar: str | None
    force: bool
    block: int | None
    controller: str | Controller | None
    objective: str | None
    max_forwards_per_token: float
    pipeline: int
    preempt: str | None
    cut: bool
    batch: int
    qs: str
    deadline_s: float | None
    offline: str | None
    patience_s: float
    max_joules: float | None
    max_watts: float | None
    max_joules_per_token: float | None
    explain: Callable[[str], None] | None


_T = TypeVar("_T")
_ALIKE = (
    *("temperature", "top_k", "top_p", "min_p", "sample", "logit_bias"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_LARGE = 32768  # tokens of a vocabulary from which computing all noise is felt
_DEFAULTS = {option.name: option.default for option in options_of(*STREAM_GROUPS)}
_DEFAULTS["explain"] = None


def with_defaults(options: Mapping[str, Any], function: str) -> dict[str, Any]:
    """Return the options that ``function`` got, and those not given by default; a TypeError
    where there is no such option, as of any function's arguments."""
    for name in options:
        if name not in _DEFAULTS:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return {**_DEFAULTS, **options}


def generate_signature() -> inspect.Signature:
    """Return the signature of ``generate``, whose options are :class:`StreamOptions`."""
    known, keyword = inspect.Parameter, inspect.Parameter.KEYWORD_ONLY
    place = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = [known("self", place), known("prompt", place, annotation="str | Sequence[int]")]
    options = [
        known(name, keyword, default=_DEFAULTS[name], annotation=said.__forward_arg__)
        for name, said in StreamOptions.__annotations__.items()
    ]
    return inspect.Signature([*first, *options], return_annotation="_S")


def params_of(
    options: Sampling, welcome: Welcome, mode: Mode, encode: Callable[[str], Sequence[int]]
) -> SamplingParams:
    """Return the sampling of a stream; ``encode`` returns the ids of a text. A ConfigError
    where the verifier does not know the scheme, or it cannot be used so."""
    seed = secrets.randbits(32) if options.seed is None else options.seed
    forms = [form for word in options.bad_words for form in (word, " " + word.lstrip(" "))]
    read = guarded(lambda: [tuple(encode(form)) for form in forms])
    words = dict.fromkeys(read)
    if options.noise == "auto":
        met = bool(welcome.agent)  # what was never met may not have it
        large = met and welcome.vocab_size >= _LARGE and "sparse" in welcome.noise
        options = replace(options, noise="sparse" if large else "philox")
    params = _params(options, seed, tuple(word for word in words if word))
    if params.processed and "processors" not in welcome.capabilities:
        raise ConfigError(
            "the verifier does not know min_p, penalties, logit_bias and bad_words",
            hint="leave them out, or use a verifier with the capability 'processors'",
        )
    shape_for(params, welcome.vocab_size, 0)  # knows what is wrong with them
    if options.logprobs is not None and "logprobs" not in welcome.capabilities:
        raise ConfigError(
            "the verifier gives no log-probabilities",
            hint="update it; an engine that decides by itself has none",
        )
    if options.logprobs is not None and card_of(params.scheme).own_corrections:
        raise ConfigError(
            f"scheme {params.scheme!r} has no log-probabilities: this side draws what "
            "follows a rejection",
            hint="use --scheme coupled",
        )
    if params.scheme not in welcome.schemes:
        raise ConfigError(
            f"the verifier does not know the sampling scheme {params.scheme!r}",
            hint="it knows " + ", ".join(welcome.schemes),
        )
    if params.scheme == "coupled" and params.noise not in welcome.noise:
        raise ConfigError(
            f"the verifier draws no noise {params.noise!r}: its engine has its own",
            hint="--noise " + " or ".join(welcome.noise),
        )
    if mode.racing:
        check_race(params.scheme)
    return params


def _params(
    options: Sampling, seed: int, bad_words: tuple[tuple[int, ...], ...] = ()
) -> SamplingParams:
    return SamplingParams(
        options.scheme or ("greedy" if options.temperature == 0 else "coupled"),
        seed=seed,
        noise="philox" if options.noise == "auto" else options.noise,
        bad_words=bad_words,
        **{name: getattr(options, name) for name in _ALIKE},
    )


def check_stream(sampling: Sampling, pacing: Pacing, power: Power) -> None:
    """See that options go together, as far as that can be known without a verifier; a
    ConfigError where they do not."""
    make_proposer(_params(sampling, sampling.seed or 0), 2)
    mode_of(pacing)
    words = str(controller_for(pacing))
    limits = power.max_watts, power.max_joules_per_token
    make_controller(words, max_watts=limits[0], max_joules_per_token=limits[1])


def mode_of(options: Pacing) -> Mode:
    """Return how a stream hides the network; a ConfigError where that makes no sense."""
    usual = "guess" if options.objective == "cost" else ",".join(PREEMPT)
    return Mode.of(
        options.objective or "auto",
        options.pipeline,
        options.preempt or usual,
        options.cut,
        options.batch,
        options.max_forwards_per_token,
    )


def controller_for(
    options: Pacing, controller: Controller | None = None
) -> str | Controller:
    """Return the policy to use: the one given, blocks of a fixed length, or ``auto``."""
    if controller is not None:
        if not isinstance(controller, Controller):
            raise ConfigError(
                f"controller is {controller!r}"[:92],
                hint="it must be a word such as auto or fixed:4, or a Controller",
            )
        return controller
    words = options.controller
    if words == "auto" and options.objective == "cost" and options.block is None:
        return "auto:cost"  # what the user wants is said once, and holds for both
    if words is not None:
        return words
    if options.block is None and options.objective != "cost":
        return "auto"  # it knows when a draft is not worth it
    return f"fixed:{4 if options.block is None else options.block}"


def insight(controller: Controller, mode: Mode) -> bool:
    """Return whether somebody looks at how sure the draft is of each token."""
    return not isinstance(controller.rule, FixedLength) or "outcomes" in mode.preempt


def encode_prompt(
    prompt: object, tokenizer: Tokenizer, bos_id: int | None, welcome: Welcome
) -> list[int]:
    """Return the ids of a prompt; ``bos_id``, unless None, goes in front of a text alone. A
    ConfigError where it is empty, too long for the target, no text, or holds an unknown id.
    """
    ids = check_prompt(prompt)
    if isinstance(ids, str):
        text = ids
        ids = guarded(lambda: tokenizer.encode(text, bos_id=bos_id))
    if not ids:
        hint = "give it a word to go on from"
        raise ConfigError("the prompt is empty", hint=hint, about="prompt")
    if min(ids) < 0 or max(ids) >= welcome.vocab_size:
        what = f"the prompt holds a token id outside 0..{welcome.vocab_size - 1}"
        hint = "were they made with another tokenizer?"
        raise ConfigError(what, hint=hint, about="prompt")
    if len(ids) >= welcome.context:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, but the target holds {welcome.context} "
            "together "
            "with the answer",
            hint="shorten the prompt",
            about="prompt",
        )
    return ids


def guarded(what: Callable[[], _T]) -> _T:
    """Return ``what()`` of the tokenizer; whatever it raises (a panic of a Rust library is
    no Exception) becomes a DraftwireError that names it."""
    try:
        return what()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise named(error, "the tokenizer") from error


_KEPT = 16  # grammars of one session, compiled


def grammar_of(options: Structure) -> Grammar | None:
    """Return the grammar that ``options`` ask for, or None; a ConfigError where they ask
    for several, or for none that can be."""
    given = [
        name for name in ("schema", "regex", "choice", "grammar") if getattr(options, name)
    ]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} are given, a text keeps to one of them",
            hint="put them together in one schema",
        )
    if options.schema:
        return Grammar.of_schema(options.schema)
    if options.choice:
        return Grammar.of_choices(options.choice)
    if options.regex:
        return Grammar("regex", options.regex)
    return Grammar("lark", options.grammar) if options.grammar else None


class Structures:
    """Makes the grammars of one session for the tokenizer of its draft, each once."""

    def __init__(self, package: DraftPackage) -> None:
        self._package = package
        self._kept: dict[bytes, Compiled] = {}

    def rules(
        self,
        options: Structure,
        welcome: Welcome,
        params: SamplingParams,
        stop_ids: Sequence[int],
    ) -> Rules | None:
        """Return what a stream keeps to, or None; a ConfigError where it cannot be used, or
        an IncompatibleError where the verifier does not know grammars."""
        grammar = grammar_of(options)
        if grammar is None:
            return None
        if (why := missing()) is not None:
            why.about = OPTION_OF.get(grammar.format, "regex")
            raise why
        if "grammar" not in welcome.capabilities:
            raise IncompatibleError(
                "the verifier takes no grammars",
                hint="leave the grammar out, or serve with llguidance installed (pip "
                "install 'draftwire[grammar]') and a backend that gives logits: an engine "
                "that decides by itself takes none",
            )
        if params.bad_words:
            raise ConfigError(
                "bad_words and a grammar do not go together: what one demands the other "
                "may forbid",
                hint="leave one of them out",
                about="bad_words",
            )
        compiled = self._kept.pop(grammar.digest, None)
        if compiled is None:
            package = self._package
            words = vocabulary(package.tokenizer_path, package.family.tokenizer)
            compiled = words.compile(grammar)
            compiled.mark  # noqa: B018  (once, here: the driver's thread shall not wait)
        self._kept[grammar.digest] = compiled  # the one used last stands last
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return Rules(compiled, welcome.vocab_size, tuple(stop_ids), options.force)
