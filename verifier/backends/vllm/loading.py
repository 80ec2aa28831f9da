"""From paths to targets on vLLM: one engine for a base and all adapters on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from draftwire.verifier.backends.hf_adapter import base_of
from draftwire.verifier.backends.vllm.adapters import rank_of

if TYPE_CHECKING:
    from draftwire.verifier.backends.streaming import StreamBackend
    from draftwire.verifier.backends.vllm.engine import VllmEngine


@dataclass
class VllmLoader:
    """Loads checkpoint and adapter folders."""

    slots: int = 16  # streams at the same time, on each engine
    context: int | None = None  # most tokens of a stream; None takes the model's own
    # torch dtype; None takes float32 on a CPU, the checkpoint's elsewhere
    dtype: str | None = None
    # paths that will be loaded: an engine is made with room for adapters when one of them
    # is an adapter
    targets: Sequence[Path] = ()
    engine_args: dict[str, Any] | None = None  # more of what vLLM's engine takes
    openai: tuple[str, int] | None = None  # address for OpenAI's clients of the same engine
    _engines: dict[Path, VllmEngine] = field(default_factory=dict)

    def __call__(self, path: Path) -> StreamBackend:
        """Load the target at ``path``.

        Raises:
            ConfigError: vLLM is not the one we know, or an option does not fit.
            IncompatibleError: It does not verify as we know it.
            ModelError: It does not load.
        """
        from draftwire.verifier.backends.vllm.engine import VllmEngine, VllmTarget

        base = base_of(path).resolve()
        engine = self._engines.get(base)
        if engine is None or engine.closed:
            ranks = [
                rank_of(each)
                for each in {path, *self.targets}
                if (each / "adapter_config.json").is_file()
            ]
            made = self.slots, self.context, self.dtype, max(ranks, default=0)
            engine = VllmEngine(base, *made, self.engine_args or {}, self.openai)
            self._engines[base] = engine
        return VllmTarget(path, engine)
