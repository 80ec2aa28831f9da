"""What is written in a simulation: texts, and models that know them.

A text is the target's own (greedy) continuation of a prompt, fixed beforehand, and for
every position what the draft would propose there given the right context. The target's
model gives the text; the draft's gives its proposals while its context is right, and
something wrong after that. So whether a draft is accepted does not depend on the scheme,
and two schemes can be compared on the very same luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Mapping, Protocol, Sequence

import numpy as np

from draftwire.bench.sim.facts import Exit
from draftwire.errors import ConfigError, ModelError
from draftwire.packages import Parallel

SMALL = 32  # ids that synthetic texts use, so that logits are cheap
_STRETCH = 12  # tokens of a repetition, on average
_SURE = 30.0  # a logit that leaves nothing to the others
_SPECIAL, _SHIFT = 16, 300  # lowest ids that a played text has, at least and mostly


@dataclass(frozen=True)
class Text:
    """One stream's text."""

    prompt: tuple[int, ...]  # its prompt
    tokens: tuple[int, ...]  # what the target writes after it
    # what the draft proposes at each of these places, its context right
    proposals: tuple[int, ...]
    confidence: tuple[float, ...]  # the draft's probability of each proposal
    second: tuple[int, ...]  # the draft's second choice at each place
    width: int  # ids are below this: the width of the logits

    @property
    def right(self) -> list[bool]:
        """Where the draft proposes what the target writes."""
        return [a == b for a, b in zip(self.proposals, self.tokens)]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Text:
        """Return the text of plain data, as ``dataclasses.asdict`` gives it."""
        lists = {key: tuple(value) for key, value in data.items() if key != "width"}
        return cls(**{**data, **lists})

    def shifted(self, up: int) -> Text:
        """Return the text with all its ids ``up`` higher."""
        lists = ("prompt", "tokens", "proposals", "second")
        ids = {key: tuple(token + up for token in getattr(self, key)) for key in lists}
        return replace(self, width=self.width + up, **ids)


class Source(Protocol):
    """Where texts come from."""

    @property
    def name(self) -> str:
        """For reports."""

    def text(self, index: int, tokens: int) -> Text:
        """Return text ``index`` (from 0), of at least ``tokens`` tokens if it can."""


