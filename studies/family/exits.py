"""The early exits of the reference family: trained on the base, calibrated for each.

An evolved target that has moved little takes the base's exits over, with thresholds of
its own.  Measured on the published family, shares of the positions at which the exits
speak at an agreement of 90 %: the base's own 39 and 67 %; v3 (40 steps of LoRA) with the
base's 39 and 65 %, with its own 40 and 67 %; v2 (80 steps) with the base's 36 and 58 %,
with its own 38 and 63 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from draftwire.errors import ModelError
from draftwire.export.exits.make import Text, export_exits, in_parts, made_up, whole_graph
from draftwire.export.graphs.parts import split_target_graph
from draftwire.export.precision.runners import session
from draftwire.export.settings import ExitSettings
from draftwire.packages import TargetPackage, load_target
from draftwire.tensors import read_tensors, target_weights
from studies.command import Say, markdown
from studies.family.corpus import DOMAINS
from studies.family.recipe import FamilySettings

_OWN_FROM = 60  # steps of LoRA from which a target gets exits of its own
_TURNS = 31  # of a measured forward
_HELD_OUT = 16_384  # tokens of each kind of text, half to calibrate, half to measure


def family_texts(work: Path, version: str, settings: FamilySettings) -> list[Text]:
    """Return the texts of a target's exits, of the recipe's token streams in ``work``.

    Of each domain: what the base has read, and as held-out text what no target has read,
    and where that is little what this target and the exits have not read.
    """
    own = {d for e in settings.evolutions if e.version == version for d in e.domains}
    texts = []
    for domain in DOMAINS:
        seen, unseen, val = (
            np.load(work / f"{domain.name}.{part}.npy").astype(np.int64)
            for part in ("seen", "unseen", "val")
        )
        held = val if domain.name in own else np.concatenate([val, unseen])
        texts.append(Text(domain.name, seen, held[:_HELD_OUT]))
    return texts


def add_exits(work: Path, out: Path, settings: FamilySettings, say: Say) -> None:
    """Give every target of the family in ``out`` exits, and its card a section about them.

    The base's are trained, and those of targets that have moved far from it; the others
    take the base's over, calibrated anew.
    """
    own = {"v1", *(e.version for e in settings.evolutions if e.steps >= _OWN_FROM)}
    for version in ("v1", *(e.version for e in settings.evolutions)):
        say(f"exits of {version}")
        reuse = None if version in own else out / "v1.target"
        if reuse is not None and load_target(reuse).exits is None:
            continue
        try:
            export_exits(
                out / f"{version}.target",
                reuse=reuse,
                texts=family_texts(work, version, settings),
                settings=ExitSettings(seed=settings.seed),
                replace=True,
                say=say,
            )
        except ModelError as error:  # of a family that was hardly trained
            say(f"{version} goes without exits: {error}")
            continue
        package, card = load_target(out / f"{version}.target"), out / f"cards/{version}.md"
        before, data, after = card.read_text(encoding="utf-8").partition("## Data")
        lines = _section(package.raw["exits"], exit_cost(package))
        section = "\n".join(["## Early exits", "", *lines, "", ""])
        card.write_text(before + section + data + after, encoding="utf-8")


def exit_cost(package: TargetPackage) -> tuple[float, float]:
    """Measure what the exits of a target cost: return the median seconds of a forward of 5
    tokens on 128 cached ones with one thread, plain and in parts with exits.
    """
    assert package.exits is not None
    graph = whole_graph(package)
    weights = {**target_weights(package), **read_tensors(package.exits.tensors.path)}
    layers = [exit.layer for exit in package.exits.exits]
    graphs = split_target_graph(graph, layers, rank=package.exits.rank)
    whole = session(graph, weights=weights)
    parts = [session(part, weights=weights) for part in graphs]
    feeds = made_up(package, whole)
    taken: tuple[list[float], list[float]] = ([], [])
    runs: tuple[Callable[[], Any], ...] = (
        lambda: whole.run(None, feeds),
        lambda: in_parts(parts, feeds),
    )
    for _ in range(_TURNS):
        for times, run in zip(taken, runs, strict=True):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return float(np.median(taken[0])), float(np.median(taken[1]))


def _section(section: Mapping[str, Any], cost: tuple[float, float]) -> list[str]:
    """Return the lines about a target's exits."""
    entries = section["exits"]
    size = sum(file["bytes"] for file in section["files"].values())
    plain, parts = (seconds * 1e3 for seconds in cost)
    how = (
        f"taken over from {section['made']['reused']} and calibrated anew"
        if "reused" in section["made"]
        else f"trained on {section['made']['tokens']:,} tokens of what the base has read"
    )
    rows = [
        (
            *(
                f"after layer {e['layer']}",
                f"{e['threshold']:.3f}",
                f"{e['agreement']:.0%}",
            ),
            f"{e['measured']:.1%}",
            f"{e['speaks']:.1%} of {e['positions']:,} positions",
        )
        for e in entries
    ]
    by_text = []
    for name in entries[0]["by_text"]:
        cells = [name]
        for row in (entry["by_text"][name] for entry in entries):
            agrees = "-" if row["measured"] is None else f"{row['measured']:.1%}"
            cells.append(f"{agrees}, {row['speaks']:.1%}")
        by_text.append(cells)
    heads = ["exit", "threshold", "calibrated to", "agrees with the final verdict"]
    of_layers = [f"agrees, speaks: after layer {e['layer']}" for e in entries]
    return [
        f"A norm and a residual of rank {section['rank']} in front of the frozen head, "
        f"{how}; {size / 1e6:.2f} MB with the graph in parts. An exit speaks where its "
        "most likely token is at least so probable; the threshold was calibrated on "
        "held-out text, every kind of text counting the same, and measured on other "
        "held-out text:",
        "",
        *markdown([*heads, "speaks at"], rows),
        "",
        *markdown(["text", *of_layers], by_text),
        "",
        "Agreement is per position: the exit's most likely token is the target's. A hint "
        "about a block rests on several positions.",
        "",
        f"One forward of 5 tokens on 128 cached ones, onnxruntime, one thread: "
        f"{plain:.1f} ms plain, {parts:.1f} ms in parts with exits, on the machine that "
        "wrote this card.",
    ]
