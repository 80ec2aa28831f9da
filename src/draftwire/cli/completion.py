"""``draftwire config --completion SHELL``: what completes commands, flags and their words.

The script is static: it is made once of the commands as they are, and no Python starts
at a Tab.
"""

from __future__ import annotations

import argparse
from typing import Any, Iterator

_BASH = """\
_draftwire() {
    local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD-1]} path= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in -*) break ;; *) path+="${path:+ }${COMP_WORDS[i]}" ;; esac
    done
    local words= values=
    while :; do
        case "$path" in
%s
        esac
        [[ -n $words || -z $path ]] && break
        [[ $path == *" "* ]] && path=${path%% *} || path=
    done
    case "$path $last" in
%s
    esac
    if [[ -n $values ]]; then words=$values; fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _draftwire draftwire
"""


def words_of(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, tuple[str, ...]]]]:
    """Yield each command's words, and what may follow it: flags with their values.

    Commands come with no values, as their own words follow.
    """
    found: dict[str, tuple[str, ...]] = {}
    groups: Any = None
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            groups = action.choices
            found.update(dict.fromkeys(groups, ()))
            continue
        values = tuple(map(str, action.choices or ()))
        if not values and "|" in str(action.metavar):  # auto|cpu|cuda: words, not FILE
            words = str(action.metavar).split("|")
            values = tuple(word for word in words if word.islower())
        if action.dest == "board":
            from draftwire.boards.profiles import load_profiles

            values = tuple(sorted(load_profiles()))
        if action.option_strings:
            found.update(dict.fromkeys(action.option_strings, values))
        else:
            found.update(dict.fromkeys(values, ()))
    yield path, found
    for name, child in (groups or {}).items():
        yield from words_of(child, (*path, name))


def script(shell: str) -> str:
    """Return the script for ``bash``, ``zsh`` or ``fish``."""
    from draftwire.cli import whole_parser

    commands = list(words_of(whole_parser()))
    return _fish(commands) if shell == "fish" else _bash(commands, shell)


def _bash(commands: list[Any], shell: str) -> str:
    cases, values = [], []
    for path, found in commands:
        name = " ".join(path)
        cases.append(f'            "{name}") words="{" ".join(found)}" ;;')
        for flag, choices in found.items():
            if choices:
                values.append(f'        "{name} {flag}") values="{" ".join(choices)}" ;;')
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + _BASH % ("\n".join(cases), "\n".join(values))


def _fish(commands: list[Any]) -> str:
    lines = ["complete -c draftwire -f"]
    for path, found in commands:
        seen = " ".join(path)
        inside = f"-n '__fish_seen_subcommand_from {path[-1]}'" if path else ""
        if not path:
            inside = "-n __fish_use_subcommand"
        elif len(path) > 1:
            inside = (
                f"-n '__fish_seen_subcommand_from {path[0]}; and "
                f"__fish_seen_subcommand_from {path[1]}'"
            )
        lines.append(f"# draftwire {seen}".rstrip())
        for word, choices in found.items():
            if word.startswith("--"):
                takes = f" -xa '{' '.join(choices)}'" if choices else ""
                lines.append(f"complete -c draftwire {inside} -l {word[2:]}{takes}")
            elif not word.startswith("-"):
                lines.append(f"complete -c draftwire {inside} -a {word}")
    return "\n".join(lines) + "\n"
