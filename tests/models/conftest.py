"""The tiny models' fixtures."""

from tiny_models import models, tokenizer_file, torch_logits

__all__ = ["models", "tokenizer_file", "torch_logits"]
