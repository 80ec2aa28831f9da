"""For all tests: ``tests/helpers`` on the path, and a folder for what is remembered."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Iterator

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "helpers"))
sys.path.append(str(HERE.parent))  # last: only `studies` and `tools` are found there
# A shell's background job ignores Ctrl-C, and so would every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tiny_models import (  # noqa: E402
    model_copy,
    models,
    targets,
    tokenizer_file,
    torch_logits,
)
from workstation import (  # noqa: E402
    pytest_collection_modifyitems,
    pytest_ignore_collect,
    pytest_terminal_summary,
)

__all__ = ["model_copy", "models", "targets", "tokenizer_file", "torch_logits"]
__all__ += ["pytest_collection_modifyitems", "pytest_ignore_collect"]
__all__ += ["pytest_terminal_summary"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Run a test that is a coroutine in a loop of its own, for five minutes at most."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    asyncio.run(asyncio.wait_for(test, 300))
    return True


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
