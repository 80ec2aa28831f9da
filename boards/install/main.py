"""The words of ``install.sh``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Sequence

from draftwire.boards.install.archive import check_bundle, read_key
from draftwire.boards.install.disk import Disk, trouble_of
from draftwire.boards.install.layout import DEFAULT_PREFIX, Layout
from draftwire.boards.install.service import Service
from draftwire.boards.install.steps import Installer
from draftwire.boards.install.trouble import USAGE, InstallError

_USAGE = """\
  install.sh BUNDLE --key KEY      install, or update (the key is kept: later without)
  install.sh check BUNDLE          look at a bundle: signature, hashes; write nothing
  install.sh rollback              back to the version before
  install.sh status | verify       what is installed; compare it with its manifest
  install.sh uninstall             remove everything
"""
_VERBS = ("install", "check", "rollback", "status", "verify", "uninstall")


def run(words: Sequence[str] | None = None) -> int:
    """Run the installer; return its exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(words)
    left = args.words
    args.verb = left.pop(0) if left and left[0] in _VERBS else "install"
    args.bundle = Path(left.pop(0)) if left and args.verb in _VERBS[:2] else None
    if left:
        parser.error(f"{left[0]} is one word too many")
    mask = os.umask(0o022)  # the service's user must be able to read what root installs
    try:
        return _act(args)
    except (InstallError, OSError) as found:
        exc = found if isinstance(found, InstallError) else trouble_of(found)
        print(f"install.sh: error: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return exc.code
    except KeyboardInterrupt:
        print("install.sh: interrupted; what ran before still does", file=sys.stderr)
        return 130
    finally:
        os.umask(mask)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.sh",
        usage="install.sh [VERB] [BUNDLE] [options]\n\n" + _USAGE,
        description="Installs a draftwire bundle; no network, no pip, no wheels needed.",
    )
    add = parser.add_argument
    said = f"{', '.join(_VERBS)} (default: install), and bundle.tar.gz"
    add("words", nargs="*", metavar="WORD", help=said)
    add("--key", metavar="KEY", help="the maker's public key (ed25519:...) or its file")
    add("--replace-key", action="store_true", help="trust --key from now on")
    add("--allow-unsigned", action="store_true", help="take a bundle without signature")
    add("--prefix", default=DEFAULT_PREFIX, help="where (default: %(default)s)")
    add(
        "--rootfs",
        type=Path,
        metavar="DIR",
        help="an unpacked root file system, before it is flashed; nothing of it is run",
    )
    add("--python", metavar="PATH", help="the board's Python, if it is in an odd place")
    add("--dry-run", action="store_true", help="say what would be done, write nothing")
    add("--no-start", action="store_true", help="write all files, start no service")
    add(
        "--no-system",
        dest="system",
        action="store_false",
        default=None,
        help="no unit, no udev rule: prefix alone; remembered",
    )
    add("--system", action="store_true", default=None, help="with them from now on")
    add("--no-compile", action="store_true", help="make no byte code")
    add("--keep-config", action="store_true", help="uninstall: keep settings and token")
    add("-q", "--quiet", action="store_true", help="say less")
    return parser


def _act(args: argparse.Namespace) -> int:
    def say(line: str) -> None:
        if not args.quiet or args.dry_run:
            print(line)

    root = Path(os.path.abspath(args.rootfs)) if args.rootfs else Path("/")
    if not root.is_dir() or (args.rootfs and not (root / "etc").is_dir()):
        raise InstallError(f"{root} is no root file system: it has no etc", USAGE)
    if args.verb in _VERBS[:2] and args.bundle is None:
        raise InstallError("name a BUNDLE", USAGE, "install.sh --help")
    key = read_key(args.key) if args.key else None
    disk = Disk(root, dry=args.dry_run, say=say)
    service = Service(disk, start=not args.no_start, compile_bytecode=not args.no_compile)
    installer = Installer(disk, Layout(args.prefix), service, say, system=args.system)
    if args.verb == "check":
        checked = check_bundle(
            args.bundle, key, unsigned=key is None and args.allow_unsigned
        )
        say(json.dumps(checked.manifest, indent=2))
    elif args.verb == "install":
        name = installer.install(
            args.bundle,
            key=key,
            replace_key=args.replace_key,
            unsigned=args.allow_unsigned,
            python=args.python,
        )
        say(f"{'would be' if args.dry_run else 'is'} in use: {name}")
    elif args.verb == "rollback":
        say(f"{'would be' if args.dry_run else 'is'} in use: {installer.rollback()}")
    elif args.verb == "uninstall":
        installer.uninstall(keep_config=args.keep_config)
        say("removed" if not args.dry_run else "nothing was removed")
    elif args.verb == "status":
        print(json.dumps(installer.status(), indent=2))
    else:
        wrong = installer.verify()
        say(f"{wrong} files differ" if wrong else "all files are as they were signed")
        return 5 if wrong else 0
    return 0
