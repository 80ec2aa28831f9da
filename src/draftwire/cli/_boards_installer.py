"""``draftwire boards installer``: the script that checks and installs bundles."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from draftwire.cli._common import write_json
from draftwire.errors import ConfigError

__all__ = ["add_flags", "run"]

SCHEMA = "draftwire.installer/1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there (default: stdout)"
    )


def run(args: argparse.Namespace) -> int:
    """Write ``install.sh``."""
    import hashlib

    from draftwire.boards.install.script import installer_script

    script = installer_script()
    digest = hashlib.sha256(script).hexdigest()
    if args.out is None and args.json is None:
        sys.stdout.write(script.decode("ascii"))
        return 0
    if args.out is not None:
        try:
            args.out.write_bytes(script)
            args.out.chmod(0o755)
        except OSError as exc:
            raise ConfigError(f"cannot write {args.out}: {exc.strerror}") from exc
    if args.json is not None:
        write_json({"schema": SCHEMA, "sha256": digest, "bytes": len(script)}, args.json)
    elif not args.quiet:
        print(f"{args.out}: sha256 {digest}")
    return 0
