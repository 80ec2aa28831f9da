"""``draftwire export ...``: packages from checkpoints, adapters and text."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftwire import rules
from draftwire.cli._common import add_common_flags, give_json, ruled
from draftwire.errors import ConfigError
from draftwire.options import Option, options_of
from draftwire.rules import Rule

__all__ = ["LEAVES", "Leaf", "register"]


def _list(value: object) -> tuple[str, ...]:
    return tuple(part for part in str(value).split(",") if part)


def _counts(value: object) -> tuple[int, ...]:
    found = tuple(int(part) for part in _list(value))
    if not found or min(found) < 1:
        raise ValueError
    return found


_DIR = dataclasses.replace(rules.FILE, shown="DIR")
_COUNT = rules.whole(1, 1 << 31)
_SHARE = rules.number(0, 1, shown="SHARE")
_WORDS = Rule("words with commas between", _list, shown="P[,P...]")
_FLAGS = {
    name: Option(name, default, rule, text)
    for name, default, rule, text in (
        ("out", None, dataclasses.replace(rules.FILE, shown="PLACE"), "what to write"),
        ("replace", False, rules.FLAG, "put it in the place of an older one"),
        ("role", "draft", rules.word("draft", "target"), "what the model will be"),
        (
            "precision",
            None,
            _WORDS,
            "a draft: int8 (the default), int8-split (onnxruntime below 1.23), int4, fp32; "
            "a target: fp16 (the default), fp32; LiteRT: int8 (the default), fp32",
        ),
        (
            "graph",
            "auto",
            rules.word("auto", "concat"),
            "how a draft's cache is passed; concat needs optimum",
        ),
        ("name", None, rules.NAME, "the package's name; by default from --out"),
        ("version", None, rules.NAME, "of a target; by default v1, or v2 if it evolves"),
        ("family", None, rules.NAME, "the family's name; by default the package's"),
        (
            "context",
            None,
            _COUNT,
            "positions to serve; by default the trained ones, for a draft at most 4096",
        ),
        (
            "anchor_layers",
            0,
            rules.whole(0, 10_000),
            "first layers that draft and targets share",
        ),
        (
            "min_agreement",
            None,
            _SHARE,
            "least share of positions with the origin's most likely token",
        ),
        (
            "checkpoint",
            None,
            _DIR,
            "what the package was made from: weights that were not rounded yet",
        ),
        ("base", None, _DIR, "the whole target that it was trained on"),
        (
            "data",
            (),
            rules.FILE,
            "text, plain or .jsonl; a part is held out (exits: by default the target "
            "writes its own)",
        ),
        (
            "held_out",
            (),
            rules.FILE,
            "text to calibrate and measure on, one file for each of --data",
        ),
        (
            "work",
            None,
            _DIR,
            "for checkpoint and report; run again with the same flags to go on; by "
            "default NAME.work beside --out",
        ),
        (
            "reuse",
            None,
            _DIR,
            "take over the exits of this target: thresholds are calibrated, nothing is "
            "trained",
        ),
        ("board", None, rules.NAME, "name of a board's profile; by default this one"),
        (
            "times",
            None,
            rules.FILE,
            "what `draftwire bench device --json FILE` wrote on the board; by default "
            "measured here",
        ),
        ("target", None, _DIR, "who accepts: a package or checkpoint"),
        ("prompts", None, rules.FILE, "a prompt a line"),
        ("block", 4, _COUNT, "drafted tokens"),
        ("tokens", 64, _COUNT, "for each prompt"),
        ("rounds", 30, _COUNT, "as for bench device"),
        ("spawn", 3, _COUNT, "as for bench device"),
        ("threads", (), Rule("whole numbers", _counts, shown="N,N"), "as for bench device"),
        (
            "write",
            False,
            rules.FLAG,
            "write acceptance and choice into draft.json; the id stays",
        ),
    )
}


@dataclass(frozen=True)
class Leaf:
    """One thing that can be exported.

    Attributes:
        summary: For the list of leaves.
        description: For its own help.
        source: What it is made from: placeholder and help.
        call: ``module:function``, which gets the source and the flags by name.
        flags: Names; those with ``!`` must be given.
        settings: A class of :mod:`draftwire.export.settings` with more flags.
        needs: Libraries beside onnx, onnxruntime and tokenizers.
    """

    summary: str
    description: str
    source: tuple[str, str]
    call: str
    flags: str
    settings: str = ""
    needs: tuple[str, ...] = ()

    def options(self) -> list[Option]:
        """Return what the flags stand for."""
        found = [_FLAGS[name.strip("!")] for name in self.flags.split()]
        return found + list(options_of(self.group())) if self.settings else found

    def group(self) -> Any:
        """Return its class of settings."""
        return getattr(importlib.import_module("draftwire.export.settings"), self.settings)


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its leaves."""
    parser = commands.add_parser(
        "export",
        help="make draft and target packages",
        description="Make draft and target packages, on a workstation.",
    )
    leaves = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, leaf in LEAVES.items():
        child = leaves.add_parser(name, help=leaf.summary, description=leaf.description)
        metavar, text = leaf.source
        child.add_argument("source", metavar=metavar, type=Path, help=text)
        for option in leaf.options():
            _add(child, option, required=f"{option.name}!" in leaf.flags.split())
        add_common_flags(child)
        child.set_defaults(run=run, leaf=leaf)


