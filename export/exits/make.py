"""Early exits for a target: trained, calibrated, measured, and written into it.

What a target says does not change, and neither does its id: exits are hints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError
from draftwire.export import pieces
from draftwire.export.exits import heads
from draftwire.export.exits.heads import ExitHead, Ids, Studied
from draftwire.export.graphs.parts import exit_tensors, head_of, split_target_graph
from draftwire.export.precision.runners import session, supplied
from draftwire.export.settings import ExitSettings
from draftwire.export.sources.checkpoint import load_model
from draftwire.export.sources.documents import encode, read_documents
from draftwire.export.training.base import model_of
from draftwire.export.training.text import deal_file
from draftwire.io import scratch_in, writing
from draftwire.packages import NewExits, NewFile, TargetPackage, load_target, write_package
from draftwire.packages.exits import EXITS_FILE, EXITS_FORMAT
from draftwire.tensors import read_tensors, target_weights, write_tensors
from draftwire.tokenizer import Tokenizer, load_tokenizer

Say = Callable[[str], None]
Floats = NDArray[np.float32]
# Entries as the manifest has them, and weights by the names of the split graph.
Exits = tuple[list[dict[str, Any]], dict[str, NDArray[np.float16]]]

WINDOW = 256  # tokens that the target reads at a time
_BATCH = 1024  # tokens of a training step
_OWN_ROWS = 32  # texts that the target writes side by side
_HELD_OUT = 0.1  # of a file
_TOLERANCE = 1e-4  # of the largest logit: the parts against the whole


@dataclass(frozen=True)
class Text:
    """One kind of text; every kind counts the same in calibration."""

    name: str  # for tables
    train: Ids  # ``(n,)`` ids that the exits learn from
    held_out: Ids  # ``(n,)`` ids that they have not seen


def export_exits(
    target: str | Path,
    *,
    data: Sequence[Path] = (),
    held_out: Sequence[Path] = (),
    out: str | Path | None = None,
    reuse: str | Path | None = None,
    settings: ExitSettings | None = None,
    texts: Sequence[Text] = (),
    replace: bool = False,
    say: Say = print,
) -> Path:
    """Give a target early exits; return the folder of the package, or of the checkpoint.

    Args:
        target: A package, whole or evolved, or a checkpoint for the transformers
            backend: then they go into a file beside its weights.
        data: Text files to learn from; none: the target writes its own text.
        held_out: As many text files to calibrate and measure on; none: a tenth of
            ``data``.
        out: The package to write, beside the base of an evolved target; None puts it
            in the place of ``target``.
        reuse: A target whose exits are taken over: they are calibrated, not trained.
        settings: How.
        texts: Token streams in place of ``data``.
        replace: Also when ``target`` has exits already, or ``out`` exists.
        say: Gets lines of progress.

    Raises:
        ConfigError: An argument is wrong, or something is in the way.
        ModelError: The target cannot be cut into parts, or no exit is of any use.
        PackageError: A package is damaged.
    """
    target, settings = Path(target), settings or ExitSettings()
    if held_out and not data:
        raise ConfigError("--held-out goes with --data")
    package, other = None, None if reuse is None else load_target(reuse)
    if (target / "config.json").exists() and not (target / "target.json").exists():
        if out is not None or reuse is not None:
            raise ConfigError(
                "exits of a checkpoint lie beside its weights and are its own: "
                "no --out, no --reuse"
            )
        place, has = target, (target / EXITS_FILE).exists()
        tokenizer = load_tokenizer(target / "tokenizer.json")
        model = _of_checkpoint(target, tokenizer.vocab_size)
    else:
        package = load_target(target)
        has = package.exits is not None and out is None
        place = package.path if out is None else Path(out).absolute()
        if out is not None:
            pieces.check_place(place, "target", replace=replace)
            if package.base is not None:
                pieces.check_beside(place, package.base.path)
        whole_graph(package)
        tokenizer = load_tokenizer(package.tokenizer_path)
        torch.set_num_threads(1)  # small products: more threads cost more than they gain
        known = {n: getattr(package, n) for n in ("vocab_size", "context", "bos_id")}
        model = Studied(model_of(package), **known)
    if has and not replace:
        raise ConfigError(f"{place.name} has exits already", hint="add --replace")
    settings = _checked(settings, model, other)
    assert settings.rank is not None
    if data:
        texts = read_texts(data, held_out, tokenizer, settings)
    taken = None if other is None else _taken_over(other, model, settings.rank)
    entries, tensors = study(model, settings, texts=texts, known=taken, say=say)
    made = {
        "texts": [text.name for text in texts] or ["written by the target"],
        "tokens": settings.tokens if other is None else 0,
        "seed": settings.seed,
        **({"reused": other.name} if other is not None else {}),
        **pieces.made_with(),
        "torch": torch.__version__,
    }
    if package is None:
        file = place / EXITS_FILE
        header = {
            "format": EXITS_FORMAT,
            "exits": json.dumps(entries),
            "rank": str(settings.rank),
            "made": json.dumps(made),
        }
        with writing(file):
            write_tensors(file, tensors, metadata=header)
        say(f"the exits lie in {file}: serve the folder with `draftwire verifier serve`")
        return place
    with scratch_in(place.parent) as scratch:
        new = exit_files(package, entries, tensors, settings.rank, made, scratch)
        fields, files = pieces.kept_files(package)
        fields.pop("exits", None)
        written = write_package(
            place, "target", fields, files, exits=new, replace=out is None or replace
        )
    assert written == package.id, "exits changed the id of a target"
    return place


def _of_checkpoint(folder: Path, vocab_size: int) -> Studied:
    model = load_model(folder)
    config = model.config.get_text_config()
    bos = config.bos_token_id
    return Studied(
        model,
        vocab_size=min(int(config.vocab_size), vocab_size),
        context=int(getattr(config, "max_position_embeddings", None) or 1 << 20),
        bos_id=bos if isinstance(bos, int) else None,
    )


def default_layers(layers: int) -> tuple[int, ...]:
    """Return one third and two thirds of the stack; a ModelError where there is no room for
    an exit.
    """
    if layers < 2:
        raise ModelError(f"a target of {layers} layer has no room for an exit")
    third, rest = max(1, round(layers / 3)), min(layers - 1, round(2 * layers / 3))
    return tuple(sorted({third, rest}))


def _checked(
    settings: ExitSettings, model: Studied, other: TargetPackage | None
) -> ExitSettings:
    """Return the settings with every default filled in."""
    layers, rank, stack, width = settings.layers, settings.rank, model.layers, model.hidden
    if other is not None:
        if other.exits is None:
            raise ConfigError(
                f"{other.path.name} has no exits to take over",
                hint="leave --reuse away: then they are trained",
            )
        if layers or rank:
            raise ConfigError("--reuse takes layers and rank over: do not give them")
        layers = tuple(exit.layer for exit in other.exits.exits)
        rank = other.exits.rank
    layers = layers or default_layers(stack)
    if list(layers) != sorted(set(layers)) or not 1 <= layers[0] <= layers[-1] < stack:
        raise ConfigError(
            f"exits after layers {', '.join(map(str, layers))} of {stack}",
            hint=f"name layers from 1 to {stack - 1}, rising",
        )
    if rank is not None and rank > width:
        raise ConfigError(f"a rank of {rank} is outside 1..{width}")
    if settings.agreement == 1:
        raise ConfigError("an agreement of 1.0 is out of reach", hint="such as 0.9")
    if settings.tokens < _BATCH:
        raise ConfigError(f"{settings.tokens} tokens teach an exit nothing")
    return replace_fields(settings, layers=layers, rank=rank or min(256, width))


def study(
    model: Studied,
    settings: ExitSettings,
    *,
    texts: Sequence[Text] = (),
    known: Sequence[ExitHead] | None = None,
    say: Say = print,
) -> Exits:
    """Train exits unless they are ``known``, calibrate and measure them.

    Without ``texts`` the target writes its own. A ConfigError where a text is too short, a
    ModelError where no exit reaches the agreement often enough to be of use.
    """
    assert settings.rank is not None
    length, layers, seed = min(WINDOW, model.context), settings.layers, settings.seed
    if not texts:
        texts = [_own_text(model, settings, length, train=known is None, say=say)]
    for text in texts:
        if len(text.held_out) < 2 * length:
            raise ConfigError(
                f"{text.name} holds {len(text.held_out)} tokens to calibrate and measure "
                f"on, it must be {2 * length} or more"
            )
    exits = known
    if exits is None:
        rows = max(1, _BATCH // length)
        steps = max(1, settings.tokens // (rows * length))
        batches = training_batches(texts, length=length, rows=rows, steps=steps, seed=seed)
        exits = heads.train_exits(
            model, layers, batches, rank=settings.rank, steps=steps, seed=seed, say=say
        )
    calibration, measured = (
        [heads.observe(model, layers, exits, ids) for ids in windows(texts, length, half)]
        for half in (0, 1)
    )
    entries: list[dict[str, Any]] = []
    tensors: dict[str, NDArray[np.float16]] = {}
    for k, layer in enumerate(layers):
        threshold = heads.calibrate(
            [of_text[k] for of_text in calibration], settings.agreement
        )
        if threshold is None:
            say(
                f"the exit after layer {layer} is never so sure that it agrees in "
                f"{settings.agreement:.0%} of the positions: left out"
            )
            continue
        observed = [of_text[k] for of_text in measured]
        row = _row(observed, threshold)
        say(
            f"the exit after layer {layer} speaks from {threshold:.3f} on: at "
            f"{row['speaks']:.1%} of the positions, and agrees at "
            f"{row['measured'] or 0:.1%} of those"
        )
        for name, weight in exits[k].named_parameters():
            half = weight.detach().cpu().numpy().astype(np.float16)
            tensors[f"exit.{len(entries)}.{name}"] = half
        by_text = zip(texts, observed, strict=True)
        entries.append(
            {
                "layer": layer,
                "threshold": threshold,
                "agreement": settings.agreement,
                **row,
                "positions": sum(len(h.sure) for h in observed),
                "by_text": {text.name: _row([h], threshold) for text, h in by_text},
            }
        )
    if not entries:
        raise ModelError(
            f"no exit agrees with the target in {settings.agreement:.0%} of the positions",
            hint="train longer (--tokens), or lower --agreement",
        )
    return entries, tensors


def _row(observed: Sequence[heads.Observed], threshold: float) -> dict[str, Any]:
    measured, speaks = heads.judge(observed, threshold)
    right = None if measured is None else round(measured, 4)
    return {"measured": right, "speaks": round(speaks, 4)}


def _taken_over(other: TargetPackage, model: Studied, rank: int) -> list[ExitHead]:
    """Return another target's exits."""
    assert other.exits is not None
    tensors = read_tensors(other.exits.tensors.path)
    exits = []
    for k in range(len(other.exits.exits)):
        exit_head = ExitHead(model, rank)
        for name, weight in exit_head.named_parameters():
            found = tensors.get(f"exit.{k}.{name}")
            if found is None or found.shape != tuple(weight.shape):
                raise ConfigError(f"the exits of {other.path.name} have another shape")
            weight.data = torch.from_numpy(found)
        exits.append(exit_head.requires_grad_(False))
    return exits


