"""``draftwire boards WHAT``: know, examine and supply a board."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Sequence

from draftwire.cli._common import give_json, show
from draftwire.cli._leaf import PROFILES, Leaf
from draftwire.errors import ConfigError
from draftwire.io import align, labelled, list_of, wrapped

if TYPE_CHECKING:
    from draftwire.boards.cores import Cluster
    from draftwire.boards.detect import Detection
    from draftwire.boards.profiles import Profile
    from draftwire.boards.providers import Trial

_HERE = "draftwire.cli.boards"
_ROOT = """
--root DIR =/         look at the files of another machine below DIR; nothing of it is run
--board NAME          take this profile, whatever is found
"""
LEAVES = {
    "detect": Leaf(
        "what this machine is, and what is known of boards",
        f"{_HERE}:detect",
        f"""{_ROOT}{PROFILES}
--no-run              do not run a small model on each execution provider
known:
--all                 instead: list the boards that draftwire knows
--profile [NAME]      instead: the file of what draftwire knows of one of them (default: of
                      this one)
--toml                with --profile: the file alone, the start of a profile of your own
""",
    ),
    "doctor": Leaf(
        "would a draft run here, and what to mend",
        "draftwire.cli.boards.doctor:run",
        f"""{_ROOT}{PROFILES}
--tls-ca PEM          trust the certificates in this file
--insecure            allow plain ws:// to other machines
""",
        about="Would a draft run here, and what mends it if not? Exit code: 0 a draft "
        "would run (warnings or not), 3 something on this machine, 4 the verifier, 5 the "
        "draft keeps it from running.",
        settings=("verifier", "draft", "target", "token_file", "threads"),
    ),
    "bundle": Leaf(
        "everything a board needs, in one signed archive",
        "draftwire.cli.boards.bundle:run",
        """
--board NAME          see `draftwire boards detect --all`
--python X.Y          the board's Python, such as 3.10
--glibc X.Y           the board's C library, if it is an odd one
--out FILE            default: bundle.tar.gz
--key FILE            secret key that signs (--new-key)
--unsigned            do not sign: boards must be told to bear it
--engine {onnxruntime,litert}... >engines  what runs the draft (default: what its package
                      holds files for)
--require NAME==VERSION...  another version than ours, or one wheel more
--wheel FILE...       a wheel of your own in place of ours, such as NVIDIA's
                      onnxruntime_gpu
--without NAME...     leave it out: the board has its own
--group NAME =video   who may use the service
--memory-mib N:int =0  most memory of the service
--cache DIR           where wheels are kept
--dry-run             say which wheels it would hold
instead:
--installer           write install.sh, which checks and installs bundles (default: to
                      stdout)
--new-key FILE        make a key; its public half is FILE.pub
--show-key FILE       print the public half of a key
""",
        settings=("draft", "verifier", "target"),
    ),
}


def profiles(args: argparse.Namespace) -> dict[str, Profile]:
    """Return all profiles, the user's over ours."""
    from draftwire.boards.profiles import load_profiles

    return load_profiles(*args.profile_dir)


def root(args: argparse.Namespace) -> Path:
    """Return the root to look at (ConfigError: it is no folder)."""
    if not args.root.is_dir():
        hint = "name the folder that holds proc, sys and etc"
        raise ConfigError(f"--root {args.root} is no folder", hint=hint)
    return Path(args.root)


def detect(args: argparse.Namespace) -> None:
    """Say what this machine is, or what is known of a board."""
    if args.all:
        return _show_all(args)
    if args.profile is not None:
        return _show_board(args)
    from draftwire.boards.detect import detect

    found = detect(root(args), profiles(args), board=args.board, engines=not args.no_run)
    if give_json(args, found.to_dict()):
        print(found.profile.name if args.quiet else render(found))


def _rows(label: str, texts: Iterable[str]) -> list[str]:
    """Return a line for each text, the label at the first."""
    return [labelled("" if i else label, text) for i, text in enumerate(texts)]


def render(found: Detection) -> str:
    """Return the lines for people."""
    lines = [
        labelled("board", found.title),
        labelled("", f"profile {found.profile.name}; {found.match.how}"),
        labelled("system", _system(found)),
    ]
    if found.l4t is not None:
        hint = f" (JetPack {found.l4t.jetpack})" if found.l4t.jetpack else ""
        lines.append(labelled("L4T", found.l4t.version + hint))
    lines += [labelled("python", _python(found)), labelled("memory", _memory(found))]
    lines += _rows("cores", map(_cluster, found.clusters))
    if found.quota is not None:
        lines.append(labelled("", f"a container may use {found.quota:g} of them"))
    if found.mode is not None:
        lines.append(labelled("power mode", _mode(found)))
    if found.heat_c:
        zones = sorted(found.heat_c.items(), key=lambda item: -item[1])
        heat = list_of(f"{name} {value:.0f} C" for name, value in zones[:4])
        lines.append(labelled("heat", heat))
    lines += _sensors(found) + _engines(found)
    lines += [labelled("note", quirk) for quirk in found.profile.quirks]
    lines += [wrapped(f"warning: {text}", " " * 9) for text in found.warnings]
    return "\n".join(lines)


