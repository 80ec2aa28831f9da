"""The draft engine on onnxruntime.

Two forms of graph are known. ``gqa`` keeps past and present of a layer in one
preallocated buffer, bound once by pointer: a step copies nothing and rewinding is free.
``concat`` (Optimum's form: past in, longer present out) runs on any onnxruntime, and
copies the cache at every step.

On a Jetson the installed onnxruntime may have TensorRT and CUDA; everywhere else, and for
graphs whose cache is updated in place, it is the CPU. What onnxruntime does not do as
asked it does on the CPU without an error: the engine's ``warnings`` tell.

Source:
    onnxruntime, "NVIDIA - TensorRT Execution Provider": engine cache and shape ranges.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from draftwire import io
from draftwire.boards.providers import (
    CPU,
    CPU_MEMORY,
    check_session,
    engine_errors,
    nodes_of,
    short_name,
)
from draftwire.errors import ConfigError, ModelError
from draftwire.io import version_tuple
from draftwire.runtime.engines.engine import Engine, ModelSpec, first_line

# GroupQueryAttention of 1.18 and 1.19 gives wrong logits, without an error, for several
# new tokens with a past (checked on 1.18.1 and 1.19.2; right on 1.20.1 and later).
_GQA_LOADS_FROM = (1, 18)
_GQA_MULTI_TOKEN_FROM = (1, 20)

# Tokens per prefill forward: enough to fill the matrix units, few enough that the
# attention scores of a long prompt stay in the cache.
_CHUNK = 128
# Where blocks with a past are wrong, the first forward (no past) takes all it can.
_FIRST_CHUNK = 1024
# Bindings kept per block length; longer ones are rebuilt, which costs microseconds.
_KEPT_BINDINGS = 16
# Sequences that one forward can go on with. A cache takes memory as far as it is written.
_LANES = 4

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}


def _import_onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as exc:
        raise ConfigError(
            "the draft needs onnxruntime, which is not installed",
            hint="pip install 'draftwire[ort]' (on a Jetson: NVIDIA's onnxruntime-gpu)",
        ) from exc


def open_engine(
    path: Path,
    spec: ModelSpec,
    *,
    threads: int = 1,
    provider: str | None = None,
    draft_id: str = "",
) -> Engine:
    """Open an ONNX draft.

    Args:
        path: The ``.onnx`` file.
        spec: The model's shape, form of graph and cache capacity.
        threads: Threads inside one operator.
        provider: See :func:`~draftwire.runtime.engines.onnx.choose_provider`.
        draft_id: Id of the package, for what a provider builds and keeps.

    Raises:
        ConfigError: onnxruntime is not installed.
        ModelError: This onnxruntime cannot run the file, or it is not the model that the
            package describes.
    """
    ort = _import_onnxruntime()
    version = version_tuple(ort.__version__)
    needed = version_tuple(spec.min_engine)
    if spec.graph == "gqa":
        needed = max(needed, _GQA_LOADS_FROM)
    elif spec.graph != "concat":
        raise ModelError(
            f"{path.name} has the form {spec.graph!r}, known are gqa, concat",
            hint="update draftwire on this device",
        )
    if version < needed:
        raise ModelError(
            f"{path.name} needs onnxruntime {'.'.join(map(str, needed))} or newer, "
            f"this is {ort.__version__}",
            hint="update onnxruntime, or export the draft with --graph concat",
        )

    name = f"onnxruntime {ort.__version__}"
    provider, warnings = choose_provider(
        ort.get_available_providers(), provider, spec.graph, name=name
    )
    if spec.graph == "gqa" and provider not in CPU_MEMORY:
        raise ModelError(
            f"{path.name} keeps its cache in the memory of the CPU, and {provider} has "
            "a memory of its own",
            hint="run it on the CPU, or export the draft with --graph concat",
        )

    errors: tuple[type[Exception], ...] = (ModelError, *engine_errors(ort))
    for chosen in dict.fromkeys((provider, CPU)):
        try:
            engine = _open(ort, path, spec, threads, chosen, draft_id)
            break
        except errors as exc:
            if chosen == CPU:
                raise
            fell = f"{short_name(provider)} cannot run the draft: {first_line(exc)}"
            warnings = (*warnings, fell + "; it runs on the CPU")
    engine.warnings = (*warnings, *engine.warnings)
    return engine


def _open(
    ort: Any,
    path: Path,
    spec: ModelSpec,
    threads: int,
    provider: str,
    draft_id: str,
) -> SharedCacheEngine | ConcatEngine:
    """Open a draft on one provider; what it does not run is in the warnings."""
    name, options = f"onnxruntime {ort.__version__}", ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if threads > 1:  # idle ones that spin are quicker on an idle board, and waste energy
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cache = cache_folder(os.environ, draft_id or path.stem, ort.__version__)
    chosen: list[Any] = [CPU]
    profile = None
    if provider != CPU:
        chosen.insert(0, (provider, provider_options(provider, spec, cache)))
        profile = Profile(options)
    try:
        session = ort.InferenceSession(str(path), options, providers=chosen)
    except engine_errors(ort) as exc:
        raise ModelError(
            f"{name} cannot load {path}: {first_line(exc)}",
            hint="export the draft again, or update onnxruntime",
        ) from exc
    _check_caches(session, spec, path)
    engine: SharedCacheEngine | ConcatEngine
    if spec.graph == "gqa":
        right = version_tuple(ort.__version__) >= _GQA_MULTI_TOKEN_FROM
        engine = SharedCacheEngine(session, spec, name=name, multi_token=right)
    else:
        engine = ConcatEngine(session, spec, name=name)
    fell_back = check_session(session, provider)
    if fell_back:
        engine.warnings = (fell_back,)
    elif profile is not None:
        engine.warnings = first_run(engine, session, provider, profile, cache=cache)
    return engine


def _caches(session: Any) -> dict[str, Any]:
    found = {node.name: node for node in session.get_inputs()}
    return {n: node for n, node in found.items() if n.startswith("past_key_values.")}


def _check_caches(session: Any, spec: ModelSpec, path: Path) -> None:
    present = _caches(session)
    # A layer has keys and values, or the last inputs of its convolution (".conv").
    wanted = set()
    for name in (f"past_key_values.{layer}" for layer in range(spec.layers)):
        convolves = spec.graph == "gqa" and f"{name}.conv" in present
        wanted |= {f"{name}.{p}" for p in (("conv",) if convolves else ("key", "value"))}
    if set(present) != wanted or "input_ids" not in {n.name for n in session.get_inputs()}:
        raise ModelError(
            f"{path.name} has {len(present)} cache inputs, its package says "
            f"{spec.layers} layers ({len(wanted)} inputs)"
        )
    for name, node in present.items():
        found = (node.shape[1], node.shape[3]) if len(node.shape) == 4 else node.shape
        if name.endswith(".conv") and len(found) == 2 and isinstance(found[1], int):
            continue
        if found != (spec.kv_heads, spec.head_dim) or node.type not in _DTYPES:
            raise ModelError(
                f"{path.name}: {name} is {node.type} with heads and values {found}, "
                f"its package says ({spec.kv_heads}, {spec.head_dim})"
            )
    logits = session.get_outputs()[0]
    if logits.name != "logits" or logits.type != "tensor(float)":
        raise ModelError(f"{path.name}: the first output must be float32 'logits'")
    rows = logits.shape[-1]
    if isinstance(rows, int) and rows != spec.vocab_size:
        raise ModelError(
            f"{path.name} has {rows} logits, its package says {spec.vocab_size}"
        )


class _Bound:
    """What is bound for some lanes and one block length: ids, and where logits land."""

    def __init__(self, length: int, logits: np.ndarray) -> None:
        lanes = len(logits)
        self.ids = np.zeros((lanes, length), np.int64)
        self.seqlens = np.zeros(lanes, np.int32)
        self.first_row = np.array([length - logits.shape[1]], np.int64)
        self.logits = logits
        self.last: np.ndarray = self.logits[0, -1]
        self.binding: Any = None


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros of which the lanes behind the first take memory as they are written:
    huge pages would take nearly all at the first token."""
    lane = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    start = -(-lane // mmap.PAGESIZE) * mmap.PAGESIZE
    if start >= shape[0] * lane or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, shape[0] * lane)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE, start)
    return np.frombuffer(memory, dtype).reshape(shape)