def _add(parser: argparse.ArgumentParser, option: Option, *, required: bool) -> None:
    words: dict[str, Any] = {"dest": "given_" + option.name, "default": option.default}
    if option.rule.kind is bool:
        words["action"] = "store_true"
    else:
        words.update(type=ruled(option.rule), metavar=option.rule.shown, required=required)
        if option.name in ("data", "held_out"):
            words["nargs"] = "+"
    note = "" if option.default in (None, False, ()) else f" (default: {option.default})"
    parser.add_argument(option.flag, help=option.help + note, **words)


def run(args: argparse.Namespace) -> int:
    """Make the package, load it back, say what is in it."""
    leaf: Leaf = args.leaf
    for module in ("onnx", "onnxruntime", "tokenizers", *leaf.needs):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"exporting needs {module}, which is not installed",
                hint="pip install 'draftwire[export]', on a workstation",
            )
    given = {
        option.name: getattr(args, "given_" + option.name) for option in leaf.options()
    }
    values: dict[str, Any] = {}
    if leaf.settings:
        group = leaf.group()
        fields = dataclasses.fields(group)
        settings = {field.name: given.pop(field.name) for field in fields}
        if settings.get("budget", 0) is None:
            settings["budget"] = 0.0  # measured and said, whatever it takes
        quiet = args.quiet
        values["settings"] = group(**settings)
        values["say"] = lambda line: quiet or print(line, file=sys.stderr, flush=True)
    values.update((name, value) for name, value in given.items() if value is not None)
    if "family" in values:
        values["family_name"] = values.pop("family")
    module_name, function = leaf.call.split(":")
    made = getattr(importlib.import_module(module_name), function)(args.source, **values)
    if not isinstance(made, Path):  # it says all by itself
        document, text = made
    else:
        document = _summary(made)
        text = _shown(document) if not args.quiet else ""
    if give_json(args, document) and text:
        print(text)
    return 0


def _summary(out: Path) -> dict[str, Any]:
    from draftwire.packages import load_draft, load_target

    if out.suffix not in (".draft", ".target"):  # an adapter directory
        files = {p.name: {"bytes": p.stat().st_size} for p in sorted(out.iterdir())}
        return {"schema": "draftwire.export/1", "path": str(out), "id": "", "files": files}
    package: Any = load_draft(out) if out.suffix == ".draft" else load_target(out)
    found = {
        "schema": "draftwire.export/1",
        "path": str(out),
        "id": package.id,
        "name": package.name,
        "family": package.raw["family"],
        "vocab_size": package.vocab_size,
        "context": package.context,
        "files": {name: dict(f.details) for name, f in package.files.items()},
        "refused": package.raw.get("made", {}).get("refused", {}),
    }
    if getattr(package, "exits", None) is not None:
        section = package.raw["exits"]
        found["exits"] = section["exits"]
        found["exits_bytes"] = sum(entry["bytes"] for entry in section["files"].values())
    return found


