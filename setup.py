"""Where each part of ``draftwire`` lives: one top-level folder per subpackage."""

import os

import setuptools

# Older ones ignore [project] in pyproject.toml and install "UNKNOWN 0.0.0".
if int(setuptools.__version__.split(".")[0]) < 64:
    raise SystemExit("draftwire needs setuptools>=64 (drop --no-build-isolation?)")

FOLDERS = (
    "bench",
    "boards",
    "energy",
    "export",
    "runtime",
    "sampling",
    "transport",
    "verifier",
)


def subpackages(folder):
    """Return the dotted names of ``folder`` and the packages inside it."""
    found = []
    for here, _, files in os.walk(folder):
        if "__init__.py" in files:
            found.append(here.replace(os.sep, "."))
    return sorted(found)


rooms = {
    f"draftwire.{name}": name.replace(".", "/") for f in FOLDERS for name in subpackages(f)
}
face = [name[len("src.") :] for name in subpackages("src/draftwire")]  # links apart

setuptools.setup(
    packages=[*face, *rooms],
    package_dir={
        **rooms,
        "draftwire": "src/draftwire",
        "": "src",  # legacy and compat editable installs follow the links there
    },
    package_data={
        "draftwire": ["py.typed"],
        "draftwire.boards": ["*.toml"],
        "draftwire.boards.install": ["*.toml", "*.service", "*.rules", "*.conf", "*.sh"],
        "draftwire.boards.profiles": ["*.toml"],
        "draftwire.export.sources": ["*.toml"],
        "draftwire.energy": ["*.toml"],
        "draftwire.energy.files": ["*.toml"],
        "draftwire.energy.live": ["*.json"],
        "draftwire.energy.reports": ["*.css", "*.js", "*.mplstyle"],
        "draftwire.transport": ["*.md", "*.json"],
        "draftwire.verifier.kit": ["*.json"],
        "draftwire.bench": ["profiles/*.toml"],
        "draftwire.bench.link": ["*.toml"],
    },
    include_package_data=False,
)
