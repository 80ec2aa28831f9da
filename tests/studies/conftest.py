"""The tiny models' fixtures; studies are tried by `make slow`, but for what is quick."""

import pytest
from tiny_models import models, tokenizer_file

__all__ = ["models", "tokenizer_file"]
QUICK = ("test_grid_bound.py", "test_a_study_runs_from_a_checkout")


def pytest_collection_modifyitems(items):
    for item in items:
        here = item.nodeid.startswith("tests/studies/")
        if here and not any(name in item.nodeid for name in QUICK):
            item.add_marker(pytest.mark.slow)
