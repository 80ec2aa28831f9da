"""Grammars on the verifier: compiled aside, bounded, kept while somebody may want them.

Compiling takes up to some hundred milliseconds, and whoever sends a grammar is not to be
trusted with that: it happens in a thread of its own, one at a time, within the engine's
limits. What opens a stream meanwhile waits for it (:class:`Shelf`, one a connection).
"""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Union

from draftwire.errors import ConfigError, DraftwireError
from draftwire.sampling.grammar import Compiled, Grammar
from draftwire.sampling.grammar.engine import vocabulary
from draftwire.transport import messages
from draftwire.verifier.backends.base import TargetBackend
from draftwire.verifier.backends.streaming import StreamBackend
from draftwire.verifier.executor import Executor
from draftwire.verifier.serving.limits import Refusal

_KEPT = 32  # compiled, of one target
_SHELF = 16  # of one connection
_COMPILING = 4
_Outcome = Union[Compiled, DraftwireError]


class Grammars:
    """What grammars are compiled to, for the tokenizer of one target.

    One that does not say where its tokenizer is has none, nor has one without an
    ``executor``, which compiles in a thread of its own.
    """

    def __init__(
        self, backend: TargetBackend | StreamBackend, executor: Executor | None
    ) -> None:
        path = getattr(backend, "tokenizer_path", None)
        self._path: Path | None = path if find_spec("llguidance") else None
        self._fingerprint = backend.family.tokenizer
        self._executor = executor
        self._kept: OrderedDict[bytes, Compiled] = OrderedDict()

    @property
    def offered(self) -> bool:
        """Whether streams may have grammars."""
        return self._path is not None and self._executor is not None

    def prepare(self, message: messages.Grammar, done: Callable[[_Outcome], None]) -> None:
        """Compile what a device sent; ``done`` gets it, or why not, perhaps at once."""
        try:
            grammar = Grammar(message.format, message.text.decode("utf-8"))
        except (ConfigError, UnicodeDecodeError) as error:
            done(error if isinstance(error, ConfigError) else ConfigError(str(error)))
            return
        known = self._kept.get(grammar.digest)
        if known is not None and known.mark == message.engine:
            self._kept.move_to_end(grammar.digest)
            done(known)
            return

        def keep(outcome: Compiled | Exception) -> None:
            if isinstance(outcome, Compiled):
                self._kept[grammar.digest] = outcome
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            elif not isinstance(outcome, DraftwireError):
                outcome = ConfigError(f"the grammar engine failed: {outcome}")
            done(outcome)

        assert self._executor is not None
        self._executor.aside(lambda: self._compile(grammar, message.engine), keep)

    def _compile(self, grammar: Grammar, engine: bytes) -> Compiled:
        assert self._path is not None
        words = vocabulary(self._path, self._fingerprint)
        if engine != words.mark:
            raise ConfigError(
                "the device's llguidance takes grammars apart otherwise than this "
                f"verifier's ({words.version})",
                hint=f"pip install llguidance=={words.version} on the device, or leave the "
                "grammar out",
            )
        return words.compile(grammar)


class Shelf:
    """The grammars that one connection may name."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._found: OrderedDict[bytes, _Outcome | None] = OrderedDict()

    def put(self, message: messages.Grammar, ready: Callable[[], None]) -> bool:
        """Take in a grammar; return False where too many are being compiled.

        ``ready`` is called once it is compiled, or refused.
        """
        digest = Grammar.name(message.format, message.text)
        if digest in self._found:
            return True
        if list(self._found.values()).count(None) >= _COMPILING:
            return False
        self._found[digest] = None
        while len(self._found) > _SHELF:
            self._found.popitem(last=False)

        def done(outcome: _Outcome) -> None:
            if digest in self._found:  # else others have pushed it out
                self._found[digest] = outcome
            ready()

        self._grammars.prepare(message, done)
        return True

    def find(self, digest: bytes) -> Compiled | None:
        """Return the grammar that an open names; None while it is being compiled.

        Raises a Refusal where it was not sent on this connection, or long ago,
        and what it was refused for.
        """
        if digest not in self._found:
            raise Refusal(
                "grammar",
                "the grammar that the open names is not known on this connection",
                "send it, then open again",
            )
        self._found.move_to_end(digest)
        outcome = self._found[digest]
        if isinstance(outcome, DraftwireError):
            raise outcome
        return outcome
