"""What a grammar's forced ids save: robot commands with and without forcing them.

    PYTHONPATH=src python tools/structure.py [--draft D --target T] [--seeds 8]

First, the share of forced ids in two given texts, with numbers of any length. Then schemas
with short numbers, whose texts are written twice, at temperature 0.8 with the seeds 0, 1,
2 and so on: once with what the grammar forces as text at once, once drawn like any other
token. A row holds means of all texts; ``share`` is forced / all tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import draftwire
from draftwire.bench.child import VerifierProcess
from draftwire.packages import DraftPackage, load_draft, load_tokenizer
from draftwire.reference import draft_path, target_path
from draftwire.sampling.grammar import Grammar
from draftwire.sampling.grammar.engine import vocabulary

NUMBER, YES = {"type": "number"}, {"type": "boolean"}
ACTION, GRIPPER = {"enum": ["move", "grip", "stop", "look"]}, {"enum": ["open", "closed"]}
SHORT = {"type": "integer", "minimum": -99, "maximum": 99}
SPEED = {"type": "integer", "minimum": 0, "maximum": 9}


def thing(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has these properties and no others."""
    fixed = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **fixed}


def tool(number: Any, speed: Any) -> dict[str, Any]:
    """Return the schema of a nested call."""
    arguments = thing(waypoint=thing(x=number, y=number), max_speed=speed, avoid=YES)
    return thing(name={"const": "navigate_to_waypoint"}, arguments=arguments)


SCHEMAS = {
    "command, 5 fields": thing(
        action=ACTION, x=SHORT, y=SHORT, speed=SPEED, gripper=GRIPPER
    ),
    "tool call, nested": tool(SHORT, SPEED),
}
WHOLE = {"type": "integer"}
TEXTS = (
    (
        "command, 5 fields",
        thing(action=ACTION, x=NUMBER, y=NUMBER, speed=WHOLE, gripper=GRIPPER),
        '{"action":"move","x":1.25,"y":-0.5,"speed":3,"gripper":"open"}',
    ),
    (
        "tool call, nested",
        tool(NUMBER, NUMBER),
        '{"name":"navigate_to_waypoint","arguments":{"waypoint":{"x":3.5,"y":-1.2},'
        '"max_speed":0.8,"avoid":true}}',
    ),
)
PROMPT = "The robot should drive to the door and open it. Its command as JSON: "


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", type=Path, default=draft_path())
    parser.add_argument("--target", type=Path, default=target_path("v1"))
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    package = load_draft(args.draft)
    print("| text | tokens | forced |\n|---|---|---|")
    for name, schema, text in TEXTS:
        total, forced = share(package, schema, text)
        print(f"| {name} | {total} | {forced / total:.0%} |")
    print("\n| schema | forced | tokens | share | forwards | drafted | bytes up | s |")
    print("|---|---|---|---|---|---|---|---|")
    with VerifierProcess([args.target]) as verifier:
        url = f"ws://127.0.0.1:{verifier.port}"
        with draftwire.connect(url, draft=args.draft) as session:
            list(session.generate(PROMPT, schema={"type": "boolean"}))
            for name, schema in SCHEMAS.items():
                for force in (False, True):
                    list(session.generate(PROMPT, schema=schema, max_new_tokens=1))
                    found = row(session, schema, args.seeds, force=force)
                    print(f"| {name} | {'yes' if force else 'no'} | {found} |", flush=True)


def share(package: DraftPackage, schema: Any, text: str) -> tuple[int, int]:
    """Return how many tokens ``text`` has, and how many of them are forced."""
    tokenizer = load_tokenizer(package.tokenizer_path)
    words = vocabulary(package.tokenizer_path, package.family.tokenizer)
    guide = words.compile(Grammar.of_schema(schema)).guide(package.vocab_size)
    ids: list[int] = []
    forced = 0
    while not (path := guide.path()).ended or path.ids:
        ids += path.ids
        forced += len(path.ids)
        guide.follow(ids)
        if guide.path().ended:
            break
        rest = text[len(tokenizer.decode(ids)) :]
        ids.append(tokenizer.encode(rest)[0])
        guide.follow(ids)
    assert tokenizer.decode(ids) == text
    return len(ids), forced


def row(session: draftwire.Session, schema: Any, seeds: int, *, force: bool) -> str:
    """Return the means of all texts."""
    names = ("tokens", "forced", "forwards", "drafted", "up", "s")
    sums: dict[str, float] = dict.fromkeys(names, 0.0)
    how: dict[str, Any] = {"force": force, "temperature": 0.8, "max_new_tokens": 160}
    for seed in range(seeds):
        stream = session.generate(PROMPT, schema=schema, seed=seed, **how)
        list(stream)
        report = stream.report
        assert report is not None and report["finish"] == "stop", report
        sums["tokens"] += report["tokens"]
        sums["forced"] += report["forced"]
        sums["forwards"] += report["target_forwards"]
        sums["drafted"] += report["drafted"]
        sums["up"] += report["bytes"]["up_payload"]
        sums["s"] += report["seconds"]["total"]
    mean = {name: value / seeds for name, value in sums.items()}
    part = mean["forced"] / mean["tokens"]
    told = (f"{mean[name]:.1f}" for name in ("forwards", "drafted"))
    first, last = (
        f"{mean['tokens']:.0f} | {part:.0%}",
        f"{mean['up']:.0f} | {mean['s']:.2f}",
    )
    return " | ".join([first, *told, last])


if __name__ == "__main__":
    main()
