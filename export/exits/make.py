"""Early exits for a target: trained, calibrated, measured, and written into it.

What a target says does not change, and neither does its id: exits are hints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError
from draftwire.export.exits.heads import (
    ExitHead,
    Studied,
    calibrate,
    judge,
    observe,
    train_exits,
)
from draftwire.export.exits.package import exit_files, whole_graph, write_exits_file
from draftwire.export.exits.texts import (
    WINDOW,
    Text,
    read_texts,
    training_batches,
    windows,
)
from draftwire.export.pieces import check_place, kept_files, made_with
from draftwire.export.settings import ExitSettings
from draftwire.export.sources.checkpoint import load_model
from draftwire.export.training.base import model_of
from draftwire.packages import TargetPackage, load_target, load_tokenizer, write_package
from draftwire.packages.exits import EXITS_FILE
from draftwire.tensors import read_tensors

__all__ = ["ExitSettings", "default_layers", "export_exits", "study"]

Say = Callable[[str], None]

_BATCH = 1024  # tokens of a training step
_OWN_ROWS = 32  # texts that the target writes side by side


# Entries as the manifest has them, and weights by the names of the split graph.
Exits = tuple[list[dict[str, Any]], dict[str, NDArray[np.float16]]]


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
    """Give a target early exits.

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

    Returns:
        The package's folder, or the checkpoint's.

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
        place = _place(package, out, replace=replace)
        whole_graph(package)
        tokenizer = load_tokenizer(package.tokenizer_path)
        torch.set_num_threads(1)  # small products: more threads cost more than they gain
        model = Studied(
            model_of(package),
            vocab_size=package.vocab_size,
            context=package.context,
            bos_id=package.bos_id,
        )
    if has and not replace:
        raise ConfigError(f"{place.name} has exits already", hint="add --replace")
    settings = _checked(settings, model, other)
    if data:
        texts = read_texts(
            data, held_out, tokenizer, tokens=settings.tokens, seed=settings.seed
        )
    known = None if other is None else _taken_over(other, model, settings)
    entries, tensors = study(model, settings, texts=texts, known=known, say=say)
    made = {
        "texts": [text.name for text in texts] or ["written by the target"],
        "tokens": settings.tokens if other is None else 0,
        "seed": settings.seed,
        **({"reused": other.name} if other is not None else {}),
        **made_with(),
        "torch": torch.__version__,
    }
    assert settings.rank is not None
    if package is None:
        file = place / EXITS_FILE
        write_exits_file(file, entries, tensors, settings.rank, made)
        say(f"the exits lie in {file}: serve the folder with `draftwire verifier serve`")
        return place
    with tempfile.TemporaryDirectory(prefix=".exits-", dir=place.parent) as scratch:
        new = exit_files(package, entries, tensors, settings.rank, made, Path(scratch))
        fields, files = kept_files(package)
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
    return tuple(
        sorted({max(1, round(layers / 3)), min(layers - 1, round(2 * layers / 3))})
    )


def _place(package: TargetPackage, out: str | Path | None, *, replace: bool) -> Path:
    """Return where the package shall be."""
    if out is None:
        return package.path
    place = Path(out).absolute()
    check_place(place, "target", replace=replace)
    if package.base is not None and package.base.path.parent != place.parent:
        raise ConfigError(
            f"an evolved target lies beside its base, {place} and "
            f"{package.base.path} do not",
            hint=f"--out {package.base.path.parent / place.name}",
        )
    return place


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
    length = min(WINDOW, model.context)
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
        exits = train_exits(
            model,
            settings.layers,
            training_batches(
                texts, length=length, rows=rows, steps=steps, seed=settings.seed
            ),
            rank=settings.rank,
            steps=steps,
            seed=settings.seed,
            say=say,
        )
    halves = [
        [
            observe(model, settings.layers, exits, ids)
            for ids in windows(texts, length, half)
        ]
        for half in (0, 1)
    ]
    entries: list[dict[str, Any]] = []
    tensors: dict[str, NDArray[np.float16]] = {}
    for k, layer in enumerate(settings.layers):
        threshold = calibrate([observed[k] for observed in halves[0]], settings.agreement)
        if threshold is None:
            say(
                f"the exit after layer {layer} is never so sure that it agrees in "
                f"{settings.agreement:.0%} of the positions: left out"
            )
            continue
        observed = [of_text[k] for of_text in halves[1]]
        row = _row(observed, threshold)
        say(
            f"the exit after layer {layer} speaks from {threshold:.3f} on: at "
            f"{row['speaks']:.1%} of the positions, and agrees at "
            f"{row['measured'] or 0:.1%} of those"
        )
        for name, weight in exits[k].named_parameters():
            half = weight.detach().cpu().numpy().astype(np.float16)
            tensors[f"exit.{len(entries)}.{name}"] = half
        entries.append(
            {
                "layer": layer,
                "threshold": threshold,
                "agreement": settings.agreement,
                **row,
                "positions": sum(len(h.sure) for h in observed),
                "by_text": {
                    text.name: _row([h], threshold)
                    for text, h in zip(texts, observed, strict=True)
                },
            }
        )
    if not entries:
        raise ModelError(
            f"no exit agrees with the target in {settings.agreement:.0%} of the positions",
            hint="train longer (--tokens), or lower --agreement",
        )
    return entries, tensors


def _row(observed: Any, threshold: float) -> dict[str, Any]:
    measured, speaks = judge(observed, threshold)
    return {
        "measured": None if measured is None else round(measured, 4),
        "speaks": round(speaks, 4),
    }


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


def _taken_over(
    other: TargetPackage, model: Studied, settings: ExitSettings
) -> list[ExitHead]:
    """Return another target's exits."""
    assert other.exits is not None and settings.rank is not None
    tensors = read_tensors(other.exits.tensors.path)
    exits = []
    for k in range(len(other.exits.exits)):
        exit_head = ExitHead(model, settings.rank)
        for name, weight in exit_head.named_parameters():
            found = tensors.get(f"exit.{k}.{name}")
            if found is None or found.shape != tuple(weight.shape):
                raise ConfigError(f"the exits of {other.path.name} have another shape")
            weight.data = torch.from_numpy(found)
        exits.append(exit_head.requires_grad_(False))
    return exits
