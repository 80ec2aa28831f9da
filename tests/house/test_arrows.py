"""Who may import whom, and what a device never loads."""

from __future__ import annotations

import ast
import functools
import re
from typing import NamedTuple

import pytest
from places import ROOT

FACE = "face"
LEAVES = {"sampling", "transport", "energy", "boards"}
# Room -> the other rooms that it may know.  The face and the bench may know everyone.
ARROWS = {
    **{leaf: set() for leaf in LEAVES},
    "energy": {"boards"},  # its profiles, which one parser reads
    "runtime": LEAVES,
    "verifier": {"sampling", "transport"},
    "export": set(),
}
EVERYONE = {FACE, "bench"}
STUDIES = "studies"  # may import everything, and nothing imports it
# Files of the face at the bottom of everything: what packages are, and errors.
GROUND = {"clock", "errors", "options", "packages", "rules", "template", "tensors"}
GROUND |= {"tokenizer", "tracing"}
DEVICE = sorted({*LEAVES, "runtime", FACE})
HEAVY = {"torch", "transformers", "onnx"}


class Import(NamedTuple):
    """One imported module and where it stands."""

    module: str
    line: int
    lazy: bool  # inside a function, or for type checkers alone


def folder(room):
    return ROOT / "src" / "draftwire" if room == FACE else ROOT / room


def files(room):
    if room == FACE:  # without the links to the rooms
        here = folder(FACE)
        inside = [
            path for name in ("cli", "packages") for path in (here / name).rglob("*.py")
        ]
        return sorted([*here.glob("*.py"), *inside])
    return sorted(folder(room).rglob("*.py"))


def rooms():
    links = [p.name for p in folder(FACE).iterdir() if p.is_symlink()]
    return sorted([*links, FACE])


def module_name(room, path):
    parts = path.relative_to(folder(room)).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(["draftwire", *([] if room == FACE else [room]), *parts])


@functools.lru_cache(maxsize=None)
def imports(room, path):
    """Every import of the file, absolute, those of type checkers included."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module_name(room, path)
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]

    def walk(node, lazy):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield Import(name.name, child.lineno, lazy)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    up = package.split(".")
                    up = up[: len(up) - child.level + 1]
                    base = ".".join([*up, base] if base else up)
                for name in child.names:
                    yield Import(f"{base}.{name.name}", child.lineno, lazy)
            else:
                later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
                    isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                )
                yield from walk(child, lazy or later)

    return tuple(walk(tree, False))


def offenders(those, wrong):
    """Return which imports of some rooms are wrong, and where they stand."""
    return [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for room in those
        for path in files(room)
        for found in imports(room, path)
        if wrong(found)
    ]


def ours(found):
    """Return which part of draftwire an import is of."""
    first, *others = found.module.split(".")
    return others[0] if first == "draftwire" and others else ""


def top(found):
    return found.module.split(".")[0]


@pytest.mark.parametrize("room", sorted(set(rooms()) - EVERYONE))
def test_a_room_knows_only_the_rooms_below(room):
    assert room in ARROWS, f"say in ARROWS which rooms {room} may import"
    ground = {"", "errors", "io", "__version__"} | (set() if room in LEAVES else GROUND)
    known = {room, *ARROWS[room], *ground}
    assert not offenders([room], lambda found: ours(found) not in known)


def test_the_face_imports_rooms_only_when_they_are_used():
    """What runs a command is imported when it runs; all else of the face costs nothing."""
    known = {module_name(FACE, path): path for path in files(FACE)}
    cli = folder(FACE) / "cli"
    at_once = [cli / "__init__.py", *(p for p in known.values() if cli not in p.parents)]
    at_once += [
        p for p in cli.rglob("*.py") if re.search("^LEA(F|VES)\\b", p.read_text(), re.M)
    ]
    wrong = []
    for path in at_once:  # grows
        for found in imports(FACE, path):
            if found.lazy or top(found) != "draftwire":
                continue
            if ours(found) in rooms():
                wrong.append(f"{path}:{found.line} imports {found.module}")
            for name in (found.module, found.module.rpartition(".")[0]):
                if known.get(name, path) not in at_once:
                    at_once.append(known[name])
    assert len(at_once) > 25 and not wrong, "\n".join(wrong)


def test_rooms_go_by_their_full_name():
    """``import runtime`` would make a second copy of every class."""
    bare = set(rooms()) - {FACE}
    assert not offenders([*rooms(), STUDIES], lambda found: top(found) in bare)


def test_nothing_imports_the_studies():
    assert not offenders(rooms(), lambda found: top(found) == STUDIES)


def test_a_device_room_names_no_heavy_library():
    assert not offenders(DEVICE, lambda found: top(found) in HEAVY)


# What reads JSON by itself: the installer, which is one script; our own children's lines.
OWN_JSON = {"boards/install/archive.py", "boards/install/steps.py", "runtime/text.py"}
OWN_JSON |= {"bench/child.py", "bench/device.py", "bench/device_child.py"}
OWN_JSON |= {"boards/ship/bundle.py", "export/graphs/optimum_child.py"}


def test_json_from_outside_has_one_reader():
    wrong = {
        str(path.relative_to(ROOT))
        for room in rooms()
        for path in files(room)
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"json\.loads?\((?!json\.dumps)", line) and path.name != "io.py"
    }
    assert wrong == OWN_JSON  # the others: draftwire.io.parse_json


@pytest.mark.parametrize("room", DEVICE)
def test_a_device_room_is_python_3_8(room):
    for path in files(room):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, str(path), feature_version=(3, 8))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign)
        if any(isinstance(node, kinds) for node in ast.walk(tree)):
            assert "from __future__ import annotations" in source, path
