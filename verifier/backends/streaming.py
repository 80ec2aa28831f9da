"""What the verifier asks of an engine that keeps streams itself.

:mod:`~draftwire.verifier.backends.base` is for engines that we drive: slots and logits,
and we decide. Engines that serve many clients by themselves (vLLM, anything behind HTTP)
decode, batch, page and sample on their own. Of those the verifier asks less: open a
stream, say which drafts there are and how far the text shall go, and hear which tokens
came of it.

What such an engine may do, and a session bears (:meth:`TargetSession.advance`):

- its first step is the prompt, and brings a token that nobody asked for;
- a step brings any number of tokens, and the step that runs when drafts come ignores them;
- it may take a step that nobody asked for (after it has dropped a stream's cache);
- a step may still be on its way when the run is closed: nobody hears it then;
- it may die: every run then ends, and a run that is opened while it comes back waits.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Callable, NamedTuple, Protocol

from draftwire.sampling import SCHEMES, SamplingParams
from draftwire.verifier.backends.base import Target

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from draftwire.clock import Clock
    from draftwire.errors import DraftwireError
    from draftwire.verifier.backends.base import TargetBackend


class Order(NamedTuple):
    """A stream that an engine shall keep."""

    tokens: tuple[int, ...]  # ids of the prompt and, after a lost link, of the text so far
    end: int  # the text, its prompt included, ends when it is so long
    stop_ids: tuple[int, ...]  # it ends with any of these, which belong to it
    params: SamplingParams  # at absolute positions: ``len(tokens)`` is the first
    vocab_size: int  # only ids below it may be


class Push(NamedTuple):
    """What a stream wants, in place of all that it wanted before.

    All positions count from the beginning of the prompt.
    """

    epoch: int  # branch of the drafts, told back with what becomes of them
    # position of the first draft; the text may be longer by now. Drafts that repeat it are
    # skipped.
    base: int
    drafts: tuple[int, ...]  # ids to be judged
    # go on until the text is so long. Ends when the drafts contradict the text: then it is
    # the device's turn.
    asks: int
    ahead: int  # go on until the text is so long whatever becomes of the drafts


class Step(NamedTuple):
    """What an engine has decided about a stream in one forward."""

    # ids that the text grows by; none to say that the engine works, on a long prompt for
    # instance
    tokens: tuple[int, ...]
    # how many drafts were judged to get there; those at the beginning of ``tokens`` that
    # equal them are accepted, and one token follows (none, where the text ends)
    drafted: int = 0
    epoch: int = 0  # of the push that they came from
    queue_s: float = 0.0  # seconds that the push waited
    compute_s: float = 0.0  # seconds of the forward
    forward: int = 0  # the engine's own number of it, for all streams in it; 0: unknown


OnStep = Callable[[Step], None]
# Takes what went wrong, and whether opening the stream again is worth it.
OnEnd = Callable[["DraftwireError", bool], None]


class Run(ABC):
    """A stream that an engine keeps; it calls back in its clock's thread, in order.

    ``closed`` is set by whoever ends it first: the engine, or the verifier.
    """

    def __init__(self, order: Order, clock: Clock, on_step: OnStep, on_end: OnEnd) -> None:
        self.order, self._clock = order, clock
        self._on_step, self._on_end = on_step, on_end
        self.closed = self._deaf = False

    @abstractmethod
    def push(self, push: Push) -> None:
        """Say what the stream wants; neither waits nor raises."""

    def close(self) -> None:
        """The stream is over, or its link is lost: nothing of it is told after this."""
        self.closed = self._deaf = True

    def say(self, step: Step) -> None:
        """Tell of a step; callable from any thread, as :meth:`end`."""
        if not self.closed:
            self._post(self._on_step, step)

    def end(self, error: DraftwireError, again: bool = False) -> None:
        """Say that the run is over before its text is."""
        if not self.closed:
            self.closed = True
            self._post(self._on_end, error, again)

    def _post(self, what: Callable[..., None], *args: object) -> None:
        def tell() -> None:
            if not self._deaf:
                what(*args)

        with contextlib.suppress(RuntimeError):  # the verifier's loop has ended
            self._clock.post(tell)


class StreamBackend(Target, Protocol):
    """A target model on an engine that keeps streams itself.

    A text must be what the same engine gives for the same order without any drafts.
    """

    schemes: tuple[str, ...]  # that it can do, of those whose blocks carry ids alone
    noises: tuple[str, ...]  # noise profiles that it can do

    def open(self, order: Order, clock: Clock, on_step: OnStep, on_end: OnEnd) -> Run:
        """Begin to keep a stream; it goes no further than its first step until a push.

        Called, and calling back, in the thread of ``clock``: ``on_step`` with each step,
        never inside a call of ours, ``on_end`` once when the run ends before its text does.

        Raises:
            ConfigError: The order cannot be served.
            RefusedError: There is no room for it now.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the engine, and every run with it."""


def keeps_streams(backend: TargetBackend | StreamBackend) -> TypeIs[StreamBackend]:
    """Tell which of the two contracts a backend is for."""
    return hasattr(backend, "open")


def schemes_of(backend: TargetBackend | StreamBackend) -> tuple[str, ...]:
    """Return the sampling schemes that a backend can do: all, where we decide."""
    return backend.schemes if keeps_streams(backend) else tuple(SCHEMES)
