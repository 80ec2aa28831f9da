"""``python -m draftwire.runtime.engines.probe DRAFT``: does a draft open here?

A process of its own for those who want to know whether a draft runs on a machine where
opening it may end the process. One JSON object to stdout; exit code 0 when it ran.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from draftwire.errors import DraftwireError

if TYPE_CHECKING:
    from draftwire.packages import DraftPackage, PackageFile


_STEPS = 32
_CAPACITY = 64  # tokens of cache for a provider's trial: enough to run every node
_ONNX = "onnxruntime"


def main(words: Sequence[str]) -> int:
    """Run it and print the JSON object."""
    parser = argparse.ArgumentParser(prog="python -m draftwire.runtime.engines.probe")
    parser.add_argument("draft", type=Path)
    parser.add_argument(
        "--engine", help="open it on this one, or as a session would (auto); without: list"
    )
    parser.add_argument("--provider", help="try this execution provider of onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    try:
        from draftwire.packages import load_draft

        package = load_draft(args.draft)
        if args.engine is None:
            found = describe(package)
        elif args.provider is None:
            engine = None if args.engine == "auto" else args.engine
            found = probe_draft(package, engine, threads=args.threads)
        else:
            found = probe_provider(package, args.provider, threads=args.threads)
    except DraftwireError as exc:
        print(json.dumps({"error": {**exc.to_dict(), "exit_code": exc.exit_code}}))
        return exc.exit_code
    print(json.dumps(found))
    return 0


def describe(package: DraftPackage) -> dict[str, Any]:
    """Return what the package is, and the engines that it has a model for."""
    models = [file for file in package.files.values() if file.precision]
    return {
        "id": package.id,
        "name": package.name,
        "engines": sorted({file.engine for file in models}),
        "precisions": list(package.precisions),
        "bytes": sum(file.bytes for file in package.files.values()),
        "vocab_size": package.vocab_size,
        "context": package.context,
    }


def probe_draft(
    package: DraftPackage, engine: str | None, *, threads: int
) -> dict[str, Any]:
    """Open the draft as a session would, run a few tokens, and measure."""
    from draftwire.packages import load_tokenizer
    from draftwire.runtime.engines.draft_model import DraftModel

    start = time.perf_counter()
    load_tokenizer(package.tokenizer_path).encode("Once upon a time")
    wanted: dict[str, Any] = {} if engine is None else {"engine": engine}
    model = DraftModel.load(package, threads=threads, **wanted)
    load_s = time.perf_counter() - start
    first = 0 if package.bos_id is None else package.bos_id
    times = []
    for _ in range(min(_STEPS, package.context)):
        start = time.perf_counter()
        model.forward([first])
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "engine": model.engine,
        "precision": model.precision,
        "threads": model.threads,
        "load_s": load_s,
        "step_ms": sorted(times)[len(times) // 2] * 1e3,
        "peak_bytes": peak,
        "warnings": list(getattr(model, "warnings", ())),
    }


def probe_provider(package: DraftPackage, provider: str, *, threads: int) -> dict[str, Any]:
    """Run one token of the draft on an execution provider, and look where nodes ran."""
    from dataclasses import replace

    from draftwire.boards.providers import CPU_MEMORY, try_provider

    file = package.model_file(engine=_ONNX)
    trial = try_provider(
        file.path,
        provider,
        lambda session: draft_feeds(session, package, file),
        threads=threads,
    )
    if trial.ran and file.graph == "gqa" and provider not in CPU_MEMORY:
        why = "a session runs this draft on the CPU, where its cache is (--graph concat)"
        trial = replace(trial, note=f"{trial.note}; {why}" if trial.note else why)
    return trial.to_dict()


def draft_feeds(
    session: Any, package: DraftPackage, file: PackageFile
) -> Mapping[str, Any]:
    """Return inputs for one token with nothing before it, for either form of graph."""
    import numpy as np

    room = _CAPACITY if file.graph == "gqa" else 0
    known = {
        "input_ids": np.zeros((1, 1), np.int64),
        "seqlens_k": np.zeros(1, np.int32),
        "total_seq_len": np.ones((), np.int32),
        "attention_mask": np.ones((1, 1), np.int64),
        "position_ids": np.zeros((1, 1), np.int64),
        "logits_from": np.zeros(1, np.int64),
    }
    half = "tensor(float16)"
    return {
        node.name: known[node.name]
        if node.name in known
        else np.zeros(
            (1, node.shape[1], room, node.shape[3]),
            np.float16 if node.type == half else np.float32,
        )
        for node in session.get_inputs()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
