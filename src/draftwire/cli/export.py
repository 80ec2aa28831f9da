"""``draftwire export ...``: packages from checkpoints and adapters."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from draftwire.cli import _export_exits, _export_tune
from draftwire.cli import _export_training as training
from draftwire.cli._common import add_common_flags, write_json

__all__ = ["LEAVES", "Leaf", "register"]


@dataclass(frozen=True)
class Leaf:
    """One thing that can be exported.

    Attributes:
        summary: For the list of leaves.
        description: For its own help.
        arguments: Adds its flags.
        run: Makes packages and returns their folders; none when it reports by itself.
    """

    summary: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], list[Path]]


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
        leaf.arguments(child)
        add_common_flags(child)
        child.set_defaults(run=run, leaf=leaf)


def run(args: argparse.Namespace) -> int:
    """Make the packages, load them back, say what is in them."""
    summaries = [_summary(out) for out in args.leaf.run(args)]
    if not summaries:  # the leaf has said it all
        return 0
    if args.json is not None:
        write_json(summaries[0] if len(summaries) == 1 else summaries, args.json)
    if args.json != "-" and not args.quiet:
        for summary in summaries:
            _show(summary)
    return 0


def _summary(out: Path) -> dict[str, Any]:
    from draftwire.packages import load_draft, load_target

    if out.suffix not in (".draft", ".target"):  # an adapter directory
        files = {p.name: {"bytes": p.stat().st_size} for p in sorted(out.iterdir())}
        return {"schema": "draftwire.export/1", "path": str(out), "id": "", "files": files}
    package = load_draft(out) if out.suffix == ".draft" else load_target(out)
    return {
        "schema": "draftwire.export/1",
        "path": str(out),
        "id": package.id,
        "name": package.name,
        "family": package.raw["family"],
        "vocab_size": package.vocab_size,
        "context": package.context,
        "files": {name: dict(f.details) for name, f in package.files.items()},
        "refused": package.raw.get("made", {}).get("refused", {}),
        **_export_exits.summary(package),
    }


def _show(summary: dict[str, Any]) -> None:
    note = f"  id {summary['id'][:12]}" if summary["id"] else ""
    print(f"{summary['path']}{note}")
    for name, file in summary["files"].items():
        line = f"  {name:24s} {file['bytes'] / 1e6:9.2f} MB"
        parity = file.get("parity")
        if parity:
            line += (
                f"  same token {parity['agreement']:.1%}"
                f"  logits within {parity['max_difference']:.2g}"
                f"  ({parity['tokens']} positions, {parity['against']})"
            )
        print(line)
    for precision, why in summary.get("refused", {}).items():
        print(f"  {precision} was left out: {why}")
    _export_exits.show(summary)


def _onnx_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model_dir",
        metavar="MODEL",
        type=Path,
        help="a Hugging Face directory, a GGUF file, or OWNER/NAME on the hub",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="NAME.draft",
        help="the package to write (NAME.target with --role target)",
    )
    parser.add_argument(
        "--role",
        choices=("draft", "target"),
        default="draft",
        help="what the model will be (default: draft)",
    )
    parser.add_argument(
        "--precision",
        metavar="P[,P...]",
        help="draft: int8 (default), int8-split (onnxruntime below 1.23), int4, fp32; "
        "target: fp16 (default), fp32",
    )
    parser.add_argument(
        "--graph",
        choices=("auto", "concat"),
        default="auto",
        help="how a draft's cache is passed; concat needs optimum (default: auto)",
    )
    parser.add_argument("--name", help="the package's name (default: from --out)")
    parser.add_argument(
        "--version", default="v1", help="of a target (default: v1)", dest="version_name"
    )
    parser.add_argument("--family", help="the family's name (default: --name)")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="positions to serve (default: the trained ones, a draft at most 4096)",
    )
    parser.add_argument(
        "--anchor-layers",
        type=int,
        default=0,
        metavar="N",
        help="first layers that draft and targets share (default: 0)",
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="least share of positions with the checkpoint's most likely token",
    )
    _replace_flag(parser)


def _replace_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace", action="store_true", help="put it in the place of an older one"
    )


def _onnx(args: argparse.Namespace) -> list[Path]:
    _require()
    from draftwire.export.onnx import export_onnx

    out = export_onnx(
        args.model_dir,
        args.out,
        precision=args.precision.split(",") if args.precision else None,
        role=args.role,
        graph=args.graph,
        name=args.name,
        version=args.version_name,
        family_name=args.family,
        context=args.context,
        anchor_layers=args.anchor_layers,
        min_agreement=args.min_agreement,
        replace=args.replace,
    )
    return [out]


def _require(*modules: str) -> None:
    import importlib.util

    from draftwire.errors import ConfigError

    for module in ("onnx", "onnxruntime", "tokenizers", *modules):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"exporting needs {module}, which is not installed",
                hint="pip install 'draftwire[export]', on a workstation",
            )


def _tflite_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="PACKAGE.draft",
        type=Path,
        help="the draft package to add to, or a Hugging Face directory",
    )
    add(
        "--out",
        type=Path,
        metavar="NAME.draft",
        help="the package to write (without it: --replace PACKAGE.draft)",
    )
    add("--precision", metavar="P[,P]", default="int8", help="int8 (default), fp32")
    add(
        "--checkpoint",
        type=Path,
        metavar="MODEL_DIR",
        help="what the package was made from: weights that were not rounded yet",
    )
    add("--name", help="of a package from a directory (default: from --out)")
    add("--family", help="of a package from a directory (default: --name)")
    add("--context", type=int, metavar="N", help="of a package from a directory")
    add("--anchor-layers", type=int, default=0, metavar="N", help="as for onnx")
    add(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="least share of positions with the origin's most likely token",
    )
    _replace_flag(parser)


def _tflite(args: argparse.Namespace) -> list[Path]:
    _require("ai_edge_litert", "flatbuffers")
    from draftwire.export.tflite import export_tflite

    out = export_tflite(
        args.source,
        args.out,
        precision=args.precision.split(","),
        checkpoint=args.checkpoint,
        name=args.name,
        family_name=args.family,
        context=args.context,
        anchor_layers=args.anchor_layers,
        min_agreement=args.min_agreement,
        replace=args.replace,
    )
    return [out]


def _draft(args: argparse.Namespace) -> list[Path]:
    _require("torch", "safetensors")
    return training.draft(args)


def _evolve(args: argparse.Namespace) -> list[Path]:
    _require("torch", "safetensors")
    return training.evolve(args)


def _adapter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter", metavar="ADAPTER_DIR", type=Path, help="a PEFT LoRA directory"
    )
    parser.add_argument(
        "--base",
        required=True,
        type=Path,
        metavar="BASE.target",
        help="the whole target that it was trained on",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="NAME.target",
        help="the package to write, beside the base",
    )
    parser.add_argument(
        "--version",
        required=True,
        dest="version_name",
        help='of the evolved target, e.g. "v2"',
    )
    parser.add_argument("--name", help="the package's name (default: from --out)")
    _replace_flag(parser)


def _adapter(args: argparse.Namespace) -> list[Path]:
    _require()
    from draftwire.export.adapter import package_adapter

    out = package_adapter(
        args.adapter,
        args.base,
        args.out,
        version=args.version_name,
        name=args.name,
        replace=args.replace,
    )
    return [out]


def _exits(args: argparse.Namespace) -> list[Path]:
    _require("torch")
    return _export_exits.exits(args)


LEAVES = {
    "onnx": Leaf(
        "a draft or target package from a checkpoint",
        "Make a draft or target package from a Hugging Face checkpoint.  The result is "
        "compared with the checkpoint; nothing is written when it says something else.",
        _onnx_arguments,
        _onnx,
    ),
    "tflite": Leaf(
        "a LiteRT engine for a draft package",
        "Add model.PRECISION.tflite to a draft package, for ai-edge-litert and "
        "tflite-runtime.  It is compared with the package's own model (or the "
        "checkpoint's); nothing is written when it says something else.  The result "
        "has an id of its own.",
        _tflite_arguments,
        _tflite,
    ),
    "tune": Leaf(
        "which precision and threads a board shall run",
        "Choose the model of a draft package (engine, precision, threads) that gives the "
        "most accepted tokens a second, and a joule where watts are known: by times "
        "measured here or on the board, and by the acceptance of a real target.",
        _export_tune.arguments,
        _export_tune.run,
    ),
    "adapter": Leaf(
        "an evolved target package from a LoRA adapter",
        "Make an evolved target from a LoRA adapter and the target it was trained on.",
        _adapter_arguments,
        _adapter,
    ),
    "draft": Leaf(
        "train a frozen draft for any base, once",
        "Train a shared-backbone draft: the base's embeddings, first layers and head, "
        "frozen, around a small part that learns from the base.  Checkpoints, resumes "
        "when run again, writes a report, and freezes the result as a draft package.",
        training.draft_arguments,
        _draft,
    ),
    "evolve": Leaf(
        "train an evolved target by LoRA",
        "Make an evolved target by LoRA on text.  With its anchor frozen (the default) "
        "the drafts of the family go on as they are.",
        training.evolve_arguments,
        _evolve,
    ),
    "exits": Leaf(
        "early exits for a target package",
        "Train the exits of a target, calibrate how sure each must be to speak, measure "
        "that on other text, and write them into the package.  What the target says "
        "stays as it is, and so does its id.",
        _export_exits.exits_arguments,
        _exits,
    ),
}
