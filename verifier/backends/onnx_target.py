"""Target backend on onnxruntime: the embedded default, no torch and no download.

A forward takes a ragged batch in the form that :mod:`draftwire.export.graphs.target`
describes: right-padded tokens, the cached keys and values of each session, and how many
of them count. Each slot keeps its cache in one array ``(layers, 2, kv_heads, capacity,
head_dim)`` whose capacity grows with the text. The engine only reads it; keys and values
of new tokens come back and are written in place.

Sessions share a forward of the engine as long as padding all contexts to the longest one
costs less than one more forward; a session alone passes its own array, and nothing is
copied. ``python -m tools.forward`` measures that, docs/verifier.md has the figures.
"""

from __future__ import annotations

import logging
import threading
import weakref
from pathlib import Path
from typing import Any, Collection, Mapping, NamedTuple, Sequence

import numpy as np

from draftwire.errors import ConfigError, ModelError, PackageError
from draftwire.io import version_tuple
from draftwire.packages import TargetPackage, load_target
from draftwire.tensors import adapter_halves, read_tensors, target_weights
from draftwire.verifier.backends.base import (
    SHARED_BYTES,
    Cut,
    ExitListener,
    Form,
    Frame,
    SlotInput,
    SlotTarget,
    up,
)
from draftwire.verifier.backends.onnx_graph import MASK, PLACES, beside_of, mask_of, opened

log = logging.getLogger("draftwire.verifier")

Arrays = Mapping[str, "np.ndarray[Any, Any]"]
_GRAPH = "model.onnx"


class Engine(NamedTuple):
    """A session, the heads that share a key (0: no mask wanted), and empty halves."""

    session: Any
    group: int
    empty: dict[str, np.ndarray[Any, Any]]  # of adapters, by the names of inputs


class SharedBase:
    """The weights of a base target, and the engine that it shares with its versions."""

    def __init__(self, package: TargetPackage) -> None:
        base = package.base or package
        self.weights = read_tensors(base.path / "weights.safetensors")  # float32, by name
        # Made when a target needs it, and again when a version changes further layers.
        self.engine: Engine | None = None
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def run_beside(self, package: TargetPackage, threads: int | None) -> Arrays | None:
        """Make the engine fit a target; return what is fed with each forward of it.

        None where a layer of its adapter is no ``Gemm`` of a known form.

        Raises:
            PackageError: The adapter is damaged.
            ModelError: The engine refuses the graph.
        """
        pairs = adapter_halves(package, self.weights)
        with self._lock:  # targets load in threads of their own
            if self.engine is None or not self._names >= {*pairs}:
                names = sorted(self._names | {*pairs})
                engine = _make(package, self.weights, threads, names)
                if engine is None:
                    return None
                self.engine, self._names = engine, {*names}
        ends = (".a", ".b")
        return {n + end: half for n, pair in pairs.items() for end, half in zip(ends, pair)}


class WeightStore:
    """Base targets: read once, shared while a target in use builds on them."""

    def __init__(self) -> None:
        self._bases: weakref.WeakValueDictionary[str, SharedBase] = (
            weakref.WeakValueDictionary()
        )

    def base(self, package: TargetPackage) -> SharedBase:
        """Return what a target builds on; a PackageError where its tensors are damaged."""
        name = (package.base or package).id
        found = self._bases.get(name)
        if found is None:
            found = self._bases[name] = SharedBase(package)
        return found


