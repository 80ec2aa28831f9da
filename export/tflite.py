"""LiteRT engines for draft packages: the way behind ``export package --engine litert``.

A package's id is a hash over its files, so a package with an engine more is another
package with an id of its own; family and tokenizer, which decide what fits a target,
stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from draftwire.errors import ConfigError, ModelError
from draftwire.export import pieces
from draftwire.export.graphs.tflite import PRECISIONS, build_tflite
from draftwire.export.precision import parity
from draftwire.export.precision.runners import DraftRunner, Logits
from draftwire.export.sources.architecture import UnknownArchitecture
from draftwire.export.sources.checkpoint import Checkpoint, load_checkpoint
from draftwire.export.sources.inputs import checkpoint_folder
from draftwire.export.sources.tokens import checked
from draftwire.export.sources.weights import CheckpointWeights, PackageWeights, Weights
from draftwire.io import scratch_in, writing
from draftwire.packages import DraftPackage, NewFile, load_draft, write_package
from draftwire.tokenizer import tokenizer_fingerprint

# Least agreement of a package's rounded model with the checkpoint that is said to be
# its origin; another model agrees at a few positions only.
_SAME_MODEL = 0.5


def export_tflite(
    source: str | Path,
    out: str | Path | None = None,
    *,
    precision: str | Sequence[str] = "int8",
    checkpoint: str | Path | None = None,
    name: str | None = None,
    family_name: str | None = None,
    context: int | None = None,
    anchor_layers: int = 0,
    min_agreement: float | None = None,
    against: str = "auto",
    replace: bool = False,
) -> Path:
    """Give a draft a LiteRT engine, ``model.<precision>.tflite``; return the package.

    Each file is compared with its origin first; nothing is written when one says
    something else. ``name``, ``family_name``, ``context``, ``anchor_layers`` and
    ``against`` are as for :func:`draftwire.export.onnx.export_onnx`, of a package from a
    checkpoint alone.

    Args:
        source: A draft package to add to; or a Hugging Face directory, a GGUF file, or
            ``owner/name`` on the hub.
        out: The package to write; None changes ``source``, which needs ``replace``.
        precision: Any of "fp32" and "int8".
        checkpoint: The checkpoint that the package ``source`` was made from: its
            weights are better than those of a package that holds only rounded ones.
        min_agreement: Least share of positions with the origin's most likely token, in
            place of the precision's own limit.
        replace: Put it in the place of an older package.

    Raises:
        ConfigError: An argument is wrong, or ``out`` exists.
        ModelError: The source is damaged or of an unknown shape, or the result differs
            from it by more than the limit.
        PackageError: The package ``source`` is damaged.
    """
    source = Path(source)
    precisions = pieces.chosen(precision, PRECISIONS, "LiteRT draft")
    is_package = source.suffix == ".draft" or (source / "draft.json").is_file()
    package = load_draft(source) if is_package else None
    place = Path(out or source)
    if out is not None:
        pieces.check_place(place, "draft", replace=replace)
    elif package is None:
        raise ConfigError("say where the package shall be written", hint="--out NAME.draft")
    elif not replace:
        raise ConfigError(
            f"a package with another engine has another id than {source.name}",
            hint="--out OTHER.draft, or --replace to put it in its place",
        )
    added = {"ai-edge-litert": metadata.version("ai-edge-litert")}
    with writing(place), contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_in(place.parent))
        if package is None:
            if checkpoint is not None:
                raise ConfigError(
                    "--checkpoint goes with a draft package, not with another"
                )
            folder = checkpoint_folder(source, scratch)
            files = pieces.text_files(folder)
            made = _load(folder, context, against)
            made = made.cut(pieces.DRAFT_CONTEXT) if context is None else made
            weights, probe = _origin(made, against)
            named: dict[str, Any] = {"name": name or place.stem, "family_name": family_name}
            fields = pieces.package_fields(made, anchor_layers=anchor_layers, **named)
            pieces.name_masks(made, fields)
        else:
            if any((name, family_name, context, anchor_layers)):
                raise ConfigError(
                    "a package keeps its name, family, context and anchor",
                    hint="give the checkpoint instead of the package to choose them",
                )
            weights, probe = _from_package(package)
            if checkpoint is not None:
                folder = checkpoint_folder(checkpoint, scratch)
                weights, probe = _from_named_checkpoint(package, probe, folder, against)
            fields, files = pieces.kept_files(package)
            added["engine_added_to"] = package.id
        fields["made"] = {**dict(fields.get("made") or {}), **added}
        for one in precisions:
            content, file = build_tflite(weights, one), f"model.{one}.tflite"
            near = check_tflite(content, probe)
            limit = parity.limit_of(one, min_agreement)
            if not weights.exact:
                limit = parity.Limit(None, parity.limit_of("int8", min_agreement).agreement)
            near.require(file, limit)
            details = {
                "engine": "litert",
                "precision": one,
                "graph": "static",
                "min_engine": "",
                "weights": weights.name,
                "parity": near.record(),
            }
            files[file] = NewFile(content, details)
        write_package(place, "draft", fields, files, replace=replace)
    return place


def _load(folder: Path, context: int | None, against: str) -> Checkpoint:
    try:
        return checked(load_checkpoint(folder, context=context), against)
    except UnknownArchitecture as exc:
        raise ModelError(
            str(exc), hint="such a draft runs on onnxruntime: draftwire export package"
        ) from exc


def _origin(checkpoint: Checkpoint, against: str) -> tuple[Weights, parity.Probe]:
    """Return where weights and right answers come from."""
    return CheckpointWeights(checkpoint), parity.probe(checkpoint, against)


def _from_package(package: DraftPackage) -> tuple[Weights, parity.Probe]:
    """Take the weights of the package's widest graph, and what it says with them."""
    weights = PackageWeights(package)
    known = package.vocab_size, package.bos_id, package.context
    ids = parity.probe_ids(package.path, *known)
    runner = DraftRunner(weights.file.path, weights.a)
    rows = [runner.forward([token])[0] for token in ids]
    expected = parity.finite_logits(package.path.name, np.stack(rows))
    return weights, parity.Probe(ids, expected, weights.name)


