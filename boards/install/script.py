"""Joins the modules of this folder to the one script that goes to a board."""

from __future__ import annotations

import ast
from pathlib import Path

# In the order of their imports.
MODULES = "ed25519 trouble archive disk facts layout unpack service steps main".split()
# To sh, ``''':'`` is the command ``:``; to Python it opens a string.
_HEAD = """\
#!/bin/sh
# draftwire: installs a bundle on a board. Text, to be read before it is run as root.
# Made by `draftwire boards bundle --installer`; --help shows what it can do.
''':'
for python in python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
        exec "$python" -I "$0" "$@"
    fi
done
echo "install.sh: error: it needs Python 3.8 or newer, and there is none" >&2
exit 3
'''
from __future__ import annotations
"""
_TAIL = """

if __name__ == "__main__":
    sys.exit(run())
"""


def installer_script() -> bytes:
    """Return ``install.sh``: a shell script that is a Python program as well."""
    folder = Path(__file__).resolve().parent
    pieces = [_HEAD]
    for name in MODULES:
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        pieces.append(f"\n\n# ---- {name}\n" + _without_own_imports(source))
    return ("".join(pieces) + _TAIL).encode("ascii")


def _without_own_imports(source: str) -> str:
    """Cut what has no place in the one file: the docstring, our imports."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        module = str(node.module) if isinstance(node, ast.ImportFrom) else ""
        if module.split(".")[0] in ("draftwire", "__future__"):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "".join(lines).strip("\n") + "\n"