class SharedCacheEngine:
    """A ``gqa`` graph whose caches are bound once: by input name, each ``(1, kv_heads,
    capacity, head_dim)``, or ``(1, 1, capacity, hidden)`` of a layer that convolves."""

    warnings: tuple[str, ...] = ()

    def __init__(
        self, session: Any, spec: ModelSpec, *, name: str, multi_token: bool
    ) -> None:
        self.name = name
        self.multi_token = multi_token
        self.session = session
        self._vocab_size = spec.vocab_size
        self._last_only = "logits_from" in {node.name for node in session.get_inputs()}
        nodes = _caches(session)
        convolves = any(key.endswith(".conv") for key in nodes)
        self.lanes = 1 if convolves else _LANES
        self._all = {
            key: _zeros(
                (self.lanes, node.shape[1], spec.capacity, node.shape[3]),
                _DTYPES[node.type],
            )
            for key, node in nodes.items()
        }
        self.caches = {key: cache[:1] for key, cache in self._all.items()}
        self._total = np.zeros((), np.int32)
        # By first lane, how many, tokens of each and rows of logits.
        self._kept: dict[tuple[int, int, int, int], _Bound] = {}
        self._rows = np.zeros((1, 0, self._vocab_size), np.float32)  # of all tails

        self.step = self._make_step()

    def _bind(self, first: int, count: int, length: int, rows: int) -> _Bound:
        rows = rows if self._last_only else length
        if rows == 1:
            logits = np.zeros((count, 1, self._vocab_size), np.float32)
        else:
            if rows > self._rows.shape[1]:
                self._rows = np.zeros((1, rows, self._vocab_size), np.float32)
            logits = self._rows[:, :rows]
        bound = _Bound(length, logits)
        bound.binding = binding = self.session.io_binding()

        def bind(to: Callable[..., None], key: str, array: np.ndarray) -> None:
            to(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        bind(binding.bind_input, "input_ids", bound.ids)
        bind(binding.bind_input, "seqlens_k", bound.seqlens)
        bind(binding.bind_input, "total_seq_len", self._total)
        if self._last_only:
            bind(binding.bind_input, "logits_from", bound.first_row)
        bind(binding.bind_output, "logits", bound.logits)
        for key, lanes in self._all.items():
            cache = lanes[first : first + count]
            bind(binding.bind_input, key, cache)
            bind(binding.bind_output, key.replace("past_key_values", "present"), cache)
        return bound

    def wide(self, first: int, tokens: Sequence[int], pasts: Sequence[int]) -> np.ndarray:
        rows: np.ndarray = self._run(first, [(one,) for one in tokens], pasts).logits[:, 0]
        return rows

    def copy(self, source: int, lane: int, start: int, end: int) -> None:
        for cache in self._all.values():
            cache[lane, :, start:end] = cache[source, :, start:end]

    def _make_step(self) -> Callable[[int, int], np.ndarray]:
        """Return the hot loop's step, over local names: three writes and one call."""
        # Kept: onnxruntime holds bare addresses, so the arrays must outlive this call.
        bound = self._kept[0, 1, 1, 1] = self._bind(0, 1, 1, 1)
        ids, seqlens, total = bound.ids[0], bound.seqlens, self._total
        binding, last = bound.binding, bound.last
        run = self.session.run_with_iobinding

        def step(token: int, past: int) -> np.ndarray:
            ids[0] = token
            seqlens[0] = past
            total[()] = past + 1
            run(binding)
            return last

        return step

    def most(self, count: int, past: int) -> int:
        most = _CHUNK
        if not self.multi_token:
            most = 1 if past else _FIRST_CHUNK
        return min(count, most)

    def block(self, tokens: Sequence[int], past: int) -> np.ndarray:
        return self._run(0, [tokens], [past]).last

    def tail(self, tokens: Sequence[int], past: int, rows: int) -> np.ndarray:
        last: np.ndarray = self._run(0, [tokens], [past], rows).logits[0, -rows:]
        return last

    def _run(
        self,
        first: int,
        tokens: Sequence[Sequence[int]],
        pasts: Sequence[int],
        rows: int = 1,
    ) -> _Bound:
        """Run as many tokens on each lane from ``first`` on, behind their pasts."""
        length = len(tokens[0])
        key = first, len(tokens), length, rows
        bound = self._kept.get(key)
        if bound is None:
            bound = self._bind(*key)
            if length <= _KEPT_BINDINGS or length == _CHUNK:
                self._kept[key] = bound
        bound.ids[:] = tokens
        bound.seqlens[:] = [past + length - 1 for past in pasts]
        self._total[()] = max(pasts) + length
        self.session.run_with_iobinding(bound.binding)
        return bound


class ConcatEngine:
    """A ``concat`` graph: the present of a step is the past of the next."""

    multi_token = True
    warnings: tuple[str, ...] = ()

    def __init__(self, session: Any, spec: ModelSpec, *, name: str) -> None:
        self.name = name
        self._session = session
        inputs = {node.name: node for node in session.get_inputs()}
        self._wants = frozenset(inputs)
        self._keys = list(_caches(session))
        known = {"input_ids", "attention_mask", "position_ids", "logits_from"}
        if strange := sorted(self._wants - known - {*self._keys}):
            raise ModelError(f"the draft's graph wants an unknown input: {strange[0]}")
        self._outputs = ["logits"] + [
            key.replace("past_key_values", "present") for key in self._keys
        ]
        empty = (1, spec.kv_heads, 0, spec.head_dim)
        self._past = [np.zeros(empty, _DTYPES[inputs[key].type]) for key in self._keys]
        self._ones = np.ones((1, spec.capacity), np.int64)
        self._positions = np.arange(spec.capacity, dtype=np.int64)[None]

    def most(self, count: int, past: int) -> int:
        return min(count, _CHUNK)

    def step(self, token: int, past: int) -> np.ndarray:
        return self.block((token,), past)

    def block(self, tokens: Sequence[int], past: int) -> np.ndarray:
        last: np.ndarray = self.tail(tokens, past, 1)[0]
        return last

    def tail(self, tokens: Sequence[int], past: int, rows: int) -> np.ndarray:
        length = len(tokens)
        total = past + length
        feeds: dict[str, np.ndarray] = {"input_ids": np.array([tokens], np.int64)}
        if "attention_mask" in self._wants:
            feeds["attention_mask"] = self._ones[:, :total]
        if "position_ids" in self._wants:
            feeds["position_ids"] = self._positions[:, past:total]
        if "logits_from" in self._wants:
            feeds["logits_from"] = np.array([length - rows], np.int64)
        for key, cache in zip(self._keys, self._past):
            # A rewind since the last step: only the first ``past`` tokens are valid.
            if cache.shape[2] != past:
                cache = np.ascontiguousarray(cache[:, :, :past])
            feeds[key] = cache
        logits, *self._past = self._session.run(self._outputs, feeds)
        last: np.ndarray = logits[0, -rows:]
        return last


CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
_GPU = (TENSORRT, CUDA)  # the one preferred first


def choose_provider(
    available: Sequence[str], wanted: str | None, graph: str, *, name: str
) -> tuple[str, tuple[str, ...]]:
    """Return onnxruntime's name of the provider to ask for, and warnings.

    ``wanted`` is "cpu", "cuda", "tensorrt", a name of onnxruntime's, or None (or "auto")
    for the best one that can run the graph. A ``gqa`` graph keeps its cache in the memory
    of the CPU, so on its own account it goes nowhere else.

    Raises:
        ConfigError: There is no such provider.
    """
    if wanted in (None, "auto"):
        best = [one for one in _GPU if one in available and graph != "gqa"]
        return (*best, CPU)[0], ()
    assert wanted is not None
    provider = PROVIDERS.get(wanted, wanted)
    if not provider.endswith("ExecutionProvider"):
        raise ConfigError(
            f"there is no provider {wanted!r}",
            hint=f"auto, {', '.join(PROVIDERS)}, or a name of onnxruntime's",
        )
    if provider not in available:
        names = ", ".join(short_name(one) for one in available)
        return CPU, (
            f"{short_name(provider)} was asked for, {name} has {names}: "
            "the draft runs on the CPU",
        )
    return provider, ()


def cache_folder(environ: Mapping[str, str], draft: str, version: str) -> Path:
    """Return where engines that TensorRT builds for this board are kept: beside the package
    is no place, which is frozen and may be read-only."""
    return io.cache_folder(environ) / f"tensorrt-{version}" / draft[:16]


def provider_options(provider: str, spec: ModelSpec, cache: Path) -> dict[str, str]:
    """Return a provider's options. TensorRT gets a folder for its engines (a ConfigError
    where it cannot be made), and the range of every shape: without that it would build
    another engine whenever the context grows."""
    if provider != TENSORRT:
        return {}
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"{cache} cannot be made: {exc.strerror}",
            hint="set XDG_CACHE_HOME to a folder that can be written",
        ) from exc
    caches = [
        f"past_key_values.{i}.{p}" for i in range(spec.layers) for p in ("key", "value")
    ]
    sizes = {"min": (1, 0), "opt": (1, spec.capacity // 2), "max": (128, spec.capacity)}
    ranges = {}
    for end, (tokens, past) in sizes.items():
        shape = f"1x{spec.kv_heads}x{past}x{spec.head_dim}"
        ranges[end] = [
            f"input_ids:1x{tokens}",
            f"attention_mask:1x{tokens + past}",
            f"position_ids:1x{tokens}",
            *(f"{cache}:{shape}" for cache in caches),
        ]
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_fp16_enable": "True",
        **{f"trt_profile_{end}_shapes": ",".join(ranges[end]) for end in ranges},
    }


class Profile:
    """onnxruntime's profile of one run, switched on in ``options``: which provider each
    node ran on."""

    def __init__(self, options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="draftwire-profile-")
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(self._folder.name, "run")

    def end(self, session: Any) -> dict[str, int]:
        """Stop profiling; return how many nodes ran, by provider."""
        with self._folder:
            return nodes_of(Path(session.end_profiling()))


def first_run(
    engine: Engine,
    session: Any,
    provider: str,
    profile: Profile,
    *,
    cache: Path,
    say: Callable[[str], None] | None = None,
) -> tuple[str, ...]:
    """Run one token on a provider; return warnings about where it really ran. ``say`` takes
    lines about progress (stderr); an empty ``cache`` has TensorRT build its engine now."""
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    builds = provider == TENSORRT and not any(cache.iterdir())
    if builds:
        tell(f"TensorRT builds an engine for this board, once; minutes ({cache})")
    start = time.monotonic()
    engine.step(0, 0)
    if builds:
        tell(f"TensorRT's engine is built, {time.monotonic() - start:.0f} s")
    nodes = profile.end(session)
    total, here = sum(nodes.values()), short_name(provider)
    if not total:
        return ()
    if not nodes.get(provider):
        return (f"{here} is in the session, but every node of the draft ran on the CPU",)
    if nodes.get(CPU) and provider not in CPU_MEMORY:
        return (f"{nodes[CPU]} of {total} nodes ran on the CPU, the others on {here}",)
    return ()
