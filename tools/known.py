"""``python -m tools.known``: what can be known of a draft token before it is judged.

The reference family writes; at each place the draft is asked with the right text before it.
Logistic lines over what is known there are fitted as verdicts come, in one pass, each token
scored before it is learned from, and only those that a verifier would have judged.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from draftwire.bench.acceptance import PROMPTS
from draftwire.bench.sim.command import Question, plan_of
from draftwire.bench.sim.facts import find
from draftwire.bench.sim.schemes import SCHEMES
from draftwire.bench.sim.show import table
from draftwire.bench.sim.simulate import simulate
from draftwire.sampling import SamplingParams, make_proposer
from studies.command import Say, start

FLAGS = """
--targets V,V:words =v1,v2,v3
--temperature T:number =0  0 is greedy
--tokens N:int =400        of a text
"""
BLOCK = 8  # drafts that a verifier judges at once
KEPT = 0.99
LINES = {
    "its probability": ("sure",),
    "and the margin to the second": ("sure", "margin"),
    "and the entropy": ("sure", "entropy"),
    "and a repetition": ("sure", "echo"),
    "and acceptance of the last 8": ("sure", "last8"),
    "and acceptance of the last 32": ("sure", "last32"),
    "and its depth in the block": ("sure", "depth"),
    "and its place in the text": ("sure", "place"),
    "all of these": (
        "sure", "margin", "entropy", "echo", "last8", "last32", "depth", "place",
    ),
}  # fmt: skip


class Echo:
    """How long the end of a text repeats what it holds, and how it went on there."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # of what follows three tokens
        self._known = 3

    def length(self, text: list[int], token: int) -> int:
        """Return the tokens that are repeated, from 3 to 8, below 0 where ``token`` is
        not what followed; 0 where nothing is."""
        for at in range(self._known, len(text)):
            self._places[tuple(text[at - 3 : at])] = at
        self._known = max(len(text), 3)
        at, matched = self._places.get(tuple(text[-3:]), 0), 3
        if not at:
            return 0
        while matched < min(8, at) and text[at - 1 - matched] == text[-1 - matched]:
            matched += 1
        return matched if text[at] == token else -matched


def judged(version: str, temperature: float, tokens: int) -> Iterator[dict[str, float]]:
    """Yield what is known of each judged draft of a target's texts, and its fate."""
    scheme = "coupled" if temperature else "greedy"
    params = SamplingParams(scheme, temperature, seed=1)
    asked = Question(real=version, tokens=tokens, streams=len(PROMPTS))
    plan = plan_of(asked, find(asked.profile))
    plan = replace(plan, scheme=SCHEMES["cloud"], params=params)
    assert plan.job is not None
    last8 = last32 = 0.8
    for number, stream in enumerate(simulate(plan).streams):
        job, depth, echo = plan.job(number), 0, Echo()
        draft, proposer = job.draft(), make_proposer(params, plan.ids, insight=True)
        row, text = draft.forward(job.prompt), list(job.prompt)
        for token in stream.ids:
            logits = np.asarray(row[: plan.ids], np.float64)
            said = proposer.propose(logits.astype(np.float32), len(text))
            law = np.exp((logits - logits.max()) / (temperature or 1.0))
            law /= law.sum()
            best, second = np.sort(law)[:-3:-1]
            sure = min(max(said.confidence or 0.0, 1e-3), 1 - 1e-3)
            length = echo.length(text, said.token)
            if depth < BLOCK:  # else a bonus token stands here
                right = said.token == token
                yield {
                    "right": float(right),
                    "sure": math.log(sure / (1 - sure)),
                    "margin": 0.3 * math.log(best / max(second, 1e-9)),
                    "entropy": float(-(law * np.log(law + 1e-12)).sum()),
                    "echo": length / 4,
                    "last8": last8 - 0.8,
                    "last32": last32 - 0.8,
                    "depth": depth / 5,
                    "place": len(text) / 200,
                }
                last8 += (right - last8) / 8
                last32 += (right - last32) / 32
                depth = depth + 1 if right else 0
            else:
                depth = 0
            text.append(token)
            row = draft.forward((token,))


def fitted(drafts: list[dict[str, float]], names: tuple[str, ...]) -> np.ndarray:
    """Return the chance of each draft, as a line over ``names`` had it by then."""
    start = np.array([1.0, 0.15] + [0.3] * (len(names) - 1))
    weights, spread = np.array([0.3, 0.6] + [0.0] * (len(names) - 1)), np.diag(start)
    found = []
    for draft in drafts:
        x = np.array([1.0] + [draft[name] for name in names])
        p = 1 / (1 + math.exp(-min(max(float(weights @ x), -30.0), 30.0)))
        found.append(p)
        gain, weight = spread @ x, max(p * (1 - p), 0.01)
        scale = 1 / (1 + weight * (gain @ x))
        weights = weights + gain * scale * (draft["right"] - p)
        spread = (spread - weight * scale * np.outer(gain, gain)) / KEPT
        down = np.sqrt(np.minimum(1.0, start / np.diag(spread)))
        spread *= np.outer(down, down)
    return np.array(found)


def scores(chance: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return log loss, area under the curve, Brier score and calibration error."""
    p = np.clip(chance, 1e-6, 1 - 1e-6)
    above = np.searchsorted(np.sort(p[right == 0]), p[right == 1], "left")
    ties = np.searchsorted(np.sort(p[right == 0]), p[right == 1], "right")
    tenth = np.minimum((10 * p).astype(int), 9)
    off = sum(abs((p - right)[tenth == i].sum()) for i in range(10)) / len(p)
    return {
        "log_loss": float(-np.where(right == 1, np.log(p), np.log(1 - p)).mean()),
        "auc": float((above + ties).mean() / 2 / max((right == 0).sum(), 1)),
        "brier": float(((p - right) ** 2).mean()),
        "calibration": float(off),
    }


def measure(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Return the scores of each line, the mean over the targets."""
    texts = {}
    for version in args.targets:
        texts[version] = list(judged(version, args.temperature, args.tokens))
        say(f"{version}: {len(texts[version])} drafts")
    rows = []
    for what, names in LINES.items():
        each = [
            scores(fitted(drafts, names), np.array([d["right"] for d in drafts]))
            for drafts in texts.values()
        ]
        means = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
        rows.append({"known": what, **means})
    return {"schema": "draftwire.known/1", "temperature": args.temperature, "rows": rows}


def render(document: dict[str, Any]) -> str:
    """Return the document as a table."""
    heads = {"known": "known", "log loss": "log_loss", "AUC": "auc", "Brier": "brier"}
    return table({**heads, "off": "calibration"}, document["rows"])


QUESTION = "What can be known of a draft token before it is judged."
main = partial(start, "tools.known", QUESTION, FLAGS, measure, render)

if __name__ == "__main__":
    sys.exit(main())
