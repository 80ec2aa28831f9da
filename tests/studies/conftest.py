"""The path to ``studies`` and ``tests/helpers``; the tiny models' fixtures."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
sys.path.append(str(ROOT))  # last: only `studies` is to be found there

from tiny_models import models, tokenizer_file  # noqa: E402

__all__ = ["models", "tokenizer_file"]
