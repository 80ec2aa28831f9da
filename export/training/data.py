"""What a training reads and what it is judged on, as streams in its work folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftwire.errors import ConfigError
from draftwire.export.training.base import Base
from draftwire.export.training.loop import Stream
from draftwire.export.training.text import encode, read_documents, split_documents
from draftwire.tokenizer import load_tokenizer

__all__ = ["HELD", "TrainingText", "check_work", "prepare_text"]

TRAIN, HELD = "train", "held"
_SHARES = {HELD: 0.04, TRAIN: 0.96}
_LEAST_TRAIN, _LEAST_HELD = 600, 100  # tokens; below that a result means nothing


@dataclass(frozen=True)
class TrainingText:
    """Token streams of some files.

    Attributes:
        folder: Where they lie.
        names: Of the files, in order.
        tokens: Of each, ``(train, held out)``.
    """

    folder: Path
    names: tuple[str, ...]
    tokens: tuple[tuple[int, int], ...]

    def stream(self) -> Stream:
        """Return what is trained on, each file by its length."""
        paths = tuple(self._path(i, TRAIN) for i in range(len(self.names)))
        return Stream(paths, tuple(float(t) for t, _ in self.tokens))

    def held(self) -> dict[str, np.ndarray]:
        """Return the held-out stream of each file."""
        return {
            name: np.load(self._path(i, HELD), mmap_mode="r")
            for i, name in enumerate(self.names)
        }

    def _path(self, number: int, part: str) -> Path:
        return self.folder / f"{number}.{part}.npy"


def prepare_text(
    base: Base,
    files: Sequence[str | Path],
    work: Path,
    *,
    seed: int,
    say: Callable[[str], None],
) -> TrainingText:
    """Read, split and encode text files; one part in 25 is held out.

    Args:
        base: Its tokenizer is used.
        files: Plain text or ``.jsonl``.
        work: Folder for the streams.
        seed: Of the split.
        say: Gets lines of progress.

    Raises:
        ConfigError: A file is missing, no text, or all are too small.
        ModelError: The tokenizer does not fit the base.
    """
    if not files:
        raise ConfigError("there is no text to train on", hint="--data FILE")
    engine = load_tokenizer(base.tokenizer).engine
    size = base.model.architecture.vocab_size
    end = base.eos_ids[0] if base.eos_ids else None
    folder = work / "text"
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    tokens: list[tuple[int, int]] = []
    for number, file in enumerate(map(Path, files)):
        documents = read_documents(file)
        if len(documents) == 1:  # one long paragraph: its end is held out
            cut = max(1, int(len(documents[0]) * _SHARES[TRAIN]))
            parts = {TRAIN: [documents[0][:cut]], HELD: [documents[0][cut:]]}
        else:
            parts = split_documents(documents, _SHARES, seed=seed)
        streams = {
            part: encode(engine, parts[part], vocab_size=size, end=end)
            for part in (TRAIN, HELD)
        }
        for part, stream in streams.items():
            np.save(folder / f"{number}.{part}.npy", stream)
        name = file.stem if file.stem not in names else f"{file.stem}-{number}"
        names.append(name)
        tokens.append((len(streams[TRAIN]), len(streams[HELD])))
        say(f"{file.name}: {tokens[-1][0]:,} tokens, {tokens[-1][1]:,} more held out")
    train, held = (sum(t[i] for t in tokens) for i in (0, 1))
    if train < _LEAST_TRAIN or min(t[1] for t in tokens) < _LEAST_HELD:
        raise ConfigError(
            f"the text is too small: {train:,} tokens to train on, {held:,} held out",
            hint=f"give files of {_LEAST_HELD * 25:,} tokens or more each; a good draft "
            "wants millions",
        )
    return TrainingText(folder, tuple(names), tuple(tokens))


def check_work(work: Path, asked: dict[str, Any], files: Sequence[str | Path]) -> None:
    """Refuse a work folder that belongs to something else.

    Args:
        work: The folder; made when it is not there.
        asked: What decides the result, beside the files.
        files: The text.

    Raises:
        ConfigError: It was begun with other settings, or a file cannot be read.
    """
    note = work / "asked.json"
    try:
        content = [hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files]
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename} cannot be read: {exc.strerror}",
            hint="give text files with --data",
        ) from exc
    wanted = json.loads(json.dumps({**asked, "data": content}))
    if note.is_file():
        try:
            known = json.loads(note.read_text())
        except ValueError:
            known = None
        if known != wanted:
            different = sorted(
                k
                for k in wanted
                if not isinstance(known, dict) or known.get(k) != wanted[k]
            )
            raise ConfigError(
                f"{work} holds a training with other settings ({', '.join(different)})",
                hint="give the same settings to go on with it, or another --work folder",
            )
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(".part")
        part.write_text(json.dumps(wanted, indent=1) + "\n")
        part.replace(note)
    except OSError as exc:
        raise ConfigError(f"{work} cannot be written: {exc.strerror}") from exc
