"""The tiny checkpoints of tests/export, for the matrix of families."""

from tests.export.conftest import models, tokenizer_file, torch_logits

__all__ = ["models", "tokenizer_file", "torch_logits"]
