"""The tiny models' fixtures."""

from tiny_models import models, tokenizer_file

__all__ = ["models", "tokenizer_file"]