def _from_named_checkpoint(
    package: DraftPackage, own: parity.Probe, folder: Path, against: str
) -> tuple[Weights, parity.Probe]:
    """Take the weights of the checkpoint that the package was made from, if it was."""
    checkpoint = _load(folder, None, against).cut(package.context)
    a, s = checkpoint.architecture, package.shape
    theirs = (a.layers, a.kv_heads, a.head_dim, a.hidden, a.vocab_size, a.context)
    ours = (s.layers, s.kv_heads, s.head_dim, s.hidden, package.vocab_size, package.context)
    tokenizer = tokenizer_fingerprint(checkpoint.tokenizer)
    weights, probe = _origin(checkpoint, against)
    same = theirs == ours and tokenizer == package.family.tokenizer
    if same and own.ids == probe.ids:
        near = parity.compare(own.logits, probe.logits, "")
        if near.agreement >= _SAME_MODEL:
            return weights, probe
    raise ModelError(
        f"{folder.name} is not the checkpoint that {package.path.name} was made from",
        hint="leave --checkpoint out to take the weights from the package itself",
    )


class TfliteRunner:
    """A ``.tflite`` draft through LiteRT's public interface, its caches outside and copied
    in at every run. ``steps`` are the signatures that take one token, the shortest cache
    first; ``block`` is how many tokens the other one takes.
    """

    def __init__(self, model: bytes) -> None:
        interpreter = Interpreter(model_content=model, num_threads=1)
        names = sorted(interpreter.get_signature_list(), key=_room)
        self._runners = {name: interpreter.get_signature_runner(name) for name in names}
        self.steps = [name for name in names if name.startswith("step")]
        self._prefill = next(name for name in names if name.startswith("prefill"))
        details = self._runners[self._prefill].get_input_details()
        shapes = {name: detail["shape"] for name, detail in details.items()}
        self.block = int(shapes["ids"][1])
        kept = [name for name in shapes if name.startswith(("key.", "value."))]
        self._caches = {name: np.zeros(shapes[name], np.float32) for name in kept}
        self.length = 0

    def step(self, token: int, signature: str) -> Logits:
        """Take one token with a signature of :attr:`steps`; return ``(V,)`` logits."""
        return self._run(signature, [token], {}, 1)

    def read(self, ids: Sequence[int], row: int) -> Logits:
        """Take a block of tokens; return ``(V,)`` logits of one of them."""
        filled = [*ids, *[0] * (self.block - len(ids))]
        at = {"row": np.array([row], np.int32)}
        return self._run(self._prefill, filled, at, len(ids))

    def _run(
        self, name: str, ids: Sequence[int], feeds: dict[str, Any], count: int
    ) -> Logits:
        past, here = slice(0, _room(name)), slice(self.length, self.length + count)
        for cache, values in self._caches.items():
            feeds[cache] = np.ascontiguousarray(_places(cache, values, past))
        feeds["ids"] = np.array([ids], np.int32)
        feeds["past"] = np.array([self.length], np.int32)
        results = self._runners[name](**feeds)
        for cache, values in self._caches.items():
            new = _places(cache, results["new_" + cache], slice(0, count))
            _places(cache, values, here)[...] = new
        self.length += count
        return np.array(results["logits"][0])


def _room(signature: str) -> int:
    return int(signature.split(".")[1])


def _places(cache: str, values: Any, which: slice) -> Any:
    """Return some positions of a cache; values lie transposed."""
    return values[:, :, which] if cache[0] == "k" else values[..., which]


def check_tflite(model: bytes, probe: parity.Probe) -> parity.Parity:
    """Run a draft over a text in blocks and steps of every signature, with a rewind; return
    how far its logits are from what is right, at the positions it gave.
    """
    runner, ids = TfliteRunner(model), probe.ids
    rows: list[int] = []
    found: list[Logits] = []
    # A rejected block, taken back: its entries must not be seen again.
    runner.read(ids[-min(len(ids), runner.block) :], 0)
    runner.length = 0
    third = max(1, len(ids) // 3)
    while runner.length < third:
        at = runner.length
        block = ids[at : min(third, at + runner.block)]
        for row in sorted({len(block) // 2, len(block) - 1}):
            runner.length = at
            found.append(runner.read(block, row))
            rows.append(at + row)
    while runner.length < len(ids):
        at = runner.length
        usable = [name for name in runner.steps if _room(name) > at]
        found.append(runner.step(ids[at], usable[at % len(usable)]))
        rows.append(at)
    return parity.compare(np.stack(found), probe.logits[rows], probe.against)
