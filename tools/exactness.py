"""The exactness suite: the reference target on every backend and in every dtype.

``draftwire bench verifier --numerics`` on the package, on a target that has evolved from it
(an adapter over its base), and on the same weights as a checkpoint in three dtypes, which
this makes first: five rows of 1,000 texts each unless ``--texts`` says otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from draftwire.cli import main
from draftwire.export.training.base import read_base, save_model

ROOT = Path(__file__).resolve().parents[1]
DTYPES = "float32,bfloat16,float16"


def checkpoint(version: str, folder: Path) -> Path:
    """Write a reference target as a Hugging Face folder; return it."""
    base = read_base(ROOT / "models" / f"{version}.target")
    save_model(base.model, base, folder)
    return folder


def run(words: list[str]) -> int:
    """Measure all; return 1 when a text came apart in exact mode."""
    command = ["bench", "verifier", "--numerics", "--texts", "1000", "--threads", "1"]
    folder = checkpoint("v1", ROOT / "out" / "v1.hf")
    worst = 0
    packages = [ROOT / "models" / f"{name}.target" for name in ("v1", "v3")]
    for target in (*packages, folder):
        worst |= main([*command, "--target", str(target), "--dtypes", DTYPES, *words])
        print(flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
