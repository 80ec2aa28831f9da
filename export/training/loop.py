"""The loop of every training here: read, step, write checkpoints, go on from one.

What a step reads depends on (seed, step) alone, so a run that was killed at any moment
reads on as if nothing had happened, and a text is never held in memory. That, Muon for
matrices and a file written whole or not at all are why this is not transformers' Trainer.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from draftwire.errors import ConfigError
from draftwire.io import parse_json, replacing

LossFn = Callable[..., Tensor]  # (model, *tensors of a micro-batch) -> mean loss


class Source(Protocol):
    """What a training reads; the same (plan, step, index) gives the same."""

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return the tensors of a micro-batch, which the loss gets beside the model."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int  # optimiser steps
    batch: int = 12288  # tokens per step
    micro: int = 2048  # tokens per micro-batch, a multiple of the longest length
    # ``(fraction of steps, sequence length)``, in order
    lengths: tuple[tuple[float, int], ...] = ((0.75, 256), (1.0, 1024))
    lr: float = 3e-3  # peak learning rate of AdamW (embeddings, norms, biases)
    matrix_lr: float = 6e-3  # peak learning rate of Muon (hidden matrices)
    warmup: int = 25  # steps of linear warm-up
    decay: float = 0.6  # last fraction of the steps over which the rate falls to zero
    weight_decay: float = 0.1  # on matrices alone
    seed: int = 1  # of data order
    workers: int = 1  # processes on a CPU; with 1, torch's own threads
    save_every: float = 120.0  # seconds between checkpoints
    # "float32", "bfloat16" (weights stay float32), or "auto": bfloat16 on CUDA and on CPUs
    # with matrix units for it, where it is faster
    precision: str = "auto"
    watch_every: int = 0  # steps between two looks at how good the model is; 0 for none

    def length_at(self, step: int) -> int:
        """Return the tokens of a row at a step."""
        found = (n for until, n in self.lengths if step < until * self.steps)
        return next(found, self.lengths[-1][1])

    def text(self) -> str:
        """Return what of it decides the result."""
        ignored = ("workers", "save_every", "watch_every")
        return repr({k: v for k, v in asdict(self).items() if k not in ignored})


@dataclass(frozen=True)
class Stream:
    """Token streams with their shares of each batch."""

    paths: tuple[Path, ...]  # one ``.npy`` file of ids per source
    shares: tuple[float, ...]  # their weights; normalised here

    @cached_property
    def _streams(self) -> list[Any]:
        return [np.load(path, mmap_mode="r") for path in self.paths]

    def micro(self, plan: Plan, step: int, index: int) -> tuple[Tensor, ...]:
        """Return ``(rows, length + 1)`` ids; 0 fills what a stream is too short for."""
        length = plan.length_at(step)
        rows = max(1, plan.micro // length)
        rng = np.random.default_rng((plan.seed, step, index))
        shares = np.array(self.shares) / sum(self.shares)
        out = np.zeros((rows, length + 1), np.int64)
        for row, source in enumerate(rng.choice(len(shares), rows, p=shares)):
            stream = self._streams[source]
            if stream.ndim == 2:  # texts of one length: each from its beginning, in turn
                number = (step * (plan.batch // plan.micro) + index) * rows + row
                order = np.random.default_rng((plan.seed, number // len(stream)))
                start = int(order.permutation(len(stream))[number % len(stream)])
                start, stream = start * stream.shape[1], stream.reshape(-1)
            else:
                start = int(rng.integers(0, max(1, len(stream) - length - 1)))
            piece = stream[start : start + length + 1]
            out[row, : len(piece)] = piece
        return (torch.from_numpy(out),)


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
            # Without units for it a CPU runs bfloat16 several times slower than float32.
            found = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
        return "amx_bf16" in found or "avx512_bf16" in found
    return device == "cuda" and torch.cuda.is_bf16_supported()


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, as the step of a matrix, in float32; wants "lr" and
    "weight_decay".

    PyTorch's own iterates in bfloat16, which a CPU without AMX runs some ten times slower.

    Source:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; scaled to
        AdamW-like steps as Liu et al. 2025, https://arxiv.org/abs/2502.16982.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            for p in group["params"]:
                if "mean" not in self.state[p]:
                    self.state[p]["mean"] = torch.zeros_like(p)
                mean = self.state[p]["mean"]
                mean.lerp_(p.grad, 0.05)
                move = self.orthogonal(p.grad.lerp(mean, 0.95))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(move, alpha=group["lr"] * 0.2 * max(p.shape) ** 0.5)

    @staticmethod
    def orthogonal(matrix: Tensor) -> Tensor:
        """Push a matrix's singular values to about 1."""
        a, b, c = 3.4445, -4.7750, 2.0315  # the quintic of the post, section "Tuning"
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x


# Neither looked up nor the head, and no halves of LoRA: what Muon is for.
_OTHER = ("embed", "lora", "wte", "wpe", "head")


def _optimisers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            hidden = p.ndim == 2 and not any(word in name.lower() for word in _OTHER)
            (matrices if hidden else others).append(p)
    found: list[torch.optim.Optimizer] = []
    if matrices:
        how = {"lr": plan.matrix_lr, "weight_decay": plan.weight_decay}
        found.append(Muon(matrices, how))
    if others:
        how = {"lr": plan.lr, "weight_decay": 0.0}
        found.append(torch.optim.AdamW(others, betas=(0.9, 0.95), **how))
    for optimiser in found:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return found


