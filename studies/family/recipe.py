"""The recipe of the reference family, from corpora to weights, stage by stage.

Stages: tokenizer and token streams, base target ``v1``, frozen draft, evolved targets,
evaluation. Each leaves its result in the work folder and is skipped when it is there; an
interrupted training stage resumes from its checkpoint. Packaging is
:mod:`studies.family.package`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.sources.checkpoint import load_model
from draftwire.export.training.distil import DraftTrainer, make_draft
from draftwire.export.training.evolve import add_lora
from draftwire.export.training.loop import Plan, Stream, train
from draftwire.export.training.measure import acceptance, text_loss, validation_loss
from studies.family.corpus import DOMAINS, build_tokenizer, encode_parts, split_documents
from studies.family.model import LlamaConfig, new_llama

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evolution:
    """How one evolved target is made."""

    version: str  # its name, e.g. ``"v2"``.
    domains: tuple[str, ...]  # what it reads (the parts that the base has not seen)
    steps: int  # optimiser steps


@dataclass(frozen=True)
class FamilySettings:
    """Everything that decides the result, apart from the corpora."""

    config: LlamaConfig = LlamaConfig()  # shape of the base target
    anchor_layers: int = 2  # blocks that draft and targets share for good
    trained_layers: int = 2  # of the draft
    base_steps: int = 650  # optimiser steps, of ``Plan.batch`` tokens each
    draft_steps: int = 220
    evolutions: tuple[Evolution, ...] = (
        Evolution("v2", ("home", "plans"), 80),
        Evolution("v3", ("coffee",), 40),
    )
    rank: int = 16  # of their adapters
    seed: int = 1  # of everything random
    workers: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))

    def longer(self, factor: float) -> FamilySettings:
        """Return the same recipe with every training ``factor`` times as long.

        Raises:
            ConfigError: The factor is not above 0.
        """
        if not factor > 0:
            raise ConfigError(f"{factor} times as long is not a training")
        return replace(
            self,
            base_steps=max(1, round(self.base_steps * factor)),
            draft_steps=max(1, round(self.draft_steps * factor)),
            evolutions=tuple(
                replace(e, steps=max(1, round(e.steps * factor))) for e in self.evolutions
            ),
        )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _distil_loss(model: nn.Module, ids: Tensor) -> Tensor:
    assert isinstance(model, DraftTrainer)
    return model.loss(ids)


def _stream_path(work: Path, domain: str, part: str) -> Path:
    return work / f"{domain}.{part}.npy"


def make_streams(corpus: Path, work: Path, settings: FamilySettings, say: Say) -> None:
    """Split the corpora, train the tokenizer on what the base may see, encode all.

    Raises:
        ConfigError: A corpus file is missing or too small.
    """
    if (work / "tokenizer.json").exists():
        return
    parts = {d.name: split_documents(d, corpus, seed=settings.seed) for d in DOMAINS}
    lines: list[str] = []
    for domain in DOMAINS:
        text = "\n".join(parts[domain.name]["seen"])
        wanted = int(3_000_000 * domain.share)  # characters, in the base's proportions
        lines += (text * (wanted // len(text) + 1))[:wanted].split("\n")
    tokenizer = build_tokenizer(lines, settings.config.vocab_size)
    for domain in DOMAINS:
        for part, stream in encode_parts(tokenizer, parts[domain.name]).items():
            np.save(_stream_path(work, domain.name, part), stream)
            say(f"{domain.name} {part}: {len(stream):,} tokens")
    tokenizer.save(str(work / "tokenizer.json"))


def _mixture(work: Path) -> Stream:
    return Stream(
        tuple(_stream_path(work, d.name, "seen") for d in DOMAINS),
        tuple(d.share for d in DOMAINS),
    )


def make_base(work: Path, settings: FamilySettings, say: Say) -> Any:
    """Train the base target, or load it when it is there."""
    if not (work / "v1.hf" / "model.safetensors").exists():
        model = new_llama(settings.config, seed=settings.seed).to(_device())
        plan = Plan(steps=settings.base_steps, seed=settings.seed, workers=settings.workers)
        train(model, _mixture(work), plan, text_loss, work / "v1", say=say)
        model.cpu().save_pretrained(work / "v1.hf")
    return load_model(work / "v1.hf")


def make_frozen_draft(work: Path, base: Any, settings: FamilySettings, say: Say) -> Any:
    """Distil the draft, or load it when it is there."""
    if not (work / "draft.hf" / "model.safetensors").exists():
        draft = make_draft(
            base,
            anchor_layers=settings.anchor_layers,
            trained_layers=settings.trained_layers,
        )
        trainer = DraftTrainer(base, draft)
        plan = Plan(
            steps=settings.draft_steps,
            seed=settings.seed + 1,
            matrix_lr=3e-3,
            lr=1e-3,
            lengths=((0.9, 256), (1.0, 1024)),
            workers=settings.workers,
        )
        train(
            trainer.to(_device()),
            _mixture(work),
            plan,
            _distil_loss,
            work / "draft",
            say=say,
        )
        draft.cpu().save_pretrained(work / "draft.hf")
    return load_model(work / "draft.hf")


def make_evolved(
    work: Path, evolution: Evolution, settings: FamilySettings, say: Say
) -> None:
    """Train the adapters of one evolved target, unless they are there."""
    folder = work / f"{evolution.version}.adapter"
    if (folder / "adapter_config.json").exists():
        return
    model = add_lora(
        load_model(work / "v1.hf"),
        rank=settings.rank,
        anchor_layers=settings.anchor_layers,
        seed=settings.seed * 1000,
    )
    paths = tuple(_stream_path(work, d, "unseen") for d in evolution.domains)
    data = Stream(paths, tuple(float(len(np.load(p))) for p in paths))
    plan = Plan(
        steps=evolution.steps,
        seed=settings.seed + 2,
        lr=2e-3,
        warmup=10,
        lengths=((1.0, 256),),
        workers=settings.workers,
    )
    train(model.to(_device()), data, plan, text_loss, work / evolution.version, say=say)
    part = folder.with_suffix(".part")
    model.cpu().save_pretrained(part, save_embedding_layers=False)
    part.rename(folder)


def load_evolved(work: Path, version: str) -> Any:
    """Return the evolved target with its adapter merged."""
    from peft import PeftModel

    model = load_model(work / "v1.hf")
    return PeftModel.from_pretrained(model, work / f"{version}.adapter").merge_and_unload()


def _part_for(version: str, domain: str, settings: FamilySettings) -> bool:
    return any(domain in e.domains for e in settings.evolutions if e.version == version)


def evaluate_family(
    work: Path, base: Any, draft: Any, settings: FamilySettings, say: Say
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure losses and the draft's acceptance on held-out text of every domain.

    Returns:
        ``{version: {domain: {"loss", "base_loss", "greedy_per_block", ...}}}``, also
        written to ``evaluation.json``.
    """
    path = work / "evaluation.json"
    if path.exists():
        found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text())
        return found
    torch.set_num_threads(1)  # OpenMP barriers on busy cores cost more than they gain
    targets = {"v1": base}
    for evolution in settings.evolutions:
        targets[evolution.version] = load_evolved(work, evolution.version)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for version, target in targets.items():
        result[version] = {}
        for domain in DOMAINS:
            own = version == "v1" or _part_for(version, domain.name, settings)
            if not own:
                continue
            stream = np.load(_stream_path(work, domain.name, "val"))
            row = {
                "loss": round(validation_loss(target, stream), 4),
                "base_loss": round(validation_loss(base, stream), 4),
                **acceptance(target, draft, stream, seed=settings.seed),
            }
            result[version][domain.name] = row
            say(f"{version} {domain.name}: {row}")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
    return result


def build_family(
    corpus: Path, work: Path, settings: FamilySettings, *, say: Say = print
) -> dict[str, dict[str, dict[str, float]]]:
    """Run every stage that has not been run; return the evaluation.

    Args:
        corpus: Folder of the corpus files.
        work: Folder for streams, checkpoints and results.
        settings: The recipe.
        say: Gets lines of progress.

    Raises:
        ConfigError: A corpus is missing, or the work folder was made with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    make_streams(corpus, work, settings, say)
    base = make_base(work, settings, say)
    draft = make_frozen_draft(work, base, settings, say)
    for evolution in settings.evolutions:
        make_evolved(work, evolution, settings, say)
    return evaluate_family(work, base, draft, settings, say)
