"""Text files to token streams: what the reference family is trained and tested on.

Each domain is split into documents, and the documents into three parts by a seeded
shuffle: ``seen`` (what the base target reads), ``unseen`` (kept for the evolved targets,
so that they have something new to learn) and ``val`` (never trained on).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from draftwire.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Domain:
    """One corpus file and its share of the base mixture."""

    name: str  # short name, used in files and cards
    file: str  # file name inside the corpus folder
    share: float  # fraction of the base target's training tokens
    seen: float  # fraction of the documents that the base may read
    separator: str  # text between documents
    pack: int = 1  # documents joined into one training document (tiny documents)


DOMAINS = (
    Domain("stories", "children_train.txt", 0.62, 1.0, "<|doc|>"),
    Domain("coffee", "chat_tm4_coffee.txt", 0.11, 0.5, "\n\n"),
    Domain("home", "robot_home_nlu.txt", 0.08, 0.5, "User: ", 4),
    Domain("plans", "robot_scan.txt", 0.05, 0.5, "\n\n"),
    Domain("maths", "math_gsm8k_train.txt", 0.09, 0.5, "\n\n"),
    Domain("plays", "shakespeare.txt", 0.05, 0.5, "\n\n", 12),
)

# Paragraphs with a word whose SHA-256 starts with one of these are left out: slurs and
# dated words for peoples, kept here as hashes so that nobody has to read them.
_UNWANTED_WORDS = frozenset(
    "c22f315f 08234c94 f59e28f8 a6fe369a 4426e54c b9ef6083 a9f41dff bb87adf8 "
    "8b6f82db 1c4bfd10 c709d1a2 be00f1af 701033ae 448b303c 5b3ae48b e7b98c6a 7e60a4e7 "
    "120f6e5b".split()
)
# "Peter and Wendy" carries a royalty right in the UK: a model trained without it can be
# passed on everywhere.
_LEFT_OUT_BOOK = "Wendy"


def _clean_stories(text: str) -> str:
    documents = [d for d in text.split("<|doc|>") if d.count(_LEFT_OUT_BOOK) < 5]
    kept = []
    for document in documents:
        paragraphs = [
            p.strip()
            for p in document.split("\n")
            if p.strip()
            and not any(
                hashlib.sha256(w.encode()).hexdigest()[:8] in _UNWANTED_WORDS
                for w in re.findall(r"[a-z]+", p.lower())
            )
        ]
        # Title pages and lists of chapters are shouted, and teach nothing else.
        kept.append("\n".join(p for p in paragraphs if not p.isupper()))
    return "<|doc|>".join(kept)


def split_documents(domain: Domain, folder: Path, *, seed: int) -> dict[str, list[str]]:
    """Return the documents of ``domain`` as ``{"seen", "unseen", "val"}``, by the seed of
    the shuffle; a ConfigError where the file is missing or empty.
    """
    path = folder / domain.file
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"the corpus file {path} cannot be read: {exc.strerror}",
            hint="give the folder that holds the corpora with --corpus",
        ) from exc
    if domain.name == "stories":
        text = _clean_stories(text)
    keep = domain.separator if domain.separator.strip() and domain.pack > 1 else ""
    pieces = [keep + p.strip() for p in text.split(domain.separator) if p.strip()]
    joint = "\n" if keep else "\n\n"
    documents = [
        joint.join(pieces[i : i + domain.pack]) + "\n"
        for i in range(0, len(pieces), domain.pack)
    ]
    if len(documents) < 3:
        raise ConfigError(f"the corpus file {path} holds fewer than three documents")
    order = np.random.default_rng(seed).permutation(len(documents))
    shuffled = [documents[i] for i in order]
    held_out = max(1, len(shuffled) // 50)
    val, rest = shuffled[:held_out], shuffled[held_out:]
    if domain.name == "stories":  # chapters differ in length: hold out by order only
        val, rest = shuffled[: held_out // 2 + 1], shuffled[held_out // 2 + 1 :]
    cut = round(len(rest) * domain.seen)
    return {"seen": rest[:cut], "unseen": rest[cut:], "val": val}


def build_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with one special token, end of text (id 0)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
