"""Settings and where each comes from.

Every option of :mod:`draftwire.options` is one. A flag wins over ``DRAFTWIRE_NAME`` in
the environment, that over ``./draftwire.toml``, that over
``$XDG_CONFIG_HOME/draftwire/config.toml``, that over the default. Where a bundle was
installed, its ``etc/draftwire.toml`` stands before the user's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from draftwire.errors import ConfigError
from draftwire.io import did_you_mean, read_toml
from draftwire.options import OPTIONS

FILE_NAME = "draftwire.toml"
PREFIX = "DRAFTWIRE_"
# Read from the environment by other parts: no setting, and no spelling mistake.
_OTHER_VARIABLES = ("DRAFTWIRE_BOARD", "DRAFTWIRE_MODELS", "DRAFTWIRE_PROFILE_DIR")


@dataclass(frozen=True)
class Value:
    """A setting's value and its origin, in words."""

    value: Any
    origin: str


def resolve(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Value]:
    """Return every setting's value and origin.

    ``flags`` are not given where None or missing; ``config`` is read in place of
    ``./draftwire.toml`` of ``folder``. A ConfigError where a file is missing or malformed,
    or a key or value is not one.
    """
    environ = os.environ if environ is None else environ
    values = {name: Value(option.default, "default") for name, option in OPTIONS.items()}
    values.update({name: Value(v, "default") for name, v in (defaults or {}).items()})
    own = config if config is not None else (folder or Path()) / FILE_NAME
    for path, needed in (
        (_installed_file(), False),
        (_user_file(environ), False),
        (own, config is not None),
    ):
        if path is not None and (needed or path.is_file()):
            values.update(_read_file(path))
    values.update(_read_environment(environ))
    for name, option in OPTIONS.items():
        given = flags.get(name)
        if given is not None:
            values[name] = Value(option.parse(given, option.flag), option.flag)
    return values


def _installed_file() -> Path | None:
    """Return the settings of the board that this package was installed on as a bundle.

    The layout is that of ``boards/install``: PREFIX/versions/NAME/... and PREFIX/etc.
    """
    for folder in Path(__file__).resolve().parents:
        start = folder / "bin" / "start.py"
        if folder.parent.name == "versions" and start.is_file():
            return folder.parent.parent / "etc" / FILE_NAME
    return None


def _user_file(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME", "")
    base = environ.get("XDG_CONFIG_HOME", "") or (home and os.path.join(home, ".config"))
    return Path(base) / "draftwire" / "config.toml" if base else None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    variables = {option.variable: option for option in OPTIONS.values()}
    values = {}
    for variable in sorted(environ):
        if variable in variables and environ[variable]:
            option = variables[variable]
            value = option.parse(environ[variable], variable)
            values[option.name] = Value(value, variable)
        elif variable.startswith(PREFIX) and variable not in variables:
            # A variable may be another program's; one that is nearly ours is a slip.
            known = (*variables, *_OTHER_VARIABLES)
            hint = did_you_mean(variable, known, cutoff=0.88)
            if hint and variable not in _OTHER_VARIABLES:
                message = f"there is no setting {variable} (environment)"
                raise ConfigError(message, hint=hint)
    return values


def _read_file(path: Path) -> dict[str, Value]:
    values = {}
    for key, raw in read_toml(path).items():
        option = OPTIONS.get(key)
        if option is None:
            known = f"the settings are {', '.join(OPTIONS)}"
            hint = did_you_mean(key, OPTIONS, known)
            raise ConfigError(f"{path}: there is no setting {key!r}", hint=hint)
        value = option.read(raw, f"{path}: {key}")
        if isinstance(value, Path):  # a file's paths start at the file, not at the user
            value = path.parent / option.rule.convert(str(value))
        values[key] = Value(value, str(path))
    return values
