"""The tiny models' fixtures, and the slots of a target."""

import pytest
from tiny_models import model_copy, models, tokenizer_file

__all__ = ["model_copy", "models", "slots", "tokenizer_file"]


@pytest.fixture
def slots(target):
    """All slots of a module's ``target``, taken for one test."""
    taken = [target.allocate() for _ in range(target.slots)]
    yield taken
    for slot in taken:
        target.release(slot)
