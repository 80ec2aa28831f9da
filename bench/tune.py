"""Times and acceptance of a draft's models, for ``draftwire bench device --tune``.

Acceptance is that of a real target on the user's own prompts, greedy, block after block,
as the verifier would judge them; it depends on the model file and its engine, and not
on threads or board, so it may be measured on a workstation.  Times are of the board.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draftwire.bench.acceptance import check_room, load_judge, measure_all
from draftwire.bench.device import PACKAGES, SCHEMA, Settings, bench_device, thread_counts
from draftwire.boards.profiles import Profile, find_profile
from draftwire.errors import ConfigError
from draftwire.export.precision.tune import Candidate, choose, write_acceptance, write_hint
from draftwire.io import format_table, parse_json
from draftwire.packages import DraftPackage, load_draft
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.sampling import SamplingParams
from draftwire.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Tuning(Settings):
    """What to tune, and how it is measured here."""

    board: str | None = None  # name of a board's profile; None for this machine
    # what ``draftwire bench device --json`` wrote on the board, or None to measure here
    times: Path | None = None
    target: Path | None = None  # target package or checkpoint that judges, or None
    prompts: Path | None = None  # text file, a prompt a line
    block: int = 4  # drafted tokens of each block
    tokens: int = 64  # new tokens for each prompt
    write: bool = False  # write acceptance and choice into ``draft.json``


def tune(wanted: Tuning) -> dict[str, Any]:
    """Measure, choose, and return the document that ``--json`` writes.

    A ConfigError where a setting, the prompts or the times are wrong, an IncompatibleError
    where draft and target share no tokenizer, a PackageError where a package is damaged.
    """
    if (wanted.target is None) != (wanted.prompts is None):
        raise ConfigError("--target and --prompts go together")
    package = load_draft(wanted.draft)
    here, asked = find_profile(), find_profile(board=wanted.board)
    warnings: list[str] = []
    board = asked.profile
    if wanted.times is not None:
        times = read_times(wanted.times, package, board if wanted.board else None)
        board = find_profile(board=times["machine"]["board"]).profile
        box = times["machine"]
        source = f"{wanted.times.name}: bench device on {box['board']}, {box['date']}"
    else:
        times = bench_device(_for_board(board, wanted))
        source = f"bench device on this machine, {times['machine']['date']}"
        if board.name != here.profile.name:
            warnings.append(
                f"times are of this machine ({here.profile.name}), not of {board.name}: "
                f"run `draftwire bench device --json times.json` there and give --times"
            )
    runs = [run for run in times["runs"] if "error" not in run]
    warnings += [
        f"{run['engine']} {run['precision']} does not run: {run['error']}"
        for run in times["runs"]
        if "error" in run
    ]
    models = sorted({(run["engine"], run["precision"]) for run in runs})
    acceptance: dict[tuple[str, str], dict[str, Any]] = {}
    if wanted.target is not None and wanted.prompts is not None:
        acceptance = measure_acceptance(
            package,
            wanted.target,
            read_prompts(wanted.prompts),
            models,
            block=wanted.block,
            tokens=wanted.tokens,
        )
    candidates = []
    for run in runs:
        model, threads = (run["engine"], run["precision"]), int(run["threads"])
        share = acceptance.get(model, {}).get("share")
        speed, joules = float(run["tokens_per_s"]), run.get("joules_per_token")
        candidates.append(Candidate(*model, threads, speed, share, joules))
    reasons = sorted({str(run.get("energy_why_null")) for run in runs})
    choice = choose(candidates, why_no_joules="; ".join(reasons))
    warnings += choice.warnings
    keys = ("engine", "precision", "threads", "accepted_per_s")
    hint = {**{key: getattr(choice.per_second, key) for key in keys}, "times": source}
    if wanted.write:
        if acceptance:
            write_acceptance(package.path, acceptance)
        write_hint(package.path, board.name, hint)
    return {
        "schema": "draftwire.tune/1",
        "draft": {"id": package.id, "name": package.name},
        "board": board.name,
        "times": source,
        "acceptance": [
            {"engine": model[0], "precision": model[1], **found}
            for model, found in acceptance.items()
        ],
        "candidates": [one.record() for one in candidates],
        "best_per_second": choice.per_second.record(),
        "best_per_joule": choice.per_joule.record() if choice.per_joule else None,
        "why_no_joules": choice.why_no_joules or None,
        "written": wanted.write,
        "warnings": warnings,
    }


def _for_board(board: Profile, settings: Settings) -> Settings:
    """Keep to the engines and cores that the board has, as its profile says, where none
    are asked for."""
    packages = {*board.raw.get("engines", {}).get("packages", ())}
    files = load_draft(settings.draft).files.values()
    has = {file.engine for file in files if file.precision}
    engines = [name for name, own in PACKAGES.items() if packages & {*own} and name in has]
    cores = sum(int(one.get("count", 0)) for one in board.raw.get("cores", ()))
    threads = tuple(thread_counts(cores)) if cores else ()
    return replace(
        settings, engines=settings.engines or engines, threads=settings.threads or threads
    )


def read_times(path: Path, package: DraftPackage, board: Profile | None) -> dict[str, Any]:
    """Return what ``bench device`` measured elsewhere, checked.

    Raises:
        ConfigError: It is no such document, or of another draft or board.
    """
    try:
        found: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} cannot be read as JSON: {exc}") from exc
    known = isinstance(found, dict)
    kind = [found.get(key) for key in ("schema", "bench")] if known else []
    if kind != [SCHEMA, "device"]:
        hint = "make it with `draftwire bench device --json FILE` on the board"
        raise ConfigError(f"{path} holds no times of a device", hint=hint)
    try:
        draft, machine = found["draft"]["id"], found["machine"]["board"]
        for run in found["runs"]:
            if "error" not in run:
                if not (0 < float(run["tokens_per_s"]) < math.inf):
                    raise ConfigError(f"{path} holds a speed of {run['tokens_per_s']!r}")
                _ = str(run["engine"]), str(run["precision"]), int(run["threads"])
        _ = found["machine"]["date"]
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"{path} lacks or garbles {exc}") from exc
    if draft != package.id:
        raise ConfigError(
            f"{path} is of the draft {str(draft)[:12]}, not of {package.id[:12]}",
            hint="measure this very package on the board",
        )
    if board is not None and machine != board.name:
        raise ConfigError(f"{path} was measured on {machine}, not on {board.name}")
    return found


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        ConfigError: It cannot be read, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        hint = "give a text file, a prompt a line"
        raise ConfigError(f"cannot read {path}: {why}", hint=hint) from exc
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt", hint="one prompt a line")
    return prompts


def measure_acceptance(
    package: DraftPackage,
    target: Path,
    prompts: Sequence[str],
    models: Sequence[tuple[str, str]],
    *,
    block: int,
    tokens: int,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what a target accepts of each engine and precision of a draft, greedy.

    A ConfigError where a prompt does not fit the context, an IncompatibleError where draft
    and target share no tokenizer.
    """
    backend = load_judge(package, target)
    tokenizer = load_tokenizer(package.tokenizer_path)
    ids = [tokenizer.encode(prompt, bos_id=backend.bos_id) for prompt in prompts]
    check_room(ids, min(package.context, backend.context), block=block, tokens=tokens)
    params = [SamplingParams()] * len(ids)
    found = {}
    for engine, precision in models:
        model = DraftModel.load(package, engine=engine, precision=precision, threads=1)
        total = measure_all(model, backend, ids, params, block=block, tokens=tokens)
        found[engine, precision] = {
            "target": {"name": backend.name, "version": backend.version},
            "scheme": "greedy",
            "block": block,
            "prompts": len(ids),
            "drafted": total["drafted"],
            "accepted": total["accepted"],
            "share": total["acceptance"],
            "share_error": total["acceptance_error"],
            "per_block": total["accepted"] / total["rounds"],
        }
    return found


def render(document: dict[str, Any]) -> str:
    """Return the document as plain text."""
    header = ["engine", "precision", "threads", "tokens/s", "acceptance"]
    header += ["accepted/s", "accepted/J"]
    keys = [*header[:3], "tokens_per_s", "acceptance", "accepted_per_s"]
    rows = [
        [one[k] for k in (*keys, "accepted_per_joule")] for one in document["candidates"]
    ]
    rows.sort(key=lambda row: -(row[5] or row[3]))
    best, thrifty = document["best_per_second"], document["best_per_joule"]

    def words(one: dict[str, Any]) -> str:
        return f"{one['engine']} {one['precision']}, {one['threads']} thread(s)"

    lines = [
        f"{document['draft']['name']} for {document['board']}; times: {document['times']}",
        "",
        format_table(header, rows),
        "",
        f"most accepted tokens a second: {words(best)}",
    ]
    joule = f"a joule: not known ({document['why_no_joules']})"
    lines.append(f"most accepted tokens a joule: {words(thrifty)}" if thrifty else joule)
    if document["written"]:
        lines.append(f"written into draft.json as the hint for {document['board']}")
    return "\n".join(lines + [f"warning: {text}" for text in document["warnings"]])
