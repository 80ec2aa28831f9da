"""What trainings do before and after the loop: device, anchor, work folder, text, plan;
what it will take, measured; and the report.
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftwire.errors import ConfigError, DraftwireError
from draftwire.export.settings import TrainingSettings
from draftwire.export.sources.checkpoint import made_of
from draftwire.export.training.base import Base
from draftwire.export.training.distil import DraftTrainer
from draftwire.export.training.loop import Plan
from draftwire.export.training.parallel import ParallelTrainer
from draftwire.export.training.states import MOST_WORDS, UpperTrainer, reading
from draftwire.export.training.text import TrainingText, check_work, prepare_text
from draftwire.io import write_text, write_whole

SCHEMA = "draftwire.training/1"  # of the report
_MICRO = 2048  # tokens
# They change how long it takes and what is looked at, not what comes out.
_NOT_DECIDING = frozenset(
    "workers device prompts looks arithmetic save_every budget head".split()
)
_MEASURED_S = 10.0
_QUICK_S = 1.0  # enough where many passes fit
# Of a budget for training; looks, checkpoints, held-out text and the export take the rest.
_SHARE = 0.85
_LEAST = 50_000  # tokens below which a training is not worth a beginning

Say = Callable[[str], None]


def work_folder(out: Path, work: str | Path | None) -> Path:
    """Return the folder of a training, by default beside its package."""
    return Path(work) if work is not None else out.with_name(f"{out.stem}.work")


def choose_device(wanted: str | None) -> str:
    """Return the torch device to train on; a ConfigError where it is not there."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("there is no device 'cuda' here", hint="--device cpu")
    return wanted or ("cuda" if there else "cpu")


def anchor_of(base: Base, wanted: int | None, *, otherwise: int) -> int:
    """Return the anchor's layers; those of a target package are settled (ConfigError where
    ``wanted`` is another number).
    """
    if base.package is None:
        return otherwise if wanted is None else wanted
    found = int(made_of(base.package).get("anchor_layers", 0))
    if wanted not in (None, found):
        raise ConfigError(
            f"{base.name} was exported with an anchor of {found} layers, not {wanted}",
            hint="leave --anchor-layers out, or export the target again with "
            f"--anchor-layers {wanted}",
        )
    return found


def begin(
    base: Base,
    anchor: int,
    settings: TrainingSettings,
    work: Path,
    data: Sequence[str | Path],
    say: Say,
    start: str | Path | None = None,
) -> tuple[dict[str, Any], TrainingText]:
    """Open a work folder; return what was asked for, for the report, and the text. A
    ConfigError where the folder is another training's, or a text is too small.
    """
    asked = {
        **{k: v for k, v in asdict(settings).items() if k not in _NOT_DECIDING},
        "anchor_layers": anchor,
        "base": base.name,
        "shape": [base.architecture.layers, base.architecture.hidden],
        **({} if start is None else {"start": Path(start).name}),
    }
    found = work.exists()
    try:
        check_work(work, asked, data)
        return asked, prepare_text(base, data, work, seed=settings.seed, say=say)
    except DraftwireError:  # what shall not begin leaves nothing to go on with
        if not found:
            shutil.rmtree(work, ignore_errors=True)
        raise


