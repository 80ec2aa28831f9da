"""Puts ``tests/helpers`` on the path, and brings the tiny models' fixtures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from tiny_models import model_copy, models, tokenizer_file, torch_logits  # noqa: E402

__all__ = ["model_copy", "models", "tokenizer_file", "torch_logits"]
