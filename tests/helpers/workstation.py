"""Folders of tests that want the libraries of a workstation: all of them, or nothing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

LIBRARIES = "accelerate ai_edge_litert gguf huggingface_hub onnx onnxruntime peft".split()
LIBRARIES += "safetensors tokenizers torch transformers".split()
MISSING = [name for name in LIBRARIES if find_spec(name) is None]


def mark(items: list[pytest.Item], conftest: str) -> None:
    """Mark what lies in the folder of a ``conftest``."""
    for item in items:
        if item.path.parent == Path(conftest).parent:
            item.add_marker(pytest.mark.workstation)


def say(reporter: pytest.TerminalReporter, conftest: str) -> None:
    """Say that the folder was left out, and why."""
    if MISSING:
        folder = f"tests/{Path(conftest).parent.name}"
        reporter.write_line(f"{folder} is left out: no {', '.join(MISSING)}")
