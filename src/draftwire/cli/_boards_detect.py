"""``draftwire boards detect``."""

from __future__ import annotations

import argparse

from draftwire.errors import ConfigError

__all__ = ["add_flags", "run"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    raise ConfigError("not there yet")
