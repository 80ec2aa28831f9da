"""Ten versions of a target beside one base: memory and time.

    python -m studies.versions [--backend onnx --layers 30 --hidden 576 --rank 16]

A model of SmolLM2-135M's shape with random weights (speed and memory do not depend on
them) and LoRA adapters of random numbers in every projection. Each way in a process of
its own, whose memory is what the kernel says it holds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from studies.command import Say, markdown, start

_BLOCKS = ((1, 1), (1, 5), (8, 5))  # streams, tokens of each


def _make(folder: Path, args: argparse.Namespace) -> None:
    """Write the base and its adapters."""
    import tokenizers
    import torch
    import transformers
    from safetensors.torch import save_file

    config = transformers.LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 256 or 1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    words = {f"w{i}": i for i in range(args.vocab)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
    made.save(str(folder / "base" / "tokenizer.json"))
    for number in range(args.versions):
        torch.manual_seed(number)
        tensors = {}
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                tall, wide = weight.shape
                stem = "base_model.model." + name[: -len("weight")]
                tensors[f"{stem}lora_A.weight"] = torch.randn(args.rank, wide) / 100
                tensors[f"{stem}lora_B.weight"] = torch.randn(tall, args.rank) / 100
        place = folder / f"v{number}"
        place.mkdir()
        save_file(tensors, str(place / "adapter_model.safetensors"))
        named = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "base")}
        text = json.dumps({**named, "r": args.rank, "lora_alpha": args.rank})
        (place / "adapter_config.json").write_text(text)
    if args.backend == "onnx":
        from draftwire.export.adapter import package_adapter
        from draftwire.export.onnx import export_onnx

        base = export_onnx(folder / "base", folder / "base.target", role="target")
        for number in range(args.versions):
            place = folder / f"v{number}"
            package_adapter(place, base, f"{place}.target", version=place.name)


def _held() -> float:
    """Return this process's share of memory in MB, without what is on loan.

    The proportional set, which counts what is mapped from files too.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    rollup = Path("/proc/self/smaps_rollup").read_text("ascii")
    (kilobytes,) = re.findall(r"^Pss: +(\d+) kB", rollup, re.M)
    return int(kilobytes) * 1024 / 1e6


def measure(folder: Path, way: str, versions: int, rounds: int) -> dict[str, Any]:
    """Load ``versions`` in this process; return MB, or of ``both`` ways milliseconds."""
    backend = "onnx" if (folder / "base.target").exists() else "hf"
    if backend == "hf":
        import torch  # noqa: F401  (its own memory is no version's)
        import transformers  # noqa: F401
    from draftwire.verifier.backends.base import SlotInput
    from draftwire.verifier.backends.loading import Loader

    ways = ("merged", "beside") if way == "both" else (way,)
    how: dict[str, Any] = {"slots": 8, "context": 256, "threads": 1}
    loaders = [Loader(backend, adapters=way, **how) for way in ways]
    before = _held()
    end = ".target" if backend == "onnx" else ""
    targets = [load(folder / f"v{n}{end}") for load in loaders for n in range(versions)]
    rng = np.random.default_rng(1)
    slots = [[target.allocate() for _ in range(8)] for target in targets]
    times: dict[str, dict[str, float]] = {way: {} for way in ways}
    for number in range(rounds if way == "both" else len(targets)):
        which = number % len(targets)  # in turns: both ways meet the same neighbours
        for streams, tokens in _BLOCKS:
            batch = [
                SlotInput(slot, 0, rng.integers(0, 1000, tokens), tokens)
                for slot in slots[which][:streams]
            ]
            began = time.process_time()  # whoever else is on the machine takes none of it
            targets[which].forward(batch)
            took = 1e3 * (time.process_time() - began)
            found, size = times[ways[which // versions]], f"{streams} x {tokens}"
            found[size] = min(took, found.get(size, took))
    return {"mb": _held() - before, "ms": times}


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Measure both ways in turns."""
    with tempfile.TemporaryDirectory() as folder:
        say("writing a base and its adapters")
        _make(Path(folder), args)
        cases = [("merged", 1), ("beside", 1), ("beside", args.versions), ("both", 1)]
        held: dict[str, list[float]] = {}
        times: dict[str, dict[str, float]] = {}
        for turn in range(args.turns):
            for way, versions in cases:
                words = [sys.executable, "-m", "studies.versions", "--measure", folder]
                words += [way, str(versions), str(args.rounds)]
                out = subprocess.run(words, check=True, stdout=subprocess.PIPE)
                one = json.loads(out.stdout)
                if way != "both":
                    say(f"turn {turn}: {way}, {versions}: {one['mb']:.0f} MB")
                    held.setdefault(f"{way}, {versions}", []).append(one["mb"])
                    continue
                say(f"turn {turn}: {one['ms']}")
                for kind, found in one["ms"].items():
                    best = times.setdefault(kind, found)
                    best.update({size: min(ms, best[size]) for size, ms in found.items()})
    medians = {name: statistics.median(found) for name, found in held.items()}
    return {"schema": "draftwire.study.versions/2", "mb": medians, "ms": times}


def render(document: dict[str, Any]) -> str:
    """Return the document as two tables."""
    one = document["mb"]["merged, 1"]
    held = [(name, f"{mb:.0f}", f"{mb / one:.2f}") for name, mb in document["mb"].items()]
    beside = document["ms"]["beside"]
    times = [
        (size, f"{ms:.2f}", f"{beside[size]:.2f}", f"{beside[size] / ms:.2f}")
        for size, ms in document["ms"]["merged"].items()
    ]
    lines = [*markdown(["way, versions", "MB", "of one merged"], held), ""]
    heads = ["streams x tokens", "merged, processor ms", "beside", ""]
    return "\n".join(lines + markdown(heads, times))


FLAGS = """
--backend {hf,onnx} =hf  checkpoints, or packages of them
--layers N =30    of the model
--hidden N =576   likewise
--vocab N =49152  likewise
--rank N =8       of the adapters, in every projection
--versions N =10  beside one base
--rounds N =60    of forwards, the best of which counts
--turns N =3      processes for each way
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        place, kind, count, times = sys.argv[2:]
        print(json.dumps(measure(Path(place), kind, int(count), int(times))))
    else:
        question = "Ten versions of a target beside one base: memory and time."
        sys.exit(start("studies.versions", question, FLAGS, study, render))