@dataclass(frozen=True)
class Luck:
    """How often the draft is right, and how that varies along the text."""

    name: str  # as it was asked for
    rate: float  # long-run share of right proposals (before any step)
    correlation: float = 0.0  # of neighbouring positions (a two-state Markov chain)
    # a second rate, for texts that go to and fro between two regimes
    other: float | None = None
    dwell: float = 64.0  # mean length of a stretch of one regime, tokens
    # ``(token, rate)``: from that token of the whole run on, another rate
    steps: tuple[tuple[int, float], ...] = ()

    def rates(self, start: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the rate at each of ``count`` tokens, ``(count,)``.

        Args:
            start: Tokens of the run before them.
            count: How many.
            rng: For the regimes.
        """
        rates = np.full(count, self.rate)
        if self.other is not None:
            turns = rng.random(count) < 1 / self.dwell
            turns[0] = rng.random() < 0.5
            rates = np.where(np.cumsum(turns) % 2 == 0, self.rate, self.other)
        for token, rate in self.steps:
            rates[max(0, token - start) :] = rate
        return rates


def parse_luck(text: str) -> Luck:
    """Return the luck that ``text`` describes.

    ``0.8`` (each position for itself), ``markov:0.8:0.5`` (rate, correlation of
    neighbours), ``regimes:0.9:0.5:40`` (two rates, mean stretch in tokens),
    ``steps:0.8,0.4@2000,0.9@5000`` (rates from a token of the run on).

    Raises:
        ConfigError: It is none of these.
    """
    kind, _, rest = text.partition(":")
    try:
        if not rest:
            luck = Luck(text, float(text))
        elif kind == "markov":
            rate, correlation = (float(x) for x in rest.split(":"))
            luck = Luck(text, rate, correlation=correlation)
        elif kind == "regimes":
            rate, other, dwell = (float(x) for x in rest.split(":"))
            luck = Luck(text, rate, other=other, dwell=dwell)
        elif kind == "steps":
            first, *later = rest.split(",")
            steps = []
            for part in later:
                value, _, token = part.partition("@")
                steps.append((int(token), float(value)))
            luck = Luck(text, float(first), steps=tuple(steps))
        else:
            raise ValueError(kind)
    except ValueError as exc:
        raise ConfigError(
            f"{text!r} is no acceptance",
            hint="0.8, markov:0.8:0.5, regimes:0.9:0.5:40 or steps:0.8,0.4@2000",
        ) from exc
    shares = [luck.rate, luck.correlation, *(r for _, r in luck.steps)]
    shares += [] if luck.other is None else [luck.other]
    if not all(0 <= share <= 1 for share in shares) or not 1 <= luck.dwell < 1e9:
        raise ConfigError(f"{text!r}: rates lie between 0 and 1, a stretch is 1 or more")
    return luck


@dataclass(frozen=True)
class Synthetic:
    """Texts of dice.

    Raises:
        ConfigError: A word is unknown or a number out of range.
    """

    luck: Luck  # how often the draft is right
    seed: int = 1  # of the dice
    prompt_tokens: int = 64
    # "calibrated": the draft's probability of a proposal is the chance that it is right;
    # "noise": of the same law, but it says nothing; "none": always sure
    confidence: str = "calibrated"
    # how much calibrated confidence tells: the weight of a Beta law around the rate; small
    # is telling (mostly near 0 and 1), large is not
    spread: float = 2.0
    second_right: float = 0.5  # wrong proposals whose second choice would be right
    # of the text that is copied, in stretches of a dozen tokens, from what is before it
    repeats: float = 0.0

    def __post_init__(self) -> None:
        if self.confidence not in ("calibrated", "noise", "none"):
            raise ConfigError(
                f"confidence {self.confidence!r}", hint="calibrated, noise or none"
            )
        shares = 0 <= self.second_right <= 1 and 0 <= self.repeats < 1
        if not shares or not self.spread > 0 or self.prompt_tokens < 1:
            raise ConfigError("a synthetic text has a number out of range")

    @property
    def name(self) -> str:
        """For reports."""
        return f"synthetic({self.luck.name})"

    def text(self, index: int, tokens: int) -> Text:
        """Return text ``index``; the same for the same seed, whoever asks."""
        rng = np.random.default_rng([self.seed, index])
        prompt = rng.integers(0, SMALL, self.prompt_tokens)
        truth = rng.integers(0, SMALL, tokens)
        if self.repeats:
            dice = np.random.default_rng([self.seed, index, 1])
            _copy(prompt, truth, self.repeats, dice)
        rates = self.luck.rates(index * tokens, tokens, rng)
        right = _chain(rates, self.luck.correlation, rng)
        away = rng.integers(1, SMALL, tokens)  # how far off a wrong proposal is
        proposals = np.where(right, truth, (truth + away) % SMALL)
        other = np.where(
            right | (rng.random(tokens) >= self.second_right),
            (truth + away % (SMALL - 1) + 1) % SMALL,
            truth,
        )
        other = np.where(other == proposals, (other + 1) % SMALL, other)
        return Text(
            tuple(prompt.tolist()),
            tuple(truth.tolist()),
            tuple(proposals.tolist()),
            tuple(self._confidences(rates, right, rng).tolist()),
            tuple(other.tolist()),
            SMALL,
        )

    def _confidences(
        self, rates: np.ndarray, right: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the draft's probabilities.

        With a prior Beta(c*r, c*(1-r)) over the chance of being right, the posterior
        given the outcome is again a Beta law; drawing from it makes the number exactly
        what it claims to be.
        """
        if self.confidence == "none":
            return np.ones(len(rates))
        hits = right if self.confidence == "calibrated" else rng.random(len(rates)) < rates
        alpha = self.spread * rates + hits
        beta = self.spread * (1 - rates) + ~hits
        drawn = rng.beta(np.maximum(alpha, 1e-3), np.maximum(beta, 1e-3))
        # A top probability over so many ids cannot be lower.
        return np.asarray(np.clip(drawn, 1.5 / SMALL, 1 - 1e-6))


def _copy(
    prompt: np.ndarray, text: np.ndarray, share: float, rng: np.random.Generator
) -> None:
    """Let ``share`` of ``text`` repeat what stands before it, in place."""
    whole = np.concatenate([prompt, text])
    at = len(prompt)
    while at < len(whole):
        count = min(int(rng.geometric(1 / _STRETCH)), len(whole) - at)
        if rng.random() < share and count < at:
            begin = int(rng.integers(0, at - count))
            whole[at : at + count] = whole[begin : begin + count]
        at += count
    text[:] = whole[len(prompt) :]


def _chain(rates: np.ndarray, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Return which proposals are right, ``(n,)`` bool, with correlated neighbours."""
    fresh = rng.random(len(rates)) < rates
    if correlation <= 0:
        return np.asarray(fresh)
    # With probability `correlation` a position repeats the one before it: the long-run
    # rate stays, and the correlation of neighbours is that probability.
    repeats = rng.random(len(rates)) < correlation
    repeats[0] = False
    source = np.where(repeats, 0, np.arange(len(rates)))
    return np.asarray(fresh[np.maximum.accumulate(source)])


class _Lanes:
    """A draft that can go on with several sequences, each read by one of its kind."""

    beside: tuple[_Lanes, ...]

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Take in ``tokens``; return logits after the last one."""
        raise NotImplementedError

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Take in ``tokens``; return logits after the last one."""
        return self.read(tokens)

    def wide(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Take in a token on each of some lanes; return the logits behind each."""
        lanes = (self, *self.beside)
        return {number: lanes[number].read((one,)) for number, one in tokens.items()}


class TextDraft(_Lanes):
    """The draft model of a text; what :class:`~draftwire.runtime.drafter.Model` is.

    Args:
        text: What is written.
        at_once: Tokens that a forward can say: masks are right as often as what is drafted
            one by one.
        lanes: Sequences that a forward goes on with.
    """

    def __init__(self, text: Text, at_once: int = 1, lanes: int = 1) -> None:
        self._text = text
        self._all = text.prompt + text.tokens
        self.prompt = len(text.prompt)  # its tokens
        self._good = 0  # so many tokens of the cache are the text's
        self._blank = np.zeros(text.width, np.float32)
        others = math.log(max(1, text.width - 1))
        self._tops = [
            # Of a token that has this probability among zeros.
            _SURE if p >= 1 else math.log(p / (1 - p)) + others
            for p in text.confidence
        ]
        self.length = 0
        self.parallel = Parallel((0,), at_once) if at_once > 1 else None
        self.beside = tuple([TextDraft(text) for _ in range(1, lanes)])

    def copy(self, other: TextDraft, end: int) -> None:
        """Take over what another lane has read, up to ``end`` tokens in all."""
        if self._good == self.length:
            self._good = min(other._good, end)
        self.length = end

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Take in ``tokens``; return logits ``(width,)`` after the last one."""
        everything, good, length = self._all, self._good, self.length
        for token in tokens:
            if good == length and good < len(everything) and everything[good] == token:
                good += 1
            length += 1
        self._good, self.length = good, length
        return self._row(length - self.prompt)

    def ahead(self, tokens: Sequence[int], count: int) -> np.ndarray:
        """Take in ``tokens``; return logits after them and of masks, ``(count, width)``."""
        rows = [self.read(tokens)]
        at = self.length - self.prompt
        return np.stack([*rows, *(self._row(at + i) for i in range(1, count))])

    def _row(self, at: int) -> np.ndarray:
        row, text = self._blank.copy(), self._text
        if at >= len(text.tokens) or at < 0:
            row[0] = _SURE  # beyond the end of the text
        elif self._good < self.length:  # a wrong context: wrong, perhaps the right id
            row[(text.tokens[at] + 1) % text.width] = self._tops[at]
        else:
            row[text.proposals[at]] = self._tops[at]
            row[text.second[at]] = min(1.0, self._tops[at] - 0.01)
        return row

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self.length = length
        self._good = min(self._good, length)


class TextTarget:
    """The target model of a text.

    Args:
        text: What is written.
        seed: Of the early exits' dice.
    """

    def __init__(self, text: Text, seed: int = 0) -> None:
        self.text = text
        self._all = np.array(text.tokens, np.int64)
        self._prompt = len(text.prompt)
        self._rows = np.zeros((text.width, text.width), np.float32)
        np.fill_diagonal(self._rows, _SURE)
        self._seed = seed
        self._exits: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run(self, end: int, count: int) -> np.ndarray:
        """Return what follows the ``count`` tokens before ``end``, ``(count, width)``."""
        at = end - count + 1 - self._prompt
        if count == 1 and at < len(self.text.tokens):
            token = self.text.tokens[at]
            return self._rows[token : token + 1]
        ids = self._all[at : at + count]
        if len(ids) < count:  # beyond the end of the text
            ids = np.concatenate([ids, np.zeros(count - len(ids), np.int64)])
        return np.asarray(self._rows[ids])

    def exit_rows(self, number: int, exit: Exit, end: int, rows: int) -> np.ndarray:
        """Return what an early exit makes of the last ``rows`` positions before ``end``.

        Where it is not sure, its logits are flat; what it says at a position does not
        depend on when it is asked.
        """
        if number not in self._exits:
            rng = np.random.default_rng([self._seed, number, len(self._all)])
            self._exits[number] = (
                rng.random(len(self._all)) < exit.coverage,
                rng.random(len(self._all)) < exit.agreement,
            )
        sure, agrees = self._exits[number]
        found = self.run(end, rows).copy()
        at = end - rows + 1 - self._prompt
        for j in range(min(rows, len(sure) - at)):
            truth = self._all[at + j]
            if not sure[at + j]:
                found[j] = 0.0
                found[j, truth] = 0.01
            elif not agrees[at + j]:
                found[j] = self._rows[(truth + 7) % self.text.width]
        return found


# ---- several texts, each known by its prompt


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
        texts.append(text.shifted(up))
    if len({text.prompt for text in texts}) < len(texts):
        raise ConfigError(
            "two texts have the same prompt", hint="ask for fewer texts, or longer prompts"
        )
    return texts


def by_prompt(targets: Sequence[TextTarget], tokens: Sequence[int]) -> TextTarget:
    """Return the latest whose prompt begins with ``tokens``, or the other way round."""
    for target in reversed(targets):
        prompt = target.text.prompt
        n = min(len(prompt), len(tokens))
        if prompt[:n] == tuple(tokens[:n]):
            return target
    raise ModelError("a prompt that no text begins with")


class PlayedDraft(_Lanes):
    """The draft of several texts; what the drafter's ``Model`` is.

    Args:
        targets: One for each prompt; more may come.
        lanes: Sequences that a forward goes on with.
    """

    def __init__(self, targets: Sequence[TextTarget], lanes: int = 1) -> None:
        self._targets = targets
        self.beside = tuple([PlayedDraft(targets) for _ in range(1, lanes)])
        self._draft: TextDraft | None = None
        self._read: list[int] = []

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self._read)

    def copy(self, other: PlayedDraft, end: int) -> None:
        """Take over what another lane has read, up to ``end`` tokens in all."""
        self.read(other._read[self.length : end])

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Take in ``tokens``; return logits after the last one."""
        whole = [*self._read, *tokens]
        if self._draft is None or len(self._read) < self._draft.prompt:
            # Prompts may begin alike.
            self._draft, tokens = TextDraft(by_prompt(self._targets, whole).text), whole
        self._read = whole
        return self._draft.read(tokens)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        del self._read[length:]
        if self._draft is not None:
            self._draft.rewind(length)
