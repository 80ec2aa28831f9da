"""The gate of tokens: a package reads text as transformers reads it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tokenizers import processors

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.checkpoint import Checkpoint, first_line
from draftwire.io import parse_json
from draftwire.tokenizer import PROBES, Tokenizer, first_token, load_tokenizer

_SAVE = "save it again: AutoTokenizer.from_pretrained(...).save_pretrained(DIR)"


def check_tokens(folder: Path, bos_id: int | None) -> int | None:
    """Compare the ids of many texts with those of ``AutoTokenizer``; return what comes in
    front.

    With that, without it, and with special tokens that are spelt out, parsed and left as
    text. ``bos_id`` is what ``tokenizer.json`` by itself puts in front, which older
    versions read from ``tokenizer_config.json``; it is returned where that or transformers
    is missing, and nothing was compared. A ModelError where ``tokenizer.json`` reads a text
    otherwise.
    """
    # Without its settings transformers guesses the tokenizer from the model's type.
    if not (folder / "tokenizer_config.json").is_file() or not find_spec("transformers"):
        return bos_id
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as exc:
        raise ModelError(
            f"transformers cannot load the tokenizer of {folder.name}: {first_line(exc)}",
            hint=_SAVE,
        ) from exc
    ours = load_tokenizer(folder)
    raw = parse_json((folder / "tokenizer.json").read_bytes())
    special = [t["content"] for t in raw.get("added_tokens") or () if t.get("special")]
    spelt = [f"a {word} b{word}" for word in special[:16]]
    whole, ids = theirs(PROBES[0])["input_ids"], ours.encode(PROBES[0])
    if bos_id is None and whole[1 : len(ids) + 1] == ids:
        bos_id = whole[0]
    elif whole[: len(ids)] == ids:
        bos_id = None
    for text in (*PROBES, "", " ", *spelt):
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        whole = theirs(text)["input_ids"]
        front = [] if bos_id is None else [bos_id]
        literal = theirs(text, add_special_tokens=False, split_special_tokens=True)
        found = ours.encode(text, bos_id=bos_id, parse_special=True)
        right = (
            found == front + plain
            and whole[: len(found)] == found
            # What may follow is the end of a training text, and no prompt has it.
            and len(whole) - len(found) <= 1
            and (text not in spelt or _literal(ours, text) in (None, literal["input_ids"]))
        )
        if not right:
            raise ModelError(
                f"{folder.name}/tokenizer.json and transformers read "
                f"{text[:24]!r} differently: {found[:8]} and {whole[:8]}",
                hint=_SAVE,
            )
    return bos_id


def checked(checkpoint: Checkpoint, against: str) -> Checkpoint:
    """Return a checkpoint with the first token of :func:`check_tokens`, unless it is held
    to "numpy" alone.
    """
    if against == "numpy":
        return checkpoint
    return replace(checkpoint, bos_id=check_tokens(checkpoint.folder, checkpoint.bos_id))


def _literal(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text)
    except ConfigError:  # refused, which is as good
        return None


def copy_tokenizer(source: Path, target: Path, bos_id: int | None) -> None:
    """Copy a ``tokenizer.json`` so that it puts ``bos_id`` in front of a text itself.

    Packages of draftwire keep that token in their manifest; a checkpoint has no other
    place for it.
    """
    if first_token(source.parent) == bos_id:
        shutil.copy(source, target)
        return
    engine = load_tokenizer(source).engine
    word = None if bos_id is None else engine.id_to_token(bos_id)
    single = "$A" if word is None else f"{word} $A"
    engine.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[] if word is None else [(word, bos_id)]
    )
    engine.save(str(target))
