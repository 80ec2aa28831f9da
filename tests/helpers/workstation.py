"""Folders of tests that want the libraries of a workstation: all of them, or nothing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

LIBRARIES = "accelerate ai_edge_litert gguf huggingface_hub onnx onnxruntime peft".split()
LIBRARIES += "safetensors tokenizers torch transformers".split()
MISSING = [name for name in LIBRARIES if find_spec(name) is None]
FOLDERS = {Path(__file__).resolve().parents[1] / name for name in ("export", "models")}
LEFT_OUT: set[Path] = set()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave a folder out where a library is missing."""
    if not MISSING or collection_path.parent not in FOLDERS:
        return None
    LEFT_OUT.add(collection_path.parent)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in these folders."""
    for item in items:
        if item.path.parent in FOLDERS:
            item.add_marker(pytest.mark.workstation)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which folder was left out, and why."""
    for folder in sorted(LEFT_OUT):
        why = ", ".join(MISSING)
        terminalreporter.write_line(f"tests/{folder.name} is left out: no {why}")
