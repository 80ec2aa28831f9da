"""``draftwire demo``: a verifier and a device on this machine, a real websocket."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Sequence

from draftwire.cli import _common
from draftwire.cli._leaf import EXPLAIN, NUMERICS, Leaf
from draftwire.errors import ConfigError
from draftwire.io import format_table
from draftwire.options import STREAM_GROUPS, Draft, Measure

# What each reference target was trained to continue.
PROMPTS = {
    "v1": (
        "The old woman gave him a golden apple, and said",
        "They came at last to the palace of the king, and",
        "The ship sailed away over the sea until",
    ),
    "v2": (
        "User: turn off the lights in the kitchen\nIntent:",
        "Command: walk left twice and jump\nPlan:",
        "Command: look around right and walk twice\nPlan:",
    ),
    "v3": (
        "User: Can I get a latte with oat milk please?\nAgent:",
        "User: Hi, I'd like to order a coffee.\nAgent:",
        "User: I want a large cappuccino.\nAgent:",
    ),
}
CHATS = ("What is the capital of France?", "Count from one to ten.", "Name three fruits.")
# Of this command: three short texts, the same each time.
DEFAULTS = {"seed": 0, "max_new_tokens": 64}


LEAF = Leaf(
    "a verifier and a device on this machine, with the reference models",
    "draftwire.cli.demo:run",
    f"""
--target NAME|PATH =v1  v1, v2 or v3, or with --draft the folder of a target
--draft PATH          a draft package that fits the target; one with a chat template is
                      talked to
--prompt TEXT+        continue these texts in place of the demo's three
{NUMERICS}
{EXPLAIN}
""",
    about="Run a verifier and a device on this machine, with the reference models.",
    groups=(*STREAM_GROUPS, Draft, Measure),
    defaults=DEFAULTS,
)


def run(args: argparse.Namespace) -> None:
    """Generate from each prompt and print the table."""
    import draftwire
    from draftwire.bench.child import local_verifier
    from draftwire.cli._stream import painter_of, screen_of, warn
    from draftwire.reference import draft_path, target_path
    from draftwire.template import Template

    values = _common.read_settings(args)
    options = _common.stream_options(values)
    given = _common.option_values(values, Draft, Measure)
    draft = args.draft or draft_path()
    target = Path(args.target) if args.draft else target_path(args.target)
    chats = Template.of(draft).text is not None
    if not target.is_dir():
        raise ConfigError(f"there is no folder {target}", hint="--target PATH names one")
    known = PROMPTS.get(args.target, PROMPTS["v1"])
    prompts = args.prompt or list(CHATS if chats else known)
    _common.start_logging(verbose=args.verbose)
    screen = screen_of(args)

    reports: list[dict[str, Any]] = []
    flags = ["--numerics", args.numerics] if args.numerics else []
    with local_verifier([target], flags) as (url, token):
        with draftwire.connect(url, draft=draft, token=token, **given) as session:
            for number, prompt in enumerate(prompts):
                painter = None if args.quiet else painter_of(args, draft)
                if painter:
                    if number == 0:
                        screen.write(_opening(target.stem, url, options))
                        painter.legend()
                    painter.prompt(prompt + "\n" * chats)
                options["explain"] = _common.say_block if args.explain else None
                if chats:
                    said = [{"role": "user", "content": prompt}]
                    stream = session.chat(said, **options)
                else:
                    stream = session.generate(prompt, **options)
                for chunk in stream:
                    if painter:
                        painter.show(chunk)
                if stream.report is not None:
                    reports.append(stream.report)
                if painter:
                    screen.write("\n\n")
            # Before the session's end, which may find that its own files do not fit.
            warn(*reports)
            if not args.quiet or not args.json:
                screen.write(results(reports) + "\n")
                screen.flush()
            if args.json:
                _common.write_json(reports, args.json)
                if args.json != "-" and not args.quiet:
                    print(f"run reports written to {args.json}", file=sys.stderr)


def _opening(target: str, url: str, options: dict[str, Any]) -> str:
    temperature = options["temperature"]
    scheme = options["scheme"] or ("coupled" if temperature else "greedy")
    how = f"{scheme} at temperature {temperature:g}"
    return f"frozen draft here, target {target} at {url}, {how}\n\n"


def results(reports: Sequence[dict[str, Any]]) -> str:
    """Return the table of several runs and their totals."""
    header = "prompt tokens rounds accepted/block forwards cloud-only forwards/token"
    rows = [_row(str(i + 1), report) for i, report in enumerate(reports)]
    if len(reports) > 1:
        rows.append(_row("all", _sum(reports)))
    note = "forwards: of the target, after prefill; cloud-only: one a token, no draft"
    titles = [*header.split(), "bytes up/drafted", "tokens/s"]
    return f"{format_table(titles, rows)}\n{note}"


def _row(name: str, report: dict[str, Any]) -> list[object]:
    from draftwire.runtime.report import summarise

    found, forwards = summarise(name, report), report["target_forwards"]
    row = [name, found.tokens, found.rounds, found.accepted_per_block, forwards]
    row += [found.tokens, found.forwards_per_token, found.bytes_per_drafted]
    return [*row, found.tokens_per_s]


def _sum(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from draftwire.runtime.report import total

    counts = ("tokens", "rounds", "accepted", "drafted", "target_forwards")
    parts = {"bytes": "up_payload", "seconds": "total", "energy": "joules"}
    found: dict[str, Any] = {key: total(reports, key) for key in counts}
    return {**found, **{k: {part: total(reports, k, part)} for k, part in parts.items()}}
