"""Puts ``tests/helpers`` on the path: ``plain_sampling`` makes the vectors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
