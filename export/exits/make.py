"""Early exits for a target package: trained, calibrated, measured, and written into it.

What a target says does not change, and neither does its id: exits are hints.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError
from draftwire.exits import EXITS_FILE
from draftwire.export.exits.data import (
    WINDOW,
    Text,
    read_texts,
    training_batches,
    windows,
)
from draftwire.export.exits.model import GraphModel, StudiedModel
from draftwire.export.exits.package import exit_files
from draftwire.export.exits.training import (
    ExitHead,
    calibrate,
    judge,
    listen,
    train_exits,
)
from draftwire.export.onnx import made_with
from draftwire.packages import (
    NewFile,
    TargetPackage,
    load_target,
    load_tokenizer,
    write_package,
)
from draftwire.tensors import read_tensors

__all__ = ["ExitSettings", "StudiedExits", "default_layers", "export_exits", "study"]

Say = Callable[[str], None]

_BATCH = 1024  # tokens of a training step
_OWN_ROWS = 32  # texts that the target writes side by side


@dataclass(frozen=True)
class ExitSettings:
    """What decides how exits come out, apart from target and text.

    Attributes:
        layers: After how many layers each exit sits; empty takes one third and two
            thirds of them.
        rank: Of the residuals; None takes 256, or the target's width when that is less.
        agreement: Share of the positions where an exit speaks at which it shall name
            the target's own most likely token.
        tokens: To learn from.
        seed: Of everything random.
    """

    layers: tuple[int, ...] = ()
    rank: int | None = None
    agreement: float = 0.9
    tokens: int = 400_000
    seed: int = 1


@dataclass(frozen=True)
class StudiedExits:
    """Exits with thresholds.

    Attributes:
        entries: One for each, as the manifest has them.
        tensors: Their weights, float16, by the names of the split graph.
        rank: Of their residuals.
        layers: After how many layers each sits.
    """

    entries: tuple[Mapping[str, Any], ...]
    tensors: Mapping[str, NDArray[np.float16]]
    rank: int
    layers: tuple[int, ...]


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
        The package's folder.

    Raises:
        ConfigError: An argument is wrong, or something is in the way.
        ModelError: The target cannot be cut into parts, or no exit is of any use.
        PackageError: A package is damaged.
    """
    settings = settings or ExitSettings()
    if held_out and not data:
        raise ConfigError("--held-out goes with --data")
    if (
        not (Path(target) / "target.json").exists()
        and (Path(target) / "config.json").exists()
    ):
        if out is not None or reuse is not None:
            raise ConfigError(
                "exits of a checkpoint lie beside its weights and are its own: "
                "no --out, no --reuse"
            )
        return _for_checkpoint(
            Path(target), data, held_out, settings, texts, replace=replace, say=say
        )
    package = load_target(target)
    place = package.path if out is None else Path(out).absolute()
    _check_place(package, place, replace=replace, inplace=out is None)
    settings = _checked(settings, package.shape.layers, package.shape.hidden, reuse)
    torch.set_num_threads(1)  # small products: more threads cost more than they gain
    model = GraphModel(package)
    if data:
        tokenizer = load_tokenizer(package.tokenizer_path)
        texts = read_texts(
            list(data),
            list(held_out),
            tokenizer,
            tokens=settings.tokens,
            seed=settings.seed,
        )
    known = None
    if reuse is not None:
        known = _taken_over(load_target(reuse), model, settings)
    studied = study(model, settings, texts=texts, known=known, say=say)
    made = _made(settings, texts, None if reuse is None else load_target(reuse).name)
    with tempfile.TemporaryDirectory(prefix=".exits-", dir=place.parent) as scratch:
        new = exit_files(
            model, studied.entries, studied.tensors, studied.rank, made, Path(scratch)
        )
        files = {
            name: NewFile(
                file.path,
                {k: v for k, v in file.details.items() if k not in ("sha256", "bytes")},
            )
            for name, file in package.files.items()
        }
        fields = {
            key: entry
            for key, entry in package.raw.items()
            if key not in ("format", "id", "files", "exits")
        }
        written = write_package(
            place, "target", fields, files, exits=new, replace=out is None or replace
        )
    assert written == package.id, "exits changed the id of a target"
    return place


def _for_checkpoint(
    folder: Path,
    data: Sequence[Path],
    held_out: Sequence[Path],
    settings: ExitSettings,
    texts: Sequence[Text],
    *,
    replace: bool,
    say: Say,
) -> Path:
    """Give a checkpoint that transformers serves early exits."""
    from draftwire.export.exits.torch import TorchModel, write_exits_file

    if (folder / EXITS_FILE).exists() and not replace:
        raise ConfigError(f"{folder.name} has exits already", hint="add --replace")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    model = TorchModel(folder, vocab_size=tokenizer.vocab_size)
    settings = _checked(settings, model.layers, model.hidden, None)
    if data:
        texts = read_texts(
            list(data),
            list(held_out),
            tokenizer,
            tokens=settings.tokens,
            seed=settings.seed,
        )
    studied = study(model, settings, texts=texts, say=say)
    return write_exits_file(
        folder,
        studied.entries,
        studied.tensors,
        studied.rank,
        _made(settings, texts, None),
        replace=replace,
        say=say,
    )


def _made(
    settings: ExitSettings, texts: Sequence[Text], reused: str | None
) -> dict[str, Any]:
    """Return how exits were made, for the manifest."""
    return {
        "texts": [text.name for text in texts] or ["written by the target"],
        "tokens": 0 if reused is not None else settings.tokens,
        "seed": settings.seed,
        **({"reused": reused} if reused is not None else {}),
        **made_with(),
        "torch": torch.__version__,
    }


def default_layers(layers: int) -> tuple[int, ...]:
    """Return one third and two thirds of the stack.

    Raises:
        ModelError: There is no room for an exit.
    """
    if layers < 2:
        raise ModelError(f"a target of {layers} layer has no room for an exit")
    return tuple(
        sorted({max(1, round(layers / 3)), min(layers - 1, round(2 * layers / 3))})
    )


def _check_place(
    package: TargetPackage, place: Path, *, replace: bool, inplace: bool
) -> None:
    if place.suffix != ".target":
        raise ConfigError(
            f"a target package is called NAME.target, not {place.name}",
            hint=f"--out {place.stem}.target",
        )
    if inplace and package.exits is not None and not replace:
        raise ConfigError(f"{place.name} has exits already", hint="add --replace")
    if not inplace and place.exists() and not replace:
        raise ConfigError(
            f"there is something at {place} already",
            hint="choose another place, or add --replace",
        )
    if package.base is not None and package.base.path.parent != place.parent:
        raise ConfigError(
            f"an evolved target lies beside its base, {place} and "
            f"{package.base.path} do not",
            hint=f"--out {package.base.path.parent / place.name}",
        )


def _checked(
    settings: ExitSettings, stack: int, width: int, reuse: str | Path | None
) -> ExitSettings:
    """Return the settings with every default filled in.

    Raises:
        ConfigError: One of them makes no sense.
    """
    layers, rank = settings.layers, settings.rank
    if reuse is not None:
        known = load_target(reuse).exits
        if known is None:
            raise ConfigError(
                f"{Path(reuse).name} has no exits to take over",
                hint="leave --reuse away: then they are trained",
            )
        if layers or rank:
            raise ConfigError("--reuse takes layers and rank over: do not give them")
        layers, rank = tuple(exit.layer for exit in known.exits), known.rank
    layers = layers or default_layers(stack)
    if list(layers) != sorted(set(layers)) or not 1 <= layers[0] <= layers[-1] < stack:
        raise ConfigError(
            f"exits after layers {', '.join(map(str, layers))} of {stack}",
            hint=f"name layers from 1 to {stack - 1}, rising",
        )
    if rank is not None and not 1 <= rank <= width:
        raise ConfigError(f"a rank of {rank} is outside 1..{width}")
    if not 0 < settings.agreement < 1:
        raise ConfigError(
            f"an agreement of {settings.agreement} is outside 0..1",
            hint="a share such as 0.9",
        )
    if settings.tokens < _BATCH:
        raise ConfigError(f"{settings.tokens} tokens teach an exit nothing")
    return ExitSettings(
        layers,
        rank or min(256, width),
        settings.agreement,
        settings.tokens,
        settings.seed,
    )


