"""The draft engine on LiteRT: ai-edge-litert, or tflite-runtime on older boards.

The KV cache lies in the interpreter's own input tensors, which a run leaves as they are:
a step copies in what is new (one token's keys and values for each layer) and nothing
else. Each signature has caches of its own; one that comes into use is brought up to
date with what the others have read meanwhile. Where an interpreter hides its tensors or
does not leave them alone, its public interface is used; that copies the whole cache at
every step, and the engine's ``warnings`` say so.

Source:
    The form of the graph: :mod:`draftwire.export.graphs.tflite`.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from draftwire.errors import ConfigError, ModelError
from draftwire.runtime.engines.engine import Engine, ModelSpec, first_line

INSTALL_HINT = (
    "pip install 'draftwire[tflite]' "
    "(ai-edge-litert from Python 3.9 on, tflite-runtime before and on 32-bit ARM)"
)


def import_litert() -> tuple[Any, str]:
    """Return the interpreter class and what it is ("ai-edge-litert 2.3.0"); a ConfigError
    where neither package can be imported."""
    for package in ("ai-edge-litert", "tflite-runtime"):
        name = package.replace("-", "_") + ".interpreter"
        try:
            found = importlib.import_module(name).Interpreter
        except ImportError:
            continue
        try:
            return found, f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:  # unpacked by hand, as some images have it
            return found, f"{package} of unknown version"
    raise ConfigError(
        "the draft needs LiteRT; neither ai-edge-litert nor tflite-runtime can be imported",
        hint=INSTALL_HINT,
    )


def open_engine(path: Path, spec: ModelSpec, *, threads: int = 1) -> Engine:
    """Open a ``.tflite`` draft. A ConfigError where LiteRT is not installed; a ModelError
    where it cannot run the file, or that is not the model that the package describes."""
    interpreter_class, name = import_litert()
    if spec.graph != "static":
        raise ModelError(
            f"{path.name} has the form {spec.graph!r}, LiteRT drafts have static",
            hint="update draftwire on this device",
        )
    # tflite-runtime dies of a file that is something else.
    with open(path, "rb") as stream:
        if stream.read(8)[4:] != b"TFL3":
            raise ModelError(
                f"{path.name} is no .tflite file",
                hint="make it again: `draftwire export package --engine litert`",
            )
    try:
        interpreter = interpreter_class(model_path=str(path), num_threads=threads)
        return LiteRTEngine(interpreter, spec, name=name, file=path.name)
    except (RuntimeError, ValueError) as exc:
        raise ModelError(
            f"{name} cannot run {path}: {first_line(exc)}",
            hint="export the draft again, or choose another precision",
        ) from exc


class _Signature:
    """One signature: its tensors as arrays, which hold what came out once it has ``run``.

    The caches, for each layer keys and values ``(kv_heads, room, head_dim)``, hold
    ``valid`` tokens of the text; ``fresh``, ``(kv_heads, tokens, head_dim)``, belongs into
    them at ``past``.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], layers: int, run: Callable[[], Any]
    ) -> None:
        self.run = run
        self.valid = 0
        self.ids: np.ndarray = arrays["ids"][0]
        self.past = arrays["past"]
        self.row = arrays.get("row")
        self.logits: np.ndarray = arrays["logits"][0]
        self.caches, self.fresh = [], []
        for i in range(layers):
            self.caches += [arrays[f"key.{i}"][0], _turned(arrays[f"value.{i}"])]
            self.fresh += [arrays[f"new_key.{i}"][0], _turned(arrays[f"new_value.{i}"])]
        self.tokens, self.room = len(self.ids), self.caches[0].shape[1]
        # For one token: without the dimension of tokens.
        self.pairs = [(old, new[:, 0]) for old, new in zip(self.caches, self.fresh)]

    def keep(self, past: int, count: int) -> None:
        for cache, fresh in zip(self.caches, self.fresh):
            cache[:, past : past + count] = fresh[:, :count]


def _turned(values: np.ndarray) -> np.ndarray:
    """Return values, which lie transposed, in the form of the keys."""
    turned: np.ndarray = values[0].swapaxes(1, 2)
    return turned


