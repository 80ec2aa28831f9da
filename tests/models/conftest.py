"""The tiny models' fixtures; what this folder wants of the machine."""

from pathlib import Path

import pytest
import workstation
from tiny_models import models, tokenizer_file, torch_logits

__all__ = ["models", "tokenizer_file", "torch_logits"]

EVERY = sorted(path.name for path in Path(__file__).parent.glob("test_*.py"))
collect_ignore = EVERY if workstation.MISSING else []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    workstation.mark(items, __file__)


def pytest_terminal_summary(terminalreporter):
    workstation.say(terminalreporter, __file__)
