"""llama.cpp stepping a GGUF file of the same model, as a contestant.

Its weights are rounded in its own way, so its tokens may be others; what is compared is
how long a step takes. ``pip install llama-cpp-python`` builds it where there is a compiler.
``python -m tools.llamacpp FROM.gguf TO.Q8_0.gguf`` rounds a file anew, to 8 bits a weight.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tools.drafting import STEPS, Contestant

_FIRST = 1


def open_llamacpp(
    file: Path, context: int, vocab_size: int, threads: int
) -> tuple[Contestant | None, str | None]:
    """Return the contestant, or None and the reason why there is none.

    Args:
        file: A GGUF file.
        context: Positions of its cache.
        vocab_size: Rows of logits to look at.
        threads: Of a step.
    """
    try:
        import llama_cpp
    except ImportError:
        return None, "llama_cpp is not installed (pip install llama-cpp-python)"
    try:
        model = llama_cpp.Llama(
            str(file), n_ctx=context, n_threads=threads, n_threads_batch=threads,
            n_batch=512, verbose=False,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as exc:
        return None, f"llama.cpp cannot load {file.name}: {exc}"
    if model.n_vocab() < vocab_size:
        return None, f"{file.name} has {model.n_vocab()} tokens, the draft {vocab_size}"
    return _LlamaCpp(llama_cpp, model, vocab_size, file.stem), None


class _LlamaCpp:
    last_token = -1

    def __init__(self, library: Any, model: Any, vocab_size: int, form: str) -> None:
        self.name = f"llama.cpp {form.rpartition('.')[2]}"
        self._model, self._vocab_size = model, vocab_size
        self._logits = library.llama_get_logits_ith

    def fill(self, context: int) -> None:
        self._model.reset()
        self._model.eval([_FIRST] * context)

    def block(self, context: int) -> float:
        model, size = self._model, self._vocab_size
        model.n_tokens = context  # what is behind is forgotten by the next step
        token = _FIRST
        start = time.perf_counter()
        for _ in range(STEPS):
            model.eval((token,))
            row = np.ctypeslib.as_array(self._logits(model.ctx, -1), (size,))
            token = int(row.argmax())
        self.last_token = token
        return time.perf_counter() - start


def to_eight_bits(origin: str, out: str) -> int:
    """Write a GGUF file as Q8_0; return 0 where llama.cpp did."""
    import llama_cpp

    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
    names = origin.encode(), out.encode()
    return int(llama_cpp.llama_model_quantize(*names, ctypes.byref(wanted)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.llamacpp FROM.gguf TO.Q8_0.gguf")
    sys.exit(to_eight_bits(*sys.argv[1:]))
