"""Settings and where each comes from.

A flag wins over ``DRAFTWIRE_NAME`` in the environment, that over ``./draftwire.toml``,
that over ``$XDG_CONFIG_HOME/draftwire/config.toml``, that over the default.
"""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

from draftwire.errors import ConfigError

__all__ = ["SETTINGS", "Setting", "Value", "resolve"]

FILE_NAME = "draftwire.toml"
PREFIX = "DRAFTWIRE_"
# Read from the environment by other parts: no setting, and no spelling mistake.
_OTHER_VARIABLES = ("DRAFTWIRE_BOARD", "DRAFTWIRE_MODELS", "DRAFTWIRE_PROFILE_DIR")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: Key in a file; upper case with the prefix it is the variable.
        kind: Turns text into the value: ``str``, ``int``, ``float`` or ``Path``.
        default: The value when nothing names one; None means unset.
        help: One line, also the help of the flag.
        check: True for a value within range.
        wants: What ``check`` asks for, in words.
    """

    name: str
    kind: Callable[[Any], Any]
    default: Any
    help: str
    check: Callable[[Any], bool] = lambda value: True
    wants: str = ""

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """Name of the command-line flag."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Value:
    """A setting's value and its origin, in words."""

    value: Any
    origin: str


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("verifier", str, None, "URL of the verifier, ws://HOST:PORT"),
        Setting("draft", Path, None, "draft package (default: the reference draft)"),
        Setting(
            "target", str, None, "name of the target at the verifier (default: its newest)"
        ),
        Setting("token_file", Path, None, "file with the verifier's bearer token"),
        Setting("tls_ca", Path, None, "trust the certificates in this file"),
        Setting("tls_cert", Path, None, "certificate to show to the verifier (mutual TLS)"),
        Setting("tls_key", Path, None, "its key, if that is in a file of its own"),
        Setting(
            "scheme", str, None, "greedy, or coupled (the default above temperature 0)"
        ),
        Setting(
            "temperature",
            float,
            0.0,
            "0 takes the likeliest token",
            lambda value: 0 <= value <= 100,
            "a number from 0 to 100",
        ),
        Setting(
            "top_k",
            int,
            0,
            "sample among the k likeliest tokens (0: all)",
            lambda value: value >= 0,
            "0 or more",
        ),
        Setting(
            "top_p",
            float,
            1.0,
            "sample within this probability mass",
            lambda value: 0 < value <= 1,
            "above 0 and at most 1",
        ),
        Setting(
            "block",
            int,
            None,
            "tokens drafted a block (default: 4; a race leaves it to --controller auto)",
            lambda value: 1 <= value <= 255,
            "1 to 255",
        ),
        Setting(
            "precision",
            str,
            None,
            "which of the draft's models to run, e.g. int8 (default: the draft's choice)",
        ),
        Setting(
            "engine",
            str,
            None,
            "onnxruntime or litert (default: what is installed)",
            lambda value: value in ("onnxruntime", "litert"),
            "onnxruntime or litert",
        ),
        Setting(
            "provider",
            str,
            None,
            "where onnxruntime computes: cpu, cuda, tensorrt or auto (default: auto)",
            lambda value: value in ("auto", "cpu", "cuda", "tensorrt"),
            "auto, cpu, cuda or tensorrt",
        ),
        Setting(
            "threads",
            int,
            None,
            "threads of the draft (default: 1)",
            lambda value: value >= 1,
            "1 or more",
        ),
    )
}


def resolve(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> dict[str, Value]:
    """Return every setting's value and origin.

    Args:
        flags: Values from the command line; None and missing mean not given.
        config: A file to read in place of ``./draftwire.toml``.
        environ: The environment.
        folder: Where ``draftwire.toml`` is looked for; the current folder.

    Raises:
        ConfigError: A file is missing or malformed, or a key or value is not one.
    """
    environ = os.environ if environ is None else environ
    values = {name: Value(s.default, "default") for name, s in SETTINGS.items()}
    own = config if config is not None else (folder or Path()) / FILE_NAME
    for path, needed in ((_user_file(environ), False), (own, config is not None)):
        if path is not None and (needed or path.is_file()):
            values.update(_read_file(path))
    values.update(_read_environment(environ))
    for name, setting in SETTINGS.items():
        if flags.get(name) is not None:
            values[name] = Value(_convert(setting, flags[name], setting.flag), setting.flag)
    return values


def _user_file(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME", "")
    base = environ.get("XDG_CONFIG_HOME", "") or (home and os.path.join(home, ".config"))
    return Path(base) / "draftwire" / "config.toml" if base else None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    variables = {setting.variable: setting for setting in SETTINGS.values()}
    values = {}
    for variable in sorted(environ):
        if variable in variables and environ[variable]:
            setting = variables[variable]
            values[setting.name] = Value(
                _convert(setting, environ[variable], variable), variable
            )
        elif variable.startswith(PREFIX) and variable not in variables:
            # A variable may be another program's; one that is nearly ours is a slip.
            close = difflib.get_close_matches(
                variable, [*variables, *_OTHER_VARIABLES], n=1, cutoff=0.88
            )
            if close and variable not in _OTHER_VARIABLES:
                raise ConfigError(
                    f"there is no setting {variable} (environment)",
                    hint=f"did you mean {close[0]}?",
                )
    return values


def _read_file(path: Path) -> dict[str, Value]:
    values = {}
    for key, raw in _load_toml(path).items():
        setting = SETTINGS.get(key)
        if setting is None:
            close = difflib.get_close_matches(key, list(SETTINGS), n=1)
            raise ConfigError(
                f"{path}: there is no setting {key!r}",
                hint=f"did you mean {close[0]}?"
                if close
                else f"the settings are {', '.join(SETTINGS)}",
            )
        value = _convert(setting, raw, f"{path}: {key}")
        if isinstance(value, Path):  # a file's paths start at the file, not at the user
            value = path.parent / value
        values[key] = Value(value, str(path))
    return values


def _load_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as handle:
            return dict(tomllib.load(handle))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc


def _convert(setting: Setting, raw: Any, where: str) -> Any:
    wants = setting.wants or {int: "a whole number", float: "a number"}.get(
        setting.kind,  # type: ignore[call-overload]
        "text",
    )
    complaint = ConfigError(f"{where} is {raw!r}", hint=f"it must be {wants}")
    if isinstance(raw, (bool, list, dict)) or (
        setting.kind is int and isinstance(raw, float)
    ):
        raise complaint
    if setting.kind in (str, Path) and not isinstance(raw, (str, Path)):
        raise complaint
    try:
        value = setting.kind(raw)
    except (TypeError, ValueError):
        raise complaint from None
    if isinstance(value, Path):
        value = value.expanduser()
    if not setting.check(value):
        raise complaint
    return value
