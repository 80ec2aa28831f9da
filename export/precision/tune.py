"""Which of a draft's models a board shall run: the choice, and where it is written.

A draft that is rounded harder steps faster and is accepted less; what counts is the
product: accepted tokens for each second, or each joule, of drafting.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError
from draftwire.io import write_text
from draftwire.packages import load_draft

# A choice with more threads must be this much better: threads cost the other programs.
_GAIN = 1.05


@dataclass(frozen=True)
class Candidate:
    """One way to run a draft, and what was measured of it."""

    engine: str  # "onnxruntime" or "litert"
    precision: str  # "fp32", "int8", ...
    threads: int  # threads inside one operator
    tokens_per_s: float  # drafted tokens
    # share of drafted tokens that the target accepts, or None
    acceptance: float | None = None
    joules_per_token: float | None = None  # of drafting, or None

    @property
    def accepted_per_s(self) -> float | None:
        """Accepted tokens for each second of drafting, or None."""
        return None if self.acceptance is None else self.tokens_per_s * self.acceptance

    @property
    def accepted_per_joule(self) -> float | None:
        """Accepted tokens for each joule of drafting, or None."""
        if self.acceptance is None or not self.joules_per_token:
            return None
        return self.acceptance / self.joules_per_token

    def record(self) -> dict[str, Any]:
        """Return what a document says of it."""
        derived = ("accepted_per_s", "accepted_per_joule")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class Choice:
    """The best candidates."""

    per_second: Candidate  # most accepted tokens a second
    per_joule: Candidate | None  # most accepted tokens a joule, or None
    why_no_joules: str  # why not, or ""
    warnings: tuple[str, ...]  # what the choice rests on less than firmly


def choose(candidates: Sequence[Candidate], *, why_no_joules: str = "") -> Choice:
    """Return the candidates with the most accepted tokens a second and a joule.

    Where no acceptance was measured, only float32 is sure to keep the draft's own, and the
    choice is the quickest candidate, with a warning. A ConfigError where there is no
    candidate, or acceptance is known of some alone.
    """
    if not candidates:
        raise ConfigError("there is nothing to choose from: no line was measured")
    known = [c for c in candidates if c.acceptance is not None]
    if known and len(known) < len(candidates):
        lacks = next(c for c in candidates if c.acceptance is None)
        raise ConfigError(
            f"the acceptance of {lacks.engine} {lacks.precision} was not measured"
        )
    unmeasured = (
        "acceptance was not measured (give --target and --prompts): the choice is "
        "the quickest, as if every precision were accepted alike"
    )

    def speed(c: Candidate) -> float:
        return c.tokens_per_s if c.accepted_per_s is None else c.accepted_per_s

    best, *rest = sorted(candidates, key=lambda c: (c.threads, -speed(c)))
    for one in rest:
        gain = _GAIN if one.threads > best.threads else 1.0
        if speed(one) > gain * speed(best):
            best = one
    thrifty = [c for c in candidates if c.accepted_per_joule is not None]
    per_joule = max(thrifty, key=lambda c: c.accepted_per_joule or 0.0, default=None)
    why = why_no_joules or "acceptance was not measured"
    why = "" if per_joule is not None else why
    return Choice(best, per_joule, why, () if known else (unmeasured,))


def write_acceptance(
    package: Path, found: Mapping[tuple[str, str], Mapping[str, Any]]
) -> None:
    """Record in ``draft.json`` what a target accepted of each of a draft's models.

    The package's id, a hash over the files' content, does not change. A ConfigError where
    the manifest cannot be written, a PackageError where the package is damaged.
    """
    with _manifest(package) as raw:
        for entry in raw["files"].values():
            key = (entry.get("engine", ""), entry.get("precision", ""))
            if key in found:
                entry["acceptance"] = dict(found[key])


def write_hint(package: Path, board: str, hint: Mapping[str, Any]) -> None:
    """Write how ``board`` shall run a draft, and what that rests on, into its
    ``draft.json``; id and errors as for :func:`write_acceptance`.
    """
    with _manifest(package) as raw:
        raw.setdefault("hints", {}).setdefault("boards", {})[board] = dict(hint)


@contextlib.contextmanager
def _manifest(package: Path) -> Iterator[dict[str, Any]]:
    """Yield a copy of a draft's manifest, and write what became of it."""
    before = load_draft(package)
    raw = json.loads(json.dumps(dict(before.raw)))
    yield raw
    text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    write_text(before.path / "draft.json", text)
