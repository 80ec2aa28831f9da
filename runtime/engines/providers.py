"""Which execution provider a draft runs on, and whether it really does.

On a Jetson the installed onnxruntime may have TensorRT and CUDA; everywhere else, and
for graphs whose cache is updated in place, it is the CPU.  What onnxruntime does not do
as asked it does on the CPU without an error: the engine's ``warnings`` tell.

Source:
    onnxruntime, "NVIDIA - TensorRT Execution Provider": engine cache and shape ranges.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from draftwire import io
from draftwire.boards.providers import CPU, CPU_MEMORY, nodes_of, short_name
from draftwire.errors import ConfigError
from draftwire.runtime.engines.engine import Engine, ModelSpec

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
        if graph != "gqa":
            for provider in _GPU:
                if provider in available:
                    return provider, ()
        return CPU, ()
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
    """Return where engines that TensorRT builds for this board are kept.

    Beside the package is no place for them: it is frozen, and may be read-only.
    """
    return io.cache_folder(environ) / f"tensorrt-{version}" / draft[:16]


def provider_options(provider: str, spec: ModelSpec, cache: Path) -> dict[str, str]:
    """Return a provider's options.

    TensorRT gets a folder for its engines, and the range of every shape: without that
    it would build another engine whenever the context grows.

    Raises:
        ConfigError: The folder cannot be made.
    """
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
