"""``draftwire boards WHAT``: know, examine and supply a board.

A leaf is a line of ``LEAVES`` and a module with ``add_flags(parser)`` and
``run(args)``; the module imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any, NamedTuple

from draftwire.cli._common import add_common_flags

__all__ = ["LEAVES", "Leaf", "register"]


class Leaf(NamedTuple):
    """One ``draftwire boards`` command.

    Attributes:
        summary: One line for ``draftwire boards --help``.
        module: Has ``add_flags(parser)`` and ``run(args)``, which returns the exit code.
    """

    summary: str
    module: str


LEAVES = {
    "detect": Leaf("what this machine is", "draftwire.cli._boards_detect"),
    "doctor": Leaf(
        "would a draft run here, and what to mend", "draftwire.cli._boards_doctor"
    ),
    "list": Leaf("the boards that draftwire knows", "draftwire.cli._boards_list"),
    "show": Leaf("what draftwire knows of one board", "draftwire.cli._boards_show"),
    "bundle": Leaf(
        "everything a board needs, in one signed archive", "draftwire.cli._boards_bundle"
    ),
    "key": Leaf("the key that signs bundles", "draftwire.cli._boards_key"),
    "installer": Leaf(
        "the install.sh that checks and installs bundles", "draftwire.cli._boards_installer"
    ),
}


def register(subparsers: Any) -> None:
    """Add the command and its leaves."""
    parser = subparsers.add_parser(
        "boards",
        help="know, examine and supply a board",
        description="Know, examine and supply a board.",
    )
    leaves = parser.add_subparsers(dest="leaf", metavar="WHAT", required=True)
    for name, leaf in LEAVES.items():
        one = leaves.add_parser(name, help=leaf.summary, description=leaf.summary)
        importlib.import_module(leaf.module).add_flags(one)
        add_common_flags(one)
        one.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    return int(importlib.import_module(LEAVES[args.leaf].module).run(args))
