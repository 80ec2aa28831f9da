"""One frozen draft against targets that evolve: the study behind ``studies.evolve``.

Arms, all of one shape but the third and the last:

``frozen``        the shared-backbone draft of the base, trained once
``independent``   a draft from nothing, same size, same training arithmetic
``suffix``        the frozen draft behind a cache of what was said before
``long``          the independent draft with several times the arithmetic
``stale``         the base itself as the draft: the ceiling of what ages with the base
``retrained``     the frozen draft trained on for each version: the upper bound, and a
                  download each time
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from draftwire.bench.machine import machine
from draftwire.cli._common import write_json
from draftwire.errors import ConfigError
from draftwire.export.training.base import read_base
from studies.evolve.measure import Probe, Spoken, distance, measure, speak
from studies.evolve.models import Budget, Version, Workshop
from studies.evolve.text import Domain, Texts, make_texts

SCHEMA = "draftwire.evolve/1"
ARMS = ("frozen", "independent", "suffix", "long", "stale", "retrained")
Say = Callable[[str], None]


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


def parse_version(text: str) -> Version:
    """Read ``DOMAIN[+DOMAIN]:STEPS[:free]`` or ``NAME.target:DOMAIN[+DOMAIN]``.

    Raises:
        ConfigError: It is neither.
    """
    parts = text.split(":")
    if len(parts) == 2 and parts[0].rstrip("/").endswith(".target"):
        path = Path(parts[0])
        return Version(path.stem, tuple(parts[1].split("+")), package=path)
    if len(parts) in (2, 3) and parts[1].isdigit() and int(parts[1]) > 0:
        if len(parts) == 2 or parts[2] == "free":
            name = parts[0] + f"-{parts[1]}" + ("-free" if len(parts) == 3 else "")
            domains = tuple(parts[0].split("+"))
            return Version(name, domains, int(parts[1]), free=len(parts) == 3)
    raise ConfigError(
        f"{text!r} is no version of a target",
        hint="DOMAIN:STEPS, DOMAIN:STEPS:free (the anchor evolves too), or "
        "NAME.target:DOMAIN for a package",
    )


def run_study(study: Study, *, say: Say) -> dict[str, Any]:
    """Train what is missing, measure what is missing, return the document.

    The document is also ``results.json`` in the work folder, written after every
    model that was measured.

    Raises:
        ConfigError: A text, a version or the base does not fit.
        ModelError: The base is damaged or of an unknown shape.
    """
    _check(study)
    began = time.process_time()
    study.work.mkdir(parents=True, exist_ok=True)
    base = read_base(study.base)
    texts = make_texts(base, study.domains, study.corpus, study.work, seed=1, say=say)
    known = set(texts.tokens)
    for version in study.versions:
        if unknown := set(version.domains) - known:
            raise ConfigError(
                f"version {version.name} reads {', '.join(sorted(unknown))}, which is "
                "no text of this study",
                hint=f"there are {', '.join(sorted(known))}",
            )
    shop = Workshop(base, texts, study.budget, study.work, say)
    bench = _Bench(study, shop, texts, say)
    bench.run()
    document = bench.document
    if "bytes" not in document:
        document["bytes"] = shop.sizes(study.base)
    document["cpu_seconds"] = round(
        document.get("cpu_seconds", 0.0) + time.process_time() - began, 1
    )
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
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            "a study needs versions of the target, each once",
            hint="--version coffee:40 --version coffee:40:free",
        )
    if not study.budget.seeds:
        raise ConfigError("a study needs at least one seed")


class _Bench:
    """The order of work, and the document that grows."""

    def __init__(self, study: Study, shop: Workshop, texts: Texts, say: Say) -> None:
        self.study, self.shop, self.texts, self.say = study, shop, texts, say
        self.path = study.work / "results.json"
        self.document: dict[str, Any] = {}
        if self.path.exists():
            self.document = json.loads(self.path.read_text())
            if self.document.get("settings") != _settings(study, texts):
                raise ConfigError(
                    f"{self.path} holds the results of other settings",
                    hint="give another --work folder, or the settings it was begun with",
                )
        self.document.setdefault("schema", SCHEMA)
        self.document.setdefault("settings", _settings(study, texts))
        self.document.setdefault("machine", {**machine(), "torch": torch.__version__})
        self.document["machine"].setdefault("date", time.strftime("%Y-%m-%d"))
        self.document.setdefault("targets", {})
        self._spoken: dict[tuple[str, str], Spoken] = {}
        self._targets: dict[str, torch.nn.Module] = {}

    @property
    def all(self) -> dict[str, tuple[Version | None, tuple[str, ...]]]:
        """Every target with the kinds of text that it is measured on."""
        found: dict[str, tuple[Version | None, tuple[str, ...]]] = {
            "base": (None, tuple(self.texts.shares))
        }
        found.update({v.name: (v, v.domains) for v in self.study.versions})
        return found

    def run(self) -> None:
        """Make every model and measure it, what tells most first."""
        arms, seeds = self.study.arms, self.study.budget.seeds
        times = self.study.budget.long
        for name, (version, domains) in self.all.items():
            target = self.shop.target(version)
            self._targets[name] = target
            entry = self.document["targets"].setdefault(
                name, {"domains": {}, "steps": version.steps if version else 0}
            )
            entry["free"] = bool(version and version.free)
            entry["package"] = bool(version and version.package)
            for domain in domains:
                if domain not in entry["domains"]:
                    stream = self.texts.stream(domain, "val")
                    entry["domains"][domain] = {
                        **distance(
                            self.shop.base.model,
                            target,
                            stream,
                            length=self.study.budget.length,
                        ),
                        **self.spoken(name, domain).facts(),
                        "arms": {},
                    }
            self.save()
        if "stale" in arms:
            self.measured("stale", 0, lambda: self.shop.base.model)
        for seed in seeds:
            for arm in ("frozen", "suffix"):
                if arm in arms:
                    self.measured(arm, seed, partial(self.shop.frozen, seed))
            if "independent" in arms:
                make = partial(self.shop.independent, seed, times=1.0)
                self.measured("independent", seed, make)
        for seed in seeds:
            if "long" in arms:
                make = partial(self.shop.independent, seed, times=times)
                self.measured("long", seed, make)
            if "retrained" in arms:
                self.retrained(seed)

    def retrained(self, seed: int) -> None:
        """Train the draft on for every version, and measure it there."""
        for version in self.study.versions:
            target = self._targets[version.name]
            self.measured(
                "retrained",
                seed,
                partial(self.shop.retrained, version, target, seed),
                only=version.name,
            )

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
            self.say(f"measured {arm} {only} {seed}: {self.brief(arm, seed, only)}")
            self.save()

    def brief(self, arm: str, seed: int, only: str) -> str:
        """Return mean accepted of a block, greedy, by target."""
        words = []
        for name, entry in self.document["targets"].items():
            rows = [
                facts["arms"][arm][str(seed)]["greedy"]
                for facts in entry["domains"].values()
                if str(seed) in facts["arms"].get(arm, {})
            ]
            if rows and only in ("", name):
                means = [sum(r) / len(r) for r in rows]
                words.append(f"{name} {sum(means) / len(means):.2f}")
        return ", ".join(words)

    def spoken(self, name: str, domain: str) -> Spoken:
        """Return what a target says to the prompts of a domain."""
        key = (name, domain)
        if key not in self._spoken:
            target, stream = self._targets[name], self.texts.stream(domain, "val")
            self._spoken[key] = speak(target, stream, self.study.probe)
        return self._spoken[key]

    def save(self) -> None:
        """Write the document as it is now."""
        self.document["trainings"] = {
            **self.document.get("trainings", {}),
            **self.shop.made,
        }
        write_json(self.document, str(self.path))


def _settings(study: Study, texts: Texts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "base": study.base.name,
        "versions": [
            {**asdict(v), "package": v.package.name if v.package else None}
            for v in study.versions
        ],
        "budget": asdict(study.budget),
        "probe": asdict(study.probe),
        "texts": {d: dict(parts) for d, parts in texts.tokens.items()},
        "shares": dict(texts.shares),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def default_versions(texts: Sequence[str], steps: int = 40) -> tuple[Version, ...]:
    """Return one version for each kind of text, and the last with its anchor free."""
    found = [Version(f"{t}-{steps}", (t,), steps) for t in texts]
    last = texts[-1]
    return (*found, Version(f"{last}-{steps}-free", (last,), steps, free=True))
