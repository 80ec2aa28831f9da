"""Text files as token streams, cut into parts that share no document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from draftwire.errors import ConfigError
from draftwire.export.pieces import writing
from draftwire.export.sources.documents import Asking, encode, read_documents
from draftwire.export.training.base import Base
from draftwire.export.training.loop import Stream
from draftwire.io import write_text
from draftwire.template import Template
from draftwire.tokenizer import load_tokenizer

_HELD_OUT = 0.04
_LEAST_TRAIN, _LEAST_HELD = 600, 100  # tokens; below that a result means nothing


def split_documents(
    documents: Sequence[str], shares: Mapping[str, float], *, seed: int
) -> dict[str, list[str]]:
    """Deal documents into parts, in the order of ``shares``.

    A part with a share gets a document if there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    shuffled = [documents[i] for i in order]
    whole, parts, at, passed = sum(shares.values()), {}, 0, 0.0
    for number, (name, share) in enumerate(shares.items()):
        passed += share
        end = round(len(shuffled) * passed / whole)
        if share and end == at and len(shuffled) - at > len(shares) - number - 1:
            end = at + 1
        parts[name] = shuffled[at:end]
        at = end
    return parts


def deal_file(
    path: str | Path, *, held_out: float, seed: int, template: Template | None = None
) -> tuple[list[str], list[str]]:
    """Return a file's documents to learn from and those held out.

    Of one long paragraph the end is held out.
    """
    documents = read_documents(path, template)
    if len(documents) == 1:
        end = max(1, int(len(documents[0]) * (1 - held_out)))
        return [documents[0][:end]], [documents[0][end:]]
    parts = split_documents(documents, {"held": held_out, "": 1 - held_out}, seed=seed)
    return parts[""], parts["held"]


class TrainingText(NamedTuple):
    """What a training reads, each file by its length, and what is held out of each."""

    stream: Stream
    held: dict[str, np.ndarray]
    # Conversations whose next turn is the model's: ids of each to learn from, and by file
    # those held out, ``(n, length)``, where there are any.
    prompts: list[np.ndarray]
    asked: dict[str, np.ndarray]


def prepare_text(
    base: Base,
    files: Sequence[str | Path],
    work: Path,
    *,
    seed: int,
    say: Callable[[str], None],
) -> TrainingText:
    """Read, split and encode text files into ``work``; one part in 25 is held out.

    A ConfigError where a file is missing, no text, or all are too small; a ModelError where
    the tokenizer does not fit the base.
    """
    if not files:
        raise ConfigError("there is no text to train on", hint="--data FILE")
    engine = load_tokenizer(base.tokenizer).engine
    size, end = base.architecture.vocab_size, next(iter(base.eos_ids), None)
    folder = work / "text"
    folder.mkdir(parents=True, exist_ok=True)
    template = Template.of(base.tokenizer.parent)
    streams, held, prompts, asked = {}, {}, [], {}
    for number, file in enumerate(map(Path, files)):
        name = file.stem if file.stem not in held else f"{file.stem}-{number}"
        parts = deal_file(file, held_out=_HELD_OUT, seed=seed, template=template)
        asking = [
            [
                encode(engine, [text], vocab_size=size)
                for text in part
                if isinstance(text, Asking)
            ]
            for part in parts
        ]
        prompts += asking[0]
        if asking[1]:
            asked[name] = _ends(asking[1])
        train, rest = (encode(engine, p, vocab_size=size, end=end) for p in parts)
        path = folder / f"{number}.npy"
        np.save(path, train)
        streams[path], held[name] = float(len(train)), rest
        say(f"{file.name}: {len(train):,} tokens, {len(rest):,} more held out")
    least = min(map(len, held.values()))
    if sum(streams.values()) < _LEAST_TRAIN or least < _LEAST_HELD:
        raise ConfigError(
            f"the text is too small: {sum(streams.values()):,.0f} tokens to train on, "
            f"{sum(map(len, held.values())):,} held out",
            hint=f"give files of {_LEAST_HELD * 25:,} tokens or more each; a good draft "
            "wants millions",
        )
    return TrainingText(
        Stream(tuple(streams), tuple(streams.values())), held, prompts, asked
    )


def _ends(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the ends of all but the shortest quarter, ``(n, length)``."""
    least = sorted(map(len, prompts))[len(prompts) // 4]
    return np.stack([ids[-least:] for ids in prompts if len(ids) >= least])


def digests(files: Sequence[str | Path]) -> list[str]:
    """Return the SHA-256 of each file, hexadecimal; a ConfigError where one is missing."""
    try:
        return [hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files]
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename} cannot be read: {exc.strerror}",
            hint="give text files with --data",
        ) from exc


def check_work(work: Path, asked: dict[str, Any], files: Sequence[str | Path]) -> None:
    """Refuse (ConfigError) a work folder that was begun with other settings or files.

    It is made when it is not there; ``asked`` decides the result, beside the files.
    """
    note = work / "asked.json"
    wanted = json.loads(json.dumps({**asked, "data": digests(files)}))
    if note.is_file():
        try:
            known = dict(json.loads(note.read_text()))
        except (TypeError, ValueError):
            known = {}
        different = sorted(k for k in wanted if known.get(k) != wanted[k])
        if different:
            raise ConfigError(
                f"{work} holds a training with other settings ({', '.join(different)})",
                hint="give the same settings to go on with it, or another --work folder",
            )
        return
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(wanted, indent=1) + "\n")
