"""Which engine runs a draft package on this device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from draftwire.errors import ConfigError
from draftwire.io import version_tuple

if TYPE_CHECKING:
    from draftwire.packages import DraftPackage, PackageFile


# Engine names of ``draft.json``, the one preferred first, and what opens their files.
ENGINES = {
    "onnxruntime": "draftwire.runtime.engines.onnx",
    "litert": "draftwire.runtime.engines.litert",
}
# The libraries that have it, and the extra that brings one.
_LIBRARIES = {
    "onnxruntime": ("draftwire[ort]", "onnxruntime"),
    "litert": (
        *("draftwire[tflite]", "ai_edge_litert.interpreter"),
        "tflite_runtime.interpreter",
    ),
}


def board_hint(package: DraftPackage) -> tuple[tuple[str, str, int] | None, str]:
    """Return engine, precision and threads that the package hints at for this board (as
    ``draftwire bench device --tune`` found), and why they cannot be followed, or "": a hint
    is advice, and what is wrong with it a warning."""
    hints = package.hints
    if not hints:
        return None, ""
    from draftwire.boards.profiles import find_profile

    board = find_profile().profile.name
    found = hints.get(board)
    if found is None:
        return None, ""
    engine, precision = found.get("engine"), found.get("precision")
    threads = found.get("threads")
    start = f"the draft's hint for {board} is not followed: "
    models = {(f.engine, f.precision) for f in package.files.values() if f.precision}
    if (str(engine), str(precision)) not in models or str(engine) not in ENGINES:
        return None, f"{start}the package has no {precision!r} model for {engine!r}"
    if type(threads) is not int or not 1 <= threads <= 256:
        return None, f"{start}it says {threads!r} threads"
    if not importable(str(engine)):
        return None, f"{start}{engine} is not installed"
    return (str(engine), str(precision), threads), ""


def choose_engine(
    package: DraftPackage, precision: str | None = None, engine: str | None = None
) -> tuple[str, PackageFile]:
    """Return the engine's name and the model file that it shall open.

    Without a wish it is onnxruntime where that is installed, else LiteRT, of those that the
    package has a file for, and the package's own choice of precision.

    Raises:
        ConfigError: There is no such engine or file, or no engine is installed.
    """
    if engine is not None and engine not in ENGINES:
        raise ConfigError(
            f"there is no engine {engine!r}",
            hint=f"this version has {', '.join(sorted(ENGINES))}",
        )
    models = {(f.engine, f.precision) for f in package.files.values() if f.precision}
    has = [name for name in ENGINES if name in {runs_on for runs_on, _ in models}]
    fits = [n for n in has if precision is None or (n, precision) in models]
    for name in [engine] if engine is not None else fits:
        if importable(name):
            return name, _that_runs(package, precision, name)
    if engine is not None or not fits:  # opening it, or the package, says what is wrong
        name = engine or (has or list(ENGINES))[0]
        return name, package.model_file(precision, engine=name)
    raise ConfigError(
        f"{package.path.name} runs on {' or '.join(fits)}, which is not installed",
        hint=" or ".join(f"pip install '{_LIBRARIES[name][0]}'" for name in fits)
        + " (on a Jetson: NVIDIA's onnxruntime-gpu)",
    )


def _that_runs(package: DraftPackage, precision: str | None, engine: str) -> PackageFile:
    """Return the package's own choice, or, where the engine is too old, the next."""
    chosen = package.model_file(precision, engine=engine)
    if precision is not None or engine != "onnxruntime":
        return chosen
    installed = version_tuple(str(importlib.import_module(engine).__version__))
    for wanted in ("", *package.precisions):  # its own, then the smallest first
        for file in package.files.values():
            mine = file == chosen if not wanted else file.precision == wanted
            fits = file.engine == engine and version_tuple(file.min_engine) <= installed
            if mine and fits:
                return file
    return chosen  # opening it says what is too old


def importable(engine: str) -> bool:
    """Tell whether an engine's library is installed and loads."""
    for library in _LIBRARIES[engine][1:]:
        try:
            importlib.import_module(library)
        except ImportError:
            continue
        return True
    return False
