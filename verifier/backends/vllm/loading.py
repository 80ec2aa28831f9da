"""From paths to targets on vLLM: one engine for a base and all adapters on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from draftwire.errors import ModelError
from draftwire.tensors import write_tensors
from draftwire.verifier.backends.hf_adapter import base_of

if TYPE_CHECKING:
    from draftwire.verifier.backends.streaming import StreamBackend
    from draftwire.verifier.backends.vllm.engine import VllmEngine


def rank_of(folder: Path) -> int:
    """Return the rank of an adapter, as vLLM wants it: a power of two from 8 on.

    Raises:
        ModelError: Its configuration is damaged.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the adapter {folder} cannot be read: {error}") from error
    return max(8, 1 << (rank - 1).bit_length())


def empty_adapter(base: Path, folder: Path) -> Path:
    """Write an adapter of zeros for a checkpoint into ``folder``, and return that."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    hidden = int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    wide = heads * int(config.get("head_dim") or hidden // heads)
    about: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_%s.weight"
    zeros = {
        name % "A": np.zeros((1, hidden), np.float32),
        name % "B": np.zeros((wide, 1), np.float32),
    }
    write_tensors(folder / "adapter_model.safetensors", zeros)
    return folder


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
            engine = self._engines[base] = VllmEngine(base, self, max(ranks, default=0))
        return VllmTarget(path, engine)
