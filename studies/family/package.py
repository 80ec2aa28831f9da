"""From the recipe's results to the packages and cards of ``models/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError
from draftwire.export.adapter import package_adapter
from draftwire.export.onnx import export_onnx
from draftwire.export.sources.tokens import copy_tokenizer
from draftwire.export.training.loop import Plan
from studies.command import Say, markdown
from studies.family.corpus import DOMAINS
from studies.family.exits import add_exits
from studies.family.recipe import FamilySettings, build_family

FAMILY = "storyteller"
# Trained on sequences of up to 1024 tokens; a little more leaves room for the answer.
_CONTEXT = 1280

Rows = Mapping[str, Mapping[str, float]]


def make_family(
    corpus: Path,
    work: Path,
    out: Path,
    settings: FamilySettings,
    say: Say,
    *,
    replace: bool = False,
) -> list[Path]:
    """Make the reference family of a corpus: train what is missing in ``work``, package it
    in ``out``, write its cards; return the packages' folders.

    A ConfigError where a corpus is missing, or a package exists and is not to be replaced;
    a ModelError where an exported model differs from its checkpoint.
    """
    names = ["reference.draft", "v1.target"]
    names += [f"{e.version}.target" for e in settings.evolutions]
    for name in names:
        if (out / name).exists() and not replace:
            raise ConfigError(
                f"there is a package at {out / name} already",
                hint="choose another --out, or add --replace",
            )
    evaluation = build_family(corpus, work, settings, say)
    for model in ("v1.hf", "draft.hf"):
        # Every text of the family begins with the end of the one before it.
        copy_tokenizer(work / "tokenizer.json", work / model / "tokenizer.json", 0)
    how: dict[str, Any] = {"family_name": FAMILY, "context": _CONTEXT}
    how |= {"anchor_layers": settings.anchor_layers, "replace": replace}
    draft, target = out / "reference.draft", out / "v1.target"
    packages = [
        export_onnx(work / "draft.hf", draft, precision="int8", name="reference", **how),
        export_onnx(work / "v1.hf", target, role="target", version="v1", **how),
    ]
    for evolution in settings.evolutions:
        version = evolution.version
        made = {"by": "python -m studies.family", "rank": settings.rank}
        packages.append(
            package_adapter(
                work / f"{version}.adapter", target, out / f"{version}.target",
                version=version, made=made, replace=replace,
            )
        )  # fmt: skip
    _write_cards(work, out, settings, evaluation)
    add_exits(work, out, settings, say)
    return packages


def _write_cards(
    work: Path,
    out: Path,
    settings: FamilySettings,
    evaluation: Mapping[str, Rows],
) -> None:
    cards = out / "cards"
    cards.mkdir(parents=True, exist_ok=True)
    shape = settings.config
    base_plan = Plan(steps=settings.base_steps)
    common = (
        f"Llama shape, {shape['hidden_size']} wide, MLP {shape['intermediate_size']}, "
        f"{shape['num_attention_heads']} heads on {shape['num_key_value_heads']} key/value "
        f"heads, vocabulary {shape['vocab_size']} (byte-level BPE of the mixture), "
        "embeddings tied to the head."
    )
    mixture = ", ".join(f"{d.name} {d.share:.0%}" for d in DOMAINS)
    tokens = settings.base_steps * base_plan.batch
    texts = {
        "v1": [
            "# v1: the base target",
            "",
            f"{shape['num_hidden_layers']} layers. {common}",
            "",
            f"Trained from nothing on {tokens / 1e6:.1f} million tokens "
            f"({settings.base_steps} steps of {base_plan.batch}), mixture: {mixture}. "
            "Half of every domain but the stories is kept unseen for the evolved "
            "targets.",
        ],
        "reference": [
            "# reference: the frozen draft",
            "",
            f"{settings.anchor_layers + settings.trained_layers} layers: embeddings, the "
            f"first {settings.anchor_layers} layers and the head are the base's own, "
            f"{settings.trained_layers} layers and the last norm are trained once by "
            f"distillation from v1 ({settings.draft_steps} steps of {base_plan.batch} "
            "tokens of the base's mixture; KL + 0.1 cross-entropy + 0.1 feature "
            f"regression). {common} Shipped as int8.",
            "",
            "It has never seen an evolved target, and never changes.",
        ],
    }
    for evolution in settings.evolutions:
        texts[evolution.version] = [
            f"# {evolution.version}: an evolved target",
            "",
            f"v1 with LoRA adapters of rank {settings.rank} on every matrix above the "
            f"{settings.anchor_layers} anchor layers, {evolution.steps} steps of "
            f"{base_plan.batch} tokens on text that v1 has not seen: "
            f"{' and '.join(evolution.domains)}. Merged when it is loaded.",
        ]
    for name, lines in texts.items():
        stage = "draft" if name == "reference" else name
        lines += ["", _training_line(work / stage / "log.jsonl"), ""]
        if name == "reference":
            for version, rows in evaluation.items():
                lines += [f"## Against {version}", "", *_table(rows, acceptance=True), ""]
            lines += [_HOW_MEASURED, ""]
        else:
            lines += ["## Held-out text", "", *_table(evaluation[name], acceptance=False)]
            lines += [""]
        lines += _SOURCES
        (cards / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _training_line(log: Path) -> str:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    tail = rows[-20:]
    loss = sum(row["loss"] for row in tail) / len(tail)
    return (
        f"Training loss over the last {len(tail)} of {len(rows)} steps: {loss:.3f}; "
        f"{rows[-1]['seconds'] / 60:.0f} minutes on the machine that made it."
    )


def _table(rows: Rows, *, acceptance: bool) -> list[str]:
    columns = {
        "accepted of 4, greedy": "{greedy_per_block:.2f}",
        "agreement, greedy": "{greedy:.3f}",
        "overlap at T = 1": "{overlap:.3f}",
        "distinct 4-grams": "{distinct_4:.2f}",
    }
    if not acceptance:
        columns = {"nats per token": "{loss:.3f}", "v1 on the same": "{base_loss:.3f}"}
    return markdown(
        ["text", *columns],
        [
            [name, *(f.format(**row) for f in columns.values())]
            for name, row in rows.items()
        ],
    )


_HOW_MEASURED = (
    "Measured by the recipe in float32: 24 prompts of 48 tokens from held-out text, "
    'continued by 64 tokens. "Accepted of 4" counts drafted tokens kept per block of '
    "four; overlap is the mean of sum min(p, q), what rejection sampling would accept; "
    "few distinct 4-grams mean that the greedy text loops, which flatters the first two."
)
_SOURCES = [
    "## Data",
    "",
    "stories: fairy tales and children's books of Project Gutenberg and Standard Ebooks "
    "(public domain in the US; Peter and Wendy left out) · coffee: Taskmaster TM-4 "
    "(CC-BY-4.0) · home: NLU Evaluation Data (CC-BY-4.0) · plans: SCAN, reworded (BSD) · "
    "maths: GSM8K (MIT) · plays: Shakespeare (public domain).",
    "",
    "Old books hold old opinions; paragraphs with the worst words were left out, and a "
    "model of this size says nonsense easily. Made to be verified and measured, not "
    "believed.",
    "",
    "Recipe: `python -m studies.family --corpus DIR --work DIR --out models`.",
]
