"""Every sampling scheme on the same draft, target and prompts: what it keeps and sends.

Device and cloud halves run in one process, block after block, with the real models and
the real codec: the bytes are those of the frames that would cross the network (payload,
without websocket, TLS and TCP). Nothing is timed here.

Two things to know when reading it. ``accepted`` counts drafted tokens only; a block
commits one token more (correction or bonus). And acceptance has an error: the standard
error over prompts is printed beside it, since neighbouring blocks are alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Sequence

from draftwire.bench.acceptance import PROMPTS, check_room, load_judge, measure_all
from draftwire.errors import ConfigError
from draftwire.io import format_table
from draftwire.packages import load_draft
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.sampling import SCHEMES, SamplingParams, card_of, loss_of
from draftwire.tokenizer import load_tokenizer
from draftwire.transport.codec import MAX_BLOCK
from draftwire.verifier.backends.base import TargetBackend


@dataclass(frozen=True)
class Settings:
    """What to run.

    Raises:
        ConfigError: A value is out of range, or a scheme is unknown.
    """

    block: int = 4  # drafted tokens of each block (K)
    temperature: float = 0.8  # of the schemes that sample; the others run at 0
    top_k: int = 50  # as in ``SamplingParams``
    top_p: float = 1.0  # as in ``SamplingParams``
    seed: int = 1  # of the first prompt; each further one adds 1
    tokens: int = 64  # new tokens for each prompt
    prompts: int = 12  # how many prompts at most
    prompt_tokens: int = 32  # length of the prompts cut from a file
    schemes: tuple[str, ...] = ()  # names; empty takes all

    def __post_init__(self) -> None:
        if not 1 <= self.block <= MAX_BLOCK:
            raise ConfigError(f"a block of {self.block} tokens is outside 1..{MAX_BLOCK}")
        if not self.temperature > 0:
            raise ConfigError(
                "the table samples, so its temperature must be above 0",
                hint="the greedy schemes are in it anyway, at temperature 0",
            )
        for name in ("tokens", "prompts", "prompt_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more")
        for scheme in self.schemes:
            card_of(scheme)


def sampling_table(
    draft: Path, target: Path, settings: Settings, *, text: Path | None = None
) -> dict[str, Any]:
    """Run every scheme and return the table.

    Args:
        draft: Draft package.
        target: Target package, or a checkpoint folder.
        settings: What to run.
        text: Held-out text to cut prompts from; None takes the built-in ones.

    Returns:
        A JSON-ready document, see ``schema``.

    Raises:
        ConfigError: The text is too short or cannot be read, or a package's is.
        IncompatibleError: Draft and target do not share a tokenizer.
        PackageError: A package is damaged.
    """
    package = load_draft(draft)
    backend = load_judge(package, target)
    model = DraftModel.load(package, threads=1)
    first = [] if backend.bos_id is None else [backend.bos_id]
    prompts = [[*first, *ids] for ids in _prompts(load_tokenizer(draft), settings, text)]
    size = {"block": settings.block, "tokens": settings.tokens}
    check_room(prompts, min(model.context, backend.context), **size)
    vocab = min(model.vocab_size, backend.vocab_size)
    rows = []
    for scheme in settings.schemes or tuple(SCHEMES):
        row = {"scheme": scheme, "note": card_of(scheme).note}
        try:
            row.update(_row(scheme, model, backend, prompts, settings, vocab))
        except ConfigError as error:  # this scheme cannot do these settings
            row["refused"] = str(error)
        rows.append(row)
    return {
        "schema": "draftwire.sampling_table/1",
        "draft": {
            "id": package.id,
            "name": package.name,
            "engine": model.engine,
            "precision": model.precision,
        },
        "target": {"id": backend.id, "name": backend.name, "version": backend.version},
        "vocab_size": vocab,
        "text": "built-in prompts" if text is None else text.name,
        "prompts": len(prompts),
        "settings": asdict(settings),
        "rows": rows,
    }


def _row(
    scheme: str,
    draft: DraftModel,
    target: TargetBackend,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    vocab: int,
) -> dict[str, Any]:
    temperature = settings.temperature if card_of(scheme).sampled else 0.0
    params = [
        SamplingParams(scheme, temperature, settings.top_k, settings.top_p, seed)
        for seed in range(settings.seed, settings.seed + len(prompts))
    ]
    size = {"block": settings.block, "tokens": settings.tokens}
    total = measure_all(draft, target, prompts, params, **size)
    lost = loss_of(params[0], vocab)
    return {
        "exact": lost == "",
        "loss": lost,
        "temperature": temperature,
        **total,
        "accepted_per_block": total["accepted"] / total["rounds"],
        "tokens_per_block": total["emitted"] / total["rounds"],
        "up_bytes_per_token": total["up_bytes"] / total["emitted"],
        "down_bytes_per_token": total["down_bytes"] / total["emitted"],
    }


def _prompts(tokenizer: Any, settings: Settings, text: Path | None) -> list[list[int]]:
    """Return the built-in prompts, or pieces of a text: evenly spaced, from the starts of
    words.
    """
    if text is None:
        return [tokenizer.encode(p) for p in PROMPTS[: settings.prompts]]
    try:
        whole = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read {text}: {exc}") from exc
    # Some eight characters a token are always enough to fill one.
    size = 8 * settings.prompt_tokens
    found: list[list[int]] = []
    for start in range(0, len(whole), max(size, len(whole) // settings.prompts)):
        piece = whole[start : start + size]
        if start:
            piece = piece.partition(" ")[2]
        ids = tokenizer.encode(piece)[: settings.prompt_tokens]
        if len(ids) == settings.prompt_tokens:
            found.append(ids)
    if not found:
        raise ConfigError(
            f"{text} holds no prompt of {settings.prompt_tokens} tokens",
            hint="give a longer text, or lower --prompt-tokens",
        )
    return found[: settings.prompts]


def render(document: dict[str, Any]) -> str:
    """Return the table as text, what is lossy or refused in words below it."""
    settings = document["settings"]
    header = ["scheme", "T", "output", "acceptance", "+-", "accepted/block"]
    header += ["tokens/block", "up B/token", "down B/token"]
    keys = ["accepted_per_block", "tokens_per_block"]
    keys += ["up_bytes_per_token", "down_bytes_per_token"]
    lines, notes = [], []
    for row in document["rows"]:
        if "refused" in row:
            notes.append(f"{row['scheme']}: left out: {row['refused']}")
            continue
        output = "exact" if row["exact"] else "LOSSY"
        found = row["acceptance"], row["acceptance_error"]
        shares = [None if share is None else f"{share:.3f}" for share in found]
        named = row["scheme"], row["temperature"], output
        lines.append([*named, *shares, *(row[key] for key in keys)])
        if row["loss"]:
            notes.append(f"{row['scheme']}: {row['loss']}")
    target = document["target"]
    head = (
        f"draft {document['draft']['name']} ({document['draft']['precision']}), target "
        f"{target['name']}, {document['text']}: "
        f"{document['prompts']} prompts of {settings['tokens']} new tokens, "
        f"K {settings['block']}, top-k {settings['top_k']}, top-p {settings['top_p']:g}"
    )
    foot = "\n".join(["bytes are payload of block and commit frames", *notes])
    return f"{head}\n\n{format_table(header, lines)}\n\n{foot}"
