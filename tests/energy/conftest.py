"""Puts ``tests/helpers`` on the path: ``energy_lab`` serves several test files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
