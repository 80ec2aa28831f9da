"""Runs on the (emulated) board: imports, doctor, and the same texts as the host.

    python3 on_board.py JOB.json

JOB.json: {"url": ..., "drafts": {engine: folder}, "prompts": [...], "python": wrapper,
"fake": root of a recorded board, or null}. The recorded board's /proc and /sys are this
process's own as well. The last line of its output is a JSON object.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import platform
import sys


def doctor(*words: str) -> dict[str, object]:
    """Return what ``boards doctor`` says, and its exit code."""
    from draftwire.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["boards", "doctor", *words, "--json"])
    return {"exit_code": code, "report": json.loads(said.getvalue())}


def texts(url: str, draft: str, prompts: list[str]) -> list[dict[str, object]]:
    """Generate greedily and coupled; return the token ids and how many were accepted."""
    import draftwire

    found: list[dict[str, object]] = []
    # An emulated processor is slow: patience is no part of what is tested.
    waits = {"timeout_s": 120.0, "silence_s": 120.0, "energy": "off"}
    with draftwire.connect(url, draft=draft, **waits) as session:
        for number, prompt in enumerate(prompts):
            options = {"temperature": 0.8, "seed": number} if number % 2 else {}
            for _ in session.generate(
                prompt, max_new_tokens=24, patience_s=120.0, **options
            ):
                pass
            report = session.report
            assert report is not None
            found.append(
                {
                    "token_ids": report["token_ids"],
                    "accepted": report["accepted"],
                    "drafted": report["drafted"],
                    "engine": report["draft"]["engine"],
                }
            )
    return found


def main() -> int:
    """Do the job; print the result."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    if job.get("python"):  # under an emulator a child needs the emulator, too
        sys.executable = job["python"]
    result: dict[str, object] = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libc": list(platform.libc_ver()),
        "versions": {
            name: getattr(importlib.import_module(name), "__version__", "?")
            for name in job["modules"]
        },
    }
    if job.get("fake"):
        result["recorded"] = doctor("--root", job["fake"])
        result["doctor"] = doctor("--draft", next(iter(job["drafts"].values())))
    result["texts"] = {
        engine: texts(job["url"], draft, job["prompts"])
        for engine, draft in job["drafts"].items()
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