# ---- what they are trained, calibrated and measured on


def _own_text(
    model: Studied, settings: ExitSettings, length: int, *, train: bool, say: Say
) -> Text:
    """Let the target write what there is no text for."""
    per_round = _OWN_ROWS * length
    held = -(-max(settings.tokens // 8, 4 * per_round) // per_round)
    rounds = held + (-(-settings.tokens // per_round) if train else 0)
    say(f"the target writes {rounds * per_round:,} tokens of its own")
    found = []
    for i in range(rounds):
        found.append(model.sample(_OWN_ROWS, length, settings.seed * 1000 + i).reshape(-1))
        if (i + 1) % max(1, rounds // 10) == 0:
            say(f"text {i + 1}/{rounds}")
    train_ids = np.concatenate(found[held:]) if train else np.zeros(0, np.int64)
    return Text("own", train_ids, np.concatenate(found[:held]))


def read_texts(
    data: Sequence[Path],
    held_out: Sequence[Path],
    tokenizer: Tokenizer,
    settings: ExitSettings,
) -> list[Text]:
    """Read text files, plain or ``.jsonl``: as many ids of all together as the settings
    say, and what is held out, without ``held_out`` a tenth of each.

    A ConfigError where a file cannot be read or is too short, or the numbers differ.
    """
    if held_out and len(held_out) != len(data):
        raise ConfigError(
            f"{len(data)} files of --data need as many of --held-out, not {len(held_out)}",
            hint="give one held-out file for each, in the same order",
        )

    def ids(documents: Sequence[str], most: int) -> Ids:
        size = tokenizer.vocab_size
        found = encode(tokenizer.engine, documents, vocab_size=size, most=most)
        return found.astype(np.int64)

    share = -(-settings.tokens // len(data))
    texts = []
    for i, path in enumerate(map(Path, data)):
        learnt, rest = deal_file(path, held_out=_HELD_OUT, seed=settings.seed + i)
        if held_out:
            learnt, rest = learnt + rest, read_documents(held_out[i])
        train, seen = ids(learnt, share), ids(rest, max(4 * WINDOW, share // 4))
        if min(len(train), len(seen)) < 2 * WINDOW:
            raise ConfigError(
                f"{path} is too short: {len(train)} tokens to learn from and {len(seen)} "
                f"held out, each must be {2 * WINDOW} or more",
                hint="give more text, or no --data: then the target writes its own",
            )
        texts.append(Text(path.stem, train, seen))
    return texts


def windows(texts: Sequence[Text], length: int, half: int) -> list[Ids]:
    """Return each text's held-out windows ``(n, length)`` of one half, 0 or 1.

    The first half calibrates, the second measures: no passage is in both.
    """
    found = []
    for text in texts:
        count = len(text.held_out) // length
        whole = text.held_out[: count * length].reshape(count, length)
        found.append(whole[count // 2 :] if half else whole[: count // 2])
    return found


def training_batches(
    texts: Sequence[Text], *, length: int, rows: int, steps: int, seed: int
) -> Iterator[Ids]:
    """Yield ``(rows, length)`` windows, each text as often as every other."""
    rng = np.random.default_rng((seed, 2))
    for _ in range(steps):
        batch = []
        for _ in range(rows):
            ids = texts[int(rng.integers(len(texts)))].train
            start = int(rng.integers(0, len(ids) - length + 1))
            batch.append(ids[start : start + length])
        yield np.stack(batch)


# ---- the files, past the gate: a target in parts equals the whole


def whole_graph(package: TargetPackage) -> onnx.ModelProto:
    """Return a target's graph; a ModelError where it is not one of this exporter."""
    path = (package.base or package).path / "model.onnx"
    if not path.is_file():
        raise ModelError(f"{path.parent.name} has no model.onnx")
    graph = onnx.load(str(path), load_external_data=False)
    head_of(graph)
    return graph


def exit_files(
    package: TargetPackage,
    entries: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, NDArray[np.float16]],
    rank: int,
    made: Mapping[str, Any],
    scratch: Path,
) -> NewExits:
    """Return the manifest's section and the files of a target's exits, large ones in
    ``scratch``; ``tensors`` go by the names of the split graph. A ModelError where the
    target in parts differs from the whole one.
    """
    layers = [entry["layer"] for entry in entries]
    whole, weights = whole_graph(package), dict(target_weights(package))
    graphs = split_target_graph(whole, layers, rank=rank)
    for k in range(len(layers)):
        for name, shape in exit_tensors(head_of(whole), k, rank).items():
            weight = tensors[name].astype(np.float32)
            if weight.shape != shape or not np.isfinite(weight).all():
                raise ModelError(f"training of the exits diverged: {name} is not finite")
            weights[name] = weight
    _gate(package, whole, graphs, weights)
    write_tensors(scratch / EXITS_FILE, tensors)
    files = {EXITS_FILE: NewFile(scratch / EXITS_FILE, {"precision": "fp16"})}
    parts = []
    for k, graph in enumerate(graphs):
        name, details = f"part{k}.onnx", {"engine": "onnxruntime", "graph": "target-part"}
        files[name] = NewFile(graph.SerializeToString(deterministic=True), details)
        parts.append({"file": name, "weights": supplied(graph)})
    fields = {"rank": rank, "exits": list(entries), "parts": parts, "made": dict(made)}
    return NewExits(fields, files)


def made_up(package: TargetPackage, whole: Any) -> dict[str, Any]:
    """Return the inputs of a forward of 5 tokens on 128, or as many as there can be."""
    rng, context = np.random.default_rng(0), package.context
    past, block = max(1, min(128, context // 2)), max(1, min(5, context // 4))
    feeds: dict[str, Any] = {
        "input_ids": rng.integers(0, package.vocab_size, (1, block)),
        "past_lens": np.array([past]),
        "rows": np.arange(block),
    }
    for info in whole.get_inputs():
        if info.name.startswith("past."):
            shape = (1, info.shape[1], past, info.shape[3])
            feeds[info.name] = rng.normal(size=shape).astype(np.float32)
    return feeds


def in_parts(parts: Sequence[Any], feeds: Mapping[str, Any]) -> dict[str, Floats]:
    """Run a target's parts one after another; return all that they give."""
    found = dict(feeds)
    for part in parts:
        names = [output.name for output in part.get_outputs()]
        wanted = {i.name: found[i.name] for i in part.get_inputs()}
        found.update(zip(names, part.run(names, wanted), strict=True))
    return found


def _gate(
    package: TargetPackage,
    graph: onnx.ModelProto,
    graphs: Sequence[onnx.ModelProto],
    weights: Mapping[str, Floats],
) -> None:
    """Compare whole and parts on a made-up block."""
    whole = session(graph, weights=weights)
    feeds = made_up(package, whole)
    found = in_parts([session(part, weights=weights) for part in graphs], feeds)
    for info, result in zip(whole.get_outputs(), whole.run(None, feeds), strict=True):
        limit = _TOLERANCE * max(1.0, float(np.abs(result).max()))
        if not float(np.abs(result - found[info.name]).max()) <= limit:
            raise ModelError(
                f"the target in parts differs from the whole one in {info.name}",
                hint="this is a fault of the exporter: please report the model",
            )
