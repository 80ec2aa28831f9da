"""The reference family's parallel draft: the shipped one, trained on what v1 writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from draftwire.export.settings import DraftSettings
from draftwire.export.sources.documents import encode
from draftwire.export.training.base import Base, read_base, start_from
from draftwire.export.training.distil import make_draft
from draftwire.export.training.draft import build_draft
from draftwire.export.training.parallel import ParallelTrainer, foretells
from draftwire.io import write_text
from draftwire.tokenizer import load_tokenizer
from studies.command import Say
from studies.family.corpus import DOMAINS, split_documents

# Characters of each domain: most of stories, which are the hardest to foretell.
_CHARACTERS = {
    "stories": 2_400_000,
    "coffee": 300_000,
    "plans": 300_000,
    "home": 90_000,
    "maths": 110_000,
    "plays": 50_000,
}
_TOKENS = 2_400_000
_PIECE = 20_000  # characters of a document, of a book at most
_PROMPTS = {"stories": 24, "coffee": 16, "plans": 24}  # measured on, held out from v1 too


def write_texts(corpus: Path, folder: Path) -> list[Path]:
    """Write the part of each corpus that the draft reads; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for domain in DOMAINS:
        left, rows = _CHARACTERS[domain.name], []
        for document in split_documents(domain, corpus, seed=1)["seen"]:
            for at in range(0, len(document), _PIECE):
                piece = document[at : at + min(_PIECE, left)]
                left -= len(piece)
                rows += [json.dumps({"text": piece}) + "\n"] if piece.strip() else []
        files.append(folder / f"{domain.name}.jsonl")
        write_text(files[-1], "".join(rows))
    return files


def make_parallel(
    corpus: Path, work: Path, out: Path, models: Path, factor: float, say: Say
) -> Path:
    """Train the parallel draft of ``models`` ``factor`` times as long as published, package
    it as ``out/parallel.draft``, and write what it foretells of held-out text to
    ``work/parallel.json``.

    Errors as of :func:`draftwire.export.training.draft.build_draft`.
    """
    texts, start = write_texts(corpus, work / "texts"), models / "reference.draft"
    place = out / "parallel.draft"
    settings = DraftSettings(
        parallel=8,
        written=0.8,
        length=192,
        batch=960,
        lr=2.5e-3,
        tokens=max(1, round(_TOKENS * factor)),
        prompts=4,
        looks=12,
    )
    build_draft(
        models / "v1.target",
        place,
        texts,
        settings=settings,
        start=start,
        work=work / "training",
        precision="fp32",
        min_agreement=0,
        replace=True,
        say=say,
    )
    made = work / "training" / "parallel.hf"
    found = measure(read_base(models / "v1.target"), made, corpus, say)
    write_text(work / "parallel.json", json.dumps(found, indent=1) + "\n")
    return place


def measure(base: Base, source: Path, corpus: Path, say: Say) -> dict[str, Any]:
    """Measure a parallel draft of v1 on text that neither has read."""
    draft = make_draft(base.model, anchor_layers=2, trained_layers=2)
    masks = start_from(draft, source, base)
    trainer = ParallelTrainer(base.model, draft, 8, masks=masks)
    engine, size = load_tokenizer(base.tokenizer).engine, base.architecture.vocab_size
    torch.set_num_threads(1)
    found = {}
    for domain in DOMAINS:
        if domain.name in _PROMPTS:
            documents = split_documents(domain, corpus, seed=1)["val"]
            stream = encode(engine, documents, vocab_size=size, end=0)
            prompts = _PROMPTS[domain.name]
            found[domain.name] = row = foretells(trainer, stream, prompts=prompts)
            for kind, values in row.items():
                say(f"{domain.name} {kind}: {values}")
    return found
