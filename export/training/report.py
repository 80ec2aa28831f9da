"""What a training did: one JSON document, and a picture where matplotlib is there."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from draftwire.io import write_text, write_whole

SCHEMA = "draftwire.training/1"


def write_report(
    folder: Path,
    *,
    kind: str,
    settings: Mapping[str, Any],
    log: Sequence[Mapping[str, float]],
    held_out: Mapping[str, Mapping[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Write ``report.json`` and ``report.png``.

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
        write_whole(
            folder / "report.png",
            lambda path: _draw(path, kind, log, settings.get("parallel") or 4),
        )
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
        right.set(
            xlabel="step", ylabel=f"accepted of {block}, greedy", ylim=(0, block + 0.1)
        )
        right.set_title("held-out text", fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=130)
    pyplot.close(figure)
