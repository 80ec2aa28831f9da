"""Where the reference family of models is: the embedded default of every command."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from draftwire.errors import ConfigError
from draftwire.io import did_you_mean

DRAFT = "reference.draft"


def models_folder() -> Path:
    """Return the folder with the reference family.

    ``DRAFTWIRE_MODELS`` names it; else it is ``./models``; else the ``models`` folder of
    the checkout that this package runs from; else the wheel ``draftwire-models``
    (ConfigError: there is no such folder, or it holds no ``reference.draft``).
    """
    named = os.environ.get("DRAFTWIRE_MODELS", "")
    if named:
        folder = Path(named).expanduser()
        if not (folder / DRAFT).is_dir():
            raise ConfigError(
                f"DRAFTWIRE_MODELS is {named}, and there is no {DRAFT} in it",
                hint="name the folder that holds reference.draft and v1.target",
            )
        return folder
    checkout = Path(__file__).resolve().parents[2] / "models"
    spec = find_spec("draftwire_models")
    installed = (spec and spec.submodule_search_locations) or ()
    for folder in (Path("models"), checkout, *map(Path, installed)):
        if (folder / DRAFT).is_dir():
            return folder
    raise ConfigError(
        f"no models folder with {DRAFT} here, and draftwire-models is not installed",
        hint="name --draft, or pip install 'draftwire[board]', which brings the "
        "reference models",
    )


def draft_path() -> Path:
    """Return the folder of the frozen reference draft."""
    return models_folder() / DRAFT


def target_names() -> list[str]:
    """Return the names of the reference targets, sorted: ``["v1", "v2", "v3"]``."""
    return sorted(path.name[: -len(".target")] for path in models_folder().glob("*.target"))


def target_path(name: str) -> Path:
    """Return the folder of the reference target ``name``, e.g. ``"v1"`` (ConfigError: there
    is no such target)."""
    folder = models_folder()
    path = folder / f"{name}.target"
    if os.sep in name or not path.is_dir():
        names = target_names()
        hint = did_you_mean(name, names, f"it holds {', '.join(names)}")
        raise ConfigError(f"there is no target {name!r} in {folder}", hint=hint)
    return path
