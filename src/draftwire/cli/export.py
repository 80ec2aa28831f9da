"""``draftwire export ...``: packages from checkpoints, adapters and text."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftwire.cli._common import give_json
from draftwire.cli._leaf import Leaf, flag_lines, named
from draftwire.errors import ConfigError
from draftwire.options import options_of

_FLAGS = flag_lines("""
--out PLACE:path      what to write
--replace             put it in the place of an older one
--engine {onnx,litert} =onnx  litert: add model.PRECISION.tflite to a draft package (or make
                      one of a directory), for ai-edge-litert and tflite-runtime
--role {draft,target}  what the model will be (default: draft)
--precision P[,P...]:words  a draft: int8 (the default), int8-split (onnxruntime below
                      1.23), int8-kv8 (cache in int8, onnxruntime from 1.27), int4, fp32;
                      a target: fp16 (the default), fp32; LiteRT: int8 (the default), fp32
--graph {auto,concat}  how a draft's cache is passed; concat is written by Optimum, which it
                      installs once, apart (160 MB), if it is not there (default: auto)
--name NAME           the package's name; by default from --out
--version NAME        of a target; by default v1, or v2 if it evolves
--family NAME         the family's name; by default the package's
--context N           positions to serve; by default the trained ones, for a draft at most
                      4096
--head N:whole        tokens that a draft's head says, where it is a large part of it:
                      the most frequent of --data (default: all)
--anchor-layers N:whole  first layers that draft and targets share (default: 0)
--min-agreement SHARE:share  least share of positions with the origin's most likely token
--checkpoint DIR      litert: what the package was made from, weights that were not rounded
                      yet
--base DIR            of an adapter: the whole target that it was trained on
--data FILE+          text, plain or .jsonl; a part is held out (exits: by default the
                      target writes its own; package: of --head, without it the first of the
                      vocabulary)
--held-out FILE+      text to calibrate and measure on, one file for each of --data
--work DIR            for checkpoint and report; run again with the same flags to go on; by
                      default NAME.work beside --out
--start DIR           the draft whose trained layers go on: a package, or a Hugging Face
                      directory
--reuse DIR           take over the exits of this target: thresholds are calibrated, nothing
                      is trained
