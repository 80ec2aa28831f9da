"""``python -m studies.sampling``: every scheme on the same prompts; what a token costs."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from draftwire.cli._common import fields_of
from draftwire.errors import ConfigError
from draftwire.reference import draft_path, target_path
from studies.command import Say, start
from studies.sampling import speed, table

FLAGS = """
--draft DIR              default: the reference draft
--target DIR             default: the reference target v1
--text FILE              held-out text to cut prompts from (default: built-in sentences)
--schemes NAME,NAME:words =  (default: all)
--block N:whole =4       drafted tokens
--temperature T:number =0.8
--top-k N:whole =50
--top-p P:number =1
--seed N:whole =1
--tokens N:whole =64     new tokens of each prompt
--prompts N:whole =12
--prompt-tokens N:whole =32  length of prompts cut from a text
speed:
--speed                  instead: what choosing a token costs at real vocabularies, without
                         any model
--vocab N,N:counts =49152,151936  sizes of vocabularies
"""


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Measure."""
    if args.speed:
        if not all(2 <= size < 1 << 24 for size in args.vocab):
            raise ConfigError("--vocab is out of range", hint="2 to 16777215")
        rows = speed.sampling_speed(args.vocab)
        return {"schema": "draftwire.sampling_speed/1", "rows": rows}
    return table.sampling_table(
        args.draft or draft_path(),
        args.target or target_path("v1"),
        table.Settings(**fields_of(table.Settings, args)),
        text=args.text,
    )


def render(document: dict[str, Any]) -> str:
    """Return the document as text."""
    if document["schema"] == "draftwire.sampling_speed/1":
        return speed.render(document["rows"])
    return table.render(document)


QUESTION = "What each scheme keeps and sends; with --speed what choosing a token costs."
main = partial(start, "studies.sampling", QUESTION, FLAGS, study, render)

if __name__ == "__main__":
    sys.exit(main())