def plan_of(
    settings: TrainingSettings,
    context: int,
    *,
    longer: int,
    warmup: tuple[int, int],
    micro: int = _MICRO,
    **more: Any,
) -> Plan:
    """Return the plan of a training.

    Rows of the last tenth are ``longer`` times as long; ``warmup``: steps at most, and one
    of how many.
    """
    length = min(settings.length, context)
    long = min(longer * length, context, max(length, settings.batch))
    micro = max(min(micro, settings.batch) // long, 1) * long
    batch = max(1, round(settings.batch / micro)) * micro
    steps = max(1, round(settings.tokens / batch))
    return Plan(
        steps=steps,
        batch=batch,
        micro=micro,
        lengths=((0.9, length), (1.0, long)) if longer > 1 else ((1.0, length),),
        warmup=max(1, min(warmup[0], steps // warmup[1])),
        seed=settings.seed,
        workers=settings.workers,
        save_every=settings.save_every,
        precision=settings.arithmetic,
        **more,
    )


@dataclass(frozen=True)
class Pace:
    """How fast a training goes, as it was measured here."""

    tokens_s: float  # tokens a second; processes share memory bandwidth: a bound from above
    trained: int  # parameters that are trained
    kept: float = 0.0  # bytes of states that are kept for each token read

    def say(self, tokens: int) -> str:
        """Return the plan in one sentence."""
        hours = tokens / self.tokens_s / 3600 / _SHARE
        took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
        # Gradients came with the measurement; the optimiser's two moments come later.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        memory = (peak + 8 * self.trained) / 1e9
        disk = f", {tokens * self.kept / 1e9:.1f} GB of states on disk"
        return (
            f"plan: {tokens:,} tokens at {self.tokens_s:,.0f} a second take about {took}; "
            f"{self.trained / 1e6:.1f} M parameters are trained; {memory:.1f} GB of memory"
            + (disk if self.kept else "")
        )

    def tokens_in(self, seconds: float) -> int:
        """Return how many tokens fit into a budget; a ConfigError where too few to begin
        with.
        """
        tokens = int(self.tokens_s * seconds * _SHARE)
        if tokens < _LEAST:
            least = _LEAST / self.tokens_s / _SHARE / 60
            raise ConfigError(
                f"a budget of {seconds / 60:.0f} minutes reads {tokens:,} tokens here, "
                f"too few to learn from",
                hint=f"give {least:.0f} minutes or more, a smaller base, or a GPU",
            )
        return tokens


def measure(
    trainer: DraftTrainer | ParallelTrainer,
    upper: UpperTrainer | None,
    plan: Plan,
    *,
    passes: int,
    half: bool,
) -> Pace:
    """Time a training over random tokens for some seconds; learn nothing.

    With ``upper``: the base's pass over the text, and that of the trained part over its
    states, of which each text gets ``passes``.
    """
    length = plan.length_at(0)
    rows = max(1, plan.micro // length)
    device = trainer.draft.device
    config = trainer.draft.config.get_text_config()
    size, hidden = config.vocab_size, config.hidden_size
    generator = torch.Generator().manual_seed(0)

    def text() -> Tensor:
        return torch.randint(size, (rows, length + 1), generator=generator).to(device)

    def timed(work: Callable[[], object]) -> float:
        done, start = 0, time.perf_counter()
        while True:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if not done:  # the first pass fills caches
                start = time.perf_counter()
            done += 1
            passed = time.perf_counter() - start
            if done > 1 and (passed >= _MEASURED_S or (done > 8 and passed >= _QUICK_S)):
                return passed / ((done - 1) * rows * length)

    kept = 0.0
    if upper is None:
        seconds = timed(lambda: trainer.loss(text()).backward())
    else:
        once = timed(lambda: reading(trainer.base, upper.anchor, text()))
        states = torch.randn(rows, length, hidden, device=device)
        words = torch.arange(min(size, MOST_WORDS), device=device)
        again = timed(lambda: upper.loss(text(), states, states, words).backward())
        seconds, kept = once / passes + again, (4 * hidden + 8) / passes
    trainer.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in trainer.parameters() if p.requires_grad)
    return Pace(plan.workers / seconds, trained, kept)


def write_report(
    folder: Path,
    *,
    kind: str,
    settings: Mapping[str, Any],
    log: Sequence[Mapping[str, float]],
    held_out: Mapping[str, Mapping[str, Any]],
    say: Say,
) -> None:
    """Write ``report.json``, and ``report.png`` where matplotlib is there.

    A row of ``log`` with "accepted" was a look at held-out text; ``say`` is told where it
    is, and when there is no picture, why.
    """
    document = {
        "schema": SCHEMA,
        "kind": kind,
        "settings": dict(settings),
        "steps": len(log),
        "seconds": log[-1]["seconds"] if log else 0.0,
        "held_out": held_out,
        "log": list(log),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
    }
    write_text(folder / "report.json", json.dumps(document, indent=1) + "\n")
    if find_spec("matplotlib") is None:
        say("no report.png: pictures need matplotlib, pip install 'draftwire[plots]'")
    else:
        block = settings.get("parallel") or 4
        write_whole(folder / "report.png", lambda path: _draw(path, kind, log, block))
    say(f"report: {folder / 'report.json'}")


def _draw(path: Path, kind: str, log: Sequence[Mapping[str, float]], block: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    looks = [row for row in log if "accepted" in row]
    figure, ((left, *more),) = pyplot.subplots(
        1, 2 if looks else 1, figsize=(8.4 if looks else 4.6, 3.1), squeeze=False
    )
    losses = [row["loss"] for row in log]
    window = max(1, len(log) // 25)
    mean = [sum(p) / len(p) for i in range(len(log)) if (p := losses[: i + 1][-window:])]
    steps = range(1, len(log) + 1)
    left.plot(steps, losses, linewidth=0.6, color="#9ab8d6", label="each step")
    left.plot(steps, mean, linewidth=1.6, color="#1f5a96", label=f"mean of {window} steps")
    what = "distillation loss" if kind == "draft" else "cross-entropy"
    left.set(xlabel="step", ylabel=f"{what} (nats per token)", ylim=(0, None))
    left.legend(frameon=False, fontsize="small")
    for right in more:
        accepted = [row["accepted"] for row in looks]
        right.plot([row["step"] + 1 for row in looks], accepted, "o-", color="#b3541e")
        told = f"accepted of {block}, greedy"
        right.set(xlabel="step", ylabel=told, ylim=(0, block + 0.1))
        right.set_title("held-out text", fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=130)
    pyplot.close(figure)
