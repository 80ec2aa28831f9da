"""``draftwire boards bundle``: what a board needs, its installer, and who signs it."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from draftwire.boards.install.script import installer_script
from draftwire.boards.profiles import find_profile
from draftwire.boards.ship import signing, wheels
from draftwire.boards.ship.bundle import Content, write_bundle
from draftwire.boards.ship.userlands import choose_userland, userlands_of
from draftwire.cli import _common
from draftwire.errors import ConfigError
from draftwire.io import replacing, writing
from draftwire.packages import DraftPackage, load_draft
from draftwire.reference import draft_path

SCHEMA = "draftwire.bundled/1"
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)\Z")


def run(args: argparse.Namespace) -> None:
    """Make a bundle, an installer or a key."""
    if sum(map(bool, (args.installer, args.new_key, args.show_key))) > 1:
        raise ConfigError("--installer, --new-key and --show-key: give one at a time")
    if args.installer:
        return _installer(args)
    if args.new_key or args.show_key:
        return _key(args)
    if args.board is None:
        raise ConfigError("no --board", hint="draftwire boards detect --all lists them")
    out = args.out or Path("bundle.tar.gz")
    values = {name: v.value for name, v in _common.read_settings(args).items()}
    if values["verifier"]:
        from draftwire.transport.dial import check_url

        check_url(values["verifier"], insecure=True)  # which the board's settings may say
    signer = None
    if args.key is not None:
        signer = signing.load_signer(args.key)
    elif not args.unsigned and not args.dry_run:
        hint = "--new-key FILE makes one; --unsigned goes without"
        raise ConfigError("a bundle is signed, and no --key says by whom", hint=hint)
    profile = find_profile(board=args.board).profile
    userland = choose_userland(
        profile.name, userlands_of(profile.raw), args.python, args.glibc
    )
    package = load_draft(values["draft"] or draft_path())
    local = [p.name.split("-")[0].lower().replace("_", "-") for p in args.wheel]
    for path in args.wheel:
        wheels.check_wheel(path, userland, profile.arch, local=True)
    engines = args.engines or _engines(package, profile.name, profile.arch)
    wanted = wheels.wanted_wheels(
        profile.arch,
        userland.python,
        engines=[e for e in engines if not any(n.startswith(e) for n in local)],
        without=[*map(wheels.known_wheel, args.without), *local],
        changed=dict(_requirement(text) for text in args.require),
    )
    brought = tuple(sorted(_module(name) for name in local))
    target = values["target"]
    content = Content(
        board=profile.name,
        title=profile.title,
        arch=profile.arch,
        userland=userland,
        draft=package.path,
        draft_id=package.id,
        wheels=args.wheel,
        modules=wanted.modules + brought,
        system_modules=[m for m in wanted.system_modules if m not in brought],
        verifier=values["verifier"] or "",
        group=args.group,
        memory_mib=args.memory_mib,
        settings={"target": str(target)} if target else {},
    )
    resolved = wheels.resolve_wheels(wanted, userland, profile.arch, cache=args.cache)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "board": profile.name,
        "userland": {
            "name": userland.name,
            "python": userland.python,
            "glibc": userland.glibc,
            "arch": profile.arch,
        },
        "draft": {"name": package.name, "id": package.id},
        "wheels": [
            *({"filename": w.filename, "sha256": w.sha256} for w in resolved),
            *({"filename": path.name, "sha256": None} for path in args.wheel),
        ],
    }
    if not args.dry_run:
        fetched = wheels.fetch_wheels(resolved, userland, profile.arch, cache=args.cache)
        content = dataclasses.replace(content, wheels=[*fetched, *args.wheel])
        manifest = write_bundle(content, out, signer)
        document.update(
            id=manifest["id"],
            file=str(out),
            bytes=out.stat().st_size,
            installed_bytes=manifest["installed_bytes"],
            key=None if signer is None else signer.key.text,
        )
    if _common.give_json(args, document) and not args.quiet:
        _print(document)


def _installer(args: argparse.Namespace) -> None:
    """Write ``install.sh``."""
    script = installer_script()
    digest = hashlib.sha256(script).hexdigest()
    if args.out is None and args.json is None:
        sys.stdout.write(script.decode("ascii"))
        return
    if args.out is not None:
        with writing(args.out), replacing(args.out) as partial:
            partial.write_bytes(script)
            partial.chmod(0o755)
    document = {"schema": "draftwire.installer/1", "sha256": digest, "bytes": len(script)}
    _common.give_json(args, document)
    if args.json is None and not args.quiet:
        print(f"{args.out}: sha256 {digest}")


def _key(args: argparse.Namespace) -> None:
    """Make a key, or show the public half of one."""
    new = args.new_key
    key = signing.make_key(new) if new else signing.public_key(args.show_key)
    if _common.give_json(args, {"schema": "draftwire.key/1", "public_key": key.text}):
        print(key.text)
        if new and not args.quiet:
            print(f"the secret half is {new}: keep it off the boards, and keep a copy")
            print(f"the public half is {new}.pub: boards get it, `install.sh --key`")


def _print(document: dict[str, Any]) -> None:
    place = document["userland"]
    print(
        f"{document['board']}: {place['name']}, Python {place['python']}, {place['arch']}"
    )
    for wheel in document["wheels"]:
        print(f"  {wheel['filename']}")
    if "id" not in document:
        return
    signed = f"signed by {document['key']}" if document["key"] else "NOT SIGNED"
    print(
        f"{document['file']}: {document['bytes'] / 1e6:.1f} MB, "
        f"{document['installed_bytes'] / 1e6:.0f} MB installed, {signed}"
    )
    trust = document["key"] or "--allow-unsigned"
    key = f"--key {trust}" if document["key"] else trust
    print(f"on the board: sudo sh install.sh {Path(document['file']).name} {key}")
    print("`draftwire boards bundle --installer --out install.sh` makes that script here")


def _module(distribution: str) -> str:
    """Return what a wheel of ours is imported as; most go by their own name."""
    if distribution.startswith("onnxruntime"):  # -gpu and others hold the same module
        return "onnxruntime"
    return distribution.replace("-", "_")


def _engines(package: DraftPackage, board: str, arch: str) -> list[str]:
    """Return the engine that the draft's hint names for the board, or one it has."""
    held = {file.engine for file in package.files.values() if file.engine}
    hinted = str(package.hints.get(board, {}).get("engine"))
    if hinted in held:
        return [hinted]
    first = ("litert", "onnxruntime") if arch == "armv7l" else ("onnxruntime", "litert")
    return [next((engine for engine in first if engine in held), "onnxruntime")]


def _requirement(text: str) -> tuple[str, str]:
    found = _REQUIREMENT.match(text)
    if not found:
        raise ConfigError(f"--require {text} is not NAME==VERSION")
    return found.group(1).lower().replace("_", "-"), found.group(2)
