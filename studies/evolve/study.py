"""One frozen draft against targets that evolve: the study behind ``studies.evolve``.

Arms, all of one shape but ``stale`` and ``given``:

``frozen``        the shared-backbone draft of the base, trained once
``independent``   a draft from nothing, same size, same training arithmetic
``suffix``        the frozen draft behind a cache of what was said before
``long``          the independent draft with several times the arithmetic
``stale``         the base itself as the draft: the ceiling of what ages with the base
``given``         a draft package as it is, through the engine of a device
``retrained``     the frozen draft trained on for each version: the upper bound, and a
                  download each time
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from draftwire.bench.machine import machine
from draftwire.cli._common import write_json
from draftwire.errors import ConfigError
from draftwire.export.training.base import read_base
from studies.command import Say
from studies.evolve.measure import Probe, Spoken, distance, measure, speak
from studies.evolve.models import Budget, Packaged, Version, Workshop
from studies.evolve.stats import KINDS, SCHEMA
from studies.evolve.text import Domain, Texts, make_texts

ARMS = ("frozen", "suffix", "independent", "long", "stale", "given", "retrained")
_MERGED = ("mean", "sum")


@dataclass(frozen=True)
class Study:
    """What is compared, and what it may cost."""

    base: Path  # hugging Face directory or target package
    work: Path  # folder for everything that is trained; a second run goes on there
    versions: tuple[Version, ...]  # evolved targets, near to far
    domains: tuple[Domain, ...] = ()  # texts beside the corpus
    corpus: Path | None = None  # folder of the reference family's corpora, or None
    budget: Budget = Budget()  # of the trainings
    probe: Probe = Probe()  # of the measurements
    arms: tuple[str, ...] = ARMS  # which of ``ARMS``
    draft: Path | None = None  # the package that ``given`` is


def parse_version(text: str) -> Version:
    """Read ``TEXT[+TEXT]:STEPS[:KIND]``, ``NAME+NAME:mean`` or ``NAME.target:TEXT``.

    Raises:
        ConfigError: It is none of them.
    """
    head, _, rest = text.partition(":")
    names, (first, _, last) = tuple(head.split("+")), rest.partition(":")
    kind, _, of = (last or "text").partition("=")
    if head.rstrip("/").endswith(".target") and first and not last:
        return Version(Path(head).stem, tuple(first.split("+")), 0, "package", (head,))
    if all(names) and first in _MERGED and len(names) > 1 and not last:
        return Version(f"{head}-{first}", (), 0, first, names)
    trained = kind in KINDS and kind not in (*_MERGED, "package")
    if all(names) and first.isdigit() and int(first) > 0 and trained:
        if bool(of) == (kind == "taught"):
            name = f"{head}-{first}" + ("" if kind == "text" else f"-{kind}")
            return Version(name, names, int(first), kind, (of,) if of else ())
    raise ConfigError(
        f"{text!r} is no version of a target",
        hint="TEXT:STEPS, TEXT:STEPS:free (the anchor evolves too), TEXT:STEPS:varied "
        "(a preference), TEXT:STEPS:new (another model), TEXT:STEPS:taught=TEACHER, "
        "VERSION+VERSION:mean, VERSION+VERSION:sum, or NAME.target:TEXT for a package",
    )


def _resolved(versions: Sequence[Version]) -> dict[str, Version]:
    """Return versions by name, merged ones with the texts of their parts."""
    known: dict[str, Version] = {}
    for version in versions:
        for name in version.of:
            there = version.kind not in _MERGED and Path(name).exists()
            if name not in known and not there:
                raise ConfigError(
                    f"{version.name} is made of {name}, which is no version before it",
                    hint=f"there are {', '.join(known) or 'none'}",
                )
        if version.kind in _MERGED:
            texts = dict.fromkeys(d for n in version.of for d in known[n].domains)
            version = replace(version, domains=tuple(texts))
        known[version.name] = version
    return known


def run_study(study: Study, *, say: Say) -> dict[str, Any]:
    """Train what is missing, measure what is missing, return the document.

    The document is also ``results.json`` in the work folder, written after every
    model that was measured.

    Raises:
        ConfigError: A text, a version or the base does not fit.
        ModelError: The base is damaged or of an unknown shape.
    """
    _check(study)
    versions = _resolved(study.versions)
    study = replace(study, versions=tuple(versions.values()))
    began = time.process_time()
    study.work.mkdir(parents=True, exist_ok=True)
    base = read_base(study.base)
    texts = make_texts(base, study.domains, study.corpus, study.work, say)
    known = set(texts.tokens)
    for version in study.versions:
        if unknown := set(version.domains) - known:
            raise ConfigError(
                f"version {version.name} reads {', '.join(sorted(unknown))}, which is "
                "no text of this study",
                hint=f"there are {', '.join(sorted(known))}",
            )
    shop = Workshop(base, texts, study.budget, study.work, say, versions)
    bench = _Bench(study, shop)
    bench.run()
    document = bench.document
    if "bytes" not in document and "frozen" in study.arms:
        document["bytes"] = shop.sizes()
    spent_s = document.get("cpu_seconds", 0.0) + time.process_time() - began
    document["cpu_seconds"] = round(spent_s, 1)
    bench.save()
    return document


def _check(study: Study) -> None:
    unknown = set(study.arms) - set(ARMS)
    if unknown or not study.arms:
        raise ConfigError(
            f"there is no arm {', '.join(sorted(unknown)) or '(none given)'}",
            hint=f"choose from {', '.join(ARMS)}",
        )
    names = [v.name for v in study.versions]
    if len(set(names)) < len(names):
        raise ConfigError(
            "a study needs versions of the target, each once",
            hint="--version coffee:40 --version coffee:40:free",
        )
    if ("given" in study.arms) != (study.draft is not None):
        raise ConfigError("the arm given is a package", hint="--draft NAME.draft")


class _Bench:
    """The order of work, and the document that grows."""

    def __init__(self, study: Study, shop: Workshop) -> None:
        self.study, self.shop = study, shop
        settings = _settings(study, shop.texts)
        self.path = study.work / "results.json"
        self.document: dict[str, Any] = {}
        if self.path.exists():
            self.document = json.loads(self.path.read_text())
            if self.document.get("settings") != settings:
                raise ConfigError(
                    f"{self.path} holds the results of other settings",
                    hint="give another --work folder, or the settings it was begun with",
                )
        else:
            self.document.update(
                schema=SCHEMA,
                settings=settings,
                machine={**machine(), "torch": torch.__version__},
                targets={},
            )
        self._spoken: dict[tuple[str, str], Spoken] = {}

    def run(self) -> None:
        """Make every model and measure it, what tells most first."""
        arms, seeds = self.study.arms, self.study.budget.seeds
        times = self.study.budget.long
        read = {text for version in self.study.versions for text in version.domains}
        base = Version("base", tuple(t for t in self.shop.texts.shares if t in read))
        for version in (base, *self.study.versions):
            target = self.shop.target(version.name)
            entry = self.document["targets"].setdefault(
                version.name,
                {"domains": {}, "steps": version.steps, "kind": self.shop.kind(version)},
            )
            for domain in version.domains:
                if domain not in entry["domains"]:
                    stream = self.shop.texts.stream(domain, "val")
                    length = self.study.budget.length
                    far = distance(self.shop.base.model, target, stream, length=length)
                    spoken = self.spoken(version.name, domain).facts()
                    entry["domains"][domain] = {**far, **spoken, "arms": {}}
            self.save()
        if "stale" in arms:
            self.measured("stale", 0, lambda: self.shop.base.model)
        if self.study.draft is not None:
            self.measured("given", 0, partial(Packaged, self.study.draft, self.shop.base))
        for seed in seeds:
            for arm in ("frozen", "suffix"):
                if arm in arms:
                    self.measured(arm, seed, partial(self.shop.shared, seed))
            if "independent" in arms:
                make = partial(self.shop.independent, seed, times=1.0)
                self.measured("independent", seed, make)
        for seed in seeds:
            for version in self.study.versions if "retrained" in arms else ():
                make = partial(self.shop.shared, seed, version)
                self.measured("retrained", seed, make, only=version.name)
        for seed in seeds if "long" in arms else ():
            make = partial(self.shop.independent, seed, times=times)
            self.measured("long", seed, make)

    def measured(
        self, arm: str, seed: int, make: Callable[[], Any], *, only: str = ""
    ) -> None:
        """Measure a draft against every target, or against ``only`` one."""
        draft = None
        for name, entry in self.document["targets"].items():
            if (only and name != only) or (arm == "stale" and name == "base"):
                continue
            for domain, facts in entry["domains"].items():
                arms = facts["arms"]
                if str(seed) in arms.get(arm, {}):
                    continue
                draft = draft if draft is not None else make()
                spoken = self.spoken(name, domain)
                row = measure(draft, spoken, suffix=arm == "suffix")
                arms.setdefault(arm, {})[str(seed)] = row
        if draft is not None:
            self.shop.say(f"measured {arm} {only} {seed}")
            self.save()

    def spoken(self, name: str, domain: str) -> Spoken:
        """Return what a target says to the prompts of a domain."""
        key = (name, domain)
        if key not in self._spoken:
            target, stream = self.shop.target(name), self.shop.texts.stream(domain, "val")
            self._spoken[key] = speak(target, stream, self.study.probe)
        return self._spoken[key]

    def save(self) -> None:
        """Write the document as it is now."""
        self.document.setdefault("trainings", {}).update(self.shop.made)
        write_json(self.document, str(self.path))


def _settings(study: Study, texts: Texts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "base": study.base.name,
        "versions": [
            {**asdict(v), "of": [Path(name).name for name in v.of]} for v in study.versions
        ],
        "budget": asdict(study.budget),
        "probe": asdict(study.probe),
        "texts": {d: dict(parts) for d, parts in texts.tokens.items()},
        "shares": dict(texts.shares),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain
