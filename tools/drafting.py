"""``python -m tools.drafting``: our loop beside the bare engine, genai and llama.cpp.

The contestants step the same weights from the same context, in short blocks that take
turns in a shuffled order, so that a busy machine slows all of them alike.
The ratio is the median over rounds in which each stepped one block undisturbed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from functools import partial
from typing import Any, Protocol, Sequence

import numpy as np
from tools.fresh import import_time, memory_over_bare

from draftwire.bench.device_child import preemptions
from draftwire.bench.machine import machine
from draftwire.errors import ConfigError
from draftwire.io import format_table
from draftwire.packages import load_draft
from draftwire.reference import draft_path
from draftwire.runtime.engines.draft_model import DraftModel, spec_of
from draftwire.runtime.engines.onnx import SharedCacheEngine, open_engine
from draftwire.sampling import SamplingParams, make_proposer
from studies.command import Say, start

SCHEMA = "draftwire.bench/1"
STEPS = 16  # tokens a block: long enough for the clock, short enough to take turns
# A round in which another process took the core tells nothing of either loop; on a busy
# machine more rounds are run until enough are undisturbed.
_MOST_TRIES = 6
_FEWEST_CLEAN = 8
_FIRST = 1  # the token every block starts from
_SPAWN = 5  # fresh processes for the import time


class Contestant(Protocol):
    """Something that drafts."""

    name: str  # for the table
    last_token: int  # of the last block

    def fill(self, context: int) -> None:
        """Make the KV cache hold ``context`` tokens."""

    def block(self, context: int) -> float:
        """Rewind to ``context``, step ``STEPS`` tokens greedily; seconds taken."""


class Ours:
    """The drafting loop: a forward and a proposal for each token."""

    name = "draftwire"

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self.last_token = -1
        self._proposer = make_proposer(SamplingParams(), model.vocab_size)

    def fill(self, context: int) -> None:
        self._model.reset()
        self._model.forward((_FIRST,) * context)

    def block(self, context: int) -> float:
        self._model.rewind(context)
        forward, propose = self._model.forward, self._proposer.propose
        token = _FIRST
        start = time.perf_counter()
        for position in range(context + 1, context + 1 + STEPS):
            token = propose(forward((token,)), position).token
        seconds = time.perf_counter() - start
        self.last_token = token
        return seconds


class Bare:
    """onnxruntime alone, as tersely as Python allows: what no loop can beat.

    It steps the session and the caches of our own engine, so that nothing differs but
    the loop (two sessions differ by some percent in where their memory lies).
    """

    name = "bare engine"

    def __init__(self, engine: SharedCacheEngine, vocab_size: int) -> None:
        session, binding = engine.session, engine.session.io_binding()

        def bind(name: str, array: np.ndarray, *, output: bool = False) -> np.ndarray:
            bind_one = binding.bind_output if output else binding.bind_input
            place = array.ctypes.data
            bind_one(name, "cpu", 0, array.dtype.type, array.shape, place)
            return array

        self._ids = bind("input_ids", np.zeros((1, 1), np.int64))
        self._seqlens = bind("seqlens_k", np.zeros(1, np.int32))
        self._total = bind("total_seq_len", np.zeros((), np.int32))
        self._logits = np.zeros((1, 1, vocab_size), np.float32)
        bind("logits", self._logits, output=True)
        if any(node.name == "logits_from" for node in session.get_inputs()):
            self._from = bind("logits_from", np.zeros(1, np.int64))
        for name, cache in engine.caches.items():
            bind(name, cache)
            bind(name.replace("past_key_values", "present"), cache, output=True)
        self.last_token = -1
        self._run, self._binding = session.run_with_iobinding, binding

    def fill(self, context: int) -> None:
        """Nothing: our own engine has filled the caches that both step."""

    def block(self, context: int) -> float:
        start = time.perf_counter()
        self.last_token = self._step(_FIRST, context, context + STEPS)
        return time.perf_counter() - start

    def _step(self, token: int, begin: int, end: int) -> int:
        ids, seqlens, total = self._ids[0], self._seqlens, self._total
        row, run, binding = self._logits[0, 0], self._run, self._binding
        for past in range(begin, end):
            ids[0] = token
            seqlens[0] = past
            total[()] = past + 1
            run(binding)
            token = int(row.argmax())
        return token


def _study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Measure, and return the document that ``--json`` writes.

    Raises:
        ConfigError: A context does not fit, or the draft's graph has another form.
        ModelError: The draft does not load.
    """
    about = machine()  # before the load is ours
    package = load_draft(args.draft or draft_path())
    for context in args.contexts:
        if not 1 <= context <= package.context - STEPS:
            raise ConfigError(
                f"context {context} and {STEPS} steps do not fit in the draft's "
                f"{package.context} tokens",
                hint=f"--contexts from 1 to {package.context - STEPS}",
            )
    file, threads = package.model_file(args.precision), args.threads
    spec = spec_of(package, file, capacity=package.context)
    engine = open_engine(file.path, spec, threads=threads)
    if not isinstance(engine, SharedCacheEngine):
        raise ConfigError(
            f"{file.path.name} has the form {file.graph!r}; the bare loop has gqa",
            hint="choose another --precision, or export with --graph gqa",
        )
    model = DraftModel(
        engine,
        vocab_size=package.vocab_size,
        context=package.context,
        precision=file.precision,
        threads=threads,
    )
    contestants: list[Contestant] = [Ours(model), Bare(engine, package.vocab_size)]
    why_no_genai: str | None = "left out (--no-genai)"
    if not args.no_genai:
        from tools.genai import open_genai

        genai, why_no_genai = open_genai(package, args.precision, threads)
        if genai is not None:
            contestants.append(genai)
    why_no_llamacpp = None
    if args.gguf is not None:
        from tools.llamacpp import open_llamacpp

        other, why_no_llamacpp = open_llamacpp(
            args.gguf, package.context, package.vocab_size, threads
        )
        if other is not None:
            contestants.append(other)
    rates = [_measure(contestants, c, args.blocks) for c in args.contexts]
    fresh = not args.no_spawn
    return {
        "schema": SCHEMA,
        "bench": "draft",
        "machine": about,
        "draft": {
            "id": package.id,
            "name": package.name,
            "engine": model.engine,
            "precision": model.precision,
        },
        "threads": threads,
        "steps_per_block": STEPS,
        "blocks": args.blocks,
        "rates": rates,
        "why_no_genai": why_no_genai,
        "why_no_llamacpp": why_no_llamacpp,
        "import": import_time(_SPAWN) if fresh else None,
        "memory": memory_over_bare(package, args.precision, threads) if fresh else None,
    }


