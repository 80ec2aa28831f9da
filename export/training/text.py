"""What a training reads: text files as token streams, cut into parts that share no
document, and text that the base writes itself, for what a draft will foretell is the
target's words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from draftwire.errors import ConfigError
from draftwire.export.sources.documents import Asking, encode, read_documents
from draftwire.export.training.base import Base
from draftwire.export.training.loop import Plan, Stream
from draftwire.export.training.measure import continuations
from draftwire.io import parse_json, replacing, write_text, writing
from draftwire.template import Template
from draftwire.tokenizer import load_tokenizer

_HELD_OUT = 0.04
_LEAST_TRAIN, _LEAST_HELD = 600, 100  # tokens; below that a result means nothing
_ROWS = 64  # that the base writes at once
_PIECE = 32  # tokens of text that it goes on from


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


def let_base_write(
    base: Any,
    text: TrainingText,
    share: float,
    plan: Plan,
    folder: Path,
    *,
    again: int,
    say: Callable[[str], None],
) -> Stream:
    """Return a text of which the base, a model of transformers, writes a share itself,
    each row to be read ``again`` times; what ``folder`` holds is kept.

    It answers the prompts of the text, or goes on from pieces of it where there are none:
    three rows in four greedily, one sampled; every answer after the first to a prompt is
    sampled.
    """
    length = plan.length_at(0)
    parts = max(1, round(plan.steps * plan.batch * share / length / _ROWS / again))
    paths = [folder / f"written.{part}.npy" for part in range(parts)]
    whole = folder / "written.npy"
    say(f"the base writes {parts * _ROWS:,} rows of {length} tokens itself")
    for part, path in enumerate(paths):
        if whole.exists() or path.exists():
            continue
        rows = np.arange(part * _ROWS, (part + 1) * _ROWS)
        given = _prompts(text, plan, rows, length)
        sampled = (rows % 4 == 0) | (len(text.prompts) and rows >= len(text.prompts))
        count = length + 1 - min(map(len, given))
        said = continuations(base, given, count=count, sampled=sampled, seed=part)
        with replacing(path) as file:
            np.save(file, said.cpu().numpy().astype("u4"))
        say(f"the base has written part {part + 1} of {parts}")
    if not whole.exists():
        with replacing(whole) as file:
            np.save(file, np.concatenate([np.load(path) for path in paths]))
        for path in paths:
            path.unlink()
    total = sum(text.stream.shares)
    shares = [(1 - share) * x / total for x in text.stream.shares]
    return Stream((*text.stream.paths, whole), (*shares, share))


def _prompts(text: TrainingText, plan: Plan, rows: np.ndarray, length: int) -> list[Tensor]:
    """Return the ids that each of so many rows begins with, the same at every call."""
    if not text.prompts:
        piece = Plan(1, micro=len(rows) * _PIECE, lengths=((1.0, _PIECE),), seed=plan.seed)
        ids = text.stream.micro(piece, 0, int(rows[0]) // _ROWS)[0]
        return [*ids[:, :-1]]
    number = len(text.prompts)
    # Those of one batch are about as long, so that none waits for another's prompt.
    by_length = sorted(range(number), key=lambda i: len(text.prompts[i]))
    order = np.random.default_rng(plan.seed).permutation(-(-number // _ROWS))
    batches = [by_length[at * _ROWS : (at + 1) * _ROWS] for at in order]
    picks = [pick for batch in batches for pick in batch]
    found = (text.prompts[picks[row % number]][: length // 2] for row in rows)
    return [torch.from_numpy(ids.astype("i8")) for ids in found]


def digests(files: Sequence[str | Path]) -> list[str]:
    """Return the SHA-256 of each file, hexadecimal; a ConfigError where one is missing."""
    try:
        return [hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files]
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename} cannot be read: {exc.strerror}",
            hint="give text files with --data",
        ) from exc


def asked_before(work: Path) -> dict[str, Any]:
    """Return what a training that was begun in ``work`` was asked for; {} for none."""
    try:
        return dict(parse_json((work / "asked.json").read_bytes()))
    except (OSError, TypeError, ValueError):
        return {}


def check_work(work: Path, asked: dict[str, Any], files: Sequence[str | Path]) -> None:
    """Refuse (ConfigError) a work folder that was begun with other settings or files.

    It is made when it is not there; ``asked`` decides the result, beside the files.
    """
    note = work / "asked.json"
    wanted = json.loads(json.dumps({**asked, "data": digests(files)}))
    if note.is_file():
        known = asked_before(work)
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
