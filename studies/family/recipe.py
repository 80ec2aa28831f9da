"""The recipe of the reference family, from corpora to weights, stage by stage.

Stages: tokenizer and token streams, base target ``v1``, frozen draft, evolved targets,
evaluation. Each leaves its result in the work folder and is skipped when it is there; an
interrupted training stage resumes from its checkpoint. Packaging is
:mod:`studies.family.package`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
import transformers
from torch import nn

from draftwire.errors import ConfigError
from draftwire.export.sources.checkpoint import load_model
from draftwire.export.sources.documents import encode
from draftwire.export.training.distil import DraftTrainer, make_draft
from draftwire.export.training.evolve import add_lora
from draftwire.export.training.loop import Plan, Stream, train
from draftwire.export.training.measure import acceptance, text_loss, validation_loss
from draftwire.io import write_text
from studies.command import Say
from studies.family.corpus import DOMAINS, build_tokenizer, split_documents

SHAPE = {  # as Hugging Face's ``config.json`` names it
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Evolution:
    """How one evolved target is made."""

    version: str  # its name, e.g. ``"v2"``.
    domains: tuple[str, ...]  # what it reads (the parts that the base has not seen)
    steps: int  # optimiser steps


@dataclass(frozen=True)
class FamilySettings:
    """Everything that decides the result, apart from the corpora."""

    config: Mapping[str, Any] = field(default_factory=lambda: SHAPE)  # of the base target
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

        def times(steps: int) -> int:
            return max(1, round(steps * factor))

        longer = tuple(replace(e, steps=times(e.steps)) for e in self.evolutions)
        base, draft = times(self.base_steps), times(self.draft_steps)
        return replace(self, base_steps=base, draft_steps=draft, evolutions=longer)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
    size = settings.config["vocab_size"]
    tokenizer = build_tokenizer(lines, size)
    for domain in DOMAINS:
        for part, documents in parts[domain.name].items():
            stream = encode(tokenizer, documents, vocab_size=size, end=0)
            np.save(_stream_path(work, domain.name, part), stream)
            say(f"{domain.name} {part}: {len(stream):,} tokens")
    tokenizer.save(str(work / "tokenizer.json"))


def _mixture(work: Path) -> Stream:
    return Stream(
        tuple(_stream_path(work, d.name, "seen") for d in DOMAINS),
        tuple(d.share for d in DOMAINS),
    )


def fresh_weights_(model: Any, *, seed: int) -> None:
    """Give a model of Llama or GPT-NeoX shape random first weights, in place.

    Source:
        Radford et al. 2019, GPT-2: 0.02, and less on the way into the residual stream.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = ("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            depth = model.config.num_hidden_layers if name.endswith(ends) else 0.5
            scale = 0.02 / (2 * depth) ** 0.5
            nn.init.normal_(weight, std=scale, generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(weight)


def make_base(work: Path, settings: FamilySettings, say: Say) -> Any:
    """Train the base target, or load it when it is there."""
    if not (work / "v1.hf" / "model.safetensors").exists():
        shape = transformers.LlamaConfig(
            **settings.config,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = transformers.LlamaForCausalLM(shape).float().eval()
        fresh_weights_(model, seed=settings.seed)
        model = model.to(DEVICE)
        plan = Plan(steps=settings.base_steps, seed=settings.seed, workers=settings.workers)
        train(model, _mixture(work), plan, text_loss, work / "v1", say=say)
        model.cpu().save_pretrained(work / "v1.hf")
    return load_model(work / "v1.hf")


def make_frozen_draft(work: Path, base: Any, settings: FamilySettings, say: Say) -> Any:
    """Distil the draft, or load it when it is there."""
    if not (work / "draft.hf" / "model.safetensors").exists():
        anchor, trained = settings.anchor_layers, settings.trained_layers
        draft = make_draft(base, anchor_layers=anchor, trained_layers=trained)
        trainer = DraftTrainer(base, draft).to(DEVICE)
        plan = Plan(
            steps=settings.draft_steps,
            seed=settings.seed + 1,
            matrix_lr=3e-3,
            lr=1e-3,
            lengths=((0.9, 256), (1.0, 1024)),
            workers=settings.workers,
        )

        train(trainer, _mixture(work), plan, DraftTrainer.loss, work / "draft", say=say)
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
    train(model.to(DEVICE), data, plan, text_loss, work / evolution.version, say=say)
    part = folder.with_suffix(".part")
    model.cpu().save_pretrained(part, save_embedding_layers=False)
    part.rename(folder)


def load_evolved(work: Path, version: str) -> Any:
    """Return the evolved target with its adapter merged."""
    from peft import PeftModel

    model = load_model(work / "v1.hf")
    return PeftModel.from_pretrained(model, work / f"{version}.adapter").merge_and_unload()


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
    reads = {"v1": tuple(domain.name for domain in DOMAINS)}
    reads.update((one.version, one.domains) for one in settings.evolutions)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for version, own in reads.items():
        target = base if version == "v1" else load_evolved(work, version)
        result[version] = {}
        for domain in (one.name for one in DOMAINS if one.name in own):
            stream = np.load(_stream_path(work, domain, "val"))
            row = {
                "loss": round(validation_loss(target, stream), 4),
                "base_loss": round(validation_loss(base, stream), 4),
                **acceptance(target, draft, stream, seed=settings.seed),
            }
            result[version][domain] = row
            say(f"{version} {domain}: {row}")
    write_text(path, json.dumps(result, indent=1) + "\n")
    return result


def build_family(
    corpus: Path, work: Path, settings: FamilySettings, say: Say
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
