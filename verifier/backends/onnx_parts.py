"""A target in parts on onnxruntime: its early exits speak between them.

The parts are those of :mod:`draftwire.export.graphs.parts`. They read the slots' caches as
the whole graph does, and give the same logits; each packs its matrices for itself, so a
target whose exits are in use takes the memory of its weights twice. That is why they
are loaded when somebody first asks for exits.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np

from draftwire.errors import PackageError
from draftwire.packages import TargetPackage
from draftwire.tensors import read_tensors

__all__ = ["TargetParts"]

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
# Makes a session of a file and the tensors that it asks for.
SessionMaker = Callable[[Any, Arrays], Any]


class TargetParts:
    """The parts of one target that has exits, from its weights with the adapter merged.

    Raises:
        PackageError: A tensor is missing or damaged.
        ModelError: The engine refuses a part.
    """

    def __init__(
        self, package: TargetPackage, weights: Arrays, session: SessionMaker
    ) -> None:
        assert package.exits is not None
        supply = {**read_tensors(package.exits.tensors.path), **weights}
        self._parts = []
        for part in package.exits.parts:
            missing = [name for name in part.weights if name not in supply]
            if missing:
                raise PackageError(
                    f"{part.file.path.name} of {package.path.name} asks for {missing[0]}, "
                    "which the target lacks",
                    hint="make the exits again: draftwire export exits",
                )
            engine = session(part.file.path, {n: supply[n] for n in part.weights})
            self._parts.append(
                (
                    engine,
                    [value.name for value in engine.get_inputs()],
                    [value.name for value in engine.get_outputs()],
                )
            )

    def run(
        self, feeds: Arrays, on_exit: Callable[[int, np.ndarray[Any, Any]], None]
    ) -> Arrays:
        """Run one forward on the inputs of the whole graph; return its outputs.

        ``on_exit`` is called between two parts with the number of the exit and its logits
        ``(N, vocab)``; what it raises ends the forward.
        """
        found: dict[str, np.ndarray[Any, Any]] = dict(feeds)
        for k, (engine, inputs, outputs) in enumerate(self._parts):
            results = engine.run(outputs, {name: found[name] for name in inputs})
            found.update(zip(outputs, results))
            if k < len(self._parts) - 1:
                on_exit(k, found["exit.logits"])
        return found
