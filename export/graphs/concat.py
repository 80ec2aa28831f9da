"""Drafts of any other architecture: Optimum's graph, whose cache grows by a copy.

Inputs ``input_ids``, ``attention_mask``, maybe ``position_ids``, and
``past_key_values.{i}.key`` / ``.value`` ``[B, KV, P, D]``; outputs ``logits`` and
``present.{i}.*`` ``[B, KV, P + S, D]``.  Standard operators only, so it runs on any
onnxruntime, more slowly than the in-place graph the longer the context is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError, ModelError
from draftwire.export.pieces import DRAFT_CONTEXT, made_with
from draftwire.export.precision import parity
from draftwire.export.precision.runners import ConcatRunner
from draftwire.export.sources.checkpoint import (
    open_weights,
    read_config,
    require_tokenizer,
    special_ids,
)
from draftwire.export.sources.tokens import check_tokens
from draftwire.io import cache_folder, parse_json
from draftwire.packages import NewFile, tokenizer_fingerprint

# Versions that go together, tried with torch 2.13 and checkpoints of Bloom, OPT and Phi.
_PINS = ("optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6")
_CONTEXT_NAMES = tuple(
    "max_position_embeddings n_positions n_ctx seq_length max_seq_len".split()
)
_HIDDEN_NAMES = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")


def export_with_optimum(
    folder: Path,
    scratch: Path,
    precisions: Sequence[str],
    *,
    limit: Callable[[str], parity.Limit],
    context: int | None,
    why: Exception,
    told: bool,
) -> tuple[dict[str, Any], dict[str, NewFile]]:
    """Export a draft by way of Optimum; return the manifest's fields and the files.

    ``why`` says why the exporter's own way was not taken; without ``context`` it serves at
    most 4096 positions. Optimum is installed where that was ``told``. A ConfigError where
    it is not there, a ModelError where it cannot export the model or the result differs.
    """
    from draftwire.export.onnx import gated

    config = read_config(folder)
    open_weights(folder)
    require_tokenizer(folder)
    trained = _first(folder, config, _CONTEXT_NAMES, context)
    if context is not None and not 0 < context <= trained:
        raise ConfigError(
            f"a context of {context} was asked for, {folder.name} has {trained}"
        )
    context = context or min(trained, DRAFT_CONTEXT)
    vocab_size = _first(folder, config, ("vocab_size",))
    bos_id, eos_ids = special_ids(folder, config, vocab_size)
    bos_id = check_tokens(folder, bos_id)
    ids = parity.probe_ids(folder, vocab_size, bos_id, context)
    whole, versions = _run(_python(why, told=told), folder, scratch / "optimum")
    (logits,), against = parity.torch_logits(folder, [ids])
    probe = parity.Probe(ids, parity.finite_logits(folder.name, logits), against)
    shape = ConcatRunner(whole).shape
    tokenizer = tokenizer_fingerprint(folder / "tokenizer.json")
    fields = {
        "family": {"name": "", "backbone": None, "tokenizer": tokenizer},
        "vocab_size": vocab_size,
        "context": context,
        "bos_id": bos_id,
        "eos_ids": list(eos_ids),
        "shape": {**shape, "hidden": _first(folder, config, _HIDDEN_NAMES)},
        "made": {
            "from": folder.name.removesuffix(".hf"),
            "model_type": config.get("model_type"),
            "optimum": versions,
            **made_with(),
        },
    }
    files = gated(whole, ConcatRunner, probe, precisions, limit, folder, fields)
    return fields, files


def _python(why: Exception, *, told: bool) -> str:
    """Return a Python that has Optimum: this one, or that of an environment beside it.

    Optimum holds transformers below 4.58, so it lives apart. Its environment sees this
    one's packages behind its own, and so takes what differs alone. It is made where that
    was ``told``; a ConfigError otherwise, or where it cannot be.
    """
    if find_spec("optimum") and find_spec("optimum.exporters.onnx"):
        return sys.executable
    ours = sysconfig.get_path("purelib")
    key = hashlib.sha256(repr((_PINS, sys.version, ours)).encode()).hexdigest()[:12]
    place = cache_folder() / f"optimum-{key}"
    python, done = place / "bin" / "python", place / "made"
    if done.is_file():
        return str(python)
    if not told:
        raise ConfigError(
            f"{why}; Optimum writes the rest, and is not installed",
            hint=f"run it again with --graph concat: {', '.join(_PINS)} (some 160 MB) are "
            f"then installed into {place}, once, and nowhere else",
        )
    print(f"installing {', '.join(_PINS)} (some 160 MB) into {place}", file=sys.stderr)
    try:
        if place.exists():  # broken off
            shutil.rmtree(place)
        venv.create(place, with_pip=True)
        behind = next(place.glob("lib/python*/site-packages")) / "zz_behind.pth"
        behind.write_text(ours + "\n", encoding="utf-8")
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            + ["--only-binary", ":all:", *_PINS],
            check=True,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        done.write_text("\n".join(_PINS) + "\n", encoding="utf-8")
    except (OSError, subprocess.CalledProcessError) as exc:
        said = (getattr(exc, "stderr", None) or b"").decode("utf-8", "replace")
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        raise ConfigError(
            f"Optimum cannot be installed into {place}: {(errors or [str(exc)])[0][:200]}",
            hint="look whether pip reaches its index and the disk has room, and try again",
        ) from exc
    return str(python)


def _run(python: str, folder: Path, out: Path) -> tuple[Path, dict[str, str]]:
    """Let Optimum export, in a process of its own; return the graph, and by what."""
    child = Path(__file__).with_name("optimum_child.py")
    found = subprocess.run(
        [python, "-I", str(child)],
        input=json.dumps({"folder": str(folder.resolve()), "out": str(out)}) + "\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    try:
        answer = parse_json(found.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"error": f"its process ended with code {found.returncode}"}
    if "error" not in answer and not (out / "model.onnx").is_file():
        answer = {"error": "it wrote no model.onnx"}
    if "error" in answer:
        raise ModelError(
            f"Optimum cannot export {folder.name}: {answer['error']}",
            hint="use a draft of a supported architecture",
        )
    return out / "model.onnx", answer


def _first(
    folder: Path, config: dict[str, Any], names: Sequence[str], given: int | None = None
) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    if given is not None and given > 0:
        return given
    raise ModelError(
        f"{folder.name}: config.json has none of {', '.join(names)}",
        hint="give --context" if "n_positions" in names else "",
    )
