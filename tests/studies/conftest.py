"""The path to ``studies`` and ``tests/helpers``; the tiny models of ``tests/export``."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
sys.path.append(str(ROOT))  # last: only `studies` is to be found there

_spec = importlib.util.spec_from_file_location(
    "tiny_models", ROOT / "tests" / "export" / "conftest.py"
)
assert _spec is not None and _spec.loader is not None
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)
models, tokenizer_file = _tiny.models, _tiny.tokenizer_file