def study(
    model: StudiedModel,
    settings: ExitSettings,
    *,
    texts: Sequence[Text] = (),
    known: Sequence[ExitHead] | None = None,
    say: Say = print,
) -> StudiedExits:
    """Train exits unless they are known, calibrate and measure them.

    Args:
        model: The target.
        settings: With layers and rank.
        texts: What to read; none: the target writes it.
        known: Trained exits, to be calibrated only.
        say: Gets lines of progress.

    Raises:
        ModelError: No exit reaches the agreement often enough to be of use.
    """
    assert settings.rank is not None
    length = min(WINDOW, model.context)
    if not texts:
        texts = [_own_text(model, settings, length, train=known is None, say=say)]
    exits = known
    if exits is None:
        rows = max(1, _BATCH // length)
        steps = max(1, settings.tokens // (rows * length))
        batches = training_batches(
            texts, length=length, rows=rows, tokens=settings.tokens, seed=settings.seed
        )
        exits = train_exits(
            model,
            settings.layers,
            batches,
            rank=settings.rank,
            steps=steps,
            seed=settings.seed,
            say=say,
        )
    halves = [
        [listen(model, settings.layers, exits, ids) for ids in windows(texts, length, half)]
        for half in (0, 1)
    ]
    entries: list[dict[str, Any]] = []
    kept = []
    for k, layer in enumerate(settings.layers):
        threshold = calibrate([heard[k] for heard in halves[0]], settings.agreement)
        if threshold is None:
            say(
                f"the exit after layer {layer} is never so sure that it agrees in "
                f"{settings.agreement:.0%} of the positions: left out"
            )
            continue
        measured, speaks = judge([heard[k] for heard in halves[1]], threshold)
        by_text = {
            text.name: _row(*judge([heard[k]], threshold))
            for text, heard in zip(texts, halves[1], strict=True)
        }
        say(
            f"the exit after layer {layer} speaks from {threshold:.3f} on: at "
            f"{speaks:.1%} of the positions, and agrees at "
            f"{measured or 0:.1%} of those"
        )
        row = _row(measured, speaks)
        entries.append(
            {
                "layer": layer,
                "threshold": threshold,
                "agreement": settings.agreement,
                **row,
                "positions": sum(len(heard[k].sure) for heard in halves[1]),
                "by_text": by_text,
            }
        )
        kept.append(exits[k])
    if not kept:
        raise ModelError(
            f"no exit agrees with the target in {settings.agreement:.0%} of the positions",
            hint="train longer (--tokens), or lower --agreement",
        )
    return StudiedExits(
        tuple(entries), _tensors(kept), settings.rank, tuple(e["layer"] for e in entries)
    )


def _row(measured: float | None, speaks: float) -> dict[str, float | None]:
    return {
        "measured": None if measured is None else round(measured, 4),
        "speaks": round(speaks, 4),
    }


def _own_text(
    model: StudiedModel, settings: ExitSettings, length: int, *, train: bool, say: Say
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


def _tensors(exits: Sequence[ExitHead]) -> dict[str, NDArray[np.float16]]:
    return {
        f"exit.{k}.{name}": weight.detach().cpu().numpy().astype(np.float16)
        for k, exit_head in enumerate(exits)
        for name, weight in exit_head.named_parameters()
    }


def _taken_over(
    other: TargetPackage, model: GraphModel, settings: ExitSettings
) -> list[ExitHead]:
    """Return another target's exits.

    Raises:
        ConfigError: They do not fit this target.
    """
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