def _measure(
    contestants: Sequence[Contestant], context: int, blocks: int
) -> dict[str, Any]:
    for one in contestants:
        one.fill(context)
        one.block(context)  # the first touches memory
    # Shuffled: whoever follows itself finds the processor's caches warm.
    order, shuffle = list(contestants), random.Random(0).shuffle
    rounds: list[dict[str, float]] = []
    clean: list[dict[str, float]] = []
    while len(clean) < blocks and len(rounds) < _MOST_TRIES * blocks:
        shuffle(order)
        switches = preemptions()
        rounds.append({one.name: one.block(context) for one in order})
        if preemptions() == switches:
            clean.append(rounds[-1])
    kept = clean if len(clean) >= _FEWEST_CLEAN else rounds
    ours = contestants[0].name
    return {
        "context": context,
        "tokens_per_s": {
            one.name: STEPS / statistics.median(times[one.name] for times in kept)
            for one in contestants
        },
        "ratio_to": {
            one.name: statistics.median(times[one.name] / times[ours] for times in kept)
            for one in contestants[1:]
        },
        "rounds": len(rounds),
        "rounds_undisturbed": len(clean),
        # Of those that step the very same weights.
        "same_tokens": len({c.last_token for c in contestants if "llama" not in c.name})
        == 1,
    }


def render(document: dict[str, Any]) -> str:
    """Return the document as plain text."""
    draft, box = document["draft"], document["machine"]
    lines = [
        f"{draft['name']} {draft['precision']} on {draft['engine']}, "
        f"{document['threads']} thread(s)",
        f"{box['processor']}, {box['cores']} cores, "
        f"load {box['load_1min']:.1f}, Python {box['python']}",
        "",
    ]
    names = list(document["rates"][0]["tokens_per_s"])
    header = ["context", *(f"{name} tok/s" for name in names)]
    header += [f"ratio to {name}" for name in names[1:]] + ["rounds kept"]
    rows = []
    for rate in document["rates"]:
        row = [str(rate["context"])]
        row += [f"{rate['tokens_per_s'][name]:.0f}" for name in names]
        row += [f"{rate['ratio_to'][name]:.3f}" for name in names[1:]]
        kept = rate["rounds_undisturbed"]
        row.append(f"{kept if kept >= _FEWEST_CLEAN else 'all'} of {rate['rounds']}")
        rows.append(row)
    lines += [format_table(header, rows), ""]
    if not all(rate["same_tokens"] for rate in document["rates"]):
        lines.append("WARNING: the contestants did not draft the same tokens")
    if document["why_no_genai"]:
        lines.append(f"onnxruntime-genai: {document['why_no_genai']}")
    if document["why_no_llamacpp"]:
        lines.append(f"llama.cpp: {document['why_no_llamacpp']}")
    if document["import"]:
        found = document["import"]
        lines.append(
            f"import of the device runtime and engine: {found['seconds_median']:.2f} s "
            f"({found['cpu_seconds_median']:.2f} s CPU), "
            f"median of {found['processes']} fresh processes"
        )
    if document["memory"]:
        found = document["memory"]
        lines.append(
            f"memory over the bare engine: {found['over_bare_mb']:.1f} MB "
            f"({found['draftwire_rss_mb']:.1f} against {found['bare_rss_mb']:.1f})"
        )
    return "\n".join(lines)


FLAGS = """
--draft DIR              draft package (default: the reference one)
--precision NAME         which of its models (default: int8)
--contexts N,N:counts =32,256,1024  tokens in the KV cache
--threads N =1
--blocks N =60           undisturbed rounds of 16 tokens for each context
--no-genai               leave onnxruntime-genai out
--gguf FILE              the same model for llama.cpp, a contestant too
--no-spawn               leave import time and memory out
"""


QUESTION = "How fast the drafting loop is, beside what no loop can beat."
main = partial(start, "tools.drafting", QUESTION, FLAGS, _study, render)

if __name__ == "__main__":
    sys.exit(main())