def _shown(summary: dict[str, Any]) -> str:
    lines = [summary["path"] + (f"  id {summary['id'][:12]}" if summary["id"] else "")]
    for name, file in summary["files"].items():
        line = f"  {name:24s} {file['bytes'] / 1e6:9.2f} MB"
        parity = file.get("parity")
        if parity:
            line += (
                f"  same token {parity['agreement']:.1%}"
                f"  logits within {parity['max_difference']:.2g}"
                f"  ({parity['tokens']} positions, {parity['against']})"
            )
        lines.append(line)
    for precision, why in summary.get("refused", {}).items():
        lines.append(f"  {precision} was left out: {why}")
    for found in summary.get("exits", ()):
        measured = found.get("measured")
        agrees = "none" if measured is None else f"{measured:.1%}"
        lines.append(
            f"  exit after layer {found['layer']}: speaks from {found['threshold']:.3f} "
            f"on, at {found.get('speaks') or 0:.1%} of the positions; agrees at {agrees} "
            f"of those (calibrated to {found['agreement']:.0%})"
        )
    if "exits_bytes" in summary:
        lines.append(f"  exits take {summary['exits_bytes'] / 1e6:.2f} MB")
    return "\n".join(lines)


LEAVES = {
    "onnx": Leaf(
        "a draft or target package from a checkpoint",
        "Make a draft or target package from a Hugging Face checkpoint.  The result is "
        "compared with the checkpoint; nothing is written when it says something else.",
        ("MODEL", "a Hugging Face directory, a GGUF file, or OWNER/NAME on the hub"),
        "draftwire.export.onnx:export_onnx",
        "out! role precision graph name version family context anchor_layers "
        "min_agreement replace",
    ),
    "tflite": Leaf(
        "a LiteRT engine for a draft package",
        "Add model.PRECISION.tflite to a draft package, for ai-edge-litert and "
        "tflite-runtime.  It is compared with the package's own model (or the "
        "checkpoint's); nothing is written when it says something else.  The result "
        "has an id of its own.",
        ("PACKAGE.draft", "the draft package to add to, or a Hugging Face directory"),
        "draftwire.export.tflite:export_tflite",
        "out precision checkpoint name family context anchor_layers min_agreement replace",
        needs=("ai_edge_litert", "flatbuffers"),
    ),
    "tune": Leaf(
        "which precision and threads a board shall run",
        "Choose the model of a draft package (engine, precision, threads) that gives the "
        "most accepted tokens a second, and a joule where watts are known: by times "
        "measured here or on the board, and by the acceptance of a real target.",
        ("DRAFT", "draft package with several models"),
        "draftwire.bench.tune:tune_and_render",
        "board times target prompts block tokens rounds spawn threads write",
    ),
    "adapter": Leaf(
        "an evolved target package from a LoRA adapter",
        "Make an evolved target from a LoRA adapter and the target it was trained on.",
        ("ADAPTER_DIR", "a PEFT LoRA directory"),
        "draftwire.export.adapter:package_adapter",
        "base! out! version! name replace",
    ),
    "draft": Leaf(
        "train a frozen draft for any base, once",
        "Train a shared-backbone draft: the base's embeddings, first layers and head, "
        "frozen, around a small part that learns from the base.  Checkpoints, resumes "
        "when run again, writes a report, and freezes the result as a draft package.",
        ("BASE_DIR", "a Hugging Face directory, or a target package"),
        "draftwire.export.training.draft:build_draft",
        "data! out! work precision name family context min_agreement replace",
        "DraftSettings",
        ("torch", "transformers"),
    ),
    "evolve": Leaf(
        "train an evolved target by LoRA",
        "Make an evolved target by LoRA on text.  With its anchor frozen (the default) "
        "the drafts of the family go on as they are.",
        (
            "TARGET",
            "a whole target package; or a Hugging Face directory, which gives an adapter "
            "directory in PEFT's format",
        ),
        "draftwire.export.training.evolve:evolve_target",
        "data! out! work version name replace",
        "EvolveSettings",
        ("torch", "transformers", "peft"),
    ),
    "exits": Leaf(
        "early exits for a target package",
        "Train the exits of a target, calibrate how sure each must be to speak, measure "
        "that on other text, and write them into the package.  What the target says "
        "stays as it is, and so does its id.",
        ("TARGET", "a target package, whole or evolved, or a checkpoint"),
        "draftwire.export.exits.make:export_exits",
        "data held_out out reuse replace",
        "ExitSettings",
        ("torch", "transformers"),
    ),
}