""")


@dataclass(frozen=True)
class Job:
    """One thing that can be made."""

    call: str  # ``module:function``, which gets the source and the flags by name
    flags: str  # names of ``_FLAGS``; those with ``!`` must be given
    settings: tuple[str, ...] = ()  # ``module:class`` of options that are more flags
    needs: tuple[str, ...] = ()  # libraries beside onnx, onnxruntime and tokenizers


_SERVED = "name family context anchor_layers min_agreement replace"
JOBS = {
    "onnx": Job(
        "draftwire.export.onnx:export_onnx",
        f"out! role precision graph version head data {_SERVED}",
    ),
    "litert": Job(
        "draftwire.export.tflite:export_tflite",
        f"out precision checkpoint {_SERVED}",
        needs=("ai_edge_litert", "flatbuffers"),
    ),
    "adapter": Job(
        "draftwire.export.adapter:package_adapter", "base! out! version! name replace"
    ),
    "draft": Job(
        "draftwire.export.training.draft:build_draft",
        "data! out! start work precision name family context min_agreement replace",
        ("draftwire.export.settings:DraftSettings",),
        ("torch", "transformers"),
    ),
    "evolve": Job(
        "draftwire.export.training.evolve:evolve_target",
        "data! out! work version name replace",
        ("draftwire.export.settings:EvolveSettings",),
        ("torch", "transformers", "peft"),
    ),
    "exits": Job(
        "draftwire.export.exits.make:export_exits",
        "data held_out out reuse replace",
        ("draftwire.export.settings:ExitSettings",),
        ("torch", "transformers"),
    ),
}


# `package` is whichever of the first three its source and flags ask for.
_PACKAGE = Job(
    "", f"out engine role precision graph checkpoint base version head data {_SERVED}"
)


def _leaf(job: Job, source: str, summary: str, about: str) -> Leaf:
    lines = [f"SOURCE:path  {source}"]
    for flag in job.flags.split():
        spec, _, text = _FLAGS[flag.strip("!")].partition("  ")
        lines.append(f"{spec} !  {text}" if flag.endswith("!") else f"{spec}  {text}")
    run = "draftwire.cli.export:run"
    return Leaf(summary, run, "\n".join(lines), about, groups=job.settings)


LEAVES = {
    "package": _leaf(
        _PACKAGE,
        "a Hugging Face directory, a GGUF file, OWNER/NAME on the hub; a PEFT LoRA "
        "directory, with --base; or a draft package to add LiteRT to",
        "a draft or target package from a checkpoint or an adapter",
        "Make a draft or target package from a Hugging Face checkpoint, or an "
        "evolved target from a LoRA adapter. The result is compared with its origin; "
        "nothing is written when it says something else.",
    ),
    "draft": _leaf(
        JOBS["draft"],
        "BASE: a Hugging Face directory, or a target package",
        "train a frozen draft for any base, once",
        "Train a shared-backbone draft: the base's embeddings, first layers and head, "
        "frozen, around a small part that learns from the base. Checkpoints, resumes "
        "when run again, writes a report, and freezes the result as a draft package.",
    ),
    "evolve": _leaf(
        JOBS["evolve"],
        "TARGET: a whole target package; or a Hugging Face directory, which gives an "
        "adapter directory in PEFT's format",
        "train an evolved target by LoRA",
        "Make an evolved target by LoRA on text. With its anchor frozen (the default) "
        "the drafts of the family go on as they are.",
    ),
    "exits": _leaf(
        JOBS["exits"],
        "TARGET: a target package, whole or evolved, or a checkpoint",
        "early exits for a target package",
        "Train the exits of a target, calibrate how sure each must be to speak, measure "
        "that on other text, and write them into the package. What the target says "
        "stays as it is, and so does its id.",
    ),
}


def run(args: argparse.Namespace) -> None:
    """Make what the command is called, load it back, say what is in it."""
    name = args.leaf
    if name == "package":
        adapter = args.base is not None or (args.source / "adapter_config.json").is_file()
        name = "adapter" if adapter else "onnx"
        name = "litert" if args.engine == "litert" else name
    job = JOBS[name]
    groups = [*map(named, job.settings)]
    own = {option.name: option for option in options_of(*groups)}
    told = {name: getattr(args, name) for name in own}
    told = {n: own[n].parse(t, own[n].flag) for n, t in told.items() if t is not None}
    for module in ("onnx", "onnxruntime", "tokenizers", *job.needs):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"exporting needs {module}, which is not installed",
                hint="pip install 'draftwire[export]', on a workstation",
            )
    values: dict[str, Any] = {}
    takes = {flag.strip("!") for flag in job.flags.split()}
    for flag in _FLAGS.keys() - own.keys() - {"engine"}:
        given = getattr(args, flag, None)
        if given is None or given is False or given == []:
            if f"{flag}!" in job.flags.split():
                raise ConfigError(f"--{flag.replace('_', '-')} must be given")
        elif flag not in takes:
            raise ConfigError(f"--{flag.replace('_', '-')} does not go with {name}")
        else:
            values["family_name" if flag == "family" else flag] = given
    if "budget" in own:
        told.setdefault("budget", 0.0)  # measured and said, whatever it takes
    quiet = args.quiet
    for group in groups:
        values["settings"] = group.pick(told)
        values["say"] = lambda line: quiet or print(line, file=sys.stderr, flush=True)
    made = named(job.call)(args.source, **values)
    document = _summary(made)
    if give_json(args, document) and not args.quiet:
        print(_shown(document))


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
