"""The tiny models' fixtures."""

from tiny_models import model_copy, models, tokenizer_file, torch_logits

__all__ = ["model_copy", "models", "tokenizer_file", "torch_logits"]