class LiteRTEngine:
    """A ``static`` graph whose caches are the interpreter's own tensors, or, where it hides
    them, are copied at every step (not ``in_place``)."""

    multi_token = True

    def __init__(self, interpreter: Any, spec: ModelSpec, *, name: str, file: str) -> None:
        self.name = name
        signatures = _check_signatures(interpreter, spec, file)
        self._interpreter = interpreter
        try:
            made = {key: _in_place(interpreter, key, spec) for key in signatures}
            self.in_place = _caches_stay(interpreter, made)
        except (AttributeError, TypeError):  # another form of the private interface
            self.in_place = False
        if not self.in_place:
            made = {key: _copying(interpreter, key, spec) for key in signatures}
        self.warnings: tuple[str, ...] = ()
        if not self.in_place:
            self.warnings = (f"{name} hides its tensors: every step copies the KV cache",)
        steps = [one for one in made.values() if one.tokens == 1]
        self._steps = sorted(steps, key=lambda one: one.room)
        self._prefill = next(one for one in made.values() if one.tokens > 1)
        self._all = [*self._steps, self._prefill]
        self._latest = self._steps[0]
        # Kernels of tflite-runtime take as long for a block as for its tokens.
        self._fill_from = 12 if name.startswith("ai-edge-litert") else self._prefill.tokens

    def step(self, token: int, past: int) -> np.ndarray:
        for one in self._steps:
            if past < one.room:
                break
        if one.valid < past:
            self._catch_up(one, past)
        one.ids[0] = token
        one.past[0] = past
        one.run()
        for cache, fresh in one.pairs:
            cache[:, past] = fresh
        self._wrote(one, past, 1)
        return one.logits

    def most(self, count: int, past: int) -> int:
        """Whole blocks, then a filled one or single steps."""
        size = min(self._prefill.tokens, count)
        return size if size >= self._fill_from else 1

    def block(self, tokens: Sequence[int], past: int) -> np.ndarray:
        one, size = self._prefill, len(tokens)
        self._catch_up(one, past)
        one.ids[:size] = tokens
        one.ids[size:] = 0
        one.past[0] = past
        assert one.row is not None
        one.row[0] = size - 1
        one.run()
        one.keep(past, size)
        self._wrote(one, past, size)
        return one.logits

    def _catch_up(self, one: _Signature, past: int) -> None:
        """Copy what another signature has read since this one ran."""
        latest, begin = self._latest, one.valid
        if begin < past:
            for cache, other in zip(one.caches, latest.caches):
                cache[:, begin:past] = other[:, begin:past]
            one.valid = past

    def _wrote(self, one: _Signature, past: int, count: int) -> None:
        for other in self._all:
            if other.valid > past:
                other.valid = past
        one.valid = past + count
        self._latest = one


def _check_signatures(interpreter: Any, spec: ModelSpec, file: str) -> list[str]:
    """Return the names of the signatures of a draft that fits its package."""
    found = interpreter.get_signature_list()
    names = sorted(key for key in found if key.split(".")[0] in ("step", "prefill"))
    for kind in ("step", "prefill"):
        if not any(key.split(".")[0] == kind for key in names):
            raise ModelError(
                f"{file} is no draft: it lacks the signature {kind}",
                hint="`draftwire export package --engine litert` makes drafts for LiteRT",
            )
    wanted = {f"{kind}.{i}" for i in range(spec.layers) for kind in ("key", "value")}
    longest = 0
    for key in names:
        caches = {name for name in found[key]["inputs"] if "." in name}
        if caches != wanted:
            raise ModelError(
                f"{file} has {len(caches)} cache inputs, its package says {spec.layers} "
                f"layers ({len(wanted)} inputs)"
            )
        runner = interpreter.get_signature_runner(key)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        _, heads, room, size = (int(n) for n in inputs["key.0"]["shape"])
        if (heads, size) != (spec.kv_heads, spec.head_dim):
            raise ModelError(
                f"{file}: its caches have heads and values {(heads, size)}, "
                f"its package says {(spec.kv_heads, spec.head_dim)}"
            )
        vocab = int(outputs["logits"]["shape"][-1])
        if vocab != spec.vocab_size:
            raise ModelError(
                f"{file} has {vocab} logits, its package says {spec.vocab_size}"
            )
        longest = max(longest, room if key.startswith("step") else 0)
    if longest < spec.capacity:
        raise ModelError(
            f"{file} has a cache of {longest} tokens, {spec.capacity} were asked for"
        )
    return names


def _arrays(interpreter: Any, key: str) -> tuple[dict[str, np.ndarray], int]:
    """Return a signature's tensors as arrays over their memory, and its subgraph."""
    wrapper = interpreter._interpreter
    index = wrapper.GetSubgraphIndexFromSignature(key)
    entry = interpreter._get_full_signature_list()[key]
    tensors = {**entry["inputs"], **entry["outputs"]}
    return {n: wrapper.tensor(wrapper, t, index) for n, t in tensors.items()}, index


def _in_place(interpreter: Any, key: str, spec: ModelSpec) -> _Signature:
    """Return a signature whose arrays are the interpreter's own memory."""
    wrapper = interpreter._interpreter
    wrapper.AllocateTensors(wrapper.GetSubgraphIndexFromSignature(key))
    arrays, index = _arrays(interpreter, key)
    invoke = wrapper.Invoke
    return _Signature(arrays, spec.layers, lambda: invoke(index))


def _caches_stay(interpreter: Any, signatures: dict[str, _Signature]) -> bool:
    """Tell whether runs leave the content and the place of the caches alone."""
    caches = [cache for one in signatures.values() for cache in one.caches]
    for cache in caches:
        cache[:] = 0.5
    for one in signatures.values():
        one.ids[:], one.past[:] = 0, 1
        if one.row is not None:
            one.row[:] = 0
        one.run()
    kept = all(bool((cache == 0.5).all()) for cache in caches)
    for key, one in signatures.items():
        now = _arrays(interpreter, key)[0]
        kept = kept and now["logits"].ctypes.data == one.logits.ctypes.data
        kept = kept and now["key.0"].ctypes.data == one.caches[0].ctypes.data
    for cache in caches:
        cache[:] = 0.0
    return kept


def _copying(interpreter: Any, key: str, spec: ModelSpec) -> _Signature:
    """Return a signature that runs through the public interface."""
    runner = interpreter.get_signature_runner(key)
    feeds, results = (
        {name: np.zeros(d["shape"], d["dtype"]) for name, d in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    )

    def run() -> None:
        for name, value in runner(**feeds).items():
            results[name][...] = value

    return _Signature({**feeds, **results}, spec.layers, run)
