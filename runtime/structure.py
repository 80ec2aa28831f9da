"""What a caller says a text must be, made into a grammar that both halves keep to."""

from __future__ import annotations

from collections import OrderedDict
from typing import Sequence

from draftwire.errors import ConfigError, IncompatibleError
from draftwire.options import Structure
from draftwire.packages import DraftPackage
from draftwire.sampling import SamplingParams
from draftwire.sampling.grammar import Compiled, Grammar, Rules
from draftwire.sampling.grammar.engine import OPTION_OF, missing, vocabulary
from draftwire.transport.messages import Welcome

__all__ = ["Structures", "grammar_of"]

_KEPT = 16  # grammars of one session, compiled


def grammar_of(options: Structure) -> Grammar | None:
    """Return the grammar that ``options`` ask for, or None.

    Raises:
        ConfigError: They ask for several, or for none that can be.
    """
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
    if options.regex or options.grammar:
        return Grammar("regex", options.regex) if options.regex else _lark(options)
    return None


def _lark(options: Structure) -> Grammar:
    assert options.grammar is not None
    return Grammar("lark", options.grammar)


class Structures:
    """Makes the grammars of one session, each once.

    Args:
        package: The draft, whose tokenizer they are made for.
    """

    def __init__(self, package: DraftPackage) -> None:
        self._package = package
        self._kept: OrderedDict[bytes, Compiled] = OrderedDict()

    def rules(
        self,
        options: Structure,
        welcome: Welcome,
        params: SamplingParams,
        stop_ids: Sequence[int],
    ) -> Rules | None:
        """Return what a stream keeps to, or None.

        Raises:
            ConfigError: It cannot be used; nothing has been sent then.
            IncompatibleError: The verifier does not know grammars.
        """
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
        compiled = self._kept.get(grammar.digest)
        if compiled is None:
            package = self._package
            words = vocabulary(package.tokenizer_path, package.family.tokenizer)
            compiled = self._kept[grammar.digest] = words.compile(grammar)
            compiled.mark  # noqa: B018  (once, here: the driver's thread shall not wait)
        self._kept.move_to_end(grammar.digest)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return Rules(compiled, welcome.vocab_size, tuple(stop_ids), options.force)
