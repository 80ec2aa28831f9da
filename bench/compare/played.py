"""Models that play texts which are known beforehand, behind real sessions and sockets.

The draft is right or wrong by position, whatever the scheme, so schemes are compared on
the very same luck, at any acceptance, and with next to no computing: on a busy machine
only that keeps a profile's time. The texts are those of the simulator
(:mod:`draftwire.bench.sim.texts`); a stream's text is known by its prompt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Sequence

import numpy as np

from draftwire.bench.sim.facts import Exit as ExitFact
from draftwire.bench.sim.texts import Source, Text, TextDraft, TextTarget
from draftwire.errors import ConfigError, ModelError
from draftwire.packages import Exit, TargetPackage
from draftwire.verifier.backends.base import (
    ExitListener,
    SlotInput,
    SlotTable,
    SlotTarget,
)

EXIT_LAYERS = 1000  # an exit's place in the stack, as parts of the whole
_SPECIAL, _SHIFT = 16, 300
_THRESHOLD = 0.5  # logits of played exits are nearly one-hot, or flat


def played_texts(source: Source, count: int, tokens: int, *, vocab_size: int) -> list[Text]:
    """Return ``count`` texts of a source with ids that end no stream.

    The lowest ids are left out: they may mean something to a tokenizer. A ConfigError where
    two prompts are the same, or there are more ids than the vocabulary has.
    """
    texts = []
    for index in range(count):
        text = source.text(index, tokens)
        up = min(_SHIFT, vocab_size - text.width)
        if up < _SPECIAL:
            raise ConfigError(
                f"a text of {text.width} different ids does not fit a vocabulary of "
                f"{vocab_size}"
            )
        texts.append(
            replace(
                text,
                prompt=_shifted(text.prompt, up),
                tokens=_shifted(text.tokens, up),
                proposals=_shifted(text.proposals, up),
                second=_shifted(text.second, up),
                width=text.width + up,
            )
        )
    if len({text.prompt for text in texts}) < len(texts):
        raise ConfigError(
            "two texts have the same prompt", hint="ask for fewer texts, or longer prompts"
        )
    return texts


def _shifted(ids: Sequence[int], up: int) -> tuple[int, ...]:
    return tuple(token + up for token in ids)


def text_to_json(text: Text) -> dict[str, Any]:
    """Return plain data; ``Text(**data)`` reads it."""
    return {key: getattr(text, key) for key in Text.__dataclass_fields__}


def text_from_json(data: Mapping[str, Any]) -> Text:
    """Return the text of :func:`text_to_json`."""
    return Text(
        tuple(data["prompt"]),
        tuple(data["tokens"]),
        tuple(data["proposals"]),
        tuple(data["confidence"]),
        tuple(data["second"]),
        data["width"],
    )


def _by_prompt(texts: Sequence[Text], tokens: Sequence[int]) -> Text:
    """Return the text whose prompt begins with ``tokens``, or the other way round."""
    for text in texts:
        n = min(len(text.prompt), len(tokens))
        if text.prompt[:n] == tuple(tokens[:n]):
            return text
    raise ModelError("a prompt that no text begins with")


class PlayedDraft:
    """The draft of several texts; what the drafter's ``Model`` is.

    Args:
        texts: One for each prompt.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts
        self._draft = TextDraft(texts[0])

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._draft.length

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Take in ``tokens``; return logits after the last one."""
        if self._draft.length == 0:
            self._draft = TextDraft(_by_prompt(self._texts, tokens))
        return self._draft.forward(tokens)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self._draft.rewind(length)


class PlayedTarget(SlotTarget):
    """The target of several texts: a backend of the verifier.

    Args:
        package: Whose name, family and vocabulary it has.
        texts: One for each prompt.
        exits: Early exits of a timing profile; dice say where they are sure and right.
        slots: Streams at the same time.
        context: Longest sequence.
    """

    def __init__(
        self,
        package: TargetPackage,
        texts: Sequence[Text],
        exits: Sequence[ExitFact] = (),
        *,
        slots: int = 16,
        context: int | None = None,
    ) -> None:
        self.id = package.id
        self.name = package.name
        self.version = package.version
        self.family = package.family
        self.vocab_size = package.vocab_size
        self.context = context or package.context
        self.bos_id = package.bos_id
        self.eos_ids = package.eos_ids
        self.slots = slots
        self._facts = tuple(exits)
        self.exits = tuple(
            Exit(round(fact.fraction * EXIT_LAYERS), _THRESHOLD, fact.agreement)
            for fact in exits
        )
        self._texts = texts
        self.numerics = "exact"
        self.table = SlotTable(slots, self.context, self.vocab_size)
        self._played: dict[int, TextTarget] = {}

    def release(self, slot: int) -> None:
        """Give a slot back."""
        super().release(slot)
        self._played.pop(slot, None)

    def forward(
        self, batch: Sequence[SlotInput], on_exit: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Return the rows of the texts; they take no time."""
        self.table.check(batch)
        for item in batch:
            if item.start == 0 or item.slot not in self._played:
                text = _by_prompt(self._texts, item.tokens.tolist())
                self._played[item.slot] = TextTarget(text, self._texts.index(text))
        if on_exit is not None:
            for number, fact in enumerate(self._facts):
                on_exit(number, [self._exit_row(number, fact, item) for item in batch])
        answers = [
            self._played[item.slot].run(item.start, item.tokens, item.rows)
            for item in batch
        ]
        self.table.commit(batch)
        return answers

    def _exit_row(self, number: int, fact: ExitFact, item: SlotInput) -> np.ndarray:
        end = item.start + len(item)
        return self._played[item.slot].exit_rows(number, fact, end, item.rows)
