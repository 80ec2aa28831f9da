"""A ``.tflite`` draft through LiteRT's public interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from draftwire.export.precision.parity import Parity, compare
from draftwire.export.precision.runners import Logits


class TfliteRunner:
    """A ``.tflite`` draft with its caches outside, copied in at every run.

    Args:
        model: The file's content.

    Attributes:
        steps: Signatures that take one token, the shortest cache first.
        block: Tokens that the other one takes.
    """

    def __init__(self, model: bytes) -> None:
        interpreter = Interpreter(model_content=model, num_threads=1)
        names = sorted(interpreter.get_signature_list(), key=_room)
        self._runners = {name: interpreter.get_signature_runner(name) for name in names}
        self.steps = [name for name in names if name.startswith("step")]
        self._prefill = next(name for name in names if name.startswith("prefill"))
        details = self._runners[self._prefill].get_input_details()
        shapes = {name: detail["shape"] for name, detail in details.items()}
        self.block = int(shapes["ids"][1])
        kept = [name for name in shapes if name.startswith(("key.", "value."))]
        self._caches = {name: np.zeros(shapes[name], np.float32) for name in kept}
        self.length = 0

    def step(self, token: int, signature: str) -> Logits:
        """Take one token with a signature of :attr:`steps`; return ``(V,)`` logits."""
        return self._run(signature, [token], {}, 1)

    def read(self, ids: Sequence[int], row: int) -> Logits:
        """Take a block of tokens; return ``(V,)`` logits of one of them."""
        filled = [*ids, *[0] * (self.block - len(ids))]
        return self._run(
            self._prefill, filled, {"row": np.array([row], np.int32)}, len(ids)
        )

    def _run(
        self, name: str, ids: Sequence[int], feeds: dict[str, Any], count: int
    ) -> Logits:
        past, here = slice(0, _room(name)), slice(self.length, self.length + count)
        for cache, values in self._caches.items():
            feeds[cache] = np.ascontiguousarray(_places(cache, values, past))
        feeds["ids"] = np.array([ids], np.int32)
        feeds["past"] = np.array([self.length], np.int32)
        results = self._runners[name](**feeds)
        for cache, values in self._caches.items():
            new = _places(cache, results["new_" + cache], slice(0, count))
            _places(cache, values, here)[...] = new
        self.length += count
        return np.array(results["logits"][0])

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self.length = length


def _room(signature: str) -> int:
    return int(signature.split(".")[1])


def _places(cache: str, values: Any, which: slice) -> Any:
    """Return some positions of a cache; values lie transposed."""
    return values[:, :, which] if cache[0] == "k" else values[..., which]


def check_tflite(
    model: bytes, ids: Sequence[int], expected: Logits, against: str
) -> Parity:
    """Run a draft over a text in blocks and steps of every signature, with a rewind.

    Returns:
        How far its logits are from ``expected`` ``(T, V)``, at the positions it gave.
    """
    runner = TfliteRunner(model)
    rows: list[int] = []
    found: list[Logits] = []
    # A rejected block, taken back: its entries must not be seen again.
    runner.read(ids[-min(len(ids), runner.block) :], 0)
    runner.rewind(0)
    third = max(1, len(ids) // 3)
    while runner.length < third:
        at = runner.length
        block = ids[at : min(third, at + runner.block)]
        for row in sorted({len(block) // 2, len(block) - 1}):
            runner.rewind(at)
            found.append(runner.read(block, row))
            rows.append(at + row)
    while runner.length < len(ids):
        at = runner.length
        usable = [name for name in runner.steps if _room(name) > at]
        found.append(runner.step(ids[at], usable[at % len(usable)]))
        rows.append(at)
    return compare(np.stack(found), expected[rows], against)