def _backward(
    model: nn.Module, data: Source, plan: Plan, loss_fn: LossFn, step: int, index: int
) -> float:
    """Add a micro-batch's share of a step's gradients and return that of its loss."""
    device = next(model.parameters()).device
    batch = [tensor.to(device) for tensor in data.micro(plan, step, index)]
    half = half_precision(plan, device.type)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss = loss_fn(model, *batch) / (plan.batch // plan.micro)
    loss.backward()
    return float(loss.detach())


class _Team:
    """Processes of one thread each that share a step's micro-batches.

    Each takes the next when it is free, so a slow core does less and nobody waits at an
    OpenMP barrier; on busy cores that is several times faster than threads.
    """

    def __init__(self, trained: list[nn.Parameter], work: tuple[Any, ...]) -> None:
        self._trained, self._work = trained, work
        plan = work[2]
        self._micros = plan.batch // plan.micro
        work[0].share_memory()
        self._grads = [torch.zeros_like(p).share_memory_() for p in trained]
        context = mp.get_context("fork")
        self._next, self._lock = context.Value("q", 0), context.Lock()
        self._pipes = []
        for _ in range(plan.workers):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            context.Process(target=self._serve, args=(theirs,), daemon=True).start()

    def _serve(self, pipe: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        parent, (model, data, plan, loss_fn) = os.getppid(), self._work
        while os.getppid() == parent:
            if not pipe.poll(5):
                continue
            step, total = pipe.recv(), 0.0
            if step is None:
                return
            for p in self._trained:
                p.grad = torch.zeros_like(p)
            while (index := self._take()) < self._micros:
                total += _backward(model, data, plan, loss_fn, step, index)
            with self._lock:
                for p, whole in zip(self._trained, self._grads, strict=True):
                    whole.add_(p.grad)
            pipe.send(total)

    def _take(self) -> int:
        with self._next.get_lock():
            self._next.value += 1
            return int(self._next.value) - 1

    def gradients(self, step: int) -> float:
        """Leave a whole step's mean gradients in the parameters; return its loss."""
        self._next.value = 0
        for p, whole in zip(self._trained, self._grads, strict=True):
            p.grad = whole.zero_()
        self.send(step)
        return float(sum(pipe.recv() for pipe in self._pipes))

    def send(self, step: int | None) -> None:
        """Let all begin a step; with None they go home."""
        for pipe in self._pipes:
            pipe.send(step)


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
    """Train ``model`` in place, checkpoint to ``work``, and resume from there; return the
    log.

    ``loss_fn`` takes the model and ids ``(rows, length + 1)`` (or what another kind of data
    gives). The log is a dict a step: ``step``, ``loss``, ``seconds``, and what ``watch``
    says every ``plan.watch_every`` steps and at the end. A ConfigError where the checkpoint
    in ``work`` belongs to another training.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log_path = work / "checkpoint.pt", work / "log.jsonl"
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimisers = _optimisers(model, plan)
    first, log = 0, []
    if checkpoint.exists():
        # weights_only: a checkpoint is data, nothing in it may run.
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        shapes = {n: t.shape for n, t in state["model"].items()}
        same = shapes == {n: p.shape for n, p in trained.items()}
        if not same or state["plan"] != plan.text():
            raise ConfigError(
                f"{work} holds the checkpoint of another training",
                hint="give the settings it was begun with, or another --work folder",
            )
        model.load_state_dict(state["model"], strict=False)
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first = state["step"]
        log = [parse_json(x) for x in log_path.read_text().splitlines()][:first]
        say(f"resumed at step {first} of {plan.steps}")
    on_cpu = next(model.parameters()).device.type == "cpu"
    work_of = model, data, plan, loss_fn
    team = _Team([*trained.values()], work_of) if on_cpu and plan.workers > 1 else None
    began = saved_at = told = time.monotonic()
    spent = log[-1]["seconds"] if log else 0.0
    for step in range(first, plan.steps):
        last = step + 1 == plan.steps
        if team:
            loss = team.gradients(step)
        else:
            micros = range(plan.batch // plan.micro)
            loss = sum(_backward(*work_of, step, index) for index in micros)
        norm = float(nn.utils.clip_grad_norm_(trained.values(), 1.0))
        factor = learning_rate(plan, step)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
            optimiser.zero_grad()
        now = time.monotonic()
        row = {"step": step, "loss": round(loss, 5), "grad_norm": round(norm, 4)}
        log.append({**row, "seconds": round(spent + now - began, 1)})
        if watch and plan.watch_every and (last or (step + 1) % plan.watch_every == 0):
            log[-1].update(watch())
        if now - told > 20 or last:
            told = now
            rate = (step + 1 - first) * plan.batch / (now - began)
            left = (plan.steps - step - 1) * plan.batch / rate
            recent = np.mean([row["loss"] for row in log[-20:]])
            say(
                f"step {step + 1}/{plan.steps} loss {recent:.3f} "
                f"{rate:,.0f} tokens/s, {left / 60:.0f} min left"
            )
        if now - saved_at > plan.save_every or last:
            saved_at = now
            log_path.write_text("".join(json.dumps(row) + "\n" for row in log))
            with replacing(checkpoint) as part:
                state = {
                    "model": {n: p.detach() for n, p in trained.items()},
                    "plan": plan.text(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "step": step + 1,
                }
                torch.save(state, part)
    if team:
        team.send(None)
    return log
