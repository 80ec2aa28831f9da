"""How near an exported model is to its checkpoint, and how near it must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from draftwire.errors import ModelError
from draftwire.export.graphs.reference import reference_logits
from draftwire.export.precision.runners import Logits, Reader
from draftwire.export.sources.checkpoint import Checkpoint, load_model, require_finite
from draftwire.export.sources.head import UNSAID, hushed
from draftwire.tokenizer import load_tokenizer

_FLATTER = 0.1  # by which rows behind masks may agree less often
MAX_PROBE = 224  # tokens: enough to see a fault, few enough for a laptop

# Plain prose, code, numbers: what a draft meets.  About 250 tokens at V = 2048.
PROBE_TEXT = """\
The robot goes to the kitchen, takes the red cup from the table and brings it to the
living room. "Thank you," said Anna, and she put the cup next to the lamp. Then the
robot turned left twice, walked past the door and waited for the next command.
How many apples are left if 23 of 64 apples were sold? 64 - 23 = 41, so 41 are left.
def area(width, height):
    return width * height  # in square metres
"""


@dataclass(frozen=True)
class Limit:
    """What a precision must reach."""

    difference: float | None  # largest logit difference over the largest logit, or None
    agreement: float  # least share of positions with the same most likely token


LIMITS = {
    "fp32": Limit(1e-3, 0.99),
    "fp16": Limit(2e-2, 0.98),
    # int8 keeps 96 % on SmolLM2-135M, int4 as it is made here 90 %, plain int4 65 %.
    "int8": Limit(None, 0.90),
    "int8-split": Limit(None, 0.90),
    "int8-kv8": Limit(None, 0.90),
    "int4": Limit(None, 0.80),
}


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from its checkpoint."""

    against: str  # whose logits were taken as right
    tokens: int  # compared positions
    max_difference: float  # largest absolute logit difference
    max_logit: float  # largest absolute logit of the checkpoint
    agreement: float  # share of positions with the same most likely token
    # mean divergence from the checkpoint's distribution, in nats, where measured
    kl: float | None = None
    by_chunk: dict[str, float] | None = None  # agreement by tokens a step, where measured
    # agreement of what is said behind masks, where the draft has some
    masks: float | None = None

    def record(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
            if value is not None
        }

    def require(self, name: str, limit: Limit) -> None:
        """Refuse a model that is too far from its checkpoint; a ModelError where it is."""
        wider = "choose a wider precision, or lower the limit with --min-agreement"
        if self.agreement < limit.agreement:
            raise ModelError(
                f"{name} picks the checkpoint's most likely token at "
                f"{self.agreement:.1%} of {self.tokens} positions, "
                f"the limit is {limit.agreement:.1%}",
                hint=wider,
            )
        # What stands behind masks is flatter, and only says how much is accepted.
        least = limit.agreement - _FLATTER
        if self.masks is not None and self.masks < least:
            raise ModelError(
                f"{name} says the same as the checkpoint behind {self.masks:.1%} of its "
                f"masks, the limit is {least:.1%}",
                hint=wider,
            )
        most = np.inf if limit.difference is None else limit.difference * self.max_logit
        if limit.difference is not None and not self.max_difference <= most:
            raise ModelError(
                f"{name} differs from the checkpoint by {self.max_difference:.3g} "
                f"at logits up to {self.max_logit:.3g}",
                hint="this is a fault of the exporter: please report the model",
            )


def limit_of(precision: str, min_agreement: float | None) -> Limit:
    """Return a precision's limit, with another agreement where that was asked for."""
    limit = LIMITS[precision]
    return limit if min_agreement is None else Limit(limit.difference, min_agreement)


class Probe(NamedTuple):
    """What a graph is compared on."""

    ids: list[int]  # of a text
    logits: Logits  # what is right, ``(T, V)``, and where masks are the rows behind them
    against: str  # who says so


