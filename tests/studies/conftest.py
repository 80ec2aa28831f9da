"""The path to ``studies``, and the tiny models' fixtures."""

import sys
from pathlib import Path

from tiny_models import models, tokenizer_file

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: for `studies` alone

__all__ = ["models", "tokenizer_file"]