def _system(found: Detection) -> str:
    parts = [
        found.system.get("PRETTY_NAME", "system not known"),
        f"Linux {found.kernel}" if found.kernel else "",
        found.arch,
        found.libc,
        "in a container" if found.container else "",
    ]
    return ", ".join(part for part in parts if part)


def _python(found: Detection) -> str:
    from draftwire.boards.engines import python_version

    installed = list_of(found.pythons)
    if not found.tree.host:
        return f"{installed} installed there"

    return f"{python_version()} ({sys.executable})"


def _memory(found: Detection) -> str:
    ram = found.memory
    text = f"{amount(ram.total)}, {amount(ram.available)} available"
    text += f", swap {amount(ram.swap)}" if ram.swap else ", no swap"
    if ram.limit is not None:
        text += f", a container may have {amount(ram.limit)}"
    if ram.free_4mb is not None and found.profile.jetson:
        text += f", {ram.free_4mb} free blocks of 4 MB"
    return text


def _cluster(cluster: Cluster) -> str:
    text = f"{len(cluster.possible)} x {cluster.kind} ({span(cluster.possible)})"
    if cluster.online == cluster.possible:
        text += ", all online"
    else:
        text += f", {len(cluster.online)} online ({span(cluster.online)})"
    if cluster.max_hz:
        now = f"{cluster.now_hz / 1e9:.2f} of " if cluster.now_hz else "up to "
        text += f", {now}{cluster.max_hz / 1e9:.2f} GHz"
    if cluster.cap_hz and cluster.max_hz and cluster.cap_hz < cluster.max_hz:
        text += f", capped at {cluster.cap_hz / 1e9:.2f} GHz"
    if cluster.governor:
        text += f", {cluster.governor}"
    return text + (", clock locked" if cluster.locked else "")


def _mode(found: Detection) -> str:
    mode = found.mode
    assert mode is not None
    name = mode.name or (
        f"number {mode.number}" if mode.number is not None else "not known"
    )
    others = f" (of {', '.join(mode.names)}" if mode.names else ""
    if others:
        others += f"; default {mode.default})" if mode.default else ")"
    return name + others


def _sensors(found: Detection) -> list[str]:
    texts = []
    for sensor in found.sensors:
        state = "readable" if sensor.readable else f"not readable: {sensor.why_not}"
        texts.append(f"{sensor.driver}: {list_of(sensor.rails)}; {state}")
    texts = texts or ["no power sensor: joules need a USB meter"]
    for total in found.profile.rails.get("total", ()):
        texts.append(f"{total.get('scope')} = {' + '.join(total.get('rails', ()))}")
    return _rows("sensors", texts)


def _engines(found: Detection) -> list[str]:
    if found.engines is None:
        where = "" if found.tree.host else f"; nothing below {found.tree.root} was run"
        return [labelled("engines", f"not asked{where}")]
    texts = []
    for engine in found.engines:
        why = f"{engine.name}: {engine.why_not}"
        texts.append(f"{engine.name} {engine.version}".rstrip() if engine.usable else why)
        texts += [f"  {_trial(trial)}" for trial in engine.providers]
    return _rows("engines", texts)


def _trial(trial: Trial) -> str:
    from draftwire.boards.providers import short_name

    name = short_name(trial.provider)
    if not trial.ran:
        return f"{name}: no, {trial.why_not}"
    note = f"; {trial.note}" if trial.note else ""
    return f"{name}: yes, it ran a model{note}"


def amount(count: int | None) -> str:
    """Return bytes for people, e.g. ``"7.4 GiB"``."""
    if count is None:
        return "not known"
    value, unit = count / 1024.0, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def span(numbers: Sequence[int]) -> str:
    """Return ``"0-3,6"`` for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"


def _show_board(args: argparse.Namespace) -> None:
    """Say what draftwire knows of a board."""
    from draftwire.boards.profiles import find_profile

    profile = find_profile(profiles=profiles(args), board=args.profile or None).profile
    try:
        text = profile.path.read_text(encoding="utf-8").rstrip()
    except OSError as exc:
        raise ConfigError(f"cannot read {profile.path}: {exc.strerror}") from exc
    head = "" if args.toml else f"# {profile.path}\n\n"
    document = {**profile.raw, "profile": str(profile.path)}
    show(args, document, lambda _: head + text)


def _show_all(args: argparse.Namespace) -> None:
    known = sorted(profiles(args).values(), key=lambda p: (p.generic, p.name))
    boards: list[dict[str, Any]] = [
        {
            "name": p.name,
            "title": p.title,
            "soc": p.soc or None,
            "arch": p.arch or None,
            "variants": [variant.name for variant in p.variants],
            "scopes": [t.get("scope") for t in p.rails.get("total", ())],
            "own": p.own,
            "profile": str(p.path),
        }
        for p in known
    ]

    def table(_: object) -> str:
        rows = [("name", "board", "measures")]
        for p, board in zip(known, boards):
            forms = f" ({', '.join(board['variants'])})" if board["variants"] else ""
            scopes = ", ".join(map(str, board["scopes"])) or "nothing"
            rows.append((p.name, p.title + forms, scopes + (" *" if p.own else "")))
        own = "\n* your own profile" if any(p.own for p in known) else ""
        return align(rows, left=(0, 1, 2)) + own

    show(args, {"schema": "draftwire.boards/1", "boards": boards}, table)
