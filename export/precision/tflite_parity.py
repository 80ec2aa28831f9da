"""The numeric gate of ``.tflite`` drafts, through LiteRT's public interface.

The device's engine reaches into the interpreter; this runner does not, so that the two
cannot share a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from draftwire.export.precision.parity import Logits, Parity, compare

__all__ = ["TfliteRunner", "check_tflite"]


class TfliteRunner:
    """A ``.tflite`` draft with its caches outside, copied in at every run.

    Args:
        model: The file's content.
        layers: Its layers.
    """

    def __init__(self, model: bytes, layers: int) -> None:
        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._runners = {
            name: self._interpreter.get_signature_runner(name)
            for name in self._interpreter.get_signature_list()
        }
        self._shapes = {
            name: {k: d["shape"] for k, d in runner.get_input_details().items()}
            for name, runner in self._runners.items()
        }
        by_room = sorted(
            (int(shapes["key.0"][2]), name) for name, shapes in self._shapes.items()
        )
        self.steps = [name for _, name in by_room if name.startswith("step")]
        self.prefill = next(n for n in self._runners if n.startswith("prefill"))
        self.block = int(self._shapes[self.prefill]["ids"][1])
        longest = self._shapes[self.prefill]
        self._caches = {
            f"{kind}.{i}": np.zeros(longest[f"{kind}.{i}"], np.float32)
            for i in range(layers)
            for kind in ("key", "value")
        }
        self.length = 0

    def step(self, token: int, signature: str) -> Logits:
        """Take one token with a signature of :attr:`steps`; return ``(V,)`` logits."""
        return self._run(signature, [token], {})

    def read(self, ids: Sequence[int], row: int) -> Logits:
        """Take a block of tokens; return ``(V,)`` logits of one of them."""
        filled = [*ids, *[0] * (self.block - len(ids))]
        extra = {"row": np.array([row], np.int32)}
        return self._run(self.prefill, filled, extra, count=len(ids))

    def _run(
        self, name: str, ids: Sequence[int], extra: dict[str, Any], *, count: int = 1
    ) -> Logits:
        room = int(self._shapes[name]["key.0"][2])
        feeds = {
            cache: values[:, :, :room] if cache[0] == "k" else values[:, :, :, :room]
            for cache, values in self._caches.items()
        }
        feeds = {cache: np.ascontiguousarray(values) for cache, values in feeds.items()}
        feeds["ids"] = np.array([ids], np.int32)
        feeds["past"] = np.array([self.length], np.int32)
        results = self._runners[name](**feeds, **extra)
        here = slice(self.length, self.length + count)
        for cache, values in self._caches.items():
            fresh = results["new_" + cache]
            if cache[0] == "k":
                values[:, :, here] = fresh[:, :, :count]
            else:
                values[:, :, :, here] = fresh[..., :count]
        self.length += count
        return np.array(results["logits"][0])

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self.length = length


def check_tflite(
    model: bytes, layers: int, ids: Sequence[int], expected: Logits, against: str
) -> Parity:
    """Run a draft over a text in blocks and steps of every signature, with a rewind.

    Returns:
        How far its logits are from ``expected`` ``(T, V)``, at the positions it gave.
    """
    runner = TfliteRunner(model, layers)
    rows: list[int] = []
    found: list[Logits] = []
    # A rejected branch, taken back: its entries must not be seen again.
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
    fits = {name: int(name.split(".")[1]) for name in runner.steps}
    while runner.length < len(ids):
        at = runner.length
        usable = [name for name in runner.steps if fits[name] > at]
        found.append(runner.step(ids[at], usable[at % len(usable)]))
        rows.append(at)
    return compare(np.stack(found), expected[rows], against)
