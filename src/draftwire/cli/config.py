"""``draftwire config``: the settings, where each comes from, what each may be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Sequence

from draftwire.cli import _common
from draftwire.cli._leaf import Leaf
from draftwire.options import GROUPS, OPTIONS, Doors, Options, options_of

LEAF = Leaf(
    "show the settings and where each comes from",
    "draftwire.cli.config:run",
    """
[WHAT] {show,options} =show  every setting; or the reference of all options, as Markdown
--origin                     and where each value comes from
--completion {bash,zsh,fish}  instead: the script that completes commands, flags and their
                             words in this shell
""",
    about="Print every setting; the first of flag, DRAFTWIRE_* variable, ./draftwire.toml, "
    "the user's config.toml and the default wins. A completion goes to "
    "~/.local/share/bash-completion/completions/draftwire, to "
    "~/.config/fish/completions/draftwire.fish, or is sourced in ~/.zshrc.",
)


def run(args: argparse.Namespace) -> None:
    """Print the settings as lines, or as one JSON document; or docs/options.md."""
    if args.completion:
        from draftwire.cli.completion import script

        print(script(args.completion), end="")
        return
    if args.what == "options":
        print(reference(), end="")
        return
    values = _common.read_settings(args)
    rows = {
        name: {"value": _plain(name, v.value), "origin": v.origin}
        for name, v in values.items()
    }
    free = _common.give_json(args, {"schema": "draftwire.config/1", "settings": rows})
    if free and not (args.json and args.quiet):
        for name, found in values.items():
            value = _shown(name, found.value)
            line = f"{name:<20} {value}"
            print(f"{line:<52} {found.origin}" if args.origin else line)


def _shown(name: str, value: Any) -> Any:
    if value in (None, "", ()):
        return "(unset)"
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    if value is not None and OPTIONS[name].secret:
        return "(set)"
    return str(value) if isinstance(value, Path) else value


INTRODUCTION = """\
# Options

Every option of a session and of a stream: its name, what it takes, its default. This page
is what `draftwire config options` prints.

An option is an argument of `draftwire.connect` or of `session.generate` (and of their
twins in `draftwire.aio`), a key of a file of settings, a variable `DRAFTWIRE_NAME` in the
environment, a flag of `draftwire generate`, `chat`, `demo` and `service run`, and, where
it belongs to a stream, a key of `draftwire` in a request to the service.

A flag wins over the environment, that over `./draftwire.toml` (or the file that
`--config` names), that over `~/.config/draftwire/config.toml`, that over an installed
bundle's `etc/draftwire.toml`, that over the default; `draftwire config show --origin`
tells which it was. A wrong value is refused with the same sentence everywhere, before
anything is sent. Switches have a flag that turns them off: `--no-cut`. Paths in a file
begin at that file.
"""


def reference() -> str:
    """Return the reference of all options, as Markdown."""
    parts = [INTRODUCTION]
    groups: Sequence[type[Options]] = (*GROUPS, Doors)
    for group in groups:
        about = (group.__doc__ or "").strip()
        parts.append(f"\n## {group.title[0].upper()}{group.title[1:]}\n\n{about}\n\n")
        parts.append("| option | flag | takes | default | |\n|---|---|---|---|---|\n")
        for o in options_of(group):
            default = "" if o.default in (None, "", ()) else f"`{o.default}`".lower()
            flag = "" if o.secret else f"`{o.flag}`"
            row = (f"`{o.name}`", flag, o.rule.wants, default, o.help)
            parts.append("| " + " | ".join(x.replace("|", "\\|") for x in row) + " |\n")
    return "".join(parts)
