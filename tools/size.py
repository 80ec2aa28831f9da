"""Lines of Python by folder, beside the budgets that the design gives them.

``make size`` prints them, and which folders hold more modules than a listing reads well;
``make size ARGS=--check`` fails where a budget or a folder is too full. Lines are all lines
of a file: code, docstrings, comments and blank ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[1]
FACE = "src/draftwire"
# Room -> lines that it shall keep within; the wheel as a whole, and what is beside it.
BUDGETS = {
    "bench": 4000,
    "boards": 4500,
    "energy": 5500,
    "export": 6000,
    "runtime": 6500,
    "sampling": 1500,
    "transport": 1500,
    "verifier": 6500,
    FACE: 4500,
}
WHEEL = 40_000
BESIDE = {"studies": 5000, "tests": 26_000, "tools": 0, "examples": 0, "ros": 0}
MODULES = 15  # of one folder


def modules(folder: Path) -> Iterator[Path]:
    """Yield the Python files below ``folder``, none of them behind a link."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from modules(path)
        elif path.suffix == ".py":
            yield path


def lines(folder: Path) -> int:
    """Return the lines of all modules below ``folder``."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in modules(folder))


def row(name: str, found: int, budget: int, indent: str = "") -> bool:
    """Print a line of the table; return whether it keeps within its budget."""
    left = f"{budget:8,}{budget - found:+9,}" if budget else ""
    print(f"{indent + name:28}{found:8,}{left}")
    return not budget or found <= budget


def crowded() -> list[str]:
    """Return the folders of the wheel and of the studies with too many modules."""
    found = []
    for room in (*BUDGETS, "studies"):
        counts: dict[Path, int] = {}
        for path in modules(ROOT / room):
            if path.name != "__init__.py":
                counts[path.parent] = counts.get(path.parent, 0) + 1
        for folder, count in counts.items():
            if count > MODULES:
                found.append(f"{folder.relative_to(ROOT)}: {count}")
    return found


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where it is too much")
    parser.add_argument("rooms", nargs="*", help="show the folders of these rooms too")
    args = parser.parse_args()
    print(f"{'':28}{'lines':>8}{'budget':>8}{'left':>9}")
    fits, total = [], 0
    for room, budget in BUDGETS.items():
        found = lines(ROOT / room)
        total += found
        fits.append(row(room, found, budget))
        if room in args.rooms:
            for inside in sorted((ROOT / room).iterdir()):
                if inside.is_dir() and not inside.is_symlink() and lines(inside):
                    row(inside.name, lines(inside), 0, "  ")
    fits.append(row("the wheel", total, WHEEL))
    print()
    fits += [row(name, lines(ROOT / name), budget) for name, budget in BESIDE.items()]
    full = crowded()
    print(f"\n{len(full)} folders hold more than {MODULES} modules")
    for line in full:
        print(f"  {line}")
    return int(args.check and (not all(fits) or bool(full)))


if __name__ == "__main__":
    sys.exit(main())
