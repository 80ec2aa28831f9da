"""A checkpoint as transformers runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError, ModelError


def load_model(folder: Path, dtype: Any = None) -> Any:
    """Return a directory's causal language model, nothing in it trained; float32 without a
    dtype.

    Only ``config.json`` and safetensors are read. A ConfigError where transformers or torch
    is not installed, a ModelError where it cannot be loaded.
    """
    try:
        import torch
        import transformers
    except ImportError as exc:
        raise ConfigError(
            f"this needs {exc.name}, which is not installed",
            hint="pip install 'draftwire[export]', on a workstation",
        ) from exc
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (KeyError, OSError, RuntimeError, ValueError) as exc:
        raise ModelError(
            f"transformers {transformers.__version__} cannot load {folder.name}: "
            f"{first_line(exc)}"
        ) from exc
    return model.eval().requires_grad_(False)


def first_line(exc: BaseException) -> str:
    """Return what a foreign error says, in one line."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