class OnnxTarget(SlotTarget):
    """A target package on onnxruntime, with KV slots.

    Raises:
        ConfigError: onnxruntime is missing or too old, an option does not fit, or exact
            is more than this engine can be.
        PackageError: The package is damaged.
        ModelError: The engine refuses the graph.
    """

    # The graph sums over cached and over new tokens apart, so where a forward begins
    # decides bits; its products do not mind how many rows they have, but for one.
    forms = (Form(16, 2, 16), *SlotTarget.forms)

    def __init__(
        self,
        package: TargetPackage | str | Path,  # or its folder
        *,
        slots: int = 16,  # sessions at the same time
        context: int | None = None,  # most tokens of one; None takes the package's own
        threads: int | None = None,  # of the engine; None takes one for each core
        store: WeightStore | None = None,  # shares weights; None reads its own
        # share the engine of the base too, the adapter beside its weights, where the graph
        # can take it; exact numerics cannot
        beside: bool = False,
        numerics: str | None = None,  # "exact" or "close"; None takes close
    ) -> None:
        if not isinstance(package, TargetPackage):
            package = load_target(package)
        if context is not None and not 1 <= context <= package.context:
            raise ConfigError(
                f"a context of {context} is outside 1..{package.context} of "
                f"{package.path.name}"
            )
        self.id = package.id
        self.name, self.version = package.name, package.version
        self.family = package.family
        self.tokenizer_path = package.tokenizer_path
        super().__init__(slots, context or package.context, package.vocab_size)
        self.bos_id, self.eos_ids = package.bos_id, package.eos_ids
        shape = package.shape
        self._layers = shape.layers
        self._cache_shape = (shape.layers, shape.kv_heads, shape.head_dim)
        self._caches: dict[int, np.ndarray[Any, Any]] = {}  # of slots in use
        self._stage = np.zeros(0, np.float32)
        self._base = (store or WeightStore()).base(package)
        # A padded column is copied, multiplied and masked: measured, that takes as long
        # as reading some five times its bytes of weights.
        column = 5 * 4 * shape.layers * 2 * shape.kv_heads * shape.head_dim
        self._padding = sum(w.nbytes for w in self._base.weights.values()) // column
        self._package, self._threads = package, threads
        halves = None
        if beside and numerics != "exact":
            halves = self._base.run_beside(package, threads)
        self._weights: Arrays | None = None  # merged
        self._own: Engine | None = None
        if halves is None:
            self._weights = target_weights(package, self._base.weights)
            self._own = _make(package, self._weights, threads)
        self._halves = halves or {}
        self.masked = self._engine.group > 0
        self.exits = package.exits.exits if package.exits is not None else ()
        # Each packs its matrices for itself, so a target whose exits are in use takes the
        # memory of its weights twice: loaded when somebody first asks for exits.
        self._parts: list[Any] | None = None
        self._names = [(f"past.{i}.key", f"past.{i}.value") for i in range(shape.layers)]
        self._outputs = ["logits"] + [
            f"new.{i}.{kind}" for i in range(shape.layers) for kind in ("key", "value")
        ]
        self.settle(numerics, "close")

    @property
    def _engine(self) -> Engine:
        engine = self._own or self._base.engine
        assert engine is not None
        return engine

    def release(self, slot: int) -> None:
        """Give a slot back, and its memory."""
        super().release(slot)
        self._caches.pop(slot, None)

    def copy(self, source: int, slot: int, length: int) -> bool:
        """Copy rows; see :meth:`SlotTarget.copy`."""
        there = self._caches.get(source)
        column = 4 * int(np.prod(self._cache_shape)) * 2
        if there is None or length * column > SHARED_BYTES:
            return False
        self._room(slot, length)[:, :, :, :length] = there[:, :, :, :length]
        return True

    def _room(self, slot: int, length: int) -> np.ndarray[Any, Any]:
        """Return a slot's cache with room for ``length`` positions; what is there stays."""
        old = self._caches.get(slot)
        if old is not None and length <= old.shape[3]:
            return old
        # An eighth more than needed: growing costs a constant factor, and masked
        # columns a small one. Zeros, because masked columns must be finite.
        layers, kv_heads, dim = self._cache_shape
        room = up(length + length // 8, 64)
        data = np.zeros((layers, 2, kv_heads, room, dim), np.float32)
        if old is not None:
            data[:, :, :, : old.shape[3]] = old
        self._caches[slot] = data  # whole: another thread may be copying from it
        return data

    def together(self, cuts: list[Cut]) -> list[list[Cut]]:
        """Say which inputs share a forward of the engine.

        Sharing pads every context to the longest. Padding is worth it while it costs
        less than reading the weights once more for a forward of its own.
        """
        order = sorted(cuts, key=lambda cut: cut[1].start)
        groups = [order[:1]]
        padding = 0
        for cut in order[1:]:
            group = groups[-1]
            padding += len(group) * (cut[1].start - group[-1][1].start)
            if padding <= self._padding:
                group.append(cut)
            else:
                groups.append([cut])
                padding = 0
        return groups

    def run(
        self, frame: Frame, tell: ExitListener | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Run one forward of the engine; see :class:`SlotTarget`."""
        items = frame.items
        for item in items:
            self._room(item.slot, item.start + item.kept)
        feeds = {
            "input_ids": frame.ids,
            "past_lens": np.array([item.start for item in items], np.int64),
            "rows": frame.rows,
        }
        past = self._past(items)
        for names, layer in zip(self._names, past):
            feeds[names[0]], feeds[names[1]] = layer[0], layer[1]
        # The parts know a plain chain; exits are hints, and have nothing to say of leaves.
        chain = not any(item.leaves for item in items)
        parts = self._in_parts() if tell is not None and chain else None
        if parts is None:
            engine = self._engine
            if engine.group:
                feeds[PLACES], feeds[MASK] = frame.places(), mask_of(frame, engine.group)
            feeds.update(engine.empty)
            feeds.update(self._halves)
            logits, *new = engine.session.run(self._outputs, feeds)
        else:
            assert tell is not None
            for k, part in enumerate(parts):
                inputs, outputs = part.get_inputs(), [v.name for v in part.get_outputs()]
                results = part.run(outputs, {v.name: feeds[v.name] for v in inputs})
                feeds.update(zip(outputs, results))
                if k < len(parts) - 1:
                    rows = feeds["exit.logits"]
                    tell(k, frame.by_row(rows[:, : self.vocab_size]))
            logits, *new = (feeds[name] for name in self._outputs)
        # Nothing is kept before the last part is through: what a listener breaks off has
        # left no trace.
        for b, item in enumerate(items):
            end = item.start + item.kept
            cache = self._caches[item.slot][:, :, :, item.start : end]
            for i in range(self._layers):
                cache[i, 0] = new[2 * i][b, :, : item.kept]
                cache[i, 1] = new[2 * i + 1][b, :, : item.kept]
        return frame.by_row(logits[:, : self.vocab_size])

    def _in_parts(self) -> list[Any] | None:
        """Return sessions of the target's parts, or None when it has no exits (that work).

        The parts are those of :mod:`draftwire.export.graphs.parts`: they read the slots'
        caches as the whole graph does and give the same logits; exits speak between them.
        """
        if self._parts is None and self.exits:
            try:
                self._parts = self._load_parts()
            except (ModelError, PackageError) as error:
                # Exits are hints: a stream goes on without them.
                log.warning("%s serves without its exits: %s", self.name, error)
                self.exits = ()
        return self._parts

    def _load_parts(self) -> list[Any]:
        package, exits = self._package, self._package.exits
        assert exits is not None
        weights = self._weights or target_weights(package, self._base.weights)
        supply = {**read_tensors(exits.tensors.path), **weights}
        parts = []
        for part in exits.parts:
            missing = [name for name in part.weights if name not in supply]
            if missing:
                raise PackageError(
                    f"{part.file.path.name} of {package.path.name} asks for {missing[0]}, "
                    "which the target lacks",
                    hint="make the exits again: draftwire export exits",
                )
            own = {name: supply[name] for name in part.weights}
            parts.append(_session(part.file.path, own, self._threads))
        return parts

    def _past(self, batch: Sequence[SlotInput]) -> np.ndarray[Any, Any]:
        """Return ``(layers, 2, B, kv_heads, P, head_dim)`` of the cached tokens."""
        if len(batch) == 1:  # what lies behind the past is masked: no copy, no slice
            whole = self._caches[batch[0].slot][:, :, None]
            # But how far it goes must not depend on what else the slot has held.
            return whole[..., : batch[0].start, :].copy() if self.form.alone else whole
        layers, kv_heads, dim = self._cache_shape
        longest = max(item.start for item in batch)
        shape = (layers, 2, len(batch), kv_heads, longest, dim)
        size = int(np.prod(shape))
        if size > self._stage.size:
            self._stage = np.zeros(size, np.float32)
        stage = self._stage[:size].reshape(shape)
        for b, item in enumerate(batch):
            past = self._caches[item.slot]
            stage[:, :, b, :, : item.start] = past[:, :, :, : item.start]
            stage[:, :, b, :, item.start :] = 0  # masked, but must be finite
        return stage


def _make(
    package: TargetPackage,
    weights: Arrays,
    threads: int | None,
    names: Collection[str] = (),
) -> Engine | None:
    """Return an engine, None where it cannot take halves for the weights ``names``."""
    base = package.base or package
    if _GRAPH not in base.files:
        raise PackageError(f"{base.path.name} has no {_GRAPH}")
    ort = _onnxruntime()
    needs = base.files[_GRAPH].min_engine
    if needs and version_tuple(ort.__version__) < version_tuple(needs):
        raise ConfigError(
            f"{base.path.name} needs onnxruntime {needs} or newer, this is "
            f"{ort.__version__}",
            hint=f"pip install 'onnxruntime>={needs}'",
        )
    path = base.path / _GRAPH
    raw = path.read_bytes()
    graph, group = opened(raw) or (None, 0)
    if names:
        graph, found = beside_of(graph or raw, names)
        if found != {*names}:
            return None
    empty = {}
    for name in names:
        tall, wide = weights[name].shape
        empty[name + ".a"] = np.zeros((0, wide), np.float32)
        empty[name + ".b"] = np.zeros((tall, 0), np.float32)
    return Engine(_session(path, weights, threads, graph), group, empty)


def _session(
    path: Path, weights: Arrays, threads: int | None, graph: bytes | None = None
) -> Any:
    """Return a session of the graph at ``path``, or of ``graph`` made of it.

    Every tensor of ``weights`` is one that it asks for.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Between blocks a verifier waits for devices; its threads should not.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Each engine packs its matrices for itself, even those that are shared: without
    # that (session.disable_prepacking) four targets of 19 MB took 30 MB less, and
    # blocks of 1 to 6 tokens took 20 to 40 % longer.
    names = list(weights)
    values = [ort.OrtValue.ortvalue_from_numpy(weights[name]) for name in names]
    options.add_external_initializers(names, values)
    try:
        return ort.InferenceSession(
            graph or str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - the engine's classes are its own
        raise ModelError(
            f"onnxruntime {ort.__version__} cannot load {path.parent.name}/{path.name}: "
            f"{str(error).splitlines()[0][:300]}",
            hint="export the target again with this version of draftwire",
        ) from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "the onnx backend needs onnxruntime, which is not installed",
            hint="pip install 'draftwire[ort]'",
        ) from error
    return onnxruntime
