"""Flags and profiles that the leaves of ``draftwire boards`` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from draftwire.errors import ConfigError

if TYPE_CHECKING:
    from draftwire.boards.profiles import Profile

__all__ = ["add_profile_flag", "add_root_flags", "profiles", "root"]


def add_profile_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--profile-dir``."""
    parser.add_argument(
        "--profile-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with board profiles of your own, before those of "
        "DRAFTWIRE_PROFILE_DIR and ~/.config/draftwire/boards (may be repeated)",
    )


def add_root_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--root`` and ``--board``."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="look at the files of another machine below DIR; nothing of it is run",
    )
    parser.add_argument(
        "--board", metavar="NAME", help="take this profile, whatever is found"
    )


def profiles(args: argparse.Namespace) -> dict[str, Profile]:
    """Return all profiles, the user's over ours."""
    from draftwire.boards.profiles import load_profiles

    return load_profiles(*args.profile_dir)


def root(args: argparse.Namespace) -> Path:
    """Return the root to look at.

    Raises:
        ConfigError: It is no folder.
    """
    if not args.root.is_dir():
        raise ConfigError(
            f"--root {args.root} is no folder",
            hint="name the folder that holds proc, sys and etc",
        )
    return Path(args.root)
