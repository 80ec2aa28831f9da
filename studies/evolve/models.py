"""The models of a study of evolving targets: versions of the target, and drafts.

Every model is made once, in the study's work folder, and found there afterwards; an
interrupted training goes on from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.onnx import export_onnx
from draftwire.export.precision.runners import DraftRunner
from draftwire.export.sources.architecture import Architecture
from draftwire.export.training.base import Base, cut, read_base, save_model
from draftwire.export.training.distil import DraftTrainer, distil_loss, make_draft
from draftwire.export.training.evolve import add_lora
from draftwire.export.training.loop import Plan, Stream, train
from draftwire.export.training.measure import logits_of, text_loss
from draftwire.packages import load_draft, load_target, tokenizer_fingerprint
from draftwire.packages.exits import torch_stack
from studies.command import Say
from studies.evolve.sources import TeacherRows, make_pairs, make_rows, preference_loss
from studies.evolve.text import Texts
from studies.family.recipe import fresh_weights_


@dataclass(frozen=True)
class Version:
    """One evolved target."""

    name: str  # for tables
    domains: tuple[str, ...]  # what it reads (parts that the base has not seen)
    steps: int = 0  # of its training; 0 where there is none
    kind: str = "text"  # a key of ``stats.KINDS``
    of: tuple[str, ...] = ()  # versions that it is merged of; its teacher; its package


@dataclass(frozen=True)
class Budget:
    """What everything may cost."""

    anchor_layers: int = 2  # blocks that the frozen draft shares with the base
    trained_layers: int = 2  # its trained blocks; an independent draft has as many in all
    # tokens that the frozen draft reads; other drafts read what the same arithmetic buys
    draft_tokens: int = 204_800
    long: float = 8.0  # how many times that arithmetic the long independent draft gets
    # share of that arithmetic for a draft re-trained for one version, on top of the frozen
    # draft's
    retrain: float = 0.5
    # tokens that the base reads once as a teacher for all drafts
    pool_tokens: int = 600_000
    rank: int = 16  # of the LoRA adapters
    batch: int = 2048  # tokens of a step
    length: int = 256  # of a row of text
    seeds: tuple[int, ...] = (1, 2, 3)  # of the drafts
    lora_lr: float = 3e-3  # peak learning rate of the adapters

    def steps(self, tokens: float) -> int:
        """Return the optimiser steps that read about ``tokens``."""
        return max(2, round(tokens / self.batch))


def flops_per_token(
    a: Architecture, *, trained_layers: int, head: bool, length: int
) -> float:
    """Return the arithmetic of one training token of a draft, forward and backward: so many
    layers are trained, and with ``head`` that too; attention grows with the row's length.

    The teacher's is left out: it reads the text once for all drafts, and could keep what
    the frozen anchor of a draft says of it.
    """
    shapes = a.parameters()[0]
    prefix = a.layer(0)
    layer = sum(s[0] * s[1] for n, s in shapes.items() if n.startswith(prefix) and s[1:])
    layer += a.heads * a.head_dim * length  # half a square of scores, and of values
    vocab = a.vocab_size * a.hidden
    # Two operations a weight forward, four backward, two where nothing is trained; and
    # the teacher's logits, made of its states by one more product.
    return 2.0 * (3 * layer * trained_layers + (3 if head else 2) * vocab + vocab)


def merged(base: Any, models: Sequence[Any], *, scale: float) -> Any:
    """Return ``base`` with ``scale`` times every model's change of its weights.

    Source:
        Ilharco et al. 2023, task arithmetic, https://arxiv.org/abs/2212.04089.
    """
    made = cut(base, range(len(torch_stack(base)[0])))
    others = [model.state_dict() for model in models]
    tensors = {
        name: weight + scale * sum(other[name] - weight for other in others)
        for name, weight in base.state_dict().items()
    }
    made.load_state_dict(tensors)
    return made


class Packaged:
    """A draft package as a model: what the engine of a device says, in int8 where it has
    that; it must have the tokenizer of ``base``.
    """

    def __init__(self, path: Path, base: Base) -> None:
        package = load_draft(path)
        if tokenizer_fingerprint(package.tokenizer_path) != tokenizer_fingerprint(
            base.tokenizer
        ):
            raise ConfigError(f"{path.name} has another tokenizer than {base.name}")
        precision = "int8" if "int8" in package.precisions else None
        self._file = package.model_path(precision)
        self._shape, self.config = base.architecture, base.model.config

    def __call__(self, ids: Tensor, use_cache: bool = False) -> Any:
        """Return an object with ``logits`` ``(rows, length, vocab)`` of ``ids``."""
        runner = DraftRunner(self._file, replace(self._shape, context=ids.shape[1]))
        rows = []
        for row in ids.numpy():
            runner.rewind(0)
            rows.append(torch.from_numpy(runner.forward(row, rows=len(row))))
        return SimpleNamespace(logits=torch.stack(rows))


@dataclass
class Workshop:
    """Makes and finds the models of a study."""

    base: Base  # the base target
    texts: Texts  # what is read
    budget: Budget  # what it may cost
    work: Path  # the study's folder
    say: Say  # gets lines of progress
    versions: dict[str, Version]  # by name
    # what each model took: tokens, arithmetic, seconds
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    _targets: dict[str, Any] = field(default_factory=dict)

    def target(self, name: str) -> Any:
        """Return a target as the verifier serves it: "base", a version, or at a path."""
        if name == "base":
            return self.base.model
        if name not in self._targets:
            version = self.versions.get(name)
            found = self._evolved(version) if version else self._elsewhere(Path(name))
            self._targets[name] = found
        return self._targets[name]

    def kind(self, version: Version) -> str:
        """Return a key of ``stats.KINDS``; an adapter in a package is LoRA on text."""
        lora = version.kind == "package" and load_target(Path(version.of[0])).base
        return "text" if lora else version.kind

    def _elsewhere(self, path: Path) -> Any:
        found = read_base(path)
        mine = tokenizer_fingerprint(self.base.tokenizer)
        if tokenizer_fingerprint(found.tokenizer) != mine:
            raise ConfigError(f"{path} has another tokenizer than {self.base.name}")
        return found.model

    def _evolved(self, version: Version) -> Any:
        b, base, kind = self.budget, self.base.model, version.kind
        if kind == "package":
            return self.target(version.of[0])
        if kind in ("mean", "sum"):
            parts = [self.target(name) for name in version.of]
            return merged(base, parts, scale=1 / len(parts) if kind == "mean" else 1.0)
        model = cut(base, range(self.base.architecture.layers))
        if kind == "new":
            fresh_weights_(model.requires_grad_(True), seed=1000)
        else:
            anchor = 0 if kind == "free" else b.anchor_layers
            model = add_lora(model, rank=b.rank, anchor_layers=anchor, seed=1000)
        # What a preference asks for is little, beside a whole kind of text.
        lr = b.lora_lr / 3 if kind == "varied" else b.lora_lr
        plan = self._plan(version.steps, 3, lr=lr, matrix_lr=6e-3)
        paths = tuple(self.texts.path(d, "unseen") for d in version.domains)

        def begin() -> tuple[Any, Any]:
            streams = [np.load(path, mmap_mode="r") for path in paths]
            if kind == "varied":
                wanted = version.steps * max(1, b.batch // 256)
                pairs = make_pairs(base, np.concatenate(streams), wanted=wanted, seed=3)
                return pairs, preference_loss
            data = Stream(paths, tuple(float(len(stream)) for stream in streams))
            if kind != "taught":
                return data, text_loss
            teacher = self.target(version.of[0])

            def loss(model: nn.Module, ids: Tensor) -> Tensor:
                with torch.no_grad():
                    said = logits_of(teacher, ids[:, :-1])
                return distil_loss(logits_of(model, ids[:, :-1]), said, ids[:, 1:])

            return data, loss

        # Halves, as in the package that a verifier would load.
        self._learn(f"target.{version.name}", model, begin, plan, dtype=torch.half)
        if kind != "new":
            model = model.merge_and_unload()
        return model.requires_grad_(False)

    def shared(self, seed: int, version: Version | None = None) -> Any:
        """Return the draft of the base that shares its backbone; for a ``version`` with its
        trained part trained on.
        """
        b = self.budget
        if version is None:
            name, target, share = f"frozen.{seed}", self.base.model, 1.0
        else:
            name, target = f"retrained.{version.name}.{seed}", self.target(version.name)
            share = b.retrain
        draft = make_draft(
            target, anchor_layers=b.anchor_layers, trained_layers=b.trained_layers
        )
        if version is not None:
            known = self.shared(seed).state_dict()
            trained = {n for n, p in draft.named_parameters() if p.requires_grad}
            draft.load_state_dict({n: known[n] for n in trained}, strict=False)
        plan = self._plan(b.steps(b.draft_tokens * share), seed, lr=1e-3, matrix_lr=3e-3)
        trainer, head = DraftTrainer(target, draft), target.get_output_embeddings()

        def loss(_: nn.Module, ids: Tensor, last: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = head(last)
            return trainer.loss_from(ids, last, teacher)

        def begin() -> tuple[Any, Any]:
            return self._rows(version, target), loss

        self._learn(name, draft, begin, plan, flops=self._unit() / b.draft_tokens)
        if version is not None and seed == b.seeds[-1]:  # the last that reads them
            shutil.rmtree(self.work / "rows" / version.name, ignore_errors=True)
        return draft.requires_grad_(False)

    def independent(self, seed: int, *, times: float) -> Any:
        """Return a draft that shares nothing but the tokenizer, of so many times the frozen
        draft's arithmetic.
        """
        b, a = self.budget, self.base.architecture
        layers = b.anchor_layers + b.trained_layers
        shape = replace(a, layers=layers)
        model = cut(self.base.model, range(layers)).requires_grad_(True)
        fresh_weights_(model, seed=seed)
        cost = flops_per_token(shape, trained_layers=layers, head=True, length=b.length)
        plan = self._plan(
            b.steps(times * self._unit() / cost), seed, lr=3e-3, matrix_lr=6e-3
        )
        head = self.base.model.get_output_embeddings()

        def loss(model: nn.Module, ids: Tensor, last: Tensor) -> Tensor:
            with torch.no_grad():
                teacher = head(last)
            return distil_loss(logits_of(model, ids[:, :-1]), teacher, ids[:, 1:])

        def begin() -> tuple[Any, Any]:
            return self._rows(None, self.base.model), loss

        self._learn(f"independent.{times:g}x.{seed}", model, begin, plan, flops=cost)
        return model.requires_grad_(False)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of what a device would download, int8, as exported."""
        b = self.budget
        draft = self.shared(b.seeds[0])
        found = {}
        models = {"draft": draft, "base_as_draft": self.base.model}
        for name, model in models.items():
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                save_model(model, self.base, Path(folder) / "model.hf")
                out = export_onnx(
                    Path(folder) / "model.hf",
                    Path(folder) / "x.draft",
                    min_agreement=0.0,
                    against="numpy",
                )
                found[name] = sum(f.stat().st_size for f in out.iterdir())
        trained = torch_stack(draft)[0][b.anchor_layers :]
        found["trained_part"] = sum(p.numel() for x in trained for p in x.parameters())
        return found

    def _unit(self) -> float:
        """Return the arithmetic of one frozen draft."""
        b, a = self.budget, self.base.architecture
        cost = flops_per_token(
            a, trained_layers=b.trained_layers, head=False, length=b.length
        )
        return cost * b.draft_tokens

    def _plan(self, steps: int, seed: int, *, lr: float, matrix_lr: float) -> Plan:
        b = self.budget
        return Plan(
            steps=steps,
            batch=b.batch,
            micro=b.batch,
            lengths=((1.0, b.length),),
            lr=lr,
            matrix_lr=matrix_lr,
            warmup=max(1, min(25, steps // 8)),
            seed=seed,
            workers=1,
        )

    def _rows(self, version: Version | None, teacher: Any) -> TeacherRows:
        b, texts = self.budget, self.texts
        if version is None:
            chosen = [(d, "seen", s) for d, s in texts.shares.items()]
            tokens = b.pool_tokens
        else:
            chosen = [(d, "unseen", 1.0) for d in version.domains]
            tokens = round(b.draft_tokens * b.retrain)
        name = "base" if version is None else version.name
        folder = self.work / "rows" / name
        if not (folder / "last.npy").exists():
            self.say(f"{name}: a teacher reads {tokens:,} tokens")
        began = time.process_time()
        rows: TeacherRows = make_rows(
            teacher,
            [texts.stream(d, part) for d, part, _ in chosen],
            [share for _, _, share in chosen],
            folder,
            rows=max(2, tokens // b.length),
            length=b.length,
            seed=5,
        )
        self.made.setdefault(
            f"rows.{name}",
            {"tokens": tokens, "cpu_seconds": round(time.process_time() - began, 1)},
        )
        return rows

    def _learn(
        self,
        name: str,
        model: Any,
        begin: Callable[[], tuple[Any, Any]],
        plan: Plan,
        *,
        flops: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Give ``model`` what it learns, now or from an earlier run.

        Args:
            name: Of the training.
            model: Its parameters that require a gradient are kept as ``dtype``, tied ones
                once.
            begin: Gives the data and the loss; not called where all is there.
            plan: Of the training.
            flops: Arithmetic of a token, for the note; 0 leaves it out.
            dtype: Of what is kept.
        """
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        path = self.work / "models" / f"{name}.safetensors"
        note = path.with_suffix(".json")
        if not (path.exists() and note.exists()):
            tokens = plan.steps * plan.batch
            self.say(f"{name}: {tokens:,} tokens")
            began = time.process_time()
            data, loss = begin()
            folder = self.work / "checkpoints" / name
            log = train(model, data, plan, loss, folder, say=self.say)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            kept = {n: p.detach().to(dtype).contiguous() for n, p in learned.items()}
            save_file(kept, part)
            part.replace(path)
            tail = [row["loss"] for row in log[-10:]]
            details = {
                "tokens": tokens,
                **({"flops": tokens * flops} if flops else {}),
                "steps": len(log),
                "loss": round(sum(tail) / len(tail), 4),
                "cpu_seconds": round(time.process_time() - began, 1),
            }
            note.write_text(json.dumps(details) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
        self.made[name] = json.loads(note.read_text())
        tensors = {n: t.float() for n, t in load_file(path).items()}
        model.load_state_dict(tensors, strict=False)
