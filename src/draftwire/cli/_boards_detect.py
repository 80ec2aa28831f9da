"""``draftwire boards detect``: what this machine is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from draftwire.cli import _boards_common as common
from draftwire.cli._boards_text import amount, labelled, list_of, span, wrapped
from draftwire.cli._common import write_json

if TYPE_CHECKING:
    from draftwire.boards.cores import Cluster
    from draftwire.boards.detect import Detection
    from draftwire.boards.providers import Trial

__all__ = ["add_flags", "render", "run"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    common.add_root_flags(parser)
    common.add_profile_flag(parser)
    parser.add_argument(
        "--no-run",
        action="store_true",
        help="do not run a small model on each execution provider",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from draftwire.boards.detect import detect

    found = detect(
        common.root(args),
        common.profiles(args),
        board=args.board,
        engines=not args.no_run,
    )
    if args.json is not None:
        write_json(found.to_dict(), args.json)
    if args.json != "-":
        print(f"{found.profile.name}" if args.quiet else render(found))
    return 0


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
    lines += [
        labelled("cores" if i == 0 else "", _cluster(cluster))
        for i, cluster in enumerate(found.clusters)
    ]
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
    import sys

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
    lines = []
    for i, sensor in enumerate(found.sensors):
        state = "readable" if sensor.readable else f"not readable: {sensor.why_not}"
        text = f"{sensor.driver}: {list_of(sensor.rails)}; {state}"
        lines.append(labelled("sensors" if i == 0 else "", text))
    if not lines:
        lines.append(labelled("sensors", "no power sensor: joules need a USB meter"))
    for total in found.profile.rails.get("total", ()):
        rails = " + ".join(total.get("rails", ()))
        lines.append(labelled("", f"{total.get('scope')} = {rails}"))
    return lines


def _engines(found: Detection) -> list[str]:
    if found.engines is None:
        where = "" if found.tree.host else f"; nothing below {found.tree.root} was run"
        return [labelled("engines", f"not asked{where}")]
    lines = []
    for i, engine in enumerate(found.engines):
        text = f"{engine.name} {engine.version}".rstrip()
        if not engine.usable:
            text = f"{engine.name}: {engine.why_not}"
        lines.append(labelled("engines" if i == 0 else "", text))
        lines += [labelled("", f"  {_trial(trial)}") for trial in engine.providers]
    return lines


def _trial(trial: Trial) -> str:
    from draftwire.boards.providers import short_name

    name = short_name(trial.provider)
    if not trial.ran:
        return f"{name}: no, {trial.why_not}"
    note = f"; {trial.note}" if trial.note else ""
    return f"{name}: yes, it ran a model{note}"
