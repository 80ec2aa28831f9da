"""The texts of a study of evolving targets, as token streams in its work folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftwire.errors import ConfigError
from draftwire.export.sources.documents import encode, read_documents
from draftwire.export.training.base import Base
from draftwire.export.training.text import split_documents
from draftwire.tokenizer import load_tokenizer
from studies.command import Say

_SEED = 1  # of the splits; the reference corpora keep their own
# What the drafts read, what the evolved targets read, what everything is measured on.
PARTS = ("seen", "unseen", "val")
_SHARES = {"val": 0.08, "seen": 0.46, "unseen": 0.46}
_NEW_SHARES = {"val": 0.12, "seen": 0.0, "unseen": 0.88}
_LEAST = 400  # tokens of a part: a few prompts with their continuations


@dataclass(frozen=True)
class Domain:
    """One kind of text."""

    name: str  # short, for tables
    path: Path  # its file
    new: bool = False  # the base and the drafts never see it


@dataclass(frozen=True)
class Texts:
    """The streams of a study."""

    folder: Path  # holds ``<domain>.<part>.npy``
    # of each domain in the drafts' training text; new ones are absent
    shares: Mapping[str, float]
    tokens: Mapping[str, Mapping[str, int]]  # ``{domain: {part: tokens}}``

    def path(self, domain: str, part: str) -> Path:
        """Return where a stream lies."""
        return self.folder / f"{domain}.{part}.npy"

    def stream(self, domain: str, part: str) -> np.ndarray:
        """Return a stream of ids."""
        found: np.ndarray = np.load(self.path(domain, part), mmap_mode="r")
        return found


def make_texts(
    base: Base,
    domains: Sequence[Domain],
    corpus: Path | None,
    work: Path,
    say: Say,
) -> Texts:
    """Encode the texts with the base's tokenizer, unless that was done.

    Args:
        base: Its tokenizer is used.
        domains: Files, each split by documents.
        corpus: Folder of the reference family's corpora, split as for its base, so
            that the base has not seen what the targets evolve on; or None.
        work: The study's folder.
        say: Gets lines of progress.

    Raises:
        ConfigError: A file is missing or too small, or two have one name.
    """
    names = [d.name for d in domains]
    if len(set(names)) < len(names) or not (domains or corpus):
        raise ConfigError(
            "every kind of text needs a name of its own, and there must be one",
            hint="--data stories=stories.txt --data coffee=coffee.txt",
        )
    folder = work / "texts"
    note = folder / "texts.json"
    asked = {
        "tokenizer": hashlib.sha256(base.tokenizer.read_bytes()).hexdigest(),
        "domains": [[d.name, d.path.name, d.new, 1.0] for d in domains],
        "corpus": corpus is not None,
        "seed": _SEED,
    }
    if note.exists():
        known: dict[str, Any] = json.loads(note.read_text())
        if known["asked"] != asked:
            raise ConfigError(
                f"{work} belongs to a study of other texts",
                hint="give another --work folder",
            )
        return Texts(folder, known["shares"], known["tokens"])
    folder.mkdir(parents=True, exist_ok=True)
    engine = load_tokenizer(base.tokenizer).engine
    end = base.eos_ids[0] if base.eos_ids else None
    size = base.architecture.vocab_size
    parts, shares = _reference(corpus, names) if corpus else ({}, {})
    for domain in domains:
        documents = read_documents(domain.path)
        cut = _NEW_SHARES if domain.new else _SHARES
        parts[domain.name] = split_documents(documents, cut, seed=_SEED)
        if not domain.new:
            shares[domain.name] = 1.0
    tokens: dict[str, dict[str, int]] = {}
    for name, pieces in parts.items():
        tokens[name] = {}
        for part in PARTS:
            stream = encode(engine, pieces[part], vocab_size=size, end=end)
            tokens[name][part] = len(stream)
            np.save(folder / f"{name}.{part}.npy", stream)
        say(f"{name}: " + ", ".join(f"{p} {n:,}" for p, n in tokens[name].items()))
        needed = ("unseen", "val") if name not in shares else PARTS
        if name != "stories":  # the reference base reads all of its stories
            for part in needed:
                if tokens[name][part] < _LEAST:
                    raise ConfigError(
                        f"{name} has {tokens[name][part]} tokens for its part "
                        f"{part!r}, too few for a study",
                        hint=f"give a text of at least {20 * _LEAST} tokens",
                    )
    note.write_text(
        json.dumps({"asked": asked, "shares": shares, "tokens": tokens}, indent=1)
    )
    return Texts(folder, shares, tokens)


def _reference(
    corpus: Path, taken: Sequence[str]
) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    from studies.family.corpus import DOMAINS
    from studies.family.corpus import split_documents as reference_split
    from studies.family.recipe import FamilySettings

    seed = FamilySettings().seed
    both = set(taken) & {d.name for d in DOMAINS}
    if both:
        raise ConfigError(f"--corpus has {', '.join(sorted(both))} already")
    parts = {d.name: reference_split(d, corpus, seed=seed) for d in DOMAINS}
    return parts, {d.name: d.share for d in DOMAINS}
