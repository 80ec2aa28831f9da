"""What every file of the repository keeps to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"__pycache__", "build", "dist", "out", "node_modules"}
TEXT = {"", ".md", ".py", ".toml", ".txt", ".in", ".json", ".yml", ".cfg", ".sh"}
# Spelled in halves: this file is read as well.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/tmp/" + r"(train|dev)\b"])
)


def text_files() -> Iterator[Path]:
    for here, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED
            and not name.endswith(".egg-info")
            and (not name.startswith(".") or name == ".ci")
            and not (Path(here) == ROOT and name == "shared")
        ]
        for name in names:
            path = Path(here) / name
            if path == ROOT / ".git":  # a file, in a worktree
                continue
            if path.suffix in TEXT and not path.is_symlink():
                yield path


def test_no_file_names_a_place_on_somebodys_machine():
    found = []
    for path in text_files():
        if path.stat().st_size > 2_000_000:  # a vocabulary, not prose
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_no_two_test_files_share_a_name():
    seen: dict[str, Path] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        assert path.name not in seen, f"{path} and {seen.get(path.name)}"
        seen[path.name] = path