def probe_ids(folder: Path, vocab_size: int, bos_id: int | None, context: int) -> list[int]:
    """Return tokens of the probe text; a ModelError where the tokenizer gives ids that the
    model has no row for.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    ids = tokenizer.encode(PROBE_TEXT, bos_id=bos_id)
    if not ids or max(ids) >= vocab_size:
        raise ModelError(
            f"{folder.name}: its tokenizer gives token {max(ids, default=None)}, "
            f"its embedding has {vocab_size} rows",
            hint="tokenizer.json belongs to another model",
        )
    return ids[: min(MAX_PROBE, context)]


def probe(checkpoint: Checkpoint, against: str, masks: Sequence[int] = ()) -> Probe:
    """Return what a checkpoint says of the probe text.

    ``against`` is "torch", "numpy", or "auto" for torch where it is installed. With
    ``masks`` the rows of :func:`mask_rows` follow. A ModelError where the result is not
    finite.
    """
    a, folder = checkpoint.architecture, checkpoint.folder
    ids = probe_ids(folder, a.vocab_size, checkpoint.bos_id, a.context)
    installed = all(find_spec(name) for name in ("torch", "transformers"))
    ends = mask_ends(len(ids), len(masks), a.context)
    texts = [ids, *([*ids[:end], *masks] for end in ends)]
    if against == "torch" or (against == "auto" and installed):
        rows, source = torch_logits(folder, texts)
    else:
        rows, source = [reference_logits(checkpoint, text) for text in texts], "numpy"
    behind = [row[-1 - len(masks) :] for row in rows[1:]]
    logits = hushed(np.concatenate([rows[0], *behind]), a.said)
    return Probe(ids, finite_logits(folder.name, logits), source)


def finite_logits(name: str, logits: Logits) -> Logits:
    """Return ``logits``; a ModelError where they are not finite."""
    require_finite(f"{name} gives logits", np.isfinite(logits).all())
    return logits


def torch_logits(folder: Path, texts: Sequence[Sequence[int]]) -> tuple[list[Logits], str]:
    """Return transformers' logits ``(T, V)`` for each text, and its version; a ModelError
    where it cannot load the model.
    """
    import torch
    import transformers

    model = load_model(folder)
    with torch.no_grad():
        rows = [model(torch.tensor([list(ids)])).logits[0].float().numpy() for ids in texts]
    return rows, f"transformers {transformers.__version__}"


def compare(found: Logits, expected: Logits, against: str) -> Parity:
    """Return how far ``found`` ``(T, V)`` is from ``expected``."""
    finite = bool(np.isfinite(found).all())
    return Parity(
        against=against,
        tokens=len(expected),
        max_difference=float(np.abs(found - expected).max()) if finite else np.inf,
        max_logit=largest(expected),
        agreement=float((found.argmax(-1) == expected.argmax(-1)).mean()),
    )


def largest(logits: Logits) -> float:
    """Return the largest absolute logit of the tokens that are said."""
    return float(np.abs(logits, where=logits != UNSAID, out=np.zeros_like(logits)).max())


def mask_ends(length: int, masks: int, context: int) -> list[int]:
    """Return behind how much of a text masks are tried: up to eleven tokens apart."""
    if not masks:
        return []
    ends = range(2, min(length, context - masks) + 1)
    return list(ends[:: max(1, min(11, len(ends) // 3))])


def mask_rows(
    runner: Reader, ids: Sequence[int], masks: Sequence[int], context: int
) -> list[Logits]:
    """Return what a draft says of several tokens at once, ``(1 + masks, V)`` each time.

    A block of text with masks behind, the masks taken back, and so on: as drafts are made
    and judged.
    """
    found: list[Logits] = []
    runner.rewind(0)
    for end in mask_ends(len(ids), len(masks), context):
        step = [*ids[runner.length : end], *masks]
        found.append(runner.forward(step, rows=1 + len(masks)))
        runner.rewind(end)
    return found


def check_steps(runner: Reader, ids: Sequence[int]) -> Logits:
    """Return ``(T, V)`` logits of a text in steps of many sizes, with a rewind."""
    third = max(1, len(ids) // 3)
    runner.forward(ids[:third])
    # A rejected block, taken back: its entries must not be seen again.
    runner.forward(ids[-max(1, third // 4) :])
    runner.rewind(0)
    found = []
    sizes = [third, 1, 3, 1, 7, 2, 1]
    while runner.length < len(ids):
        size = sizes.pop(0) if sizes else 5
        step = ids[runner.length : runner.length + size]
        found.append(runner.forward(step, rows=len(step)))
    return np.concatenate(found)
