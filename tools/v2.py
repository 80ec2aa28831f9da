"""Whether drafts are verified on vLLM's V2 model runner: at most ten minutes on a GPU.

    python tools/v2.py [--target FOLDER]       on a GPU, with vllm, pytest and numpy
    python tools/v2.py --interpreted TRITON    without one: TRITON is a folder that
                                               pip's --target has put triton in

Texts of ``tests/engine/test_vllm.py`` (greedy, coupled, top-k and top-p; right, 80 %
right, wrong and absent drafts; cost and race; lost links), and then ``tools.steps`` on a
checkpoint folder. Without a GPU Triton's own interpreter runs the kernels, slowly, so the
texts are few and short, in memory that is too little for them, and steps are not measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXTS = "own_engine or without_draftwire or texts_with_drafts or lose_nothing"
_TEXTS_S, _STEPS_S = 330, 240  # together with what starts them, ten minutes

# Triton tells nobody that it interprets: vLLM looks for a backend that is called "cpu".
_BACKEND = {
    "backend/__init__.py": "",
    "backend-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: backend\nVersion: 0\n",
    "backend-0.dist-info/entry_points.txt": "[triton.backends]\ncpu = backend\n",
    "backend/driver.py": """
from triton.backends.driver import DriverBase

class Interpreted(DriverBase):
    is_active = classmethod(lambda cls: True)
    map_python_to_cpp_type = get_active_torch_device = get_benchmarker = None

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 0)
""",
    "backend/compiler.py": """
from triton.backends.compiler import BaseBackend

class Interpreted(BaseBackend):
    supports_target = staticmethod(lambda target: target.backend == "cpu")
    hash = parse_options = add_stages = load_dialects = get_module_map = None
""",
}


def environment(triton: Path | None, scratch: Path) -> dict[str, str]:
    """Return what the runner and the tests are told."""
    found = dict(os.environ, VLLM_USE_V2_MODEL_RUNNER="1")
    paths = [str(ROOT / "src")]
    if triton is None:
        found.setdefault("VLLM_BATCH_INVARIANT", "1")
    else:
        for name, text in _BACKEND.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_text(text)
        paths += [str(triton), str(scratch)]
        found.update(
            TRITON_INTERPRET="1",
            VLLM_COMPUTE_NANS_IN_LOGITS="0",  # its kernel is not interpreted
            DRAFTWIRE_TESTS_SMALL="1",
        )
    found["PYTHONPATH"] = os.pathsep.join(paths)
    return found


def run(command: list[str], told: dict[str, str], limit_s: float | None) -> int:
    """Run a part, say how long it took, and return its exit code."""
    began = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, env=told, timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        code = 124
    print(f"exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
    return code


def main() -> int:
    """Run both parts; return 0 where texts are the engine's own."""
    parser = argparse.ArgumentParser(description="drafts on vLLM's V2 model runner")
    parser.add_argument("--target", type=Path, help="checkpoint folder to measure steps on")
    parser.add_argument("--interpreted", type=Path, metavar="TRITON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        told = environment(args.interpreted, Path(scratch))
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "--timeout=0"]
        command += ["tests/engine/test_vllm.py", "-k", TEXTS]
        code = run(command, told, None if args.interpreted else _TEXTS_S)
        if args.target and not code:
            command = [sys.executable, "-m", "tools.steps", "--target", str(args.target)]
            code = run([*command, "--rounds", "5", "--tokens", "48"], told, _STEPS_S)
    return code


if __name__ == "__main__":
    sys.exit(main())
