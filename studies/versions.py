"""Ten versions of a target beside one base: memory and time, on the transformers backend.

    python -m studies.versions [--layers 30 --hidden 576 --rank 16 --versions 10]

A model of SmolLM2-135M's shape with random weights (speed and memory do not depend on
them) and LoRA adapters of random numbers in every projection. Each way in a process of
its own, whose memory is what the kernel says it holds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from studies.command import start

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


def _held() -> float:
    """Return what this process holds in MB, what it has mapped of files included."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(folder: Path, way: str, versions: int, rounds: int) -> dict[str, Any]:
    """Load ``versions`` in this process; return MB and milliseconds of forwards."""
    import torch  # noqa: F401  (its own memory is no version's)
    import transformers  # noqa: F401

    from draftwire.verifier.backends.base import SlotInput
    from draftwire.verifier.backends.loading import Loader

    loader = Loader(backend="hf", slots=8, context=256, adapters=way)
    before = _held()
    targets = [loader(folder / f"v{number}") for number in range(versions)]
    rng = np.random.default_rng(1)
    times: dict[str, list[float]] = {}
    slots = [[target.allocate() for _ in range(8)] for target in targets]
    for number in range(rounds):
        which = number % versions
        for streams, tokens in _BLOCKS:
            batch = [
                SlotInput(slot, 0, rng.integers(0, 1000, tokens), tokens)
                for slot in slots[which][:streams]
            ]
            began = time.perf_counter()
            targets[which].forward(batch)
            took = time.perf_counter() - began
            times.setdefault(f"{streams} x {tokens}", []).append(1e3 * took)
    memory = _held() - before
    return {"mb": memory, "ms": {size: min(found) for size, found in times.items()}}


def study(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure both ways in turns."""
    with tempfile.TemporaryDirectory() as folder:
        say("writing a base and its adapters")
        _make(Path(folder), args)
        found: dict[str, Any] = {}
        cases = [("merged", 1), ("beside", 1), ("beside", args.versions)]
        for turn in range(args.turns):
            for way, versions in cases:
                words = [sys.executable, "-m", "studies.versions", "--measure", folder]
                words += [way, str(versions), str(args.rounds)]
                out = subprocess.run(words, check=True, stdout=subprocess.PIPE)
                one = json.loads(out.stdout)
                say(f"turn {turn}: {way}, {versions}: {one['mb']:.0f} MB, {one['ms']}")
                row = found.setdefault(f"{way} {versions}", {"mb": [], "ms": {}})
                row["mb"].append(one["mb"])
                for size, ms in one["ms"].items():
                    row["ms"].setdefault(size, []).append(ms)
    rows = {
        name: {
            "mb": statistics.median(row["mb"]),
            "ms": {size: min(times) for size, times in row["ms"].items()},
        }
        for name, row in found.items()
    }
    return {"schema": "draftwire.study.versions/1", "versions": args.versions, "rows": rows}


def render(document: dict[str, Any]) -> str:
    """Return the document as a table."""
    rows = document["rows"]
    sizes = list(rows["merged 1"]["ms"])
    lines = ["| | MB | of one merged | " + " | ".join(f"{s}, ms" for s in sizes) + " |"]
    lines.append("|" + "---|" * (3 + len(sizes)))
    one = rows["merged 1"]
    for name, row in rows.items():
        times = [f"{ms:.1f} ({ms / one['ms'][size]:.2f})" for size, ms in row["ms"].items()]
        share = f"{row['mb'] / one['mb']:.2f}"
        lines.append(f"| {name} | {row['mb']:.0f} | {share} | {' | '.join(times)} |")
    return "\n".join(lines)


FLAGS = """
--layers N =30    of the model
--hidden N =576   likewise
--vocab N =49152  likewise
--rank N =8       of the adapters, in every projection
--versions N =10  beside one base
--rounds N =20    of forwards
--turns N =3      processes for each way
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        place, kind, count, times = sys.argv[2:]
        print(json.dumps(measure(Path(place), kind, int(count), int(times))))
    else:
        question = "Ten versions of a target beside one base: memory and time."
        sys.exit(start("studies.versions", question, FLAGS, study, render))
