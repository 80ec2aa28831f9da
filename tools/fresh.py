"""Measured in processes of their own: import time, and memory over the bare engine."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from draftwire.bench.child import run_child
from draftwire.packages import DraftPackage

# What a device imports to draft and to speak; websockets comes with the connection.
_IMPORTS = """
import time
start, cpu = time.perf_counter(), time.process_time()
import draftwire.runtime.engines.draft_model, draftwire.runtime.text
import draftwire.runtime.edge.machine, draftwire.sampling
import onnxruntime, tokenizers
print(time.perf_counter() - start, time.process_time() - cpu)
"""
_RSS = """
with open("/proc/self/statm") as statm:
    import os
    print(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""
_BARE_STEP = """
import sys
import numpy as np, onnxruntime as ort
path, threads, context, vocab = sys.argv[1], *map(int, sys.argv[2:])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
binding = session.io_binding()
def bind(name, array, one=binding.bind_input):
    one(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return array
kept = [bind("input_ids", np.zeros((1, 1), np.int64))]
kept.append(bind("seqlens_k", np.zeros(1, np.int32)))
kept.append(bind("total_seq_len", np.ones((), np.int32)))
kept.append(bind("logits", np.zeros((1, 1, vocab), np.float32), binding.bind_output))
for node in session.get_inputs():
    if node.name == "logits_from":
        kept.append(bind(node.name, np.zeros(1, np.int64)))
    if node.name.startswith("past"):
        size = (1, node.shape[1], context, node.shape[3])
        kept.append(bind(node.name, np.zeros(size, np.float32)))
        name = node.name.replace("past_key_values", "present")
        bind(name, kept[-1], binding.bind_output)
session.run_with_iobinding(binding)
"""
_OUR_STEP = """
import sys
from draftwire.runtime.engines.draft_model import DraftModel, spec_of
from draftwire.runtime.engines.onnx import SharedCacheEngine, open_engine
model = DraftModel.load(sys.argv[1], precision=sys.argv[2], threads=int(sys.argv[3]))
model.forward([0])
"""


def import_time(processes: int) -> dict[str, Any]:
    """Return the medians of importing the device runtime and its engine."""
    runs = [run_child(_IMPORTS).split() for _ in range(processes)]
    return {
        "seconds_median": statistics.median(float(wall) for wall, _ in runs),
        "cpu_seconds_median": statistics.median(float(cpu) for _, cpu in runs),
        "processes": processes,
    }


def memory_over_bare(
    package: DraftPackage, precision: str | None, threads: int
) -> dict[str, float] | None:
    """Return the resident memory after one step, ours and the bare engine's.

    Both hold a cache for the whole context. None where there is no ``/proc``.
    """
    if not Path("/proc/self/statm").exists():
        return None
    file = package.model_file(precision)
    sizes = (str(package.context), str(package.vocab_size))
    bare = int(run_child(_BARE_STEP + _RSS, str(file.path), str(threads), *sizes))
    ours = int(run_child(_OUR_STEP + _RSS, str(package.path), file.precision, str(threads)))
    return {
        "bare_rss_mb": bare / 1e6,
        "draftwire_rss_mb": ours / 1e6,
        "over_bare_mb": (ours - bare) / 1e6,
    }
