"""Data-parallel training on a few CPU cores, steady on a busy machine.

Every step is cut into micro-batches. Workers (one process and one thread each) take the
next micro-batch from a shared counter until none is left, so a slow core does less and
nobody waits at an OpenMP barrier. What a step reads depends on (seed, step) alone: a
resumed run sees the same data, whatever the number of workers. Only the order of the
floating-point sums may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.export.training.muon import Muon

__all__ = ["Plan", "Reader", "Source", "Stream", "half_precision", "learning_rate", "train"]

LossFn = Callable[..., Tensor]  # (model, *tensors of a micro-batch) -> mean loss


class Reader(Protocol):
    """Reads micro-batches; the same (plan, step, index) gives the same one."""

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return the tensors that the loss gets beside the model."""


class Source(Protocol):
    """What a training reads."""

    def open(self) -> Reader:
        """Return its reader."""


@dataclass(frozen=True)
class Stream:
    """Token streams with their shares of each batch.

    Attributes:
        paths: One ``.npy`` file of uint16 ids per source.
        shares: Their weights; normalised here.
    """

    paths: tuple[Path, ...]
    shares: tuple[float, ...]

    def open(self) -> Reader:
        """Return a reader of the memory-mapped streams."""
        return _StreamReader(self)


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: Optimiser steps.
        batch: Tokens per step.
        micro: Tokens per micro-batch, a multiple of the longest length.
        lengths: ``(fraction of steps, sequence length)``, in order.
        lr: Peak learning rate of AdamW (embeddings, norms, biases).
        matrix_lr: Peak learning rate of Muon (hidden matrices).
        warmup: Steps of linear warm-up.
        decay: Last fraction of the steps over which the rate falls to zero.
        weight_decay: On matrices alone.
        seed: Of data order.
        workers: Processes.
        save_every: Seconds between checkpoints.
        precision: "float32", "bfloat16" (weights stay float32), or "auto": bfloat16
            on CUDA and on CPUs with matrix units for it, where it is faster.
        watch_every: Steps between two looks at how good the model is; 0 for none.
    """

    steps: int
    batch: int = 12288
    micro: int = 2048
    lengths: tuple[tuple[float, int], ...] = ((0.75, 256), (1.0, 1024))
    lr: float = 3e-3
    matrix_lr: float = 6e-3
    warmup: int = 25
    decay: float = 0.6
    weight_decay: float = 0.1
    seed: int = 1
    workers: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    save_every: float = 120.0
    precision: str = "auto"
    watch_every: int = 0


def learning_rate(plan: Plan, step: int) -> float:
    """Return the factor on the peak rate at ``step``: warm-up, plateau, linear decay."""
    up = min(1.0, (step + 1) / max(1, plan.warmup))
    down = (plan.steps - step) / max(1.0, plan.decay * plan.steps)
    return min(up, down, 1.0)


def half_precision(plan: Plan, device: str) -> bool:
    """Tell whether the heavy arithmetic runs in bfloat16."""
    if plan.precision != "auto":
        return plan.precision == "bfloat16"
    if device == "cpu":
        try:
            # Without AMX a CPU runs bfloat16 several times slower than float32.
            return "amx_bf16" in Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
    return device == "cuda" and torch.cuda.is_bf16_supported()


def _length_at(plan: Plan, step: int) -> int:
    for until, length in plan.lengths:
        if step < until * plan.steps:
            return length
    return plan.lengths[-1][1]


class _StreamReader:
    def __init__(self, data: Stream) -> None:
        self._streams = [np.load(p, mmap_mode="r") for p in data.paths]
        shares = np.array(data.shares, np.float64)
        self._shares = shares / shares.sum()

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        length = _length_at(plan, step)
        rows = max(1, plan.micro // length)
        rng = np.random.default_rng((plan.seed, step, index))
        out = np.empty((rows, length + 1), np.int64)
        for row, source in enumerate(rng.choice(len(self._streams), rows, p=self._shares)):
            stream = self._streams[source]
            start = int(rng.integers(0, max(1, len(stream) - length - 1)))
            piece = stream[start : start + length + 1]
            out[row, : len(piece)] = piece
            out[row, len(piece) :] = 0
        return (torch.from_numpy(out),)


class _Local:
    """Gradients in this process, on whatever device the model lives."""

    def __init__(self, plan: Plan, data: Source, model: nn.Module, loss_fn: LossFn) -> None:
        self._plan, self._model, self._loss_fn = plan, model, loss_fn
        self._reader = data.open()
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._device = next(model.parameters()).device
        self._half = half_precision(plan, self._device.type)

    def micro(self, step: int, index: int) -> tuple[Tensor, float]:
        """Return the flat gradient and loss of one micro-batch."""
        batch = self._reader.micro(self._plan, step, index)
        batch = tuple(tensor.to(self._device) for tensor in batch)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            loss = self._loss_fn(self._model, *batch)
        found = torch.autograd.grad(loss, self._trained)
        return torch.cat([g.reshape(-1) for g in found]), float(loss.detach())

    def gradients(self, step: int) -> tuple[Tensor, float]:
        """Return the mean gradient and loss of a whole step."""
        micros = self._plan.batch // self._plan.micro
        flat, total = self.micro(step, 0)
        for index in range(1, micros):
            more, loss = self.micro(step, index)
            flat, total = flat.add_(more), total + loss
        return flat.div_(micros), total / micros

    def close(self) -> None:
        """Nothing to release."""


class _Team:
    """Gradients from several single-threaded processes over shared memory."""

    def __init__(self, plan: Plan, data: Source, model: nn.Module, loss_fn: LossFn) -> None:
        model.share_memory()
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._grads = torch.zeros(size).share_memory_()
        self._sums = torch.zeros(2).share_memory_()
        context = mp.get_context("fork")
        self._counter, self._step = context.Value("q", 0), context.Value("q", 0)
        self._start = context.Barrier(plan.workers + 1)
        self._done = context.Barrier(plan.workers + 1)
        self._lock = context.Lock()
        self._plan = plan
        local = _Local(plan, data, model, loss_fn)
        self._team = [
            context.Process(target=self._work, args=(local,), daemon=True)
            for _ in range(plan.workers)
        ]
        for process in self._team:
            process.start()

    def _work(self, local: _Local) -> None:
        torch.set_num_threads(1)
        micros = self._plan.batch // self._plan.micro
        while True:
            self._start.wait()
            step = self._step.value
            if step < 0:
                return
            mine: Tensor | None = None
            total, count = 0.0, 0
            while True:
                with self._counter.get_lock():
                    index = self._counter.value
                    self._counter.value += 1
                if index >= micros:
                    break
                flat, loss = local.micro(step, index)
                mine = flat if mine is None else mine.add_(flat)
                total, count = total + loss, count + 1
            with self._lock:
                if mine is not None:
                    self._grads.add_(mine)
                self._sums.add_(torch.tensor([total, float(count)]))
            self._done.wait()

    def gradients(self, step: int) -> tuple[Tensor, float]:
        """Return the mean gradient and loss of a whole step."""
        self._grads.zero_()
        self._sums.zero_()
        self._counter.value, self._step.value = 0, step
        self._start.wait()
        self._done.wait()
        micros = float(self._sums[1])
        return self._grads.div_(micros), float(self._sums[0]) / micros

    def close(self) -> None:
        """Send the workers home."""
        self._step.value = -1
        with contextlib.suppress(threading.BrokenBarrierError):
            self._start.wait(timeout=5)
        for process in self._team:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


def _plan_text(plan: Plan) -> str:
    """Return what of a plan decides the result."""
    ignored = ("workers", "save_every", "watch_every")
    return repr({k: v for k, v in asdict(plan).items() if k not in ignored})


def _check_plan(
    checkpoint: Path, state: Mapping[str, Any], model: nn.Module, plan: Plan
) -> None:
    trained = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    saved = {n: t.shape for n, t in state["model"].items() if n in trained}
    if trained != saved or state.get("plan", _plan_text(plan)) != _plan_text(plan):
        raise ConfigError(
            f"{checkpoint.parent} holds the checkpoint of another training",
            hint="give the settings it was begun with, or another --work folder",
        )


def _optimisers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            hidden = p.ndim == 2 and "embed" not in name and "lora" not in name
            (matrices if hidden else others).append(p)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(Muon(matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay))
    if others:
        found.append(
            torch.optim.AdamW(others, lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0)
        )
    for optimiser in found:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return found


def train(
    model: nn.Module,
    data: Source,
    plan: Plan,
    loss_fn: LossFn,
    work: Path,
    *,
    say: Callable[[str], None] = print,
    watch: Callable[[], Mapping[str, float]] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place; checkpoint to ``work``, and resume from there.

    Args:
        model: Parameters with ``requires_grad`` are trained.
        data: What to read.
        plan: How.
        loss_fn: ``(model, ids (rows, length + 1)) -> mean loss``, or with the tensors
            that another kind of data gives.
        work: Folder of ``checkpoint.pt`` and ``log.jsonl``.
        say: Gets a line of progress now and then.
        watch: Says how good the model is now, every ``plan.watch_every`` steps and at
            the end; its values join the log.

    Returns:
        The log: one dict a step with ``step``, ``loss``, ``seconds``.

    Raises:
        ConfigError: The checkpoint in ``work`` belongs to another training.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log_path = work / "checkpoint.pt", work / "log.jsonl"
    optimisers = _optimisers(model, plan)
    first, log = 0, []
    if checkpoint.exists():
        # weights_only: a checkpoint is data, nothing in it may run.
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        _check_plan(checkpoint, state, model, plan)
        model.load_state_dict(state["model"], strict=False)
        for optimiser, saved in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        first = state["step"]
        log = [json.loads(x) for x in log_path.read_text().splitlines()][:first]
        say(f"resumed at step {first} of {plan.steps}")
    trained = [p for p in model.parameters() if p.requires_grad]
    on_cpu = next(model.parameters()).device.type == "cpu"
    kind = _Team if on_cpu and plan.workers > 1 else _Local
    team = kind(plan, data, model, loss_fn)

    def save(step: int) -> None:
        part = checkpoint.with_suffix(".part")
        torch.save(
            {
                "model": {n: p for n, p in model.named_parameters() if p.requires_grad},
                "plan": _plan_text(plan),
                "optimisers": [o.state_dict() for o in optimisers],
                "step": step,
            },
            part,
        )
        log_path.write_text("".join(json.dumps(row) + "\n" for row in log))
        part.replace(checkpoint)

    began = saved = told = time.monotonic()
    spent = log[-1]["seconds"] if log else 0.0
    try:
        for step in range(first, plan.steps):
            grads, loss = team.gradients(step)
            norm = float(grads.norm())
            grads.mul_(min(1.0, 1.0 / (norm + 1e-6)))
            at = 0
            for p in trained:
                p.grad = grads[at : at + p.numel()].view_as(p)
                at += p.numel()
            factor = learning_rate(plan, step)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * factor
                optimiser.step()
            now = time.monotonic()
            log.append(
                {
                    "step": step,
                    "loss": round(loss, 5),
                    "grad_norm": round(norm, 4),
                    "seconds": round(spent + now - began, 1),
                }
            )
            last = step + 1 == plan.steps
            if watch and plan.watch_every and (last or (step + 1) % plan.watch_every == 0):
                log[-1].update(watch())
            if now - told > 20 or step + 1 == plan.steps:
                told = now
                rate = (step + 1 - first) * plan.batch / (now - began)
                left = (plan.steps - step - 1) * plan.batch / rate
                recent = np.mean([row["loss"] for row in log[-20:]])
                say(
                    f"step {step + 1}/{plan.steps} loss {recent:.3f} "
                    f"{rate:,.0f} tokens/s, {left / 60:.0f} min left"
                )
            if now - saved > plan.save_every or step + 1 == plan.steps:
                saved = now
                save(step + 1)
    finally:
        team.close()
    return log
