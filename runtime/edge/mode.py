"""What a stream does while the network carries its blocks: each mechanism has a switch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

PREEMPT = ("guess", "exits", "outcomes")


@dataclass(frozen=True)
class Mode:
    """How a stream hides the network; :class:`~draftwire.options.Pacing` checks its values.

    Source:
        Pipeline and cutting: PicoSpec, https://arxiv.org/abs/2603.19133. Preemptive
        drafting: https://arxiv.org/abs/2505.21594. Token batches: PipeSD,
        https://arxiv.org/abs/2605.13319.
    """

    # ``"cost"``: the verifier runs the target only when a block is there; ``"latency"``: it
    # decodes on without waiting and judges drafts as they come; ``"auto"``: the controller
    # decides, at any moment
    objective: str = "cost"
    # at most so many blocks are in flight; 1 waits for every verdict. A race sends every
    # block at once, whatever this says.
    pipeline: int = 1
    # what is drafted while verdicts are out. ``"guess"``: the next block, as if every token
    # in flight will be accepted; ``"exits"``: what the target's early exits expect;
    # ``"outcomes"``: then the likeliest other outcomes.
    preempt: frozenset[str] = frozenset({"guess"})
    # a verdict that leaves nothing in flight sends a block that is not finished
    cut: bool = False
    # send pieces of so many tokens of a block that is still being drafted; 0 sends whole
    # blocks
    batch: int = 0
    max_forwards: float = 1.0  # of the target for each token of text, with ``"auto"``

    @classmethod
    def of(
        cls,
        objective: str = "cost",
        pipeline: int = 1,
        preempt: str = "guess",
        cut: bool = False,
        batch: int = 0,
        max_forwards: float = 1.0,
    ) -> Mode:
        """Return the mode of words as on the command line."""
        words = () if preempt == "off" else filter(None, map(str.strip, preempt.split(",")))
        return cls(objective, pipeline, frozenset(words), cut, batch, max_forwards)

    @cached_property
    def racing(self) -> bool:
        """True when the verifier never waits for blocks."""
        return self.objective == "latency"

    @cached_property
    def hush(self) -> bool:
        """True when, racing, a draft step that is void by then, or needless, is not begun.

        As with outcomes, of use where the verifier serves nobody else.
        """
        return self.objective != "cost" and "outcomes" in self.preempt

    @property
    def preempt_text(self) -> str:
        """The ``preempt`` words as on the command line."""
        return ",".join(w for w in PREEMPT if w in self.preempt) or "off"


DEFAULT_MODE = Mode()
