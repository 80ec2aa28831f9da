"""Runs in an environment of Optimum's: one line of JSON in, one out; knows no draftwire."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Export the checkpoint ``folder`` to ``out``; say by what, or what failed."""
    job = json.loads(sys.stdin.readline())
    answer: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            from optimum.exporters.onnx import main_export

            main_export(
                job["folder"],
                output=job["out"],
                task="text-generation-with-past",
                device="cpu",
                opset=18,
                do_validation=False,
                no_post_process=True,
                trust_remote_code=False,
                local_files_only=True,
            )
            answer = {n: version(n) for n in ("optimum-onnx", "transformers", "torch")}
        except Exception as exc:  # noqa: BLE001  whatever it is, the parent says it
            lines = str(exc).strip().splitlines() or [type(exc).__name__]
            answer["error"] = lines[0][:200]
    print(json.dumps(answer))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, no code of a model is run
    main()
